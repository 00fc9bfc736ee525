// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use irq_types::Gsi;

use crate::range_set::RangeSet;
use crate::{Error, Usage};

/// Who owns a GSI.
#[derive(Debug, Clone, Copy)]
struct Owner {
    /// Tells this owner from earlier and later ones of the same GSI.
    serial: u64,
    /// Whose promise was spent on it.
    budget: Option<u64>,
    /// Entries spoken for.
    entries: usize,
    /// … and how many at least: one, or those of the default route, which must fit again when the owner goes.
    floor: usize,
}

/// Who has which GSI, and how many table entries that takes. Pure: it knows neither routes nor the kernel.
///
/// A GSI is free, reserved, owned, or withdrawn: given up while its route is still in the table. GSIs below `lines` stand for lines and
/// are never given out but by number.
#[derive(Debug)]
pub(crate) struct Allocator {
    limit: u32,
    lines: Range<u32>,
    free: RangeSet,
    owners: BTreeMap<Gsi, Owner>,
    /// Start to end (exclusive).
    reserved: BTreeMap<u32, u32>,
    withdrawn: BTreeSet<Gsi>,
    /// Withdrawn GSIs that can be allocated by anybody, once their route is gone.
    reclaimable: usize,
    budgets: BTreeMap<u64, usize>,
    promised: usize,
    next_serial: u64,
    /// Entries spoken for by lines without an owner.
    default_entries: usize,
    /// Entries spoken for by owners.
    owned_entries: usize,
}

/// What an allocation came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Allocated {
    /// This GSI, with this serial.
    Gsi(Gsi, u64),
    /// There is one, but its old route has to go first.
    PurgeFirst,
}

impl Allocator {
    /// GSIs `first..limit`, those in `lines` standing for lines that have `default_entries` entries.
    pub(crate) fn new(first: u32, limit: u32, lines: Range<u32>, default_entries: usize) -> Self {
        let start = first.max(lines.end).min(limit);
        Self {
            limit,
            lines,
            free: RangeSet::from_range(start..limit),
            owners: BTreeMap::new(),
            reserved: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            reclaimable: 0,
            budgets: BTreeMap::new(),
            promised: 0,
            next_serial: 0,
            default_entries,
            owned_entries: 0,
        }
    }

    /// Entries spoken for.
    pub(crate) fn entries(&self) -> usize {
        self.default_entries + self.owned_entries
    }

    /// Entries promised to budgets.
    pub(crate) fn promised(&self) -> usize {
        self.promised
    }

    fn room(&self) -> usize {
        (self.limit as usize).saturating_sub(self.entries())
    }

    /// How many more GSIs can be given out beyond those promised.
    fn available(&self) -> usize {
        (self.free.len() + self.reclaimable).min(self.room()).saturating_sub(self.promised)
    }

    fn exhausted(&self, wanted: usize) -> Error {
        Error::Exhausted { wanted, available: self.available(), limit: self.limit, promised: self.promised }
    }

    fn is_reserved(&self, gsi: Gsi) -> bool {
        self.reserved.range(..=gsi.get()).next_back().is_some_and(|(_, &end)| gsi.get() < end)
    }

    fn is_line(&self, gsi: Gsi) -> bool {
        self.lines.contains(&gsi.get())
    }

