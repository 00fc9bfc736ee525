// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Redistributor regions (Linux 6.12, `arch/arm64/kvm/vgic/vgic-mmio-v3.c` and `vgic-v3.c`).

use super::state::{Answer, Gic, State};
use super::vgic::{V3_DIST_SIZE, check_range, overlap};
use crate::Errno;

/// `KVM_VGIC_V3_REDIST_SIZE`: two 64 KiB frames a vCPU.
const REDIST_SIZE: u64 = 0x2_0000;

/// `struct vgic_redist_region`.
#[derive(Debug, Clone)]
pub(super) struct RedistRegion {
    pub(super) index: u32,
    pub(super) base: u64,
    /// How many redistributors it holds; 0 for the one region that grows with the vCPUs.
    pub(super) count: u32,
    /// How many are taken.
    used: u32,
}

impl RedistRegion {
    /// `vgic_v3_rd_region_size`.
    fn size(&self, vcpus: usize) -> u64 {
        let count = if self.count == 0 { vcpus as u64 } else { u64::from(self.count) };
        count * REDIST_SIZE
    }

    const fn full(&self) -> bool {
        self.count != 0 && self.used >= self.count
    }
}

impl Gic {
    fn overlaps_region(&self, base: u64, size: u64, vcpus: usize) -> bool {
        self.regions.iter().any(|region| overlap(base, size, region.base, region.size(vcpus)))
    }

    /// `vgic_v3_check_base`.
    fn bases_fit(&self, vcpus: usize, ipa_bits: u32) -> bool {
        let in_range = self
            .regions
            .iter()
            .all(|region| check_range(false, region.base, 0x1_0000, region.size(vcpus), ipa_bits).is_ok());
        in_range && self.distributor.is_none_or(|base| !self.overlaps_region(base, V3_DIST_SIZE, vcpus))
    }
}

impl State {
    /// `vgic_v3_check_base`.
    pub(super) fn redistributors_fit(&self) -> bool {
        self.gic.as_ref().is_some_and(|gic| gic.bases_fit(self.vcpus.len(), self.host.ipa_bits))
    }

    /// `vgic_register_redist_iodev` for a vCPU without a redistributor: the first free place, or none yet.
    pub(super) fn claim_redistributor(&mut self) -> Answer<Option<u64>> {
        let fit = self.redistributors_fit();
        let Some(gic) = &mut self.gic else { return Ok(None) };
        let Some(region) = gic.regions.iter_mut().find(|region| !region.full()) else { return Ok(None) };
        if !fit {
            return Err(Errno::EINVAL);
        }
        let base = region.base + u64::from(region.used) * REDIST_SIZE;
        region.used += 1;
        Ok(Some(base))
    }

    /// `vgic_v3_set_redist_base`, with `vgic_v3_alloc_redist_region`: `count` is 0 for `KVM_VGIC_V3_ADDR_TYPE_REDIST`.
    pub(super) fn add_redist_region(&mut self, index: u32, base: u64, count: u32) -> Answer {
        let (vcpus, bits) = (self.vcpus.len(), self.host.ipa_bits);
        let gic = self.gic.as_mut().ok_or(Errno::ENXIO)?;
        let region = RedistRegion { index, base, count, used: 0 };
        let size = region.size(vcpus);
        if base.checked_add(size).is_none() {
            return Err(Errno::EINVAL);
        }
        match gic.regions.last() {
            None if index != 0 => return Err(Errno::EINVAL),
            None => {}
            Some(last) => {
                if count == 0 && last.count != 0 {
                    return Err(Errno::EINVAL);
                }
                if count == 0 {
                    return Err(Errno::EEXIST);
                }
                if index != last.index + 1 {
                    return Err(Errno::EINVAL);
                }
            }
        }
        let on_distributor =
            gic.distributor.is_some_and(|distributor| overlap(base, size, distributor, V3_DIST_SIZE));
        if count == 0 && on_distributor {
            return Err(Errno::EINVAL);
        }
        if gic.overlaps_region(base, size, vcpus) {
            return Err(Errno::EINVAL);
        }
        check_range(false, base, 0x1_0000, size, bits)?;
        gic.regions.push(region);
        self.register_all(index)
    }

    /// `vgic_register_all_redist_iodevs`: places for the vCPUs that wait for one, or the region is gone again.
    fn register_all(&mut self, index: u32) -> Answer {
        for cpu in 0..self.vcpus.len() {
            if self.vcpus[cpu].redistributor.is_some() {
                continue;
            }
            match self.claim_redistributor() {
                Ok(base) => self.vcpus[cpu].redistributor = base,
                Err(errno) => {
                    self.drop_region(index);
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    fn drop_region(&mut self, index: u32) {
        let vcpus = self.vcpus.len();
        let Some(gic) = &mut self.gic else { return };
        if let Some(at) = gic.regions.iter().position(|region| region.index == index) {
            let gone = gic.regions.remove(at);
            let range = gone.base..gone.base.saturating_add(gone.size(vcpus));
            for vcpu in &mut self.vcpus {
                if vcpu.redistributor.is_some_and(|base| range.contains(&base)) {
                    vcpu.redistributor = None;
                }
            }
        }
    }

    /// `GICR_TYPER.Last` (`vgic_mmio_vcpu_rdist_is_last`): the guest need not look for a redistributor behind this one.
    pub(super) fn is_last_redistributor(&self, cpu: usize) -> bool {
        let (Some(base), Some(gic)) = (self.vcpus[cpu].redistributor, &self.gic) else { return false };
        let vcpus = self.vcpus.len();
        let Some(region) =
            gic.regions.iter().find(|region| (region.base..region.base + region.size(vcpus)).contains(&base))
        else {
            return false;
        };
        let next = base + REDIST_SIZE;
        let taken = region.base + u64::from(region.used) * REDIST_SIZE;
        let end = region.base + u64::from(region.count) * REDIST_SIZE;
        let goes_on = region.count != 0
            && next == end
            && gic.regions.iter().any(|other| other.base == end && other.used > 0);
        next >= taken && !goes_on
    }

    /// What reading `KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION` answers for a region's index.
    pub(super) fn redist_region(&self, index: u32) -> Answer<u64> {
        let gic = self.gic.as_ref().ok_or(Errno::ENXIO)?;
        let region = gic.regions.iter().find(|region| region.index == index).ok_or(Errno::ENOENT)?;
        Ok(crate::arm::redist_region(region.base, region.count, region.index))
    }
}
