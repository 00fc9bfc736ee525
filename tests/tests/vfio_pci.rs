// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI devices of the host in a guest: devices that nobody here wrote, with the drivers that Linux has for them.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use doorbell_tests::guest::{Finished, Guest, Host, Scratch};
use doorbell_tests::{bind_or_skip, host_or_skip};

const NVME: &str = "0000:00:08.0";
const EDU: &str = "0000:00:09.0";
const VIRTIO: &str = "0000:00:0a.0";
const E1000E: &str = "0000:00:0b.0";
const VIRTIO_NET: &str = "0000:00:0e.0";
/// Functions of one device, in one IOMMU group.
const TWINS: [&str; 2] = ["0000:00:10.0", "0000:00:10.1"];

/// In the guest: 4 MiB of noise written to a disk and read back, not from the page cache; then how often each of its interrupts came.
fn disk(node: &str, interrupt: &str) -> String {
    format!(
        "dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2>/dev/null
         dd if=/tmp/noise of=/dev/{node} bs=64k 2>/dev/null
         sync
         echo 3 >/proc/sys/vm/drop_caches
         echo wrote=$(md5sum </tmp/noise)
         echo read=$(dd if=/dev/{node} bs=64k count=64 2>/dev/null | md5sum)
         echo interrupts=$(grep {interrupt} /proc/interrupts | awk '{{ n += $2 + $3 }} END {{ print n + 0 }}')
         grep {interrupt} /proc/interrupts"
    )
}

/// Runs a guest with two CPUs and the devices, and lets it do `script`.
fn guest(host: &Host, devices: &[&str], cmdline: &str, script: &str) -> Finished {
    let mut guest = Guest::linux(host).cpus(2).memory("128M").cmdline(cmdline).script(script);
    for device in devices {
        guest = guest.option("--vfio", device);
    }
    let end = guest.run();
    end.assert_status(0);
    assert_eq!(end.errors(), "");
    end
}

fn assert_disk_works(end: &Finished, kind: &str) -> String {
    let wrote = end.value("wrote");
    assert_eq!(end.value("read"), wrote);
    assert!(end.value("interrupts").parse::<u32>().unwrap() > 10, "{end}");
    assert!(!end.lines_with(kind).is_empty(), "its interrupts are not by {kind}{end}");
    wrote
}

/// What the host itself reads from a disk that it has got back.
fn read_by_host(node: &str) -> String {
    for _ in 0..100 {
        let command = format!("dd if=/dev/{node} bs=64k count=64 iflag=direct 2>/dev/null | md5sum");
        if fs::exists(format!("/dev/{node}")).unwrap() {
            let output = Command::new("sh").args(["-c", &command]).output().unwrap();
            return String::from_utf8(output.stdout).unwrap().trim().to_owned();
        }
        sleep(Duration::from_millis(100));
    }
    panic!("the host has no /dev/{node}");
}

#[test]
fn nvme_works_by_messages_and_the_host_finds_what_the_guest_wrote() {
    let host = host_or_skip!();
    let nvme = bind_or_skip!(&host, NVME);
    let end = guest(&host, &[NVME], "", &disk("nvme0n1", "nvme0q"));
    let wrote = assert_disk_works(&end, "PCI-MSIX-0000:00:01.0");
    drop(nvme);
    assert_eq!(read_by_host("nvme0n1").split(' ').next(), wrote.split(' ').next());
}

#[test]
fn nvme_works_through_the_legacy_interface() {
    let host = host_or_skip!();
    let _nvme = bind_or_skip!(&host, NVME);
    let end = guest(&host, &["0000:00:08.0,iommu=legacy"], "", &disk("nvme0n1", "nvme0q"));
    assert_disk_works(&end, "PCI-MSIX-0000:00:01.0");
}

