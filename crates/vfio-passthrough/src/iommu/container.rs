// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The legacy interface: groups in a container, which has the IOMMU; and no-IOMMU mode, which uses the same files.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_NOIOMMU_IOMMU, VFIO_TYPE1v2_IOMMU,
};

use super::{DmaMemory, GroupFile, Iommu, IommuKind, Opened, VfioFiles, of_the_host};
use crate::device::KernelDevice;
use crate::host::{HostBus, HostDevice};
use crate::{Error, sys};

/// A container and the groups in it.
#[derive(Debug)]
pub struct Container {
    files: Arc<dyn VfioFiles>,
    inner: Arc<Inner>,
    noiommu: bool,
}

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    /// A group can be opened once, whatever the number of its devices that are used.
    groups: Mutex<BTreeMap<u32, Weak<Group>>>,
}

/// A group in the container. Leaves it when its last device is gone.
#[derive(Debug)]
struct Group {
    fd: OwnedFd,
    // Closed after the group has left it.
    container: Arc<Inner>,
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last group that leaves takes the container's IOMMU with it, mappings included (`vfio_container_detach_group`). Nobody is left to be
        // told of a failure, and closing the group does the same.
        let _groups = self.container.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = sys::unset_container(self.fd.as_fd());
    }
}

impl Container {
    /// A container whose IOMMU translates.
    ///
    /// # Errors
    /// [`Error::NoVfio`], [`Error::Permission`], [`Error::Kernel`].
    pub fn new(files: Arc<dyn VfioFiles>) -> Result<Self, Error> {
        Self::open_container(files, false)
    }

    /// A container for devices in no-IOMMU mode.
    ///
    /// # Errors
    /// As above.
    pub fn without_iommu(files: Arc<dyn VfioFiles>) -> Result<Self, Error> {
        Self::open_container(files, true)
    }

    fn open_container(files: Arc<dyn VfioFiles>, noiommu: bool) -> Result<Self, Error> {
        let fd = files.container()?;
        let failed = |e| Error::kernel("ask", "the VFIO container for its interface", e);
        if sys::api_version(fd.as_fd()).map_err(failed)? != 0 {
            return Err(failed(io::Error::from(io::ErrorKind::Unsupported)));
        }
        let inner = Inner { fd, groups: Mutex::default() };
        Ok(Self { files, inner: Arc::new(inner), noiommu })
    }

    fn iommu_type(&self) -> u32 {
        if self.noiommu { VFIO_NOIOMMU_IOMMU } else { VFIO_TYPE1v2_IOMMU }
    }

    /// The device's group, in the container, whose IOMMU is set.
    fn group(&self, device: &HostDevice, number: u32) -> Result<Arc<Group>, Error> {
        // Held all the way: the first group to come sets the IOMMU, the last to leave takes it away.
        let mut groups = self.inner.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.get(&number).and_then(Weak::upgrade) {
            return Ok(group);
        }
        let name = if self.noiommu { format!("noiommu-{number}") } else { number.to_string() };
        let fd = self.files.group(&name)?;
        let status = sys::group_status(fd.as_fd())
            .map_err(|e| Error::kernel("look at", format!("group {name}"), e))?;
        if status & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(not_viable(device, number));
        }
        // From the descriptor: the weak references of groups that are on their way out are not to be waited for.
        sys::set_container(fd.as_fd(), self.inner.fd.as_fd())
            .map_err(|e| Error::kernel("put into the container", format!("group {name}"), e))?;
        let first = groups.values().all(|group| group.strong_count() == 0);
        if first && let Err(e) = sys::set_iommu(self.inner.fd.as_fd(), self.iommu_type()) {
            let _ = sys::unset_container(fd.as_fd());
            return Err(match e.raw_os_error() {
                // Linux 6.12, `vfio_iommu_type1_attach_group`.
                Some(libc::EPERM) => Error::UnsafeInterrupts {
                    name: device.name().to_owned(),
                    parameter: "vfio_iommu_type1.allow_unsafe_interrupts",
                    source: e,
                },
                Some(libc::ENODEV | libc::ENOTTY) => Error::NoIommu { name: device.name().to_owned() },
                _ => Error::kernel("set up", format!("the IOMMU for group {name}"), e),
            });
        }
        let group = Arc::new(Group { fd, container: Arc::clone(&self.inner) });
        groups.retain(|_, group| group.strong_count() > 0);
        groups.insert(number, Arc::downgrade(&group));
        Ok(group)
    }
}

fn not_viable(device: &HostDevice, group: u32) -> Error {
    let others = of_the_host(device).unwrap_or_else(|| "a device of it belongs to a host driver".to_owned());
    Error::GroupNotViable { name: device.name().to_owned(), group, others }
}

impl Iommu for Container {
    fn kind(&self) -> IommuKind {
        if self.noiommu { IommuKind::NoIommu } else { IommuKind::Legacy }
    }

