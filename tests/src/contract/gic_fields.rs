// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the distributor's and the redistributors' registers keep of what userspace writes, and what they say of themselves
//! (Linux 6.12, `arch/arm64/kvm/vgic/vgic-mmio.c`, `vgic-mmio-v2.c`, `vgic-mmio-v3.c`).

use irqchip::{DeviceAttr, DeviceKind, Errno, arm};

use super::fixture::{Machine, word};
use super::{Host, Irqchip};

const CTLR: u32 = 0;
const TYPER: u32 = 4;
const IIDR: u32 = 8;
const IGROUPR: u32 = 0x80;
const ISENABLER: u32 = 0x100;
const ICENABLER: u32 = 0x180;
const ISPENDR: u32 = 0x200;
const ICPENDR: u32 = 0x280;
const ISACTIVER: u32 = 0x300;
const ICACTIVER: u32 = 0x380;
const IPRIORITYR: u32 = 0x400;
const ITARGETSR: u32 = 0x800;
const ICFGR: u32 = 0xc00;
/// The redistributor's second frame.
const SGI_BASE: u32 = 0x1_0000;
const GICR_CTLR: u32 = 0;
const GICR_IIDR: u32 = 4;
const GICR_TYPER: u32 = 8;
const PIDR2: u32 = 0xffe8;
/// What GICD_IIDR says of a GIC of revision 2.
const REVISION_2: u32 = 0x4b00_243b;

/// A register for the private interrupts of a vCPU.
const fn private(kind: DeviceKind, cpu: u32, offset: u32) -> DeviceAttr {
    match kind {
        DeviceKind::GicV2 => arm::dist_reg(cpu, offset),
        _ => arm::redist_reg(cpu, SGI_BASE + offset),
    }
}

/// Neither zeros nor ones that are written there come to anything.
fn reads_as_zero(machine: &Machine, attr: DeviceAttr) {
    assert_eq!(machine.get_word(attr), Ok(0), "{attr:x?}");
    assert_eq!(machine.keeps(attr, u32::MAX), 0, "{attr:x?}");
}

/// It is no error. What lies across two registers is none.
pub fn what_is_no_register_reads_as_zero(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        for offset in [0x60, 0xe00, 0xfff0_0000, ISENABLER + 4 * 8] {
            reads_as_zero(&machine, arm::dist_reg(0, offset));
        }
        let priorities = arm::dist_reg(0, IPRIORITYR + 0x20);
        assert_eq!(machine.keeps(priorities, 0x0808_0808), 0x0808_0808);
        reads_as_zero(&machine, arm::dist_reg(0, IPRIORITYR + 0x22));
        assert_eq!(machine.get_word(priorities), Ok(0x0808_0808));
        if kind == DeviceKind::GicV2 {
            // A GICv3's.
            reads_as_zero(&machine, arm::dist_reg(0, 0x6100));
            reads_as_zero(&machine, arm::dist_reg(0, PIDR2));
            reads_as_zero(&machine, DeviceAttr { group: arm::GROUP_CPU_REGS, attr: 0xc });
        } else {
            // GICR_WAKER, a hole in each frame, and what only a distributor has.
            for offset in [0x14, 0x20, SGI_BASE + 0x84, SGI_BASE + ITARGETSR] {
                reads_as_zero(&machine, arm::redist_reg(0, offset));
            }
        }
    }
}

/// Group 0 cannot be enabled; a GICv3 has affinity routing and one security state, and says so.
pub fn a_distributor_is_enabled_by_one_bit(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        let (bit, fixed) = if kind == DeviceKind::GicV2 { (1, 0) } else { (2, 0x50) };
        let ctlr = arm::dist_reg(0, CTLR);
        assert_eq!(machine.get_word(ctlr), Ok(fixed));
        // But for nASSGIreq, which is a GICv4.1's.
        assert_eq!(machine.keeps(ctlr, !(1 << 8)), fixed | bit);
        assert_eq!(machine.keeps(ctlr, !bit & !(1 << 8)), fixed);
    }
}

