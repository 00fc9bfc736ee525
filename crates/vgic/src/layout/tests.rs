// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![allow(
    clippy::single_range_in_vec_init,
    reason = "a slice of one window is meant, not the addresses in it"
)]

use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::{GicRequest, HostGic, MsiChoice, VersionChoice};

/// Below RAM at 1 GiB.
const LOW: Range<u64> = 0x0800_0000..0x1000_0000;
/// Above the RAM of a large VM.
const HIGH: Range<u64> = 0x100_0000_0000..0x110_0000_0000;

fn config(version: VersionChoice, msi: MsiChoice, vcpus: u32, its_count: u8) -> GicConfig {
    let request = GicRequest { version, msi, vcpus, its_count, ..GicRequest::default() };
    request.resolve(&HostGic { v2: true, v3: true, its: true }).unwrap()
}

fn v3(vcpus: u32) -> GicConfig {
    config(VersionChoice::V3, MsiChoice::Its, vcpus, 1)
}

/// How many 128 KiB blocks the windows have room for, one beside the other, and how many 64 KiB units there are in all.
fn room(windows: &[Range<u64>], end: u64) -> (u64, u64) {
    let covered = |granule: u64| {
        let (start, end) = (granule * GRANULE, (granule + 1) * GRANULE);
        let bytes: u64 = windows.iter().map(|w| w.end.min(end).saturating_sub(w.start.max(start))).sum();
        bytes == GRANULE
    };
    let (mut pairs, mut total, mut run) = (0, 0, 0);
    for granule in 0..=end / GRANULE {
        if covered(granule) {
            run += 1;
            total += 1;
        } else {
            pairs += run / 2;
            run = 0;
        }
    }
    (pairs, total)
}

/// How many 128 KiB blocks and other 64 KiB units the GIC takes.
fn needs(config: &GicConfig) -> (u64, u64) {
    let v2m = u64::from(matches!(config.msi(), MsiConfig::V2m { .. }));
    match config.version() {
        GicVersion::V2 => (0, 2 + v2m),
        GicVersion::V3 => (u64::from(config.vcpus()) + u64::from(config.its_count()), 1 + v2m),
    }
}

/// What every layout promises.
fn check(layout: &GicLayout, windows: &[Range<u64>]) {
    let config = *layout.config();
    let mut regions: Vec<MmioRegion> = layout.regions().collect();
    regions.sort_by_key(|region| region.base);
    for region in &regions {
        assert!(region.size > 0);
        assert_eq!(region.base % GRANULE, 0, "{region} is aligned");
        // Touching windows count as one, so ask byte by granule.
        for address in (region.base..region.end()).step_by(0x1000) {
            assert!(windows.iter().any(|w| w.contains(&address)), "{region} lies in the windows");
        }
    }
    for pair in regions.windows(2) {
        let end = pair[0].end().next_multiple_of(GRANULE);
        assert!(end <= pair[1].base, "{} and {} share no 64 KiB", pair[0], pair[1]);
    }
    assert_eq!(layout.its_frames().len(), usize::from(config.its_count()));
    assert!(layout.its_frames().iter().all(|its| its.size == 0x2_0000));
    assert_eq!(layout.v2m_frame().is_some(), matches!(config.msi(), MsiConfig::V2m { .. }));
    let redistributors = layout.redistributor_regions();
    match config.version() {
        GicVersion::V2 => {
            assert_eq!(layout.distributor().size, 0x1000);
            assert_eq!(layout.cpu_interface().map(|region| region.size), Some(0x2000));
            assert!(redistributors.is_empty());
        }
        GicVersion::V3 => {
            assert_eq!(layout.distributor().size, 0x1_0000);
            assert_eq!(layout.cpu_interface(), None);
            assert_eq!(redistributors.iter().map(|region| region.count).sum::<u32>(), config.vcpus());
            for a in redistributors {
                assert!(a.count > 0);
                assert!(redistributors.iter().all(|b| a.mmio().end() != b.base), "{a} touches none");
            }
        }
    }
}

fn any_config() -> impl Strategy<Value = GicConfig> {
    let version = prop_oneof![Just(VersionChoice::V2), Just(VersionChoice::V3)];
    let msi = prop_oneof![Just(MsiChoice::Auto), Just(MsiChoice::V2m), Just(MsiChoice::None)];
    (version, msi, 1..=40u32, 1..=4u8).prop_map(|(version, msi, vcpus, its)| {
        let vcpus = if version == VersionChoice::V2 { vcpus.min(8) } else { vcpus };
        config(version, msi, vcpus, its)
    })
}

/// Small windows with odd edges, some touching: (gap before, size) in units of 16 KiB, in any order.
fn any_windows() -> impl Strategy<Value = Vec<Range<u64>>> {
    proptest::collection::vec((prop_oneof![Just(0u64), 0..40u64], 1..120u64), 0..8)
        .prop_map(|pieces| {
            let mut next = 0x4000;
            let windows = pieces.into_iter().map(|(gap, size)| {
                let start = next + gap * 0x4000;
                next = start + size * 0x4000;
                start..next
            });
            windows.collect::<Vec<_>>()
        })
        .prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_place_is_found_whenever_there_is_one(config in any_config(), windows in any_windows()) {
        let end = windows.iter().map(|w| w.end).max().unwrap_or(0);
        let (needed_pairs, needed_singles) = needs(&config);
        let (pairs, total) = room(&windows, end);
        let singles = total - 2 * pairs.min(needed_pairs);
        let fits = pairs >= needed_pairs && singles >= needed_singles;
        match GicLayout::solve(&config, &windows) {
            Ok(layout) => {
                check(&layout, &windows);
                prop_assert!(fits, "the reference finds no place");
            }
            Err(error) => {
                prop_assert!(!fits, "the reference finds a place");
                let want = LayoutError::NoRoom { config, needed_pairs, needed_singles, pairs, singles };
                prop_assert_eq!(error, want);
            }
        }
    }
}

