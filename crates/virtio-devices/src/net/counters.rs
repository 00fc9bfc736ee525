// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What has passed through a network device.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread raises and others look at.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Those of one queue pair.
#[derive(Debug, Default)]
pub(crate) struct PairCounters {
    received_frames: Counter,
    received_bytes: Counter,
    pub(crate) received_dropped: Counter,
    pub(crate) received_waited: Counter,
    sent_frames: Counter,
    sent_bytes: Counter,
    pub(crate) sent_dropped: Counter,
}

impl PairCounters {
    pub(crate) fn received(&self, bytes: usize) {
        self.received_frames.add(1);
        self.received_bytes.add(bytes);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.sent_frames.add(1);
        self.sent_bytes.add(bytes);
    }
}

/// What has passed through a network device since it was made. What vhost carries passes by in the kernel, and is counted by the tap alone
/// (`ip -s link`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetCounters {
    /// Frames from the tap to the guest. A packet that the host leaves to the guest to segment counts as one.
    pub received_frames: u64,
    /// Their bytes, from the Ethernet header on.
    pub received_bytes: u64,
    /// Frames that the guest had no buffer for that was long enough, or that came while the link was down.
    pub received_dropped: u64,
    /// How often a frame had to wait half-way for more buffers.
    pub received_waited: u64,
    /// Frames from the guest to the tap.
    pub sent_frames: u64,
    /// Their bytes, from the Ethernet header on.
    pub sent_bytes: u64,
    /// Frames that the tap has refused, or that were sent while the link was down.
    pub sent_dropped: u64,
}

impl NetCounters {
    /// The sum over queue pairs.
    pub(crate) fn sum<'p>(pairs: impl IntoIterator<Item = &'p PairCounters>) -> Self {
        pairs.into_iter().fold(Self::default(), |sum, pair| Self {
            received_frames: sum.received_frames + pair.received_frames.get(),
            received_bytes: sum.received_bytes + pair.received_bytes.get(),
            received_dropped: sum.received_dropped + pair.received_dropped.get(),
            received_waited: sum.received_waited + pair.received_waited.get(),
            sent_frames: sum.sent_frames + pair.sent_frames.get(),
            sent_bytes: sum.sent_bytes + pair.sent_bytes.get(),
            sent_dropped: sum.sent_dropped + pair.sent_dropped.get(),
        })
    }
}
