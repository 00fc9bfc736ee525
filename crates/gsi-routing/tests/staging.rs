// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is refused when it is staged, and what a commit sends.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{CountingVm, arm, arm_vm, believed, device, in_kernel, msi, x86};
use gsi_routing::{Entry, Error, Router, Target, Targets, V2mFrame, models};
use irq_types::{DeviceId, Gsi, IrqchipPin, MsiMessage, Pin, Spi};
use irqchip::fake::{Call, FakeHost, Fault, Interrupt};
use irqchip::{
    Capability, CreateDevice, DeviceKind, Errno, IrqchipReady, MsiDelivery, Route, RouteTarget, RoutingSink,
};

fn pin(irqchip: u32, pin: u32) -> IrqchipPin {
    IrqchipPin { irqchip, pin: Pin::new(pin) }
}

#[test]
fn the_vm_is_asked_once_each() {
    let (vm, router) = CountingVm::router(&models::ARM_GIC, 64);
    for event in 0..8 {
        let _vector = router.add_msi(msi(event), device(0)).unwrap();
    }
    assert_eq!(vm.log().questions, [Capability::IrqRouting, Capability::MsiDeviceId]);
}

#[test]
fn a_router_needs_the_token_of_its_own_vm() {
    let (vm, _) = arm_vm(64, true);
    let (_other, token) = arm_vm(64, true);
    let error = Router::new(vm.clone(), &*vm, &token, &models::ARM_GIC).unwrap_err();
    assert_eq!(error, Error::OtherVm);
}

