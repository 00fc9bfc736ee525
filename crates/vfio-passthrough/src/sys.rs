// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one file of this crate with `unsafe` in it: VFIO's ioctls and mappings.
//!
//! The structures are those of vfio-bindings and iommufd-bindings. The ioctls are issued here and not through vfio-ioctls, which refuses AMBA
//! devices, drops the errno of `VFIO_DEVICE_SET_IRQS` and the outcome of reads and writes, cannot leave a vector without an eventfd, and hands
//! resample eventfds to INTx only.
#![allow(unsafe_code, reason = "system calls; each block has its argument")]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::raw::{c_ulong, c_void};
use std::ptr::NonNull;

use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_TYPE, iommu_ioas_iova_ranges, iommu_iova_range,
};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_TYPE, vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_info,
    vfio_group_status, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_irq_info,
};

use crate::hot_reset::{self, HotReset, HotResetInfo};
use crate::info::{DeviceInfo, IrqInfo, MAX_INFO, REGION_INFO_SIZE, RegionInfo};
use crate::irq_set::IrqSet;

/// `_IO(VFIO_TYPE, VFIO_BASE + n)`: VFIO's requests carry neither size nor direction.
const fn vfio(n: u32) -> c_ulong {
    ((VFIO_TYPE as c_ulong) << 8) | (VFIO_BASE + n) as c_ulong
}

const VFIO_GET_API_VERSION: c_ulong = vfio(0);
const VFIO_SET_IOMMU: c_ulong = vfio(2);
const VFIO_GROUP_GET_STATUS: c_ulong = vfio(3);
const VFIO_GROUP_SET_CONTAINER: c_ulong = vfio(4);
const VFIO_GROUP_UNSET_CONTAINER: c_ulong = vfio(5);
const VFIO_GROUP_GET_DEVICE_FD: c_ulong = vfio(6);
const VFIO_DEVICE_GET_INFO: c_ulong = vfio(7);
const VFIO_DEVICE_GET_REGION_INFO: c_ulong = vfio(8);
const VFIO_DEVICE_GET_IRQ_INFO: c_ulong = vfio(9);
const VFIO_DEVICE_SET_IRQS: c_ulong = vfio(10);
const VFIO_DEVICE_RESET: c_ulong = vfio(11);
/// The numbers of a PCI device's requests are those of a container's: which is meant is the descriptor's to say.
const VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: c_ulong = vfio(12);
const VFIO_DEVICE_PCI_HOT_RESET: c_ulong = vfio(13);
const VFIO_IOMMU_GET_INFO: c_ulong = vfio(12);
const VFIO_IOMMU_MAP_DMA: c_ulong = vfio(13);
const VFIO_IOMMU_UNMAP_DMA: c_ulong = vfio(14);
const VFIO_DEVICE_BIND_IOMMUFD: c_ulong = vfio(18);
const VFIO_DEVICE_ATTACH_IOMMUFD_PT: c_ulong = vfio(19);

const IOMMU_IOAS_IOVA_RANGES: c_ulong =
    ((IOMMUFD_TYPE as c_ulong) << 8) | IOMMUFD_CMD_IOAS_IOVA_RANGES as c_ulong;

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[expect(clippy::cast_possible_truncation, reason = "sizes of small structures")]
const fn small(bytes: usize) -> u32 {
    bytes as u32
}

const fn size_of_u32<T>() -> u32 {
    small(size_of::<T>())
}

/// An ioctl whose argument is a number or nothing.
fn ioctl_value(fd: BorrowedFd<'_>, request: c_ulong, value: c_ulong) -> io::Result<i32> {
    // SAFETY: this file uses it only for requests whose argument the kernel takes as a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, value) })
}

/// An ioctl whose argument is a structure that the kernel reads and, where it says so, writes, and that has no pointers in it.
fn ioctl_struct<T: Copy>(fd: BorrowedFd<'_>, request: c_ulong, argument: &mut T) -> io::Result<i32> {
    // SAFETY: `argument` is the structure of vfio-bindings that the request takes (each call below names it), all of its fields are plain
    // numbers, so that whatever the kernel writes is valid, and its `argsz` says its size, beyond which the kernel writes nothing.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(argument)) })
}

