// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The BARs of a passed-through function: what they are, and which parts of them the guest reaches without an exit.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use pci::{BarIndex, BarKind, DecodedBar, Space};

use crate::Error;
use crate::device::Device;
use crate::dma::{DmaSpace, PeerMapping};
use crate::info::RegionInfo;
use crate::slots::{GuestSlots, Slot, SlotMemory};
use crate::sys::Mapping;

/// One BAR.
#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) index: BarIndex,
    pub(crate) kind: BarKind,
    /// What the guest sees: the device's size, or a page where that is larger and the page is the device's alone.
    pub(crate) size: u64,
    pub(crate) region: RegionInfo,
    /// Mapped parts: where in the BAR, and the mapping.
    parts: Vec<(u64, Arc<Mapping>)>,
}

/// In a BAR register: I/O, the type of a memory BAR, prefetchable (PCI Express base specification 6.0, section 7.5.1.2.1).
const IO: u32 = 1;
const TYPE: u32 = 6;
const TYPE_64: u32 = 4;
const PREFETCHABLE: u32 = 8;

/// What kind of BAR a register is.
pub(crate) fn kind(register: u32) -> BarKind {
    let prefetchable = register & PREFETCHABLE != 0;
    if register & IO != 0 {
        BarKind::Io
    } else if register & TYPE == TYPE_64 {
        BarKind::Memory64 { prefetchable }
    } else {
        BarKind::Memory32 { prefetchable }
    }
}

impl Bar {
    /// A BAR over `region`. `trapped` are the bytes of it that must not be mapped. Parts that the kernel refuses to map are trapped too.
    pub(crate) fn new(
        device: &Device,
        index: BarIndex,
        kind: BarKind,
        region: RegionInfo,
        trapped: &[Range<u64>],
        page: u64,
    ) -> (Self, Vec<Error>) {
        let memory = kind.space() == Space::Memory && kind != BarKind::Rom;
        let whole = memory && region.mappable() && region.readable() && region.writable();
        // The kernel lets a BAR that is smaller than a page be mapped only if it has the page for itself (Linux 6.12,
        // `drivers/vfio/pci/vfio_pci_core.c`, `vfio_pci_probe_mmaps`): a BAR of a page in the guest then keeps it apart there as well.
        let size = if whole { region.size.max(page) } else { region.size };
        let mut refused = Vec::new();
        let mut parts = Vec::new();
        for (offset, len) in if whole { mappable(&region, size, trapped, page) } else { Vec::new() } {
            // The region's own end does not bound what is mapped of its last page.
            let paged = RegionInfo { size, ..region.clone() };
            match device.map(&paged, offset, len) {
                Ok(mapping) => parts.push((offset, Arc::new(mapping))),
                Err(e) => refused.push(e),
            }
        }
        (Self { index, kind, size, region, parts }, refused)
    }

    /// The parts that the guest reaches without an exit: (offset, bytes).
    pub(crate) fn mapped(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.parts.iter().map(|(offset, mapping)| (*offset, mapping.len() as u64))
    }
}

/// Whole pages of a region that may be mapped and hold nothing that is trapped: (offset, bytes), ascending.
fn mappable(region: &RegionInfo, size: u64, trapped: &[Range<u64>], page: u64) -> Vec<(u64, u64)> {
    let down = |at: u64| at / page * page;
    let mut free: Vec<Range<u64>> = match &region.sparse {
        None => std::iter::once(0..down(size)).collect(),
        Some(areas) => areas
            .iter()
            .map(|&(offset, len)| {
                let start = offset.checked_next_multiple_of(page).unwrap_or(u64::MAX).min(size);
                start..down(offset.saturating_add(len).min(size)).max(start)
            })
            .collect(),
    };
    for hole in trapped.iter().filter(|hole| !hole.is_empty()) {
        let hole = down(hole.start)..hole.end.checked_next_multiple_of(page).unwrap_or(u64::MAX);
        free = free
            .into_iter()
            .flat_map(|range| [range.start..range.end.min(hole.start), range.start.max(hole.end)..range.end])
            .filter(|range| range.start < range.end)
            .collect();
    }
    let mut parts: Vec<_> = free
        .into_iter()
        .filter(|range| range.start < range.end)
        .map(|range| (range.start, range.end - range.start))
        .collect();
    parts.sort_unstable();
    parts
}

/// Where the mapped parts of all BARs are in the guest.
#[derive(Default)]
pub(crate) struct Placed {
    bars: Vec<PlacedBar>,
}

/// One of them: what the guest's CPUs reach, and what other devices do.
struct PlacedBar {
    at: DecodedBar,
    _slots: Vec<Slot>,
    /// `None` as long as there were no others; [`Err`] if they do not reach it.
    peers: Option<Result<Vec<PeerMapping>, Hidden>>,
}

/// Other devices do not reach a BAR.
struct Hidden;

impl Placed {
    /// Takes everything out of the guest's address space.
    pub(crate) fn clear(&mut self) {
        self.bars.clear();
    }

