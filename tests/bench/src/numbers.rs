// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The least, the middle and the greatest of a few numbers.

use std::fmt;

/// Summary of at least one number. An average is left out on purpose: one disturbed run would move it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spread<T> {
    pub(crate) min: T,
    pub(crate) median: T,
    pub(crate) max: T,
}

impl<T: Ord + Copy> Spread<T> {
    /// `None` for no numbers. Of an even count the median is the lower of the two in the middle, so that it is one that
    /// was seen.
    pub(crate) fn of(numbers: &[T]) -> Option<Self> {
        let mut sorted = numbers.to_vec();
        sorted.sort_unstable();
        let middle = sorted.len().checked_sub(1)? / 2;
        Some(Self { min: *sorted.first()?, median: *sorted.get(middle)?, max: *sorted.last()? })
    }
}

impl<T: Copy> Spread<T> {
    pub(crate) fn map<U>(self, f: impl Fn(T) -> U) -> Spread<U> {
        Spread { min: f(self.min), median: f(self.median), max: f(self.max) }
    }
}

impl<T: fmt::Display> fmt::Display for Spread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "min {} median {} max {}", self.min, self.median, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn spread_is_of_the_sorted_numbers() {
        for (numbers, expected) in [
            (&[][..], None),
            (&[7], Some((7, 7, 7))),
            (&[9, 1], Some((1, 1, 9))),
            (&[5, 9, 1], Some((1, 5, 9))),
            (&[4, 3, 2, 100], Some((2, 3, 100))),
        ] {
            assert_eq!(Spread::of(numbers).map(|s| (s.min, s.median, s.max)), expected, "{numbers:?}");
        }
    }
}
