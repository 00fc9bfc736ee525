// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

mod solver;

use std::fmt;
use std::ops::Range;

use crate::{GicConfig, GicVersion, LayoutError, MsiConfig, V2mFrame};
use solver::{GRANULE, Space};

/// `KVM_VGIC_V2_DIST_SIZE`.
const V2_DISTRIBUTOR_SIZE: u64 = 0x1000;
/// `KVM_VGIC_V2_CPU_SIZE`.
const V2_CPU_INTERFACE_SIZE: u64 = 0x2000;
/// `KVM_VGIC_V3_DIST_SIZE`.
const V3_DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// `KVM_VGIC_V3_REDIST_SIZE`: RD_base and SGI_base.
const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// `KVM_VGIC_V3_ITS_SIZE`: control and translation page.
const ITS_SIZE: u64 = 0x2_0000;
/// Offset of `GITS_TRANSLATER` from the ITS's base (IHI 0069H, section 12.19): the doorbell.
const GITS_TRANSLATER: u64 = 0x1_0040;
/// The kernel keeps a redistributor region's index in eight bits (Linux 6.12, `kvm_vgic_addr`).
const MAX_REDISTRIBUTOR_REGIONS: usize = 256;

/// A run of guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MmioRegion {
    /// The first address.
    pub base: u64,
    /// How many bytes.
    pub size: u64,
}

impl MmioRegion {
    /// The address after the last.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.base + self.size
    }
}

impl fmt::Display for MmioRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.base, self.end())
    }
}

/// A run of redistributors without gaps, 128 KiB each. The kernel fills regions with vCPUs in index order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RedistributorRegion {
    /// The first one's first address, a multiple of 64 KiB.
    pub base: u64,
    /// How many there are, at least 1.
    pub count: u32,
}

impl RedistributorRegion {
    /// The addresses it takes.
    #[must_use]
    pub const fn mmio(self) -> MmioRegion {
        MmioRegion { base: self.base, size: self.count as u64 * REDISTRIBUTOR_SIZE }
    }
}

impl fmt::Display for RedistributorRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.count == 1 { "" } else { "s" };
        write!(f, "{} redistributor{s} at {}", self.count, self.mmio())
    }
}

/// What serves the single CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CpuFrames {
    /// GICv2: one block that each CPU sees its own of.
    Interface(MmioRegion),
    /// GICv3.
    Redistributors(Vec<RedistributorRegion>),
}

/// Where each block of a GIC's registers lies.
///
/// Nothing overlaps, and no two blocks share 64 KiB at a multiple of 64 KiB. For KVM's emulated blocks that makes stage-2 and
/// guest mappings of every page size possible. For the CPU interface of a GICv2 it is needed: it is not emulated but
/// mapped through to the hardware's in whole host pages (Linux 6.12, `arch/arm64/kvm/mmu.c`, `kvm_phys_addr_ioremap`), so
/// that on a host with 64 KiB pages its neighbours would disappear behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GicLayout {
    config: GicConfig,
    distributor: MmioRegion,
    cpus: CpuFrames,
    its: Vec<MmioRegion>,
    v2m: Option<MmioRegion>,
}

impl GicLayout {
    /// Finds places for the registers of `config` in `windows`, the ranges of guest-physical addresses that nothing else
    /// uses, in order of preference.
    ///
    /// The redistributors, 128 KiB a vCPU, may be spread over several windows, a region in each. A typical VMM gives one
    /// window below its RAM, and one above it for the many redistributors of large VMs. Windows that touch each other
    /// count as one. That also keeps regions from touching each other, which the guest could not tell from one region: the last
    /// redistributor of the former is then not marked as last (Linux 6.12, `arch/arm64/kvm/vgic/vgic-mmio-v3.c`,
    /// `vgic_mmio_vcpu_rdist_is_last`), and the guest's driver runs over its end.
    ///
    /// A place is found whenever there is one. The result depends on the arguments alone, so a VM that is built again
    /// from the same ones has the same layout.
    ///
    /// # Errors
    /// If a window is no range or overlaps another, or if they have no room.
    pub fn solve(config: &GicConfig, windows: &[Range<u64>]) -> Result<Self, LayoutError> {
        let space = Space::new(windows)?;
        // First the order that keeps fixed blocks at fixed addresses however many vCPUs there are. It may waste the odd 64 KiB
        // of a small window; then the order that wastes nothing: everything of 128 KiB comes first.
        match config.version() {
            GicVersion::V2 => Self::place_v2(config, space.clone()),
            GicVersion::V3 => Self::place_v3(config, space.clone(), Order::FixedFirst)
                .or_else(|| Self::place_v3(config, space.clone(), Order::LargeFirst)),
        }
        .ok_or_else(|| Self::no_room(config, &space))
        .and_then(|layout| match layout.redistributor_regions().len() {
            regions if regions > MAX_REDISTRIBUTOR_REGIONS => {
                Err(LayoutError::TooManyRegions { regions, max: MAX_REDISTRIBUTOR_REGIONS })
            }
            _ => Ok(layout),
        })
    }

