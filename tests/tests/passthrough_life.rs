// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of a host's PCI device in a guest: it comes and goes while the guest runs, outlives reboots, and is whole when its VMM is killed.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::process::Command;
use std::thread::{self, sleep};
use std::time::Duration;

use doorbell_tests::guest::{Bound, Guest, Input, Running, done, driver, refused};
use doorbell_tests::{bind_or_skip, host_or_skip};
use rustix::process::Signal;

const NVME: &str = "0000:00:08.0";
const EDU: &str = "0000:00:09.0";
const VIRTIO: &str = "0000:00:0a.0";

/// In the guest, for each line that is typed: waits for the disks (the node of one is there a moment before it can be opened), writes noise to each,
/// reads it back, says so; or lets them go. The button of a slot was pressed before, and Linux would wait for five seconds whether it is pressed
/// again: asking for the same by sysfs ends that.
fn cycles(disks: &[&str]) -> String {
    let disks = disks.join(" ");
    format!(
        "echo begin
         dd if=/dev/urandom of=/tmp/noise bs=64k count=4 2>/dev/null
         n=0
         while read word; do
             case $word in
             end) break ;;
             check)
                 for disk in {disks}; do
                     until head -c 512 /dev/$disk >/tmp/back 2>/dev/null; do usleep 10000; done
                     printf '%-512s' $disk.$n | dd of=/tmp/noise conv=notrunc 2>/dev/null
                     dd if=/tmp/noise of=/dev/$disk bs=64k oflag=direct 2>/tmp/errors || cat /tmp/errors
                     dd if=/dev/$disk of=/tmp/back bs=64k count=4 iflag=direct 2>/tmp/errors || cat /tmp/errors
                     cmp /tmp/noise /tmp/back || {{ dmesg | tail -n 20; exit; }}
                 done
                 echo whole=$n
                 n=$((n + 1)) ;;
             release)
                 for slot in /sys/bus/pci/slots/*; do echo 0 >$slot/power & done
                 wait
                 for disk in {disks}; do [ -e /dev/$disk ] && exit; done
                 echo released ;;
             esac
         done
         echo vectors=$(grep -cE 'nvme0q|virtio' /proc/interrupts)"
    )
}

#[test]
fn disks_that_come_and_go_a_hundred_times_are_whole_each_time() {
    // Two at once, each in its slot.
    const ROUNDS: u32 = 50;
    let host = host_or_skip!();
    let _nvme = bind_or_skip!(&host, NVME);
    let _virtio = bind_or_skip!(&host, VIRTIO);
    let mut guest = Guest::linux(&host)
        .cpus(2)
        .memory("64M")
        .option("--control", "rack")
        .option("--pci-slots", "2")
        .patience(4)
        .input(Input::PIPE)
        .script(&cycles(&["nvme0n1", "vda"]))
        .start();
    guest.wait_for("begin");
    // But for sockets: a command's own may be open a moment longer than the command runs.
    let open = |guest: &Running| {
        let links = fs::read_dir(guest.proc("fd")).unwrap();
        let targets = links.filter_map(|link| fs::read_link(link.unwrap().path()).ok());
        targets.filter(|target| !target.to_string_lossy().starts_with("socket:")).count()
    };
    // From the first device on, the address space stays open for the next.
    let mut after_the_first = None;
    refused(&host, &["device", "add", "rack", "0000:00:99.0"], 2, &["0000:00:99.0"]);
    for n in 0..ROUNDS {
        for device in [NVME, VIRTIO] {
            done(&host, &["device", "add", "rack", device]);
        }
        if n == 0 {
            refused(&host, &["device", "add", "rack", NVME], 2, &["called 0000:00:08.0 already"]);
            refused(&host, &["device", "add", "rack", "0000:00:08.0,id=other"], 3, &["all 2 PCI slots"]);
            assert!(done(&host, &["device", "list", "rack"]).contains("yes"));
        }
        guest.send("check\n");
        guest.wait_for(&format!("whole={n}"));
        thread::scope(|scope| {
            let remove = |device| done(&host, &["device", "remove", "rack", device]);
            let removals = [NVME, VIRTIO].map(|device| scope.spawn(move || remove(device)));
            guest.send("release\n");
            guest.wait_for("released");
            removals.into_iter().for_each(|removal| drop(removal.join().unwrap()));
        });
        let now = open(&guest);
        assert_eq!(*after_the_first.get_or_insert(now), now, "descriptors stay behind");
    }
    guest.send("end\n");
    let end = guest.wait();
    end.assert_status(0);
    assert_eq!((end.errors().as_str(), end.value("vectors").as_str()), ("", "0"));
}

#[test]
fn a_device_that_came_while_the_guest_ran_is_there_after_its_reset_and_interrupts_by_its_line() {
    let host = host_or_skip!();
    let _nvme = bind_or_skip!(&host, NVME);
    // The first bytes of the disk say whether this is the second time.
    let script = "echo begin
        until head -c 512 /dev/nvme0n1 >/dev/null 2>&1; do usleep 10000; done
        dd if=/dev/nvme0n1 bs=64k count=16 iflag=direct 2>/dev/null | wc -c
        grep nvme0q /proc/interrupts
        read word
        if [ $word = reset ]; then reboot -f; sleep 100; fi
        echo came=$(awk '/nvme0q/ { n += $2 } END { print n }' /proc/interrupts)";
    let mut guest = Guest::linux(&host)
        .cmdline("pci=nomsi")
        .option("--control", "again")
        .option("--pci-slots", "2")
        .input(Input::PIPE)
        .script(script)
        .start();
    guest.wait_for("begin");
    done(&host, &["device", "add", "again", NVME]);
    guest.wait_for("1048576");
    guest.send("reset\n");
    guest.wait_for("begin");
    guest.wait_for("1048576");
    assert!(done(&host, &["device", "list", "again"]).contains(NVME));
    guest.send("end\n");
    let end = guest.wait();
    end.assert_status(0);
    assert!(end.value("came").parse::<u32>().unwrap() > 4, "{end}");
    assert!(end.lines_with("Level").iter().any(|line| line.contains("nvme0q")), "{end}");
}

#[test]
fn a_device_that_the_host_wants_back_is_asked_of_the_guest() {
    let host = host_or_skip!();
    let _nvme = bind_or_skip!(&host, NVME);
    let mut guest = Guest::linux(&host)
        .option("--vfio", format!("{NVME},on-event=unplug"))
        .input(Input::PIPE)
        .script(&cycles(&["nvme0n1"]))
        .start();
    guest.wait_for("begin");
    guest.send("check\n");
    guest.wait_for("whole=0");
    // The kernel's unbind waits until the device is closed, and asks for that again and again.
    let unbind = thread::spawn(|| fs::write(format!("/sys/bus/pci/devices/{NVME}/driver/unbind"), NVME));
    while driver(NVME).is_some() {
        // The guest, when it is asked.
        guest.send("release\n");
        sleep(Duration::from_millis(200));
    }
    unbind.join().unwrap().unwrap();
    guest.send("end\n");
    let end = guest.wait();
    end.assert_status(0);
    assert!(end.errors().contains("is wanted back by the host: asking the guest"), "{}", end.errors());
}

#[test]
fn a_guest_that_reboots_fifty_times_finds_its_device_each_time() {
    const BOOTS: u32 = 50;
    let host = host_or_skip!();
    let _nvme = bind_or_skip!(&host, NVME);
    // The disk itself counts the boots.
    let script = format!(
        "until head -c 512 /dev/nvme0n1 >/dev/null 2>&1; do usleep 10000; done
         n=$(dd if=/dev/nvme0n1 bs=512 count=1 2>/dev/null | sed -n 's/^boots=\\([0-9]*\\).*/\\1/p')
         n=$((n + 1))
         printf 'boots=%s\\n' $n | dd of=/dev/nvme0n1 conv=sync bs=512 oflag=direct 2>/dev/null
         echo boots=$n
         if [ $n -lt {BOOTS} ]; then reboot -f; sleep 100; fi"
    );
    let guest = || Guest::linux(&host).memory("64M").option("--vfio", NVME).patience(4);
    guest().script("dd if=/dev/zero of=/dev/nvme0n1 bs=512 count=1 oflag=direct").run().assert_status(0);
    let end = guest().script(&script).run();
    end.assert_status(0);
    assert_eq!(end.errors(), "");
    let boots: Vec<String> = (1..=BOOTS).map(|n| format!("boots={n}")).collect();
    assert_eq!(end.lines_with("boots="), boots);
}

