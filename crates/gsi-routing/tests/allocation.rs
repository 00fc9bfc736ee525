// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who has which GSI.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{arm, device, in_kernel, msi, x86};
use gsi_routing::{Error, Router, models};
use irq_types::{Gsi, Intid, IrqchipPin, Pin, Spi};
use irqchip::fake::{Call, FakeHost, Fault};
use irqchip::{Errno, IrqchipReady, Route, RouteTarget};

fn spi(n: u32) -> Spi {
    Spi::new(n).unwrap()
}

fn line(gsi: u32, irqchip: u32, pin: u32) -> Route {
    Route { gsi: Gsi::new(gsi), target: RouteTarget::Line(IrqchipPin { irqchip, pin: Pin::new(pin) }) }
}

#[test]
fn the_lowest_free_gsi_is_given() {
    let (_vm, router) = arm(64);
    let a = router.allocate().unwrap();
    let b = router.allocate().unwrap();
    let c = router.allocate().unwrap();
    assert_eq!([&a, &b, &c].map(|h| h.gsi().get()), [64, 65, 66]);
    assert!(b.targets().is_empty());
    drop(b);
    assert_eq!(router.allocate().unwrap().gsi().get(), 65, "without a route it is free at once");
}

#[test]
fn a_gsi_is_not_given_again_while_its_route_is_in_the_kernel() {
    let (vm, router) = arm(64);
    let gone = router.add_msi(msi(0), device(0)).unwrap();
    let gsi = gone.gsi();
    vm.forget_calls();
    drop(gone);
    assert_eq!(vm.total_calls(), 0, "dropping cannot fail, since it does not call");
    assert_eq!(router.usage().withdrawn, 1);
    assert!(vm.routes().iter().any(|route| route.gsi == gsi));
    let other = router.allocate().unwrap();
    assert_ne!(other.gsi(), gsi);
    // Anybody's commit takes it out.
    let mut transaction = router.transaction();
    transaction.set_msi(&other, msi(1), device(0)).unwrap();
    transaction.commit().unwrap();
    assert!(!vm.routes().iter().any(|route| route.gsi == gsi));
    assert_eq!(router.allocate().unwrap().gsi(), gsi);
    assert_eq!(vm.count(Call::SetRoutes), 1);
}

#[test]
fn when_only_withdrawn_gsis_are_left_allocating_commits_them_away() {
    let (vm, router) = arm(32);
    let vectors = router.allocate_many(4064).unwrap();
    let mut transaction = router.transaction();
    for vector in &vectors {
        transaction.set_msi(vector, msi(0), device(0)).unwrap();
    }
    transaction.commit().unwrap();
    drop(vectors);
    vm.forget_calls();
    vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM));
    assert!(matches!(router.allocate(), Err(Error::Commit { source, .. }) if source.errno == Errno::ENOMEM));
    assert_eq!(router.allocate().unwrap().gsi().get(), 32);
    assert_eq!((vm.count(Call::SetRoutes), vm.routes().len()), (2, 32));
}

#[test]
fn a_budget_is_kept_whatever_others_take() {
    let (_vm, router) = arm(32);
    let budget = router.reserve_budget(16).unwrap();
    let rest = router.allocate_many(4064 - 16).unwrap();
    let error = router.allocate().unwrap_err();
    assert_eq!(error, Error::Exhausted { wanted: 1, available: 0, limit: 4096, promised: 16 });
    assert!(matches!(router.reserve_budget(1), Err(Error::Exhausted { .. })));
    assert!(router.reserve_range(4080..4096).is_err());
    let vectors: Vec<_> = (0..16).map(|_| budget.allocate().unwrap()).collect();
    assert_eq!(budget.left(), 0);
    assert!(matches!(budget.allocate(), Err(Error::Exhausted { .. })));
    // What is given up goes back to the budget, not to the others.
    drop(vectors);
    assert_eq!(budget.left(), 16);
    assert!(router.allocate().is_err());
    drop(rest);
    budget.grow(4).unwrap();
    assert_eq!(budget.shrink(10), 10);
    assert_eq!(budget.shrink(100), 10);
    drop(budget);
    assert_eq!(router.usage().promised, 0);
    assert_eq!(router.allocate_many(4064).unwrap().len(), 4064);
}

