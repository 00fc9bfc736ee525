// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a VM gets on which host, and what it is told when it does not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use vgic::{ConfigError, GicConfig, GicRequest, GicVersion, HostGic, MsiChoice, MsiConfig, VersionChoice};

const NONE: HostGic = HostGic { v2: false, v3: false, its: false };
const V2: HostGic = HostGic { v2: true, v3: false, its: false };
const V3: HostGic = HostGic { v2: false, v3: true, its: true };
const V3_NO_ITS: HostGic = HostGic { v2: false, v3: true, its: false };
const BOTH: HostGic = HostGic { v2: true, v3: true, its: true };

fn resolve(
    version: &str,
    msi: &str,
    vcpus: u32,
    host: HostGic,
) -> Result<(GicVersion, &'static str), ConfigError> {
    let request = GicRequest {
        version: version.parse().unwrap(),
        msi: msi.parse().unwrap(),
        vcpus,
        ..GicRequest::default()
    };
    request.resolve(&host).map(|config| {
        let msi = match config.msi() {
            MsiConfig::Its { .. } => "its",
            MsiConfig::V2m { .. } => "v2m",
            MsiConfig::None => "none",
        };
        (config.version(), msi)
    })
}

#[test]
fn the_best_of_what_host_and_request_have_in_common() {
    use GicVersion::{V2 as GIC2, V3 as GIC3};
    // (--gic, --msi, vCPUs, host, what the VM gets)
    let table = [
        ("auto", "auto", 1, V3, (GIC3, "its")),
        ("auto", "auto", 512, BOTH, (GIC3, "its")),
        ("auto", "auto", 8, V2, (GIC2, "v2m")),
        ("auto", "auto", 1, V3_NO_ITS, (GIC3, "v2m")),
        ("v3", "auto", 1, BOTH, (GIC3, "its")),
        ("v2", "auto", 1, BOTH, (GIC2, "v2m")),
        ("v3", "v2m", 9, V3, (GIC3, "v2m")),
        ("v3", "none", 9, V3, (GIC3, "none")),
        ("auto", "its", 1, V3, (GIC3, "its")),
        ("auto", "none", 1, V2, (GIC2, "none")),
    ];
    for (version, msi, vcpus, host, want) in table {
        assert_eq!(resolve(version, msi, vcpus, host), Ok(want), "{version} {msi} {vcpus} on {host}");
    }
}