/// An ioctl whose argument is a structure of variable length: `bytes`, whose first word says how long it is.
fn ioctl_bytes(fd: BorrowedFd<'_>, request: c_ulong, bytes: &mut [u64]) -> io::Result<i32> {
    // SAFETY: the buffer is aligned for every field, and its first 32-bit word (`argsz`, set by each caller below to no more than the
    // buffer's length) bounds what the kernel reads and writes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, bytes.as_mut_ptr()) })
}

/// The version of VFIO's container interface; 0 is the only one there is.
pub(crate) fn api_version(container: BorrowedFd<'_>) -> io::Result<i32> {
    ioctl_value(container, VFIO_GET_API_VERSION, 0)
}

/// Gives a container with at least one group its IOMMU.
pub(crate) fn set_iommu(container: BorrowedFd<'_>, kind: u32) -> io::Result<()> {
    ioctl_value(container, VFIO_SET_IOMMU, kind.into()).map(drop)
}

/// `VFIO_GROUP_FLAGS_*`.
pub(crate) fn group_status(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut status = vfio_group_status { argsz: size_of_u32::<vfio_group_status>(), ..Default::default() };
    ioctl_struct(group, VFIO_GROUP_GET_STATUS, &mut status)?;
    Ok(status.flags)
}

/// Puts a group into a container.
pub(crate) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut number = container.as_raw_fd();
    ioctl_struct(group, VFIO_GROUP_SET_CONTAINER, &mut number).map(drop)
}

/// Takes a group out of its container.
pub(crate) fn unset_container(group: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_value(group, VFIO_GROUP_UNSET_CONTAINER, 0).map(drop)
}

/// Opens a device of a group by its name in sysfs.
pub(crate) fn group_device(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a string that ends in a zero, which a CStr does.
    let fd = check(unsafe { libc::ioctl(group.as_raw_fd(), VFIO_GROUP_GET_DEVICE_FD as _, name.as_ptr()) })?;
    // SAFETY: the kernel just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes an iommufd the owner of a device's DMA.
pub(crate) fn bind_iommufd(device: BorrowedFd<'_>, iommufd: BorrowedFd<'_>) -> io::Result<()> {
    let mut bind = vfio_device_bind_iommufd {
        // Without the token, which kernels before 6.17 do not know.
        argsz: small(std::mem::offset_of!(vfio_device_bind_iommufd, token_uuid_ptr)),
        iommufd: iommufd.as_raw_fd(),
        ..Default::default()
    };
    ioctl_struct(device, VFIO_DEVICE_BIND_IOMMUFD, &mut bind).map(drop)
}

/// Attaches a device to an I/O address space.
pub(crate) fn attach_ioas(device: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
    let mut attach = vfio_device_attach_iommufd_pt {
        // Without the PASID, which kernels before 6.15 do not know.
        argsz: small(std::mem::offset_of!(vfio_device_attach_iommufd_pt, pasid)),
        pt_id: ioas,
        ..Default::default()
    };
    ioctl_struct(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut attach).map(drop)
}

/// Lets devices of the container read and write `bytes` at `host` by the address `iova`.
///
/// The pages are pinned: they stay what the devices see even if the process unmaps them. So the kernel keeps DMA off other memory
/// of the process whatever the caller does; callers give it guest memory and device registers, which change at any time anyway.
pub(crate) fn container_map(
    container: BorrowedFd<'_>,
    iova: u64,
    host: u64,
    bytes: u64,
    flags: u32,
) -> io::Result<()> {
    let mut map = vfio_iommu_type1_dma_map {
        argsz: size_of_u32::<vfio_iommu_type1_dma_map>(),
        flags,
        vaddr: host,
        iova,
        size: bytes,
    };
    ioctl_struct(container, VFIO_IOMMU_MAP_DMA, &mut map).map(drop)
}

/// Ends a mapping. Returns how many bytes were unmapped.
pub(crate) fn container_unmap(container: BorrowedFd<'_>, iova: u64, bytes: u64) -> io::Result<u64> {
    // The structure ends in an array that is not used here; what precedes it is plain.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Unmap {
        argsz: u32,
        flags: u32,
        iova: u64,
        size: u64,
    }
    const _: () = assert!(size_of::<Unmap>() == size_of::<vfio_iommu_type1_dma_unmap>());
    let mut unmap = Unmap { argsz: size_of_u32::<Unmap>(), flags: 0, iova, size: bytes };
    ioctl_struct(container, VFIO_IOMMU_UNMAP_DMA, &mut unmap)?;
    Ok(unmap.size)
}

