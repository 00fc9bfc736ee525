// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A little guest memory for real VMs.
#![allow(unsafe_code, reason = "KVM is told of memory by address")]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// One block of guest memory. Must outlive the VM's last run; whoever owns both declares the VM first.
#[derive(Debug)]
pub(crate) struct Memory {
    map: GuestMemoryMmap,
}

impl Memory {
    /// Gives `vm` its only memory slot.
    pub(crate) fn attach(vm: &VmFd, base: u64, size: usize) -> Self {
        let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(base), size)]).unwrap();
        let host = map.get_host_address(GuestAddress(base)).unwrap();
        let region = kvm_userspace_memory_region {
            slot: 0,
            guest_phys_addr: base,
            memory_size: size as u64,
            userspace_addr: host as u64,
            flags: 0,
        };
        // SAFETY: the range is a mapping of exactly this size, which `map` owns. The guest may write all of it: nothing in this
        // process keeps references into it. It is unmapped when the VM, which declares its fields in that order, is closed.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        Self { map }
    }

    /// Copies bytes into the guest.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.map.write_slice(bytes, GuestAddress(address)).unwrap();
    }
    /// All of it, for those who read it too. As long as that is held, it stays mapped.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }
}
