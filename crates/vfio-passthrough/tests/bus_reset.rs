// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Functions without a reset of their own, reset with their bus: once for all of them, when all of it is the guest's, and not otherwise.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::*;
use pci::PciFunction;
use vfio_passthrough::Error;
use vfio_passthrough::fake::{Call, FakeBus, FakeDevice};
use vfio_passthrough::host::HostDevice;
use vfio_passthrough::iommu::IommuKind;
use vfio_passthrough::pci::{InterruptMode, PciEvent, VfioPciFunction};

const KINDS: [IommuKind; 2] = [IommuKind::Legacy, IommuKind::Iommufd];
const NAMES: [&str; 2] = ["0000:01:00.0", "0000:01:00.1"];

/// Two functions of one device behind a bridge.
struct Twins {
    rig: Rig,
    bus: FakeBus,
    devices: [FakeDevice; 2],
    hosts: [HostDevice; 2],
}

impl Twins {
    fn new(kind: IommuKind, groups: [u32; 2]) -> Self {
        let rig = Rig::by(kind);
        let bus = FakeBus::new(1);
        let device =
            |devfn: u8, group| Nvme::default().device(&rig).without_reset().on_bus(&bus, devfn, group);
        let devices = [device(0, groups[0]), device(1, groups[1])];
        let hosts = NAMES.map(|name| rig.sysfs.add(name, Some("vfio-pci")));
        Self { rig, bus, devices, hosts }
    }

    fn open(&self, which: usize) -> Arc<VfioPciFunction> {
        let line = self.rig.line(4 + u32::try_from(which).unwrap());
        self.rig.function_of(&self.hosts[which], &self.devices[which], Some(line)).unwrap()
    }

    /// The one trouble that there was since the last call.
    fn trouble(&self) -> Error {
        let mut events = std::mem::take(&mut *self.rig.events.lock().unwrap());
        match (events.pop(), events.as_slice()) {
            (Some(PciEvent::Trouble(error)), []) => error,
            other => panic!("{other:?}"),
        }
    }

    fn assert_quiet(&self) {
        let events = self.rig.events.lock().unwrap();
        assert!(events.is_empty(), "{events:?}");
    }
}

fn assert_in_the_way(error: &Error, parts: &[&str]) {
    let text = format!("{error}; {}", error.hint().unwrap());
    assert!(matches!(error, Error::BusInTheWay { .. }), "{text}");
    for part in parts {
        assert!(text.contains(part), "'{part}' is missing in: {text}");
    }
}

#[test]
fn functions_of_one_bus_are_reset_once_with_their_interrupts_off_and_then_on_again() {
    for (kind, groups) in KINDS.into_iter().flat_map(|kind| [(kind, [7, 7]), (kind, [7, 8])]) {
        let twins = Twins::new(kind, groups);
        let functions = [twins.open(0), twins.open(1)];
        let done = VfioPciFunction::reset_with_bus(&functions.each_ref().map(AsRef::as_ref));
        twins.assert_quiet();
        assert_eq!(done, [NAMES], "{kind} {groups:?}");
        assert_eq!(twins.bus.resets(), 1);
        for (function, device) in functions.iter().zip(&twins.devices) {
            assert_eq!((device.bus_resets(), device.resets(), device.disturbed()), (1, 0, 0));
            assert_eq!(function.interrupts().mode, InterruptMode::Intx, "armed again");
            assert_eq!(device.contents(7, 4, 2).unwrap(), [3, 0], "it answers again");
        }
        // The line works for both.
        for (which, device) in (4..).zip(&twins.devices) {
            device.set_level(0, true).unwrap();
            assert!(twins.rig.line_is_high(which));
        }
    }
}

#[test]
fn a_function_with_a_reset_of_its_own_is_reset_along_and_not_by_itself() {
    let rig = Rig::new();
    let bus = FakeBus::new(1);
    let hosts = NAMES.map(|name| rig.sysfs.add(name, Some("vfio-pci")));
    let own = Nvme::default().device(&rig).on_bus(&bus, 0, 7);
    let none = Nvme::default().device(&rig).without_reset().on_bus(&bus, 1, 7);
    let first = rig.function_of(&hosts[0], &own, None).unwrap();
    let second = rig.function_of(&hosts[1], &none, None).unwrap();
    VfioPciFunction::reset_with_bus(&[&first, &second]);
    assert_eq!((bus.resets(), own.bus_resets(), own.resets(), own.disturbed()), (1, 1, 0, 0));
    // Without the other, nothing is to be done: the kernel has reset it when it was opened.
    VfioPciFunction::reset_with_bus(&[&first]);
    assert_eq!((bus.resets(), own.resets()), (1, 0));
}

