// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory: how much, made of what, and when it is taken from the host.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;

use doorbell_tests::guest::{Guest, Running, Tiny};
use doorbell_tests::{host_or_skip, skip};
use rustix::process::Signal;

fn asleep() -> Tiny {
    Tiny::new().print("up").sleep()
}

/// KiB that the kernel reports as `name` in the file.
fn kib(file: &str, name: &str) -> u64 {
    let line = file.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
}

/// How much of its memory the program has taken from the host, in MiB.
fn resident(guest: &Running) -> u64 {
    kib(&fs::read_to_string(guest.proc("status")).unwrap(), "VmRSS") >> 10
}

/// The mapping that the guest's memory is, as the host shows it.
fn mapping(guest: &Running, mib: u64) -> String {
    let maps = fs::read_to_string(guest.proc("maps")).unwrap();
    let size = |line: &str| -> Option<u64> {
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        Some(u64::from_str_radix(to, 16).ok()? - u64::from_str_radix(from, 16).ok()?)
    };
    let found = maps.lines().find(|line| size(line) == Some(mib << 20));
    found.unwrap_or_else(|| panic!("no mapping of {mib} MiB in\n{maps}")).to_owned()
}

fn end(guest: Running) {
    guest.signal(Signal::TERM);
    guest.wait().assert_status(143);
}

#[test]
fn the_guest_has_128_mib() {
    let host = host_or_skip!();
    let end = Guest::linux(&host).memory("128M").script("cat /proc/meminfo /proc/iomem").run();
    end.assert_status(0);
    // What the kernel takes for itself is missing; more than there is would be worse.
    let total = kib(&end.text(), "MemTotal") >> 10;
    assert!((96..128).contains(&total), "{total} MiB");
    assert!(end.text().contains("40000000-47ffffff : System RAM"), "{end}");
}

#[test]
fn the_guest_has_6_gib_and_uses_what_lies_above_4() {
    let host = host_or_skip!();
    // Memory begins at 1 GiB, so that three of the six lie above 4 GiB: the zone "Normal". A file in memory is put there first.
    let end = Guest::linux(&host)
        .memory("6G")
        .cpus(2)
        .script(
            r#"
            free_above() { awk '/^Node/ { zone = $4 } zone == "Normal" && $1 == "pages" { print $3 }' /proc/zoneinfo; }
            cat /proc/meminfo /proc/iomem
            before=$(free_above)
            mkdir /mnt
            mount -t tmpfs -o size=1g tmpfs /mnt
            yes "doorbell" | head -c 33554432 >/mnt/file
            echo "above=$((before - $(free_above)))"
            echo "sum=$(md5sum </mnt/file)"
            rm /mnt/file
            yes "doorbell" | head -c 33554432 | md5sum | sed 's/^/same=/'
            "#,
        )
        .run();
    end.assert_status(0);
    let total = kib(&end.text(), "MemTotal") >> 10;
    assert!((5800..6144).contains(&total), "{total} MiB");
    assert!(end.text().contains("40000000-1bfffffff : System RAM"), "{end}");
    let above: u64 = end.value("above").parse().unwrap();
    assert!(above >= 32 << 20 >> 12, "only {above} pages of the file lie above 4 GiB");
    assert_eq!(end.value("sum"), end.value("same"));
}

#[test]
fn linux_runs_on_every_backing() {
    let host = host_or_skip!();
    for backing in ["memfd", "anonymous"] {
        Guest::bench(&host).option("--backing", backing).run().assert_status(0);
    }
}

#[test]
fn memory_is_a_memfd_or_anonymous_as_asked() {
    let host = host_or_skip!();
    for (backing, is_memfd) in [("memfd", true), ("anonymous", false)] {
        let mut guest = Guest::tiny(&host, &asleep()).memory("64M").option("--backing", backing).start();
        guest.wait_for("up");
        let mapping = mapping(&guest, 64);
        assert_eq!(mapping.contains("memfd:doorbell-guest"), is_memfd, "{mapping}");
        end(guest);
    }
}

#[test]
fn memory_is_taken_when_it_is_used_or_before_with_prefault() {
    let host = host_or_skip!();
    let mut lazy = Guest::tiny(&host, &asleep()).memory("256M").start();
    lazy.wait_for("up");
    assert!(resident(&lazy) < 64, "{} MiB of 256 for a guest of a page", resident(&lazy));
    end(lazy);
    for backing in ["memfd", "anonymous"] {
        let mut eager = Guest::tiny(&host, &asleep())
            .memory("256M")
            .flag("--prefault")
            .option("--backing", backing)
            .start();
        eager.wait_for("up");
        assert!(resident(&eager) >= 256, "{backing}: {} MiB of 256", resident(&eager));
        end(eager);
    }
}

/// Pages of 2 MiB that the host has been told to reserve, given back when this is dropped.
struct Reserved(String);

impl Reserved {
    const COUNT: &'static str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

    fn new(pages: u32) -> Self {
        let before = fs::read_to_string(Self::COUNT).unwrap();
        fs::write(Self::COUNT, pages.to_string()).unwrap();
        let this = Self(before);
        let got = fs::read_to_string(Self::COUNT).unwrap();
        assert_eq!(got.trim(), pages.to_string(), "the host has not that many huge pages");
        this
    }

    fn free() -> u64 {
        kib(&fs::read_to_string("/proc/meminfo").unwrap(), "HugePages_Free")
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // The next test says if this failed.
        let _ = fs::write(Self::COUNT, &self.0);
    }
}

#[test]
fn huge_pages_come_from_what_the_host_reserved_and_go_back() {
    let host = host_or_skip!();
    if !host.is_root() {
        skip!("reserves huge pages, which takes root");
    }
    let _reserved = Reserved::new(64);
    assert_eq!(Reserved::free(), 64);
    let mut guest =
        Guest::tiny(&host, &asleep()).memory("64M").option("--hugepages", "2M").flag("--prefault").start();
    guest.wait_for("up");
    assert_eq!(Reserved::free(), 32, "64 MiB are 32 pages");
    assert!(mapping(&guest, 64).contains("memfd:doorbell-guest"));
    end(guest);
    assert_eq!(Reserved::free(), 64);
    Guest::bench(&host).option("--hugepages", "2M").run().assert_status(0);
    assert_eq!(Reserved::free(), 64);
}

#[test]
fn huge_pages_that_are_not_reserved_are_3_and_the_line_says_what_to_type() {
    let host = host_or_skip!();
    if !host.is_root() {
        skip!("reserves huge pages, which takes root");
    }
    for reserved in [0, 10] {
        let _reserved = Reserved::new(reserved);
        for more in [&[][..], &["--prefault"]] {
            let guest = Guest::tiny(&host, &asleep()).memory("64M").option("--hugepages", "2M");
            let end = more.iter().fold(guest, |guest, word| guest.flag(word)).run();
            end.assert_status(3);
            let line = end.error_line();
            assert!(
                line.contains("echo 32 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"),
                "{line}"
            );
        }
    }
}

#[test]
fn huge_pages_of_a_size_that_the_host_has_not_are_3() {
    let host = host_or_skip!();
    let end = Guest::tiny(&host, &asleep()).memory("64M").option("--hugepages", "8M").run();
    end.assert_status(3);
    let line = end.error_line();
    assert!(line.contains("no huge pages of 8M") && line.contains("/sys/kernel/mm/hugepages"), "{line}");
}
