// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest writes that signal eventfds (Linux 6.12, `virt/kvm/eventfd.c`, `kvm_assign_ioeventfd`).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use irqchip::{Capability, Errno, IoAddress, IoeventSpec};

use super::fixture::{Machine, count, event, refusal};
use super::{Host, Irqchip};

/// Where no memory and no device is.
const ADDRESS: u64 = 0x0a00_0000;

const fn at(address: u64, length: u32, datamatch: Option<u64>) -> IoeventSpec {
    IoeventSpec { address: IoAddress::Mmio(address), length, datamatch }
}

fn each(host: &dyn Host, rule: impl Fn(&Machine)) {
    for irqchip in host.irqchips() {
        rule(&Machine::ready(host, irqchip));
    }
}

fn assign(machine: &Machine, event: &OwnedFd, spec: IoeventSpec) -> Result<(), Errno> {
    refusal(machine.vm.assign_ioevent(event.as_fd(), spec))
}

fn deassign(machine: &Machine, event: &OwnedFd, spec: IoeventSpec) -> Result<(), Errno> {
    refusal(machine.vm.deassign_ioevent(event.as_fd(), spec))
}

fn write(machine: &Machine, value: u64, length: u32) -> bool {
    machine.vm.write(IoAddress::Mmio(ADDRESS), value, length)
}

/// Without an exit; any value of the right width.
pub fn a_write_rings(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        assert!(!write(machine, 1, 4));
        assign(machine, &event, at(ADDRESS, 4, None)).unwrap();
        for value in [0, 1, 0xffff_ffff] {
            assert!(write(machine, value, 4));
            assert_eq!(count(&event), 1);
        }
        assert!(!write(machine, 1, 2), "another width");
        assert!(!machine.vm.write(IoAddress::Mmio(ADDRESS + 4), 1, 4), "another address");
        deassign(machine, &event, at(ADDRESS, 4, None)).unwrap();
        assert!(!write(machine, 1, 4));
        assign(machine, &event, at(ADDRESS, 0, None)).unwrap();
        for length in [1, 2, 4] {
            assert!(write(machine, 1, length), "any width");
            assert_eq!(count(&event), 1);
        }
    });
}

/// 1, 2, 4, 8, or 0 for any.
pub fn a_length_is_a_power_of_two(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        for length in [3, 5, 6, 7, 9, 16, u32::MAX] {
            assert_eq!(assign(machine, &event, at(ADDRESS, length, None)), Err(Errno::EINVAL), "{length}");
        }
        for length in [0, 1, 2, 4, 8] {
            let spec = at(ADDRESS, length, None);
            assert_eq!(assign(machine, &event, spec), Ok(()), "{length}");
            assert_eq!(deassign(machine, &event, spec), Ok(()));
        }
    });
}

/// There would be nothing to compare over.
pub fn any_length_has_no_datamatch(host: &dyn Host) {
    each(host, |machine| {
        assert_eq!(assign(machine, &event(), at(ADDRESS, 0, Some(1))), Err(Errno::EINVAL));
    });
}

/// `EINVAL` at the end of the address space.
pub fn a_range_does_not_wrap(host: &dyn Host) {
    each(host, |machine| {
        assert_eq!(assign(machine, &event(), at(u64::MAX, 4, None)), Err(Errno::EINVAL));
        assert_eq!(assign(machine, &event(), at(u64::MAX - 4, 4, None)), Ok(()));
    });
}

/// `EEXIST`, of the same eventfd and of another.
pub fn two_for_the_same_write_exist_already(host: &dyn Host) {
    each(host, |machine| {
        let (one, two) = (event(), event());
        assign(machine, &one, at(ADDRESS, 4, None)).unwrap();
        for (spec, answer) in [
            (at(ADDRESS, 4, None), Err(Errno::EEXIST)),
            (at(ADDRESS, 4, Some(1)), Err(Errno::EEXIST)),
            (at(ADDRESS, 0, None), Err(Errno::EEXIST)),
            (at(ADDRESS, 2, None), Ok(())),
            (at(ADDRESS + 4, 4, None), Ok(())),
        ] {
            assert_eq!(assign(machine, &two, spec), answer, "{spec}");
        }
        assert_eq!(assign(machine, &one, at(ADDRESS, 4, None)), Err(Errno::EEXIST));
    });
}

