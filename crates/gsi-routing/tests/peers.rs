// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where routers of other VMMs fall short: each test is one of their users' troubles.

mod common;

use std::sync::Arc;

use common::{arm, believed, device, in_kernel, msi};
use gsi_routing::{Error, GsiHandle};
use irq_types::{DeviceId, Gsi, Spi};
use irqchip::fake::{Call, Fault};
use irqchip::{Errno, Operation, RouteTarget};

#[test]
fn a_device_of_2048_vectors_is_enabled_in_one_commit() {
    let (vm, router) = arm(256);
    let vectors = router.allocate_many(2048).unwrap();
    let mut transaction = router.transaction();
    for (event, vector) in (0..).zip(&vectors) {
        transaction.set_msi(vector, msi(event), device(1)).unwrap();
    }
    transaction.commit().unwrap();
    assert_eq!(vm.count(Call::SetRoutes), 1);
    assert_eq!(vm.total_calls(), 1, "no question is asked for each entry");
    assert_eq!(vm.routes_copied(), 256 + 2048);
    assert_eq!(in_kernel(&vm), believed(&router));
}

#[test]
fn enabling_what_is_already_committed_costs_nothing() {
    // A guest unmasks 2048 programmed vectors one by one: the first unmask commits all, each later one finds its route there.
    let (vm, router) = arm(256);
    let vectors = router.allocate_many(2048).unwrap();
    for round in 0..2048 {
        let mut transaction = router.transaction();
        let wanted = if round == 0 { 0..2048 } else { round..round + 1 };
        for event in wanted {
            transaction.set_msi(&vectors[event], msi(u32::try_from(event).unwrap()), device(1)).unwrap();
        }
        transaction.commit().unwrap();
    }
    assert_eq!(vm.count(Call::SetRoutes), 1);
    assert_eq!(router.counters().skipped, 2047);
}

#[test]
fn a_commit_that_fails_leaves_table_allocator_and_kernel_as_they_were() {
    let (vm, router) = arm(64);
    let kept = router.add_msi(msi(0), device(1)).unwrap();
    let moved = router.add_msi(msi(1), device(1)).unwrap();
    let cleared = router.add_msi(msi(2), device(1)).unwrap();
    let (kernel, snapshot, usage) = (in_kernel(&vm), router.snapshot(), router.usage());

    for errno in [Errno::EINVAL, Errno::ENOMEM, Errno::E2BIG, Errno::EFAULT, Errno::EINTR] {
        vm.inject(Fault::next(Call::SetRoutes, errno));
        let mut transaction = router.transaction();
        let added = transaction.add_msi(msi(3), device(2)).unwrap();
        transaction.set_msi(&moved, msi(7), device(1)).unwrap();
        transaction.clear(&cleared).unwrap();
        let error = transaction.commit().unwrap_err();
        let Error::Commit { changed: 3, source } = &error else { panic!("{error:?}") };
        assert_eq!(source.errno, errno);
        assert_eq!(source.operation, Operation::SetRoutes { entries: 64 + 3 });
        assert!(error.to_string().contains("3 changed GSIs"), "{error}");
        drop(added);

        assert_eq!(in_kernel(&vm), kernel);
        assert_eq!(router.snapshot(), snapshot);
        assert_eq!(router.usage(), usage);
        assert!(Arc::ptr_eq(&router.snapshot(), &snapshot));
    }
    // The next one works, and so does trying the same transaction again.
    vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM));
    let mut transaction = router.transaction();
    transaction.set_msi(&moved, msi(7), device(1)).unwrap();
    transaction.commit().unwrap_err();
    assert_eq!((transaction.len(), transaction.is_empty()), (1, false));
    transaction.commit().unwrap();
    assert!(transaction.is_empty());
    assert_eq!(in_kernel(&vm), believed(&router));
    assert_eq!(vm.routes().len(), 64 + 3);
    drop(kept);
}