#[test]
fn a_device_that_does_not_fit_is_refused_as_a_whole() {
    let (vm, router) = arm(32);
    let usage = router.usage();
    let error = router.reserve_budget(4065).unwrap_err();
    assert_eq!(error, Error::Exhausted { wanted: 4065, available: 4064, limit: 4096, promised: 0 });
    assert_eq!(
        error.to_string(),
        "4065 GSIs are wanted, 4064 are free: 4096 is the limit, 0 are promised to others"
    );
    assert!(router.allocate_many(4065).is_err());
    assert_eq!((router.usage(), vm.total_calls()), (usage, 0));
}

#[test]
fn an_owner_outlives_its_budget() {
    let (_vm, router) = arm(64);
    let budget = router.reserve_budget(2).unwrap();
    let vector = budget.allocate().unwrap();
    drop(budget);
    assert_eq!((router.usage().owned, router.usage().promised), (1, 0));
    drop(vector);
    assert_eq!((router.usage().owned, router.usage().promised), (0, 0));
}

#[test]
fn a_reserved_range_is_given_by_number_only() {
    let (_vm, router) = arm(64);
    let range = router.reserve_range(64..68).unwrap();
    assert_eq!(router.allocate().unwrap().gsi().get(), 68);
    let handle = range.claim(Gsi::new(66)).unwrap();
    assert_eq!(range.claim(Gsi::new(66)).unwrap_err(), Error::Taken { gsi: Gsi::new(66) });
    assert_eq!(range.claim(Gsi::new(68)).unwrap_err(), Error::Taken { gsi: Gsi::new(68) });
    let not_free = |range: std::ops::Range<u32>| router.reserve_range(range).unwrap_err();
    assert_eq!(not_free(67..70), Error::RangeNotFree { first: 67, last: 69 });
    assert_eq!(not_free(60..66), Error::RangeNotFree { first: 60, last: 65 }, "lines are not for sale");
    assert_eq!(not_free(4095..4097), Error::RangeNotFree { first: 4095, last: 4096 });
    assert!(matches!(not_free(70..70), Error::RangeNotFree { .. }));
    drop(range);
    assert_eq!(router.allocate().unwrap().gsi().get(), 64);
    assert_eq!(handle.gsi().get(), 66, "an owner outlives the range");
}

#[test]
fn a_reserved_gsi_is_counted_while_nobody_has_it() {
    let (_vm, router) = arm(64);
    let range = router.reserve_range(64..68).unwrap();
    let reserved = || (router.usage().reserved, router.usage().withdrawn);
    assert_eq!(reserved(), (4, 0));
    let handle = range.claim(Gsi::new(66)).unwrap();
    assert_eq!(reserved(), (3, 0));
    let mut transaction = router.transaction();
    transaction.set_msi(&handle, msi(0), device(0)).unwrap();
    transaction.commit().unwrap();
    drop(handle);
    assert_eq!(reserved(), (3, 1));
    router.flush().unwrap();
    assert_eq!(reserved(), (4, 0));
    drop(range);
    assert_eq!(reserved(), (0, 0));
}

#[test]
fn beside_a_reserved_range_a_budget_gets_gsis_whose_routes_are_still_there() {
    let (_vm, router) = arm(32);
    let gone: Vec<_> = (0..4).map(|event| router.add_msi(msi(event), device(0)).unwrap()).collect();
    drop(gone);
    let budget = router.reserve_budget(4).unwrap();
    let _range = router.reserve_range(36..4096).unwrap();
    let vectors: Vec<_> = (0..4).map(|_| budget.allocate().unwrap()).collect();
    assert_eq!(vectors.iter().map(|vector| vector.gsi().get()).collect::<Vec<_>>(), [32, 33, 34, 35]);
}

#[test]
fn a_route_withdrawn_within_a_range_that_is_given_up_becomes_anybodys() {
    let (_vm, router) = arm(32);
    let range = router.reserve_range(4000..4096).unwrap();
    let handle = range.claim(Gsi::new(4095)).unwrap();
    let mut transaction = router.transaction();
    transaction.set_msi(&handle, msi(0), device(0)).unwrap();
    transaction.commit().unwrap();
    drop(handle);
    drop(range);
    let all = router.allocate_many(4064).unwrap();
    assert!(all.iter().any(|handle| handle.gsi().get() == 4095));
}

