// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Several threads on one router.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use common::{arm, believed, device, in_kernel, msi};
use gsi_routing::{Budget, Commit, GsiHandle, ReservedRange, Router, Snapshot, Target, Transaction};
use irqchip::Errno;
use irqchip::fake::{Call, Fault};

#[test]
fn everything_public_may_cross_threads() {
    fn check<T: Send + Sync>() {}
    check::<Router>();
    check::<GsiHandle>();
    check::<Budget>();
    check::<ReservedRange>();
    check::<Transaction>();
    check::<Snapshot>();
    check::<Commit>();
}

#[test]
fn devices_come_and_go_on_several_threads() {
    const THREADS: u32 = 4;
    let (vm, router) = arm(64);
    let (usage, kernel) = (router.usage(), in_kernel(&vm));
    let start = Arc::new(Barrier::new(THREADS as usize + 1));
    let done = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..THREADS)
        .map(|n| {
            let (vm, router, start) = (vm.clone(), router.clone(), start.clone());
            thread::spawn(move || {
                start.wait();
                for round in 0..200 {
                    if round % 16 == n {
                        vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM));
                    }
                    let Ok(budget) = router.reserve_budget(3) else { continue };
                    let vectors: Vec<_> = (0..3).map(|_| budget.allocate().unwrap()).collect();
                    let mut transaction = router.transaction();
                    for (event, vector) in (0..).zip(&vectors) {
                        transaction.set_msi(vector, msi(round * 3 + event), device(n)).unwrap();
                    }
                    // Somebody's commit meets the fault; trying again is always possible.
                    while transaction.commit().is_err() {}
                    for (event, vector) in (0..).zip(&vectors) {
                        let snapshot = router.snapshot();
                        let [entry] = snapshot.of(vector.gsi()) else { panic!("{vector:?}") };
                        let want = Target::Msi { message: msi(round * 3 + event), device_id: device(n) };
                        assert_eq!(entry.target, want, "nobody else changes what is mine");
                    }
                    // Dropped one by one, they would also leave one by one, whenever somebody commits.
                    for vector in &vectors {
                        transaction.clear(vector).unwrap();
                    }
                    while transaction.commit().is_err() {}
                }
            })
        })
        .collect();
    let reader = {
        let (router, start, done) = (router.clone(), start.clone(), done.clone());
        thread::spawn(move || {
            start.wait();
            let mut last = router.snapshot();
            while !done.load(Ordering::Relaxed) {
                let now = router.snapshot();
                assert!(now.generation() >= last.generation());
                assert_eq!(last.diff(&now).is_empty(), last.table() == now.table());
                // All of a device's vectors are there, or none.
                let msis = |n| {
                    now.iter().filter(
                        move |e| matches!(e.target, Target::Msi { device_id, .. } if device_id == device(n)),
                    )
                };
                for n in 0..THREADS {
                    assert_eq!(msis(n).count() % 3, 0);
                }
                last = now;
            }
        })
    };
    for worker in workers {
        worker.join().unwrap();
    }
    done.store(true, Ordering::Relaxed);
    reader.join().unwrap();
    vm.clear_faults();
    router.flush().unwrap();
    assert_eq!(router.usage(), usage);
    assert_eq!(in_kernel(&vm), kernel);
    assert_eq!(in_kernel(&vm), believed(&router));
}
