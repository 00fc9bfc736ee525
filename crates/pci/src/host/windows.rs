// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parts of the guest's address space that belong to a host bridge.

use std::fmt;
use std::ops::Range;

use thiserror::Error;

use crate::{DecodedBar, Space};

/// The window of guest-physical memory through which I/O ports are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IoWindow {
    /// The guest-physical address of port 0.
    pub base: u64,
    /// How many ports: 65536 as a rule.
    pub size: u64,
}

/// Where a host bridge is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// The segment (also called domain): one for each host bridge.
    pub segment: u16,
    /// The guest-physical address of configuration space (ECAM), of which each bus takes 1 MiB. A multiple of 1 MiB.
    pub ecam: u64,
    /// How many buses there are, from bus 0 on: 1 to 256.
    pub buses: u16,
    /// Memory below 4 GiB, for BARs that can be nowhere else, and for all others too.
    pub memory32: Range<u64>,
    /// Memory above 4 GiB, if there is any for BARs.
    pub memory64: Option<Range<u64>>,
    /// I/O ports, if there are any.
    pub io: Option<IoWindow>,
}

/// What a part of the address space is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Region {
    /// Configuration space.
    Ecam,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory above 4 GiB.
    Memory64,
    /// I/O ports.
    Io,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ecam => "configuration space",
            Self::Memory32 => "the 32-bit memory window",
            Self::Memory64 => "the 64-bit memory window",
            Self::Io => "the I/O window",
        })
    }
}

/// Why a host bridge cannot be where it was put.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WindowError {
    /// A number of buses that does not exist.
    #[error("{0} buses: a host bridge has 1 to 256")]
    Buses(u16),
    /// Configuration space at an odd place.
    #[error("configuration space at {0:#x}: it begins at a multiple of 1 MiB")]
    EcamBase(u64),
    /// A window that is empty, or not where its kind must be.
    #[error("{region} at {start:#x}..{end:#x}: {rule}")]
    Place {
        /// Which.
        region: Region,
        /// Where it begins.
        start: u64,
        /// Where it ends.
        end: u64,
        /// What it would have to be.
        rule: &'static str,
    },
    /// Two of them share addresses.
    #[error("{first} and {second} overlap")]
    Overlap {
        /// One.
        first: Region,
        /// The other.
        second: Region,
    },
}

const BUS: u64 = 1 << 20;
const FOUR_GIB: u64 = 1 << 32;

impl HostConfig {
    /// What each part of the address space is for.
    #[must_use]
    pub fn regions(&self) -> Vec<(Region, Range<u64>)> {
        let ecam = self.ecam..self.ecam.saturating_add(u64::from(self.buses) * BUS);
        let io = self.io.map(|io| (Region::Io, io.base..io.base.saturating_add(io.size)));
        [(Region::Ecam, ecam), (Region::Memory32, self.memory32.clone())]
            .into_iter()
            .chain(self.memory64.clone().map(|range| (Region::Memory64, range)))
            .chain(io)
            .collect()
    }

    pub(crate) fn check(&self) -> Result<(), WindowError> {
        if !(1..=256).contains(&self.buses) {
            return Err(WindowError::Buses(self.buses));
        }
        if !self.ecam.is_multiple_of(BUS) {
            return Err(WindowError::EcamBase(self.ecam));
        }
        let regions = self.regions();
        for (region, range) in &regions {
            let rule = match region {
                _ if range.start >= range.end || range.end == u64::MAX => Some("it is empty or has no end"),
                Region::Memory32 if range.start == 0 || range.end > FOUR_GIB => {
                    Some("it lies below 4 GiB, and not at address 0")
                }
                Region::Memory64 if range.start < FOUR_GIB => Some("it lies above 4 GiB"),
                Region::Io if range.end - range.start > FOUR_GIB => Some("there are 4 GiB of ports at most"),
                _ => None,
            };
            if let Some(rule) = rule {
                let Range { start, end } = *range;
                return Err(WindowError::Place { region: *region, start, end, rule });
            }
        }
        for (i, (first, a)) in regions.iter().enumerate() {
            for (second, b) in &regions[i + 1..] {
                if a.start < b.end && b.start < a.end {
                    return Err(WindowError::Overlap { first: *first, second: *second });
                }
            }
        }
        Ok(())
    }

    /// Whether all addresses of a BAR are in a window for its space.
    pub(crate) fn contains(&self, bar: &DecodedBar) -> bool {
        let Some(end) = bar.base.checked_add(bar.size) else { return false };
        let inside = |range: &Range<u64>| range.start <= bar.base && end <= range.end;
        match bar.space {
            Space::Memory => inside(&self.memory32) || self.memory64.as_ref().is_some_and(inside),
            Space::Io => self.io.is_some_and(|io| inside(&(0..io.size))),
        }
    }
}