#[test]
fn ten_thousand_plug_and_unplug_cycles_return_to_the_start() {
    let (vm, router) = arm(64);
    let (kernel, usage, table) = (in_kernel(&vm), router.usage(), router.snapshot());
    for cycle in 0..10_000 {
        let budget = router.reserve_budget(4).unwrap();
        let mut transaction = router.transaction();
        let mut vectors = Vec::new();
        for event in 0..4 {
            let vector = budget.allocate().unwrap();
            transaction.set_msi(&vector, msi(event), device(cycle % 32)).unwrap();
            vectors.push(vector);
        }
        transaction.commit().unwrap();
        assert!(vectors.iter().all(|v| v.gsi().get() < 64 + 8), "{vectors:?}: numbers are used again");
        drop((vectors, budget));
    }
    router.flush().unwrap();
    assert_eq!(router.usage(), usage);
    assert_eq!(in_kernel(&vm), kernel);
    assert_eq!(router.snapshot().table(), table.table());
    assert_eq!(vm.count(Call::SetRoutes), 10_001, "one a cycle, which withdraws the last cycle's routes");
}

#[test]
fn three_devices_of_2048_vectors_that_use_16_each_fit() {
    let (vm, router) = arm(960);
    // All vectors are there for the guest to see; only those it unmasks take a GSI.
    let mut devices: Vec<Vec<Option<GsiHandle>>> =
        (0..3).map(|_| (0..2048).map(|_| None).collect()).collect();
    let budgets: Vec<_> = (0..3).map(|_| router.reserve_budget(16).unwrap()).collect();
    for ((id, vectors), budget) in (0..).zip(&mut devices).zip(&budgets) {
        let mut transaction = router.transaction();
        for event in 0..16 {
            let vector = budget.allocate().unwrap();
            transaction.set_msi(&vector, msi(event), device(id)).unwrap();
            vectors[event as usize * 128] = Some(vector);
        }
        transaction.commit().unwrap();
    }
    assert_eq!(router.usage().owned, 48);
    assert_eq!(vm.routes().len(), 960 + 48);
    assert!(budgets.iter().all(|budget| budget.left() == 0));
}

#[test]
fn the_4097th_route_is_refused_before_the_kernel_sees_it() {
    let (vm, router) = arm(32);
    let vectors = router.allocate_many(4064).unwrap();
    let mut transaction = router.transaction();
    for (event, vector) in (0..).zip(&vectors) {
        transaction.set_msi(vector, msi(event), device(1)).unwrap();
    }
    assert_eq!(transaction.commit().unwrap().entries, 4096);
    assert_eq!(vm.routes().len(), 4096, "the kernel takes as many as it says");

    vm.forget_calls();
    let error = router.add_msi(msi(0), device(2)).unwrap_err();
    assert_eq!(error, Error::Exhausted { wanted: 1, available: 0, limit: 4096, promised: 0 });
    assert_eq!(vm.total_calls(), 0);
    // Not a number but an entry too many: the x86 table below has more entries than GSIs.
    let (vm, router) = common::x86();
    let _vectors = router.allocate_many(4096 - 40).unwrap();
    let error = router.allocate().unwrap_err();
    assert_eq!(error, Error::Exhausted { wanted: 1, available: 0, limit: 4096, promised: 0 });
    assert_eq!(vm.total_calls(), 0);
}

#[test]
fn a_table_that_would_grow_over_the_limit_is_refused_before_the_kernel_sees_it() {
    let (vm, router) = common::x86();
    // The keyboard's line fires only the IOAPIC for now, which frees no room: its default route must fit again when it is given up.
    let keyboard = router.claim_line(Gsi::new(1)).unwrap();
    let rest = router.allocate_many(4096 - 40).unwrap();
    let mut transaction = router.transaction();
    transaction.clear(&keyboard).unwrap();
    transaction.commit().unwrap();
    vm.forget_calls();
    let free_pin = irq_types::IrqchipPin { irqchip: 0, pin: irq_types::Pin::new(1) };
    let other_free_pin = irq_types::IrqchipPin { irqchip: 2, pin: irq_types::Pin::new(1) };
    let mut transaction = router.transaction();
    transaction.add_line(&rest[0], free_pin).unwrap();
    transaction.add_line(&rest[0], other_free_pin).unwrap();
    let error = transaction.commit().unwrap_err();
    assert_eq!(error, Error::TooManyEntries { entries: 4097, promised: 0, limit: 4096 });
    assert_eq!((vm.total_calls(), router.counters().refused), (0, 1));
    drop(keyboard);
    router.flush().unwrap();
    assert_eq!(in_kernel(&vm), believed(&router));
}

