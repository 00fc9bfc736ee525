// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pure part: staging, merging and allocating, on a sink that copies the table as a kernel would and does nothing else. How often the
//! kernel is called is counted in `tests/costs.rs`; what a call takes on a real kernel is measured by the workspace's own benchmarks.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;

use common::scenarios::Contest;
use common::{CountingVm, believed, msi};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gsi_routing::{Router, models};

fn contest() -> Contest<'static> {
    let vm = CountingVm::new(4096, true);
    let router = Router::new(vm.clone(), &*vm, &vm.ready(224), &models::ARM_GIC).unwrap();
    Contest { defaults: believed(&router), router, sink: vm, message: &msi }
}

fn enabling(c: &mut Criterion) {
    let mut group = c.benchmark_group("enable 2048 vectors");
    group.sample_size(20).throughput(Throughput::Elements(2048));
    group.bench_function("at once", |b| {
        b.iter_batched(contest, |contest| contest.enable(2048), BatchSize::LargeInput);
    });
    group.bench_function("one by one", |b| {
        b.iter_batched(contest, |contest| contest.enable_one_by_one(2048), BatchSize::LargeInput);
    });
    group.bench_function("one by one, one commit a vector", |b| {
        b.iter_batched(contest, |contest| contest.baseline_enable(2048), BatchSize::LargeInput);
    });
    group.finish();
}

fn committing(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit");
    // One vector of many changes back and forth, so that each commit has something to do.
    for routes in [64, 1024, 3872] {
        let contest = contest();
        let handles = contest.enable(routes);
        let mut n = 0;
        group.throughput(Throughput::Elements(routes as u64 + 224));
        group.bench_function(format!("one change in a table of {} entries", routes + 224), |b| {
            b.iter(|| {
                n += 1;
                let mut transaction = contest.router.transaction();
                let sender = irq_types::DeviceId::new(0x100);
                transaction.set_msi(&handles[0], msi(n), sender).unwrap();
                black_box(transaction.commit().unwrap())
            });
        });
    }
    group.finish();
}

fn allocating(c: &mut Criterion) {
    let mut group = c.benchmark_group("allocate");
    let contest = contest();
    group.bench_function("one and give it back", |b| {
        b.iter(|| black_box(contest.router.allocate().unwrap()));
    });
    group.throughput(Throughput::Elements(3872));
    group.bench_function("all 3872 and give them back", |b| {
        b.iter(|| black_box(contest.router.allocate_many(3872).unwrap()));
    });
    group.finish();
}

fn plugging(c: &mut Criterion) {
    let mut group = c.benchmark_group("plug and unplug a device of 4 vectors");
    group.sample_size(10);
    // Linear: ten times as many cycles take ten times as long.
    for cycles in [100, 1000, 10_000] {
        group.throughput(Throughput::Elements(cycles as u64));
        group.bench_function(format!("{cycles} times"), |b| {
            b.iter_batched(contest, |contest| contest.plug_cycles(cycles, 4), BatchSize::LargeInput);
        });
    }
    group.bench_function("100 times, one commit a vector", |b| {
        b.iter_batched(contest, |contest| contest.baseline_plug_cycles(100, 4), BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(benches, enabling, committing, allocating, plugging);
criterion_main!(benches);
