// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Creation, number of interrupts, initialisation, first run (Linux 6.12, `arch/arm64/kvm/vgic/vgic-init.c`,
//! `vgic-kvm-device.c`, `arch/arm64/kvm/arm.c`).

use irqchip::{AttrValue, Capability, DeviceAttr, DeviceKind, Errno, arm};

use super::fixture::{CPU_INTERFACE, DISTRIBUTOR, Machine, long, refusal, word};
use super::{Host, Irqchip};

/// A VM has one GIC.
pub fn a_second_gic_exists_already(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        assert_eq!(refusal(machine.vm.create_device(kind)), Err(Errno::EEXIST));
    }
}

/// A GICv3 that was created and given up keeps its VM from having a GICv2.
pub fn a_gic_of_the_other_kind_exists_already(host: &dyn Host) {
    let vm = host.vm();
    drop(vm.create_device(DeviceKind::GicV3).unwrap());
    assert_eq!(refusal(vm.create_device(DeviceKind::GicV2)), Err(Errno::EEXIST));
}

/// `KVM_CREATE_DEVICE_TEST` leaves the VM as it was.
pub fn testing_for_a_device_creates_none(host: &dyn Host) {
    for kind in host.gics() {
        let vm = host.vm();
        for _ in 0..2 {
            assert_eq!(vm.supports_device(kind), Ok(true));
        }
        assert_eq!(refusal(vm.create_device(kind)), Ok(()));
        // It asks about the host, not about what this VM has.
        assert_eq!(vm.supports_device(kind), Ok(true));
    }
}

/// What the host cannot do is `ENODEV`.
pub fn a_device_that_the_host_lacks_is_enodev(host: &dyn Host) {
    let vm = host.vm();
    for kind in [DeviceKind::GicV2, DeviceKind::GicV3, DeviceKind::Its] {
        if !vm.supports_device(kind).unwrap() {
            assert_eq!(refusal(vm.create_device(kind)), Err(Errno::ENODEV));
        }
    }
}

/// A vCPU that has run without a GIC cannot get one.
pub fn a_gic_comes_before_the_first_run(host: &dyn Host) {
    for kind in host.gics() {
        let vm = host.vm();
        vm.create_vcpu(0).unwrap();
        vm.run_vcpu(0).unwrap();
        assert_eq!(refusal(vm.create_device(kind)), Err(Errno::EBUSY));
    }
}

/// 8 vCPUs with a GICv2, 512 with a GICv3; ids count, too.
pub fn a_gic_narrows_the_number_of_vcpus(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        let limit = if kind == DeviceKind::GicV2 { 8 } else { 512 };
        assert_eq!(machine.vm.create_vcpu(limit), Err(Errno::EINVAL), "{kind}");
        assert_eq!(machine.vm.create_vcpu(limit - 1), Ok(()));
        assert_eq!(machine.vm.create_vcpu(limit - 1), Err(Errno::EEXIST));
        if kind == DeviceKind::GicV2 {
            for id in 0..limit - 1 {
                machine.vm.create_vcpu(id).unwrap();
            }
            assert_eq!(machine.vm.create_vcpu(0), Err(Errno::EINVAL), "the limit is looked at first");
        }
    }
}

/// … and vCPUs that are there already count.
pub fn nine_vcpus_are_too_many_for_a_gicv2(host: &dyn Host) {
    let vm = host.vm();
    for id in 0..9 {
        vm.create_vcpu(id).unwrap();
    }
    assert_eq!(refusal(vm.create_device(DeviceKind::GicV2)), Err(Errno::E2BIG));
    assert_eq!(vm.create_vcpu(9), Err(Errno::EINVAL), "the limit has narrowed all the same");
    assert_eq!(refusal(vm.create_device(DeviceKind::GicV3)), Ok(()));
}

/// 64 to 992 in steps of 32. (The kernel's documentation says 1024, its code compares with 1023.)
pub fn the_number_of_interrupts_has_rules(host: &dyn Host) {
    for kind in host.gics() {
        for bad in [0, 32, 63, 65, 96 + 1, 1023, 1024, 1056, u32::MAX] {
            let machine = Machine::with_gic(host, kind);
            assert_eq!(machine.set(arm::NR_IRQS, word(bad)), Err(Errno::EINVAL), "{bad}");
        }
        for good in [64, 96, 256, 992] {
            let machine = Machine::with_gic(host, kind);
            assert_eq!(machine.set(arm::NR_IRQS, word(good)), Ok(()), "{good}");
            assert_eq!(machine.get_word(arm::NR_IRQS), Ok(good));
        }
    }
}

/// A second time is `EBUSY`, and so it is after initialisation; but what is no number of interrupts is `EINVAL` even then.
pub fn the_number_of_interrupts_is_set_once(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        machine.set(arm::NR_IRQS, word(64)).unwrap();
        assert_eq!(machine.set(arm::NR_IRQS, word(64)), Err(Errno::EBUSY));
        assert_eq!(machine.set(arm::NR_IRQS, word(65)), Err(Errno::EINVAL));

        let machine = Machine::with_gic(host, kind);
        machine.init();
        assert_eq!(machine.set(arm::NR_IRQS, word(64)), Err(Errno::EBUSY));
    }
}

