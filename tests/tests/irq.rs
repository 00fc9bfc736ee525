// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why an interrupt does not arrive: a real guest is brought into each state, and `doorbell irq explain` says what it is.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use doorbell_tests::guest::{Guest, Host, Scratch, State, Terminal, Tiny, Told};
use doorbell_tests::{host_or_skip, skip};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// One queue: with more, which vector interrupts depends on the vCPU that reads.
fn disk(scratch: &Scratch) -> String {
    format!("path={},queues=1", scratch.file("disk.img", vec![7; 1 << 20]).display())
}

/// `entry` is that of the disk's first queue in the MSI-X table, `control` message control, `low` and `data` the message's.
const MESSAGES: &[State<'_>] = &[
    (
        "devmem $((entry + 12)) 32 1",
        "disk-0:1",
        "entry-masked",
        "masked at MSI-X entry 1 by the guest",
        "devmem $((entry + 12)) 32 0",
    ),
    (
        "change $control '| 0x4000'",
        "disk-0:1",
        "function-masked",
        "function mask",
        "change $control '& ~0x4000'",
    ),
    (
        "change $control '& ~0x8000'",
        "disk-0:1",
        "messages-disabled",
        "MSI-X is not enabled",
        "change $control '| 0x8000'",
    ),
    (
        "devmem $((entry + 8)) 32 3",
        "disk-0:1",
        "no-event-mapping",
        "no mapping for device 0x8 event 3",
        "devmem $((entry + 8)) 32 $data",
    ),
    (
        "devmem $entry 32 0x1000",
        "disk-0:1",
        "no-receiver",
        "nothing takes messages at 0x1000; the ITS takes them at",
        "devmem $entry 32 $low",
    ),
    (
        "devmem $((entry + 8)) 32 77",
        "disk-0:1",
        "no-event-mapping",
        "no mapping for device 0x8 event 77",
        "devmem $((entry + 8)) 32 $data",
    ),
];

/// INTID 33 is the power button's.
const LINES: &[State<'_>] = &[
    (
        "devmem $((gicd + 0xc08)) 32 $(($(devmem $((gicd + 0xc08)) 32) | 8))",
        "power-button",
        "configured-as-edge",
        "INTID 33 is a level interrupt, and the guest has configured it as edge",
        "devmem $((gicd + 0xc08)) 32 $(($(devmem $((gicd + 0xc08)) 32) & ~8))",
    ),
    (
        "devmem $((gicd + 0x184)) 32 2",
        "power-button",
        "spi-disabled",
        "INTID 33 is disabled by the guest",
        "devmem $((gicd + 0x104)) 32 2",
    ),
    (
        "devmem $((gicd + 0x304)) 32 2",
        "power-button",
        "not-ended",
        "not ended it",
        "devmem $((gicd + 0x384)) 32 2",
    ),
    (
        // With a priority that no CPU takes.
        "devmem $((gicd + 0x421)) 8 0xf8; devmem $((gicd + 0x204)) 32 2",
        "power-button",
        "not-taken",
        "the vCPU has not taken it",
        "devmem $((gicd + 0x284)) 32 2; devmem $((gicd + 0x421)) 8 $priority",
    ),
    (
        "echo 0 >/sys/devices/system/cpu/cpu1/online; devmem $((gicd + 0x6108)) 64 1",
        "power-button",
        "vcpu-off",
        "for vCPU 1, which is off",
        "devmem $((gicd + 0x6108)) 64 0; echo 1 >/sys/devices/system/cpu/cpu1/online",
    ),
];

