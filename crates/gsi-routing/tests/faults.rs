// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every call that a router makes fails, at each of its occurrences in a long scenario, with each errno that the kernel may give. Afterwards
//! nothing has leaked, and the next operation works.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{arm_vm, believed, device, in_kernel, msi};
use gsi_routing::{Error, GsiHandle, Router, models};
use irq_types::{DeviceId, Gsi, Spi};
use irqchip::Errno;
use irqchip::fake::{Call, FakeVm, Fault};

/// What `KVM_SET_GSI_ROUTING` and `KVM_CHECK_EXTENSION` may say (Linux 6.12, `virt/kvm/kvm_main.c`, `virt/kvm/irqchip.c`): bad tables,
/// no memory, an array too big for `vmemdup_user`, a signal, a dead VM.
const ERRNOS: [Errno; 6] =
    [Errno::EINVAL, Errno::ENOMEM, Errno::E2BIG, Errno::EFAULT, Errno::EINTR, Errno::EIO];

/// What a step leaves behind when it fails must be what was there before it.
fn unchanged_on_error<T>(
    vm: &FakeVm,
    router: &Router,
    step: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let (kernel, snapshot, usage) = (in_kernel(vm), router.snapshot(), router.usage());
    step().inspect_err(|error| {
        assert!(matches!(error, Error::Commit { .. }), "{error:?}");
        assert_eq!(in_kernel(vm), kernel);
        assert_eq!(router.snapshot(), snapshot);
        assert_eq!(router.usage(), usage);
    })
}

/// A device's life: accepted, its vectors enabled, changed, grown, masked for good; lines; a renumbering; unplugged. What fails is tried
/// again, as a guest would. Returns how often something failed.
fn scenario(vm: &FakeVm, router: &Router) -> u32 {
    let mut failures = 0;
    let mut insist = |step: &mut dyn FnMut() -> Result<(), Error>| {
        while let Err(error) = unchanged_on_error(vm, router, &mut *step) {
            failures += 1;
            assert!(failures < 10, "{error}");
        }
    };
    router.release_default_routes();
    let mut uart = None;
    insist(&mut || router.claim_spi(Spi::new(1).unwrap()).map(|line| uart = Some(line)));

    let budget = router.reserve_budget(6).unwrap();
    let mut vectors: Vec<GsiHandle> = Vec::new();
    insist(&mut || {
        let mut transaction = router.transaction();
        let mut new = Vec::new();
        for event in 0..4 {
            let vector = budget.allocate()?;
            transaction.set_msi(&vector, msi(event), device(1))?;
            new.push(vector);
        }
        transaction.commit()?;
        vectors = new;
        Ok(())
    });
    for event in [7, 8] {
        insist(&mut || {
            let mut transaction = router.transaction();
            transaction.set_msi(&vectors[0], msi(event), device(1))?;
            transaction.clear(&vectors[1])?;
            transaction.commit().map(drop)
        });
    }
    insist(&mut || router.add_msi(msi(9), device(2)).map(|vector| vectors.push(vector)));
    insist(&mut || {
        let mut transaction = router.transaction();
        transaction.renumber_devices(|id| DeviceId::new(id.get() + 1))?;
        transaction.commit().map(drop)
    });
    // Everything is taken, so that allocating has to withdraw first.
    vectors.truncate(2);
    let usage = router.usage();
    assert!(usage.withdrawn > 0);
    let rest = usage.free + usage.withdrawn - usage.promised;
    insist(&mut || router.allocate_many(rest).map(|all| vectors.extend(all)));
    insist(&mut || router.reinstall());
    vectors.clear();
    drop(budget);
    insist(&mut || router.flush().map(drop));
    drop(uart);
    insist(&mut || router.flush().map(drop));
    failures
}

fn build() -> (Arc<FakeVm>, Router) {
    let (vm, ready) = arm_vm(32, true);
    let router = Router::new(vm.clone(), &*vm, &ready, &models::ARM_GIC).unwrap();
    vm.forget_calls();
    (vm, router)
}

fn assert_back_at_the_start(vm: &FakeVm, router: &Router) {
    assert_eq!(vm.routes(), []);
    let usage = router.usage();
    assert_eq!((usage.owned, usage.withdrawn, usage.promised, usage.entries), (0, 0, 0, 0));
    assert_eq!(usage.free, 4096 - 32);
    let vector = router.add_msi(msi(0), device(0)).unwrap();
    assert_eq!(vector.gsi(), Gsi::new(32));
    assert_eq!(in_kernel(vm), believed(router));
}

#[test]
fn each_call_fails_once_with_each_errno() {
    let (vm, router) = build();
    assert_eq!(scenario(&vm, &router), 0);
    let calls = vm.count(Call::SetRoutes);
    assert!(calls >= 8, "{calls}: a scenario worth its name");
    assert_eq!(vm.total_calls(), calls, "a router makes no other call");
    assert_back_at_the_start(&vm, &router);

    for errno in ERRNOS {
        for occurrence in 0..calls {
            let (vm, router) = build();
            vm.inject(Fault::next(Call::SetRoutes, errno).after(occurrence));
            assert_eq!(scenario(&vm, &router), 1, "occurrence {occurrence}");
            assert_eq!(router.counters().failures, 1);
            assert_back_at_the_start(&vm, &router);
        }
    }
}

#[test]
fn a_kernel_that_refuses_everything_leaves_a_router_that_can_still_be_dropped() {
    let (vm, router) = build();
    let vector = router.add_msi(msi(0), device(0)).unwrap();
    vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM).persistent());
    for _ in 0..100 {
        router.add_msi(msi(1), device(0)).unwrap_err();
        router.flush().unwrap();
    }
    drop(vector);
    router.flush().unwrap_err();
    assert_eq!(router.usage().withdrawn, 1);
    vm.clear_faults();
    router.flush().unwrap();
    assert_eq!(in_kernel(&vm), believed(&router));
    assert_eq!(router.usage().withdrawn, 0);
}
