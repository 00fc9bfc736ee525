// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one file of this crate with `unsafe` in it: system calls that no safe wrapper of ours has.
#![allow(unsafe_code, reason = "system calls; each block has its argument")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use vfio_passthrough::{GuestSlots, Slot, SlotMemory};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::serial::WriteRing;

/// A VM and the guest memory that its slots point into: the mappings live at least as long as the VM can reach them.
#[derive(Debug)]
pub(crate) struct VmMemory {
    // Declared before the memory, and so dropped before it. Other holders of the VM (vCPUs, handles) keep the guest's slots
    // alive in the kernel, which is why dropping this empties the slots first.
    vm: std::sync::Arc<VmFd>,
    memory: GuestMemoryMmap,
}

impl VmMemory {
    /// Gives the guest `memory`, one slot a region.
    ///
    /// # Errors
    /// When the kernel refuses a slot; those before it are taken back.
    pub(crate) fn new(vm: std::sync::Arc<VmFd>, memory: GuestMemoryMmap) -> io::Result<Self> {
        let this = Self { vm, memory };
        for (slot, region) in (0..).zip(this.memory.iter()) {
            let host =
                region.get_host_address(vm_memory::MemoryRegionAddress(0)).map_err(io::Error::other)?;
            this.set_slot(slot, region.start_addr().0, region.len(), host as u64)?;
        }
        Ok(this)
    }

    /// The memory.
    #[must_use]
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn set_slot(
        &self,
        slot: u32,
        guest_phys_addr: u64,
        memory_size: u64,
        userspace_addr: u64,
    ) -> io::Result<()> {
        let region =
            kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr, memory_size, userspace_addr };
        // SAFETY: the range is a mapping owned by `self.memory`, or empty. The mapping stays until `self` is dropped, and
        // `drop` empties the slots before the mapping goes.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }
}

impl Drop for VmMemory {
    fn drop(&mut self) {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            // An empty slot is how KVM deletes one. There is nobody to tell of a failure; the slot is then still backed by
            // address space that nobody maps, and guest accesses fault.
            let _ = self.set_slot(slot, region.start_addr().0, 0, 0);
        }
    }
}

/// The VM's memory slots beyond those of its memory, for parts of devices.
#[derive(Debug)]
pub(crate) struct DeviceSlots {
    vm: Arc<VmFd>,
    numbers: Arc<Mutex<SlotNumbers>>,
}

/// Which slots are free: those that were given back, and those that never were taken.
#[derive(Debug)]
struct SlotNumbers {
    returned: BTreeSet<u32>,
    next: u32,
}

/// A part of a device in a slot.
struct DeviceSlot {
    vm: Arc<VmFd>,
    numbers: Arc<Mutex<SlotNumbers>>,
    region: kvm_userspace_memory_region,
    memory: Option<SlotMemory>,
}

impl DeviceSlots {
    /// Slots after the first `taken` of a VM.
    pub(crate) fn new(vm: Arc<VmFd>, taken: u32) -> Self {
        let numbers = SlotNumbers { returned: BTreeSet::new(), next: taken };
        Self { vm, numbers: Arc::new(Mutex::new(numbers)) }
    }
}

impl SlotNumbers {
    fn take(&mut self, vm: &VmFd) -> io::Result<u32> {
        if let Some(number) = self.returned.pop_first() {
            return Ok(number);
        }
        // KVM says how many there are; 32 is what the oldest kernels have (`Documentation/virt/kvm/api.rst`, section 4.35). It is asked
        // here, since most machines have no device that comes here.
        let end = u32::try_from(vm.check_extension_int(kvm_ioctls::Cap::NrMemslots)).unwrap_or(0).max(32);
        if self.next >= end {
            return Err(io::Error::other("the VM has no memory slot left"));
        }
        self.next += 1;
        Ok(self.next - 1)
    }
}