/// SGIs are edge and enabled, PPIs level and disabled, and their triggers stay. Each vCPU has its own.
pub fn private_interrupts_are_each_vcpus_own(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_vcpus(host, kind, &[0, 1]);
        let of = |cpu, offset| private(kind, cpu, offset);
        for cpu in 0..2 {
            assert_eq!(machine.get_word(of(cpu, ISENABLER)), Ok(0xffff));
            assert_eq!(machine.keeps(of(cpu, ICFGR), 0), 0xaaaa_aaaa);
            assert_eq!(machine.keeps(of(cpu, ICFGR + 4), u32::MAX), 0);
        }
        for offset in [ISENABLER, ISPENDR, ISACTIVER] {
            let before = machine.get_word(of(0, offset)).unwrap();
            assert_eq!(machine.keeps(of(1, offset), 1 << 20) & (1 << 20), 1 << 20, "{offset:#x}");
            assert_eq!(machine.get_word(of(0, offset)), Ok(before), "{offset:#x}");
        }
        assert_eq!(machine.keeps(of(1, IPRIORITYR + 0x1c), 0x1020_3040), 0x1020_3040);
        assert_eq!(machine.get_word(of(0, IPRIORITYR + 0x1c)), Ok(0));
        // An SGI can be disabled.
        assert_eq!(machine.keeps(of(0, ICENABLER), 1), 0xfffe);
        assert_eq!(machine.get_word(of(1, ISENABLER)), Ok(1 << 20 | 0xffff));
    }
}

/// They are the redistributors'.
pub fn a_gicv3s_distributor_has_no_private_interrupts(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::Gic(DeviceKind::GicV3));
    let rows = [IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER];
    for offset in rows.into_iter().chain([IPRIORITYR + 0x1c, ICFGR + 4, 0xd00, 0x6000, 0x60f8]) {
        reads_as_zero(&machine, arm::dist_reg(0, offset));
    }
    // Targets are a GICv2's, and secure groups nobody's.
    reads_as_zero(&machine, arm::dist_reg(0, ITARGETSR + 0x20));
    reads_as_zero(&machine, arm::dist_reg(0, 0xd04));
}

/// Pending bits of a GICv2 too; a GICv3 restores those as a whole.
pub fn active_bits_are_set_and_cleared_apart(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        let active = (ISACTIVER, ICACTIVER);
        let rows = if kind == DeviceKind::GicV2 { vec![active, (ISPENDR, ICPENDR)] } else { vec![active] };
        for (set, clear) in rows {
            let (set, clear) = (arm::dist_reg(0, set + 4), arm::dist_reg(0, clear + 4));
            assert_eq!(machine.get_word(set), Ok(0));
            assert_eq!(machine.keeps(set, 0x8000_0003), 0x8000_0003);
            assert_eq!(machine.keeps(set, 4), 0x8000_0007);
            assert_eq!(machine.keeps(clear, 0x8000_0001), 6);
            assert_eq!(machine.get_word(set), Ok(6));
        }
    }
}

/// The upper five bits.
pub fn priorities_have_five_bits(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        for attr in [private(kind, 0, IPRIORITYR), arm::dist_reg(0, IPRIORITYR + 0xfc)] {
            assert_eq!(machine.get_word(attr), Ok(0));
            assert_eq!(machine.keeps(attr, 0xff07_0880), 0xf800_0880);
        }
    }
}

/// In bits 23–0 of GICD_IROUTER. There is no fourth level, and no "any CPU" (bit 31).
pub fn an_spi_is_routed_by_three_levels_of_affinity(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::Gic(DeviceKind::GicV3));
    let irouter = |intid: u32, half: u32| arm::dist_reg(0, 0x6000 + 8 * intid + 4 * half);
    assert_eq!(machine.get_word(irouter(32, 0)), Ok(0));
    assert_eq!(machine.keeps(irouter(32, 0), u32::MAX), 0x00ff_ffff);
    assert_eq!(machine.keeps(irouter(32, 1), 5), 0);
    assert_eq!(machine.get_word(irouter(32, 0)), Ok(0x00ff_ffff));
    assert_eq!(machine.get_word(irouter(33, 0)), Ok(0));
    assert_eq!(machine.keeps(irouter(255, 0), 1), 1);
    reads_as_zero(&machine, irouter(256, 0));
}

/// A bit for each vCPU, in the order of their creation; those for others are not kept. Of private interrupts it says whose they are.
pub fn a_gicv2s_targets_are_the_vcpus_that_there_are(host: &dyn Host) {
    let machine = Machine::with_vcpus(host, DeviceKind::GicV2, &[0, 5]);
    for (cpu, own) in [(0, 0x0101_0101), (5, 0x0202_0202)] {
        for offset in [ITARGETSR, ITARGETSR + 0x1c] {
            let attr = arm::dist_reg(cpu, offset);
            assert_eq!(machine.get_word(attr), Ok(own));
            assert_eq!(machine.keeps(attr, 0), own);
        }
    }
    let targets = arm::dist_reg(0, ITARGETSR + 0x20);
    assert_eq!(machine.get_word(targets), Ok(0));
    assert_eq!(machine.keeps(targets, 0xff02_01fc), 0x0302_0100);
}

