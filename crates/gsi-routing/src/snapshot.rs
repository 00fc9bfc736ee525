// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::Gsi;

use crate::{Entry, Table};

/// The table as it was after some commit. A snapshot never changes; later commits make new ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    generation: u64,
    table: Table,
}

impl Snapshot {
    pub(crate) fn new(generation: u64, table: Table) -> Self {
        Self { generation, table }
    }

    /// How many commits have changed the table up to here; 0 is the table that was taken over.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// All entries in ascending order of GSI.
    pub fn iter(&self) -> std::slice::Iter<'_, Entry> {
        self.table.entries().iter()
    }

    /// The entries of `gsi`.
    #[must_use]
    pub fn of(&self, gsi: Gsi) -> &[Entry] {
        self.table.of(gsi)
    }

    /// What has changed from this table to `newer`.
    #[must_use]
    pub fn diff(&self, newer: &Self) -> Diff {
        let mut diff = Diff::default();
        let (mut old, mut new) = (self.table.entries(), newer.table.entries());
        loop {
            match (old, new) {
                ([a, old_rest @ ..], [b, new_rest @ ..]) if a == b => (old, new) = (old_rest, new_rest),
                ([a, old_rest @ ..], [b, ..]) if a < b => {
                    diff.removed.push(*a);
                    old = old_rest;
                }
                (_, [b, new_rest @ ..]) => {
                    diff.added.push(*b);
                    new = new_rest;
                }
                ([a, old_rest @ ..], []) => {
                    diff.removed.push(*a);
                    old = old_rest;
                }
                ([], []) => return diff,
            }
        }
    }
}

impl<'a> IntoIterator for &'a Snapshot {
    type Item = &'a Entry;
    type IntoIter = std::slice::Iter<'a, Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// What differs between two tables. An entry that was changed is in both lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// Entries of the newer table that the older has not.
    pub added: Vec<Entry>,
    /// Entries of the older table that the newer has not.
    pub removed: Vec<Entry>,
}

impl Diff {
    /// Whether the tables are equal.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use irq_types::{IrqchipPin, Pin};

    use super::*;
    use crate::Target;

    #[test]
    fn a_diff_has_what_only_one_of_the_tables_has() {
        let pin = |irqchip| IrqchipPin { irqchip, pin: Pin::new(0) };
        let entry = |gsi, irqchip| Entry { gsi: Gsi::new(gsi), target: Target::Line(pin(irqchip)) };
        let all = [entry(1, 0), entry(1, 1), entry(2, 0), entry(3, 0)];
        let tables: Vec<Snapshot> = (0..1 << all.len())
            .map(|set| (0..).zip(all).filter(|(n, _)| set >> n & 1 != 0).map(|(_, entry)| entry).collect())
            .map(|entries| Snapshot::new(0, Table::new(entries)))
            .collect();
        let only = |a: &Snapshot, b: &Snapshot| -> Vec<Entry> {
            a.iter().filter(|entry| !b.table().entries().contains(entry)).copied().collect()
        };
        for old in &tables {
            for new in &tables {
                let want = Diff { added: only(new, old), removed: only(old, new) };
                assert_eq!(old.diff(new), want, "{old:?} {new:?}");
            }
        }
    }
}