    /// Puts the BARs where `wanted` says. Those that stay are not touched. What cannot be mapped is trapped.
    pub(crate) fn update(
        &mut self,
        bars: &[Bar],
        wanted: &[DecodedBar],
        slots: &dyn GuestSlots,
    ) -> Vec<Error> {
        // First all that goes, then all that comes: two BARs may change places.
        self.bars.retain(|placed| wanted.contains(&placed.at));
        let mut refused = Vec::new();
        for decoded in wanted.iter().filter(|decoded| decoded.space == Space::Memory) {
            if self.bars.iter().any(|placed| placed.at == *decoded) {
                continue;
            }
            let Some(bar) = bars.iter().find(|bar| bar.index == decoded.bar) else { continue };
            let mut placed = Vec::new();
            for (offset, mapping) in &bar.parts {
                let address = decoded.base + offset;
                match slots.insert(address, SlotMemory::new(Arc::clone(mapping))) {
                    Ok(slot) => placed.push(slot),
                    Err(e) => refused.push(Error::kernel(
                        "map into the guest",
                        format!("BAR {} at {address:#x}", bar.index.get()),
                        e,
                    )),
                }
            }
            self.bars.push(PlacedBar { at: *decoded, _slots: placed, peers: None });
        }
        refused
    }

    /// Lets the other devices of `space` reach the BARs where they are now, those that they do not reach yet. Each BAR that they cannot be let to is in
    /// what is returned, once for the place that it has.
    pub(crate) fn show_to_peers(
        &mut self,
        bars: &[Bar],
        space: &Arc<DmaSpace>,
    ) -> Vec<(BarIndex, io::Error)> {
        let mut refused = Vec::new();
        for placed in self.bars.iter_mut().filter(|placed| placed.peers.is_none()) {
            let Some(bar) = bars.iter().find(|bar| bar.index == placed.at.bar) else { continue };
            let mappings =
                bar.parts.iter().map(|(offset, part)| space.map_peer(placed.at.base + offset, part));
            let mappings = mappings.collect::<io::Result<Vec<_>>>();
            placed.peers = Some(mappings.map_err(|e| {
                refused.push((bar.index, e));
                Hidden
            }));
        }
        refused
    }

    /// The BARs that other devices would reach if the IOMMU could map them.
    pub(crate) fn hidden(&self) -> Vec<BarIndex> {
        let hidden = self.bars.iter().filter(|placed| matches!(placed.peers, Some(Err(Hidden))));
        hidden.map(|placed| placed.at.bar).collect()
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, clippy::type_complexity, reason = "tables")]
mod tests {
    use super::*;

    fn region(size: u64, sparse: Option<Vec<(u64, u64)>>) -> RegionInfo {
        RegionInfo { size, sparse, ..RegionInfo::default() }
    }

    #[test]
    fn everything_but_the_pages_of_the_table_is_mapped() {
        const K: u64 = 1 << 10;
        let cases: &[(&str, u64, u64, &[Range<u64>], &[(u64, u64)])] = &[
            ("nothing trapped", 16 * K, 4 * K, &[], &[(0, 16 * K)]),
            ("table at the start", 16 * K, 4 * K, &[0..0x100], &[(4 * K, 12 * K)]),
            ("QEMU's NVMe", 16 * K, 4 * K, &[0x2000..0x2410, 0x3000..0x3009], &[(0, 8 * K)]),
            ("in the middle of a page", 64 * K, 4 * K, &[0x5200..0x5300], &[(0, 0x5000), (0x6000, 0xa000)]),
            ("over a page boundary", 64 * K, 4 * K, &[0x5ff0..0x6010], &[(0, 0x5000), (0x7000, 0x9000)]),
            ("64K pages, table at 0x5200", 64 * K, 64 * K, &[0x5200..0x5300], &[]),
            (
                "64K pages, larger BAR",
                256 * K,
                64 * K,
                &[0x15200..0x15300],
                &[(0, 64 * K), (128 * K, 128 * K)],
            ),
            ("table and PBA in one page", 8 * K, 4 * K, &[0..0x10, 0x800..0x808], &[(4 * K, 4 * K)]),
            ("all of it", 4 * K, 4 * K, &[0..0x1000], &[]),
        ];
        for (what, size, page, trapped, parts) in cases {
            assert_eq!(mappable(&region(*size, None), *size, trapped, *page), *parts, "{what}");
        }
    }

    #[test]
    fn sparse_areas_are_cut_to_whole_pages() {
        let areas = Some(vec![(0x4000, 0x4000), (0, 0x1800), (0x2800, 0x400), (0x9000, u64::MAX)]);
        let parts = mappable(&region(0xa000, areas), 0xa000, &[0x5000..0x5008], 0x1000);
        assert_eq!(parts, [(0, 0x1000), (0x4000, 0x1000), (0x6000, 0x2000), (0x9000, 0x1000)]);
    }

    #[test]
    fn registers_say_what_kind_of_bar_they_are() {
        assert_eq!(kind(0x1), BarKind::Io);
        assert_eq!(kind(0x0), BarKind::Memory32 { prefetchable: false });
        assert_eq!(kind(0x8), BarKind::Memory32 { prefetchable: true });
        assert_eq!(kind(0x4), BarKind::Memory64 { prefetchable: false });
        assert_eq!(kind(0xc), BarKind::Memory64 { prefetchable: true });
    }
}