/// A description of variable length: asked for with room for `first` bytes, and once more if the kernel says that it needs more.
fn description(
    fd: BorrowedFd<'_>,
    request: c_ulong,
    first: usize,
    prepare: impl Fn(&mut [u64]),
) -> io::Result<Vec<u8>> {
    let mut size = first;
    for _ in 0..4 {
        let mut buffer = vec![0_u64; size.div_ceil(8)];
        prepare(&mut buffer);
        let argsz = u32::try_from(size).unwrap_or(u32::MAX);
        set_word(&mut buffer, 0, argsz);
        ioctl_bytes(fd, request, &mut buffer)?;
        let bytes: Vec<u8> = buffer.iter().flat_map(|quad| quad.to_ne_bytes()).collect();
        let needed = bytes.first_chunk().map_or(0, |argsz| u32::from_ne_bytes(*argsz) as usize);
        if needed <= size {
            return Ok(bytes);
        }
        if needed > MAX_INFO {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a description of {needed} bytes"),
            ));
        }
        size = needed;
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a description that keeps growing"))
}

/// Sets the `index`th 32-bit word.
fn set_word(buffer: &mut [u64], index: usize, value: u32) {
    if let Some(quad) = buffer.get_mut(index / 2) {
        let mut bytes = quad.to_ne_bytes();
        if let Some(word) = bytes.get_mut(4 * (index % 2)..4 * (index % 2) + 4) {
            word.copy_from_slice(&value.to_ne_bytes());
        }
        *quad = u64::from_ne_bytes(bytes);
    }
}

/// `struct vfio_iommu_type1_info` and its capabilities.
pub(crate) fn container_info(container: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    description(container, VFIO_IOMMU_GET_INFO, 24, |_| ())
}

/// The ranges of addresses, each with its last one, that an I/O address space takes.
pub(crate) fn ioas_ranges(iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::<iommu_iova_range>::new();
    for _ in 0..4 {
        let mut query = iommu_ioas_iova_ranges {
            size: size_of_u32::<iommu_ioas_iova_ranges>(),
            ioas_id: ioas,
            num_iovas: u32::try_from(ranges.len()).unwrap_or(u32::MAX),
            allowed_iovas: ranges.as_mut_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: `allowed_iovas` points to `num_iovas` structures of plain numbers, all that the kernel writes to besides `query`.
        let result = check(unsafe {
            libc::ioctl(iommufd.as_raw_fd(), IOMMU_IOAS_IOVA_RANGES as _, std::ptr::from_mut(&mut query))
        });
        match result {
            Ok(_) => {
                ranges.truncate(query.num_iovas as usize);
                return Ok(ranges.iter().map(|range| (range.start, range.last)).collect());
            }
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) && (query.num_iovas as usize) < MAX_INFO => {
                ranges.resize(query.num_iovas as usize, iommu_iova_range::default());
            }
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a list of ranges that keeps growing"))
}

/// What a device is.
pub(crate) fn device_info(device: BorrowedFd<'_>) -> io::Result<DeviceInfo> {
    let mut info = vfio_device_info { argsz: size_of_u32::<vfio_device_info>(), ..Default::default() };
    ioctl_struct(device, VFIO_DEVICE_GET_INFO, &mut info)?;
    Ok(DeviceInfo { flags: info.flags, regions: info.num_regions, irqs: info.num_irqs })
}

/// One of its regions.
pub(crate) fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<RegionInfo> {
    let bytes = description(device, VFIO_DEVICE_GET_REGION_INFO, REGION_INFO_SIZE, |buffer| {
        set_word(buffer, 2, index);
    })?;
    RegionInfo::decode(&bytes).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))
}

/// One of its interrupt indexes.
pub(crate) fn irq_info(device: BorrowedFd<'_>, index: u32) -> io::Result<IrqInfo> {
    let mut info = vfio_irq_info { argsz: size_of_u32::<vfio_irq_info>(), index, ..Default::default() };
    ioctl_struct(device, VFIO_DEVICE_GET_IRQ_INFO, &mut info)?;
    Ok(IrqInfo { count: info.count, flags: info.flags })
}

