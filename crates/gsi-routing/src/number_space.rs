// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::BTreeMap;

use irq_types::Gsi;
use thiserror::Error;

/// A guest's own way of numbering interrupts, where that is not the GSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NumberSpace {
    /// What a number is called in messages.
    pub name: &'static str,
    /// The smallest number.
    pub first: u32,
    /// The largest number.
    pub last: u32,
}

impl NumberSpace {
    /// POWER's interrupt source numbers, 24 bits flat: some high ones name the source controller (BUID), the rest the source within it, and
    /// nobody but the firmware cares where the border is (PAPR, XISR). 0 means "none" and 2 an IPI; KVM's XICS starts at 16.
    pub const POWER: Self = Self { name: "interrupt source number", first: 16, last: 0xff_ffff };
}

/// Why a number could not be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ForeignError {
    /// Not a number of the space.
    #[error("{number:#x} is no {name}: the range is {first:#x} to {last:#x}", name = space.name, first = space.first, last = space.last)]
    OutOfSpace {
        /// The number.
        number: u64,
        /// The space it should be from.
        space: NumberSpace,
    },
    /// The number stands for another GSI already.
    #[error("number {number:#x} stands for {gsi} already")]
    NumberBound {
        /// The number.
        number: u32,
        /// What it stands for.
        gsi: Gsi,
    },
    /// The GSI has another number already.
    #[error("{gsi} has the number {number:#x} already")]
    GsiBound {
        /// The GSI.
        gsi: Gsi,
        /// Its number.
        number: u32,
    },
}

/// Which number of a foreign space stands for which GSI: one to one, and only where somebody said so.
///
/// A sparse space of 24 bits does not fit a table of 4096 by arithmetic. It fits by a map: the guest's number is looked up, the GSI is the
/// lowest free one. How numbers
/// look that are no GSIs, and why they fit the same table: Benjamin Herrenschmidt and Jan Kiszka on the kvm mailing list, 26 October
/// 2012.
#[derive(Debug, Clone)]
pub struct ForeignMap {
    space: NumberSpace,
    gsis: BTreeMap<u32, Gsi>,
    numbers: BTreeMap<Gsi, u32>,
}

impl ForeignMap {
    /// A map where no number stands for anything.
    #[must_use]
    pub const fn new(space: NumberSpace) -> Self {
        Self { space, gsis: BTreeMap::new(), numbers: BTreeMap::new() }
    }

    /// Which numbers there are.
    #[must_use]
    pub const fn space(&self) -> NumberSpace {
        self.space
    }

    /// From now on `number` stands for `gsi`. Saying it again is no error.
    ///
    /// # Errors
    /// If the number is not of this space, or either has another partner.
    pub fn bind(&mut self, number: u32, gsi: Gsi) -> Result<(), ForeignError> {
        if !(self.space.first..=self.space.last).contains(&number) {
            return Err(ForeignError::OutOfSpace { number: number.into(), space: self.space });
        }
        match (self.gsis.get(&number), self.numbers.get(&gsi)) {
            (Some(&bound), _) if bound != gsi => Err(ForeignError::NumberBound { number, gsi: bound }),
            (_, Some(&bound)) if bound != number => Err(ForeignError::GsiBound { gsi, number: bound }),
            _ => {
                self.gsis.insert(number, gsi);
                self.numbers.insert(gsi, number);
                Ok(())
            }
        }
    }

    /// Binds the numbers from `first` on, as an MSI port of a bridge has them, to `gsis` in turn: all, or none.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), for the first number that cannot be bound.
    pub fn bind_run(&mut self, first: u32, gsis: &[Gsi]) -> Result<(), ForeignError> {
        let mut changed = self.clone();
        for (number, &gsi) in (u64::from(first)..).zip(gsis) {
            let number =
                u32::try_from(number).map_err(|_| ForeignError::OutOfSpace { number, space: self.space })?;
            changed.bind(number, gsi)?;
        }
        *self = changed;
        Ok(())
    }

    /// `number` no longer stands for anything. Returns what it stood for.
    pub fn unbind(&mut self, number: u32) -> Option<Gsi> {
        let gsi = self.gsis.remove(&number)?;
        self.numbers.remove(&gsi);
        Some(gsi)
    }

    /// What `number` stands for.
    #[must_use]
    pub fn gsi(&self, number: u32) -> Option<Gsi> {
        self.gsis.get(&number).copied()
    }

    /// The number of `gsi`.
    #[must_use]
    pub fn number(&self, gsi: Gsi) -> Option<u32> {
        self.numbers.get(&gsi).copied()
    }

    /// All pairs, in ascending order of number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Gsi)> {
        self.gsis.iter().map(|(&number, &gsi)| (number, gsi))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_bridges_of_thousands_of_sources_fit_a_table_of_4096() {
        let mut map = ForeignMap::new(NumberSpace::POWER);
        let gsis: Vec<Gsi> = (0..4000).map(Gsi::new).collect();
        map.bind_run(0x00_1000, &gsis[..2000]).unwrap();
        map.bind_run(0xab_f000, &gsis[2000..]).unwrap();
        assert_eq!(map.gsi(0x00_1000 + 1999), Some(Gsi::new(1999)));
        assert_eq!(map.gsi(0xab_f000), Some(Gsi::new(2000)));
        assert_eq!(map.number(Gsi::new(3999)), Some(0xab_f000 + 1999));
        assert_eq!(map.gsi(0x00_1000 + 2000), None);
        assert_eq!(map.iter().count(), 4000);
    }

    #[test]
    fn a_number_stands_for_one_gsi_and_a_gsi_has_one_number() {
        let mut map = ForeignMap::new(NumberSpace::POWER);
        let (a, b) = (Gsi::new(1), Gsi::new(2));
        map.bind(0x100, a).unwrap();
        map.bind(0x100, a).unwrap();
        assert_eq!(map.bind(0x100, b), Err(ForeignError::NumberBound { number: 0x100, gsi: a }));
        assert_eq!(map.bind(0x101, a), Err(ForeignError::GsiBound { gsi: a, number: 0x100 }));
        assert_eq!((map.gsi(0x101), map.number(b)), (None, None));
        assert_eq!(map.unbind(0x100), Some(a));
        map.bind(0x101, a).unwrap();
    }

    #[test]
    fn a_run_that_leaves_the_space_binds_nothing() {
        let mut map = ForeignMap::new(NumberSpace::POWER);
        let error = map.bind_run(0xff_ffff, &[Gsi::new(0), Gsi::new(1)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "0x1000000 is no interrupt source number: the range is 0x10 to 0xffffff"
        );
        assert_eq!(map.iter().count(), 0);
        assert!(map.bind(15, Gsi::new(0)).is_err());
        assert!(map.bind_run(u32::MAX, &[Gsi::new(0), Gsi::new(1)]).is_err());
    }
}