/// A GIC that nobody gave a number of interrupts has 256, from its initialisation on.
pub fn initialisation_freezes_256_interrupts(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        assert_eq!(machine.get_word(arm::NR_IRQS), Ok(32), "only the private ones so far");
        machine.init();
        assert_eq!(machine.get_word(arm::NR_IRQS), Ok(256));
    }
}

/// `CTRL_INIT` looks neither at addresses nor for vCPUs: a VM without either can be initialised, and can never have a vCPU then.
pub fn initialisation_needs_neither_vcpus_nor_addresses(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        assert_eq!(machine.set(arm::CTRL_INIT, AttrValue::None), Ok(()));
        // Addresses may still come.
        machine.place();
    }
}

/// A second initialisation does nothing.
pub fn initialising_twice_is_once(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        assert_eq!(machine.set(arm::CTRL_INIT, AttrValue::None), Ok(()));
    }
}

/// The last vCPU comes before the initialisation.
pub fn no_vcpu_after_initialisation(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        assert_eq!(machine.vm.create_vcpu(1), Err(Errno::EBUSY));
    }
}

/// Nobody initialises a GICv3 on the way; and the VM does not survive the attempt.
pub fn a_gicv3_must_be_initialised_before_it_runs(host: &dyn Host) {
    let machine = Machine::complete(host, DeviceKind::GicV3);
    assert_eq!(machine.vm.run_vcpu(0), Err(Errno::EBUSY));
    assert_eq!(machine.set(arm::CTRL_INIT, AttrValue::None), Err(Errno::EIO));
}

/// A GICv2 is: the mistake that GICv3 did not repeat.
pub fn a_gicv2_is_initialised_by_running(host: &dyn Host) {
    let machine = Machine::complete(host, DeviceKind::GicV2);
    assert_eq!(machine.vm.run_vcpu(0), Ok(()));
    assert_eq!(machine.get_word(arm::NR_IRQS), Ok(256));
    assert_eq!(machine.vm.create_vcpu(1), Err(Errno::EBUSY));
}

/// The first run maps the GIC. Without addresses it cannot, and then every further call answers `EIO`.
pub fn running_without_addresses_kills_the_vm(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        machine.vm.create_vcpu(0).unwrap();
        machine.init();
        assert_eq!(machine.vm.run_vcpu(0), Err(Errno::ENXIO), "{kind}");
        assert_eq!(refusal(machine.vm.capability(Capability::IrqRouting)), Err(Errno::EIO));
        assert_eq!(machine.get_word(arm::NR_IRQS), Err(Errno::EIO));
        assert_eq!(machine.vm.run_vcpu(0), Err(Errno::EIO));
    }
}

/// With everything in its place it runs.
pub fn a_vm_that_is_complete_runs(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        assert_eq!(machine.vm.run_vcpu(0), Ok(()));
        assert_eq!(machine.vm.run_vcpu(0), Ok(()));
        // Too late for another address, too early for none.
        let attr = if kind == DeviceKind::GicV2 { arm::ADDR_V2_DIST } else { arm::ADDR_V3_DIST };
        assert_eq!(machine.set(attr, long(CPU_INTERFACE + 0x100_0000)), Err(Errno::EEXIST));
        assert_eq!(machine.get(attr), Ok(DISTRIBUTOR));
    }
}

/// Each device has its own attributes; the rest is `ENXIO`, which `has_attr` answers with no.
pub fn attributes_are_known_by_kind(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        let v3 = kind == DeviceKind::GicV3;
        let level_info = DeviceAttr { group: arm::GROUP_LEVEL_INFO, attr: 32 };
        let table = [
            (arm::ADDR_V2_DIST, !v3),
            (arm::ADDR_V2_CPU, !v3),
            (arm::ADDR_V3_DIST, v3),
            (arm::ADDR_V3_REDIST, v3),
            (arm::ADDR_V3_REDIST_REGION, v3),
            (arm::ADDR_ITS, false),
            (arm::NR_IRQS, true),
            (arm::CTRL_INIT, true),
            (arm::CTRL_SAVE_PENDING_TABLES, v3),
            (arm::CTRL_ITS_SAVE_TABLES, false),
            (level_info, v3),
            (DeviceAttr { group: arm::GROUP_LEVEL_INFO, attr: 1 << 10 }, false),
            (DeviceAttr { group: arm::GROUP_ITS_REGS, attr: 0 }, false),
            (DeviceAttr { group: 99, attr: 0 }, false),
        ];
        for (attr, known) in table {
            assert_eq!(machine.gic().has_attr(attr), Ok(known), "{kind} {attr:?}");
        }
        let foreign = if v3 { arm::ADDR_V2_DIST } else { arm::ADDR_V3_DIST };
        assert_eq!(machine.set(foreign, long(DISTRIBUTOR)), Err(Errno::ENXIO));
        assert_eq!(machine.get(foreign), Err(Errno::ENXIO));
        assert_eq!(machine.set(DeviceAttr { group: 99, attr: 0 }, long(0)), Err(Errno::ENXIO));
        assert_eq!(machine.set(arm::CTRL_ITS_SAVE_TABLES, AttrValue::None), Err(Errno::ENXIO));
    }
}
