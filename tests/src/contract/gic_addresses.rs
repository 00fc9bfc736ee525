// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the blocks of a GIC may lie (Linux 6.12, `arch/arm64/kvm/vgic/vgic-kvm-device.c`, `vgic_check_iorange`).

use irqchip::{AttrValue, DeviceAttr, DeviceKind, Errno, arm};

use super::Host;
use super::fixture::{CPU_INTERFACE, DISTRIBUTOR, Machine, REDISTRIBUTORS, long, word};

/// The end of 40 bits.
const END: u64 = 1 << 40;

/// The addresses of a kind of GIC: attribute, a good value, size, alignment.
fn addresses(kind: DeviceKind) -> Vec<(DeviceAttr, u64, u64, u64)> {
    if kind == DeviceKind::GicV2 {
        vec![
            (arm::ADDR_V2_DIST, DISTRIBUTOR, 0x1000, 0x1000),
            (arm::ADDR_V2_CPU, CPU_INTERFACE, 0x2000, 0x1000),
        ]
    } else {
        vec![
            (arm::ADDR_V3_DIST, DISTRIBUTOR, 0x1_0000, 0x1_0000),
            // One vCPU.
            (arm::ADDR_V3_REDIST, REDISTRIBUTORS, 0x2_0000, 0x1_0000),
        ]
    }
}

/// Nothing is at 2⁶⁴ − 1.
pub fn an_unset_address_reads_as_all_ones(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        for (attr, base, ..) in addresses(kind) {
            assert_eq!(machine.get(attr), Ok(u64::MAX));
            machine.set(attr, long(base)).unwrap();
            assert_eq!(machine.get(attr), Ok(base));
        }
    }
}

/// `EEXIST` the second time, for the same address too, and before anything else is looked at.
pub fn an_address_is_set_once(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        machine.vm.create_vcpu(0).unwrap();
        for (attr, base, ..) in addresses(kind) {
            machine.set(attr, long(base)).unwrap();
            assert_eq!(machine.set(attr, long(base)), Err(Errno::EEXIST), "{attr:?}");
            assert_eq!(machine.set(attr, long(base + 0x1000_0000)), Err(Errno::EEXIST));
            assert_eq!(machine.get(attr), Ok(base));
        }
    }
}

/// GICv2: 4 KiB, GICv3: 64 KiB.
pub fn addresses_are_aligned(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        machine.vm.create_vcpu(0).unwrap();
        for (attr, base, _, alignment) in addresses(kind) {
            for off in [1, 0x800, alignment / 2] {
                assert_eq!(machine.set(attr, long(base + off)), Err(Errno::EINVAL), "{attr:?} + {off:#x}");
            }
            assert_eq!(machine.set(attr, long(base + alignment)), Ok(()));
        }
    }
}

/// The whole block lies below the end of the guest's address space; `E2BIG`, and `EINVAL` where it would wrap.
pub fn addresses_lie_within_the_guests_memory(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        machine.vm.create_vcpu(0).unwrap();
        for (attr, _, size, alignment) in addresses(kind) {
            assert_eq!(machine.set(attr, long(END)), Err(Errno::E2BIG), "{attr:?}");
            assert_eq!(machine.set(attr, long(1 << 51)), Err(Errno::E2BIG));
            if size > alignment {
                assert_eq!(machine.set(attr, long(END - alignment)), Err(Errno::E2BIG));
            }
            let last = 0u64.wrapping_sub(alignment);
            assert_eq!(machine.set(attr, long(last)), Err(Errno::EINVAL), "{attr:?}: wraps");
            assert_eq!(machine.set(attr, long(END - size)), Ok(()), "{attr:?}: the last place");
            if attr == arm::ADDR_V3_DIST {
                break;
            }
        }
    }
}

/// An attribute with a value wants one.
pub fn a_value_is_needed(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        for (attr, ..) in addresses(kind) {
            assert_eq!(machine.set(attr, AttrValue::None), Err(Errno::EFAULT));
        }
        assert_eq!(machine.set(arm::NR_IRQS, AttrValue::None), Err(Errno::EFAULT));
        assert_eq!(machine.set(arm::NR_IRQS, word(64)), Ok(()));
    }
}

/// Nobody compares the addresses of a GICv2's two blocks before they are mapped.
pub fn blocks_that_overlap_kill_the_vm_when_it_runs(host: &dyn Host) {
    let machine = Machine::with_gic(host, DeviceKind::GicV2);
    machine.set(arm::ADDR_V2_DIST, long(CPU_INTERFACE + 0x1000)).unwrap();
    machine.set(arm::ADDR_V2_CPU, long(CPU_INTERFACE)).unwrap();
    machine.vm.create_vcpu(0).unwrap();
    machine.init();
    assert_eq!(machine.vm.run_vcpu(0), Err(Errno::EINVAL));
    assert_eq!(machine.get(arm::ADDR_V2_CPU), Err(Errno::EIO));
}