    fn place_v2(config: &GicConfig, mut space: Space) -> Option<Self> {
        let distributor = space.take(V2_DISTRIBUTOR_SIZE)?;
        let interface = space.take(V2_CPU_INTERFACE_SIZE)?;
        let v2m = place_v2m(config, &mut space)?.first().copied();
        let cpus = CpuFrames::Interface(interface);
        Some(Self { config: *config, distributor, cpus, its: Vec::new(), v2m })
    }

    fn place_v3(config: &GicConfig, mut space: Space, order: Order) -> Option<Self> {
        let (distributor, v2m, its, redistributors);
        match order {
            Order::FixedFirst => {
                distributor = space.take(V3_DISTRIBUTOR_SIZE)?;
                v2m = place_v2m(config, &mut space)?;
                its = place_its(config, &mut space)?;
                redistributors = place_redistributors(config.vcpus(), &mut space)?;
            }
            Order::LargeFirst => {
                redistributors = place_redistributors(config.vcpus(), &mut space)?;
                its = place_its(config, &mut space)?;
                distributor = space.take(V3_DISTRIBUTOR_SIZE)?;
                v2m = place_v2m(config, &mut space)?;
            }
        }
        let cpus = CpuFrames::Redistributors(redistributors);
        Some(Self { config: *config, distributor, cpus, its, v2m: v2m.first().copied() })
    }

    fn no_room(config: &GicConfig, space: &Space) -> LayoutError {
        let v2m = u64::from(matches!(config.msi(), MsiConfig::V2m { .. }));
        let (needed_pairs, needed_singles) = match config.version() {
            GicVersion::V2 => (0, 2 + v2m),
            GicVersion::V3 => (u64::from(config.vcpus()) + u64::from(config.its_count()), 1 + v2m),
        };
        let pairs = space.pairs();
        let singles = space.granules() - 2 * pairs.min(needed_pairs);
        LayoutError::NoRoom { config: *config, needed_pairs, needed_singles, pairs, singles }
    }

    /// For which GIC this is.
    #[must_use]
    pub const fn config(&self) -> &GicConfig {
        &self.config
    }

    /// The distributor: 4 KiB (GICv2) or 64 KiB (GICv3).
    #[must_use]
    pub const fn distributor(&self) -> MmioRegion {
        self.distributor
    }

    /// The CPU interface of a GICv2, 8 KiB. A GICv3 has it in system registers.
    #[must_use]
    pub const fn cpu_interface(&self) -> Option<MmioRegion> {
        match &self.cpus {
            CpuFrames::Interface(region) => Some(*region),
            CpuFrames::Redistributors(_) => None,
        }
    }

    /// The redistributor regions of a GICv3, by index: as many redistributors as vCPUs. A GICv2 has none.
    #[must_use]
    pub fn redistributor_regions(&self) -> &[RedistributorRegion] {
        match &self.cpus {
            CpuFrames::Interface(_) => &[],
            CpuFrames::Redistributors(regions) => regions,
        }
    }

    /// The ITSes, 128 KiB each.
    #[must_use]
    pub fn its_frames(&self) -> &[MmioRegion] {
        &self.its
    }

    /// Where devices write to reach the ITS with this index: its `GITS_TRANSLATER`.
    #[must_use]
    pub fn its_doorbell(&self, index: usize) -> Option<u64> {
        self.its.get(index).map(|its| its.base + GITS_TRANSLATER)
    }

    /// The GICv2m frame, which the VMM puts on its MMIO bus.
    #[must_use]
    pub fn v2m_frame(&self) -> Option<V2mFrame> {
        match (self.v2m, self.config.msi()) {
            (Some(region), MsiConfig::V2m { spis }) => Some(V2mFrame::new(region, spis)),
            _ => None,
        }
    }

    /// All blocks of registers, the GICv2m frame included.
    pub fn regions(&self) -> impl Iterator<Item = MmioRegion> + '_ {
        std::iter::once(self.distributor)
            .chain(self.cpu_interface())
            .chain(self.redistributor_regions().iter().map(|region| region.mmio()))
            .chain(self.its.iter().copied())
            .chain(self.v2m)
    }
}

/// In which order the blocks of a GICv3 look for places.
#[derive(Clone, Copy)]
enum Order {
    FixedFirst,
    LargeFirst,
}

/// None or one.
fn place_v2m(config: &GicConfig, space: &mut Space) -> Option<Vec<MmioRegion>> {
    let count = usize::from(matches!(config.msi(), MsiConfig::V2m { .. }));
    (0..count).map(|_| space.take(V2mFrame::SIZE)).collect()
}

fn place_its(config: &GicConfig, space: &mut Space) -> Option<Vec<MmioRegion>> {
    (0..config.its_count()).map(|_| space.take(ITS_SIZE)).collect()
}

fn place_redistributors(vcpus: u32, space: &mut Space) -> Option<Vec<RedistributorRegion>> {
    let mut left = vcpus;
    let mut regions = Vec::new();
    while left > 0 {
        let (base, count) = space.take_up_to(left, REDISTRIBUTOR_SIZE)?;
        regions.push(RedistributorRegion { base, count });
        left -= count;
    }
    Some(regions)
}

const _: () = assert!(REDISTRIBUTOR_SIZE == 2 * GRANULE && ITS_SIZE == 2 * GRANULE);

#[cfg(test)]
mod tests;
