// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers of the CPU interfaces (Linux 6.12, `arch/arm64/kvm/vgic/vgic-mmio-v2.c`, `arch/arm64/kvm/vgic-sys-reg-v3.c`).

use irqchip::{DeviceAttr, DeviceKind, Errno, arm};

use super::Host;
use super::fixture::{Machine, long};

/// A register of a GICv2's CPU interface.
fn gicc(cpu: u32, offset: u32) -> DeviceAttr {
    DeviceAttr { group: arm::GROUP_CPU_REGS, attr: u64::from(cpu) << 32 | u64::from(offset) }
}

/// A system register of a GICv3's, by the encoding that `KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS` has for it.
fn icc(cpu: u32, encoding: u64) -> DeviceAttr {
    DeviceAttr { group: arm::GROUP_CPU_SYSREGS, attr: u64::from(cpu) << 32 | encoding }
}

const PMR: u64 = 0xc230;
const BPR0: u64 = 0xc643;
const AP0R: u64 = 0xc644;
const AP1R: u64 = 0xc648;
const BPR1: u64 = 0xc663;
const CTLR: u64 = 0xc664;
const SRE: u64 = 0xc665;
const IGRPEN0: u64 = 0xc666;
const IGRPEN1: u64 = 0xc667;

/// ICC_CTLR: one binary point for both groups; EOI does not deactivate.
const CBPR: u64 = 1;
const EOI_MODE: u64 = 2;
const PRIORITY_BITS: u32 = 8;
const ID_BITS: u32 = 11;
const SEIS: u64 = 1 << 14;
const A3V: u64 = 1 << 15;

/// What a system register holds after this was written.
fn keeps(machine: &Machine, attr: DeviceAttr, value: u64) -> u64 {
    machine.set(attr, long(value)).unwrap();
    machine.get(attr).unwrap()
}

/// How many bits of priority ICC_CTLR tells of.
fn priority_bits(ctlr: u64) -> u64 {
    ((ctlr >> PRIORITY_BITS) & 7) + 1
}

/// Each vCPU its own. The mask of priorities is its upper five bits, lowered, which is not where the guest has them.
pub fn a_gicv2s_cpu_interface_keeps_the_bits_that_it_has(host: &dyn Host) {
    let machine = Machine::with_vcpus(host, DeviceKind::GicV2, &[0, 1]);
    // GICC_CTLR, GICC_PMR, GICC_BPR, GICC_ABPR, GICC_APR0.
    let registers = [(0, 0x21f), (4, 0x1f), (8, 7), (0x1c, 7), (0xd0, u32::MAX)];
    for (offset, bits) in registers {
        assert_eq!(machine.get_word(gicc(0, offset)), Ok(0), "{offset:#x}");
        assert_eq!(machine.keeps(gicc(0, offset), u32::MAX), bits, "{offset:#x}");
        assert_eq!(machine.get_word(gicc(1, offset)), Ok(0), "{offset:#x}");
        assert_eq!(machine.keeps(gicc(1, offset), 0xa5a5_a5a5), 0xa5a5_a5a5 & bits, "{offset:#x}");
    }
    for (offset, bits) in registers {
        assert_eq!(machine.get_word(gicc(0, offset)), Ok(bits), "{offset:#x}");
    }
    assert_eq!(machine.keeps(gicc(0, 0xfc), 0), 0x04b2_043b, "KVM's, version 2, Arm");
}

/// Those that a GICv3 saves; there are no others.
pub fn a_gicv3s_cpu_interface_has_system_registers(host: &dyn Host) {
    let machine = Machine::with_vcpus(host, DeviceKind::GicV3, &[0]);
    let known: Vec<u64> =
        (0..0x1_0000).filter(|encoding| machine.gic().has_attr(icc(0, *encoding)).unwrap()).collect();
    let expected: Vec<u64> = [PMR].into_iter().chain(BPR0..AP1R + 4).chain(BPR1..=IGRPEN1).collect();
    assert_eq!(known, expected);
    for encoding in [PMR - 1, PMR + 1, BPR0 - 1, AP1R + 4, BPR1 - 1, IGRPEN1 + 1] {
        assert_eq!(machine.get(icc(0, encoding)), Err(Errno::ENOENT), "{encoding:#x}");
        assert_eq!(machine.set(icc(0, encoding), long(0)), Err(Errno::ENOENT), "{encoding:#x}");
    }
    assert_eq!(machine.get(icc(1, PMR)), Err(Errno::EINVAL), "there is no such vCPU");
}

