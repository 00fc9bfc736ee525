// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What changes of a routing table cost on this machine's KVM, beside a router that commits once a vector on the same kernel.
//!
//! `cargo bench -p doorbell-tests --bench routing_kvm [-- CYCLES]`, where CYCLES is how often a device is plugged and unplugged: 10,000 unless
//! told, which takes the baseline on an emulated host most of an hour. Counts and bytes are the same everywhere; times are this
//! machine's, and only to be compared within one run.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

#[path = "../../crates/gsi-routing/tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::scenarios::{Contest, Cost, Counting};
use gsi_routing::{Router, models};
use irq_types::MsiMessage;
use irqchip::IrqchipReady;
use kvm_ioctls::Kvm;
use kvm_irqchip::KvmVm;

#[cfg(target_arch = "aarch64")]
fn machine(vm: &KvmVm) -> Result<(IrqchipReady, &'static gsi_routing::IrqchipModel), String> {
    use irqchip::{AttrValue, CreateDevice, DeviceKind, arm};
    let gic = vm.create_device(DeviceKind::GicV3).map_err(|error| error.to_string())?;
    gic.set_attr(arm::NR_IRQS, AttrValue::U32(256)).unwrap();
    gic.set_attr(arm::ADDR_V3_DIST, AttrValue::U64(0x0800_0000)).unwrap();
    gic.set_attr(arm::ADDR_V3_REDIST, AttrValue::U64(0x080c_0000)).unwrap();
    vm.fd().create_vcpu(0).unwrap();
    vm.create_device(DeviceKind::Its).unwrap();
    let ready = IrqchipReady::init_vgic(&*gic, 224).map_err(|error| error.to_string())?;
    Ok((ready, &models::ARM_GIC))
}

#[cfg(target_arch = "x86_64")]
fn machine(vm: &KvmVm) -> Result<(IrqchipReady, &'static gsi_routing::IrqchipModel), String> {
    let ready = IrqchipReady::create_pic_and_ioapic(vm).map_err(|error| error.to_string())?;
    Ok((ready, &models::X86_PIC_IOAPIC))
}

fn message(n: u32) -> MsiMessage {
    let address = if cfg!(target_arch = "x86_64") { 0xfee0_0000 } else { 0x0809_0040 };
    MsiMessage { address, data: n }
}

/// A fresh VM with both routers to try on it.
fn contest() -> Result<(Arc<Counting>, Contest<'static>), String> {
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm does not open: {error}"))?;
    let fd = kvm.create_vm().map_err(|error| format!("no VM: {error}"))?;
    let vm = KvmVm::new(Arc::new(fd));
    let (ready, model) = machine(&vm)?;
    let sink = Counting::new(Arc::new(vm.clone()));
    let router = Router::new(sink.clone(), &vm, &ready, model).map_err(|error| error.to_string())?;
    let defaults = common::believed(&router);
    // The VMM claims the lines it uses; here it uses none.
    router.release_default_routes();
    Ok((sink.clone(), Contest { router, defaults, sink, message: &message }))
}

fn report(what: &str, who: &str, cost: Cost, time: Duration) {
    let Cost { calls, entries } = cost;
    let (bytes, ms) = (cost.bytes(), time.as_secs_f64() * 1e3);
    println!("{what:<46} {who:<20} {calls:>7} {entries:>11} {bytes:>12} {ms:>10.2}");
}

/// One scenario on fresh VMs.
fn compare(
    what: &str,
    ours: impl FnOnce(&Contest<'_>),
    baseline: impl FnOnce(&Contest<'_>),
) -> Result<(), String> {
    let (sink, contest) = contest()?;
    let start = Instant::now();
    ours(&contest);
    report(what, "gsi-routing", sink.take(), start.elapsed());
    let (sink, contest) = self::contest()?;
    let start = Instant::now();
    baseline(&contest);
    report(what, "one commit a vector", sink.take(), start.elapsed());
    Ok(())
}

fn run() -> Result<(), String> {
    println!("{:<46} {:<20} {:>7} {:>11} {:>12} {:>10}", "", "", "ioctls", "entries", "bytes", "ms");
    let full = {
        let (_, contest) = contest()?;
        contest.router.usage().free.min(4096 - contest.defaults.len())
    };
    compare(
        "2048 vectors, programmed, unmasked one by one",
        |contest| drop(contest.enable_one_by_one(2048)),
        |contest| contest.baseline_enable(2048),
    )?;
    compare(
        "2048 vectors at once",
        |contest| drop(contest.enable(2048)),
        |contest| contest.baseline_enable(2048),
    )?;
    compare(
        &format!("a full table of {full} messages"),
        |contest| drop(contest.enable(full)),
        |contest| contest.baseline_enable(full),
    )?;
    let cycles = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(10_000);
    compare(
        &format!("{cycles} plug/unplug cycles of 4 vectors"),
        |contest| contest.plug_cycles(cycles, 4),
        |contest| contest.baseline_plug_cycles(cycles, 4),
    )
}

fn main() {
    if let Err(reason) = run() {
        println!("SKIP routing_kvm: {reason}");
    }
}