/// Whether the host's own driver reads from its disk what it has written.
fn works_for_the_host(round: u32) {
    let node = "/dev/nvme0n1";
    while !fs::exists(node).unwrap() {
        sleep(Duration::from_millis(50));
    }
    let script = format!(
        "printf '%-4096s' round={round} >/tmp/round &&
         dd if=/tmp/round of={node} bs=4k oflag=direct 2>/dev/null &&
         dd if={node} bs=4k count=1 iflag=direct 2>/dev/null | cmp - /tmp/round"
    );
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success(), "round {round}");
}

#[test]
fn a_vmm_that_is_killed_at_any_time_leaves_a_device_that_works_for_the_host() {
    let host = host_or_skip!();
    // Until the guest has the disk and on into its traffic.
    let script = "echo begin; while :; do dd if=/dev/nvme0n1 of=/dev/null bs=64k count=16 iflag=direct; done 2>/dev/null";
    for round in 0..10 {
        let Some(nvme) = Bound::new(&host, NVME) else { doorbell_tests::skip!("this host has no {NVME}") };
        let mut guest = Guest::linux(&host).memory("64M").option("--vfio", NVME).script(script).start();
        if round < 5 {
            // While the machine is built, or boots.
            sleep(Duration::from_millis(u64::from(round) * 230));
        } else {
            guest.wait_for("begin");
            sleep(Duration::from_millis(u64::from(round - 5) * 40));
        }
        guest.signal(Signal::KILL);
        drop(guest.wait());
        drop(nvme);
        works_for_the_host(round);
    }
}

#[test]
fn a_slot_of_its_own_is_where_a_device_can_leave_and_the_root_bus_where_it_stays() {
    let host = host_or_skip!();
    let _edu = bind_or_skip!(&host, EDU);
    let _nvme = bind_or_skip!(&host, NVME);
    let mut guest = Guest::linux(&host)
        .option("--control", "two")
        .option("--vfio", EDU)
        .option("--vfio", format!("{NVME},slot=on,id=disk"))
        .input(Input::PIPE)
        .script(&cycles(&["nvme0n1"]))
        .start();
    guest.wait_for("begin");
    guest.send("check\n");
    guest.wait_for("whole=0");
    refused(&host, &["device", "remove", "two", EDU], 3, &["is in no slot", "slot=on"]);
    refused(&host, &["device", "remove", "two", "nvme"], 2, &["no device called nvme", EDU, "disk"]);
    // As a person does it, without the guest's help: some seven seconds.
    done(&host, &["device", "remove", "two", "disk"]);
    refused(&host, &["device", "remove", "two", "disk"], 2, &["no device called disk"]);
    done(&host, &["device", "add", "two", &format!("{NVME},iommu=legacy")]);
    guest.send("check\nend\n");
    let end = guest.wait();
    end.assert_status(0);
    assert_eq!(end.lines_with("whole="), ["whole=0", "whole=1"]);
}
