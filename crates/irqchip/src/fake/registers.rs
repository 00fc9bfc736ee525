// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The GIC's registers as userspace reads and writes them for save and restore (Linux 6.12, `arch/arm64/kvm/vgic/vgic-mmio*.c`).
//!
//! A CPU interface's are in `cpu_interface.rs`.

use irq_types::TriggerMode;

use super::base_registers::{PENDING_TABLE_ZERO, half, sanitise_pendbaser, sanitise_propbaser, with_half};
use super::cpu_interface::has_sysreg;
use super::lines::Line;
use super::state::{Answer, PRIVATE, State};
use crate::{DeviceAttr, DeviceKind, Errno, arm};

/// Bits of `GICD_IIDR` that userspace may choose.
const REVISION: u32 = 0xf000;

/// A row of registers with a field for each interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    Priority,
    Config,
    Target,
    /// Reads as zero, ignores writes.
    Zero,
}

/// First offset, bits for each interrupt, meaning. The same rows stand in a redistributor's second frame, for the private interrupts.
const ROWS: [(u32, u32, Row); 11] = [
    (0x080, 1, Row::Group),
    (0x100, 1, Row::SetEnable),
    (0x180, 1, Row::ClearEnable),
    (0x200, 1, Row::SetPending),
    (0x280, 1, Row::ClearPending),
    (0x300, 1, Row::SetActive),
    (0x380, 1, Row::ClearActive),
    (0x400, 8, Row::Priority),
    (0x800, 8, Row::Target),
    (0xc00, 2, Row::Config),
    (0xd00, 1, Row::Zero),
];

/// Where the row of `GICD_IROUTER` begins, of 64 bits for each interrupt.
const IROUTER: u32 = 0x6000;

/// The row that holds this offset, the first interrupt in the 32-bit register there, and how many share it.
fn row_at(offset: u32) -> Option<(Row, u32, u32)> {
    ROWS.iter().find_map(|&(base, bits, row)| {
        let into = offset.checked_sub(base)?;
        (into < bits * 1024 / 8).then(|| (row, into * 8 / bits, 32 / bits))
    })
}

impl Row {
    /// The field of one interrupt. `v3` because a GICv3 reports the latch alone as pending: the wire's level is saved separately.
    fn read(self, line: &Line, v3: bool) -> u32 {
        match self {
            Self::Group => u32::from(line.group),
            Self::SetEnable | Self::ClearEnable => u32::from(line.enabled),
            Self::SetPending if v3 => u32::from(line.latch),
            Self::ClearPending if v3 => 0,
            Self::SetPending | Self::ClearPending => u32::from(line.pending()),
            Self::SetActive | Self::ClearActive => u32::from(line.active),
            Self::Priority => u32::from(line.priority),
            Self::Target => u32::try_from(line.target & 0xff).unwrap_or(0),
            Self::Config => match line.config {
                TriggerMode::Edge => 2,
                TriggerMode::Level => 0,
            },
            Self::Zero => 0,
        }
    }

    /// Whether writing this field ends with a look at who is to take the interrupt.
    fn queues(self, field: u32) -> bool {
        match self {
            Self::Group => true,
            Self::SetEnable | Self::SetPending | Self::SetActive => field != 0,
            _ => false,
        }
    }

    fn write(self, line: &mut Line, field: u32, intid: u32, v3: bool) {
        match self {
            Self::Group => line.group = field != 0,
            Self::SetEnable => line.enabled |= field != 0,
            Self::ClearEnable => line.enabled &= field == 0,
            // Of a GICv3, restoring ISPENDR sets *and* clears, and ICPENDR does nothing.
            Self::SetPending if v3 => line.latch = field != 0,
            Self::ClearPending if v3 => {}
            Self::SetPending => line.latch |= field != 0,
            Self::ClearPending => line.latch &= field == 0,
            Self::SetActive => line.active |= field != 0,
            Self::ClearActive => line.active &= field == 0,
            // The vGIC keeps the upper five bits (`VGIC_PRI_BITS`).
            Self::Priority => line.priority = u8::try_from(field & 0xf8).unwrap_or(0),
            // Private interrupts keep whose and what they are.
            Self::Target if intid >= PRIVATE => line.target = u64::from(field),
            Self::Config if intid >= PRIVATE => {
                line.config = if field & 2 != 0 { TriggerMode::Edge } else { TriggerMode::Level };
            }
            Self::Target | Self::Config | Self::Zero => {}
        }
    }
}

/// Which register a 64-bit attribute names.
#[derive(Debug, Clone, Copy)]
struct Place {
    cpu: usize,
    group: u32,
    offset: u32,
}

