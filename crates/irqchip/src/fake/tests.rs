// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the model has and the kernel has not. The kernel's rules are tested by the contract suite, on both.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use irq_types::{DeviceId, Gsi, IrqchipPin, MsiMessage, Pin, Ppi, Spi, TriggerMode};

use super::{Call, FakeHost, FakeVm, Fault, Interrupt, Live, drain, eventfd, signal};
use crate::{
    AttrValue, Capabilities, Capability, CreateDevice, CreateIrqchip, DeviceControl, DeviceKind, Errno,
    IoAddress, IoeventBinder, IoeventSpec, IrqchipReady, IrqfdBinder, LineInjector, MsiInjector, Operation,
    Route, RouteTarget, RoutingSink, arm,
};

fn spi(n: u32) -> Spi {
    Spi::new(n).unwrap()
}

fn line(gsi: u32, pin: u32) -> Route {
    let to = IrqchipPin { irqchip: 0, pin: Pin::new(pin) };
    Route { gsi: Gsi::new(gsi), target: RouteTarget::Line(to) }
}

fn ready() -> (FakeVm, Box<dyn DeviceControl>) {
    let vm = FakeHost::arm64_gicv3().vm();
    let gic = vm.create_device(DeviceKind::GicV3).unwrap();
    vm.create_vcpu(0).unwrap();
    IrqchipReady::init_vgic(&*gic, 224).unwrap();
    (vm, gic)
}

type MakeCall = fn(&FakeVm, &dyn DeviceControl) -> Result<(), Errno>;

/// Every call that the seam has, on a VM that is ready for it.
fn every_call() -> Vec<(Call, MakeCall)> {
    /// Another address each time, so that what one call leaves is not in the next one's way.
    fn event_spec() -> IoeventSpec {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let address = IoAddress::Mmio(NEXT.fetch_add(8, Ordering::Relaxed));
        IoeventSpec { address, length: 4, datamatch: None }
    }
    vec![
        (Call::CreateDevice, |vm, _| vm.create_device(DeviceKind::Its).map(drop).map_err(|e| e.errno)),
        (Call::TestDevice, |vm, _| vm.supports_device(DeviceKind::Its).map(drop).map_err(|e| e.errno)),
        (Call::HasAttr, |_, gic| gic.has_attr(arm::CTRL_INIT).map(drop).map_err(|e| e.errno)),
        (Call::SetAttr, |_, gic| {
            gic.set_attr(arm::ADDR_V3_DIST, AttrValue::U64(0x800_0000)).map_err(|e| e.errno)
        }),
        (Call::GetAttr, |_, gic| {
            gic.get_attr(arm::NR_IRQS, AttrValue::U32(0)).map(drop).map_err(|e| e.errno)
        }),
        (Call::SetRoutes, |vm, _| vm.set_routes(&[line(9, 9)]).map_err(|e| e.errno)),
        (Call::AssignIrqfd, |vm, _| {
            vm.assign_irqfd(eventfd().unwrap().as_fd(), Gsi::new(1), None).map_err(|e| e.errno)
        }),
        (Call::DeassignIrqfd, |vm, _| {
            vm.deassign_irqfd(eventfd().unwrap().as_fd(), Gsi::new(1)).map_err(|e| e.errno)
        }),
        (Call::AssignIoevent, |vm, _| {
            vm.assign_ioevent(eventfd().unwrap().as_fd(), event_spec()).map_err(|e| e.errno)
        }),
        (Call::DeassignIoevent, |vm, _| {
            let event = eventfd().unwrap();
            let spec = event_spec();
            let _ = vm.assign_ioevent(event.as_fd(), spec);
            vm.deassign_ioevent(event.as_fd(), spec).map_err(|e| e.errno)
        }),
        (Call::SignalMsi, |vm, _| {
            let _ = vm.create_device(DeviceKind::Its);
            let message = MsiMessage { address: 0, data: 0 };
            // Without an ITS there, EINVAL is the kernel's own answer.
            match vm.signal_msi(message, Some(DeviceId::new(1))).map_err(|e| e.errno) {
                Err(Errno::EINVAL) => Ok(()),
                other => other.map(drop),
            }
        }),
        (Call::SetSpi, |vm, _| vm.set_spi(spi(3), true).map_err(|e| e.errno)),
        (Call::SetPpi, |vm, _| vm.set_ppi(0, Ppi::new(3).unwrap(), true).map_err(|e| e.errno)),
        (Call::CheckCapability, |vm, _| vm.capability(Capability::IrqRouting).map(drop).map_err(|e| e.errno)),
        (Call::RunVcpu, |vm, gic| {
            let _ = gic.set_attr(arm::ADDR_V3_DIST, AttrValue::U64(0x800_0000));
            let _ = gic.set_attr(arm::ADDR_V3_REDIST, AttrValue::U64(0x80a_0000));
            vm.run_vcpu(0)
        }),
    ]
}