/// Interrupts: what triggers what, mask, unmask. Returns what [`RawDevice::set_irqs`](crate::RawDevice::set_irqs) does.
pub(crate) fn set_irqs(device: BorrowedFd<'_>, set: &IrqSet<'_>) -> io::Result<u32> {
    let bytes = set.encode();
    // SAFETY: the kernel only reads; the first word says how many bytes, and that is `bytes`' length by construction (IrqSet::encode). It
    // copies bytewise, so that the alignment does not matter. Numbers of descriptors in it are looked up while the call lasts.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), VFIO_DEVICE_SET_IRQS as _, bytes.as_ptr()) };
    check(result).map(i32::cast_unsigned)
}

/// Resets the function or device.
pub(crate) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_value(device, VFIO_DEVICE_RESET, 0).map(drop)
}

/// What a reset of the device's bus or slot would reach.
pub(crate) fn hot_reset_info(device: BorrowedFd<'_>) -> io::Result<HotResetInfo> {
    // Most often it is alone.
    let mut room = 1;
    for _ in 0..4 {
        let size = hot_reset::HEADER + hot_reset::DEVICE * room;
        let mut buffer = vec![0_u64; size.div_ceil(8)];
        set_word(&mut buffer, 0, u32::try_from(size).unwrap_or(u32::MAX));
        let result = ioctl_bytes(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &mut buffer);
        let bytes: Vec<u8> = buffer.iter().flat_map(|quad| quad.to_ne_bytes()).collect();
        match result {
            Ok(_) => {
                let bytes = bytes.get(..size).unwrap_or(&bytes);
                return HotResetInfo::decode(bytes)
                    .map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what));
            }
            // There are more; the kernel has said how many.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                let count =
                    bytes.get(8..12).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes);
                room = count as usize;
                if hot_reset::HEADER + hot_reset::DEVICE * room > MAX_INFO {
                    return Err(e);
                }
            }
            // Devices came or went while the kernel counted.
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a list of devices that keeps growing"))
}

/// Resets the device's bus or slot.
pub(crate) fn hot_reset(device: BorrowedFd<'_>, request: &HotReset<'_>) -> io::Result<()> {
    let bytes = request.encode();
    // SAFETY: the kernel only reads; the first word says how many bytes, and that is `bytes`' length by construction (HotReset::encode). It copies bytewise, so
    // that the alignment does not matter. Numbers of descriptors in it are looked up while the call lasts.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), VFIO_DEVICE_PCI_HOT_RESET as _, bytes.as_ptr()) };
    check(result).map(drop)
}

/// A part of a device's file, mapped: registers or memory of a device.
///
/// It is address space to hand on, to a hypervisor's memory slot or an IOMMU; nothing here reads or writes it.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<c_void>,
    len: usize,
    writable: bool,
}

impl Mapping {
    /// Maps `len` bytes of `file` from `offset` on, shared.
    ///
    /// What is large lies in this process as it lies in the file, as far as blocks of memory go: tables of the host's and of the guest's pages then have a block
    /// for it where they would else need an entry, and a fault, for each page (Linux 6.12, `vfio_pci_mmap_huge_fault` and, for the guest, `get_vma_page_shift`).
    /// A kernel may choose such an address by itself, as 6.12 does for blocks of 2 MiB; here it is so with each, and for blocks of up to 1 GiB.
    ///
    /// # Errors
    /// If the kernel refuses: not mappable, not aligned to pages, no address space left.
    pub fn new(file: BorrowedFd<'_>, offset: u64, len: usize, writable: bool) -> io::Result<Self> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        let overflow = || io::Error::from_raw_os_error(libc::EOVERFLOW);
        let at = libc::off_t::try_from(offset).map_err(|_| overflow())?;
        let alignment = alignment(len);
        if alignment == 0 {
            // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
            let address = unsafe {
                libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), at)
            };
            return Self::made(address, len, writable);
        }
        // Address space with room for it at the right place, and nothing in it; given back where it is not used.
        let room = len.checked_add(alignment).ok_or_else(overflow)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: as above.
        let reserved = unsafe { libc::mmap(std::ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0) };
        let reserved = Self::made(reserved, room, false)?;
        let first = reserved.address.as_ptr();
        // Of the offset only what is below the alignment matters, which a `usize` has on every machine.
        #[expect(clippy::cast_possible_truncation, reason = "the lower bits are what is looked at")]
        let skip = (offset as usize).wrapping_sub(first as usize) & (alignment - 1);
        let (place, flags) = (first.wrapping_byte_add(skip), libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: `skip` is less than the alignment, so that `len` bytes from there on are within what has just been reserved, which nobody else knows.
        let address = unsafe { libc::mmap(place, len, protection, flags, file.as_raw_fd(), at) };
        let mapped = Self::made(address, len, writable);
        // If it is refused, the kernel need not have left what was reserved there, and somebody else may have the place by now: it is let be.
        std::mem::forget(reserved);
        // The kernel maps whole pages.
        let end = (skip + len).next_multiple_of(rustix::param::page_size()).min(room);
        for (start, bytes) in [(0, skip), (end, room - end)] {
            if bytes > 0 {
                // SAFETY: a part of the reserved address space beside the mapping, of which there are no users.
                unsafe { libc::munmap(first.wrapping_byte_add(start), bytes) };
            }
        }
        mapped
    }

    /// What the kernel has answered to `mmap`.
    fn made(address: *mut c_void, len: usize, writable: bool) -> io::Result<Self> {
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { address, len, writable })
    }

    /// Where it is in this process.
    #[must_use]
    pub fn address(&self) -> NonNull<c_void> {
        self.address
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: the kernel maps nothing of no length.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it may be written to.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }
}

