// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one thing that the compiler cannot check.
#![allow(unsafe_code, reason = "a memory slot is a promise about a mapping")]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

/// Gives a VM its memory, for ever: what is leaked cannot go away under the guest.
pub(crate) fn give(
    vm: &VmFd,
    memory: GuestMemoryMmap,
) -> Result<&'static GuestMemoryMmap, crate::vmm::Error> {
    let memory: &'static GuestMemoryMmap = Box::leak(Box::new(memory));
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.get_host_address(MemoryRegionAddress(0))? as u64,
        };
        // SAFETY: the range is a mapping that is never unmapped, and each has a slot of its own.
        unsafe { vm.set_user_memory_region(region)? };
    }
    Ok(memory)
}
