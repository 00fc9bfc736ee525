// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of each interrupt, and what raising and lowering its wire does to it.

use std::collections::BTreeMap;

use irq_types::{Intid, TriggerMode};

use super::Interrupt;
use super::state::{Answer, PRIVATE, State};
use crate::{DeviceKind, Errno};

/// One interrupt (`struct vgic_irq`).
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) config: TriggerMode,
    pub(super) enabled: bool,
    /// `line_level`: the wire.
    pub(super) high: bool,
    /// `pending_latch`.
    pub(super) latch: bool,
    pub(super) active: bool,
    /// On the list of interrupts that a vCPU is to look at (`ap_list`).
    pub(super) queued: bool,
    /// Whether it was a level interrupt when the guest took it (`ICH_LR_EOI` in its list register): only then is its EOI reported.
    pub(super) reports_eoi: bool,
    pub(super) priority: u8,
    pub(super) group: bool,
    /// `GICD_IROUTER`, or `GICD_ITARGETSR`; of an LPI the vCPU's index (`target_vcpu`).
    pub(super) target: u64,
}

impl Line {
    /// An SPI or LPI as it comes: edge, disabled (`kvm_vgic_dist_init` leaves both zero).
    pub(super) const fn new() -> Self {
        Self {
            config: TriggerMode::Edge,
            enabled: false,
            high: false,
            latch: false,
            active: false,
            queued: false,
            reports_eoi: false,
            priority: 0,
            group: true,
            target: 0,
        }
    }

    /// `irq_is_pending`.
    pub(super) const fn pending(&self) -> bool {
        match self.config {
            TriggerMode::Edge => self.latch,
            TriggerMode::Level => self.latch || self.high,
        }
    }

    /// `vgic_target_oracle`: whether a vCPU is to look at it.
    pub(super) const fn wants_cpu(&self, distributor_enabled: bool) -> bool {
        self.active || (self.enabled && self.pending() && distributor_enabled)
    }

    /// `vgic_queue_irq_unlock`, which whatever happens to an interrupt ends with. Nothing else puts it on the list.
    pub(super) const fn queue(&mut self, distributor_enabled: bool) {
        self.queued |= self.wants_cpu(distributor_enabled);
    }

    /// `kvm_vgic_inject_irq` with `vgic_validate_injection`: whether anything changed.
    fn drive(&mut self, high: bool, distributor_enabled: bool) -> bool {
        match self.config {
            TriggerMode::Level if self.high != high => self.high = high,
            TriggerMode::Edge if high => self.latch = true,
            _ => return false,
        }
        self.queue(distributor_enabled);
        true
    }
}

/// The SPIs and LPIs of a VM.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) spis: Vec<Line>,
    pub(super) lpis: BTreeMap<u32, Line>,
}

impl Lines {
    /// A vCPU's SGIs, which are edge and enabled, and PPIs, which are level (`vgic_allocate_private_irqs_locked`).
    pub(super) fn private() -> Vec<Line> {
        (0..PRIVATE)
            .map(|intid| Line {
                enabled: intid < 16,
                config: if intid < 16 { TriggerMode::Edge } else { TriggerMode::Level },
                ..Line::new()
            })
            .collect()
    }
}

impl State {
    /// The interrupt `intid` as vCPU `cpu` sees it (`vgic_get_irq`).
    pub(super) fn line(&mut self, cpu: usize, intid: u32) -> Option<&mut Line> {
        match intid {
            0..PRIVATE => self.vcpus.get_mut(cpu)?.private.get_mut(intid as usize),
            8192.. => self.lines.lpis.get_mut(&intid),
            _ => self.lines.spis.get_mut((intid - PRIVATE) as usize),
        }
    }

    /// `vgic_dist.enabled`.
    pub(super) fn distributor_enabled(&self) -> bool {
        self.gic.as_ref().is_some_and(|gic| gic.enabled)
    }

    /// Sets something about an interrupt, and queues it.
    pub(super) fn touch(&mut self, cpu: usize, intid: u32, change: impl FnOnce(&mut Line)) -> Answer {
        let on = self.distributor_enabled();
        let line = self.line(cpu, intid).ok_or(Errno::EINVAL)?;
        change(line);
        line.queue(on);
        Ok(())
    }

    /// `vgic_prune_ap_list`, on the way into the guest.
    pub(super) fn prune(&mut self) {
        let on = self.distributor_enabled();
        let private = self.vcpus.iter_mut().flat_map(|vcpu| &mut vcpu.private);
        let all = private.chain(&mut self.lines.spis).chain(self.lines.lpis.values_mut());
        for line in all {
            line.queued &= line.wants_cpu(on);
        }
    }

    /// `vgic_lazy_init`: touching a GICv2 initialises it; a GICv3 has to be told (Linux 6.12, `vgic-init.c`).
    pub(super) fn lazy_init(&mut self) -> Answer {
        match &self.gic {
            Some(gic) if gic.initialised => Ok(()),
            Some(gic) if gic.kind == DeviceKind::GicV2 => self.init_gic(),
            _ => Err(Errno::EBUSY),
        }
    }

    /// `KVM_IRQ_LINE` with an SPI (Linux 6.12, `arch/arm64/kvm/arm.c`, `kvm_vm_ioctl_irq_line`).
    pub(super) fn set_spi(&mut self, intid: Intid, high: bool) -> Answer {
        if self.gic.is_none() {
            return Err(Errno::ENXIO);
        }
        self.lazy_init()?;
        self.drive_spi(intid.get(), high)
    }

    /// The same from a route: the GIC is initialised.
    pub(super) fn drive_spi(&mut self, intid: u32, high: bool) -> Answer {
        let on = self.distributor_enabled();
        let line = self
            .lines
            .spis
            .get_mut(intid.checked_sub(PRIVATE).ok_or(Errno::EINVAL)? as usize)
            .ok_or(Errno::EINVAL)?;
        let changed = line.drive(high, on);
        if changed
            && high
            && let Ok(intid) = Intid::new(intid)
        {
            self.count_raised(Interrupt::Intid(intid));
        }
        Ok(())
    }

    /// `KVM_IRQ_LINE` with a PPI. A wire that a kernel device drives does not move, and nobody is told: `vgic_validate_injection`
    /// compares owners and `kvm_vgic_inject_irq` returns 0.
    pub(super) fn set_ppi(&mut self, vcpu: u32, intid: u32, high: bool) -> Answer {
        if self.gic.is_none() {
            return Err(Errno::ENXIO);
        }
        let index = self.vcpu_by_id(vcpu).ok_or(Errno::EINVAL)?;
        self.lazy_init()?;
        if self.vcpus[index].owned.contains(&intid) {
            return Ok(());
        }
        let on = self.distributor_enabled();
        self.line(index, intid).ok_or(Errno::EINVAL)?.drive(high, on);
        Ok(())
    }
}
