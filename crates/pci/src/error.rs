// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::OutOfRange;
use thiserror::Error;

use crate::{BarIndex, BarKind};

/// Why a function cannot be put together as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A size that no BAR has.
    #[error("no {kind} BAR has {size:#x} bytes: it takes a power of two from {min:#x} to {max:#x}")]
    BarSize {
        /// The kind of BAR.
        kind: BarKind,
        /// The size asked for.
        size: u64,
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A kind of BAR that cannot be at this index.
    #[error("BAR {} is not for {kind}", bar.get())]
    BarPlace {
        /// Which.
        bar: BarIndex,
        /// The kind.
        kind: BarKind,
    },
    /// There is one already, or it is the upper half of one.
    #[error("BAR {} is taken", .0.get())]
    BarTaken(BarIndex),
    /// No room for another capability.
    #[error("no room for capability {id:#x} of {length} bytes: {left} bytes are left")]
    NoRoom {
        /// The capability's ID.
        id: u16,
        /// How many bytes it has.
        length: usize,
        /// How many are left.
        left: usize,
    },
    /// A number of vectors that the capability cannot have.
    #[error("{vectors} are no vectors of {capability}: it has {allowed}")]
    Vectors {
        /// "MSI" or "MSI-X".
        capability: &'static str,
        /// How many were asked for.
        vectors: u16,
        /// What it may have.
        allowed: &'static str,
    },
    /// A table or pending bit array at an offset that the capability cannot say.
    #[error("an MSI-X structure at {offset:#x} of BAR {}: the offset must be a multiple of 8 below 4 GiB", bar.get())]
    MsixOffset {
        /// In which BAR.
        bar: BarIndex,
        /// Where.
        offset: u64,
    },
    /// The bytes are not those of the capability that they were taken for.
    #[error("these {length} bytes are no {capability} capability")]
    NotACapability {
        /// What it should be.
        capability: &'static str,
        /// How many bytes there were.
        length: usize,
    },
    /// A number that does not exist.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
}