impl GuestSlots for DeviceSlots {
    fn insert(&self, address: u64, memory: SlotMemory) -> io::Result<Slot> {
        let slot = self.numbers.lock().unwrap_or_else(PoisonError::into_inner).take(&self.vm)?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: if memory.is_writable() { 0 } else { kvm_bindings::KVM_MEM_READONLY },
            guest_phys_addr: address,
            memory_size: memory.bytes(),
            userspace_addr: memory.host_address(),
        };
        // SAFETY: the range is a whole mapping of `memory`, which the returned object keeps until it has emptied the slot.
        let result = unsafe { self.vm.set_user_memory_region(region) };
        if let Err(e) = result {
            self.numbers.lock().unwrap_or_else(PoisonError::into_inner).returned.insert(slot);
            return Err(io::Error::from_raw_os_error(e.errno()));
        }
        let numbers = Arc::clone(&self.numbers);
        Ok(Box::new(DeviceSlot { vm: Arc::clone(&self.vm), numbers, region, memory: Some(memory) }))
    }
}

impl Drop for DeviceSlot {
    fn drop(&mut self) {
        let empty = kvm_userspace_memory_region { memory_size: 0, ..self.region };
        // SAFETY: a slot of no size points nowhere; KVM lets go of what it pointed at before it returns.
        let result = unsafe { self.vm.set_user_memory_region(empty) };
        if result.is_ok() {
            self.numbers.lock().unwrap_or_else(PoisonError::into_inner).returned.insert(self.region.slot);
        } else {
            // The slot still points there: then what is there stays, for as long as the process.
            std::mem::forget(self.memory.take());
        }
    }
}

/// A second mapping of the pages that a vCPU shares with the kernel (`KVM_GET_VCPU_MMAP_SIZE`), for other threads than the vCPU's own: the byte that makes
/// `KVM_RUN` return at once (`kvm_run.immediate_exit`), and the ring of writes that the kernel has collected, which is the same one for all vCPUs of a VM.
#[derive(Debug)]
pub(crate) struct SharedPages {
    pages: NonNull<libc::c_void>,
    page_size: usize,
}

impl SharedPages {
    /// Maps them.
    ///
    /// # Errors
    /// If they cannot be mapped.
    pub(crate) fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        let page_size = rustix::param::page_size();
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let pages = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::PAGES * page_size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if pages == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(pages)
            .map(|pages| Self { pages, page_size })
            .ok_or_else(|| io::Error::other("the vCPU's pages are mapped at 0"))
    }

    /// `struct kvm_run` and, after it, the ring.
    const PAGES: usize = KVM_COALESCED_MMIO_PAGE_OFFSET as usize + 1;

    /// Sets or clears the flag.
    pub(crate) fn set_immediate_exit(&self, exit: bool) {
        let flag = self
            .pages
            .cast::<u8>()
            .as_ptr()
            .wrapping_add(std::mem::offset_of!(kvm_bindings::kvm_run, immediate_exit));
        // SAFETY: the page is mapped while `self` lives, the flag lies in it, and every access of this process to it after
        // the vCPU was made is through this function; the kernel only reads it.
        let flag = unsafe { AtomicU8::from_ptr(flag) };
        flag.store(u8::from(exit), Ordering::SeqCst);
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: `pages` is our own mapping of that length, and nothing refers into it beyond `self`'s life.
        unsafe { libc::munmap(self.pages.as_ptr(), Self::PAGES * self.page_size) };
    }
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for SharedPages {}
// SAFETY: the only access through a shared reference is an atomic store; the ring is read through `CollectedWrites`.
unsafe impl Sync for SharedPages {}

/// The writes to one byte of guest-physical address space, collected by the kernel (`Documentation/virt/kvm/api.rst`, section 4.116).
///
/// kvm-ioctls reads the ring through the descriptor of a vCPU, which belongs to the vCPU's thread here; this is read from all threads, one at a time. A VM has
/// one ring for all that is collected in it, and so one of these.
#[derive(Debug)]
pub(crate) struct CollectedWrites {
    vm: Arc<VmFd>,
    pages: Arc<SharedPages>,
    address: u64,
}