#[test]
fn claiming_a_default_route_costs_nothing() {
    let (vm, router) = arm(64);
    let uart = router.claim_spi(spi(4)).unwrap();
    assert_eq!((uart.gsi().get(), vm.total_calls()), (4, 0));
    assert_eq!(router.claim_spi(spi(4)).unwrap_err(), Error::Taken { gsi: Gsi::new(4) });
    drop(uart);
    assert_eq!(router.claim_spi(spi(4)).unwrap().gsi().get(), 4);
    assert_eq!((vm.total_calls(), router.usage().withdrawn), (0, 0));
}

#[test]
fn released_default_routes_leave_with_the_next_commit_and_come_back_when_claimed() {
    let (vm, router) = arm(64);
    let uart = router.claim_spi(spi(4)).unwrap();
    router.release_default_routes();
    router.release_default_routes();
    assert_eq!(vm.total_calls(), 0);
    let vector = router.add_msi(msi(0), device(0)).unwrap();
    assert_eq!(vm.routes().len(), 2, "the UART's line and the MSI");
    assert_eq!(vm.count(Call::SetRoutes), 1);
    let rtc = router.claim_spi(spi(5)).unwrap();
    assert!(in_kernel(&vm).contains(&line(5, 0, 5)));
    drop((rtc, uart, vector));
    router.flush().unwrap();
    assert_eq!(vm.routes(), []);
    assert_eq!(router.usage().entries, 0);
}

#[test]
fn the_pit_keeps_its_route_on_x86() {
    let (vm, router) = x86();
    router.release_default_routes();
    router.flush().unwrap();
    assert_eq!(in_kernel(&vm), [line(0, 0, 0), line(0, 2, 0)], "arch/x86/kvm/i8254.c fires GSI 0");
    assert_eq!(router.usage().entries, 2);
}

#[test]
fn only_spis_are_lines() {
    let (_vm, router) = arm(64);
    for intid in [0, 15, 16, 27, 31, 8192] {
        let intid = Intid::new(intid).unwrap();
        assert_eq!(router.claim_intid(intid).unwrap_err(), Error::NotRoutable(intid));
    }
    assert_eq!(router.claim_intid(Intid::new(32).unwrap()).unwrap().gsi().get(), 0);
    assert_eq!(
        Error::NotRoutable(Intid::new(27).unwrap()).to_string(),
        "PPI 11 cannot be routed to: only SPIs are lines of the routing table"
    );
}

#[test]
fn a_line_that_this_vm_does_not_have_cannot_be_claimed() {
    let (_vm, router) = arm(64);
    let error = router.claim_spi(spi(64)).unwrap_err();
    assert_eq!(error, Error::NoSuchLine { gsi: Gsi::new(64), model: "GIC", lines: 64 });
    let (_vm, router) = x86();
    assert!(matches!(router.claim_line(Gsi::new(24)), Err(Error::NoSuchLine { .. })));
    assert!(matches!(router.claim_spi(spi(3)), Err(Error::NoSpis { .. })), "x86 has no SPIs");
}

#[test]
fn a_claim_whose_commit_fails_is_undone() {
    let (vm, router) = arm(64);
    router.release_default_routes();
    router.flush().unwrap();
    let usage = router.usage();
    vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM));
    assert!(matches!(router.claim_spi(spi(4)), Err(Error::Commit { changed: 1, .. })));
    assert_eq!(router.usage(), usage);
    router.claim_spi(spi(4)).unwrap();
}

#[test]
fn a_second_pin_does_not_take_the_room_of_a_budget() {
    // 42 entries, 40 of them default routes: room for two.
    let vm = Arc::new(FakeHost { routing_limit: 42, ..FakeHost::x86() }.vm());
    let ready = IrqchipReady::create_pic_and_ioapic(&*vm).unwrap();
    let router = Router::new(vm.clone(), &*vm, &ready, &models::X86_PIC_IOAPIC).unwrap();
    let line = router.claim_line(Gsi::new(1)).unwrap();
    let mut transaction = router.transaction();
    transaction.clear(&line).unwrap();
    transaction.commit().unwrap();
    let budget = router.reserve_budget(1).unwrap();
    let other = router.allocate().unwrap();
    vm.forget_calls();
    let mut transaction = router.transaction();
    for irqchip in [0, 2] {
        transaction.add_line(&other, IrqchipPin { irqchip, pin: Pin::new(1) }).unwrap();
    }
    let error = transaction.commit().unwrap_err();
    assert_eq!(error, Error::TooManyEntries { entries: 42, promised: 1, limit: 42 });
    assert_eq!(vm.total_calls(), 0);
    drop(budget);
    transaction.commit().unwrap();
}
