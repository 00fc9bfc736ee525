// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a hypervisor must do for a device whose registers a guest is to reach without an exit.

use std::any::Any;
use std::io;
use std::sync::Arc;

use crate::sys::Mapping;

/// Makes parts of devices memory of the guest.
pub trait GuestSlots: Send + Sync {
    /// Puts `memory` at guest-physical address `address`. Dropping what is returned takes it away again, before `memory` is let go.
    ///
    /// # Errors
    /// If something else is there, or there are no more slots.
    fn insert(&self, address: u64, memory: SlotMemory) -> io::Result<Slot>;
}

/// A part of a device in the guest's address space, until dropped.
pub type Slot = Box<dyn Any + Send + Sync>;

/// A mapped part of a device, whole pages. Whoever points a slot at it keeps it for as long.
#[derive(Debug, Clone)]
pub struct SlotMemory {
    mapping: Arc<Mapping>,
}

impl SlotMemory {
    /// All of a mapping.
    #[must_use]
    pub fn new(mapping: Arc<Mapping>) -> Self {
        Self { mapping }
    }

    /// Where it is in this process.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.mapping.address().as_ptr() as u64
    }

    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Whether the guest may write to it.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.mapping.is_writable()
    }
}