impl State {
    fn is_v3(&self) -> bool {
        self.gic.as_ref().is_some_and(|gic| gic.kind == DeviceKind::GicV3)
    }

    fn interrupts(&self) -> u32 {
        self.gic.as_ref().map_or(0, |gic| gic.spis) + PRIVATE
    }

    /// `vgic_v2_parse_attr`, `vgic_v3_parse_attr`: whose register. Without that vCPU, `EINVAL`; a GICv3's distributor registers are
    /// vCPU 0's.
    fn place(&self, attr: DeviceAttr) -> Answer<Place> {
        let selector = u32::try_from(attr.attr >> 32).unwrap_or(0);
        let offset = u32::try_from(attr.attr & 0xffff_ffff).unwrap_or(0);
        let cpu = if !self.is_v3() {
            self.vcpu_by_id(selector & 0xff)
        } else if attr.group == arm::GROUP_DIST_REGS {
            (!self.vcpus.is_empty()).then_some(0)
        } else {
            self.vcpus.iter().position(|vcpu| vcpu.affinity() == selector)
        };
        Ok(Place { cpu: cpu.ok_or(Errno::EINVAL)?, group: attr.group, offset })
    }

    /// `vgic_v2_has_attr_regs`, `vgic_v3_has_attr_regs`.
    pub(super) fn has_register(&self, attr: DeviceAttr) -> Answer {
        let place = self.place(attr)?;
        if place.group == arm::GROUP_CPU_SYSREGS {
            return has_sysreg(place.offset);
        }
        if place.offset % 4 != 0 || !self.register_exists(place) {
            return Err(Errno::ENXIO);
        }
        Ok(())
    }

    fn register_exists(&self, place: Place) -> bool {
        let in_row = |offset| row_at(offset).is_some_and(|(_, first, _)| first < self.interrupts());
        match (place.group, self.is_v3(), place.offset) {
            (arm::GROUP_DIST_REGS, true, 0..0x14 | 0xffd0..0x1_0000) => true,
            (arm::GROUP_DIST_REGS, true, IROUTER..0x8000) => (place.offset - IROUTER) / 8 < self.interrupts(),
            (arm::GROUP_DIST_REGS, false, 0..0xc | 0xf00 | 0xf10..0xf30) => true,
            (arm::GROUP_DIST_REGS, v3, offset) => in_row(offset) && (v3 || offset < 0xd00),
            (arm::GROUP_CPU_REGS, false, 0 | 4 | 8 | 0x1c | 0xd0..0xe0 | 0xfc) => true,
            // GICR_STATUSR (0x10) is in the kernel's table, but out of order, and the table is searched by bisection.
            (arm::GROUP_REDIST_REGS, true, 0x10) => false,
            (arm::GROUP_REDIST_REGS, true, 0..0x18 | 0x70..0x80 | 0xa0..0xa8 | 0xb0..0xb8 | 0xc0) => true,
            (arm::GROUP_REDIST_REGS, true, 0xffd0..0x1_0000) => true,
            (arm::GROUP_REDIST_REGS, true, 0x1_0e00) => true,
            (arm::GROUP_REDIST_REGS, true, offset @ 0x1_0080..0x1_0e00) => {
                row_at(offset - 0x1_0000).is_some_and(|(row, first, _)| first < PRIVATE && row != Row::Target)
            }
            _ => false,
        }
    }

    /// The checks that stand before every access: a GICv2 is initialised by it, a GICv3 must have been.
    fn admit_register(&mut self, attr: DeviceAttr) -> Answer<Place> {
        let place = self.place(attr)?;
        self.lock_all_vcpus()?;
        self.lazy_init()?;
        Ok(place)
    }

    pub(super) fn read_register(&mut self, attr: DeviceAttr) -> Answer<u64> {
        let place = self.admit_register(attr)?;
        Ok(match place.group {
            arm::GROUP_LEVEL_INFO => u64::from(self.read_levels(place)?),
            arm::GROUP_CPU_SYSREGS => self.vcpus[place.cpu].interface.read_sysreg(place.offset)?,
            arm::GROUP_CPU_REGS => u64::from(self.vcpus[place.cpu].interface.read(place.offset)),
            _ => u64::from(self.read_word(place)),
        })
    }

