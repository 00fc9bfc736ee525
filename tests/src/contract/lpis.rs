// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! LPIs as the redistributors' registers have them (Linux 6.12, `arch/arm64/kvm/vgic/vgic-mmio-v3.c` and `vgic-its.c`).

use irqchip::{DeviceKind, Errno, MsiDelivery, arm};

use super::fixture::{Machine, word};
use super::{Host, Taken};

const CTLR: u32 = 0;
const TYPER: u32 = 8;
const PROPBASER: u32 = 0x70;
const PENDBASER: u32 = 0x78;
const ITS_CTLR: u32 = 0;
/// Inner caches write back.
const CACHED: u64 = 3 << 7;
/// … and inner shareable: what both registers come with.
const COMES_WITH: u64 = CACHED | 1 << 10;
/// GICR_PENDBASER.PTZ: the table is all zeros.
const ZERO_TABLE: u64 = 1 << 62;
const LPI: u32 = 8192;

/// A base register of a vCPU's redistributor.
fn base(machine: &Machine, cpu: u32, offset: u32) -> u64 {
    let half = |at| u64::from(machine.get_word(arm::redist_reg(cpu, offset + at)).unwrap());
    half(0) | half(4) << 32
}

/// … and what it holds after this was written, one half after the other.
fn base_keeps(machine: &Machine, cpu: u32, offset: u32, value: u64) -> u64 {
    for (at, half) in [(0, value & 0xffff_ffff), (4, value >> 32)] {
        machine.set(arm::redist_reg(cpu, offset + at), word(u32::try_from(half).unwrap())).unwrap();
    }
    base(machine, cpu, offset)
}

fn enable(machine: &Machine, cpu: u32, enabled: bool) {
    machine.set(arm::redist_reg(cpu, CTLR), word(enabled.into())).unwrap();
    assert_eq!(machine.get_word(arm::redist_reg(cpu, CTLR)).unwrap() & 1 != 0, enabled);
}

/// They cannot be enabled; and INTIDs have ten bits. From the moment that one is created, an ITS is there.
pub fn there_are_no_lpis_without_its(host: &dyn Host) {
    let machine = Machine::with_vcpus(host, DeviceKind::GicV3, &[0]);
    let (ctlr, typer) = (arm::redist_reg(0, CTLR), arm::redist_reg(0, TYPER));
    let distributor = || machine.get_word(arm::dist_reg(0, 4)).unwrap();
    assert_eq!(machine.keeps(ctlr, 1) & 1, 0);
    assert_eq!(machine.get_word(typer).unwrap() & 1, 0);
    assert_eq!((distributor() >> 17 & 1, distributor() >> 19 & 0x1f), (0, 9));
    assert_eq!(base(&machine, 0, PROPBASER), 0);
    assert_eq!(base_keeps(&machine, 0, PROPBASER, 0x1111_0000), 0x1111_0000 | CACHED);
    let _its = machine.vm.create_device(DeviceKind::Its).unwrap();
    assert_eq!(base(&machine, 0, PROPBASER), COMES_WITH, "as new");
    assert_eq!((distributor() >> 17 & 1, distributor() >> 19 & 0x1f), (1, 15));
    assert_eq!(machine.get_word(typer).unwrap() & 1, 1);
    assert_eq!(machine.keeps(ctlr, 1) & 1, 1);
}

/// Whichever vCPU's register says so. While its own LPIs are enabled, a vCPU's registers cannot be changed.
pub fn lpis_have_one_property_table_and_a_pending_table_for_each_vcpu(host: &dyn Host) {
    let machine = Machine::with_its_and_vcpus(host, &[0, 1]);
    for (cpu, offset) in [(0, PROPBASER), (1, PROPBASER), (0, PENDBASER), (1, PENDBASER)] {
        assert_eq!(base(&machine, cpu, offset), COMES_WITH);
    }
    let properties = 0x12_1111_0000 | CACHED | 15;
    assert_eq!(base_keeps(&machine, 1, PROPBASER, properties), properties);
    assert_eq!(base(&machine, 0, PROPBASER), properties);
    let pending = [0x2222_0000 | CACHED, 0x3333_0000 | CACHED];
    for (cpu, value) in (0..).zip(pending) {
        assert_eq!(base_keeps(&machine, cpu, PENDBASER, value), value);
    }
    assert_eq!(base(&machine, 0, PENDBASER), pending[0]);
    enable(&machine, 0, true);
    assert_eq!(base_keeps(&machine, 0, PROPBASER, 0), properties);
    assert_eq!(base_keeps(&machine, 0, PENDBASER, 0), pending[0]);
    assert_eq!(base_keeps(&machine, 1, PROPBASER, 0), CACHED);
    assert_eq!(base_keeps(&machine, 1, PENDBASER, 0), CACHED);
    assert_eq!(base(&machine, 0, PROPBASER), CACHED);
}