/// To what a mapping of `len` bytes is to be aligned: the largest power of two that is not larger than it, up to the largest block that tables of pages have; 0 if it is
/// smaller than the smallest block (pages of 4 KiB; with larger ones blocks are larger, and the kernel takes them where they fit).
fn alignment(len: usize) -> usize {
    const SMALLEST: usize = 2 << 20;
    const LARGEST: usize = 1 << 30;
    if len < SMALLEST { 0 } else { LARGEST.min(1 << len.ilog2()) }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping of that length. Whoever was handed the address holds the `Mapping` (see `SlotMemory`) or has had its
        // pages pinned by the kernel.
        unsafe { libc::munmap(self.address.as_ptr(), self.len) };
    }
}

// SAFETY: the mapping belongs to the process, not to a thread, and is not accessed through this type.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// A second owner of the same open file.
pub(crate) fn duplicate(file: BorrowedFd<'_>) -> io::Result<File> {
    file.as_fd().try_clone_to_owned().map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    /// How much address space this process has in use.
    fn in_use() -> u64 {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
        pages * rustix::param::page_size() as u64
    }

    #[test]
    fn what_is_large_lies_in_memory_as_it_lies_in_the_file_and_takes_no_more_room() {
        const M: usize = 1 << 20;
        let file = File::from(memfd_create("mapping", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(64 * M as u64).unwrap();
        let before = in_use();
        let mut mappings = Vec::new();
        for (offset, len, alignment) in [
            (0, 4096, 4096),
            (4096, M, 4096),
            (0, 2 * M, 2 * M),
            // Behind the table of an MSI-X capability.
            (0x3000, 16 * M - 0x3000, 8 * M),
            (32 * M, 32 * M, 32 * M),
        ] {
            for _ in 0..200 {
                let mapping = Mapping::new(file.as_fd(), offset as u64, len, true).unwrap();
                let address = mapping.address().as_ptr() as usize;
                assert_eq!(address.wrapping_sub(offset) % alignment, 0, "{offset:#x} {len:#x}: {address:#x}");
                mappings.push(mapping);
            }
        }
        let bytes = mappings.iter().map(|mapping| mapping.len() as u64).sum::<u64>();
        let grown = in_use() - before;
        // Other tests run beside this one, and have threads.
        assert!(grown < bytes + (1 << 30), "{grown:#x} for {bytes:#x}");
        drop(mappings);
        assert!(in_use() < before + (1 << 30));
        assert!(Mapping::new(file.as_fd(), 1, 4 * M, true).is_err(), "no page begins there");
    }

    #[test]
    fn an_alignment_is_a_power_of_two_and_no_larger_than_a_block() {
        for (len, expected) in [
            (0, 0),
            (0x1f_ffff, 0),
            (0x20_0000, 0x20_0000),
            (0x3f_f000, 0x20_0000),
            (0x2000_0000, 0x2000_0000),
            (0x10_0000_0000, 0x4000_0000),
        ] {
            assert_eq!(alignment(len), expected, "{len:#x}");
        }
    }
}