#[test]
fn a_vm_without_a_table_or_without_an_answer_is_refused() {
    for limit in [0, 63] {
        let vm = CountingVm::new(limit, true);
        let error = Router::new(vm.clone(), &*vm, &vm.ready(64), &models::ARM_GIC).unwrap_err();
        assert_eq!(error, Error::NoTable { model: "GIC", needed: 64, limit });
    }
    let lines_alone = CountingVm::new(64, true);
    Router::new(lines_alone.clone(), &*lines_alone, &lines_alone.ready(64), &models::ARM_GIC).unwrap();
    let (vm, ready) = arm_vm(64, true);
    for occurrence in 0..2 {
        vm.inject(Fault::next(Call::CheckCapability, Errno::EINVAL).after(occurrence));
        let error = Router::new(vm.clone(), &*vm, &ready, &models::ARM_GIC).unwrap_err();
        assert!(matches!(&error, Error::Probe(source) if source.errno == Errno::EINVAL), "{error:?}");
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[test]
fn the_kernels_default_routes_are_taken_over() {
    for spis in [32, 224, 960] {
        let (vm, router) = arm(spis);
        assert_eq!(believed(&router), in_kernel(&vm));
        assert_eq!(router.snapshot().table().entries().len(), spis as usize);
        // The first commit of anybody keeps them.
        let vector = router.add_msi(msi(0), device(0)).unwrap();
        assert_eq!(vm.routes().len(), spis as usize + 1);
        drop(vector);
    }
    let (vm, router) = x86();
    assert_eq!(believed(&router), in_kernel(&vm));
    assert_eq!(vm.routes().len(), 40);
}

#[test]
fn device_ids_reach_the_kernel_exactly_where_the_vm_wants_them() {
    // An ITS: wanted.
    let (vm, router) = arm(64);
    assert!(router.msi_policy().needs_device_id());
    let _vector = router.add_msi(msi(3), device(2)).unwrap();
    let want = RouteTarget::Msi { message: msi(3), device_id: Some(device(2)) };
    assert_eq!(in_kernel(&vm).last().unwrap().target, want);
    // x86: an extra flag might be refused. The sender is known all the same.
    let (vm, router) = x86();
    assert!(!router.msi_policy().needs_device_id());
    let vector = router.add_msi(msi(3), device(2)).unwrap();
    let want = RouteTarget::Msi { message: msi(3), device_id: None };
    assert_eq!(in_kernel(&vm).last().unwrap().target, want);
    assert_eq!(vector.targets(), Targets::Msi { message: msi(3), device_id: device(2) });
}

#[test]
fn injected_msis_carry_device_ids_as_routes_do() {
    let (vm, router) = arm(64);
    let lpi = irq_types::Lpi::new(8200).unwrap();
    vm.guest().map_event(device(2), irq_types::EventId::new(3), lpi).unwrap();
    assert_eq!(router.signal_msi(&*vm, msi(3), device(2)).unwrap(), MsiDelivery::Delivered);
    assert_eq!(vm.guest().take_all(2), [Interrupt::Intid(lpi.intid())]);
    let (vm, router) = x86();
    vm.create_vcpu(0).unwrap();
    assert_eq!(router.signal_msi(&*vm, msi(3), device(2)).unwrap(), MsiDelivery::Delivered);
    let calls = vm.calls();
    let operation = calls.last().unwrap().operation.as_ref().unwrap();
    assert!(matches!(operation, irqchip::Operation::SignalMsi { device_id: None, .. }), "{operation}");
}

#[test]
fn an_msi_that_nobody_receives_is_refused() {
    // A GIC without ITS: the kernel would take the route and lose each interrupt.
    let (vm, ready) = arm_vm(64, false);
    let router = Router::new(vm.clone(), &*vm, &ready, &models::ARM_GIC).unwrap();
    vm.forget_calls();
    let error = router.add_msi(msi(0), device(0)).unwrap_err();
    assert_eq!(error, Error::NoMsiReceiver { gsi: Gsi::new(64), message: msi(0) });
    assert_eq!((vm.total_calls(), router.usage().owned), (0, 0));
}

#[test]
fn a_device_id_wider_than_the_its_knows_is_refused() {
    let (_vm, router) = arm(64);
    router.add_msi(msi(0), DeviceId::new(0xffff)).unwrap();
    let error = router.add_msi(msi(0), DeviceId::new(0x1_0000)).unwrap_err();
    assert!(matches!(error, Error::DeviceIdTooWide { bits: 16, .. }), "{error}");
}

#[test]
fn pins_are_checked_against_this_vm() {
    let (_vm, router) = arm(64);
    let handle = router.allocate().unwrap();
    let gsi = handle.gsi();
    let mut transaction = router.transaction();
    // (irqchip, pin) and why not. The kernel takes pin 64 to 987 too.
    let refused = [
        (pin(0, 64), Error::NoSuchPin { gsi, pin: pin(0, 64), chip: "GIC", first: 0, last: 63 }),
        (pin(0, 987), Error::NoSuchPin { gsi, pin: pin(0, 987), chip: "GIC", first: 0, last: 63 }),
        (pin(0, u32::MAX), Error::NoSuchPin { gsi, pin: pin(0, u32::MAX), chip: "GIC", first: 0, last: 63 }),
        (pin(1, 0), Error::NoSuchChip { gsi, pin: pin(1, 0), model: "GIC" }),
    ];
    for (pin, error) in refused {
        assert_eq!(transaction.add_line(&handle, pin), Err(error));
    }
    assert!(transaction.is_empty());

    let (_vm, router) = x86();
    let handle = router.allocate().unwrap();
    for (pin, fits) in [
        (pin(0, 7), true),
        (pin(0, 8), false),
        (pin(1, 7), true),
        (pin(1, 8), false),
        (pin(2, 23), true),
        (pin(2, 24), false),
        (pin(3, 0), false),
    ] {
        assert_eq!(router.transaction().add_line(&handle, pin).is_ok(), fits, "{pin}");
    }
}

#[test]
fn two_pins_of_one_chip_on_one_gsi_are_refused() {
    let (_vm, router) = x86();
    let handle = router.allocate().unwrap();
    let mut transaction = router.transaction();
    transaction.add_line(&handle, pin(0, 3)).unwrap();
    transaction.add_line(&handle, pin(2, 3)).unwrap();
    let error = transaction.add_line(&handle, pin(2, 4)).unwrap_err();
    assert_eq!(error, Error::DuplicateChip { gsi: handle.gsi(), pin: pin(2, 4) });
    transaction.add_line(&handle, pin(2, 3)).unwrap();
    assert_eq!(transaction.len(), 1);
}

#[test]
fn an_msi_and_a_line_on_one_gsi_are_refused() {
    let (vm, router) = arm(64);
    let gsi_of_line = router.claim_spi(Spi::new(1).unwrap()).unwrap();
    let vector = router.add_msi(msi(0), device(0)).unwrap();
    vm.forget_calls();
    let mut transaction = router.transaction();
    let mixed = |gsi| Err(Error::Mixed { gsi });
    assert_eq!(transaction.set_msi(&gsi_of_line, msi(1), device(0)), mixed(gsi_of_line.gsi()));
    assert_eq!(transaction.add_line(&vector, pin(0, 1)), mixed(vector.gsi()));
    // Staged counts as committed does, and clearing makes room.
    transaction.clear(&vector).unwrap();
    transaction.clear(&gsi_of_line).unwrap();
    transaction.add_line(&vector, pin(0, 1)).unwrap();
    assert_eq!(transaction.set_msi(&vector, msi(1), device(0)), mixed(vector.gsi()));
    transaction.commit().unwrap();
    assert_eq!(vector.targets(), Targets::Lines(vec![pin(0, 1)]));
    assert_eq!(in_kernel(&vm), believed(&router));
}

#[test]
fn two_gsis_on_one_pin_are_refused_since_only_one_would_hear_of_the_eoi() {
    let (vm, router) = arm(64);
    let handle = router.allocate().unwrap();
    let mut transaction = router.transaction();
    transaction.add_line(&handle, pin(0, 7)).unwrap();
    let error = transaction.commit().unwrap_err();
    assert_eq!(error, Error::PinTaken { gsi: handle.gsi(), pin: pin(0, 7), other: Gsi::new(7) });
    assert_eq!((vm.total_calls(), router.counters().refused), (0, 1));
    // x86's timer is wired to pin 2 of the IOAPIC on real machines: move it there, in one commit.
    let (vm, router) = x86();
    let timer = router.claim_line(Gsi::new(0)).unwrap();
    let cascade = router.claim_line(Gsi::new(2)).unwrap();
    let mut transaction = router.transaction();
    transaction.clear(&cascade).unwrap();
    transaction.clear(&timer).unwrap();
    transaction.add_line(&timer, pin(0, 0)).unwrap();
    transaction.add_line(&timer, pin(2, 2)).unwrap();
    transaction.commit().unwrap();
    assert_eq!(vm.count(Call::SetRoutes), 1);
    assert_eq!(in_kernel(&vm), believed(&router));
    // The cascade's owner leaves while the timer has its pin: nothing to put back, and nobody is held up.
    drop(cascade);
    router.flush().unwrap();
    assert_eq!(timer.targets(), Targets::Lines(vec![pin(0, 0), pin(2, 2)]));
    let error = router.claim_line(Gsi::new(2)).unwrap_err();
    assert_eq!(error, Error::PinTaken { gsi: Gsi::new(2), pin: pin(2, 2), other: Gsi::new(0) });
}

#[test]
fn a_handle_works_on_its_own_router_only() {
    let (_vm, router) = arm(64);
    let (_other_vm, other) = arm(64);
    let stranger = other.allocate().unwrap();
    let mut transaction = router.transaction();
    let refused = Err(Error::OtherRouter { gsi: stranger.gsi() });
    assert_eq!(transaction.set_msi(&stranger, msi(0), device(0)), refused);
    assert_eq!(transaction.add_line(&stranger, pin(0, 0)), refused);
    assert_eq!(transaction.clear(&stranger), refused);
}

#[test]
fn a_commit_that_changes_nothing_costs_no_call() {
    let (vm, router) = arm(64);
    let vector = router.add_msi(msi(0), device(0)).unwrap();
    let before = router.snapshot();
    vm.forget_calls();
    assert!(!router.transaction().commit().unwrap().installed);
    let mut transaction = router.transaction();
    transaction.set_msi(&vector, msi(1), device(0)).unwrap();
    transaction.set_msi(&vector, msi(0), device(0)).unwrap();
    let commit = transaction.commit().unwrap();
    assert!(!commit.installed);
    assert_eq!(commit.generation, before.generation());
    assert!(!router.flush().unwrap().installed);
    assert_eq!((vm.total_calls(), router.counters().skipped), (0, 3));
}

#[test]
fn a_new_sender_costs_no_call_where_the_kernel_is_not_told() {
    let (vm, router) = x86();
    let vector = router.add_msi(msi(0), device(0)).unwrap();
    let generation = router.snapshot().generation();
    vm.forget_calls();
    let mut transaction = router.transaction();
    transaction.set_msi(&vector, msi(0), device(1)).unwrap();
    let commit = transaction.commit().unwrap();
    assert_eq!((commit.installed, commit.generation, vm.total_calls()), (false, generation + 1, 0));
    assert_eq!(router.counters().skipped, 1);
    assert_eq!(vector.targets(), Targets::Msi { message: msi(0), device_id: device(1) });
}

#[test]
fn changes_of_a_dropped_handle_are_dropped() {
    let (vm, router) = arm(64);
    let gone = router.allocate().unwrap();
    let gsi = gone.gsi();
    let mut transaction = router.transaction();
    transaction.set_msi(&gone, msi(0), device(0)).unwrap();
    drop(gone);
    // Somebody else has the number now, and another transaction's word on it.
    let heir = router.allocate().unwrap();
    assert_eq!(heir.gsi(), gsi);
    transaction.commit().unwrap();
    assert_eq!((heir.targets(), vm.total_calls()), (Targets::Nothing, 0));
    // Staging for the heir in the old transaction starts from the heir's state.
    let mut transaction = router.transaction();
    transaction.set_msi(&heir, msi(0), device(0)).unwrap();
    drop(heir);
    let heir = router.allocate().unwrap();
    transaction.add_line(&heir, pin(0, 0)).unwrap();
}

#[test]
fn an_uncommitted_transaction_changes_nothing() {
    let (vm, router) = arm(64);
    let vector = router.add_msi(msi(0), device(0)).unwrap();
    vm.forget_calls();
    let before = router.snapshot();
    let mut transaction = router.transaction();
    transaction.clear(&vector).unwrap();
    drop(transaction);
    assert_eq!((router.snapshot(), vm.total_calls()), (before, 0));
}

#[test]
fn snapshots_differ_by_what_was_committed_between_them() {
    let (_vm, router) = arm(64);
    let entry = |gsi: Gsi, event, id| Entry {
        gsi,
        target: Target::Msi { message: msi(event), device_id: device(id) },
    };
    let start = router.snapshot();
    let a = router.add_msi(msi(0), device(0)).unwrap();
    let b = router.add_msi(msi(1), device(0)).unwrap();
    let middle = router.snapshot();
    assert_eq!(start.generation() + 2, middle.generation());
    assert_eq!(start.diff(&middle).added, [entry(a.gsi(), 0, 0), entry(b.gsi(), 1, 0)]);
    assert_eq!(middle.diff(&start).removed, [entry(a.gsi(), 0, 0), entry(b.gsi(), 1, 0)]);

    let mut transaction = router.transaction();
    transaction.set_msi(&b, msi(1), device(3)).unwrap();
    transaction.clear(&a).unwrap();
    transaction.commit().unwrap();
    let end = router.snapshot();
    let diff = middle.diff(&end);
    assert_eq!(diff.added, [entry(b.gsi(), 1, 3)]);
    assert_eq!(diff.removed, [entry(a.gsi(), 0, 0), entry(b.gsi(), 1, 0)]);
    assert!(end.diff(&end).is_empty());
    assert_eq!(end.of(b.gsi()), [entry(b.gsi(), 1, 3)]);
    assert_eq!(end.into_iter().count(), 65);
    assert_eq!(entry(b.gsi(), 1, 3).to_string(), "GSI 65 -> MSI 0x8090040 <- 0x1 from device ID 0x118");
}

#[test]
fn counters_count() {
    let (vm, router) = arm(64);
    let vector = router.add_msi(msi(0), device(0)).unwrap();
    vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM));
    let mut transaction = router.transaction();
    transaction.set_msi(&vector, msi(1), device(0)).unwrap();
    transaction.commit().unwrap_err();
    router.flush().unwrap();
    let counters = router.counters();
    assert_eq!((counters.commits, counters.failures, counters.skipped, counters.refused), (1, 1, 1, 0));
    assert_eq!(counters.entries_copied, 65 + 65);
    assert_eq!(counters.bytes_copied(), (8 + 65 * 48) * 2);
}