#[test]
fn refusals_say_what_the_host_has_and_what_to_do() {
    let table = [
        (
            ("v3", "auto", 1, V2),
            "a GICv3 was asked for, but this host's KVM offers GICv2 only; ask for v2 or auto",
        ),
        (
            ("v2", "auto", 1, V3),
            "a GICv2 was asked for, but this host's KVM offers GICv3 with ITS; ask for v3 or auto",
        ),
        (("v3", "auto", 1, NONE), "this host's KVM offers no in-kernel GIC"),
        (("auto", "auto", 1, NONE), "this host's KVM offers no in-kernel GIC"),
        (
            ("v2", "its", 1, BOTH),
            "an ITS was asked for, but a GICv2 has none (it takes a GICv3); ask for v2m or auto MSIs",
        ),
        (
            ("auto", "its", 1, V2),
            "an ITS was asked for, but it takes a GICv3, and this host's KVM offers GICv2 only; ask for v2m or auto MSIs",
        ),
        (
            ("v3", "its", 1, V3_NO_ITS),
            "an ITS was asked for, but this host's KVM offers GICv3 without ITS; ask for v2m or auto MSIs",
        ),
        (
            ("auto", "auto", 9, V2),
            "a GICv2 serves 1 to 8 vCPUs, not 9 (a GICv3 serves 512, but this host's KVM offers GICv2 only)",
        ),
        (
            ("v2", "auto", 9, BOTH),
            "a GICv2 serves 1 to 8 vCPUs, not 9; a GICv3, which this host's KVM offers too, serves 512",
        ),
        (("auto", "auto", 0, BOTH), "a GICv3 serves 1 to 512 vCPUs, not 0"),
        (("auto", "auto", 513, BOTH), "a GICv3 serves 1 to 512 vCPUs, not 513"),
        (
            ("v2", "auto", 512, V2),
            "a GICv2 serves 1 to 8 vCPUs, not 512 (a GICv3 serves 512, but this host's KVM offers GICv2 only)",
        ),
        (("v2", "auto", 513, V2), "a GICv2 serves 1 to 8 vCPUs, not 513"),
        (("v2", "auto", 0, V2), "a GICv2 serves 1 to 8 vCPUs, not 0"),
    ];
    for ((version, msi, vcpus, host), text) in table {
        let error = resolve(version, msi, vcpus, host).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
}

fn spis(msi: MsiChoice, spis: u32, v2m_spis: u32) -> Result<GicConfig, ConfigError> {
    GicRequest { msi, spis, v2m_spis, ..GicRequest::default() }.resolve(&BOTH)
}

#[test]
fn spis_come_in_whole_blocks_of_32() {
    // (asked for, NR_IRQS, free for wires)
    for (asked, nr_irqs, wired) in
        [(0, 64, 32), (1, 64, 32), (32, 64, 32), (33, 96, 64), (224, 256, 224), (960, 992, 960)]
    {
        let config = spis(MsiChoice::Its, asked, 64).unwrap();
        assert_eq!((config.nr_irqs(), config.wired_spis()), (nr_irqs, wired), "{asked} SPIs");
        assert_eq!(config.spis(), nr_irqs - 32);
    }
    assert_eq!(spis(MsiChoice::Its, 961, 1), Err(ConfigError::Spis { asked: 961, max: 960 }));
    assert_eq!(spis(MsiChoice::Its, u32::MAX, 1), Err(ConfigError::Spis { asked: u32::MAX, max: 960 }));
}

#[test]
fn a_v2m_frame_has_its_own_spis_on_top_aligned_for_multi_msi() {
    // (wires asked for, of the frame, free for wires, first SPI of the frame, NR_IRQS)
    for (wires, frame, wired, first, nr_irqs) in
        [(0, 1, 32, 32, 96), (40, 64, 64, 64, 160), (32, 33, 32, 32, 128), (896, 64, 896, 896, 992)]
    {
        let config = spis(MsiChoice::V2m, wires, frame).unwrap();
        let MsiConfig::V2m { spis } = config.msi() else { panic!("{config}") };
        assert_eq!((config.wired_spis(), config.nr_irqs()), (wired, nr_irqs));
        assert_eq!((spis.first().get(), spis.count()), (first, frame));
        assert_eq!(spis.first().intid().get() % 32, 0);
        assert_eq!(spis.iter().count(), frame as usize);
        assert!(spis.iter().all(|spi| spis.contains(spi) && spi.get() < config.spis()));
    }
    assert_eq!(spis(MsiChoice::V2m, 0, 0), Err(ConfigError::EmptyV2mFrame));
    assert_eq!(spis(MsiChoice::V2m, 897, 64), Err(ConfigError::Spis { asked: 992, max: 960 }));
    assert_eq!(spis(MsiChoice::V2m, 32, u32::MAX), Err(ConfigError::Spis { asked: u32::MAX, max: 960 }));
}

#[test]
fn no_itses_is_no_way_to_have_an_its() {
    let request = GicRequest { its_count: 0, ..GicRequest::default() };
    assert_eq!(request.resolve(&V3), Err(ConfigError::NoItsCount));
    // Where there is no ITS their number does not matter.
    assert!(request.resolve(&V2).is_ok());
}

#[test]
fn choices_read_back_as_they_are_written() {
    for text in ["auto", "v2", "v3"] {
        assert_eq!(text.parse::<VersionChoice>().unwrap().to_string(), text);
    }
    for text in ["auto", "its", "v2m", "none"] {
        assert_eq!(text.parse::<MsiChoice>().unwrap().to_string(), text);
    }
    assert_eq!("v4".parse::<VersionChoice>().unwrap_err().to_string(), "expected one of auto, v2, v3");
    assert_eq!("".parse::<MsiChoice>().unwrap_err().to_string(), "expected one of auto, its, v2m, none");
}
