// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that resets itself: it boots again, as often as it likes, or the run ends with status 4.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::thread;
use std::time::Duration;

use doorbell_tests::guest::{Guest, Input, Running, Tiny};
use doorbell_tests::host_or_skip;
use rustix::process::Signal;

/// Descriptors, threads, and mappings of vCPUs.
type Holdings = (Vec<String>, usize, usize);

/// What a machine costs its process once all of it is there: the first vCPU may be far along before the last one has its thread.
fn holdings(guest: &Running) -> Holdings {
    let (mut last, mut same) = (holdings_now(guest), 0);
    while same < 10 {
        thread::sleep(Duration::from_millis(20));
        let now = holdings_now(guest);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

fn holdings_now(guest: &Running) -> Holdings {
    let mut descriptors: Vec<String> = fs::read_dir(guest.proc("fd"))
        .unwrap()
        // One that is closed between the list and the look does not count.
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    // Their numbers do not matter, what they are does.
    descriptors.sort();
    let threads = fs::read_dir(guest.proc("task")).unwrap().count();
    let maps = fs::read_to_string(guest.proc("maps")).unwrap();
    (descriptors, threads, maps.matches("kvm-vcpu").count())
}

/// MiB of address space. The allocator's part of it comes and goes; a guest's memory that stayed would be 16.
fn address_space(guest: &Running) -> u64 {
    let status = fs::read_to_string(guest.proc("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

#[test]
fn twenty_resets_leak_nothing() {
    let host = host_or_skip!();
    let program = Tiny::new().print("up").wait_for_key().reset();
    let mut guest = Guest::tiny(&host, &program).cpus(4).input(Input::PIPE).start();
    guest.wait_for("up");
    guest.send("k");
    guest.wait_for("up");
    // The second machine is the measure: the first still had what is only needed once.
    let (first, first_size) = (holdings(&guest), address_space(&guest));
    for _ in 0..20 {
        guest.send("k");
        guest.wait_for("up");
        assert_eq!(holdings(&guest), first);
    }
    let size = address_space(&guest);
    assert!(size < first_size + 16, "{first_size} MiB of address space have become {size}");
    guest.signal(Signal::TERM);
    guest.wait().assert_status(143);
}

#[test]
fn linux_boots_again_after_its_reset_until_it_is_ended() {
    let host = host_or_skip!();
    let mut guest = Guest::linux(&host)
        .cpus(2)
        .option("--on-reset", "restart")
        .option("--patience", "0")
        .actions(&["reboot"])
        .start();
    for _ in 0..3 {
        guest.wait_for("doorbell-guest: ready");
        guest.wait_for("doorbell-guest: reboot");
    }
    guest.signal(Signal::TERM);
    guest.wait().assert_status(143);
}

#[test]
fn linux_reset_with_exit_is_4() {
    let host = host_or_skip!();
    let end = Guest::linux(&host).cpus(2).option("--on-reset", "exit").actions(&["reboot"]).run();
    end.assert_status(4);
    assert_eq!(end.errors(), "");
    assert_eq!(end.lines_with("doorbell-guest: ready").len(), 1);
}

#[test]
fn a_panic_that_resets_is_4() {
    let host = host_or_skip!();
    let end = Guest::linux(&host).option("--on-reset", "exit").cmdline("panic=-1").actions(&["panic"]).run();
    end.assert_status(4);
    assert!(end.text().contains("Kernel panic"), "{end}");
}

#[test]
fn the_default_is_to_start_again() {
    let host = host_or_skip!();
    let program = Tiny::new().print("up").wait_for_key().reset();
    let mut guest = Guest::tiny(&host, &program).input(Input::PIPE).start();
    guest.wait_for("up");
    guest.send("k");
    guest.wait_for("up");
    guest.signal(Signal::TERM);
    guest.wait().assert_status(143);
}