    pub(super) fn write_register(&mut self, attr: DeviceAttr, value: u64) -> Answer {
        let place = self.admit_register(attr)?;
        let word = u32::try_from(value & 0xffff_ffff).unwrap_or(0);
        match place.group {
            arm::GROUP_LEVEL_INFO => self.write_levels(place, word),
            arm::GROUP_CPU_SYSREGS => self.vcpus[place.cpu].interface.write_sysreg(place.offset, value),
            arm::GROUP_CPU_REGS => {
                self.vcpus[place.cpu].interface.write(place.offset, word);
                Ok(())
            }
            _ => self.write_word(place, word),
        }
    }

    /// `GICD_IIDR`: product 'K', revision, implementer Arm.
    fn iidr(&self) -> u32 {
        let revision = self.gic.as_ref().map_or(0, |gic| gic.revision);
        (0x4b << 24) | (revision << 12) | 0x43b
    }

    fn read_word(&mut self, place: Place) -> u32 {
        let v3 = self.is_v3();
        let enabled = self.gic.as_ref().is_some_and(|gic| gic.enabled);
        match (place.group, place.offset) {
            (arm::GROUP_DIST_REGS, 0) if v3 => (u32::from(enabled) << 1) | (1 << 4) | (1 << 6),
            (arm::GROUP_DIST_REGS, 0) => u32::from(enabled),
            (arm::GROUP_DIST_REGS, 4) => {
                let lines = (self.interrupts() >> 5) - 1;
                let cpus = u32::try_from(self.vcpus.len()).unwrap_or(0).saturating_sub(1);
                match (v3, self.itses.is_empty()) {
                    (false, _) => lines | (cpus << 5),
                    // 10 bits of INTID, or with an ITS 16 and LPIs.
                    (true, true) => lines | (9 << 19),
                    (true, false) => lines | (15 << 19) | (1 << 17),
                }
            }
            (arm::GROUP_DIST_REGS, 8) => self.iidr(),
            // GICD_STATUSR reads as ones.
            (arm::GROUP_DIST_REGS, 0x10) if v3 => u32::MAX,
            // Without the revision (`vgic_mmio_read_v3r_iidr`).
            (arm::GROUP_REDIST_REGS, 4) => (0x4b << 24) | 0x43b,
            (arm::GROUP_REDIST_REGS, 0) => {
                // CES and IR are there from revision 3 on (`vgic_mmio_read_v3r_ctlr`).
                let features = if self.gic.as_ref().is_some_and(|gic| gic.revision >= 3) { 6 } else { 0 };
                u32::from(self.vcpus[place.cpu].lpis_enabled) | features
            }
            (arm::GROUP_REDIST_REGS, 8) => {
                let lpis = u32::from(!self.itses.is_empty());
                let last = u32::from(self.is_last_redistributor(place.cpu)) << 4;
                lpis | last | ((self.vcpus[place.cpu].id & 0xffff) << 8)
            }
            (arm::GROUP_REDIST_REGS, 0xc) => self.vcpus[place.cpu].affinity(),
            (arm::GROUP_DIST_REGS | arm::GROUP_REDIST_REGS, 0xffe8) if v3 => 0x3b,
            (arm::GROUP_REDIST_REGS, 0x70 | 0x74) => half(self.propbaser, place.offset),
            (arm::GROUP_REDIST_REGS, 0x78 | 0x7c) => {
                half(self.vcpus[place.cpu].pendbaser & !PENDING_TABLE_ZERO, place.offset)
            }
            (arm::GROUP_DIST_REGS, offset @ IROUTER..0x8000) if v3 => {
                let intid = (offset - IROUTER) / 8;
                let target =
                    self.line(place.cpu, intid).filter(|_| offset % 8 == 0).map_or(0, |line| line.target);
                u32::try_from(target).unwrap_or(0)
            }
            _ => self.read_row(place),
        }
    }

