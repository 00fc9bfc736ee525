// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device on a level-triggered line, which has items for the guest to take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use irq_types::Intid;
use irqfd::{LevelLine, Resample};

use super::Mailbox;

/// Has something to say while the guest has taken fewer items than were posted. The guest takes one at each interrupt.
#[derive(Clone)]
pub struct Device {
    mailbox: Mailbox,
    intid: Intid,
    n: u32,
    posted: Arc<AtomicU64>,
    line: Arc<dyn LevelLine>,
}

impl Device {
    /// The device `n` (0 or 1) on the line of `intid`, and its end of it.
    #[must_use]
    pub fn new(mailbox: &Mailbox, intid: Intid, n: u32, line: Arc<dyn LevelLine>) -> Self {
        Self { mailbox: mailbox.clone(), intid, n, posted: Arc::default(), line }
    }

    /// The line's interrupt.
    #[must_use]
    pub fn intid(&self) -> Intid {
        self.intid
    }

    /// Has `items` more to say. From one thread at a time.
    ///
    /// # Panics
    /// If the line cannot be raised.
    pub fn post(&self, items: u64) {
        self.post_quietly(items);
        self.line.assert().unwrap();
    }

    /// The same without raising the line: for a device whose line is somebody else's to drive.
    pub fn post_quietly(&self, items: u64) {
        let posted = self.posted.fetch_add(items, Ordering::SeqCst) + items;
        self.mailbox.post(self.intid, self.n, posted);
    }

    /// How many items there have been.
    #[must_use]
    pub fn posted(&self) -> u64 {
        self.posted.load(Ordering::SeqCst)
    }

    /// How many of them the guest has taken.
    #[must_use]
    pub fn handled(&self) -> u64 {
        self.mailbox.handled(self.intid, self.n)
    }

    /// Whether there are items left.
    #[must_use]
    pub fn has_items(&self) -> bool {
        self.mailbox.has_items(self.intid, self.n)
    }

    /// What a device does at once when its guest takes an item, and what the guest of a [`Kind::Lowered`](super::Kind::Lowered) line waits for: puts the line where
    /// it belongs. Whether the guest had taken any since `handled`, which is brought up to date.
    ///
    /// # Panics
    /// If the line cannot be driven.
    pub fn follow(&self, handled: &mut u64) -> bool {
        let now = self.handled();
        if now == *handled {
            return false;
        }
        self.line.set_level(self.has_items()).unwrap();
        self.mailbox.set_lowered(self.intid, now);
        *handled = now;
        true
    }
}

impl Resample for Device {
    fn resampled(&self) -> bool {
        self.has_items()
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("intid", &self.intid)
            .field("posted", &self.posted())
            .field("handled", &self.handled())
            .finish_non_exhaustive()
    }
}