#[test]
fn nvme_works_by_its_line_whichever_way_back_the_end_of_the_interrupt_takes() {
    let host = host_or_skip!();
    let _nvme = bind_or_skip!(&host, NVME);
    for way in ["kernel", "loop"] {
        let device = format!("{NVME},resample={way}");
        let end = guest(&host, &[&device], "pci=nomsi", &disk("nvme0n1", "nvme0q"));
        assert_disk_works(&end, "37 Level");
    }
}

#[test]
fn virtio_works_by_messages_and_by_its_line() {
    let host = host_or_skip!();
    let _disk = bind_or_skip!(&host, VIRTIO);
    let end = guest(&host, &[VIRTIO], "", &disk("vda", "virtio0"));
    assert_disk_works(&end, "PCI-MSIX");
    let end = guest(&host, &[VIRTIO], "pci=nomsi", &disk("vda", "virtio0"));
    assert_disk_works(&end, "Level     virtio0");
}

#[test]
fn two_devices_share_the_guests_memory() {
    let host = host_or_skip!();
    let _nvme = bind_or_skip!(&host, NVME);
    let _disk = bind_or_skip!(&host, VIRTIO);
    let copy = "dd if=/dev/urandom of=/dev/nvme0n1 bs=64k count=32 2>/dev/null
                dd if=/dev/nvme0n1 of=/dev/vda bs=64k count=32 2>/dev/null
                sync
                echo 3 >/proc/sys/vm/drop_caches
                echo first=$(dd if=/dev/nvme0n1 bs=64k count=32 2>/dev/null | md5sum)
                echo second=$(dd if=/dev/vda bs=64k count=32 2>/dev/null | md5sum)";
    for iommu in ["iommufd", "legacy"] {
        let devices = [NVME, VIRTIO].map(|device| format!("{device},iommu={iommu}"));
        let end = guest(&host, &devices.each_ref().map(String::as_str), "", copy);
        assert_eq!(end.value("first"), end.value("second"));
    }
}