/// Each vCPU its own.
pub fn a_gicv3s_cpu_interface_keeps_the_bits_that_it_has(host: &dyn Host) {
    let machine = Machine::with_vcpus(host, DeviceKind::GicV3, &[0, 1]);
    let active = 0xffff_ffff;
    let registers =
        [(PMR, 0xff), (BPR0, 7), (BPR1, 7), (AP0R, active), (AP1R, active), (IGRPEN0, 1), (IGRPEN1, 1)];
    for (encoding, bits) in registers {
        assert_eq!(machine.get(icc(0, encoding)), Ok(0), "{encoding:#x}");
        assert_eq!(keeps(&machine, icc(0, encoding), u64::MAX), bits, "{encoding:#x}");
        assert_eq!(machine.get(icc(1, encoding)), Ok(0), "{encoding:#x}");
        assert_eq!(
            keeps(&machine, icc(1, encoding), 0xa5a5_a5a5_a5a5_a5a5),
            0xa5a5_a5a5 & bits,
            "{encoding:#x}"
        );
    }
    for (encoding, bits) in registers {
        assert_eq!(machine.get(icc(0, encoding)), Ok(bits), "{encoding:#x}");
    }
}

/// One for 32 levels, two for 64, four for 128; `EINVAL` for those beyond.
pub fn there_are_as_many_active_priorities_as_the_host_has(host: &dyn Host) {
    let machine = Machine::with_vcpus(host, DeviceKind::GicV3, &[0]);
    let count = match priority_bits(machine.get(icc(0, CTLR)).unwrap()) {
        7 => 4,
        6 => 2,
        _ => 1,
    };
    for first in [AP0R, AP1R] {
        for n in 0..4 {
            let attr = icc(0, first + n);
            if n < count {
                assert_eq!(keeps(&machine, attr, 0x1000 + first + n), 0x1000 + first + n);
            } else {
                assert_eq!(machine.get(attr), Err(Errno::EINVAL));
                assert_eq!(machine.set(attr, long(0)), Err(Errno::EINVAL));
            }
        }
        assert_eq!(machine.get(icc(0, first)), Ok(0x1000 + first));
    }
}

/// A guest must find what it had: ICC_CTLR refuses what the host has not, and lets two bits be chosen. Fewer bits of priority are taken,
/// and then the others are gone, even if something else is refused.
pub fn a_gicv3s_control_register_tells_what_the_host_has(host: &dyn Host) {
    let machine = Machine::with_vcpus(host, DeviceKind::GicV3, &[0, 1]);
    let ctlr = icc(0, CTLR);
    let host = machine.get(ctlr).unwrap();
    assert_eq!(host & !(SEIS | A3V | 7 << PRIORITY_BITS | 7 << ID_BITS), 0);
    for chosen in [CBPR, EOI_MODE, CBPR | EOI_MODE, 0] {
        assert_eq!(keeps(&machine, ctlr, host | chosen), host | chosen);
        assert_eq!(machine.get(icc(1, CTLR)), Ok(host));
    }
    assert_eq!(keeps(&machine, ctlr, host | 1 << 6), host, "PMHE is none of them");
    for wrong in [host ^ SEIS, host ^ A3V, host + (1 << PRIORITY_BITS), host + (1 << ID_BITS)] {
        assert_eq!(machine.set(ctlr, long(wrong | CBPR)), Err(Errno::EINVAL), "{wrong:#x}");
        assert_eq!(machine.get(ctlr), Ok(host), "{wrong:#x}");
    }
    let fewer = host - (1 << PRIORITY_BITS);
    assert_eq!(machine.set(ctlr, long((fewer | CBPR) ^ A3V)), Err(Errno::EINVAL));
    assert_eq!(machine.get(ctlr), Ok(fewer));
    assert_eq!(machine.set(ctlr, long(host)), Err(Errno::EINVAL));
    assert_eq!(machine.get(icc(1, CTLR)), Ok(host));
}

/// ICC_BPR1 is then one more than ICC_BPR0, seven at most, and does not take what is written.
pub fn a_common_binary_point_is_group_0s(host: &dyn Host) {
    let machine = Machine::with_vcpus(host, DeviceKind::GicV3, &[0]);
    let host = machine.get(icc(0, CTLR)).unwrap();
    machine.set(icc(0, BPR1), long(2)).unwrap();
    assert_eq!(keeps(&machine, icc(0, CTLR), host | CBPR), host | CBPR);
    for (zero, one) in [(0, 1), (3, 4), (6, 7), (7, 7)] {
        machine.set(icc(0, BPR0), long(zero)).unwrap();
        assert_eq!(keeps(&machine, icc(0, BPR1), 5), one);
    }
    machine.set(icc(0, CTLR), long(host)).unwrap();
    assert_eq!(machine.get(icc(0, BPR1)), Ok(2));
}

/// And without bypass: ICC_SRE is all ones, and takes nothing else for restored.
pub fn a_gicv3_is_reached_by_system_registers_only(host: &dyn Host) {
    let machine = Machine::with_vcpus(host, DeviceKind::GicV3, &[0]);
    assert_eq!(machine.get(icc(0, SRE)), Ok(7));
    assert_eq!(keeps(&machine, icc(0, SRE), 1), 7);
    assert_eq!(machine.set(icc(0, SRE), long(6)), Err(Errno::EINVAL));
    assert_eq!(machine.get(icc(0, SRE)), Ok(7));
}
