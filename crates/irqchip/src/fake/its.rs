// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ITS (Linux 6.12, `arch/arm64/kvm/vgic/vgic-its.c`).
//!
//! The model has no guest memory, so it has neither command queue nor tables: the guest maps events by
//! [`FakeGuest::map_event`](super::FakeGuest::map_event), and commands in the queue are passed over.

use std::collections::{BTreeMap, BTreeSet};

use irq_types::{DeviceId, EventId, Intid, Lpi, MsiMessage};

use super::Interrupt;
use super::base_registers::{
    INITIAL_BASER, INITIAL_LPI_TABLE, PENDING_TABLE_ZERO, sanitise_baser, sanitise_cbaser,
};
use super::lines::Line;
use super::state::{Answer, State};
use super::vgic::check_range;
use crate::{DeviceKind, Errno, arm};

/// `KVM_VGIC_V3_ITS_SIZE`.
const SIZE: u64 = 0x2_0000;
const CTLR: u64 = 0;
const IIDR: u64 = 4;
const TYPER: u64 = 8;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER: u64 = 0x100;
const BASER_END: u64 = 0x140;
const ID_REGISTERS: u64 = 0xffd0;
const ID_REGISTERS_END: u64 = 0x1_0000;
/// Bit 63 of CBASER and BASER.
const VALID: u64 = 1 << 63;
/// `GITS_BASER_INDIRECT`.
const INDIRECT: u64 = 1 << 62;
/// `GITS_BASER_RO_MASK`: the type (bits 58–56) and the entry size (52–48).
const BASER_READ_ONLY: u64 = (7 << 56) | (0x1f << 48);
/// Device table and collection table, entries of eight bytes.
const BASER_FIXED: [u64; 2] = [(1 << 56) | (7 << 48), (4 << 56) | (7 << 48)];

/// `struct vgic_its`.
#[derive(Debug)]
pub(super) struct Its {
    base: Option<u64>,
    pub(super) enabled: bool,
    cbaser: u64,
    cwriter: u64,
    creadr: u64,
    baser: [u64; 2],
    /// Which LPI of which vCPU (index) an event of a device is.
    pub(super) events: BTreeMap<(DeviceId, EventId), (u32, usize)>,
    /// Those that were translated since something changed (`translation_cache`).
    cache: BTreeSet<(DeviceId, EventId)>,
}

impl Its {
    const fn new() -> Self {
        Self {
            base: None,
            enabled: false,
            cbaser: 0,
            cwriter: 0,
            creadr: 0,
            baser: [INITIAL_BASER | BASER_FIXED[0], INITIAL_BASER | BASER_FIXED[1]],
            events: BTreeMap::new(),
            cache: BTreeSet::new(),
        }
    }

    /// Whether the frame holds this address. The kernel looks its ITSes up on the MMIO bus, by the whole 128 KiB: the doorbell's own
    /// offset is not checked (`__vgic_doorbell_to_its`).
    fn holds(&self, address: u64) -> bool {
        self.base.is_some_and(|base| (base..base + SIZE).contains(&address))
    }

    /// `vgic_its_has_attr_regs` and the first half of `vgic_its_attr_regs_access`.
    fn check_offset(offset: u64) -> Answer {
        let alignment = if (TYPER..ID_REGISTERS).contains(&offset) { 8 } else { 4 };
        if !offset.is_multiple_of(alignment) {
            return Err(Errno::EINVAL);
        }
        match offset {
            CTLR | IIDR | TYPER | CBASER | CWRITER | CREADR => Ok(()),
            BASER..BASER_END | ID_REGISTERS..ID_REGISTERS_END => Ok(()),
            _ => Err(Errno::ENXIO),
        }
    }

    fn read(&self, offset: u64) -> u64 {
        match offset {
            CTLR => u64::from(self.enabled) | if self.creadr == self.cwriter { 1 << 31 } else { 0 },
            // Product 'K', table format 0, implementer Arm.
            IIDR => (0x4b << 24) | 0x43b,
            // Physical LPIs; 16 bits of device ID and of event ID; eight bytes an ITT entry.
            TYPER => 1 | (15 << 13) | (15 << 8) | (7 << 4),
            CBASER => self.cbaser,
            CWRITER => self.cwriter,
            CREADR => self.creadr,
            BASER..BASER_END => usize::try_from((offset - BASER) / 8)
                .ok()
                .and_then(|n| self.baser.get(n))
                .copied()
                .unwrap_or(0),
            // PIDR4 and PIDR0 to 2, CIDR0 to 3.
            0xffd0 => 0x40,
            0xffe0 => 0x92,
            0xffe4 => 0xb4,
            0xffe8 => 0x3b,
            0xfff0 => 0x0d,
            0xfff4 => 0xf0,
            0xfff8 => 0x05,
            0xfffc => 0xb1,
            _ => 0,
        }
    }

