// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What things cost in calls and copied entries, beside a router that commits once a vector. Counts are the same on every machine.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::scenarios::{Contest, Cost, Counting};
use common::{CountingVm, believed, msi};
use gsi_routing::{Router, models};

const SPIS: u64 = 224;

fn contest(release_defaults: bool) -> (Arc<Counting>, Contest<'static>) {
    let vm = CountingVm::new(4096, true);
    let sink = Counting::new(vm.clone());
    let router = Router::new(sink.clone(), &*vm, &vm.ready(224), &models::ARM_GIC).unwrap();
    let defaults = believed(&router);
    if release_defaults {
        router.release_default_routes();
    }
    (sink.clone(), Contest { router, defaults, sink, message: &msi })
}

/// Both costs, ours first, and prints them.
fn compare(what: &str, ours: Cost, baseline: Cost) -> (Cost, Cost) {
    for (who, cost) in [("gsi-routing", ours), ("one commit a vector", baseline)] {
        let Cost { calls, entries } = cost;
        println!("{what:<40} {who:<20} {calls:>7} calls {entries:>10} entries {:>11} bytes", cost.bytes());
    }
    (ours, baseline)
}

#[test]
fn enabling_2048_vectors_one_by_one_is_one_commit() {
    let (sink, contest) = contest(false);
    let _handles = contest.enable_one_by_one(2048);
    let ours = sink.take();
    contest.baseline_enable(2048);
    let (ours, baseline) = compare("2048 vectors, one by one", ours, sink.take());
    assert_eq!(ours, Cost { calls: 1, entries: SPIS + 2048 });
    assert_eq!(baseline, Cost { calls: 2048, entries: 2048 * SPIS + 2048 * 2049 / 2 });
}

#[test]
fn a_full_table_is_copied_once() {
    let (sink, contest) = contest(true);
    let _handles = contest.enable(4096 - 224);
    let ours = sink.take();
    contest.baseline_enable(4096 - 224);
    let (ours, baseline) = compare("a full table", ours, sink.take());
    assert_eq!(ours, Cost { calls: 1, entries: 4096 - SPIS });
    assert_eq!(ours.bytes(), 8 + 3872 * 48);
    assert_eq!(baseline.calls, 3872);
}

#[test]
fn moving_256_vectors_to_other_cpus_is_one_commit() {
    let (sink, contest) = contest(true);
    let handles = contest.enable(256);
    sink.take();
    contest.retarget(&handles);
    assert_eq!(sink.take(), Cost { calls: 1, entries: 256 });
    contest.retarget(&handles);
    assert_eq!(sink.take(), Cost { calls: 0, entries: 0 });
}

#[test]
fn plugging_and_unplugging_costs_one_commit_a_cycle() {
    let (sink, contest) = contest(true);
    contest.plug_cycles(10_000, 4);
    let ours = sink.take();
    contest.baseline_plug_cycles(10_000, 4);
    let (ours, baseline) = compare("10,000 plug/unplug cycles of 4 vectors", ours, sink.take());
    assert_eq!(ours, Cost { calls: 10_001, entries: 40_000 });
    assert_eq!(baseline, Cost { calls: 80_000, entries: 80_000 * SPIS + 10_000 * 16 });
    assert_eq!(contest.router.usage().owned, 0);
}
