// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What works once works a hundred times.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File};

use doorbell_tests::guest::Guest;
use doorbell_tests::host_or_skip;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// VMs that the host has.
fn vms() -> usize {
    fs::read_dir("/sys/kernel/debug/kvm")
        .map_or(0, |entries| entries.flatten().filter(|entry| entry.path().is_dir()).count())
}

/// Files that are open in all of the host.
///
/// The kernel has a count for each CPU, which it adds to the one that it shows when it has become 32 or more (`lib/percpu_counter.c`, and `get_nr_files` of
/// `fs/file_table.c`): at the moment when the shown one changes, this CPU has nothing that is not shown.
fn open_files() -> u64 {
    let shown = || -> u64 {
        fs::read_to_string("/proc/sys/fs/file-nr")
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    // Up to 64 for each CPU, and more where there are many.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let everywhere = sched_getaffinity(None).unwrap();
    let mut own = Vec::new();
    for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| everywhere.is_set(cpu)) {
        let mut here = CpuSet::new();
        here.set(cpu);
        sched_setaffinity(None, &here).unwrap();
        let before = shown();
        while shown() == before {
            own.push(File::open("/dev/null").unwrap());
        }
    }
    let count = shown() - own.len() as u64;
    drop(own);
    setrlimit(Resource::Nofile, limit).unwrap();
    sched_setaffinity(None, &everywhere).unwrap();
    count
}

#[test]
fn a_hundred_boots_in_a_row_end_well_and_leave_nothing() {
    let host = host_or_skip!();
    let boot = |n: u32| {
        let end = Guest::bench(&host).run();
        end.assert_status(0);
        assert_eq!(end.errors(), "", "boot {n}");
    };
    // The first boot may bring up parts of the host that stay.
    boot(1);
    let (vms_before, files_before) = (vms(), open_files());
    for n in 2..=100 {
        boot(n);
        assert_eq!(vms(), vms_before, "VMs after boot {n}");
    }
    // Others open and close files meanwhile; a leak of one in each boot would be 99.
    let files = open_files();
    println!("{files_before} open files after the first boot, {files} after the last");
    assert!(
        files < files_before + 50,
        "{files_before} open files after the first boot, {files} after the last"
    );
}
