// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One guest with a device of each kind: each works, and interrupts the way that the guest's interrupt controller offers.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::path::Path;

use doorbell_tests::guest::{Carrier, EveryDevice, Finished, Gic, Guest, Host, Running, Scratch, Tap, Tiny};
use doorbell_tests::{host_or_skip, skip};
use rustix::process::Signal;

/// The guest, with 4 MiB over a socket.
fn every_device<'a>(host: &'a Host, carrier: Carrier, subnet: &'a str, tap: &'a Tap) -> EveryDevice<'a> {
    let inside = env!("CARGO_BIN_EXE_inside");
    EveryDevice {
        host,
        inside,
        carrier,
        tap,
        subnet,
        mib: 4,
        msi: "auto",
        cmdline: "",
        memory: ("256M", 96, 64),
    }
}

/// What /proc/interrupts says of the devices: at least a line for four of them, all of them of this kind.
fn assert_kind(end: &Finished, kind: &str) {
    let text = end.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("virtio") && line.contains(':')).collect();
    assert!(lines.len() >= 4 && lines.iter().all(|line| line.contains(kind)), "{kind}: {lines:#?}");
}

fn has_vhost() -> bool {
    ["/dev/vhost-net", "/dev/vhost-vsock"].iter().all(|path| Path::new(path).exists())
}

#[test]
fn without_messages_each_device_has_its_line() {
    let host = host_or_skip!();
    let Some(tap) = Tap::new("doordev0", "10.0.85.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    let all = every_device(&host, Carrier::Program, "10.0.85", &tap);
    // What the program carries does not depend on the host's interrupt controller: once is enough.
    let mib = if host.gic == Gic::V3 { 100 } else { all.mib };
    let end = EveryDevice { cmdline: "pci=nomsi", mib, ..all }.run();
    assert_kind(&end, "Level");
}

#[test]
fn without_messages_a_line_also_serves_what_the_hosts_kernel_carries() {
    let host = host_or_skip!();
    if !has_vhost() {
        skip!("this host has no vhost-net, or no vhost-vsock");
    }
    let Some(tap) = Tap::new("doordev1", "10.0.86.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    let end =
        EveryDevice { cmdline: "pci=nomsi", ..every_device(&host, Carrier::Kernel, "10.0.86", &tap) }.run();
    assert_kind(&end, "Level");
}

#[test]
fn through_a_v2m_frame_each_device_has_its_vectors() {
    let host = host_or_skip!();
    if !has_vhost() {
        skip!("this host has no vhost-net, or no vhost-vsock");
    }
    let Some(tap) = Tap::new("doordev2", "10.0.87.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    let end =
        EveryDevice { msi: "v2m", mib: 100, ..every_device(&host, Carrier::Kernel, "10.0.87", &tap) }.run();
    assert_kind(&end, "MSIX");
    assert!(end.text().contains("GICv2m"), "the messages go elsewhere{end}");
    assert!(host.gic == Gic::V3 || !end.text().contains("ITS"), "{end}");
}

#[test]
fn sockets_that_cannot_be_had_are_one_line() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let refused = |vsock: &str, status: i32, words: &[&str]| {
        let end = Guest::linux(&host).option("--vsock", vsock).run();
        end.assert_status(status);
        let line = end.error_line();
        for word in words {
            assert!(line.contains(word), "{word:?} is not in {line:?}");
        }
    };
    let hold = |vsock: &str| {
        let mut guest = Guest::tiny(&host, &Tiny::new().print("up").sleep()).option("--vsock", vsock).start();
        guest.wait_for("up");
        guest
    };
    let end = |guest: Running| {
        guest.signal(Signal::TERM);
        guest.wait().assert_status(143);
    };
    // A name is a guest's for as long as it runs.
    let used = format!("cid=3,socket={}", path("used"));
    let holder = hold(&used);
    refused(&used, 2, &["used", "--vsock"]);
    end(holder);
    end(hold(&used));
    scratch.file("file", "a file");
    refused(&format!("cid=3,socket={}", path("file")), 2, &["file", "no socket", "--vsock"]);
    refused(&format!("cid=3,socket={}", path("nowhere/socket")), 2, &["nowhere/socket", "No such file"]);
    refused(&format!("cid=2,socket={}", path("host")), 2, &["2 cannot be", "--vsock"]);
    if has_vhost() {
        // And so is an address that the host's kernel knows.
        let holder = hold("cid=79");
        refused("cid=79", 2, &["another guest", "79", "choose another"]);
        end(holder);
        end(hold("cid=79"));
    }
}
