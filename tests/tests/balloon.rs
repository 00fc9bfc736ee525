// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest is asked for memory while it runs, gives it back, and gets it again.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File};
use std::thread::sleep;
use std::time::Duration;

use doorbell_tests::guest::{Guest, Scratch, Told, refused};
use doorbell_tests::host_or_skip;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// What `doorbell balloon` says.
fn balloon(told: &Told<'_>) -> Value {
    serde_json::from_str(&told.ask(&["balloon"], &["--json"])).unwrap()
}

/// Asks for so much, and waits until the guest has given it, no more and no less.
fn ask_for(told: &Told<'_>, mib: u64) {
    told.ask(&["balloon"], &[&format!("{mib}M")]);
    while balloon(told)["actual"] != mib * MIB {
        sleep(Duration::from_millis(50));
    }
}

/// A number that the guest's /proc/meminfo has, in MiB.
fn memory_of_guest(told: &mut Told<'_>, key: &str) -> u64 {
    told.guest.send(format!("echo is=$(awk '/^{key}:/ {{ print int($2 / 1024) }}' /proc/meminfo)=\n"));
    told.guest.wait_for("is=");
    let number = told.guest.wait_for("=").parse().unwrap();
    told.guest.wait_for("did=0");
    number
}

/// What the program holds of the host's memory, in MiB.
fn resident(told: &Told<'_>) -> u64 {
    let status = fs::read_to_string(told.guest.proc("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn what_is_asked_for_goes_to_the_host_and_comes_back() {
    const TARGET: u64 = 256;
    let host = host_or_skip!();
    let scratch = Scratch::new();
    // A disk of zeros, for the guest to fill its page cache with: memory that it holds, and can do without.
    let image = scratch.path().join("zeros.img");
    File::create(&image).unwrap().set_len(300 * MIB).unwrap();
    let guest = Guest::linux(&host)
        .memory("384M")
        .flag("--balloon")
        .option("--pci-slots", "1")
        .option("--disk", format!("path={},format=raw", image.display()));
    let mut told = Told::start(&host, "light", guest);
    assert_eq!((&balloon(&told)["target"], &balloon(&told)["actual"]), (&Value::from(0), &Value::from(0)));
    refused(&host, &["balloon", "light", "384M"], 2, &["384M leaves the guest nothing", "give back"]);
    refused(&host, &["balloon", "light", "much"], 2, &["much", "512M"]);
    refused(&host, &["device", "add", "light", "0000:00:08.0"], 2, &["balloon", "gave back"]);

    told.does("cat /dev/vda >/dev/null");
    let (held, available) = (resident(&told), memory_of_guest(&mut told, "MemAvailable"));
    ask_for(&told, TARGET);
    let (holds, left) = (resident(&told), memory_of_guest(&mut told, "MemAvailable"));
    let state = balloon(&told);
    println!("resident {held} and {holds} MiB; available {available} and {left} MiB; {state}");
    // Some of it was free and is not held by the program in the first place.
    assert!(holds + TARGET - 80 < held, "the program holds {held} MiB, then {holds} MiB");
    assert!(left + TARGET - 40 < available, "the guest has {available} MiB, then {left} MiB");
    assert!(state["discarded"].as_u64().unwrap() >= TARGET * MIB, "{state}");
    // What the guest says over its statistics is what it says in /proc.
    let said = state["stats"]["available"].as_u64().unwrap() / MIB;
    assert!(said.abs_diff(left) < 16, "{left} MiB by /proc, and {state}");
    assert!(told.ask(&["balloon"], &[]).contains("256M    256M    384M"), "{}", told.ask(&["balloon"], &[]));

    // More than is left: the guest helps itself, rather than to kill anybody.
    told.does("dd if=/dev/zero of=/tmp/fill bs=1M count=150 2>/dev/null");
    told.does("[ $(wc -c </tmp/fill) = 157286400 ] && ! dmesg | grep -iE 'killed process|out of memory'");
    let after = balloon(&told)["actual"].as_u64().unwrap() / MIB;
    assert!(after < TARGET, "still {after} MiB");
    told.does("rm /tmp/fill");

    ask_for(&told, 0);
    let again = memory_of_guest(&mut told, "MemAvailable");
    assert!(again + 40 > available, "the guest had {available} MiB, and has {again} MiB");
    told.end();
}

#[test]
fn a_guest_that_resets_itself_is_asked_for_as_much_as_before() {
    let host = host_or_skip!();
    let guest = Guest::linux(&host).memory("256M").flag("--balloon");
    let mut told = Told::start(&host, "leaner", guest);
    ask_for(&told, 64);
    told.guest.send("reboot -f\n");
    told.guest.wait_for("told");
    while balloon(&told)["actual"] != 64 * MIB {
        sleep(Duration::from_millis(50));
    }
    ask_for(&told, 8);
    told.end();
}
