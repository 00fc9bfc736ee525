// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The GIC's life: creation, addresses, number of interrupts, initialisation, mapping (Linux 6.12,
//! `arch/arm64/kvm/vgic/vgic-init.c` and `vgic-kvm-device.c`).

use irq_types::{Gsi, IrqchipPin, Pin};

use super::lines::Line;
use super::state::{Answer, Gic, PRIVATE, State};
use crate::{DeviceKind, Errno, Route, RouteTarget};

/// `KVM_VGIC_V2_DIST_SIZE`.
const V2_DIST_SIZE: u64 = 0x1000;
/// `KVM_VGIC_V2_CPU_SIZE`.
const V2_CPU_SIZE: u64 = 0x2000;
/// `KVM_VGIC_V3_DIST_SIZE`.
pub(super) const V3_DIST_SIZE: u64 = 0x1_0000;
/// `VGIC_NR_IRQS_LEGACY`: what a GIC has that nobody gave a number.
const DEFAULT_INTERRUPTS: u32 = 256;
/// `VGIC_MAX_RESERVED`. The documentation allows 1024 interrupts; the code compares with 1023, so that 992 is the most.
const MAX_INTERRUPTS: u32 = 1023;
/// `KVM_VGIC_IMP_REV_LATEST`.
const LATEST_REVISION: u32 = 3;

/// What `vgic_check_iorange` makes of a range: `set` is whether the address was set before.
pub(super) fn check_range(set: bool, base: u64, alignment: u64, size: u64, ipa_bits: u32) -> Answer {
    if set {
        return Err(Errno::EEXIST);
    }
    if !base.is_multiple_of(alignment) || !size.is_multiple_of(alignment) {
        return Err(Errno::EINVAL);
    }
    let end = base.checked_add(size).ok_or(Errno::EINVAL)?;
    let limit = 1u64 << ipa_bits;
    if base >= limit || end > limit {
        return Err(Errno::E2BIG);
    }
    Ok(())
}

/// Whether two ranges share a byte.
pub(super) fn overlap(a: u64, a_size: u64, b: u64, b_size: u64) -> bool {
    a.saturating_add(a_size) > b && a < b.saturating_add(b_size)
}

impl State {
    /// Whether KVM on this host registered the device (`kvm_device_ops_table`).
    pub(super) fn supports(&self, kind: DeviceKind) -> bool {
        match kind {
            DeviceKind::GicV2 => self.host.gic_v2,
            DeviceKind::GicV3 => self.host.gic_v3,
            DeviceKind::Its => self.host.its,
        }
    }

    /// `kvm_vgic_create`.
    pub(super) fn create_gic(&mut self, kind: DeviceKind) -> Answer {
        self.lock_all_vcpus()?;
        if self.gic.is_some() {
            return Err(Errno::EEXIST);
        }
        if self.vcpus.iter().any(|vcpu| vcpu.has_run) {
            return Err(Errno::EBUSY);
        }
        // The limit narrows even when the creation then fails for it.
        self.max_vcpus = if kind == DeviceKind::GicV2 { 8 } else { 512 };
        if self.vcpus.len() > self.max_vcpus as usize {
            return Err(Errno::E2BIG);
        }
        self.gic = Some(Gic {
            kind,
            distributor: None,
            cpu_interface: None,
            regions: Vec::new(),
            spis: 0,
            initialised: false,
            ready: false,
            enabled: false,
            revision: 0,
            groups_writable: kind == DeviceKind::GicV3,
        });
        Ok(())
    }

    fn gic_of(&mut self, kind: DeviceKind) -> Answer<&mut Gic> {
        self.gic.as_mut().filter(|gic| gic.kind == kind).ok_or(Errno::ENXIO)
    }