    fn own(&mut self, gsi: Gsi, budget: Option<u64>, floor: usize, entries: usize) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        let entries = entries.max(floor);
        self.owned_entries += entries;
        self.owners.insert(gsi, Owner { serial, budget, entries, floor });
        serial
    }

    /// The lowest free GSI.
    pub(crate) fn allocate(&mut self) -> Result<Allocated, Error> {
        if self.available() == 0 {
            return Err(self.exhausted(1));
        }
        Ok(self.take_lowest(None))
    }

    /// The lowest free GSI, on the promise made to `budget`.
    pub(crate) fn allocate_promised(&mut self, budget: u64) -> Result<Allocated, Error> {
        match self.budgets.get(&budget) {
            Some(&left) if left > 0 => {}
            _ => return Err(self.exhausted(1)),
        }
        let allocated = self.take_lowest(Some(budget));
        if allocated != Allocated::PurgeFirst {
            self.promised -= 1;
            if let Some(left) = self.budgets.get_mut(&budget) {
                *left -= 1;
            }
        }
        Ok(allocated)
    }

    fn take_lowest(&mut self, budget: Option<u64>) -> Allocated {
        match self.free.first() {
            Some(n) => {
                self.free.remove(n);
                Allocated::Gsi(Gsi::new(n), self.own(Gsi::new(n), budget, 1, 1))
            }
            None => Allocated::PurgeFirst,
        }
    }

    /// A certain GSI, which stands for a line that has `defaults` entries while nobody owns it, and `entries` now.
    pub(crate) fn claim_line(&mut self, gsi: Gsi, defaults: usize, entries: usize) -> Result<u64, Error> {
        if self.owners.contains_key(&gsi) {
            return Err(Error::Taken { gsi });
        }
        let floor = defaults.max(1);
        if self.room() + defaults < self.promised + entries.max(floor) {
            return Err(self.exhausted(1));
        }
        self.default_entries -= defaults;
        self.withdrawn.remove(&gsi);
        Ok(self.own(gsi, None, floor, entries))
    }

    /// A certain GSI that stands for no line and is not reserved.
    pub(crate) fn claim_free(&mut self, gsi: Gsi) -> Result<u64, Error> {
        if self.available() == 0 {
            return Err(self.exhausted(1));
        }
        if !self.free.remove(gsi.get()) {
            return Err(Error::Taken { gsi });
        }
        Ok(self.own(gsi, None, 1, 1))
    }

    /// A GSI of a reserved range.
    pub(crate) fn claim_reserved(&mut self, gsi: Gsi) -> Result<Allocated, Error> {
        if self.owners.contains_key(&gsi) || !self.is_reserved(gsi) {
            return Err(Error::Taken { gsi });
        }
        if self.room() <= self.promised {
            return Err(self.exhausted(1));
        }
        if self.withdrawn.contains(&gsi) {
            return Ok(Allocated::PurgeFirst);
        }
        Ok(Allocated::Gsi(gsi, self.own(gsi, None, 1, 1)))
    }

    /// Takes back a GSI. `defaults` is how many entries it has while nobody owns it; `stale` whether the table says anything else of
    /// it now.
    pub(crate) fn release(&mut self, gsi: Gsi, serial: u64, defaults: usize, stale: bool) {
        if self.serial(gsi) != Some(serial) {
            return;
        }
        let Some(owner) = self.owners.remove(&gsi) else { return };
        self.owned_entries -= owner.entries;
        self.default_entries += defaults;
        if let Some(left) = owner.budget.and_then(|id| self.budgets.get_mut(&id)) {
            *left += 1;
            self.promised += 1;
        }
        if stale {
            self.withdraw(gsi);
        } else {
            self.give_back(gsi);
        }
    }

    fn is_anybodys(&self, gsi: Gsi) -> bool {
        !self.is_line(gsi) && !self.is_reserved(gsi)
    }

    fn withdraw(&mut self, gsi: Gsi) {
        if self.withdrawn.insert(gsi) && self.is_anybodys(gsi) {
            self.reclaimable += 1;
        }
    }

    fn give_back(&mut self, gsi: Gsi) {
        if self.is_anybodys(gsi) {
            self.free.insert(gsi.get());
        }
    }

    /// The default route of a line without an owner is to go.
    pub(crate) fn drop_default(&mut self, gsi: Gsi, defaults: usize) {
        if defaults != 0 && !self.owners.contains_key(&gsi) {
            self.default_entries -= defaults;
            self.withdraw(gsi);
        }
    }

    /// GSIs whose table entries are not what they should be.
    pub(crate) fn withdrawn(&self) -> impl Iterator<Item = Gsi> {
        self.withdrawn.iter().copied()
    }

    /// A commit has taken care of all that were withdrawn.
    pub(crate) fn purged(&mut self) {
        self.reclaimable = 0;
        for gsi in std::mem::take(&mut self.withdrawn) {
            self.give_back(gsi);
        }
    }

    /// The serial of `gsi`'s owner.
    pub(crate) fn serial(&self, gsi: Gsi) -> Option<u64> {
        self.owners.get(&gsi).map(|owner| owner.serial)
    }

    /// How many entries are spoken for if each GSI of `changes` has that many.
    pub(crate) fn entries_with(&self, changes: impl Iterator<Item = (Gsi, usize)>) -> usize {
        changes.fold(self.entries(), |sum, (gsi, entries)| match self.owners.get(&gsi) {
            Some(owner) => sum - owner.entries + entries.max(owner.floor),
            None => sum,
        })
    }

    /// `gsi` has that many entries now.
    pub(crate) fn set_entries(&mut self, gsi: Gsi, entries: usize) {
        if let Some(owner) = self.owners.get_mut(&gsi) {
            let entries = entries.max(owner.floor);
            self.owned_entries = self.owned_entries - owner.entries + entries;
            owner.entries = entries;
        }
    }

    /// Promises `size` GSIs.
    pub(crate) fn promise(&mut self, size: usize) -> Result<u64, Error> {
        let id = self.next_serial;
        self.next_serial += 1;
        self.budgets.insert(id, 0);
        self.promise_more(id, size).inspect_err(|_| {
            self.budgets.remove(&id);
        })?;
        Ok(id)
    }

    /// Promises `more` GSIs to a budget that exists.
    pub(crate) fn promise_more(&mut self, budget: u64, more: usize) -> Result<(), Error> {
        if more > self.available() {
            return Err(self.exhausted(more));
        }
        if let Some(left) = self.budgets.get_mut(&budget) {
            *left += more;
            self.promised += more;
        }
        Ok(())
    }

    /// Takes back up to `less` of a promise. Returns how many that were.
    pub(crate) fn promise_less(&mut self, budget: u64, less: usize) -> usize {
        let Some(left) = self.budgets.get_mut(&budget) else { return 0 };
        let less = less.min(*left);
        *left -= less;
        self.promised -= less;
        less
    }

    /// How much of a promise has not been taken.
    pub(crate) fn left(&self, budget: u64) -> usize {
        self.budgets.get(&budget).copied().unwrap_or(0)
    }

    /// Takes back a promise. What was taken on it stays with its owners.
    pub(crate) fn end_promise(&mut self, budget: u64) {
        self.promised -= self.budgets.remove(&budget).unwrap_or(0);
    }

    /// Sets a range aside.
    pub(crate) fn reserve(&mut self, range: Range<u32>) -> Result<(), Error> {
        let not_free = Error::RangeNotFree { first: range.start, last: range.end.saturating_sub(1) };
        if range.is_empty() || !self.free.contains_all(&range) {
            return Err(not_free);
        }
        // The table entries of the reserved ones are not spoken for, but their numbers are.
        if self.free.len() + self.reclaimable < self.promised + range.len() {
            return Err(self.exhausted(range.len()));
        }
        for n in range.clone() {
            self.free.remove(n);
        }
        self.reserved.insert(range.start, range.end);
        Ok(())
    }

    /// Undoes [`reserve`](Self::reserve). Those that have owners stay with them.
    pub(crate) fn unreserve(&mut self, start: u32) {
        let Some(end) = self.reserved.remove(&start) else { return };
        for gsi in (start..end).map(Gsi::new) {
            if self.withdrawn.contains(&gsi) {
                self.reclaimable += 1;
            } else if !self.owners.contains_key(&gsi) {
                self.free.insert(gsi.get());
            }
        }
    }

    /// What there is.
    pub(crate) fn usage(&self) -> Usage {
        let reserved = self.reserved.iter().flat_map(|(&start, &end)| (start..end).map(Gsi::new));
        Usage {
            limit: self.limit,
            owned: self.owners.len(),
            free: self.free.len(),
            reserved: reserved
                .filter(|gsi| !self.owners.contains_key(gsi) && !self.withdrawn.contains(gsi))
                .count(),
            withdrawn: self.withdrawn.len(),
            promised: self.promised,
            entries: self.entries(),
        }
    }
}