    /// Whether queue and tables are there, without which it stays disabled.
    fn complete(&self) -> bool {
        self.baser.iter().chain([&self.cbaser]).all(|register| register & VALID != 0)
    }

    /// `vgic_its_process_commands`: while it is enabled no command waits.
    const fn process_commands(&mut self) {
        if self.enabled {
            self.creadr = self.cwriter;
        }
    }

    /// The size of the command queue in bytes.
    const fn queue(&self) -> u64 {
        ((self.cbaser & 0xff) + 1) << 12
    }

    fn write(&mut self, offset: u64, value: u64) -> Answer {
        match offset {
            CTLR => {
                // Enabling with an invalid table or queue is ignored.
                if self.enabled || value & 1 == 0 || self.complete() {
                    self.enabled = value & 1 != 0;
                }
                if !self.enabled {
                    self.cache.clear();
                }
                self.process_commands();
            }
            IIDR if (value >> 12) & 0xf != 0 => return Err(Errno::EINVAL),
            CBASER if !self.enabled => {
                self.cbaser = sanitise_cbaser(value);
                self.creadr = 0;
                self.cwriter = 0;
            }
            CWRITER if value & 0xf_ffe0 < self.queue() => {
                self.cwriter = value & 0xf_ffe0;
                self.process_commands();
            }
            CREADR if self.enabled => return Err(Errno::EBUSY),
            CREADR => {
                if value & 0xf_ffe0 >= self.queue() {
                    return Err(Errno::EINVAL);
                }
                self.creadr = value & 0xf_ffe0;
            }
            BASER..BASER_END if !self.enabled => {
                let n = usize::try_from((offset - BASER) / 8).unwrap_or(usize::MAX);
                if let (Some(register), Some(fixed)) = (self.baser.get_mut(n), BASER_FIXED.get(n)) {
                    // A collection table has one level.
                    let clear = if n == 1 { BASER_READ_ONLY | INDIRECT } else { BASER_READ_ONLY };
                    let new = sanitise_baser((value & !clear) | fixed);
                    // What is mapped goes with a table that is another now (`vgic_mmio_write_its_baser` of Linux 6.12.117; before, only with
                    // one that is not valid).
                    if std::mem::replace(register, new) != new {
                        self.events.clear();
                        self.cache.clear();
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl State {
    /// `vgic_its_create`. It asks neither for a GIC nor whether a vCPU has run; there may be several.
    pub(super) fn create_its(&mut self) -> usize {
        self.itses.push(Its::new());
        self.propbaser = INITIAL_LPI_TABLE;
        self.itses.len() - 1
    }

    pub(super) fn its_has_attr(attr: crate::DeviceAttr) -> Answer {
        match attr.group {
            arm::GROUP_ADDR if attr == arm::ADDR_ITS => Ok(()),
            arm::GROUP_CTRL if matches!(attr.attr, 0 | 1 | 2 | 4) => Ok(()),
            arm::GROUP_ITS_REGS => Its::check_offset(attr.attr),
            _ => Err(Errno::ENXIO),
        }
    }

    pub(super) fn its_set_attr(&mut self, its: usize, attr: crate::DeviceAttr, value: Option<u64>) -> Answer {
        let bits = self.host.ipa_bits;
        match attr.group {
            arm::GROUP_ADDR => {
                if attr != arm::ADDR_ITS {
                    return Err(Errno::ENODEV);
                }
                let base = value.ok_or(Errno::EFAULT)?;
                check_range(self.itses[its].base.is_some(), base, 0x1_0000, SIZE, bits)?;
                self.itses[its].base = Some(base);
                Ok(())
            }
            arm::GROUP_CTRL => {
                // `vgic_its_ctrl`: the initialisation is nothing, and a command that it does not know is nothing too.
                if attr == arm::CTRL_INIT {
                    return Ok(());
                }
                self.lock_all_vcpus()?;
                if attr == arm::CTRL_ITS_RESET {
                    let its = &mut self.itses[its];
                    // `vgic_its_reset`
                    let baser = its.baser.map(|register| register & !VALID);
                    *its = Its { base: its.base, baser, ..Its::new() };
                }
                Ok(())
            }
            arm::GROUP_ITS_REGS => {
                let value = value.ok_or(Errno::EFAULT)?;
                self.its_register(its, attr.attr)?.write(attr.attr, value)
            }
            _ => Err(Errno::ENXIO),
        }
    }

    pub(super) fn its_get_attr(&mut self, its: usize, attr: crate::DeviceAttr) -> Answer<u64> {
        match attr.group {
            arm::GROUP_ADDR if attr == arm::ADDR_ITS => Ok(self.itses[its].base.unwrap_or(u64::MAX)),
            arm::GROUP_ADDR => Err(Errno::ENODEV),
            arm::GROUP_ITS_REGS => Ok(self.its_register(its, attr.attr)?.read(attr.attr)),
            _ => Err(Errno::ENXIO),
        }
    }

    /// The checks of `vgic_its_attr_regs_access`, in its order.
    fn its_register(&mut self, its: usize, offset: u64) -> Answer<&mut Its> {
        let known = Its::check_offset(offset);
        if known == Err(Errno::EINVAL) {
            return Err(Errno::EINVAL);
        }
        self.lock_all_vcpus()?;
        let its = &mut self.itses[its];
        if its.base.is_none() {
            return Err(Errno::ENXIO);
        }
        known.map(|()| its)
    }

    /// `kvm_set_msi` and `vgic_its_inject_msi`: whether it arrived; an event that the guest has not mapped is blocked. A disabled LPI
    /// is none the less pending.
    pub(super) fn send_to_its(&mut self, message: MsiMessage, device_id: Option<DeviceId>) -> Answer<bool> {
        if self.itses.is_empty() {
            return Err(Errno::ENODEV);
        }
        let event = EventId::new(message.data);
        // `vgic_its_inject_cached_translation` takes the device ID's field as it is, valid or not: one that is not given is 0 there.
        let unchecked = (device_id.unwrap_or(DeviceId::new(0)), event);
        let its = self.itses.iter_mut().find(|its| its.holds(message.address));
        let (key, its) = match (its, device_id) {
            (Some(its), _) if its.cache.contains(&unchecked) => (unchecked, its),
            (_, None) | (None, _) => return Err(Errno::EINVAL),
            (Some(its), Some(device)) => ((device, event), its),
        };
        // `vgic_its_resolve_lpi`
        if !its.enabled {
            return Err(Errno::EBUSY);
        }
        let Some(&(intid, cpu)) = its.events.get(&key) else { return Ok(false) };
        if !self.vcpus.get(cpu).is_some_and(|vcpu| vcpu.lpis_enabled) {
            return Err(Errno::EBUSY);
        }
        its.cache.insert(key);
        let _unknown = self.touch(cpu, intid, |lpi| lpi.latch = true);
        if let Ok(intid) = Intid::new(intid) {
            self.count_raised(Interrupt::Intid(intid));
        }
        Ok(true)
    }

    /// DISCARD: the event is nobody's.
    pub(super) fn unmap_event(&mut self, its: usize, device: DeviceId, event: EventId) -> Answer {
        let its = self.itses.get_mut(its).ok_or(Errno::ENODEV)?;
        its.events.remove(&(device, event));
        its.cache.clear();
        Ok(())
    }

    /// `GICR_CTLR.EnableLPIs` (`vgic_mmio_write_v3r_ctlr`); without an ITS there are no LPIs to enable.
    pub(super) fn enable_lpis(&mut self, cpu: usize, enable: bool) {
        if self.itses.is_empty() || self.vcpus[cpu].lpis_enabled == enable {
            return;
        }
        self.vcpus[cpu].lpis_enabled = enable;
        let reads_table = self.vcpus[cpu].pendbaser & PENDING_TABLE_ZERO == 0;
        for lpi in self.lines.lpis.values_mut().filter(|lpi| lpi.target == cpu as u64) {
            if !enable {
                // `vgic_flush_pending_lpis`: those that the vCPU was to look at wait no longer.
                lpi.latch &= !lpi.queued;
                lpi.queued = false;
            } else if reads_table {
                // `vgic_enable_lpis`: what waits is what the guest's table says, and the model has no memory to be anything but zero.
                lpi.latch = false;
            }
        }
        if !enable {
            // `vgic_its_invalidate_all_caches`
            for its in &mut self.itses {
                its.cache.clear();
            }
        }
    }

    /// What the guest's driver does with a handful of commands and a table: from now on this event is this LPI of vCPU `cpu`, enabled.
    pub(super) fn map_event(
        &mut self,
        its: usize,
        device: DeviceId,
        event: EventId,
        lpi: Lpi,
        vcpu: u32,
    ) -> Answer {
        if !self.initialised() || self.gic.as_ref().is_none_or(|gic| gic.kind != DeviceKind::GicV3) {
            return Err(Errno::ENODEV);
        }
        let cpu = self.vcpu_by_id(vcpu).ok_or(Errno::EINVAL)?;
        let its = self.itses.get_mut(its).ok_or(Errno::ENODEV)?;
        if its.base.is_none() {
            return Err(Errno::ENXIO);
        }
        for register in its.baser.iter_mut().chain([&mut its.cbaser]) {
            *register |= VALID;
        }
        its.enabled = true;
        its.events.insert((device, event), (lpi.get(), cpu));
        self.enable_lpis(cpu, true);
        if let Some(gic) = &mut self.gic {
            gic.enabled = true;
        }
        self.lines.lpis.entry(lpi.get()).or_insert(Line::new()).target = cpu as u64;
        self.touch(cpu, lpi.get(), |line| line.enabled = true)
    }
}