#[test]
fn fixed_blocks_keep_their_addresses_however_many_vcpus_there_are() {
    for vcpus in [1, 2, 8, 130, 512] {
        let layout = GicLayout::solve(&v3(vcpus), &[LOW, HIGH]).unwrap();
        check(&layout, &[LOW, HIGH]);
        assert_eq!(layout.distributor(), MmioRegion { base: 0x0800_0000, size: 0x1_0000 });
        assert_eq!(layout.its_frames(), [MmioRegion { base: 0x0801_0000, size: 0x2_0000 }]);
        assert_eq!(layout.its_doorbell(0), Some(0x0802_0040));
        let region = RedistributorRegion { base: 0x0803_0000, count: vcpus };
        assert_eq!(layout.redistributor_regions(), [region]);
    }
}

#[test]
fn many_vcpus_spread_over_several_regions() {
    // 16 MiB below: 64 KiB distributor, 128 KiB ITS, 126 redistributors and 64 KiB over. The rest goes above.
    let low = 0x0800_0000..0x0900_0000;
    for (vcpus, counts) in [(126, vec![126]), (130, vec![126, 4]), (512, vec![126, 386])] {
        let layout = GicLayout::solve(&v3(vcpus), &[low.clone(), HIGH]).unwrap();
        check(&layout, &[low.clone(), HIGH]);
        let regions = layout.redistributor_regions();
        assert_eq!(regions.iter().map(|region| region.count).collect::<Vec<_>>(), counts);
    }
}

#[test]
fn touching_windows_are_one_region() {
    let windows = [0x0810_0000..0x0820_0000, 0x0800_0000..0x0810_0000];
    let layout = GicLayout::solve(&v3(12), &windows).unwrap();
    check(&layout, &windows);
    assert_eq!(layout.redistributor_regions().len(), 1);
}

#[test]
fn windows_are_taken_in_order_of_preference() {
    let (low, high) = (0x0800_0000..0x0810_0000, 0x4000_0000..0x4010_0000);
    for (windows, first) in [
        (vec![low.clone(), high.clone()], 0x0800_0000),
        (vec![high.clone(), low.clone()], 0x4000_0000),
        // What touches the preferred window is as preferred.
        (vec![low, high, 0x07f0_0000..0x0800_0000], 0x07f0_0000),
    ] {
        let layout = GicLayout::solve(&v3(1), &windows).unwrap();
        check(&layout, &windows);
        assert_eq!(layout.distributor().base, first, "{windows:x?}");
    }
}

#[test]
fn no_space_is_wasted_when_it_is_tight() {
    // The distributor must leave the pair of the first window to the redistributor.
    let windows = [0x2_0000..0x4_0000, 0x6_0000..0x7_0000];
    let config = config(VersionChoice::V3, MsiChoice::None, 1, 1);
    let layout = GicLayout::solve(&config, &windows).unwrap();
    check(&layout, &windows);
    assert_eq!(layout.distributor().base, 0x6_0000);
}

#[test]
fn gicv2_blocks_have_64_kib_to_themselves() {
    let layout = GicLayout::solve(&config(VersionChoice::V2, MsiChoice::Auto, 8, 1), &[LOW]).unwrap();
    check(&layout, &[LOW]);
    assert_eq!(layout.distributor(), MmioRegion { base: 0x0800_0000, size: 0x1000 });
    assert_eq!(layout.cpu_interface(), Some(MmioRegion { base: 0x0801_0000, size: 0x2000 }));
    let frame = layout.v2m_frame().unwrap();
    assert_eq!(frame.region(), MmioRegion { base: 0x0802_0000, size: 0x1000 });
    assert_eq!((frame.spis().first().get(), frame.spis().count()), (64, 64));
}

#[test]
fn what_is_no_window_is_named() {
    let refused = |windows: &[Range<u64>]| GicLayout::solve(&v3(1), windows).unwrap_err().to_string();
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let backwards = 0x2000..0x1000;
    assert_eq!(refused(&[backwards]), "0x2000..0x1000 is no range of guest-physical addresses");
    assert!(refused(&[0x1000..0x1000]).contains("no range"));
    assert!(refused(&[0..(1 << 52) + 1]).contains("no range"));
    assert_eq!(
        refused(&[0x3000_0000..0x4000_0000, 0x1000_0000..0x3000_1000]),
        "the ranges given for the GIC overlap at 0x30000000"
    );
    let windows = [0..0x3_0000];
    assert_eq!(
        refused(&windows),
        "the registers of a GICv3 with an ITS, 1 vCPU, 64 SPIs need 2 places of 128 KiB and 1 of 64 KiB, each at a multiple of \
         64 KiB; the ranges given have room for 1 and 1"
    );
    assert!(refused(&[]).contains("room for 0 and 0"));
}

#[test]
fn the_kernel_s_limit_on_regions_is_kept() {
    // Each window holds one redistributor, the first also the distributor.
    let windows = |n: u64| {
        let windows = (1..n).map(|i| i * 0x10_0000..i * 0x10_0000 + 0x2_0000);
        std::iter::once(0..0x3_0000).chain(windows).collect::<Vec<_>>()
    };
    let config = |vcpus| config(VersionChoice::V3, MsiChoice::None, vcpus, 1);
    let layout = GicLayout::solve(&config(256), &windows(256)).unwrap();
    assert_eq!(layout.redistributor_regions().len(), 256);
    assert_eq!(
        GicLayout::solve(&config(257), &windows(257)),
        Err(LayoutError::TooManyRegions { regions: 257, max: 256 })
    );
}
