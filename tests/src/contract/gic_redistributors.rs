// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Redistributor regions (Linux 6.12, `arch/arm64/kvm/vgic/vgic-mmio-v3.c`, `vgic_v3_alloc_redist_region`).

use irqchip::arm::redist_region;
use irqchip::{AttrValue, DeviceKind, Errno, arm};

use super::Host;
use super::fixture::{DISTRIBUTOR, Machine, REDISTRIBUTORS, long, refusal};

/// Two frames of 64 KiB.
const REDIST: u64 = 0x2_0000;
/// Room for a second region, and for a third.
const SECOND: u64 = 0x4000_0000;
const THIRD: u64 = 0x5000_0000;

fn machine(host: &dyn Host) -> Machine {
    Machine::with_gic(host, DeviceKind::GicV3)
}

/// Sets a region.
fn region(machine: &Machine, base: u64, count: u32, index: u32) -> Result<(), Errno> {
    machine.set(arm::ADDR_V3_REDIST_REGION, long(redist_region(base, count, index)))
}

/// The one region that grows and the several that do not exclude each other.
pub fn region_and_regions_do_not_mix(host: &dyn Host) {
    let machine = self::machine(host);
    region(&machine, REDISTRIBUTORS, 1, 0).unwrap();
    assert_eq!(machine.set(arm::ADDR_V3_REDIST, long(SECOND)), Err(Errno::EINVAL));

    let machine = self::machine(host);
    machine.set(arm::ADDR_V3_REDIST, long(REDISTRIBUTORS)).unwrap();
    assert_eq!(region(&machine, SECOND, 1, 0), Err(Errno::EINVAL));
}

/// Indices count from 0 without a gap.
pub fn regions_come_in_order(host: &dyn Host) {
    let machine = self::machine(host);
    assert_eq!(region(&machine, REDISTRIBUTORS, 1, 1), Err(Errno::EINVAL));
    assert_eq!(region(&machine, REDISTRIBUTORS, 1, 0), Ok(()));
    assert_eq!(region(&machine, SECOND, 1, 0), Err(Errno::EINVAL));
    assert_eq!(region(&machine, SECOND, 1, 2), Err(Errno::EINVAL));
    assert_eq!(region(&machine, SECOND, 1, 1), Ok(()));
}

/// A count of 0 and any flag are refused.
pub fn a_region_has_a_count_and_no_flags(host: &dyn Host) {
    let machine = self::machine(host);
    assert_eq!(region(&machine, REDISTRIBUTORS, 0, 0), Err(Errno::EINVAL));
    let flagged = redist_region(REDISTRIBUTORS, 1, 0) | 0x1000;
    assert_eq!(machine.set(arm::ADDR_V3_REDIST_REGION, long(flagged)), Err(Errno::EINVAL));
    assert_eq!(region(&machine, 1 << 40, 1, 0), Err(Errno::E2BIG));
    assert_eq!(region(&machine, (1 << 40) - REDIST, 2, 0), Err(Errno::E2BIG));
    assert_eq!(region(&machine, REDISTRIBUTORS, 1, 0), Ok(()));
}

/// Not with each other; that one overlaps the distributor is noticed when it gets its first vCPU.
pub fn regions_do_not_overlap(host: &dyn Host) {
    let machine = self::machine(host);
    region(&machine, SECOND, 4, 0).unwrap();
    for base in [SECOND, SECOND + 3 * REDIST, SECOND - REDIST / 2] {
        assert_eq!(region(&machine, base, 1, 1), Err(Errno::EINVAL), "{base:#x}");
    }
    assert_eq!(region(&machine, SECOND + 4 * REDIST, 1, 1), Ok(()));

    let machine = self::machine(host);
    machine.set(arm::ADDR_V3_DIST, long(DISTRIBUTOR)).unwrap();
    assert_eq!(region(&machine, DISTRIBUTOR, 1, 0), Ok(()));
    assert_eq!(machine.vm.create_vcpu(0), Err(Errno::EINVAL));

    let machine = self::machine(host);
    machine.set(arm::ADDR_V3_DIST, long(DISTRIBUTOR)).unwrap();
    machine.vm.create_vcpu(0).unwrap();
    assert_eq!(region(&machine, DISTRIBUTOR, 1, 0), Err(Errno::EINVAL));
    assert_eq!(region(&machine, SECOND, 1, 0), Ok(()), "the region that was refused is gone");
}