#[test]
fn each_kind_of_call_fails_when_asked_to_and_works_afterwards() {
    for (call, make) in every_call() {
        for errno in [Errno::ENOMEM, Errno::EINTR, Errno::new(4242)] {
            let (vm, gic) = ready();
            vm.inject(Fault::next(call, errno));
            assert_eq!(make(&vm, &*gic), Err(errno), "{call:?}");
            assert_eq!(make(&vm, &*gic), Ok(()), "{call:?}");
        }
    }
    let vm = FakeHost::x86().vm();
    vm.inject(Fault::next(Call::CreateIrqchip, Errno::ENOMEM));
    assert_eq!(vm.create_irqchip().unwrap_err().errno, Errno::ENOMEM);
    assert!(vm.create_irqchip().is_ok());
    let vm = FakeHost::x86().vm();
    vm.inject(Fault::next(Call::CreateVcpu, Errno::EMFILE));
    assert_eq!(vm.create_vcpu(0), Err(Errno::EMFILE));
    assert_eq!(vm.create_vcpu(0), Ok(()));
}

#[test]
fn a_call_that_fails_on_request_has_changed_nothing() {
    for (call, make) in every_call() {
        let (vm, gic) = ready();
        let before = (vm.live(), vm.routes(), vm.is_pending(spi(3).intid()));
        vm.inject(Fault::next(call, Errno::EIO));
        let _ = make(&vm, &*gic);
        let mut after = (vm.live(), vm.routes(), vm.is_pending(spi(3).intid()));
        if call == Call::DeassignIoevent {
            // Its preparation is not the call.
            after.0.ioevents -= 1;
        }
        assert_eq!(after, before, "{call:?}");
    }
    let (vm, gic) = ready();
    vm.inject(Fault::next(Call::SetAttr, Errno::EIO));
    let _ = gic.set_attr(arm::ADDR_V3_DIST, AttrValue::U64(0x800_0000));
    assert_eq!(gic.get_attr(arm::ADDR_V3_DIST, AttrValue::U64(0)), Ok(AttrValue::U64(u64::MAX)));
    vm.inject(Fault::next(Call::CreateDevice, Errno::EIO));
    let _ = vm.create_device(DeviceKind::Its);
    assert_eq!(vm.capability(Capability::MsiDeviceId), Ok(0));
}

#[test]
fn a_fault_waits_for_its_turn() {
    let (vm, _gic) = ready();
    vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM).after(2));
    let answers: Vec<bool> = (0..4)
        .map(|_| {
            // Another kind of call does not count.
            vm.set_spi(spi(0), false).unwrap();
            vm.set_routes(&[]).is_ok()
        })
        .collect();
    assert_eq!(answers, [true, true, false, true]);
}

#[test]
fn a_fault_of_any_kind_counts_all_calls() {
    let (vm, _gic) = ready();
    vm.inject(Fault::any(Errno::ENOMEM).after(1));
    assert!(vm.set_routes(&[]).is_ok());
    assert!(vm.set_spi(spi(0), true).is_err());
    assert!(vm.set_spi(spi(0), true).is_ok());
}

#[test]
fn a_persistent_fault_stays_until_it_is_cleared() {
    let (vm, _gic) = ready();
    vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM).after(1).persistent());
    assert!(vm.set_routes(&[]).is_ok());
    for _ in 0..3 {
        assert!(vm.set_routes(&[]).is_err());
    }
    vm.clear_faults();
    assert!(vm.set_routes(&[]).is_ok());
}

#[test]
fn of_two_faults_for_one_call_the_second_waits() {
    let (vm, _gic) = ready();
    vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM));
    vm.inject(Fault::next(Call::SetRoutes, Errno::EINTR));
    let errno = || vm.set_routes(&[]).map_err(|e| e.errno);
    assert_eq!([errno(), errno(), errno()], [Err(Errno::ENOMEM), Err(Errno::EINTR), Ok(())]);
}

#[test]
fn calls_are_counted_and_logged_with_their_answers() {
    let (vm, _gic) = ready();
    vm.forget_calls();
    vm.set_routes(&[line(1, 1), line(2, 2), line(3, 3)]).unwrap();
    vm.set_routes(&[line(1, 5000)]).unwrap_err();
    vm.set_routes(&[line(1, 1)]).unwrap();
    vm.run_vcpu(9).unwrap_err();
    assert_eq!((vm.count(Call::SetRoutes), vm.count(Call::RunVcpu), vm.total_calls()), (3, 1, 4));
    assert_eq!(vm.routes_copied(), 4, "what was refused was not installed");
    let log = vm.calls();
    assert_eq!(log[1].operation, Some(Operation::SetRoutes { entries: 1 }));
    assert_eq!(log[1].result, Err(Errno::EINVAL));
    assert_eq!((log[3].call, &log[3].operation, log[3].result), (Call::RunVcpu, &None, Err(Errno::EBADF)));
    vm.forget_calls();
    assert_eq!((vm.total_calls(), vm.routes_copied(), vm.calls().len()), (0, 0, 0));
}

