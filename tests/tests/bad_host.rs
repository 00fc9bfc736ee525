// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asked for what this host has not: one line that says what and what to do, and the status that says whose turn it is.
//!
//! What is wrong whatever the host is tested in `vmm/tests/bad_input.rs`, on every machine.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use doorbell_tests::guest::{Finished, Gic, Guest, Host, Scratch, Tiny};
use doorbell_tests::{host_or_skip, skip};

/// A guest that would end well.
fn guest(host: &Host) -> Guest<'_> {
    Guest::tiny(host, &Tiny::new().power_off())
}

/// Checks status and words of a run that could not be.
fn refused(end: &Finished, status: i32, words: &[&str]) {
    end.assert_status(status);
    let line = end.error_line();
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
    assert!(end.output().is_empty(), "a guest ran{end}");
}

/// What `/dev` is while the program runs, in a mount namespace of its own.
fn with_dev(host: &Host, prepare: &str) -> Finished {
    let script = format!(r#"mount -t tmpfs tmpfs /dev && {prepare} && exec "$@""#);
    guest(host).through(&["unshare", "-m", "/bin/sh", "-c", &script, "sh"]).run()
}

#[test]
fn no_dev_kvm() {
    let host = host_or_skip!();
    if !host.is_root() {
        skip!("hides /dev/kvm, which takes root");
    }
    refused(&with_dev(&host, "true"), 3, &["/dev/kvm", "No such file", "dmesg"]);
}

#[test]
fn a_dev_kvm_that_is_something_else() {
    let host = host_or_skip!();
    if !host.is_root() {
        skip!("replaces /dev/kvm, which takes root");
    }
    refused(&with_dev(&host, "echo >/dev/kvm"), 3, &["/dev/kvm"]);
    // A device number that no driver has.
    refused(&with_dev(&host, "mknod /dev/kvm c 10 254"), 3, &["/dev/kvm", "dmesg"]);
}

#[test]
fn no_permission_for_dev_kvm() {
    let host = host_or_skip!();
    if !host.is_root() {
        skip!("becomes another user, which takes root");
    }
    if fs::metadata("/dev/kvm").unwrap().permissions().mode() & 0o006 != 0 {
        skip!("everybody may use /dev/kvm here");
    }
    let scratch = Scratch::new();
    let host = Host { doorbell: host.program_for_anybody(&scratch), ..host };
    refused(&guest(&host).user(65534).run(), 3, &["/dev/kvm", "Permission denied", "usermod -aG kvm"]);
}

#[test]
fn the_other_gic() {
    let host = host_or_skip!();
    let (ask, wanted) = match host.gic {
        Gic::V2 => ("v3", "GICv3"),
        Gic::V3 => ("v2", "GICv2"),
    };
    let has = host.gic.to_string();
    let end = guest(&host).option("--gic", ask).run();
    if end.output().is_empty() && end.errors().is_empty() && host.gic == Gic::V3 {
        skip!("this host's GICv3 serves GICv2 guests too");
    }
    refused(&end, 3, &[wanted, "offers", &has, "auto"]);
}

#[test]
fn msis_of_the_other_gic() {
    let host = host_or_skip!();
    match host.gic {
        Gic::V2 => {
            refused(&guest(&host).option("--msi", "its").run(), 3, &["ITS", "GICv2", "v2m"]);
            let end = guest(&host).option("--msi", "its").option("--gic", "v2").run();
            refused(&end, 3, &["ITS", "GICv2", "v2m"]);
        }
        // A v2m frame hands on to SPIs, which every GIC has.
        Gic::V3 => drop(guest(&host).option("--msi", "v2m").run().assert_status(0)),
    }
}

#[test]
fn more_vcpus_than_the_gic_serves() {
    let host = host_or_skip!();
    match host.gic {
        Gic::V2 => {
            refused(&guest(&host).cpus(9).run(), 3, &["GICv2", "8", "9"]);
            guest(&host).cpus(8).run().assert_status(0);
        }
        Gic::V3 => drop(guest(&host).cpus(9).run().assert_status(0)),
    }
}

#[test]
fn more_memory_than_any_host_can_address() {
    let host = host_or_skip!();
    refused(&guest(&host).memory("1P").run(), 3, &["1P", "--memory"]);
}

#[test]
fn a_device_tree_that_cannot_be_written() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let missing = scratch.path().join("nowhere/tree.dtb");
    refused(&guest(&host).option("--dump-fdt", &missing).run(), 2, &["nowhere/tree.dtb", "--dump-fdt"]);
    refused(&guest(&host).option("--dump-fdt", scratch.path()).run(), 2, &["--dump-fdt", "directory"]);
}

#[test]
fn a_long_initrd_whose_end_is_damaged_ends_the_run() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let mut disk = fs::read(&host.initrd).unwrap();
    disk.truncate(disk.len() - 1000);
    let disk = scratch.file("damaged", disk);
    // Long ones are checked while the guest already runs, which must not be what the user has to find out from.
    let end = Guest::tiny(&host, &Tiny::new().sleep()).memory("128M").option("--initrd", &disk).run();
    end.assert_status(2);
    let line = end.error_line();
    assert!(line.contains("damaged or truncated") && line.contains("damaged"), "{line}");
}