#[test]
fn each_state_that_a_guest_can_bring_an_interrupt_into_is_explained() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let guest =
        Guest::linux(&host).cpus(2).option("--disk", disk(&scratch)).flag("--rng").option("--pci-slots", "1");
    let mut told = Told::start(&host, "explained", guest);
    told.does("dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null");
    told.expect("disk-0:0", "not-fired", "has not fired");
    told.expect("serial", "fine", "everything is fine");
    told.expect("disk-0:intx", "line-unused", "by messages");

    told.does("entry=$(($(table 1) + 16)); control=$(control 1 0x11); data=$(devmem $((entry + 8)) 32)");
    told.does("low=$(devmem $entry 32); priority=$(devmem $((gicd + 0x421)) 8)");
    for state in MESSAGES.iter().chain(LINES) {
        told.after(state);
    }

    let said = told.explain("disk-0:1").to_string();
    let number = said.split("is LPI ").nth(1).unwrap();
    let lpi: String = number.chars().take_while(char::is_ascii_digit).collect();
    let (wrong, undo) = (format!("lpi {lpi} '& 0xfe'"), format!("lpi {lpi} '| 1'"));
    told.after(&(&wrong, "disk-0:1", "lpi-disabled", &format!("LPI {lpi} is disabled by the guest"), &undo));

    // A port that the guest has let go, and whose message somebody else writes.
    told.does("msi=$(cap 3 5); low=$(devmem $(ecam 3 $((msi + 4))) 32)");
    told.does("echo 0000:00:03.0 >/sys/bus/pci/drivers/pcieport/unbind");
    told.expect("slot-1:0", "messages-disabled", "MSI is not enabled");
    told.does("devmem $(ecam 3 $((msi + 4))) 32 $low; devmem $(ecam 3 $((msi + 8))) 32 0");
    told.does("devmem $(ecam 3 $((msi + 12))) 16 0; change $(control 3 5) '| 1'");
    told.expect("slot-1:0", "no-device-mapping", "no mapping for device 0x18");

    told.does("echo virtio1 >/sys/bus/virtio/drivers/virtio_rng/unbind");
    told.expect("rng:1", "no-driver", "DRIVER_OK");

    // The driver's side of the first queue claims more than the queue has, and the device is notified.
    told.does("common=$(virtio 1 1); devmem $((common + 0x16)) 16 0");
    told.does("ring=$(($(devmem $((common + 0x28)) 32) + ($(devmem $((common + 0x2c)) 32) << 32)))");
    told.does("devmem $((ring + 2)) 16 $((($(devmem $((ring + 2)) 16) + 0x4000) & 0xffff))");
    told.does("devmem $(virtio 1 2) 16 0");
    told.until("disk-0:1", "device-in-trouble", "it has stopped itself");
    told.does("echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind");
    told.expect("disk-0:1", "no-driver", "DRIVER_OK");
    told.does("echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/bind");
    told.expect("disk-0:1", "fine", "everything is fine");

    told.ask(&["pause"], &[]);
    told.expect("disk-0:1", "paused", "it is paused");
    told.ask(&["resume"], &[]);
    told.does("dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null");
    told.expect("disk-0:1", "fine", "everything is fine");
    told.end();
}

#[test]
fn a_guest_without_messages_or_without_a_gic_is_explained() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let guest = Guest::linux(&host).cmdline("pci=nomsi").option("--disk", disk(&scratch));
    let mut told = Told::start(&host, "lined", guest);
    told.does("dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null");
    told.expect("disk-0:1", "messages-disabled", "MSI-X is not enabled");
    told.expect("disk-0:intx", "fine", "everything is fine");
    told.after(&(
        "change $(ecam 1 4) '| 0x400'",
        "disk-0:intx",
        "line-disabled",
        "interrupt disable bit",
        "change $(ecam 1 4) '& ~0x400'",
    ));
    told.end();

    let mut guest =
        Guest::tiny(&host, &Tiny::new().print("here").sleep()).option("--control", "bare").start();
    guest.wait_for("here");
    let told = Told::new(&host, "bare", guest);
    told.expect("serial", "gic-off", "has not switched the distributor on");
    told.end();
}

/// Where messages are SPIs, of a GICv2m frame.
#[test]
fn a_message_to_a_frame_is_explained() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let guest = Guest::linux(&host).option("--msi", "v2m").option("--disk", disk(&scratch));
    let mut told = Told::start(&host, "framed", guest);
    told.does("dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null");
    told.expect("disk-0:1", "fine", "everything is fine");
    told.does("entry=$(($(table 1) + 16)); data=$(($(devmem $((entry + 8)) 32)))");
    // INTID 33 is an SPI, and none of the frame's.
    told.after(&(
        "devmem $((entry + 8)) 32 33",
        "disk-0:1",
        "refused",
        "cannot be connected",
        "devmem $((entry + 8)) 32 $data",
    ));
    told.does("config=$((gicd + 0xc00 + data / 16 * 4)); edge=$((2 << data % 16 * 2))");
    told.after(&(
        "change32 $config \"& ~$edge\"",
        "disk-0:1",
        "configured-as-level",
        "is an edge interrupt, and the guest has configured it as level",
        "change32 $config \"| $edge\"",
    ));
    told.does("dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null");
    told.end();
}

#[test]
fn a_guest_that_sends_messages_although_nothing_takes_them_is_explained() {
    let host = host_or_skip!();
    let guest = Guest::linux(&host).option("--msi", "none").option("--pci-slots", "1");
    let mut told = Told::start(&host, "deaf", guest);
    let nobody = "neither an ITS nor a v2m frame";
    told.expect("slot-1:0", "no-receiver", nobody);
    // The port's driver has found no use for them; somebody else enables them all the same.
    told.does("msi=$(cap 1 5); devmem $(ecam 1 $((msi + 4))) 32 0x8090040; change $(control 1 5) '| 1'");
    told.expect("slot-1:0", "no-receiver", nobody);
    assert!(told.ask(&["irq", "show"], &["slot-1:0"]).contains("broken"));
    told.end();
}

