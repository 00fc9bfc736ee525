// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers for save and restore (Linux 6.12, `arch/arm64/kvm/vgic/vgic-mmio.c`, `vgic-mmio-v2.c`, `vgic-mmio-v3.c`).

use irq_types::TriggerMode;
use irqchip::{DeviceAttr, DeviceKind, Errno, arm};

use super::fixture::{Machine, REDISTRIBUTORS, long, word};
use super::{Host, Irqchip};

const CTLR: u32 = 0;
const TYPER: u32 = 4;
const IIDR: u32 = 8;
const ISENABLER: u32 = 0x100;
const ICENABLER: u32 = 0x180;
const ISPENDR: u32 = 0x200;
const ICPENDR: u32 = 0x280;
const ICFGR: u32 = 0xc00;

/// Levels of the 32 interrupts from `intid` on.
const fn levels(intid: u64) -> DeviceAttr {
    DeviceAttr { group: arm::GROUP_LEVEL_INFO, attr: intid }
}

/// `EBUSY` until then.
pub fn a_gicv3s_registers_wait_for_initialisation(host: &dyn Host) {
    let machine = Machine::complete(host, DeviceKind::GicV3);
    for attr in [arm::dist_reg(0, CTLR), arm::redist_reg(0, 0), levels(32)] {
        assert_eq!(machine.get_word(attr), Err(Errno::EBUSY), "{attr:?}");
        assert_eq!(machine.set(attr, word(0)), Err(Errno::EBUSY), "{attr:?}");
    }
    machine.init();
    assert!(machine.get_word(arm::dist_reg(0, CTLR)).is_ok());
}

/// Even reading one does.
pub fn touching_a_gicv2s_registers_initialises_it(host: &dyn Host) {
    let machine = Machine::complete(host, DeviceKind::GicV2);
    assert!(machine.get_word(arm::dist_reg(0, CTLR)).is_ok());
    assert_eq!(machine.get_word(arm::NR_IRQS), Ok(256));
    assert_eq!(machine.vm.create_vcpu(1), Err(Errno::EBUSY));
}

/// `EINVAL` without it. The registers of a GICv3's distributor are reached through vCPU 0, whatever CPU is given.
pub fn a_register_needs_its_vcpu(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        assert_eq!(machine.get_word(arm::dist_reg(0, TYPER)), Err(Errno::EINVAL));
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        if kind == DeviceKind::GicV2 {
            assert_eq!(machine.get_word(arm::dist_reg(1, TYPER)), Err(Errno::EINVAL));
        } else {
            assert!(machine.get_word(arm::dist_reg(77, TYPER)).is_ok());
            assert!(machine.get_word(arm::redist_reg(0, 0)).is_ok());
            assert_eq!(machine.get_word(arm::redist_reg(1, 0)), Err(Errno::EINVAL));
        }
    }
}

/// Save and restore are for a VM that stands still.
pub fn registers_are_busy_while_a_vcpu_runs(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        let attr = arm::dist_reg(0, CTLR);
        machine.vm.while_running(0, &mut || machine.get_word(attr) == Err(Errno::EBUSY));
        machine.vm.while_running(0, &mut || machine.set(attr, word(0)) == Err(Errno::EBUSY));
        assert!(machine.get_word(attr).is_ok());
    }
}

/// Runs of offsets, in steps of four, at which a GIC of 256 interrupts has registers.
fn known(machine: &Machine, end: u32, attr: impl Fn(u32) -> DeviceAttr) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for offset in (0..end).step_by(4) {
        if machine.gic().has_attr(attr(offset)).unwrap() {
            match runs.last_mut() {
                Some(run) if run.1 == offset => run.1 += 4,
                _ => runs.push((offset, offset + 4)),
            }
        }
    }
    runs
}