impl CollectedWrites {
    /// Those to the byte at `address`. `pages` are those of any vCPU of `vm`.
    pub(crate) fn new(vm: Arc<VmFd>, pages: Arc<SharedPages>, address: u64) -> Self {
        Self { vm, pages, address }
    }

    fn zone(&self) -> IoEventAddress {
        IoEventAddress::Mmio(self.address)
    }
}

impl WriteRing for CollectedWrites {
    fn start(&mut self) -> io::Result<()> {
        self.vm.register_coalesced_mmio(self.zone(), 1).map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }

    fn stop(&mut self) -> io::Result<()> {
        self.vm.unregister_coalesced_mmio(self.zone(), 1).map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }

    fn next(&mut self) -> Option<u8> {
        type Ring = kvm_coalesced_mmio_ring;
        let page_size = self.pages.page_size;
        let ring = self.pages.pages.as_ptr().wrapping_byte_add(page_size * (SharedPages::PAGES - 1));
        let at = |offset| ring.wrapping_byte_add(offset);
        let room = (page_size - size_of::<Ring>()) / size_of::<kvm_coalesced_mmio>();
        // SAFETY: the ring's page is mapped while `self.pages` lives; of this process only this function touches the field, with `self` borrowed mutably, and
        // the kernel reads it.
        let first = unsafe { AtomicU32::from_ptr(at(std::mem::offset_of!(Ring, first)).cast()) };
        // SAFETY: as above; nobody but the kernel writes it.
        let last = unsafe { AtomicU32::from_ptr(at(std::mem::offset_of!(Ring, last)).cast()) };
        let index = first.load(Ordering::Relaxed);
        // The kernel fills an entry before it moves `last` (`virt/kvm/coalesced_mmio.c`).
        let filled = index != last.load(Ordering::Acquire);
        let index = usize::try_from(index).ok().filter(|&index| filled && index < room)?;
        let entries = at(std::mem::offset_of!(Ring, coalesced_mmio)).cast::<kvm_coalesced_mmio>();
        // SAFETY: the entry lies in the ring's page, which is long enough for `room` of them after the two indices, and the kernel does not touch it before
        // `first` has moved past it. It is plain numbers, for which every value is valid.
        let entry = unsafe { entries.wrapping_add(index).read_volatile() };
        let next = if index + 1 == room { 0 } else { index + 1 };
        first.store(u32::try_from(next).unwrap_or(0), Ordering::Release);
        let [byte, ..] = entry.data;
        Some(byte)
    }
}

/// A descriptor that becomes readable when one of `signals` arrives, for this process. The signals are blocked in the calling thread
/// and in those it starts later.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    let set =
        vmm_sys_util::signal::create_sigset(signals).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
    // SAFETY: `set` is an initialised signal set that outlives the call; there is no old set to write.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    // SAFETY: as above; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets the host back a mapping with transparent huge pages. Only advice: a kernel without them changes nothing.
pub(crate) fn advise_huge_pages(memory: &GuestMemoryMmap) {
    for region in memory.iter() {
        if let (Ok(host), Ok(len)) =
            (region.get_host_address(vm_memory::MemoryRegionAddress(0)), usize::try_from(region.len()))
        {
            // SAFETY: the range is a mapping owned by `memory`; the advice changes no contents.
            unsafe { libc::madvise(host.cast(), len, libc::MADV_HUGEPAGE) };
        }
    }
}

