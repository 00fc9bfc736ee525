// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's own counts: how often a tracepoint was hit, by one of its fields. Exact where a trace buffer would overflow.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Counts hits of a tracepoint from the moment it is made, until it is dropped. One for a tracepoint at a time: tests with the kernel's counts
/// run one after the other.
#[derive(Debug)]
pub struct Histogram {
    event: PathBuf,
    key: String,
}

impl Histogram {
    /// Counts hits of `event` (`kvm/kvm_exit`) by its field `key`. `None` where the kernel has no such tracepoint, or we may not use it.
    #[must_use]
    pub fn start(event: &str, key: &str) -> Option<Self> {
        let this =
            Self { event: PathBuf::from("/sys/kernel/tracing/events").join(event), key: key.to_owned() };
        // One that a test which was killed has left behind would have its counts.
        let _ = fs::write(this.event.join("trigger"), format!("!{}", this.trigger()));
        fs::write(this.event.join("trigger"), this.trigger()).ok().map(|()| this)
    }

    fn trigger(&self) -> String {
        format!("hist:keys={}", self.key)
    }

    /// Hits by the field's value.
    ///
    /// # Panics
    /// If the kernel does not say.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<u64, u64> {
        // Its lines are `{ common_pid:        113 } hitcount:          2`.
        let text = fs::read_to_string(self.event.join("hist")).unwrap();
        text.lines()
            .filter_map(|line| {
                let (key, hits) = line.strip_prefix("{ ")?.split_once("} hitcount:")?;
                let (_, value) = key.split_once(':')?;
                let value = value.trim();
                let number = value
                    .strip_prefix("0x")
                    .map_or_else(|| value.parse(), |hex| u64::from_str_radix(hex, 16));
                Some((number.unwrap(), hits.trim().parse().unwrap()))
            })
            .collect()
    }

    /// Hits with this value.
    ///
    /// # Panics
    /// If the kernel does not say.
    #[must_use]
    pub fn count(&self, value: u64) -> u64 {
        self.counts().get(&value).copied().unwrap_or(0)
    }
}

impl Drop for Histogram {
    fn drop(&mut self) {
        let _ = fs::write(self.event.join("trigger"), format!("!{}", self.trigger()));
    }
}