/// Each of them, and no other: with 256 interrupts the rows are that long.
pub fn registers_lie_where_the_architecture_has_them(host: &dyn Host) {
    // Group, enable, pending and active bits, priorities, targets, configuration.
    const ROWS: [(u32, u32); 10] = [
        (0x080, 0x0a0),
        (0x100, 0x120),
        (0x180, 0x1a0),
        (0x200, 0x220),
        (0x280, 0x2a0),
        (0x300, 0x320),
        (0x380, 0x3a0),
        (0x400, 0x500),
        (0x800, 0x900),
        (0xc00, 0xc40),
    ];
    // The same for the 32 private ones, without targets; GICR_IGRPMODR0, GICR_NSACR. But for GICR_STATUSR at 0x10: Linux 6.12 has it in its
    // table (`vgic_v3_rd_registers`) out of order, and finds registers by bisection.
    const PRIVATE: [(u32, u32); 18] = [
        (0x0, 0x10),
        (0x14, 0x18),
        (0x70, 0x80),
        (0xa0, 0xa8),
        (0xb0, 0xb8),
        (0xc0, 0xc4),
        (0xffd0, 0x1_0000),
        (0x1_0080, 0x1_0084),
        (0x1_0100, 0x1_0104),
        (0x1_0180, 0x1_0184),
        (0x1_0200, 0x1_0204),
        (0x1_0280, 0x1_0284),
        (0x1_0300, 0x1_0304),
        (0x1_0380, 0x1_0384),
        (0x1_0400, 0x1_0420),
        (0x1_0c00, 0x1_0c08),
        (0x1_0d00, 0x1_0d04),
        (0x1_0e00, 0x1_0e04),
    ];
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        let distributor = known(&machine, 0x1_0000, |offset| arm::dist_reg(0, offset));
        let (before, after): (&[_], &[_]) = if kind == DeviceKind::GicV2 {
            // CTLR, TYPER, IIDR; SGIR, CPENDSGIR and SPENDSGIR.
            (&[(0, 0xc)], &[(0xf00, 0xf04), (0xf10, 0xf30)])
        } else {
            // TYPER2 and STATUSR, too; IGRPMODR, IROUTER, identification.
            (&[(0, 0x14)], &[(0xd00, 0xd20), (0x6000, 0x6800), (0xffd0, 0x1_0000)])
        };
        assert_eq!(distributor, [before, &ROWS, after].concat(), "{kind}");
        assert_eq!(machine.gic().has_attr(arm::dist_reg(0, 2)), Ok(false), "unaligned");
        if kind == DeviceKind::GicV2 {
            let cpu = |offset| DeviceAttr { group: arm::GROUP_CPU_REGS, attr: u64::from(offset) };
            let interface = known(&machine, 0x2000, cpu);
            assert_eq!(interface, [(0, 0xc), (0x1c, 0x20), (0xd0, 0xe0), (0xfc, 0x100)]);
        } else {
            assert_eq!(known(&machine, 0x2_0000, |offset| arm::redist_reg(0, offset)), PRIVATE);
        }
    }
}

/// Bit 4 of GICR_TYPER: where the guest stops looking.
pub fn the_last_redistributor_says_so(host: &dyn Host) {
    let machine = Machine::with_gic(host, DeviceKind::GicV3);
    let region = |base, count, index| {
        machine.set(arm::ADDR_V3_REDIST_REGION, long(arm::redist_region(base, count, index))).unwrap();
    };
    // Two that adjoin, and one apart.
    region(REDISTRIBUTORS, 1, 0);
    region(REDISTRIBUTORS + 0x2_0000, 2, 1);
    region(0x4000_0000, 4, 2);
    for id in 0..5 {
        machine.vm.create_vcpu(id).unwrap();
    }
    machine.place_distributor();
    machine.init();
    let last: Vec<bool> =
        (0..5).map(|id| machine.get_word(arm::redist_reg(id, 8)).unwrap() & (1 << 4) != 0).collect();
    assert_eq!(last, [false, false, true, false, true]);
    let numbers: Vec<u32> = (0..5).map(|id| machine.get_word(arm::redist_reg(id, 8)).unwrap() >> 8).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
}

