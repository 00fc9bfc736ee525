// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// How many buckets: 1 µs, 2 µs and so on up to 16 ms, and one for what takes longer.
const BUCKETS: usize = 15;

/// How long something took, counted by powers of two of a microsecond. Recording is two atomic additions.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Each with those that took at most 2ⁿ µs, and more than half of that; the last with those that took longer.
    counts: [AtomicU64; BUCKETS + 1],
    nanoseconds: AtomicU64,
}

/// A histogram as it was at some moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// Seconds, and how many took at most that long.
    pub buckets: Vec<(f64, u64)>,
    /// How many there were.
    pub count: u64,
    /// Seconds, all together.
    pub sum: f64,
}

impl Histogram {
    /// Counts one that took so long.
    pub fn record(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let microseconds = nanoseconds.div_ceil(1000).max(1);
        let bucket = microseconds.next_power_of_two().trailing_zeros() as usize;
        if let Some(count) = self.counts.get(bucket.min(BUCKETS)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// What there is so far.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        reason = "a sum of 104 days is exact to a nanosecond, and no more is wanted"
    )]
    pub fn snapshot(&self) -> Snapshot {
        let mut buckets = Vec::with_capacity(BUCKETS);
        let mut count = 0;
        for (power, bucket) in self.counts.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            if power < BUCKETS {
                buckets.push(((1u64 << power) as f64 / 1e6, count));
            }
        }
        Snapshot { buckets, count, sum: self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_has_those_that_took_at_most_that_long() {
        let histogram = Histogram::default();
        for nanoseconds in [0, 1, 1000, 1001, 2000, 16_384_000, 16_384_001, 3_600_000_000_000] {
            histogram.record(Duration::from_nanos(nanoseconds));
        }
        let Snapshot { buckets, count, .. } = histogram.snapshot();
        assert_eq!(count, 8);
        assert_eq!((buckets[0], buckets[1], buckets[2]), ((1e-6, 3), (2e-6, 5), (4e-6, 5)));
        assert_eq!(buckets[14], (0.016_384, 6));
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "they add up");
    }
}
