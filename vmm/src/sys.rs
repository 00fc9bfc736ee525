// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one file of this crate with `unsafe` in it: system calls that no safe wrapper of ours has.
#![allow(unsafe_code, reason = "system calls; each block has its argument")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

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

/// The byte of a vCPU's shared page that makes `KVM_RUN` return at once (`kvm_run.immediate_exit`), writable from other
/// threads than the vCPU's own.
#[derive(Debug)]
pub(crate) struct ImmediateExit {
    page: NonNull<libc::c_void>,
}

/// The part of `struct kvm_run` that is mapped: its first page holds the flag.
const PAGE: usize = 4096;

impl ImmediateExit {
    /// Maps the vCPU's shared page a second time.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub(crate) fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page)
            .map(|page| Self { page })
            .ok_or_else(|| io::Error::other("the vCPU's page is mapped at 0"))
    }

    /// Sets or clears the flag.
    pub(crate) fn set(&self, exit: bool) {
        let flag = self
            .page
            .cast::<u8>()
            .as_ptr()
            .wrapping_add(std::mem::offset_of!(kvm_bindings::kvm_run, immediate_exit));
        // SAFETY: the page is mapped while `self` lives, the flag lies in it, and every access of this process to it after
        // the vCPU was made is through this function; the kernel only reads it.
        let flag = unsafe { AtomicU8::from_ptr(flag) };
        flag.store(u8::from(exit), Ordering::SeqCst);
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: `page` is our own mapping of that length, and nothing refers into it beyond `self`'s life.
        unsafe { libc::munmap(self.page.as_ptr(), PAGE) };
    }
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for ImmediateExit {}
// SAFETY: the only access through a shared reference is an atomic store.
unsafe impl Sync for ImmediateExit {}

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

/// Gives back to the host what only the start needed: free heap, and the pages of this program's own code, which are read again from
/// the page cache as they are used. What stays is what a running guest needs, and a host pays for that once a guest.
pub(crate) fn give_back_startup_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: returns free memory; the allocator takes its own lock.
    unsafe {
        libc::malloc_trim(0)
    };

    unsafe extern "C" {
        /// The program's first byte in memory; the linker defines it.
        static __executable_start: u8;
        /// The end of its code; the linker defines it.
        static etext: u8;
    }
    const GRANULE: usize = 64 << 10;
    // Whole pages of any size the host may have.
    let start = (&raw const __executable_start).addr().next_multiple_of(GRANULE);
    let end = (&raw const etext).addr() & !(GRANULE - 1);
    if start < end {
        // SAFETY: the range is within this program's code, a private read-only mapping of its file that nothing has written to: the
        // next access reads the same bytes again.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(start), end - start, libc::MADV_DONTNEED) };
    }
}