#[test]
fn reinstalling_hands_the_table_over_again() {
    let (vm, router) = arm(64);
    let _vector = router.add_msi(msi(0), device(0)).unwrap();
    vm.set_routes(&[]).unwrap();
    router.reinstall().unwrap();
    assert_eq!(in_kernel(&vm), believed(&router));
}

#[test]
fn an_msi_to_a_v2m_frame_becomes_a_route_to_its_spi() {
    let vm = Arc::new(FakeHost::arm64_gicv2().vm());
    let gic = vm.create_device(DeviceKind::GicV2).unwrap();
    for (address, value) in
        [(irqchip::arm::ADDR_V2_DIST, 0x800_0000), (irqchip::arm::ADDR_V2_CPU, 0x801_0000)]
    {
        gic.set_attr(address, irqchip::AttrValue::U64(value)).unwrap();
    }
    gic.set_attr(irqchip::arm::NR_IRQS, irqchip::AttrValue::U32(128)).unwrap();
    vm.create_vcpu(0).unwrap();
    let ready = IrqchipReady::init_vgic(&*gic, 96).unwrap();
    let spi = |n| Spi::new(n).unwrap();
    let frame = V2mFrame { setspi: 0x0802_0040, first: spi(32), count: 64 };
    let too_long = V2mFrame { count: 65, ..frame };
    let error = Router::with_v2m(vm.clone(), &*vm, &ready, &models::ARM_GIC, too_long).unwrap_err();
    assert_eq!(error, Error::FrameBeyondLines { first: spi(32), count: 65, lines: 96 });
    let router = Router::with_v2m(vm.clone(), &*vm, &ready, &models::ARM_GIC, frame).unwrap();

    let message = |data| MsiMessage { address: frame.setspi, data };
    let vector = router.add_msi(message(32 + 40), device(0)).unwrap();
    let want = Route { gsi: vector.gsi(), target: RouteTarget::Line(pin(0, 40)) };
    assert_eq!(in_kernel(&vm).last(), Some(&want));
    assert_eq!(vector.targets(), Targets::Msi { message: message(72), device_id: device(0) });
    assert_eq!(router.msi_policy().v2m_spi(message(72)), Some(spi(40)));
    // The guest moves the vector to another SPI: still an MSI to us.
    let mut transaction = router.transaction();
    transaction.set_msi(&vector, message(32 + 95), device(0)).unwrap();
    transaction.commit().unwrap();
    assert_eq!(in_kernel(&vm).last().unwrap().target, RouteTarget::Line(pin(0, 95)));
    // Beyond the frame on either side, no interrupt at all, or elsewhere.
    for bad in [message(32 + 31), message(32 + 96), message(5), message(1021), msi(72)] {
        assert!(matches!(router.add_msi(bad, device(0)), Err(Error::NoMsiReceiver { .. })), "{bad}");
    }
    // The frame's SPIs are no lines, its neighbours are.
    assert_eq!(router.claim_spi(spi(32)).unwrap_err(), Error::Taken { gsi: Gsi::new(32) });
    assert_eq!(router.claim_spi(spi(95)).unwrap_err(), Error::Taken { gsi: Gsi::new(95) });
    router.claim_spi(spi(31)).unwrap();
}