/// The one region is compared with the distributor at once, with as many redistributors as there are vCPUs.
pub fn the_single_region_keeps_off_the_distributor(host: &dyn Host) {
    let machine = self::machine(host);
    machine.vm.create_vcpu(0).unwrap();
    machine.vm.create_vcpu(1).unwrap();
    machine.set(arm::ADDR_V3_DIST, long(DISTRIBUTOR)).unwrap();
    assert_eq!(machine.set(arm::ADDR_V3_REDIST, long(DISTRIBUTOR - REDIST)), Err(Errno::EINVAL));
    assert_eq!(machine.set(arm::ADDR_V3_REDIST, long(DISTRIBUTOR - 2 * REDIST)), Ok(()));
    // A third vCPU would lie on it. Room is looked for before the newcomer is counted, so that the fourth is refused.
    assert_eq!(machine.vm.create_vcpu(2), Ok(()));
    assert_eq!(machine.vm.create_vcpu(3), Err(Errno::EINVAL));
}

/// … and it may outgrow the address space.
pub fn the_single_region_ends_within_the_guests_memory(host: &dyn Host) {
    let machine = self::machine(host);
    machine.vm.create_vcpu(0).unwrap();
    assert_eq!(machine.set(arm::ADDR_V3_REDIST, long((1 << 40) - REDIST / 2)), Err(Errno::E2BIG));
    assert_eq!(machine.set(arm::ADDR_V3_REDIST, long((1 << 40) - REDIST)), Ok(()));
    assert_eq!(machine.vm.create_vcpu(1), Ok(()));
    assert_eq!(machine.vm.create_vcpu(2), Err(Errno::EINVAL));
}

/// By index.
pub fn regions_read_back(host: &dyn Host) {
    let machine = self::machine(host);
    region(&machine, REDISTRIBUTORS, 3, 0).unwrap();
    region(&machine, SECOND, 7, 1).unwrap();
    let read =
        |index| machine.gic().get_attr(arm::ADDR_V3_REDIST_REGION, long(index)).map_err(|error| error.errno);
    assert_eq!(read(0), Ok(long(redist_region(REDISTRIBUTORS, 3, 0))));
    assert_eq!(read(1), Ok(long(redist_region(SECOND, 7, 1))));
    assert_eq!(read(2), Err(Errno::ENOENT));
    assert_eq!(machine.get(arm::ADDR_V3_REDIST), Ok(REDISTRIBUTORS), "the first region's");
}

/// A vCPU without a redistributor is noticed when one runs.
pub fn too_little_room_kills_the_vm_when_it_runs(host: &dyn Host) {
    let machine = self::machine(host);
    machine.set(arm::ADDR_V3_DIST, long(DISTRIBUTOR)).unwrap();
    region(&machine, REDISTRIBUTORS, 1, 0).unwrap();
    machine.vm.create_vcpu(0).unwrap();
    machine.vm.create_vcpu(1).unwrap();
    machine.init();
    assert_eq!(machine.vm.run_vcpu(0), Err(Errno::ENXIO));
    assert_eq!(refusal(machine.gic().has_attr(arm::CTRL_INIT)), Err(Errno::EIO));
}

/// Whether regions or vCPUs come first, vCPUs find their places in the order of regions.
pub fn vcpus_fill_the_regions_in_order(host: &dyn Host) {
    let machine = self::machine(host);
    machine.set(arm::ADDR_V3_DIST, long(DISTRIBUTOR)).unwrap();
    machine.vm.create_vcpu(0).unwrap();
    machine.vm.create_vcpu(1).unwrap();
    region(&machine, REDISTRIBUTORS, 1, 0).unwrap();
    region(&machine, SECOND, 2, 1).unwrap();
    machine.vm.create_vcpu(2).unwrap();
    machine.init();
    assert_eq!(machine.set(arm::CTRL_INIT, AttrValue::None), Ok(()));
    // All three have their place, or this would fail.
    assert_eq!(machine.vm.run_vcpu(2), Ok(()));
}

/// More than 123 vCPUs are what several regions are for.
pub fn a_hundred_and_thirty_vcpus_lie_in_three_regions(host: &dyn Host) {
    let machine = self::machine(host);
    machine.set(arm::ADDR_V3_DIST, long(DISTRIBUTOR)).unwrap();
    region(&machine, REDISTRIBUTORS, 50, 0).unwrap();
    region(&machine, SECOND, 50, 1).unwrap();
    region(&machine, THIRD, 30, 2).unwrap();
    for id in 0..130 {
        machine.vm.create_vcpu(id).unwrap();
    }
    machine.init();
    assert_eq!(machine.vm.run_vcpu(129), Ok(()));
    assert_eq!(machine.vm.run_vcpu(0), Ok(()));
}