    fn open(&self, device: &HostDevice) -> Result<Opened, Error> {
        device.check_bound()?;
        let name = || device.name().to_owned();
        let number = match (device.iommu_group(), self.noiommu) {
            (Some(_), true) if !device.is_noiommu() => {
                return Err(Error::WrongIommu {
                    name: name(),
                    asked: IommuKind::NoIommu,
                    reason: "it is behind an IOMMU",
                });
            }
            (Some(_), false) if device.is_noiommu() => return Err(Error::NoIommu { name: name() }),
            (Some(number), _) => number,
            (None, true) => {
                return Err(Error::NoVfio {
                    path: "/dev/vfio/noiommu-*".into(),
                    needs: "give the host's kernel vfio.enable_unsafe_noiommu_mode=1 before the device is bound to its VFIO driver",
                });
            }
            (None, false) => return Err(Error::NoIommu { name: name() }),
        };
        let group = self.group(device, number)?;
        let c_name =
            CString::new(device.name()).map_err(|e| Error::kernel("open", name(), io::Error::other(e)))?;
        let fd = sys::group_device(group.fd.as_fd(), &c_name).map_err(|e| {
            match (device.bus(), e.raw_os_error()) {
                // What a missing reset answers (Linux 6.12, `vfio_platform_call_reset`); the others of this call speak of the name.
                (HostBus::Platform | HostBus::Amba, Some(libc::EINVAL)) => {
                    Error::NoReset { name: name(), source: e }
                }
                _ => Error::kernel("open", device.name(), e),
            }
        })?;
        Ok((Box::new(KernelDevice::new(fd)), Box::new(group)))
    }

    fn ranges(&self) -> io::Result<Option<Vec<(u64, u64)>>> {
        if self.noiommu {
            return Ok(None);
        }
        sys::container_info(self.inner.fd.as_fd()).and_then(|bytes| {
            decode_ranges(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
        })
    }

    fn map(&self, iova: u64, memory: &DmaMemory) -> io::Result<()> {
        if self.noiommu {
            return Ok(());
        }
        let write = if memory.writable() { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
        let flags = VFIO_DMA_MAP_FLAG_READ | write;
        sys::container_map(self.inner.fd.as_fd(), iova, memory.host(), memory.bytes(), flags)
    }

    fn unmap(&self, iova: u64, bytes: u64) -> io::Result<()> {
        if self.noiommu {
            return Ok(());
        }
        sys::container_unmap(self.inner.fd.as_fd(), iova, bytes).map(drop)
    }

    fn groups(&self) -> Vec<(u32, GroupFile)> {
        let groups = self.inner.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let open = groups.iter().filter_map(|(&number, group)| Some((number, group.upgrade()?)));
        let files: Vec<_> = open.collect();
        // One that leaves meanwhile does so when it is let go, which takes the lock.
        drop(groups);
        files.into_iter().map(|(number, group)| (number, group as GroupFile)).collect()
    }
}

/// The IOVA ranges in `struct vfio_iommu_type1_info`: argsz, flags, page sizes, cap_offset, and a chain of capabilities, each with id, version, next;
/// the one that is looked for goes on with the number of ranges, a reserved word, and the ranges.
fn decode_ranges(bytes: &[u8]) -> Result<Option<Vec<(u64, u64)>>, &'static str> {
    let word = |at: usize| {
        bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes).map(|word| word as usize)
    };
    let quad = |at: usize| bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_ne_bytes);
    const SHORT: &str = "the IOMMU's description is too short";
    if word(4).ok_or(SHORT)? & VFIO_IOMMU_INFO_CAPS as usize == 0 {
        return Ok(None);
    }
    let mut at = word(16).ok_or(SHORT)?;
    while at != 0 {
        let next = word(at + 4).ok_or(SHORT)?;
        if word(at).ok_or(SHORT)? & 0xffff == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE as usize {
            let count = word(at + 8).ok_or(SHORT)?;
            return (0..count)
                .map(|i| {
                    let range = at.checked_add(16)?.checked_add(i.checked_mul(16)?)?;
                    Some((quad(range)?, quad(range + 8)?))
                })
                .collect::<Option<Vec<_>>>()
                .map(Some)
                .ok_or(SHORT);
        }
        if next != 0 && next <= at {
            return Err("the IOMMU's description goes in circles");
        }
        at = next;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_window_of_the_msis_is_the_hole_between_two_ranges() {
        // What an SMMUv3 of QEMU's virt says: MSIs are written at 0x8000000..=0x80fffff.
        let info = bytes(&[
            0,
            3,
            0,
            0,
            24,
            0, // argsz, flags: page sizes and capabilities, ..., cap_offset
            0x0001_0003,
            40,
            0,
            0, // another capability, which ends where
            0x0001_0001,
            0,
            2,
            0,
            0,
            0,
            0x07ff_ffff,
            0,
            0x0810_0000,
            0,
            u32::MAX,
            0xffff, // this one begins
        ]);
        assert_eq!(decode_ranges(&info), Ok(Some(vec![(0, 0x07ff_ffff), (0x0810_0000, 0xffff_ffff_ffff)])));
    }

    #[test]
    fn descriptions_that_make_no_sense_are_errors() {
        for (words, what) in [
            (&[0, 1, 0, 0, 24, 0, 7, 24][..], "no capabilities, whatever stands where they would be found"),
            (&[0, 2, 0, 0, 0, 0], "none of them"),
            (&[0, 2, 0, 0, 24, 0, 7, 0], "another one"),
        ] {
            assert_eq!(decode_ranges(&bytes(words)), Ok(None), "{what}");
        }
        for words in [
            vec![0],
            vec![0, 2, 0, 0, 4000, 0],
            vec![0, 2, 0, 0, 24, 0, 7, 24],
            vec![0, 2, 0, 0, 24, 0, 1, 0, u32::MAX, 0],
        ] {
            assert!(decode_ranges(&bytes(&words)).is_err(), "{words:?}");
        }
    }
}
