// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Base address registers: how they are defined, sized and read (PCI Express base specification 6.0, section 7.5.1.2.1).

use std::fmt;

use super::header::{BAR_0, BAR_64, BAR_IO, BAR_PREFETCHABLE, ROM_BAR, ROM_ENABLE};
use crate::registers::Registers;
use crate::{BarIndex, ConfigError, Space};

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects, and writes may be merged.
        prefetchable: bool,
    },
    /// Memory anywhere. Takes two registers.
    Memory64 {
        /// Reads have no side effects, and writes may be merged. Behind a bridge, a BAR that is not prefetchable gets an address below 4 GiB all the same.
        prefetchable: bool,
    },
    /// I/O ports.
    Io,
    /// The expansion ROM: memory below 4 GiB with an enable bit of its own.
    Rom,
}

impl BarKind {
    /// Which addresses it decodes.
    #[must_use]
    pub const fn space(self) -> Space {
        match self {
            Self::Io => Space::Io,
            Self::Memory32 { .. } | Self::Memory64 { .. } | Self::Rom => Space::Memory,
        }
    }

    /// The smallest and the largest size, in bytes.
    const fn sizes(self) -> (u64, u64) {
        match self {
            // The four lowest bits say what it is.
            Self::Memory32 { .. } => (16, 1 << 31),
            Self::Memory64 { .. } => (16, 1 << 63),
            // A PCIe function may have no more than 256 bytes of ports.
            Self::Io => (4, 256),
            // Address bits begin at bit 11.
            Self::Rom => (1 << 11, 1 << 24),
        }
    }

    /// The bits of the lower register that are not address.
    const fn flags(self) -> u32 {
        match self {
            Self::Memory32 { prefetchable: false } | Self::Rom => 0,
            Self::Memory32 { prefetchable: true } => BAR_PREFETCHABLE,
            Self::Memory64 { prefetchable: false } => BAR_64,
            Self::Memory64 { prefetchable: true } => BAR_64 | BAR_PREFETCHABLE,
            Self::Io => BAR_IO,
        }
    }
}

impl fmt::Display for BarKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory32 { prefetchable: false } => "32-bit memory",
            Self::Memory32 { prefetchable: true } => "32-bit prefetchable memory",
            Self::Memory64 { prefetchable: false } => "64-bit memory",
            Self::Memory64 { prefetchable: true } => "64-bit prefetchable memory",
            Self::Io => "I/O",
            Self::Rom => "expansion ROM",
        })
    }
}

/// How many registers a type-0 header has for BARs, beside that of the expansion ROM.
const BARS: u8 = 6;

/// One BAR of a function.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bar {
    pub(crate) index: BarIndex,
    pub(crate) kind: BarKind,
    /// Bytes: a power of two.
    pub(crate) size: u64,
    /// Where its (lower) register is.
    register: u16,
}

impl Bar {
    /// Checks a BAR of a function with a type-0 header. Nothing here has one in a type-1 header.
    pub(crate) fn new(index: BarIndex, kind: BarKind, size: u64) -> Result<Self, ConfigError> {
        let (min, max) = kind.sizes();
        if !size.is_power_of_two() || !(min..=max).contains(&size) {
            return Err(ConfigError::BarSize { kind, size, min, max });
        }
        let is_rom = index == BarIndex::ROM;
        let registers = if matches!(kind, BarKind::Memory64 { .. }) { 2 } else { 1 };
        if is_rom != (kind == BarKind::Rom) || !is_rom && index.get() + registers > BARS {
            return Err(ConfigError::BarPlace { bar: index, kind });
        }
        let register = if is_rom { ROM_BAR } else { BAR_0 + 4 * u16::from(index.get()) };
        Ok(Self { index, kind, size, register })
    }

    /// The indices that it takes.
    pub(crate) fn indices(&self) -> std::ops::Range<u8> {
        let upper = u8::from(matches!(self.kind, BarKind::Memory64 { .. }));
        self.index.get()..self.index.get() + 1 + upper
    }

    /// Defines its registers: all address bits from the size on can be written, which is how software finds the size.
    #[allow(clippy::cast_possible_truncation, reason = "the halves of a 64-bit address")]
    pub(crate) fn define(&self, registers: &mut Registers) {
        let mask = !(self.size - 1);
        let enable = if self.kind == BarKind::Rom { ROM_ENABLE } else { 0 };
        let low = mask as u32 | enable;
        registers.define(self.register, &self.kind.flags().to_le_bytes(), &low.to_le_bytes(), &[]);
        if matches!(self.kind, BarKind::Memory64 { .. }) {
            let high = (mask >> 32) as u32;
            registers.define(self.register + 4, &[0; 4], &high.to_le_bytes(), &[]);
        }
    }

    /// The address in it.
    pub(crate) fn address(&self, registers: &Registers) -> u64 {
        let low = u64::from(registers.dword(self.register));
        let high = match self.kind {
            BarKind::Memory64 { .. } => u64::from(registers.dword(self.register + 4)) << 32,
            _ => 0,
        };
        (high | low) & !(self.size - 1)
    }

    /// Whether its own enable bit, if it has one, lets it decode.
    pub(crate) fn is_enabled(&self, registers: &Registers) -> bool {
        self.kind != BarKind::Rom || registers.dword(self.register) & ROM_ENABLE != 0
    }
}
