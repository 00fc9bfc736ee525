// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers for save and restore (Linux 6.12, `arch/arm64/kvm/vgic/vgic-mmio.c`, `vgic-mmio-v2.c`, `vgic-mmio-v3.c`).

use irq_types::TriggerMode;
use irqchip::{DeviceAttr, DeviceKind, Errno, arm};

use super::fixture::{Machine, word};
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
