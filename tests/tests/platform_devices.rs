// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! AMBA devices of the host in a guest: registers, a level interrupt, and a node made from the host's own.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::io::{Read, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use doorbell_tests::guest::{Guest, Running, Scratch};
use doorbell_tests::histogram::Histogram;
use doorbell_tests::{bind_or_skip, host_or_skip, noise};
use vm_fdt::FdtWriter;

const CLOCK: &str = "9010000.pl031";
const GPIO: &str = "9030000.pl061";
const UART: &str = "9040000.pl011";
/// A device that does DMA: of the empty slots for virtio that QEMU's machine has.
const MASTER: &str = "a003000.virtio_mmio";
const NVME: &str = "0000:00:08.0";
/// The SPI that the first interrupt of the first platform device is.
const SPI: u64 = 16;

/// In the guest: the clock that is the host's, by the address that it has here.
const FIND_CLOCK: &str = "for rtc in /sys/class/rtc/rtc*; do grep -q c0 $rtc/name && break; done\n";

#[test]
fn a_clock_tells_the_hosts_time_and_its_alarm_arrives_each_time() {
    let host = host_or_skip!();
    let _clock = bind_or_skip!(&host, CLOCK);
    let script = format!(
        "{FIND_CLOCK}
         echo now=$(cat $rtc/since_epoch)
         for n in 1 2 3 4; do
             echo +1 >$rtc/wakealarm
             while [ -n \"$(cat $rtc/wakealarm)\" ]; do usleep 100000; done
         done
         echo alarms=$(awk '/rtc-pl031/ {{ print $2 }}' /proc/interrupts)
         echo trigger=$(awk '/rtc-pl031/ {{ print $5 }}' /proc/interrupts | head -n 1)
         echo compatible=$(tr '\\0' ' ' </proc/device-tree/pl031@c000000/compatible)
         echo rate=$(hexdump -v -e '4/1 \"%02x\"' /proc/device-tree/clock-c000000-0/clock-frequency)"
    );
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for way in ["kernel", "loop"] {
        let before = now();
        let device = format!("{CLOCK},iommu=noiommu,resample={way}");
        let end = Guest::linux(&host).option("--platform", &device).script(&script).run();
        end.assert_status(0);
        assert_eq!(end.errors(), "");
        let seen: u64 = end.value("now").parse().unwrap();
        assert!(
            (before.saturating_sub(2)..=now() + 2).contains(&seen),
            "{seen} is not between {before} and {}",
            now()
        );
        assert_eq!(end.value("alarms"), "4", "{way}");
        assert_eq!(end.value("compatible"), "arm,pl031 arm,primecell");
        assert_eq!(end.value("rate"), "016e3600", "24 MHz, as the host's own");
    }
}

/// A device-tree overlay, as dtc makes it, that adds a property and a node. The writer takes no names that begin with an underscore.
fn overlay() -> Vec<u8> {
    let mut fdt = FdtWriter::new().unwrap();
    let root = fdt.begin_node("").unwrap();
    let fragment = fdt.begin_node("fragment@0").unwrap();
    fdt.property_string("target-path", "/").unwrap();
    let overlay = fdt.begin_node("qqoverlayqq").unwrap();
    fdt.property_string("label", "from the overlay").unwrap();
    let child = fdt.begin_node("within").unwrap();
    fdt.property_string("label", "deeper").unwrap();
    fdt.end_node(child).unwrap();
    for node in [overlay, fragment, root] {
        fdt.end_node(node).unwrap();
    }
    let mut blob = fdt.finish().unwrap();
    for at in 0..blob.len() {
        if blob[at..].starts_with(b"qq") {
            blob[at..at + 2].fill(b'_');
        }
    }
    blob
}

#[test]
fn an_overlay_adds_to_the_guests_node() {
    let host = host_or_skip!();
    let _clock = bind_or_skip!(&host, CLOCK);
    let scratch = Scratch::new();
    let file = scratch.file("clock.dtbo", overlay());
    let end = Guest::linux(&host)
        .option("--platform", format!("{CLOCK},iommu=noiommu,overlay={}", file.display()))
        .script(&format!(
            "{FIND_CLOCK}
             cd /proc/device-tree/pl031@c000000
             echo label=$(tr -d '\\0' <label) within=$(tr -d '\\0' <within/label)
             echo clock=$(cat $rtc/name)"
        ))
        .run();
    end.assert_status(0);
    assert_eq!(end.value("label"), "from the overlay within=deeper");
    assert!(end.value("clock").starts_with("rtc-pl031"), "{end}");
}

/// In the guest: raises line 5 of a PL061 so many times. QEMU's keeps what was last driven out as what comes in once the line is an
/// input again (`hw/gpio/pl061.c`), so the line rises when its direction changes. Each time, waits until the driver has told of it.
fn raise_line(base: &str, times: u32) -> String {
    format!(
        "chip=$(ls /sys/bus/amba/devices/{base}.pl061 | grep gpiochip)
         gpio-wait /dev/$chip 5 >/tmp/line &
         while ! grep -q armed /tmp/line; do usleep 50000; done
         n=0
         while [ $n -lt {times} ]; do
             devmem $((0x{base} + 0x400)) 8 0x20
             devmem $((0x{base} + 0x80)) 8 0
             devmem $((0x{base} + 0x400)) 8 0
             devmem $((0x{base} + 0x400)) 8 0x20
             devmem $((0x{base} + 0x80)) 8 0x20
             devmem $((0x{base} + 0x400)) 8 0
             n=$((n + 1))
             while [ $(grep -c event /tmp/line) -lt $n ]; do usleep 20000; done
         done
         echo rises=$(grep -c event /tmp/line)\n"
    )
}

#[test]
fn a_gpio_line_that_rises_is_an_interrupt_each_time() {
    let host = host_or_skip!();
    let _gpio = bind_or_skip!(&host, GPIO);
    for way in ["kernel", "loop"] {
        let device = format!("{GPIO},iommu=noiommu,resample={way}");
        let end = Guest::linux(&host).option("--platform", &device).script(&raise_line("c000000", 20)).run();
        end.assert_status(0);
        assert_eq!(end.errors(), "");
        assert_eq!(end.value("rises"), "20", "{way}");
    }
}

/// Bytes that go each way where the serial port is what it is about.
const TRAFFIC: usize = 1 << 20;
/// Bytes that go each way where it is one of several.
const SOME: usize = 64 << 10;

/// In the guest: as many bytes from the serial port as the host sends, and the same bytes back. The driver throws away what it finds in the FIFO when
/// the port is opened, so that is done before the host may send. Nothing goes to the console meanwhile.
fn talk_back(bytes: usize) -> String {
    format!(
        "exec 3<>/dev/ttyAMA0
         stty raw -echo 921600 <&3
         echo port-is-open
         head -c {bytes} <&3 >/tmp/heard
         cat /tmp/heard >&3
         # The first byte after tells that the host has all of them.
         head -c 1 <&3 >/dev/null
         echo interrupts=$(awk '/uart-pl011/ {{ print $2 }}' /proc/interrupts)\n"
    )
}

/// What came back from the guest, and what the kernel has counted meanwhile, where it counts: returns of `KVM_RUN`.
struct Talk {
    heard: Vec<u8>,
    returns: Option<u64>,
}

/// The host's side of it, at the other end of the wire.
fn talk(guest: &Running, bytes: usize) -> Talk {
    let threads = vcpus(guest);
    let sent = noise(bytes, 6);
    let mut port = fs::File::options().read(true).write(true).open(wire()).unwrap();
    let mut writer = port.try_clone().unwrap();
    let returns = Histogram::start("kvm/kvm_userspace_exit", "common_pid");
    let sending = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut heard = vec![0; bytes];
    port.read_exact(&mut heard).unwrap();
    sending.join().unwrap();
    let returns = returns.map(|counts| threads.iter().map(|&thread| counts.count(thread)).sum());
    port.write_all(b"k").unwrap();
    Talk { heard, returns }
}

/// The threads of a guest's vCPUs.
fn vcpus(guest: &Running) -> Vec<u64> {
    let name = |entry: &fs::DirEntry| fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
    fs::read_dir(guest.proc("task"))
        .unwrap()
        .flatten()
        .filter(|entry| name(entry).starts_with("vcpu"))
        .map(|entry| entry.file_name().to_string_lossy().parse().unwrap())
        .collect()
}

impl Talk {
    /// Everything came back as it was sent, and the vCPUs had no part of it in userspace. The guest's kernel says hello to the console now and then.
    fn assert_whole(&self, interrupts: u64) {
        let bytes = self.heard.len();
        assert!(self.heard == noise(bytes, 6), "not what was sent");
        println!(
            "{bytes} bytes each way, {interrupts} interrupts, KVM_RUN returned {:?} times",
            self.returns
        );
        // Its FIFO holds 16 bytes, but the guest's handler also takes what comes while it is at work (`drivers/tty/serial/amba-pl011.c`, `pl011_int`):
        // how many interrupts it takes depends on who is quick. For a MiB each way 6,150 to 63,110 were seen.
        assert!(interrupts > 0);
        if let Some(returns) = self.returns {
            assert!(returns < 100, "{returns} returns of KVM_RUN for {interrupts} interrupts");
        }
    }
}

#[test]
fn a_serial_port_carries_a_megabyte_both_ways_and_each_interrupt_comes_back() {
    let host = host_or_skip!();
    let _uart = bind_or_skip!(&host, UART);
    // By pin, which for an SPI is its number.
    let acknowledged = Histogram::start("kvm/kvm_ack_irq", "pin");
    let mut guest = Guest::linux(&host)
        .option("--platform", format!("{UART},iommu=noiommu"))
        .script(&talk_back(TRAFFIC))
        .start();
    guest.wait_for("port-is-open");
    let talk = talk(&guest, TRAFFIC);
    let end = guest.wait();
    end.assert_status(0);
    let interrupts: u64 = end.value("interrupts").parse().unwrap();
    talk.assert_whole(interrupts);
    if let Some(acknowledged) = acknowledged {
        // Each is one EOI, which KVM hands to the resamplefd.
        assert_eq!(acknowledged.count(SPI), interrupts, "{:?}", acknowledged.counts());
    }
}

#[test]
fn all_that_the_host_has_are_there_at_once_and_together_with_a_pci_device() {
    let host = host_or_skip!();
    let _clock = bind_or_skip!(&host, CLOCK);
    let _gpio = bind_or_skip!(&host, GPIO);
    let _uart = bind_or_skip!(&host, UART);
    let _nvme = bind_or_skip!(&host, NVME);
    let script = format!(
        "{FIND_CLOCK}
         echo +1 >$rtc/wakealarm
         {}
         {}
         while [ -n \"$(cat $rtc/wakealarm)\" ]; do usleep 100000; done
         echo alarms=$(awk '/rtc-pl031/ {{ print $2 }}' /proc/interrupts)
         echo disk=$(dd if=/dev/nvme0n1 bs=64k count=16 iflag=direct 2>/dev/null | wc -c)",
        talk_back(SOME),
        raise_line("c010000", 3)
    );
    let mut guest = Guest::linux(&host).option("--vfio", NVME);
    for device in [CLOCK, GPIO, UART] {
        guest = guest.option("--platform", format!("{device},iommu=noiommu"));
    }
    let mut guest = guest.script(&script).start();
    guest.wait_for("port-is-open");
    let talk = talk(&guest, SOME);
    let end = guest.wait();
    end.assert_status(0);
    talk.assert_whole(end.value("interrupts").parse().unwrap());
    assert_eq!([end.value("alarms"), end.value("rises"), end.value("disk")], ["1", "3", "1048576"]);
}

/// The other end of the second PL011: a port of a virtio console.
fn wire() -> String {
    for entry in fs::read_dir("/sys/class/virtio-ports").unwrap().flatten() {
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == "loop") {
            return format!("/dev/{}", entry.file_name().to_string_lossy());
        }
    }
    panic!("this host has no port called loop");
}

#[test]
fn what_cannot_be_passed_through_is_one_line_with_what_to_do() {
    let host = host_or_skip!();
    let refused = |device: &str, status: i32, words: &[&str]| {
        let end = Guest::linux(&host).option("--platform", device).run();
        end.assert_status(status);
        let line = end.error_line();
        for word in words {
            assert!(line.contains(word), "{device}: '{word}' is missing in: {line}");
        }
    };
    refused("1234.nothing,iommu=noiommu", 2, &["--platform 1234.nothing", "no platform device"]);
    refused("../../etc", 2, &["'../../etc'", "9010000.pl031"]);
    refused(&format!("{CLOCK},iommu=noiommu"), 3, &["driver rtc-pl031", "doorbell vfio bind 9010000.pl031"]);
    // It has dma-coherent in its node; no driver's or VFIO's matters then.
    refused(&format!("{MASTER},iommu=noiommu"), 3, &[MASTER, "memory by itself", "dma-coherent"]);
    let _clock = bind_or_skip!(&host, CLOCK);
    let scratch = Scratch::new();
    let missing = scratch.path().join("missing.dtbo");
    refused(
        &format!("{CLOCK},iommu=noiommu,overlay={}", missing.display()),
        2,
        &["missing.dtbo", "No such file"],
    );
    let source = scratch.file("source.dtbo", "/dts-v1/; /plugin/;");
    refused(
        &format!("{CLOCK},iommu=noiommu,overlay={}", source.display()),
        2,
        &["source.dtbo", "no device-tree blob", "dtc"],
    );
    refused(CLOCK, 3, &["behind no IOMMU", "iommu=noiommu"]);
    refused(&format!("{CLOCK},iommu=iommufd"), 3, &["behind no IOMMU"]);
    let mut first = Guest::linux(&host)
        .option("--platform", format!("{CLOCK},iommu=noiommu"))
        .script("echo up; sleep 1000")
        .start();
    first.wait_for("up");
    refused(&format!("{CLOCK},iommu=noiommu"), 3, &["in use by another process"]);
    first.signal(rustix::process::Signal::KILL);
    let _ = first.wait();
}
