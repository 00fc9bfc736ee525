// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory slots for the registers of devices that are passed through.
#![allow(unsafe_code, reason = "KVM is told of memory by address")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_irqchip::KvmVm;
use vfio_passthrough::{GuestSlots, Slot, SlotMemory};

/// The slots of a VM beside that of its memory.
#[derive(Debug)]
pub struct Slots {
    vm: Arc<KvmVm>,
    next: AtomicU32,
}

/// One of them, filled.
struct Filled {
    vm: Arc<KvmVm>,
    region: kvm_userspace_memory_region,
    _memory: SlotMemory,
}

impl Slots {
    pub(super) fn new(vm: &Arc<KvmVm>) -> Self {
        Self { vm: Arc::clone(vm), next: AtomicU32::new(1) }
    }
}

impl GuestSlots for Slots {
    fn insert(&self, address: u64, memory: SlotMemory) -> io::Result<Slot> {
        let region = kvm_userspace_memory_region {
            slot: self.next.fetch_add(1, Ordering::Relaxed),
            guest_phys_addr: address,
            memory_size: memory.bytes(),
            userspace_addr: memory.host_address(),
            flags: 0,
        };
        // SAFETY: the range is a mapping of exactly this size, of registers, to which nobody has references. `Filled` holds it, and empties the
        // slot before it lets go.
        unsafe { self.vm.fd().set_user_memory_region(region) }?;
        Ok(Box::new(Filled { vm: Arc::clone(&self.vm), region, _memory: memory }))
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let empty = kvm_userspace_memory_region { memory_size: 0, ..self.region };
        // SAFETY: an empty slot gives the guest nothing.
        unsafe { self.vm.fd().set_user_memory_region(empty) }.unwrap();
    }
}
