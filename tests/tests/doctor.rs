// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `doorbell doctor` on a real host: what it says is what the host has.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use doorbell_tests::guest::{Finished, Gic, Guest, Host, Scratch, Tiny, command, doorbell};
use doorbell_tests::{host_or_skip, skip};
use kvm_ioctls::{Cap, Kvm};

/// What `doctor` says on this host, which can run guests.
fn doctor(host: &Host) -> Finished {
    let end = doorbell(host, &["doctor"].map(OsStr::new));
    end.assert_status(0);
    assert_eq!(end.errors(), "");
    end
}

/// The state of a row.
fn state(text: &str, name: &str) -> String {
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("  "));
    let row = rows.find(|row| row.get(9..).is_some_and(|rest| rest.starts_with(&format!("{name} "))));
    row.unwrap_or_else(|| panic!("no row about {name} in\n{text}")).split(' ').next().unwrap().to_owned()
}

fn is(has: bool) -> &'static str {
    if has { "ok" } else { "missing" }
}

#[test]
fn it_says_what_the_host_has_and_what_a_guest_then_gets() {
    let host = host_or_skip!();
    let text = doctor(&host).text();
    assert!(text.ends_with("A guest can run here.\n"), "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }

    // Interrupt controllers: what a guest gets when it does not ask.
    let (here, other) = match host.gic {
        Gic::V2 => ("GICv2", "GICv3"),
        Gic::V3 => ("GICv3", "GICv2"),
    };
    assert_eq!(state(&text, here), "ok");
    let wanted = if host.gic == Gic::V2 { "v3" } else { "v2" };
    let end = Guest::tiny(&host, &Tiny::new().power_off()).option("--gic", wanted).run();
    assert_eq!(state(&text, other), if end.errors().is_empty() { "ok" } else { "note" }, "{end}");
    let end = Guest::tiny(&host, &Tiny::new().power_off()).option("--msi", "its").run();
    assert_eq!(state(&text, "MSI"), if end.errors().is_empty() { "ok" } else { "note" }, "{end}");

    // What KVM says itself.
    let kvm = Kvm::new().unwrap();
    for (name, capability) in
        [("PMU", Cap::ArmPmuV3), ("SVE", Cap::ArmSve), ("pointer auth", Cap::ArmPtrAuthAddress)]
    {
        let expected = if kvm.check_extension(capability) { "ok" } else { "note" };
        assert_eq!(state(&text, name), expected, "{name}");
    }
    let vcpus = kvm.check_extension_int(Cap::MaxVcpus);
    assert!(text.contains(&format!("up to {vcpus} vCPUs, {} bits", kvm.get_host_ipa_limit())), "{text}");
    assert!(text.contains(&format!("{} entries", kvm.check_extension_int(Cap::IrqRouting))), "{text}");

    // What lies in files.
    let exists = |path: &str| Path::new(path).exists();
    for path in ["/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock", "/dev/vfio/vfio", "/dev/iommu"] {
        assert_eq!(state(&text, path), is(exists(path)), "{path}");
    }
    let groups = fs::read_dir("/sys/kernel/iommu_groups").map_or(0, Iterator::count);
    assert_eq!(state(&text, "IOMMU"), is(groups > 0));
    assert!(groups == 0 || text.contains(&format!("{groups} groups")), "{text}");
    let huge = fs::read_dir("/sys/kernel/mm/hugepages").is_ok_and(|mut sizes| {
        sizes.any(|size| {
            fs::read_to_string(size.unwrap().path().join("nr_hugepages")).is_ok_and(|text| text.trim() != "0")
        })
    });
    assert_eq!(state(&text, "huge pages"), if huge { "ok" } else { "note" });
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(text.starts_with("doorbell ") && text.contains(release.trim()), "{text}");
}

#[test]
fn for_programs_it_says_the_same() {
    let host = host_or_skip!();
    let text = doctor(&host).text();
    let end = doorbell(&host, &["doctor", "--json"].map(OsStr::new));
    end.assert_status(0);
    let json = end.text();
    let object: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
    assert_eq!(object["guest_can_run"], true);
    assert_eq!(object["architecture"], "aarch64");
    let rows = object["rows"].as_array().unwrap();
    assert!(rows.len() > 20, "{json}");
    for row in rows {
        let name = row["name"].as_str().unwrap();
        if !name.is_empty() {
            assert_eq!(row["state"], state(&text, name).as_str(), "{row}");
        }
    }
}

/// Runs `doctor` in a mount namespace of its own that was prepared by a shell.
fn prepared(host: &Host, prepare: &str) -> Finished {
    let script = format!("{prepare} && exec {} doctor", host.doorbell.display());
    command(&["unshare", "-m", "/bin/sh", "-c", &script], None)
}

#[test]
fn without_dev_kvm_it_says_what_to_look_for() {
    let host = host_or_skip!();
    if !host.is_root() {
        skip!("hides /dev/kvm, which takes root");
    }
    for prepare in ["mount -t tmpfs tmpfs /dev", "mount -t tmpfs tmpfs /dev && echo >/dev/kvm"] {
        let end = prepared(&host, prepare);
        end.assert_status(3);
        let text = end.text();
        assert_eq!(state(&text, "/dev/kvm"), "missing");
        assert!(text.contains("dmesg") && text.ends_with("No guest can run here: /dev/kvm.\n"), "{text}");
        assert_eq!(end.errors(), "");
    }
}

#[test]
fn a_user_without_rights_is_told_how_to_get_them() {
    let host = host_or_skip!();
    if !host.is_root() {
        skip!("becomes another user, which takes root");
    }
    if fs::metadata("/dev/kvm").unwrap().permissions().mode() & 0o006 != 0 {
        skip!("everybody may use /dev/kvm here");
    }
    let scratch = Scratch::new();
    let copy = host.program_for_anybody(&scratch);
    let words = [copy.to_str().unwrap(), "doctor"];
    let end = command(&words, Some(65534));
    end.assert_status(3);
    let text = end.text();
    assert_eq!(state(&text, "/dev/kvm"), "missing");
    // Limits are inherited.
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    let unlimited = limit.split_whitespace().nth(3) == Some("unlimited");
    assert_eq!(state(&text, "locked memory"), if unlimited { "ok" } else { "note" }, "{limit}");
    assert!(text.contains("usermod -aG kvm"), "{text}");
}