#[test]
fn a_file_system_on_nvme_is_whole_and_each_cpu_has_its_queue() {
    let host = host_or_skip!();
    let _nvme = bind_or_skip!(&host, NVME);
    let script = "mke2fs /dev/nvme0n1 >/dev/null 2>&1
                  mkdir /tmp/disk
                  mount -t ext2 /dev/nvme0n1 /tmp/disk || mount -t ext4 /dev/nvme0n1 /tmp/disk
                  for cpu in 0 1 2 3; do
                      mask=$((1 << cpu))
                      taskset $mask dd if=/dev/urandom of=/tmp/disk/$cpu bs=64k count=16 conv=fsync 2>/dev/null
                  done
                  md5sum /tmp/disk/* >/tmp/sums
                  umount /tmp/disk
                  echo 3 >/proc/sys/vm/drop_caches
                  mount -t ext2 -o ro /dev/nvme0n1 /tmp/disk || mount -t ext4 -o ro /dev/nvme0n1 /tmp/disk
                  for cpu in 0 1 2 3; do taskset $((1 << cpu)) md5sum /tmp/disk/$cpu; done >/tmp/again
                  cmp /tmp/sums /tmp/again && echo files=$(wc -l </tmp/again)
                  umount /tmp/disk
                  for queue in 1 2 3 4; do
                      echo queue$queue=$(awk -v q=nvme0q$queue '$NF == q { print $2 + $3 + $4 + $5 }' /proc/interrupts)
                  done";
    let end = Guest::linux(&host).cpus(4).memory("128M").option("--vfio", NVME).script(script).run();
    end.assert_status(0);
    assert_eq!((end.errors().as_str(), end.value("files").as_str()), ("", "4"));
    for queue in 1..=4 {
        let came: u32 = end.value(&format!("queue{queue}")).parse().unwrap();
        assert!(came > 0, "no interrupt of queue {queue}{end}");
    }
}

#[test]
fn a_network_card_carries_traffic_whoever_made_it() {
    let host = host_or_skip!();
    let ping = "ip link set eth0 up
                ip addr add 10.0.2.15/24 dev eth0
                for n in 1 2 3 4 5 6 7 8 9 10; do ping -c 1 -W 2 10.0.2.2 >/dev/null && break; done
                ping -c 20 -i 0.1 10.0.2.2 | grep received
                grep -E 'eth0|virtio0' /proc/interrupts";
    for card in [E1000E, VIRTIO_NET] {
        let _card = bind_or_skip!(&host, card);
        for (cmdline, kind) in [("", "PCI-MSIX"), ("pci=nomsi", "Level")] {
            let end = guest(&host, &[card], cmdline, ping);
            assert_eq!(end.lines_with("20 packets transmitted, 20 packets received").len(), 1, "{end}");
            let lines = end.lines_with(kind);
            assert!(lines.iter().any(|line| line.contains("eth0") || line.contains("virtio0")), "{end}");
        }
    }
}

/// edu has no driver; the guest drives it by its registers: 0x60 raises an interrupt, 0x64 acknowledges, 0x24 says what is raised
/// (QEMU, `docs/specs/edu.rst`). The generic UIO driver counts interrupts and sets INTx disable at each, until the guest clears it.
#[test]
fn every_interrupt_of_a_line_arrives_once_and_none_is_stuck() {
    let host = host_or_skip!();
    let _edu = bind_or_skip!(&host, EDU);
    let script = "D=/sys/bus/pci/devices/0000:00:01.0
                  echo uio_pci_generic >$D/driver_override
                  echo 0000:00:01.0 >/sys/bus/pci/drivers_probe
                  A=$(head -n 1 $D/resource | cut -d' ' -f1)
                  echo id=$(devmem $A 32)
                  raise=$(printf 0x%x $((A + 0x60))) acknowledge=$(printf 0x%x $((A + 0x64)))
                  n=0
                  while [ $n -lt 50 ]; do
                      devmem $raise 32 1
                      devmem $acknowledge 32 1
                      printf '\\0' | dd of=$D/config bs=1 seek=5 conv=notrunc 2>/dev/null
                      n=$((n + 1))
                  done
                  echo arrived=$(awk '/uio_pci_generic/ { print $2 + $3 }' /proc/interrupts)";
    for way in ["kernel", "loop"] {
        let end = guest(&host, &[&format!("{EDU},resample={way}")], "", script);
        assert_eq!(end.value("id"), "0x010000ED");
        assert_eq!(end.value("arrived"), "50", "{way}");
    }
}

#[test]
fn what_cannot_be_passed_through_is_one_line_with_what_to_do() {
    let host = host_or_skip!();
    let refused = |device: &str, status: i32, words: &[&str]| {
        let end = Guest::linux(&host).option("--vfio", device).run();
        end.assert_status(status);
        let line = end.error_line();
        for word in words {
            assert!(line.contains(word), "{device}: '{word}' is missing in: {line}");
        }
    };
    refused("0000:00:1f.0", 2, &["--vfio 0000:00:1f.0", "no PCI device", "doorbell vfio list"]);
    refused("00:08", 2, &["'00:08'", "0000:00:08.0"]);
    refused("0000:00:08.0,iommu=none", 2, &["none"]);
    // The host bridge, bound to nothing.
    refused("0000:00:00.0", 3, &["no driver", "doorbell vfio bind 0000:00:00.0"]);
    if fs::exists(format!("/sys/bus/pci/devices/{NVME}")).unwrap() {
        refused(NVME, 3, &["driver nvme", "doorbell vfio bind 0000:00:08.0"]);
        let _nvme = bind_or_skip!(&host, NVME);
        refused("0000:00:08.0,iommu=noiommu", 2, &["it is behind an IOMMU", "leave iommu= out"]);
        let mut first = Guest::linux(&host).option("--vfio", NVME).script("echo up; sleep 1000").start();
        first.wait_for("up");
        refused(NVME, 3, &["in use by another process", "end the other VMM"]);
        refused("0000:00:08.0,iommu=legacy", 3, &["in use"]);
        first.signal(rustix::process::Signal::KILL);
        let _ = first.wait();
    }
}

/// Two functions without ACS: one may write to the other without the IOMMU's seeing it.
#[test]
fn a_group_goes_to_a_guest_as_a_whole_or_not_at_all() {
    let host = host_or_skip!();
    let first = bind_or_skip!(&host, TWINS[0]);
    for iommu in ["legacy", "iommufd"] {
        let end = Guest::linux(&host).option("--vfio", format!("{},iommu={iommu}", TWINS[0])).run();
        end.assert_status(3);
        let line = end.error_line();
        for part in ["is not viable", "0000:00:10.1 has driver virtio-pci", "doorbell vfio bind"] {
            assert!(line.contains(part), "{iommu}: {line}");
        }
    }
    let second = bind_or_skip!(&host, TWINS[1]);
    // Both are there, and the whole of their bus's share is the guest's: a byte of each comes by DMA.
    let script = "for rng in /sys/bus/virtio/devices/*; do
            echo ${rng##*/} >/sys/bus/virtio/drivers/virtio_rng/bind 2>/dev/null
        done
        echo found=$(ls /sys/bus/virtio/drivers/virtio_rng | grep -c virtio[0-9])
        echo read=$(head -c 64 /dev/hwrng | wc -c)";
    for iommu in ["legacy", "iommufd"] {
        let devices = TWINS.map(|device| format!("{device},iommu={iommu}"));
        let end = guest(&host, &devices.each_ref().map(String::as_str), "", script);
        assert_eq!((end.value("found").as_str(), end.value("read").as_str()), ("2", "64"), "{iommu}");
    }
    drop((first, second));
}

