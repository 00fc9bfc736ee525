// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of numbers, kept as the ranges it consists of. A million free numbers cost as much as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    /// Start to end (exclusive). Ranges neither overlap nor touch, none is empty.
    ranges: BTreeMap<u32, u32>,
    len: usize,
}

impl RangeSet {
    /// How many numbers there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The smallest number.
    pub(crate) fn first(&self) -> Option<u32> {
        self.ranges.keys().next().copied()
    }

    /// The range that `n` lies in.
    fn around(&self, n: u32) -> Option<Range<u32>> {
        self.ranges.range(..=n).next_back().map(|(&start, &end)| start..end).filter(|r| r.contains(&n))
    }

    #[cfg(test)]
    pub(crate) fn contains(&self, n: u32) -> bool {
        self.around(n).is_some()
    }

    /// Whether all of `range` is in the set.
    pub(crate) fn contains_all(&self, range: &Range<u32>) -> bool {
        range.is_empty() || self.around(range.start).is_some_and(|r| range.end <= r.end)
    }

    /// Adds `n`; whether it was not there before.
    pub(crate) fn insert(&mut self, n: u32) -> bool {
        if self.around(n).is_some() {
            return false;
        }
        let (mut start, mut end) = (n, n + 1);
        if let Some((&below, &below_end)) = self.ranges.range(..n).next_back()
            && below_end == n
        {
            start = below;
        }
        if let Some(above_end) = self.ranges.remove(&end) {
            end = above_end;
        }
        self.ranges.insert(start, end);
        self.len += 1;
        true
    }

    /// Takes `n` out; whether it was there.
    pub(crate) fn remove(&mut self, n: u32) -> bool {
        let Some(Range { start, end }) = self.around(n) else { return false };
        self.ranges.remove(&start);
        if start < n {
            self.ranges.insert(start, n);
        }
        if n + 1 < end {
            self.ranges.insert(n + 1, end);
        }
        self.len -= 1;
        true
    }

    /// The set of all of `range`.
    pub(crate) fn from_range(range: Range<u32>) -> Self {
        let len = range.len();
        let ranges = if len == 0 { BTreeMap::new() } else { BTreeMap::from([(range.start, range.end)]) };
        Self { ranges, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(operations in prop::collection::vec((any::<bool>(), 0u32..24), 0..64)) {
            let mut set = RangeSet::default();
            let mut naive = BTreeSet::new();
            for (insert, n) in operations {
                if insert {
                    prop_assert_eq!(set.insert(n), naive.insert(n));
                } else {
                    prop_assert_eq!(set.remove(n), naive.remove(&n));
                }
                prop_assert_eq!(set.len(), naive.len());
                prop_assert_eq!(set.first(), naive.first().copied());
                for n in 0..26 {
                    prop_assert_eq!(set.contains(n), naive.contains(&n));
                    for end in n..26 {
                        prop_assert_eq!(set.contains_all(&(n..end)), (n..end).all(|m| naive.contains(&m)));
                    }
                }
                // Neighbouring ranges have been joined.
                let ranges: Vec<_> = set.ranges.iter().collect();
                prop_assert!(ranges.windows(2).all(|w| w[0].1 < w[1].0));
            }
        }
    }

    #[test]
    fn a_million_numbers_are_one_range() {
        let set = RangeSet::from_range(16..1 << 20);
        assert_eq!((set.len(), set.first(), set.ranges.len()), ((1 << 20) - 16, Some(16), 1));
        assert_eq!(RangeSet::from_range(7..7).len(), 0);
    }
}