/// Until the guest says otherwise.
pub fn spis_come_as_edge_and_disabled(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        for n in [2, 3, 15] {
            assert_eq!(machine.get_word(arm::dist_reg(0, ICFGR + 4 * n)), Ok(0xaaaa_aaaa));
        }
        for n in [1, 7] {
            assert_eq!(machine.get_word(arm::dist_reg(0, ISENABLER + 4 * n)), Ok(0));
            assert_eq!(machine.get_word(arm::dist_reg(0, ISPENDR + 4 * n)), Ok(0));
        }
        // There is no ninth: 256 interrupts.
        machine.set(arm::dist_reg(0, ISENABLER + 4 * 8), word(u32::MAX)).unwrap();
        assert_eq!(machine.get_word(arm::dist_reg(0, ISENABLER + 4 * 8)), Ok(0));
    }
}

/// Writing ones sets through one register and clears through the other; both read the same.
pub fn enable_bits_are_set_and_cleared_apart(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        let (set, clear) = (arm::dist_reg(0, ISENABLER + 4), arm::dist_reg(0, ICENABLER + 4));
        machine.set(set, word(0xff)).unwrap();
        machine.set(set, word(0)).unwrap();
        machine.set(clear, word(0x0f)).unwrap();
        assert_eq!(machine.get_word(set), Ok(0xf0));
        assert_eq!(machine.get_word(clear), Ok(0xf0));
    }
}

/// Revisions 2 and 3 of KVM's own implementation.
pub fn the_revision_is_all_that_iidr_lets_change(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        let attr = arm::dist_reg(0, IIDR);
        assert_eq!(machine.get_word(attr), Ok(0x4b00_343b), "'K', revision 3, Arm");
        assert_eq!(machine.set(attr, word(0x4b00_243b)), Ok(()));
        assert_eq!(machine.get_word(attr), Ok(0x4b00_243b));
        for bad in [0, 0x4b00_443b, 0x4b00_143b, 0x4c00_343b, 0x4b00_343c] {
            assert_eq!(machine.set(attr, word(bad)), Err(Errno::EINVAL), "{bad:#x}");
        }
    }
}

/// In units of 32, less one.
pub fn typer_tells_the_number_of_interrupts(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        machine.set(arm::NR_IRQS, word(160)).unwrap();
        machine.vm.create_vcpu(0).unwrap();
        machine.init();
        let typer = machine.get_word(arm::dist_reg(0, TYPER)).unwrap();
        assert_eq!(typer & 0x1f, 160 / 32 - 1);
        if kind == DeviceKind::GicV3 {
            assert_eq!((typer >> 19) & 0x1f, 9, "INTIDs of 10 bits");
            assert_eq!(typer & (1 << 17), 0, "no LPIs");
        }
    }
}

/// ISPENDR sets and clears, ICPENDR does nothing: so that a restore need not write both.
pub fn a_gicv3_restores_pending_bits_as_a_whole(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::Gic(DeviceKind::GicV3));
    let (set, clear) = (arm::dist_reg(0, ISPENDR + 4), arm::dist_reg(0, ICPENDR + 4));
    machine.set(set, word(0xff)).unwrap();
    machine.set(clear, word(0x0f)).unwrap();
    assert_eq!(machine.get_word(set), Ok(0xff));
    assert_eq!(machine.get_word(clear), Ok(0));
    machine.set(set, word(0xf0)).unwrap();
    assert_eq!(machine.get_word(set), Ok(0xf0));
}

/// The wire of a level interrupt that is up shows in LEVEL_INFO and not in ISPENDR.
pub fn levels_are_saved_apart_from_pending_bits(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::Gic(DeviceKind::GicV3));
    machine.configure(3, TriggerMode::Level);
    machine.set(levels(32), word(1 << 3)).unwrap();
    assert!(machine.is_high(3));
    assert!(!machine.is_pending(3));
    machine.serve(3);
    machine.set(levels(32), word(0)).unwrap();
    assert_eq!(machine.take(), None);
    assert_eq!(machine.get_word(levels(33)), Err(Errno::EINVAL), "32 at a time");
    assert_eq!(machine.get_word(levels(32 | 1 << 10)), Err(Errno::EINVAL), "levels and nothing else");
}