#[test]
fn who_may_not_use_a_device_or_lock_the_memory_is_told_in_one_line() {
    let host = host_or_skip!();
    let _nvme = bind_or_skip!(&host, NVME);
    // Root has no limit; somebody else, who may use the device and read the files, has.
    let scratch = Scratch::new();
    let mut files = host.clone();
    files.kernel = scratch.file("kernel", fs::read(&host.kernel).unwrap());
    files.initrd = scratch.file("initrd.gz", fs::read(&host.initrd).unwrap());
    let shell = |command: &str| assert!(Command::new("sh").args(["-c", command]).status().unwrap().success());
    shell(&format!("chmod -R a+rX {0}; chmod a+x {0}/..; chmod 666 /dev/kvm", scratch.path().display()));
    let refused = |iommu: &str, parts: &[&str]| {
        let end = Guest::linux(&files)
            .user(65534)
            .through(&["/bin/sh", "-c", r#"ulimit -l 1024; exec "$@""#, "sh"])
            .option("--vfio", format!("{NVME},iommu={iommu}"))
            .run();
        let line = end.error_line();
        for part in parts {
            assert!(line.contains(part), "{iommu}: '{part}' is missing in: {line}");
        }
    };
    for iommu in ["iommufd", "legacy"] {
        refused(iommu, &["/dev/", "ermission"]);
    }
    shell("chmod 666 /dev/iommu /dev/vfio/vfio /dev/vfio/[0-9]* /dev/vfio/devices/*");
    for iommu in ["iommufd", "legacy"] {
        refused(
            iommu,
            &["134217728 bytes of guest memory must be locked", "the limit is 1048576", "ulimit -l"],
        );
    }
}

#[test]
fn the_list_says_of_each_device_what_stands_in_its_way() {
    let host = host_or_skip!();
    let list = || {
        let output = Command::new(&host.doorbell).args(["vfio", "list"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let nvme = bind_or_skip!(&host, NVME);
    let text = list();
    let line = text.lines().find(|line| line.starts_with(NVME)).unwrap();
    for part in ["1b36:0010", "010802", "vfio-pci", "group", "INTx, MSI-X 65"] {
        assert!(line.contains(part), "'{part}' is missing in: {line}");
    }
    assert!(text.contains("ready: --vfio 0000:00:08.0"), "{text}");
    drop(nvme);
    assert!(list().contains("doorbell vfio bind 0000:00:08.0"), "{}", list());
}