#[test]
fn what_nobody_uses_is_reset_along_where_its_group_is_ours() {
    for kind in KINDS {
        let twins = Twins::new(kind, [7, 7]);
        let first = twins.open(0);
        assert_eq!(VfioPciFunction::reset_with_bus(&[&first]), [NAMES], "{kind}");
        // At the guest's wish too.
        first.reset();
        twins.assert_quiet();
        assert_eq!((twins.bus.resets(), twins.devices[1].bus_resets()), (2, 2));
    }
}

#[test]
fn a_group_that_is_anothers_keeps_the_bus_from_being_reset_and_the_message_names_it() {
    for kind in KINDS {
        let twins = Twins::new(kind, [7, 8]);
        let first = twins.open(0);
        assert_eq!(VfioPciFunction::reset_with_bus(&[&first]), [[""; 0]; 0], "{kind}");
        assert_in_the_way(&twins.trouble(), &[NAMES[0], "0000:01:00.1 is another's", "--vfio 0000:01:00.1"]);
        assert_eq!((twins.bus.resets(), twins.rig.faults.count(Call::HotReset)), (0, 0));
        assert_eq!(first.interrupts().mode, InterruptMode::Intx, "it was left alone");
    }
}

#[test]
fn a_device_that_is_not_vfios_keeps_the_bus_from_being_reset_and_the_message_says_what_to_type() {
    for kind in KINDS {
        for (driver, says) in [(None, "has no driver"), (Some("virtio-pci"), "has driver virtio-pci")] {
            let twins = Twins::new(kind, [7, 7]);
            let third = "0000:01:00.2";
            twins.bus.add_of_the_host(2, 7);
            twins.rig.sysfs.add(third, driver);
            let functions = [twins.open(0), twins.open(1)];
            VfioPciFunction::reset_with_bus(&[&functions[0]]);
            let error = twins.trouble();
            assert_in_the_way(&error, &[&format!("{third} {says}"), "doorbell vfio bind 0000:01:00.2"]);
            // The second is one of ours, and used, which is said as well.
            assert_in_the_way(&error, &["0000:01:00.1 is in use by this guest"]);
            assert_eq!(twins.bus.resets(), 0);
        }
    }
}

#[test]
fn a_guests_reset_of_one_function_does_not_reach_another_that_it_uses() {
    for kind in KINDS {
        let twins = Twins::new(kind, [7, 7]);
        let (first, second) = (twins.open(0), twins.open(1));
        first.reset();
        assert_in_the_way(&twins.trouble(), &[NAMES[0], "0000:01:00.1 is in use by this guest"]);
        assert_eq!(twins.bus.resets(), 0);
        drop(second);
        first.reset();
        twins.assert_quiet();
        assert_eq!(twins.bus.resets(), 1);
        assert_eq!(twins.devices.each_ref().map(FakeDevice::disturbed), [0, 0]);
    }
}

#[test]
fn a_reset_of_its_own_that_fails_is_made_up_for_by_the_bus() {
    let rig = Rig::new();
    let bus = FakeBus::new(1);
    let host = rig.sysfs.add(NAMES[0], Some("vfio-pci"));
    let device = Nvme::default().device(&rig).on_bus(&bus, 0, 7);
    let function = rig.function_of(&host, &device, None).unwrap();
    function.reset();
    assert_eq!((device.resets(), bus.resets()), (1, 0));
    rig.faults.fail(Call::Reset, 1, libc::EAGAIN);
    function.reset();
    assert_eq!((device.resets(), bus.resets()), (1, 1));
    assert!(rig.events.lock().unwrap().is_empty());
    // Both fail: both are said.
    for call in [Call::HotResetInfo, Call::HotReset] {
        rig.faults.clear();
        let plain = Nvme::default().device(&rig).without_reset().on_bus(&bus, 0, 7);
        let function = rig.function_of(&host, &plain, None).unwrap();
        rig.faults.fail(call, 1, libc::EIO);
        function.reset();
        let events = std::mem::take(&mut *rig.events.lock().unwrap());
        assert!(
            matches!(events.as_slice(), [PciEvent::Trouble(Error::Kernel { .. })]),
            "{call:?} {events:?}"
        );
        assert_eq!(plain.bus_resets(), 0);
    }
}

#[test]
fn on_a_bus_that_cannot_be_reset_a_function_keeps_its_state_without_a_word() {
    let rig = Rig::new();
    let device = Nvme::default().device(&rig).without_reset();
    let function = rig.function(&device, None).unwrap();
    assert!(VfioPciFunction::reset_with_bus(&[&function]).is_empty());
    function.reset();
    assert!(rig.events.lock().unwrap().is_empty());
    assert_eq!((device.resets(), device.bus_resets()), (0, 0));
}
