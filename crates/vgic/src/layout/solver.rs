// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Free guest-physical addresses, in units of 64 KiB.

use std::ops::Range;

use crate::{LayoutError, MmioRegion};

/// Everything is placed at multiples of this, and nothing shares one.
pub(super) const GRANULE: u64 = 0x1_0000;

/// Guest-physical addresses of arm64 have at most 52 bits; the redistributor-region attribute has no room for more.
const MAX_ADDRESS: u64 = 1 << 52;

/// What is free. Each window fills from its bottom, so what is left of it is always one piece.
#[derive(Debug, Clone)]
pub(super) struct Space {
    /// Multiples of [`GRANULE`], disjoint and not touching, in order of preference.
    windows: Vec<Range<u64>>,
}

impl Space {
    pub(super) fn new(windows: &[Range<u64>]) -> Result<Self, LayoutError> {
        for &Range { start, end } in windows {
            if start >= end || end > MAX_ADDRESS {
                return Err(LayoutError::BadWindow { start, end });
            }
        }
        let mut ascending: Vec<usize> = (0..windows.len()).collect();
        ascending.sort_by_key(|&i| windows[i].start);
        // (place in the order of preference, window): touching windows are one, as preferred as the more preferred of them.
        let mut merged: Vec<(usize, Range<u64>)> = Vec::with_capacity(windows.len());
        for i in ascending {
            let window = &windows[i];
            match merged.last_mut() {
                Some((_, last)) if window.start < last.end => {
                    return Err(LayoutError::OverlappingWindows { at: window.start });
                }
                Some((preference, last)) if window.start == last.end => {
                    last.end = window.end;
                    *preference = (*preference).min(i);
                }
                _ => merged.push((i, window.clone())),
            }
        }
        merged.sort_by_key(|&(preference, _)| preference);
        let windows = merged
            .into_iter()
            .map(|(_, window)| window.start.next_multiple_of(GRANULE)..window.end / GRANULE * GRANULE)
            .filter(|window| !window.is_empty())
            .collect();
        Ok(Self { windows })
    }

    /// The first place for `size` bytes, together with the rest of its last granule.
    pub(super) fn take(&mut self, size: u64) -> Option<MmioRegion> {
        let taken = size.next_multiple_of(GRANULE);
        let window = self.windows.iter_mut().find(|window| window.end - window.start >= taken)?;
        let base = window.start;
        window.start += taken;
        Some(MmioRegion { base, size })
    }

    /// As many of `count` pieces of `size` bytes, one after the other, as the first window with room for any has room for.
    pub(super) fn take_up_to(&mut self, count: u32, size: u64) -> Option<(u64, u32)> {
        let window = self.windows.iter_mut().find(|window| window.end - window.start >= size)?;
        let room = (window.end - window.start) / size;
        let taken = u32::try_from(room).unwrap_or(u32::MAX).min(count);
        let base = window.start;
        window.start += u64::from(taken) * size;
        Some((base, taken))
    }

    /// How many granules are free.
    pub(super) fn granules(&self) -> u64 {
        self.windows.iter().map(|window| (window.end - window.start) / GRANULE).sum()
    }

    /// How many pairs of neighbouring granules are free.
    pub(super) fn pairs(&self) -> u64 {
        self.windows.iter().map(|window| (window.end - window.start) / (2 * GRANULE)).sum()
    }
}