#[test]
fn bus_renumbering_emits_the_routes_again_with_the_new_device_id() {
    let (vm, router) = arm(64);
    // Two devices on bus 1, one on bus 2; the guest swaps the buses' numbers.
    let a = router.add_msi(msi(0), DeviceId::new(0x0108)).unwrap();
    let b = router.add_msi(msi(1), DeviceId::new(0x0110)).unwrap();
    let c = router.add_msi(msi(2), DeviceId::new(0x0208)).unwrap();
    let line = router.claim_spi(Spi::new(3).unwrap()).unwrap();
    vm.forget_calls();

    let mut transaction = router.transaction();
    // One that is staged and not yet committed is renumbered too.
    let d = transaction.add_msi(msi(3), DeviceId::new(0x0218)).unwrap();
    let swap = |id: DeviceId| match id.get() >> 8 {
        1 => DeviceId::new(id.get() & 0xff | 0x200),
        2 => DeviceId::new(id.get() & 0xff | 0x100),
        _ => id,
    };
    assert_eq!(transaction.renumber_devices(swap).unwrap(), 4);
    transaction.commit().unwrap();
    assert_eq!(vm.count(Call::SetRoutes), 1);
    let sender = |handle: &GsiHandle| {
        let routes = vm.routes();
        let route = routes.iter().find(|route| route.gsi == handle.gsi()).unwrap();
        let RouteTarget::Msi { device_id, message } = route.target else { panic!("{route}") };
        (message.data, device_id.unwrap().get())
    };
    assert_eq!([&a, &b, &c, &d].map(sender), [(0, 0x208), (1, 0x210), (2, 0x108), (3, 0x118)]);
    drop(line);

    // Nothing moves, nothing is staged.
    let mut transaction = router.transaction();
    assert_eq!((transaction.renumber_devices(|id| id).unwrap(), transaction.len()), (0, 0));

    // An ID that the ITS cannot know: nothing happens.
    vm.forget_calls();
    let wide = |_| DeviceId::new(0x1_0000);
    assert!(matches!(transaction.renumber_devices(wide), Err(Error::DeviceIdTooWide { bits: 16, .. })));
    assert!(transaction.is_empty());
}

#[test]
fn gsis_of_msis_never_lie_among_those_of_lines() {
    for spis in [32, 64, 224, 960] {
        let (_vm, router) = arm(spis);
        let vector = router.allocate().unwrap();
        assert_eq!(vector.gsi(), Gsi::new(spis));
        // Even when the lines' routes are gone: their numbers still stand for them.
        router.release_default_routes();
        router.flush().unwrap();
        assert_eq!(router.allocate().unwrap().gsi(), Gsi::new(spis + 1));
    }
    let (_vm, router) = common::x86();
    assert_eq!(router.allocate().unwrap().gsi(), Gsi::new(24));
}

#[test]
fn every_vector_of_a_multi_message_device_has_its_own_data_and_sender() {
    let (vm, router) = arm(64);
    let mut transaction = router.transaction();
    let vectors: Vec<_> = (0..32).map(|event| transaction.add_msi(msi(event), device(5)).unwrap()).collect();
    transaction.commit().unwrap();
    for (event, vector) in (0..).zip(&vectors) {
        let route = *vm.routes().iter().find(|route| route.gsi == vector.gsi()).unwrap();
        let want = RouteTarget::Msi { message: msi(event), device_id: Some(device(5)) };
        assert_eq!(route.target, want);
    }
}

#[test]
fn a_failed_add_gives_its_gsi_back() {
    let (vm, router) = arm(64);
    let usage = router.usage();
    for _ in 0..5000 {
        vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM));
        router.add_msi(msi(0), device(0)).unwrap_err();
        assert!(router.add_msi(msi(0), DeviceId::new(1 << 16)).is_err());
    }
    assert_eq!(router.usage(), usage);
}