    fn write_word(&mut self, place: Place, value: u32) -> Answer {
        let v3 = self.is_v3();
        match (place.group, place.offset) {
            (arm::GROUP_DIST_REGS, 0) => {
                if let Some(gic) = &mut self.gic {
                    gic.enabled = value & if v3 { 2 } else { 1 } != 0;
                }
            }
            (arm::GROUP_DIST_REGS, 8) => {
                let revision = (value & REVISION) >> 12;
                if (self.iidr() ^ value) & !REVISION != 0 || !(2..=3).contains(&revision) {
                    return Err(Errno::EINVAL);
                }
                if let Some(gic) = &mut self.gic {
                    gic.revision = revision;
                    gic.groups_writable = true;
                }
            }
            (arm::GROUP_REDIST_REGS, 0) => self.enable_lpis(place.cpu, value & 1 != 0),
            // GICD_TYPER2 must be what it reads as: zero without GICv4.1 (`vgic_mmio_uaccess_write_v3_misc`).
            (arm::GROUP_DIST_REGS, 0xc) if v3 && value != 0 => return Err(Errno::EINVAL),
            // Both base registers are read-only while LPIs are enabled. The property table is one for the VM.
            (arm::GROUP_REDIST_REGS, 0x70 | 0x74) if !self.vcpus[place.cpu].lpis_enabled => {
                self.propbaser = sanitise_propbaser(with_half(self.propbaser, place.offset, value));
            }
            (arm::GROUP_REDIST_REGS, 0x78 | 0x7c) if !self.vcpus[place.cpu].lpis_enabled => {
                let pendbaser = &mut self.vcpus[place.cpu].pendbaser;
                *pendbaser = sanitise_pendbaser(with_half(*pendbaser, place.offset, value));
            }
            (arm::GROUP_DIST_REGS, offset @ IROUTER..0x8000) if v3 => {
                let intid = (offset - IROUTER) / 8;
                if let Some(line) = self.line(place.cpu, intid).filter(|_| intid >= PRIVATE) {
                    // Affinity level 3 is not implemented, and neither is "any CPU" (bit 31): both read as zero (`vgic_mmio_write_irouter`).
                    if offset % 8 == 0 {
                        line.target = u64::from(value & 0xff_ffff);
                    }
                }
            }
            _ => self.write_row(place, value),
        }
        Ok(())
    }

    /// The row that a register belongs to, with the interrupts in it; none for a private interrupt in a GICv3's distributor.
    fn row(&self, place: Place) -> Option<(Row, u32, u32)> {
        let v3 = self.is_v3();
        let (row, first, count) = match place.group {
            arm::GROUP_REDIST_REGS => row_at(place.offset.checked_sub(0x1_0000)?)?,
            _ => row_at(place.offset)?,
        };
        let private_frame = place.group == arm::GROUP_REDIST_REGS;
        let here = if private_frame {
            first < PRIVATE
        } else {
            first < self.interrupts() && (!v3 || first >= PRIVATE)
        };
        (here && place.offset.is_multiple_of(4) && !(v3 && row == Row::Target)).then_some((row, first, count))
    }

    fn read_row(&mut self, place: Place) -> u32 {
        let v3 = self.is_v3();
        let Some((row, first, count)) = self.row(place) else { return 0 };
        (0..count).fold(0, |value, n| {
            let field = self.line(place.cpu, first + n).map_or(0, |line| row.read(line, v3));
            value | (field << (n * 32 / count))
        })
    }

    fn write_row(&mut self, place: Place, value: u32) {
        let v3 = self.is_v3();
        let Some((row, first, count)) = self.row(place) else { return };
        if row == Row::Group && !self.gic.as_ref().is_some_and(|gic| gic.groups_writable) {
            return;
        }
        let cpus = (1u32 << self.vcpus.len().min(8)) - 1;
        let bits = 32 / count;
        for n in 0..count {
            let mut field = (value >> (n * bits)) & (u32::MAX >> (32 - bits));
            if row == Row::Target {
                // Of the CPUs that there are (`vgic_mmio_write_target`).
                field &= cpus;
            }
            let on = self.distributor_enabled();
            if let Some(line) = self.line(place.cpu, first + n) {
                row.write(line, field, first + n, v3);
                if row.queues(field) {
                    line.queue(on);
                }
            }
        }
    }

    /// `vgic_v3_line_level_info_uaccess`: bits 31–10 of the attribute say what is asked (0: levels), 9–0 the first of 32 INTIDs.
    fn levels(place: Place) -> Answer<u32> {
        let intid = place.offset & 0x3ff;
        if place.offset >> 10 != 0 || !intid.is_multiple_of(32) { Err(Errno::EINVAL) } else { Ok(intid) }
    }

    fn read_levels(&mut self, place: Place) -> Answer<u32> {
        let first = Self::levels(place)?;
        Ok((0..32).filter(|n| first + n >= 16).fold(0, |value, n| {
            let high = self
                .line(place.cpu, first + n)
                .is_some_and(|line| line.config == TriggerMode::Level && line.high);
            value | (u32::from(high) << n)
        }))
    }

    fn write_levels(&mut self, place: Place, value: u32) -> Answer {
        let first = Self::levels(place)?;
        for n in (0..32).filter(|n| first + n >= 16) {
            // Whatever the trigger is: the levels may be restored before the configuration.
            let on = self.distributor_enabled();
            if let Some(line) = self.line(place.cpu, first + n) {
                line.high = value & (1 << n) != 0;
                if line.high {
                    line.queue(on);
                }
            }
        }
        Ok(())
    }
}
