// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Other kernels of Debian's as guests: an older one, the newest one, and one with pages of 16 KiB. Each device works with their drivers.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::env;

use doorbell_tests::guest::{Carrier, EveryDevice, Finished, Host, Tap};
use doorbell_tests::{host_or_skip, skip};

/// The host with another kernel for its guests: `resources/host/with/kernels`.
fn with_kernel(host: Host, name: &str) -> Option<Host> {
    let file = |what: &str| env::var_os(format!("DOORBELL_{what}_{name}")).map(Into::into);
    Some(Host { kernel: file("KERNEL")?, initrd: file("INITRD")?, ..host })
}

/// Of `memory`, the guest fills so many MiB and frees them.
fn every_device_works(host: &Host, subnet: &str, tap: &Tap, memory: &str, fill: u32) -> Finished {
    let inside = env!("CARGO_BIN_EXE_inside");
    let carrier = Carrier::Program;
    let memory = (memory, fill, 32);
    EveryDevice { host, inside, carrier, tap, subnet, mib: 4, msi: "auto", cmdline: "", memory }.run()
}

#[test]
fn the_older_one() {
    let host = host_or_skip!();
    let Some(host) = with_kernel(host, "6_1") else { skip!("Debian's kernel 6.1 is not to be had here") };
    let Some(tap) = Tap::new("doorker0", "10.0.92.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    let end = every_device_works(&host, "10.0.92", &tap, "640M", 160);
    assert!(end.value("release").starts_with("6.1."), "{end}");
}

#[test]
fn the_newest_one() {
    let host = host_or_skip!();
    let Some(host) = with_kernel(host, "NEWEST") else {
        skip!("Debian's newest kernel is not to be had here")
    };
    let Some(tap) = Tap::new("doorker1", "10.0.93.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    let end = every_device_works(&host, "10.0.93", &tap, "640M", 160);
    println!("its release is {}", end.value("release"));
}

#[test]
fn the_one_with_pages_of_16_kib() {
    let host = host_or_skip!();
    let Some(host) = with_kernel(host, "16K") else {
        skip!("Debian's kernel with pages of 16 KiB is not to be had here")
    };
    let Some(tap) = Tap::new("doorker2", "10.0.94.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    // Memory is reported in blocks of 32 MiB there, and only while 32 of them stay free (`page_reporting_process_zone`, Linux 6.12, `mm/page_reporting.c`).
    // Something else may lie in some of the blocks that are freed, but not in each of so many.
    let end = every_device_works(&host, "10.0.94", &tap, "2G", 512);
    assert_eq!(end.value("page"), "16");
}
