// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vCPU's interface to the GIC, as far as userspace saves and restores it: the registers of a GICv2 (Linux 6.12,
//! `arch/arm64/kvm/vgic/vgic-mmio-v2.c`) and the system registers of a GICv3 (`arch/arm64/kvm/vgic-sys-reg-v3.c`).
//!
//! None of it keeps an interrupt from the model's guest: its driver lets everything in.

use super::state::Answer;
use crate::Errno;

/// What the model's hardware has (`ICH_VTR_EL2`): five bits of priority, INTIDs of 16 bits, no SEIs, affinity 3.
const PRIORITY_BITS: u32 = 5;
const ID_BITS: u64 = 0;
const SEIS: u64 = 0;
const A3V: u64 = 1;

/// `struct vgic_vmcr`, and what goes with it.
#[derive(Debug, Clone)]
pub(super) struct CpuInterface {
    /// GICC_CTLR of a GICv2.
    control: u32,
    mask: u8,
    /// Where group priority ends, of group 0 and of group 1.
    points: [u8; 2],
    /// ICC_IGRPEN0 and 1.
    groups: [bool; 2],
    /// ICC_CTLR.CBPR: group 1 uses group 0's binary point.
    common_point: bool,
    eoi_mode: bool,
    /// ICC_AP0R and ICC_AP1R.
    active: [[u32; 4]; 2],
    priority_bits: u32,
}

/// A system register: op0 in bits 15–14 of the encoding, op1 13–11, CRn 10–7, CRm 6–3, op2 2–0.
#[derive(Debug, Clone, Copy)]
enum Sysreg {
    Pmr,
    /// Of a group.
    Bpr(usize),
    /// Of a group; one of four.
    Active(usize, usize),
    Ctlr,
    Sre,
    /// Of a group.
    Enable(usize),
}

impl Sysreg {
    /// `gic_v3_icc_reg_descs`, found by what a register's number has bits for (`attr_to_id`).
    fn new(encoding: u32) -> Option<Self> {
        const fn encode(crn: u32, crm: u32, op2: u32) -> u32 {
            (3 << 14) | (crn << 7) | (crm << 3) | op2
        }
        const PMR: u32 = encode(4, 6, 0);
        const BPR0: u32 = encode(12, 8, 3);
        const AP0R0: u32 = encode(12, 8, 4);
        const AP0R3: u32 = encode(12, 8, 7);
        const AP1R0: u32 = encode(12, 9, 0);
        const AP1R3: u32 = encode(12, 9, 3);
        const BPR1: u32 = encode(12, 12, 3);
        const CTLR: u32 = encode(12, 12, 4);
        const SRE: u32 = encode(12, 12, 5);
        const IGRPEN0: u32 = encode(12, 12, 6);
        const IGRPEN1: u32 = encode(12, 12, 7);
        let index = (encoding & 3) as usize;
        Some(match encoding & 0xffff {
            PMR => Self::Pmr,
            BPR0 => Self::Bpr(0),
            BPR1 => Self::Bpr(1),
            AP0R0..=AP0R3 => Self::Active(0, index),
            AP1R0..=AP1R3 => Self::Active(1, index),
            CTLR => Self::Ctlr,
            SRE => Self::Sre,
            IGRPEN0 => Self::Enable(0),
            IGRPEN1 => Self::Enable(1),
            _ => return None,
        })
    }
}

/// Whether a GICv3's interface has this system register (`vgic_v3_has_cpu_sysregs_attr`).
pub(super) fn has_sysreg(encoding: u32) -> Answer {
    Sysreg::new(encoding).map(|_| ()).ok_or(Errno::ENXIO)
}

/// The lowest bits of a value.
fn low(value: u64, mask: u8) -> u8 {
    u8::try_from(value & u64::from(mask)).unwrap_or(0)
}

impl CpuInterface {
    /// Everything is zero (`vgic_v2_enable`, `vgic_v3_enable`).
    pub(super) const fn new() -> Self {
        Self {
            control: 0,
            mask: 0,
            points: [0; 2],
            groups: [false; 2],
            common_point: false,
            eoi_mode: false,
            active: [[0; 4]; 2],
            priority_bits: PRIORITY_BITS,
        }
    }

