// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks and networks that come and go while the guest runs.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::Path;
use std::thread::{self, sleep};
use std::time::Duration;

use doorbell_tests::guest::{Guest, Host, Scratch, Tap, Told, done, refused};
use doorbell_tests::{host_or_skip, noise, skip};

/// How many disks come and go.
const TIMES: u32 = 10;
const BYTES: usize = 1 << 20;

/// Adds a disk. What it is called.
fn add_disk(host: &Host, vm: &str, image: &Path, more: &str) -> String {
    let disk = format!("path={},format=raw{more}", image.display());
    done(host, &["device", "add", vm, "--disk", &disk]).trim().to_owned()
}

/// In the guest: the slot whose button was pressed.
const PRESSED: &str = r"dmesg | sed -n 's/.*Slot(\([0-9]*\)): Button press: will power off.*/\1/p'";

/// Removes a device, and has the guest let go of it once it was asked: it would wait for five seconds whether the button is pressed again.
fn remove(host: &Host, told: &mut Told<'_>, vm: &str, name: &str) {
    thread::scope(|scope| {
        told.does("dmesg -c >/dev/null");
        let asked = scope.spawn(|| done(host, &["device", "remove", vm, name]));
        told.does(&format!("until n=$({PRESSED}) && [ -n \"$n\" ]; do usleep 10000; done"));
        told.does("echo 0 >/sys/bus/pci/slots/$n/power");
        let _ = asked.join().unwrap();
    });
}

/// Has the guest wait for /dev/vda, and compare its first bytes with a file of its own.
const COMPARE: &str = "until head -c 512 /dev/vda >/tmp/back 2>/dev/null; do usleep 10000; done; \
    dd if=/dev/vda of=/tmp/back bs=64k iflag=direct 2>/dev/null && cmp /tmp/back /data";

#[test]
fn a_disk_that_comes_and_goes_ten_times_has_its_data_each_time_and_leaves_nothing() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let data = noise(BYTES, 7);
    let image = scratch.file("data.img", &data);
    let other = scratch.file("other.img", [0; 4096]);
    let guest = Guest::linux(&host).memory("128M").cpus(2).option("--pci-slots", "2").file("data", &data);
    let mut told = Told::start(&host, "rack", guest);
    let open = |told: &Told<'_>| {
        let count = |what| fs::read_dir(told.guest.proc(what)).unwrap().count();
        (count("fd"), count("task"))
    };
    let before = open(&told);
    for n in 0..TIMES {
        assert_eq!(add_disk(&host, "rack", &image, ",serial=data"), "disk 0");
        told.does(COMPARE);
        told.does("[ $(cat /sys/block/vda/serial) = data ]");
        // What it writes is in the image.
        told.does(&format!("printf 'round %04d' {n} | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null"));
        assert!(fs::read(&image).unwrap().starts_with(format!("round {n:04}").as_bytes()));
        fs::write(&image, &data).unwrap();
        if n == 0 {
            let listed = done(&host, &["device", "list", "rack"]);
            assert!(
                listed.contains("disk 0") && listed.contains("data.img") && listed.contains("yes"),
                "{listed}"
            );
            let disk = |path: &Path, more: &str| format!("path={},format=raw{more}", path.display());
            let refuse = |disk: &str, status: i32, words: &[&str]| {
                refused(&host, &["device", "add", "rack", "--disk", disk], status, words);
            };
            refuse(&disk(&image, ""), 2, &["disk 0 and disk 1 are the same image", "data.img"]);
            refuse(&disk(&other, ",serial=data"), 2, &["same serial number 'data'"]);
            refuse(&disk(&other, ",id=disk 0"), 2, &["called disk 0 already", "id=NAME"]);
            refuse("path=/nonexistent.img", 2, &["/nonexistent.img", "No such file"]);
            refuse("path=a,colour=red", 2, &["colour"]);
            refused(&host, &["device", "add", "rack", "--net", "tap=nosuchtap"], 2, &["nosuchtap"]);
            // None of them has left anything behind, in the second slot or elsewhere.
            assert_eq!(add_disk(&host, "rack", &other, ",id=second"), "second");
            refuse(&disk(&scratch.file("third.img", [0; 4096]), ""), 3, &["all 2 PCI slots", "--pci-slots"]);
            told.does("until [ -e /sys/block/vdb ]; do usleep 10000; done");
            remove(&host, &mut told, "rack", "second");
        }
        remove(&host, &mut told, "rack", if n % 2 == 0 { "disk 0" } else { "disk-0" });
        // The thread that has closed it comes to its end.
        (0..100).take_while(|_| open(&told) != before).for_each(|_| sleep(Duration::from_millis(50)));
        assert_eq!(open(&told), before, "descriptors and threads, the {n}th time");
    }
    refused(&host, &["device", "remove", "rack", "disk 0"], 2, &["no device called disk 0"]);
    told.does("! grep virtio /proc/interrupts");
    told.end();
}

#[test]
fn a_network_comes_and_is_there_after_a_reset_with_what_else_has_a_slot() {
    let host = host_or_skip!();
    let Some(tap) = Tap::new("doorhot0", "10.0.93.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    let scratch = Scratch::new();
    let data = noise(BYTES, 9);
    let image = scratch.file("data.img", &data);
    let net = format!("tap={},id=uplink,mac=02:00:00:00:93:02", tap.name());
    let guest = Guest::linux(&host)
        .memory("128M")
        .option("--disk", format!("path={},format=raw,slot=on", image.display()))
        .option("--pci-slots", "2")
        .file("data", &data);
    let ping = "until [ -e /sys/class/net/eth0 ]; do usleep 10000; done; ip link set eth0 up; \
        ip addr add 10.0.93.2/24 dev eth0; ping -c 3 10.0.93.1 >/dev/null && \
        [ $(cat /sys/class/net/eth0/address) = 02:00:00:00:93:02 ]";
    let mut told = Told::start(&host, "wired", guest);
    assert_eq!(done(&host, &["device", "add", "wired", "--net", &net]).trim(), "uplink");
    let same = format!("tap={},mac=02:00:00:00:93:02", tap.name());
    refused(&host, &["device", "add", "wired", "--net", &same], 3, &["all 2 PCI slots"]);
    told.does(ping);
    told.does(COMPARE);
    told.guest.send("reboot -f\n");
    told.guest.wait_for("told");
    told.does(ping);
    told.does(COMPARE);
    remove(&host, &mut told, "wired", "uplink");
    told.guest.send("reboot -f\n");
    told.guest.wait_for("told");
    let listed = done(&host, &["device", "list", "wired"]);
    assert!(!listed.contains("uplink"), "{listed}");
    told.end();
}

#[test]
fn without_messages_a_disk_that_comes_interrupts_by_its_slots_line() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let data = noise(BYTES, 11);
    let image = scratch.file("data.img", &data);
    let guest = Guest::linux(&host).cmdline("pci=nomsi").option("--pci-slots", "2").file("data", &data);
    let mut told = Told::start(&host, "lined", guest);
    for _ in 0..2 {
        assert_eq!(add_disk(&host, "lined", &image, ""), "disk 0");
        told.does(COMPARE);
        told.does("grep virtio /proc/interrupts | grep Level");
        remove(&host, &mut told, "lined", "disk 0");
    }
    told.end();
}
