// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use core::fmt;

/// A number that does not lie in the space it was meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OutOfRange {
    /// What the number was meant to be, e.g. "SPI".
    pub what: &'static str,
    /// The number given.
    pub value: u64,
    /// The smallest allowed number.
    pub min: u64,
    /// The largest allowed number.
    pub max: u64,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, value, min, max } = self;
        write!(f, "{value} is no {what}: the range is {min} to {max}")
    }
}

impl core::error::Error for OutOfRange {}

/// `value`, if it lies in `min..=max`.
pub(crate) const fn check(what: &'static str, value: u32, min: u32, max: u32) -> Result<u32, OutOfRange> {
    if value < min || value > max {
        return Err(OutOfRange { what, value: value as u64, min: min as u64, max: max as u64 });
    }
    Ok(value)
}
