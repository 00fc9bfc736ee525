// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest says of its memory (VIRTIO 1.3, section 5.5.6.3).

/// How long an entry is: a `le16` tag and a `le64` value.
const ENTRY: usize = 10;

/// The longest buffer that is looked at: each tag several times.
pub(super) const LONGEST: u32 = 1024;

/// A guest's memory, as it has last said. A guest tells what it knows; the rest is `None`. Nothing of it can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BalloonStats {
    /// Bytes swapped in, ever.
    pub swap_in: Option<u64>,
    /// Bytes swapped out, ever.
    pub swap_out: Option<u64>,
    /// Major page faults, ever.
    pub major_faults: Option<u64>,
    /// Minor page faults, ever.
    pub minor_faults: Option<u64>,
    /// Bytes that are not used for anything.
    pub free: Option<u64>,
    /// Bytes that there are.
    pub total: Option<u64>,
    /// Bytes that could be had without swapping.
    pub available: Option<u64>,
    /// Bytes that could be had quickly, from caches of files.
    pub caches: Option<u64>,
    /// Huge pages allocated, ever.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be, ever.
    pub hugetlb_failures: Option<u64>,
}

impl BalloonStats {
    /// What the entries in `bytes` say. Tags that are not known, and what is no whole entry, are nothing.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut stats = Self::default();
        for entry in bytes.as_chunks::<ENTRY>().0 {
            let [tag_low, tag_high, value @ ..] = *entry;
            let field = match u16::from_le_bytes([tag_low, tag_high]) {
                0 => &mut stats.swap_in,
                1 => &mut stats.swap_out,
                2 => &mut stats.major_faults,
                3 => &mut stats.minor_faults,
                4 => &mut stats.free,
                5 => &mut stats.total,
                6 => &mut stats.available,
                7 => &mut stats.caches,
                8 => &mut stats.hugetlb_allocations,
                9 => &mut stats.hugetlb_failures,
                _ => continue,
            };
            *field = Some(u64::from_le_bytes(value));
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tag_is_its_own() {
        let mut bytes = Vec::new();
        for tag in (0..20_u16).rev() {
            bytes.extend(tag.to_le_bytes());
            bytes.extend((100 + u64::from(tag)).to_le_bytes());
        }
        bytes.extend([4, 0, 1]);
        let stats = BalloonStats::parse(&bytes);
        assert_eq!(
            stats,
            BalloonStats {
                swap_in: Some(100),
                swap_out: Some(101),
                major_faults: Some(102),
                minor_faults: Some(103),
                free: Some(104),
                total: Some(105),
                available: Some(106),
                caches: Some(107),
                hugetlb_allocations: Some(108),
                hugetlb_failures: Some(109),
            }
        );
        assert_eq!(BalloonStats::parse(&[]), BalloonStats::default());
    }
}
