// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page numbers of the balloon, put together to ranges.

use vm_memory::GuestAddress;

/// How the balloon counts: pages of 4 KiB, whatever the guest's or the host's are (VIRTIO 1.3, section 5.5.6).
pub(super) const PAGE: u64 = 4096;

/// The ranges that the page numbers in `bytes` (`le32` each) make up, each as long as can be: (address, length). What is left of `bytes` when
/// it is no whole number of them is nothing.
///
/// Long ranges are cheap to give back; and where the host's pages are larger than 4 KiB, only what makes up a whole one can be.
pub(super) fn ranges(bytes: &[u8]) -> Vec<(GuestAddress, u64)> {
    let (numbers, _) = bytes.as_chunks::<4>();
    let mut numbers: Vec<u64> = numbers.iter().map(|number| u64::from(u32::from_le_bytes(*number))).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
        .chunk_by(|one, next| one + 1 == *next)
        .filter_map(|run| Some((GuestAddress(run.first()? * PAGE), run.len() as u64 * PAGE)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(numbers: &[u32]) -> Vec<(u64, u64)> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        ranges(&bytes).into_iter().map(|(address, length)| (address.0 / PAGE, length / PAGE)).collect()
    }

    #[test]
    fn neighbours_are_put_together_in_whatever_order_they_come() {
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[7]), [(7, 1)]);
        assert_eq!(of(&[9, 8, 7, 3, 8, 4]), [(3, 2), (7, 3)]);
        assert_eq!(of(&[u32::MAX, 0]), [(0, 1), (u64::from(u32::MAX), 1)]);
        assert_eq!(ranges(&[1, 0, 0]), []);
    }

    proptest! {
        #[test]
        fn all_pages_are_there_once_and_no_others(numbers in prop::collection::vec(0_u32..64, 0..100)) {
            let covered: Vec<u64> = of(&numbers).into_iter().flat_map(|(at, count)| at..at + count).collect();
            let mut expected: Vec<u64> = numbers.into_iter().map(u64::from).collect();
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(covered, expected);
        }
    }
}