    /// `vgic_mmio_read_vcpuif`, `vgic_mmio_read_apr`.
    pub(super) fn read(&self, offset: u32) -> u32 {
        match offset {
            0 => self.control,
            // The ABI has the upper five bits of the mask only, lowered.
            4 => u32::from(self.mask >> 3),
            8 => u32::from(self.points[0]),
            0x1c => u32::from(self.points[1]),
            0xd0 => self.active[1][0],
            // Product 'K', version 2, implementer Arm.
            0xfc => (0x4b << 20) | (2 << 16) | 0x43b,
            _ => 0,
        }
    }

    /// `vgic_mmio_write_vcpuif`, `vgic_mmio_write_apr`.
    pub(super) fn write(&mut self, offset: u32, value: u32) {
        match offset {
            // Both groups, AckCtl, FIQEn, CBPR; EOImodeNS.
            0 => self.control = value & 0x21f,
            4 => self.mask = low(u64::from(value), 0x1f) << 3,
            8 => self.points[0] = low(u64::from(value), 7),
            0x1c => self.points[1] = low(u64::from(value), 7),
            // One register suffices for 32 levels of priority; the other three are not there.
            0xd0 => self.active[1][0] = value,
            _ => {}
        }
    }

    /// `vgic_v3_max_apr_idx`.
    const fn last_active(&self) -> usize {
        match self.priority_bits {
            7 => 3,
            6 => 1,
            _ => 0,
        }
    }

    /// `get_gic_*`.
    pub(super) fn read_sysreg(&self, encoding: u32) -> Answer<u64> {
        Ok(match Sysreg::new(encoding).ok_or(Errno::ENOENT)? {
            Sysreg::Pmr => u64::from(self.mask),
            Sysreg::Bpr(1) if self.common_point => u64::from(self.points[0] + 1).min(7),
            Sysreg::Bpr(group) => u64::from(self.points[group]),
            Sysreg::Active(_, n) if n > self.last_active() => return Err(Errno::EINVAL),
            Sysreg::Active(group, n) => u64::from(self.active[group][n]),
            Sysreg::Ctlr => {
                u64::from(self.common_point)
                    | (u64::from(self.eoi_mode) << 1)
                    | (u64::from(self.priority_bits - 1) << 8)
                    | (ID_BITS << 11)
                    | (SEIS << 14)
                    | (A3V << 15)
            }
            // No bypass, and system registers only.
            Sysreg::Sre => 7,
            Sysreg::Enable(group) => u64::from(self.groups[group]),
        })
    }

    /// `set_gic_*`.
    pub(super) fn write_sysreg(&mut self, encoding: u32, value: u64) -> Answer {
        match Sysreg::new(encoding).ok_or(Errno::ENOENT)? {
            Sysreg::Pmr => self.mask = low(value, 0xff),
            Sysreg::Bpr(1) if self.common_point => {}
            Sysreg::Bpr(group) => self.points[group] = low(value, 7),
            Sysreg::Active(_, n) if n > self.last_active() => return Err(Errno::EINVAL),
            Sysreg::Active(group, n) => {
                self.active[group][n] = u32::try_from(value & 0xffff_ffff).unwrap_or(0);
            }
            Sysreg::Ctlr => {
                let priority_bits = u32::from(low(value >> 8, 7)) + 1;
                if priority_bits > self.priority_bits {
                    return Err(Errno::EINVAL);
                }
                // What follows may be refused, and this stays.
                self.priority_bits = priority_bits;
                let wrong =
                    (value >> 11) & 7 > ID_BITS || (value >> 14) & 1 != SEIS || (value >> 15) & 1 != A3V;
                if wrong {
                    return Err(Errno::EINVAL);
                }
                self.common_point = value & 1 != 0;
                self.eoi_mode = value & 2 != 0;
            }
            Sysreg::Sre if value & 1 == 0 => return Err(Errno::EINVAL),
            Sysreg::Sre => {}
            Sysreg::Enable(group) => self.groups[group] = value & 1 != 0,
        }
        Ok(())
    }
}