/// As a virtio device's queues are told apart.
pub fn values_tell_ioevents_apart(host: &dyn Host) {
    each(host, |machine| {
        let (one, two) = (event(), event());
        assign(machine, &one, at(ADDRESS, 2, Some(1))).unwrap();
        assign(machine, &two, at(ADDRESS, 2, Some(2))).unwrap();
        assert_eq!(assign(machine, &two, at(ADDRESS, 2, Some(1))), Err(Errno::EEXIST));
        assert_eq!(assign(machine, &two, at(ADDRESS, 2, None)), Err(Errno::EEXIST));
        assert!(write(machine, 2, 2));
        assert_eq!((count(&one), count(&two)), (0, 1));
        assert!(write(machine, 1, 2));
        assert_eq!((count(&one), count(&two)), (1, 0));
        assert!(!write(machine, 3, 2));
    });
}

/// `ENOENT` for any difference.
pub fn deassigning_names_the_same_write(host: &dyn Host) {
    each(host, |machine| {
        let (one, two) = (event(), event());
        let spec = at(ADDRESS, 4, Some(7));
        assign(machine, &one, spec).unwrap();
        for other in [
            at(ADDRESS, 4, None),
            at(ADDRESS, 4, Some(8)),
            at(ADDRESS, 2, Some(7)),
            at(ADDRESS + 4, 4, Some(7)),
        ] {
            assert_eq!(deassign(machine, &one, other), Err(Errno::ENOENT), "{other}");
        }
        assert_eq!(deassign(machine, &two, spec), Err(Errno::ENOENT));
        assert_eq!(deassign(machine, &one, spec), Ok(()));
        assert_eq!(deassign(machine, &one, spec), Err(Errno::ENOENT));
    });
}

/// `EINVAL`.
pub fn what_is_no_eventfd_rings_nothing(host: &dyn Host) {
    each(host, |machine| {
        let file: OwnedFd = File::open("/dev/null").unwrap().into();
        assert_eq!(assign(machine, &file, at(ADDRESS, 4, None)), Err(Errno::EINVAL));
        assert_eq!(deassign(machine, &file, at(ADDRESS, 4, None)), Err(Errno::EINVAL));
    });
}

/// The value to match is taken as it is given, all 64 bits of it.
pub fn a_value_wider_than_the_write_never_rings(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        assert_eq!(assign(machine, &event, at(ADDRESS, 1, Some(0x101))), Ok(()));
        assert!(!write(machine, 0x01, 1));
        assert_eq!(count(&event), 0);
        assert_eq!(assign(machine, &event, at(ADDRESS, 1, Some(1))), Ok(()), "they do not collide");
        assert!(write(machine, 0x01, 1));
    });
}

/// x86 has both.
pub fn ports_and_memory_are_apart(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::X86);
    let event = event();
    let port = IoeventSpec { address: IoAddress::Pio(0x510), length: 2, datamatch: None };
    assign(&machine, &event, port).unwrap();
    assign(&machine, &event, at(0x510, 2, None)).unwrap();
    assert!(machine.vm.write(IoAddress::Pio(0x510), 1, 2));
    assert_eq!(count(&event), 1);
    assert!(!machine.vm.write(IoAddress::Pio(0x510), 1, 1));
    deassign(&machine, &event, port).unwrap();
    assert!(!machine.vm.write(IoAddress::Pio(0x510), 1, 2));
}

/// All that the crates above rely on.
pub fn capabilities_say_so(host: &dyn Host) {
    for irqchip in host.irqchips() {
        let vm = host.vm();
        for capability in [
            Capability::Irqfd,
            Capability::IrqfdResample,
            Capability::Ioeventfd,
            Capability::IoeventfdAnyLength,
            Capability::SignalMsi,
            Capability::DeviceCtrl,
        ] {
            assert!(vm.capability(capability).unwrap() > 0, "{capability}");
        }
        assert_eq!(vm.capability(Capability::IrqRouting), Ok(4096));
        let arm = irqchip != Irqchip::X86;
        assert_eq!(vm.capability(Capability::ArmIrqLineLayout2), Ok(u32::from(arm)));
    }
}
