// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that breaks the rules of its devices' queues: each asks for a reset and works again after one, and VMM and guest live on.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::path::Path;

use doorbell_tests::guest::{Finished, Guest, Input, Scratch, Tap, hvc};
use doorbell_tests::{host_or_skip, hostile, noise, skip};

/// A device in the guest, in the order of its slots, and the queues that are broken one after the other: those that the device looks into when it is
/// notified.
struct Victim {
    name: &'static str,
    queues: &'static [u16],
}

const fn victim(name: &'static str, queues: &'static [u16]) -> Victim {
    Victim { name, queues }
}

/// Each act against each queue has made the device ask for a reset.
fn assert_reset(end: &Finished, victims: &[Victim]) {
    let lines = end.lines_with("hostile ");
    let acts = hostile::acts().count();
    for (slot, victim) in (1..).zip(victims) {
        for queue in victim.queues {
            let this = format!("hostile 0000:00:{slot:02x}.0 {queue}: ");
            let said: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix(&this)).collect();
            assert_eq!(said, [format!("{acts} resets")], "the {}, queue {queue}{end}", victim.name);
        }
    }
}

/// A shell script that takes the devices from their driver, has them attacked, and gives them back.
fn attacks(victims: &[Victim]) -> String {
    (1..)
        .zip(victims)
        .map(|(slot, victim)| {
            let queues: Vec<_> = victim.queues.iter().map(u16::to_string).collect();
            format!(
                "echo 0000:00:{slot:02x}.0 >/sys/bus/pci/drivers/virtio-pci/unbind
                inside hostile 0000:00:{slot:02x}.0 {}
                echo 0000:00:{slot:02x}.0 >/sys/bus/pci/drivers/virtio-pci/bind\n",
                queues.join(" ")
            )
        })
        .collect()
}

#[test]
fn what_a_hostile_driver_does_to_a_device_ends_with_its_reset() {
    let host = host_or_skip!();
    let Some(tap) = Tap::new("doorhost0", "10.0.83.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    let scratch = Scratch::new();
    let pattern = noise(1 << 20, 7);
    let disk = scratch.file("disk.img", &pattern);
    let victims = [
        victim("disk", &[0]),
        victim("network", &[1, 2]),
        victim("entropy", &[0]),
        victim("sockets", &[1]),
        victim("balloon", &[0, 4]),
        victim("console", &[1]),
    ];
    let mut guest = Guest::linux(&host)
        .cpus(2)
        .inside(env!("CARGO_BIN_EXE_inside"))
        .input(Input::PIPE)
        .option("--disk", format!("path={}", disk.display()))
        .option("--net", format!("tap={},vhost=off", tap.name()))
        .flag("--rng")
        .option("--vsock", format!("cid=3,socket={}", scratch.path().join("socket").display()))
        .flag("--balloon")
        .flag("--console")
        .file("pattern", &pattern)
        .script(&format!(
            r#"
            {}
            cmp /dev/vda /pattern && echo disk=works
            ip link set eth0 up
            ip addr add 10.0.83.2/24 dev eth0
            ping -c 3 10.0.83.1 >/dev/null && echo network=works
            echo "entropy=$(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c)"
            {} {}
            for device in /sys/bus/virtio/devices/*; do echo "status=$(cat $device/status) $(readlink $device/driver)"; done
            "#,
            attacks(&victims),
            hvc::OPEN,
            hvc::TALK
        ))
        .start();
    hvc::talk(&mut guest);
    let end = guest.wait();
    end.assert_status(0);
    assert_reset(&end, &victims);
    let values = ["disk", "network", "entropy"].map(|name| end.value(name));
    assert_eq!(values, ["works", "works", "64"], "{end}");
    hvc::assert_heard(&end);
    // ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, and nothing else.
    let working = end.lines_with("status=0x0000000f");
    assert_eq!(working.len(), victims.len(), "{end}");
}

#[test]
fn what_a_hostile_driver_does_to_queues_of_the_hosts_kernel_ends_with_a_reset() {
    let host = host_or_skip!();
    if !Path::new("/dev/vhost-net").exists() || !Path::new("/dev/vhost-vsock").exists() {
        skip!("this host has no vhost-net, or no vhost-vsock");
    }
    let Some(tap) = Tap::new("doorhost1", "10.0.84.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    let victims = [victim("network", &[1]), victim("sockets", &[1])];
    let end = Guest::linux(&host)
        .cpus(2)
        .inside(env!("CARGO_BIN_EXE_inside"))
        .option("--net", format!("tap={},vhost=on", tap.name()))
        .option("--vsock", "cid=77")
        .script(&format!(
            r#"
            {}
            ip link set eth0 up
            ip addr add 10.0.84.2/24 dev eth0
            ping -c 3 10.0.84.1 >/dev/null && echo network=works
            for device in /sys/bus/virtio/devices/*; do echo "status=$(cat $device/status)"; done
            "#,
            attacks(&victims)
        ))
        .run();
    end.assert_status(0);
    assert_reset(&end, &victims);
    assert_eq!(end.value("network"), "works", "{end}");
    assert_eq!(end.lines_with("status=0x0000000f").len(), victims.len(), "{end}");
}