/// What anybody who speaks HTTP gets.
fn http(name: &str, path: &str) -> String {
    let mut stream = UnixStream::connect(format!("/run/doorbell/{name}.sock")).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Between which looks an interrupt was last active.
fn last_active(told: &Told<'_>, line: &str) -> (u64, u64) {
    let line: Value = serde_json::from_str(&told.ask(&["irq", "show"], &[line, "--json"])).unwrap();
    let of = |name: &str| line["active"][name].as_u64().unwrap();
    (of("at-least-ms-ago"), of("at-most-ms-ago"))
}

#[test]
fn interrupts_are_listed_shown_watched_and_counted() {
    let host = host_or_skip!();
    if !host.is_root() {
        skip!("a machine that has a name has its socket in /run/doorbell for root");
    }
    let scratch = Scratch::new();
    let metrics = scratch.path().join("metrics.json");
    let guest = Guest::linux(&host)
        .option("--disk", disk(&scratch))
        .option("--metrics", &metrics)
        .option("--log", "info")
        .option("--log-format", "json");
    let mut told = Told::start(&host, "counted", guest);
    told.does("dd if=/dev/vda of=/dev/null bs=4k count=10 iflag=direct 2>/dev/null");

    let lines: Vec<Value> = serde_json::from_str(&told.ask(&["irq", "list"], &["--json"])).unwrap();
    let of = |name: &str| lines.iter().find(|line| line["line"] == name).unwrap_or_else(|| panic!("{name}"));
    let vector = of("disk-0:1");
    assert!(vector["fired"].as_u64().unwrap() >= 10, "{vector:#}");
    assert_eq!(
        (&vector["armed"], &vector["masked"], &vector["counted-by"]),
        (&true.into(), &Value::Null, &"doorbell".into())
    );
    assert_eq!(
        (&vector["route"]["message"]["device_id"], &vector["route"]["message"]["data"]),
        (&8.into(), &1.into())
    );
    let serial = of("serial");
    assert_eq!((&serial["kind"], &serial["route"]["pin"]["pin"]), (&"level".into(), &0.into()));
    assert!(serial["resampled"].as_u64().unwrap() > 0, "{serial:#}");

    for text in [told.ask(&["irq", "list"], &[]), told.ask(&["irq", "watch"], &["--count", "2"])] {
        assert!(text.contains("disk-0:1") && text.contains("serial"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
    let text = told.ask(&["irq", "show"], &["disk-0:1"]);
    assert!(text.contains("of device 0x8") && text.contains("armed"), "{text}");
    // It did not fire since the look before, and it fires before the next.
    let (least, most) = last_active(&told, "disk-0:1");
    assert!(0 < least && least < most, "{least}-{most}");
    told.does("dd if=/dev/vda of=/dev/null bs=4k count=10 iflag=direct 2>/dev/null");
    let (least, most) = last_active(&told, "disk-0:1");
    assert!(least == 0 && most > 0, "{least}-{most}");

    let text = http("counted", "/metrics");
    for part in [
        "text/plain",
        "doorbell_irq_fired_total{line=\"disk-0:1\"",
        "doorbell_mmio_duration_seconds_bucket{device=\"serial\"",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(http("counted", "/irqs/nothing").starts_with("HTTP/1.1 404 "));

    watched_on_a_terminal(&host);
    told.ask(&["kill"], &[]);
    let end = told.guest.wait();
    end.assert_status(6);
    for line in end.errors().lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(value["level"].is_string() && value["message"].is_string(), "{line}");
    }
    let value: Value = serde_json::from_slice(&std::fs::read(&metrics).unwrap()).unwrap();
    let families = value["metrics"].as_array().unwrap();
    let family = families.iter().find(|family| family["name"] == "doorbell_irq_fired_total").unwrap();
    let sample =
        family["samples"].as_array().unwrap().iter().find(|sample| sample["labels"]["line"] == "disk-0:1");
    assert!(sample.unwrap()["value"].as_u64().unwrap() >= 20, "{family:#}");
}

/// On a terminal the view has a screen of its own, which is gone after Ctrl-C.
fn watched_on_a_terminal(host: &Host) {
    let terminal = Terminal::new();
    let before = terminal.settings();
    let mut watch = Command::new(&host.doorbell)
        .args(["irq", "watch", "counted"])
        .stdin(terminal.program_side())
        .stdout(Stdio::from(terminal.program_side()))
        .spawn()
        .unwrap();
    let mut screen = terminal.person_side();
    let mut seen = String::new();
    let mut read_until = |text: &str| {
        let mut bytes = [0; 4096];
        while !seen.contains(text) {
            let mut events = [PollFd::new(&screen, PollFlags::IN)];
            let patience = Timespec { tv_sec: 120, tv_nsec: 0 };
            assert!(poll(&mut events, Some(&patience)).unwrap() > 0, "{text:?} is not on the screen: {seen}");
            let n = screen.read(&mut bytes).unwrap();
            seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    };
    read_until("\x1b[?1049h");
    read_until("disk-0:1");
    let pid = Pid::from_raw(watch.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    read_until("\x1b[?1049l");
    assert!(watch.wait().unwrap().success());
    assert!(terminal.settings() == before);
}