#[test]
fn what_is_left_behind_shows() {
    let (vm, _gic) = ready();
    let (plain, level, resample) = (eventfd().unwrap(), eventfd().unwrap(), eventfd().unwrap());
    let spec = IoeventSpec { address: IoAddress::Mmio(0), length: 0, datamatch: None };
    let empty = vm.live();
    assert_eq!(empty, Live { routes: 224, ..Live::default() });
    vm.assign_irqfd(plain.as_fd(), Gsi::new(1), None).unwrap();
    vm.assign_irqfd(level.as_fd(), Gsi::new(2), Some(resample.as_fd())).unwrap();
    vm.assign_ioevent(plain.as_fd(), spec).unwrap();
    assert_eq!(vm.live(), Live { irqfds: 2, resampling: 1, ioevents: 1, routes: 224 });
    vm.deassign_ioevent(plain.as_fd(), spec).unwrap();
    vm.deassign_irqfd(level.as_fd(), Gsi::new(2)).unwrap();
    vm.deassign_irqfd(plain.as_fd(), Gsi::new(1)).unwrap();
    assert_eq!(vm.live(), empty);
}

#[test]
fn what_was_signalled_before_a_call_arrives_before_it() {
    let (vm, _gic) = ready();
    vm.guest().configure_spi(spi(1), TriggerMode::Edge).unwrap();
    let event = eventfd().unwrap();
    vm.assign_irqfd(event.as_fd(), Gsi::new(1), None).unwrap();
    signal(&event).unwrap();
    vm.set_routes(&[]).unwrap();
    assert_eq!(vm.guest().take_all(9), [Interrupt::Intid(spi(1).intid())]);
    signal(&event).unwrap();
    vm.deassign_irqfd(event.as_fd(), Gsi::new(1)).unwrap();
    assert_eq!(vm.guest().take_all(9), []);
}

#[test]
fn interrupts_are_taken_by_priority_and_number() {
    let (vm, gic) = ready();
    for n in [3, 1, 2] {
        vm.guest().configure_spi(spi(n), TriggerMode::Edge).unwrap();
        vm.set_spi(spi(n), true).unwrap();
    }
    // SPI 1, INTID 33, the second byte.
    gic.set_attr(arm::dist_reg(0, 0x420), AttrValue::U32(0x8000)).unwrap();
    let taken = vm.guest().take_all(9);
    assert_eq!(taken, [2, 3, 1].map(|n| Interrupt::Intid(spi(n).intid())));
    assert_eq!(vm.raised(taken[0]), 1);
}

#[test]
fn a_level_that_nobody_lowers_comes_up_to_the_limit() {
    let (vm, _gic) = ready();
    vm.guest().configure_spi(spi(1), TriggerMode::Level).unwrap();
    vm.set_spi(spi(1), true).unwrap();
    assert!(vm.line_is_high(spi(1)));
    assert_eq!(vm.guest().take_all(5).len(), 5);
    vm.set_spi(spi(1), false).unwrap();
    assert_eq!(vm.guest().take_all(5).len(), 0);
}

#[test]
fn a_guest_configures_nothing_before_there_is_something() {
    let vm = FakeHost::arm64_gicv3().vm();
    assert_eq!(vm.guest().configure_spi(spi(0), TriggerMode::Edge), Err(Errno::ENODEV));
    assert_eq!(vm.guest().configure_ioapic_pin(0, TriggerMode::Edge), Err(Errno::ENODEV));
    let (vm, _gic) = ready();
    assert_eq!(vm.guest().configure_spi(spi(224), TriggerMode::Edge), Err(Errno::EINVAL));
}

#[test]
fn clones_are_the_same_vm_and_hosts_make_different_ones() {
    let (vm, _gic) = ready();
    let same = vm.clone();
    same.set_routes(&[]).unwrap();
    assert_eq!(vm.live().routes, 0);
    assert_eq!(RoutingSink::vm_id(&vm), IrqfdBinder::vm_id(&same));
    assert_ne!(RoutingSink::vm_id(&vm), RoutingSink::vm_id(&FakeHost::arm64_gicv3().vm()));
}

#[test]
fn a_host_may_have_less() {
    let vm = FakeHost { routing_limit: 64, its: false, ..FakeHost::arm64_gicv3() }.vm();
    assert_eq!(vm.capability(Capability::IrqRouting), Ok(64));
    assert_eq!(vm.set_routes(&[line(64, 0)]).unwrap_err().errno, Errno::EINVAL);
    assert_eq!(vm.create_device(DeviceKind::Its).unwrap_err().errno, Errno::ENODEV);
}

#[test]
fn eventfds_drain_without_blocking() {
    let event = eventfd().unwrap();
    assert_eq!(drain(&event).unwrap(), 0);
    signal(&event).unwrap();
    signal(&event).unwrap();
    assert_eq!(drain(&event).unwrap(), 2);
    assert_eq!(drain(&event).unwrap(), 0);
}
