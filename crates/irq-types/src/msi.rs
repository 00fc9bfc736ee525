// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use core::fmt;

/// What a device writes, and where, to raise a message-signalled interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MsiMessage {
    /// Guest-physical address of the write: an ITS's `GITS_TRANSLATER`, a v2m frame's `SETSPI`, a local APIC.
    pub address: u64,
    /// The 32 bits written.
    pub data: u32,
}

impl MsiMessage {
    /// The low half of the address, as the capability and the kernel's structures split it.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
    pub const fn address_lo(self) -> u32 {
        self.address as u32
    }

    /// The high half of the address.
    #[must_use]
    pub const fn address_hi(self) -> u32 {
        (self.address >> 32) as u32
    }
}

impl fmt::Display for MsiMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} <- {:#x}", self.address, self.data)
    }
}

/// Who wrote the message: the number an ITS looks up in its device table (IHI 0069H, section 5.2).
///
/// For a PCI device it is the requester ID, which `msi-map` may translate; see [`Bdf::requester_id`](crate::Bdf::requester_id).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(u32);

impl DeviceId {
    /// Device ID `n`. How many bits an ITS has is its `GITS_TYPER.Devbits`; KVM's has 16.
    #[must_use]
    pub const fn new(n: u32) -> Self {
        Self(n)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device ID {:#x}", self.0)
    }
}

/// Which of a device's interrupts: the data of a message that goes to an ITS (IHI 0069H, section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(u32);

impl EventId {
    /// Event ID `n`. KVM's ITS has 16 bits of them.
    #[must_use]
    pub const fn new(n: u32) -> Self {
        Self(n)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event ID {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_splits_where_the_capability_splits_it() {
        let msi = MsiMessage { address: 0x1_2345_6789_abcd, data: 7 };
        assert_eq!((msi.address_hi(), msi.address_lo()), (0x1_2345, 0x6789_abcd));
    }
}