/// Has the host find all pages of `memory` now (`MADV_POPULATE_WRITE`, Linux 5.14).
///
/// # Errors
/// If there are not that many pages, or the kernel is older.
pub(crate) fn populate(memory: &GuestMemoryMmap) -> io::Result<()> {
    for region in memory.iter() {
        let host = region.get_host_address(vm_memory::MemoryRegionAddress(0)).map_err(io::Error::other)?;
        let len = usize::try_from(region.len()).map_err(io::Error::other)?;
        // SAFETY: the range is a mapping owned by `memory`; populating it changes no contents.
        if unsafe { libc::madvise(host.cast(), len, libc::MADV_POPULATE_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes all threads share one heap. The C library's default is a heap a thread, for which each vCPU thread would reserve 64 MiB of
/// address space and touch some of it; vCPU threads allocate next to nothing.
pub(crate) fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a parameter of the allocator, which takes its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Gives back to the host what only the start needed: free heap, and the pages of this program's own code and constants, which are read again from
/// the page cache as they are used. What stays is what a running guest needs, and a host pays for that once a guest.
pub(crate) fn give_back_startup_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: returns free memory; the allocator takes its own lock.
    unsafe {
        libc::malloc_trim(0)
    };

    let page = rustix::param::page_size();
    for (start, end) in read_only_segments() {
        let (start, end) = (start.next_multiple_of(page), end / page * page);
        if start < end {
            // SAFETY: the range is within a segment of this program that is mapped read-only from its file and that nothing has ever written to: the next
            // access reads the same bytes again.
            unsafe {
                libc::madvise(std::ptr::without_provenance_mut(start), end - start, libc::MADV_DONTNEED)
            };
        }
    }
}

/// Where this program's code and constants are in memory: the segments that are loaded without being writable (System V ABI, chapter 5). What the loader
/// relocates, and protects afterwards, is in writable ones.
fn read_only_segments() -> Vec<(usize, usize)> {
    unsafe extern "C" {
        /// The program's first byte in memory, which is that of its first segment; the linker defines it.
        static __executable_start: u8;
    }
    const PT_LOAD: u32 = 1;
    const PF_W: u32 = 2;
    // SAFETY: reads the process's auxiliary vector.
    let auxiliary = |entry| usize::try_from(unsafe { libc::getauxval(entry) }).unwrap_or_default();
    let (table, count, size) =
        (auxiliary(libc::AT_PHDR), auxiliary(libc::AT_PHNUM), auxiliary(libc::AT_PHENT));
    if table == 0 || size != size_of::<libc::Elf64_Phdr>() {
        return Vec::new();
    }
    let table = std::ptr::with_exposed_provenance::<libc::Elf64_Phdr>(table);
    // SAFETY: the kernel says that the program's headers are there, so many of them, and they are never written to.
    let headers = unsafe { std::slice::from_raw_parts(table, count) };
    let loaded = || headers.iter().filter(|header| header.p_type == PT_LOAD);
    let Some(first) = loaded().map(|header| header.p_vaddr).min() else { return Vec::new() };
    let base = (&raw const __executable_start).addr() as u64;
    let at =
        |address: u64| usize::try_from(base.wrapping_add(address.wrapping_sub(first))).unwrap_or_default();
    loaded()
        .filter(|header| header.p_flags & PF_W == 0)
        .map(|header| (at(header.p_vaddr), at(header.p_vaddr.wrapping_add(header.p_memsz))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough to have pages of its own.
    static CONSTANTS: [u64; 4096] = {
        let mut table = [0; 4096];
        let mut n = 0;
        while n < table.len() {
            table[n] = (n * n) as u64;
            n += 1;
        }
        table
    };
    static WRITTEN: Mutex<u64> = Mutex::new(7);

    #[test]
    fn code_and_constants_are_given_back_and_are_there_when_they_are_used() {
        let segments = read_only_segments();
        let given_back = |at: usize| segments.iter().any(|(start, end)| (*start..*end).contains(&at));
        assert!(given_back((&raw const CONSTANTS).addr()));
        assert!(given_back((give_back_startup_memory as fn() as *const ()).addr()));
        assert!(!given_back((&raw const WRITTEN).addr()));
        *WRITTEN.lock().unwrap() = 8;
        give_back_startup_memory();
        assert!(CONSTANTS.iter().enumerate().all(|(n, &square)| square == (n * n) as u64));
        assert_eq!(*WRITTEN.lock().unwrap(), 8);
    }
}
