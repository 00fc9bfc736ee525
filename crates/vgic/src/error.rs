// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;

use irqchip::{DeviceKind, ReadyError};
use thiserror::Error;

use crate::{GicConfig, GicVersion, HostGic, MmioRegion, RedistributorRegion, VersionChoice};

/// Why a VM cannot have the GIC that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The kernel did not say what it has.
    #[error("cannot find out which interrupt controllers this host's KVM offers")]
    Probe(#[source] irqchip::Error),
    /// The host has another version.
    #[error(
        "{} was asked for, but this host's KVM offers {host}; ask for {} or auto",
        with_article(*wanted),
        other(*wanted)
    )]
    NoSuchVersion {
        /// What was asked for.
        wanted: GicVersion,
        /// What there is.
        host: HostGic,
    },
    /// The host has none.
    #[error("this host's KVM offers no in-kernel GIC")]
    NoGic,
    /// The number of vCPUs does not fit the GIC.
    #[error(
        "{} serves 1 to {max} vCPUs, not {vcpus}{}",
        with_article(*version),
        more_with_v3(*version, *vcpus, *host)
    )]
    Vcpus {
        /// The GIC that the VM would have had.
        version: GicVersion,
        /// How many vCPUs were asked for.
        vcpus: u32,
        /// How many it serves.
        max: u32,
        /// What the host has.
        host: HostGic,
    },
    /// An ITS was asked for where none can be.
    #[error("an ITS was asked for, but {}; ask for v2m or auto MSIs", why_no_its(*version, *asked, *host))]
    NoIts {
        /// The GIC that the VM would have had.
        version: GicVersion,
        /// Which version was asked for.
        asked: VersionChoice,
        /// What the host has.
        host: HostGic,
    },
    /// ITSes were asked for, none of them.
    #[error("the number of ITSes is 0; ask for at least one, or for no MSIs")]
    NoItsCount,
    /// A GICv2m frame was asked for, without SPIs.
    #[error("the GICv2m frame has no SPIs; give it at least one, or ask for no MSIs")]
    EmptyV2mFrame,
    /// More SPIs than KVM's GIC has.
    #[error("KVM's GIC has at most {max} SPIs for wires and GICv2m together, not {asked}")]
    Spis {
        /// How many were asked for, as far as counted.
        asked: u32,
        /// How many there can be.
        max: u32,
    },
}

fn with_article(version: GicVersion) -> String {
    format!("a {version}")
}

fn other(version: GicVersion) -> &'static str {
    match version {
        GicVersion::V2 => "v3",
        GicVersion::V3 => "v2",
    }
}

fn more_with_v3(version: GicVersion, vcpus: u32, host: HostGic) -> String {
    let v3 = GicVersion::V3;
    if version == v3 || vcpus == 0 || vcpus > v3.max_vcpus() {
        String::new()
    } else if host.v3 {
        format!("; a {v3}, which this host's KVM offers too, serves {}", v3.max_vcpus())
    } else {
        format!(" (a {v3} serves {}, but this host's KVM offers {host})", v3.max_vcpus())
    }
}

fn why_no_its(version: GicVersion, asked: VersionChoice, host: HostGic) -> String {
    match version {
        GicVersion::V3 => format!("this host's KVM offers {host}"),
        GicVersion::V2 if asked == VersionChoice::V2 => "a GICv2 has none (it takes a GICv3)".to_owned(),
        GicVersion::V2 => format!("it takes a GICv3, and this host's KVM offers {host}"),
    }
}

/// Why the GIC's registers have no place.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A range that holds nothing, that ends before it begins, or lies beyond 2^52, the largest guest-physical address of arm64.
    #[error("{start:#x}..{end:#x} is no range of guest-physical addresses")]
    BadWindow {
        /// Its first address.
        start: u64,
        /// The address after its last.
        end: u64,
    },
    /// Two ranges have addresses in common.
    #[error("the ranges given for the GIC overlap at {at:#x}")]
    OverlappingWindows {
        /// The first address they share.
        at: u64,
    },
    /// The ranges are too small, or too odd.
    #[error(
        "the registers of a {config} need {needed_pairs} places of 128 KiB and {needed_singles} of 64 KiB, each at a multiple of \
         64 KiB; the ranges given have room for {pairs} and {singles}"
    )]
    NoRoom {
        /// The GIC to be placed.
        config: GicConfig,
        /// Redistributors and ITSes.
        needed_pairs: u64,
        /// Distributor, CPU interface and GICv2m frame.
        needed_singles: u64,
        /// How many of the former the ranges hold if the former come first.
        pairs: u64,
        /// How many of the latter are then left.
        singles: u64,
    },
    /// The redistributors would be scattered over more regions than KVM counts.
    #[error(
        "the redistributors would lie in {regions} regions, and KVM has {max} at most; give larger ranges"
    )]
    TooManyRegions {
        /// How many.
        regions: usize,
        /// How many there can be.
        max: usize,
    },
}

/// A block of the GIC's registers, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// The distributor.
    Distributor(MmioRegion),
    /// The CPU interface of a GICv2.
    CpuInterface(MmioRegion),
    /// One region of redistributors.
    Redistributors {
        /// Counted from 0.
        index: usize,
        /// How many regions there are.
        of: usize,
        /// Which.
        region: RedistributorRegion,
    },
    /// An ITS.
    Its {
        /// Counted from 0.
        index: usize,
        /// How many ITSes there are.
        of: usize,
        /// Its registers.
        region: MmioRegion,
    },
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Distributor(region) => write!(f, "distributor ({region})"),
            Self::CpuInterface(region) => write!(f, "CPU interface ({region})"),
            Self::Redistributors { index, of, region } => {
                write!(f, "redistributor region {} of {of} ({region})", index + 1)
            }
            Self::Its { index, of, region } => write!(f, "ITS {} of {of} ({region})", index + 1),
        }
    }
}

/// Why a GIC did not come to life.
///
/// The VM keeps what was created of it, and no second try can succeed on this VM: close it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VgicError {
    /// A device was not created.
    #[error("the VM gets no {kind}")]
    Create {
        /// Which.
        kind: DeviceKind,
        /// What the kernel said.
        source: irqchip::Error,
    },
    /// The number of interrupts was refused.
    #[error("the GIC cannot have {nr_irqs} interrupts (32 private ones and {} SPIs)", nr_irqs - 32)]
    NrIrqs {
        /// How many, private ones included.
        nr_irqs: u32,
        /// What the kernel said.
        source: irqchip::Error,
    },
    /// The layout is that of another GIC.
    #[error("the layout is that of a {layout}, but the GIC is a {gic}")]
    LayoutOfAnotherGic {
        /// For which it was made.
        layout: GicConfig,
        /// Which was created.
        gic: GicConfig,
    },
    /// An address was refused.
    #[error("the {frame} cannot be placed")]
    Place {
        /// Which registers.
        frame: Frame,
        /// What the kernel said.
        source: irqchip::Error,
    },
    /// There are more or fewer vCPUs than was planned for.
    #[error("the GIC was laid out for {planned} vCPUs, and {created} were created")]
    VcpuCount {
        /// How many were asked for.
        planned: u32,
        /// How many there are.
        created: u32,
    },
    /// The GIC was not initialised.
    #[error("the initialisation of the GIC failed")]
    InitGic(#[source] ReadyError),
    /// An ITS was not initialised.
    #[error("the initialisation of ITS {} of {of} failed", index + 1)]
    InitIts {
        /// Counted from 0.
        index: usize,
        /// How many ITSes there are.
        of: usize,
        /// What the kernel said.
        source: irqchip::Error,
    },
}
