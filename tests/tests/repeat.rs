// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What works once works a hundred times.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;

use doorbell_tests::guest::Guest;
use doorbell_tests::host_or_skip;

/// VMs that the host has, and files that are open in all of it.
fn holdings() -> (usize, u64) {
    let vms = fs::read_dir("/sys/kernel/debug/kvm")
        .map_or(0, |entries| entries.flatten().filter(|entry| entry.path().is_dir()).count());
    let files = fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
    (vms, files.split_whitespace().next().unwrap().parse().unwrap())
}

#[test]
fn a_hundred_boots_in_a_row_end_well_and_leave_nothing() {
    let host = host_or_skip!();
    let mut before = None;
    for n in 1..=100 {
        let end = Guest::bench(&host).run();
        end.assert_status(0);
        assert_eq!(end.errors(), "", "boot {n}");
        // The first boot may have brought up parts of the host that stay.
        let before = *before.get_or_insert_with(holdings);
        let now = holdings();
        assert_eq!(now.0, before.0, "VMs after boot {n}");
        // The kernel counts open files by CPU and a little late; a leak of one in each boot would be a hundred.
        assert!(now.1 < before.1 + 64, "boot {n}: {} open files, {} after the first", now.1, before.1);
    }
}