/// Nothing is outer shareable, nothing uncached, outer caches are not told apart, and that a table is zero is not told again.
pub fn tables_of_lpis_are_cached(host: &dyn Host) {
    let machine = Machine::with_its(host);
    for (written, kept) in [
        (0, CACHED),
        (1 << 10, 1 << 10 | CACHED),
        (2 << 10, 1 << 10 | CACHED),
        (3 << 10, 3 << 10 | CACHED),
        (1 << 7, CACHED),
        (2 << 7, 2 << 7),
        (1 << 56, 1 << 56 | CACHED),
        (2 << 56, CACHED),
    ] {
        assert_eq!(base_keeps(&machine, 0, PROPBASER, written), kept, "{written:#x}");
        assert_eq!(base_keeps(&machine, 0, PENDBASER, written), kept, "{written:#x}");
    }
    assert_eq!(base_keeps(&machine, 0, PROPBASER, u64::MAX), 0x000f_ffff_ffff_ff9f);
    assert_eq!(base_keeps(&machine, 0, PENDBASER, u64::MAX), 0x000f_ffff_ffff_0f80);
}

/// They are not delivered later, and what comes meanwhile is refused.
pub fn lpis_that_wait_are_dropped_when_their_vcpu_disables_lpis(host: &dyn Host) {
    let machine = Machine::with_its_and_vcpus(host, &[0, 1]);
    machine.map(5, 0, LPI);
    assert_eq!(machine.send(0, Some(5)), Ok(MsiDelivery::Delivered));
    // Another vCPU's.
    enable(&machine, 1, true);
    enable(&machine, 1, false);
    assert_eq!(machine.take_next(), Taken::Lpi(LPI));
    assert_eq!(machine.send(0, Some(5)), Ok(MsiDelivery::Delivered));
    enable(&machine, 0, false);
    assert_eq!(machine.send(0, Some(5)), Err(Errno::EBUSY));
    assert_eq!(machine.take(), None);
    // Not because a table is read that says otherwise.
    let table = base(&machine, 0, PENDBASER);
    assert_eq!(base_keeps(&machine, 0, PENDBASER, table | ZERO_TABLE), table);
    enable(&machine, 0, true);
    assert_eq!(machine.take(), None);
    // Nor when somebody looks at it next.
    machine.enable_lpi(5, 0, LPI, true);
    assert_eq!(machine.take(), None);
    assert_eq!(machine.send(0, Some(5)), Ok(MsiDelivery::Delivered));
    assert_eq!(machine.take_next(), Taken::Lpi(LPI));
}

/// So that even device 0 must say who it is, after LPIs or the ITS were disabled.
pub fn translations_are_forgotten_when_something_is_disabled(host: &dyn Host) {
    let machine = Machine::with_its_and_vcpus(host, &[0, 1]);
    machine.map(0, 0, LPI);
    let known = || {
        assert_eq!(machine.send(0, Some(0)), Ok(MsiDelivery::Delivered));
        assert_eq!(machine.send(0, None), Ok(MsiDelivery::Delivered));
    };
    known();
    // A vCPU that has none enabled has none to disable.
    machine.set(arm::redist_reg(1, CTLR), word(0)).unwrap();
    assert_eq!(machine.send(0, None), Ok(MsiDelivery::Delivered));
    for cpu in [0, 1] {
        enable(&machine, cpu, true);
        known();
        enable(&machine, cpu, false);
        enable(&machine, cpu, true);
        assert_eq!(machine.send(0, None), Err(Errno::EINVAL));
        known();
    }
    machine.set_its(ITS_CTLR, 0).unwrap();
    machine.set_its(ITS_CTLR, 1).unwrap();
    assert_eq!(machine.send(0, None), Err(Errno::EINVAL));
    known();
}

/// What waits is then what the guest's memory says; unless the guest has said that the table is zero, so that it need not be read.
pub fn enabling_lpis_reads_the_pending_table(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(5, 0, LPI);
    let table = base(&machine, 0, PENDBASER);
    for (bit, taken) in [(0, None), (ZERO_TABLE, Some(Taken::Lpi(LPI)))] {
        // It waits, but no vCPU is to look at it: so it is not dropped.
        machine.enable_lpi(5, 0, LPI, false);
        assert_eq!(machine.send(0, Some(5)), Ok(MsiDelivery::Delivered));
        enable(&machine, 0, false);
        assert_eq!(base_keeps(&machine, 0, PENDBASER, table | bit), table);
        enable(&machine, 0, true);
        machine.enable_lpi(5, 0, LPI, true);
        assert_eq!(machine.take(), taken);
    }
}
