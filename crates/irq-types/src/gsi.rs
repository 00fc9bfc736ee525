// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use core::fmt;

/// An index into a VM's interrupt routing table.
///
/// The name (global system interrupt) is ACPI's and misleads: a GSI is a *virtual IRQ*, which says which event fires at which
/// input, a line of some controller or a message to some receiver. Being equal to a pin number is a coincidence of default
/// tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gsi(u32);

impl Gsi {
    /// GSI `n`. What a VM accepts is probed by whoever owns its routing table.
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

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GSI {}", self.0)
    }
}

/// An input of one irqchip, counted from zero within that chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin(u32);

impl Pin {
    /// Pin `n`. How many pins a chip has depends on the chip.
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

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pin {}", self.0)
    }
}

/// A pin of a certain irqchip of the VM. arm64 has irqchip 0 only; x86 has two PICs (0, 1) and an IOAPIC (2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IrqchipPin {
    /// Which irqchip of the VM.
    pub irqchip: u32,
    /// Which of its inputs.
    pub pin: Pin,
}

impl fmt::Display for IrqchipPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "irqchip {} {}", self.irqchip, self.pin)
    }
}