/// Every interrupt is in group 0, and stays there until userspace has shown that it knows of revisions: by writing one.
pub fn a_gicv2s_groups_wait_for_the_revision(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::Gic(DeviceKind::GicV2));
    let groups = [arm::dist_reg(0, IGROUPR), arm::dist_reg(0, IGROUPR + 4)];
    for group in groups {
        reads_as_zero(&machine, group);
    }
    let iidr = arm::dist_reg(0, IIDR);
    machine.set(iidr, word(machine.get_word(iidr).unwrap())).unwrap();
    for group in groups {
        assert_eq!(machine.keeps(group, 5), 5);
        assert_eq!(machine.keeps(group, 6), 6);
    }
}

/// Until somebody says otherwise.
pub fn a_gicv3s_interrupts_come_in_group_1(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::Gic(DeviceKind::GicV3));
    for group in [private(DeviceKind::GicV3, 0, IGROUPR), arm::dist_reg(0, IGROUPR + 4)] {
        assert_eq!(machine.get_word(group), Ok(u32::MAX));
        assert_eq!(machine.keeps(group, 5), 5);
    }
    assert_eq!(machine.get_word(arm::dist_reg(0, IGROUPR + 8)), Ok(u32::MAX));
}

/// In bits 7–5 of GICD_TYPER, less one.
pub fn a_gicv2_tells_its_number_of_vcpus(host: &dyn Host) {
    for count in [1, 2, 8] {
        let ids: Vec<u32> = (0..count).collect();
        let machine = Machine::with_vcpus(host, DeviceKind::GicV2, &ids);
        let typer = machine.get_word(arm::dist_reg(0, TYPER)).unwrap();
        assert_eq!(typer, (count - 1) << 5 | (256 / 32 - 1));
        assert_eq!(machine.keeps(arm::dist_reg(0, TYPER), 0), typer);
    }
}

/// Architecture 3, KVM's product 'K' of Arm's; only the distributor has a revision.
pub fn a_gicv3_says_what_it_is(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::Gic(DeviceKind::GicV3));
    for (attr, value) in [
        (arm::dist_reg(0, PIDR2), 0x3b),
        (arm::dist_reg(0, PIDR2 + 4), 0),
        (arm::redist_reg(0, PIDR2), 0x3b),
        (arm::redist_reg(0, PIDR2 - 4), 0),
        (arm::redist_reg(0, GICR_IIDR), 0x4b00_043b),
        // GICD_STATUSR
        (arm::dist_reg(0, 0x10), u32::MAX),
    ] {
        assert_eq!(machine.get_word(attr), Ok(value), "{attr:x?}");
        assert_eq!(machine.keeps(attr, !value), value, "{attr:x?}");
    }
    // GICD_TYPER2 can be restored where it is the same.
    let typer2 = arm::dist_reg(0, 0xc);
    let value = machine.get_word(typer2).unwrap();
    assert_eq!(machine.set(typer2, word(value)), Ok(()));
    assert_eq!(machine.set(typer2, word(value ^ 1)), Err(Errno::EINVAL));
}

/// Its upper half; the redistributor's attributes are addressed by it.
pub fn a_redistributor_tells_its_vcpus_affinity(host: &dyn Host) {
    let machine = Machine::with_vcpus(host, DeviceKind::GicV3, &[0, 15, 16, 35]);
    for (id, affinity) in [(0, 0), (15, 15), (16, 0x100), (35, 0x203)] {
        let typer = [0, 4].map(|half| machine.get_word(arm::redist_reg(affinity, GICR_TYPER + half)));
        assert_eq!(typer[0].unwrap() >> 8, id);
        assert_eq!(typer[1], Ok(affinity));
    }
    assert_eq!(machine.get_word(arm::redist_reg(16, GICR_TYPER)), Err(Errno::EINVAL));
}

/// GICR_CTLR.CES and IR: LPIs can be disabled, and invalidated one by one.
pub fn revision_2_does_not_say_that_lpis_can_be_disabled(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::Gic(DeviceKind::GicV3));
    let ctlr = arm::redist_reg(0, GICR_CTLR);
    assert_eq!(machine.get_word(ctlr), Ok(6));
    machine.set(arm::dist_reg(0, IIDR), word(REVISION_2)).unwrap();
    assert_eq!(machine.get_word(ctlr), Ok(0));
}
