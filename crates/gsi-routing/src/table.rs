// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::BTreeMap;
use std::fmt;

use irq_types::{DeviceId, Gsi, IrqchipPin, MsiMessage};

/// What a GSI fires, as the table keeps it: unlike the kernel's entry, an MSI always has its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// An input of an irqchip.
    Line(IrqchipPin),
    /// A message.
    Msi {
        /// Where to and what.
        message: MsiMessage,
        /// Who sends it.
        device_id: DeviceId,
    },
}

/// One entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// Which GSI.
    pub gsi: Gsi,
    /// What it fires.
    pub target: Target,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(pin) => pin.fmt(f),
            Self::Msi { message, device_id } => write!(f, "MSI {message} from {device_id}"),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.gsi, self.target)
    }
}

/// A routing table: entries in ascending order of GSI, then of target.
///
/// A value: changing a table makes a new one, so that a commit that fails has nothing to undo.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    entries: Vec<Entry>,
}

/// What one GSI is to fire. By its shape it never mixes an MSI with lines and never has two MSIs; that the pins are on different
/// irqchips is for who makes it to see to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Nothing: the GSI has no route.
    Nothing,
    /// These inputs.
    Lines(Vec<IrqchipPin>),
    /// This message.
    Msi {
        /// Where to and what.
        message: MsiMessage,
        /// Who sends it.
        device_id: DeviceId,
    },
}

impl Targets {
    /// How many entries that makes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Lines(pins) => pins.len(),
            Self::Msi { .. } => 1,
        }
    }

    /// Whether the GSI has no route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn append_to(&self, gsi: Gsi, entries: &mut Vec<Entry>) {
        match self {
            Self::Nothing => {}
            Self::Lines(pins) => {
                let start = entries.len();
                entries.extend(pins.iter().map(|&pin| Entry { gsi, target: Target::Line(pin) }));
                entries[start..].sort_unstable();
            }
            &Self::Msi { message, device_id } => {
                entries.push(Entry { gsi, target: Target::Msi { message, device_id } });
            }
        }
    }
}

impl Table {
    /// The table with these entries, in any order.
    #[must_use]
    pub fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_unstable();
        Self { entries }
    }

    /// All entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entries of `gsi`.
    #[must_use]
    pub fn of(&self, gsi: Gsi) -> &[Entry] {
        let start = self.entries.partition_point(|entry| entry.gsi < gsi);
        let len = self.entries[start..].partition_point(|entry| entry.gsi == gsi);
        &self.entries[start..start + len]
    }

    /// What `gsi` fires.
    #[must_use]
    pub fn targets(&self, gsi: Gsi) -> Targets {
        let mut pins = Vec::new();
        for entry in self.of(gsi) {
            match entry.target {
                Target::Line(pin) => pins.push(pin),
                Target::Msi { message, device_id } => return Targets::Msi { message, device_id },
            }
        }
        if pins.is_empty() { Targets::Nothing } else { Targets::Lines(pins) }
    }

    /// This table with the GSIs in `changes` firing what is said there, in one pass.
    #[must_use]
    pub fn with(&self, changes: &BTreeMap<Gsi, Targets>) -> Self {
        let added: usize = changes.values().map(Targets::len).sum();
        let mut entries = Vec::with_capacity(self.entries.len() + added);
        let mut old = self.entries.as_slice();
        for (&gsi, targets) in changes {
            let below = old.partition_point(|entry| entry.gsi < gsi);
            entries.extend_from_slice(&old[..below]);
            old = &old[below..];
            old = &old[old.partition_point(|entry| entry.gsi == gsi)..];
            targets.append_to(gsi, &mut entries);
        }
        entries.extend_from_slice(old);
        Self { entries }
    }
}
