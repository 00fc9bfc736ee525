// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who answers at an address: what each access looks up.

use std::collections::BTreeMap;
use std::sync::Arc;

use irq_types::Bdf;

use crate::{BarIndex, PciFunction, Space};

/// A BAR where it is.
#[derive(Clone)]
pub(crate) struct Placed {
    /// How many addresses it takes.
    pub(crate) size: u64,
    pub(crate) bar: BarIndex,
    pub(crate) function: Arc<dyn PciFunction>,
}

/// Disjoint ranges of one space, by where they begin.
#[derive(Clone, Default)]
pub(crate) struct Ranges(BTreeMap<u64, Placed>);

impl Ranges {
    /// The BAR that has all of `length` addresses from `address` on, and the offset in it.
    pub(crate) fn find(&self, address: u64, length: usize) -> Option<(&Placed, u64)> {
        let (base, placed) = self.0.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(length as u64)?;
        (end <= placed.size).then_some((placed, offset))
    }

    pub(crate) fn insert(&mut self, base: u64, placed: Placed) {
        self.0.insert(base, placed);
    }
}

/// A function that configuration requests reach.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) function: Arc<dyn PciFunction>,
    /// The header type says that there are more functions in the device.
    pub(crate) multifunction: bool,
}

/// All that accesses look up. Rebuilt as a whole when something moves, which is rare.
#[derive(Default)]
pub(crate) struct Map {
    pub(crate) functions: BTreeMap<Bdf, Target>,
    pub(crate) memory: Ranges,
    pub(crate) io: Ranges,
}

impl Map {
    pub(crate) fn ranges(&self, space: Space) -> &Ranges {
        match space {
            Space::Memory => &self.memory,
            Space::Io => &self.io,
        }
    }

    pub(crate) fn ranges_mut(&mut self, space: Space) -> &mut Ranges {
        match space {
            Space::Memory => &mut self.memory,
            Space::Io => &mut self.io,
        }
    }
}