    /// `kvm_vgic_addr` for the distributor.
    pub(super) fn set_distributor(&mut self, kind: DeviceKind, base: u64) -> Answer {
        let bits = self.host.ipa_bits;
        let (alignment, size) = match kind {
            DeviceKind::GicV2 => (0x1000, V2_DIST_SIZE),
            _ => (0x1_0000, V3_DIST_SIZE),
        };
        let gic = self.gic_of(kind)?;
        check_range(gic.distributor.is_some(), base, alignment, size, bits)?;
        gic.distributor = Some(base);
        Ok(())
    }

    /// `kvm_vgic_addr` for the GICv2's CPU interface.
    pub(super) fn set_cpu_interface(&mut self, base: u64) -> Answer {
        let bits = self.host.ipa_bits;
        let gic = self.gic_of(DeviceKind::GicV2)?;
        check_range(gic.cpu_interface.is_some(), base, 0x1000, V2_CPU_SIZE, bits)?;
        gic.cpu_interface = Some(base);
        Ok(())
    }

    /// `KVM_DEV_ARM_VGIC_GRP_NR_IRQS`.
    pub(super) fn set_nr_irqs(&mut self, count: u32) -> Answer {
        if !(PRIVATE + 32..=MAX_INTERRUPTS).contains(&count) || !count.is_multiple_of(32) {
            return Err(Errno::EINVAL);
        }
        let gic = self.gic.as_mut().ok_or(Errno::ENXIO)?;
        if gic.spis != 0 {
            return Err(Errno::EBUSY);
        }
        gic.spis = count - PRIVATE;
        Ok(())
    }

    /// `vgic_init`. Asks neither for addresses nor for vCPUs; a second time does nothing. It ends by installing the default routing
    /// table: GSI i to pin i for each SPI, in place of whatever was there.
    pub(super) fn init_gic(&mut self) -> Answer {
        let gic = self.gic.as_mut().ok_or(Errno::ENXIO)?;
        if gic.initialised {
            return Ok(());
        }
        if gic.spis == 0 {
            gic.spis = DEFAULT_INTERRUPTS - PRIVATE;
        }
        let spis = gic.spis;
        let v3 = gic.kind == DeviceKind::GicV3;
        let defaults: Vec<Route> = (0..spis)
            .map(|n| Route {
                gsi: Gsi::new(n),
                target: RouteTarget::Line(IrqchipPin { irqchip: 0, pin: Pin::new(n) }),
            })
            .collect();
        self.install_routes(&defaults)?;
        self.lines.spis = vec![Line { group: v3, ..Line::new() }; spis as usize];
        for (index, vcpu) in self.vcpus.iter_mut().enumerate() {
            for line in &mut vcpu.private {
                line.group = v3;
                // `GICD_ITARGETSR0` to 7 say whose they are, by the vCPU's index and not its ID.
                line.target = if v3 { 0 } else { 1 << index };
            }
        }
        if let Some(gic) = &mut self.gic {
            if gic.revision == 0 {
                gic.revision = LATEST_REVISION;
            }
            gic.initialised = true;
        }
        Ok(())
    }

    /// `kvm_vgic_map_resources`, which the first run of a vCPU calls.
    pub(super) fn map_resources(&mut self) -> Answer {
        match &self.gic {
            None => return Ok(()),
            Some(gic) if gic.ready => return Ok(()),
            Some(gic) if gic.kind == DeviceKind::GicV2 => {
                let (Some(distributor), Some(cpu_interface)) = (gic.distributor, gic.cpu_interface) else {
                    return Err(Errno::ENXIO);
                };
                if overlap(distributor, V2_DIST_SIZE, cpu_interface, V2_CPU_SIZE) {
                    return Err(Errno::EINVAL);
                }
                self.init_gic()?;
            }
            Some(gic) => {
                if gic.distributor.is_none() || self.vcpus.iter().any(|vcpu| vcpu.redistributor.is_none()) {
                    return Err(Errno::ENXIO);
                }
                if !self.redistributors_fit() {
                    return Err(Errno::EINVAL);
                }
                if !gic.initialised {
                    return Err(Errno::EBUSY);
                }
            }
        }
        if let Some(gic) = &mut self.gic {
            gic.ready = true;
        }
        Ok(())
    }
}
