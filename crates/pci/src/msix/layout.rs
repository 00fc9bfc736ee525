// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a function's MSI-X table and pending bit array are (PCI Express base specification 6.0, sections 7.7.2.2 to 7.7.2.4).

use std::ops::Range;

use super::{CONTROL_ENABLE, CONTROL_FUNCTION_MASK, CONTROL_TABLE_SIZE};
use crate::config::id;
use crate::{BarIndex, Capability, ConfigError};

/// Bytes of one entry of the table.
pub(crate) const ENTRY: u64 = 16;
/// In a register that says where something is: the BAR's number. The rest is the offset.
const BAR_INDICATOR: u32 = 7;

/// How many vectors a function has, and where in its BARs the two structures are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MsixLayout {
    vectors: u16,
    table: (BarIndex, u32),
    pending: (BarIndex, u32),
}

/// What of MSI-X lies at an offset of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MsixRegion {
    /// The table; the offset in it.
    Table(u64),
    /// The pending bit array; the offset in it.
    Pending(u64),
}

impl MsixLayout {
    /// The most vectors that a function can have.
    pub const MAX_VECTORS: u16 = 2048;
    /// How many bytes the capability has.
    pub const CAPABILITY_LENGTH: u16 = 12;

    /// `vectors` of them, 1 to 2048, the table and the pending bit array each at an offset, a multiple of 8, of a BAR.
    ///
    /// # Errors
    /// [`ConfigError::Vectors`], [`ConfigError::MsixOffset`].
    pub fn new(vectors: u16, table: (BarIndex, u64), pending: (BarIndex, u64)) -> Result<Self, ConfigError> {
        if !(1..=Self::MAX_VECTORS).contains(&vectors) {
            return Err(ConfigError::Vectors { capability: "MSI-X", vectors, allowed: "1 to 2048" });
        }
        let place = |(bar, offset): (BarIndex, u64)| {
            let low = u32::try_from(offset).ok().filter(|low| low & BAR_INDICATOR == 0);
            match low {
                Some(low) if bar != BarIndex::ROM => Ok((bar, low)),
                _ => Err(ConfigError::MsixOffset { bar, offset }),
            }
        };
        Ok(Self { vectors, table: place(table)?, pending: place(pending)? })
    }

    /// From the 12 bytes of a device's own capability.
    ///
    /// # Errors
    /// [`ConfigError::NotACapability`] if they are not one; [`ConfigError::OutOfRange`] if they name a BAR that no function has.
    pub fn parse(capability: &[u8]) -> Result<Self, ConfigError> {
        let [id::MSIX, _, c0, c1, t0, t1, t2, t3, p0, p1, p2, p3, ..] = *capability else {
            return Err(ConfigError::NotACapability { capability: "MSI-X", length: capability.len() });
        };
        let vectors = (u16::from_le_bytes([c0, c1]) & CONTROL_TABLE_SIZE) + 1;
        let place = |register: [u8; 4]| {
            let register = u32::from_le_bytes(register);
            let bar = u64::from(register & BAR_INDICATOR);
            match BarIndex::new((register & BAR_INDICATOR) as u8) {
                Ok(index) if index != BarIndex::ROM => Ok((index, register & !BAR_INDICATOR)),
                _ => Err(irq_types::OutOfRange { what: "BAR of MSI-X", value: bar, min: 0, max: 5 }),
            }
        };
        Ok(Self { vectors, table: place([t0, t1, t2, t3])?, pending: place([p0, p1, p2, p3])? })
    }

    /// How many vectors there are.
    #[must_use]
    pub const fn vectors(&self) -> u16 {
        self.vectors
    }

    /// The BAR that the table is in, and which of its bytes it takes.
    #[must_use]
    pub fn table(&self) -> (BarIndex, Range<u64>) {
        let (bar, offset) = self.table;
        (bar, u64::from(offset)..u64::from(offset) + ENTRY * u64::from(self.vectors))
    }

    /// The BAR that the pending bit array is in, and which of its bytes it takes.
    #[must_use]
    pub fn pending(&self) -> (BarIndex, Range<u64>) {
        let (bar, offset) = self.pending;
        (bar, u64::from(offset)..u64::from(offset) + u64::from(self.vectors).div_ceil(64) * 8)
    }

    /// What an access to a BAR that begins at `offset` reaches. One that begins before a structure and ends in it reaches none.
    #[must_use]
    pub fn locate(&self, bar: BarIndex, offset: u64) -> Option<MsixRegion> {
        let within = |(place, range): (BarIndex, Range<u64>)| {
            (place == bar && range.contains(&offset)).then(|| offset - range.start)
        };
        within(self.table())
            .map(MsixRegion::Table)
            .or_else(|| within(self.pending()).map(MsixRegion::Pending))
    }

    /// The capability, disabled.
    #[must_use]
    pub fn capability(&self) -> Capability {
        let place = |(bar, offset): (BarIndex, u32)| (offset | u32::from(bar.get())).to_le_bytes();
        let mut body = (self.vectors - 1).to_le_bytes().to_vec();
        body.extend(place(self.table));
        body.extend(place(self.pending));
        let [_, writable] = (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes();
        Capability::new(id::MSIX, &body).writable(3..4, writable)
    }
}
