// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts of a device of the host's: counted by the host, and explained.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::os::fd::{AsFd, OwnedFd};

use doorbell_tests::guest::{Gic, Guest, Told, set_irqs};
use doorbell_tests::{bind_or_skip, host_or_skip};
use rustix::event::{EventfdFlags, eventfd};
use serde_json::Value;
use vfio_passthrough::IrqSet;

const NVME: &str = "0000:00:08.0";
const E1000E: &str = "0000:00:0b.0";
/// Has 16 vectors of MSI, and no driver in the guest.
const XHCI: &str = "0000:00:13.0";
/// Kinds of interrupts of a PCI device, as VFIO counts them.
const INTX: u32 = 0;
const MSI: u32 = 1;
const READ: &str = "dd if=/dev/nvme0n1 of=/dev/null bs=4k count=20 iflag=direct 2>/dev/null";

#[test]
fn a_passed_through_devices_interrupts_have_the_hosts_counts_and_are_explained() {
    let host = host_or_skip!();
    let device = bind_or_skip!(&host, NVME);
    let guest = Guest::linux(&host).memory("128M").option("--vfio", device.name());
    let mut told = Told::start(&host, "passed", guest);
    told.does(READ);
    let lines: Vec<Value> = serde_json::from_str(&told.ask(&["irq", "list"], &["--all", "--json"])).unwrap();
    let used = lines
        .iter()
        .filter(|line| line["device"] == NVME && line["kind"] != "level")
        .max_by_key(|line| line["fired"].as_u64())
        .unwrap();
    assert_eq!(used["counted-by"], "host", "{used:#}");
    assert!(used["fired"].as_u64().unwrap() >= 20, "{used:#}");
    let name = used["line"].as_str().unwrap();
    told.expect(name, "fine", "says the host's /proc/interrupts");
    assert!(told.ask(&["irq", "list"], &[]).contains("* counted by the host"));

    told.does("command=$(ecam 1 4)");
    told.after(&(
        "change $command '& ~4'",
        name,
        "bus-master-off",
        "bus mastering is off",
        "change $command '| 4'",
    ));
    // The driver has a vector for each CPU and one for the administrator, and the device more.
    told.expect(&format!("{NVME}:40"), "no-message", "no message for entry 40");
    told.does(READ);
    told.end();
    drop(device);

    let device = bind_or_skip!(&host, NVME);
    let guest = Guest::linux(&host).memory("128M").cmdline("pci=nomsi").option("--vfio", device.name());
    let mut told = Told::start(&host, "passed", guest);
    told.does(READ);
    let line = format!("{NVME}:intx");
    told.expect(&line, "fine", "says the host's /proc/interrupts");
    assert!(told.explain(&line)["steps"].to_string().contains("VFIO unmasks at the guest's EOI"));
    told.end();
}

/// Somebody takes VFIO's unmask eventfd away while the guest runs, and brings it back.
#[test]
fn a_line_that_vfio_does_not_unmask_is_explained() {
    let host = host_or_skip!();
    let device = bind_or_skip!(&host, NVME);
    let guest = Guest::linux(&host).memory("128M").cmdline("pci=nomsi").option("--vfio", device.name());
    let mut told = Told::start(&host, "masked", guest);
    told.does(READ);
    let line = format!("{NVME}:intx");
    told.expect(&line, "fine", "says the host's /proc/interrupts");
    let vfio = told.guest.vfio_device();
    set_irqs(vfio.as_fd(), &IrqSet::unmask_on(INTX, None)).unwrap();
    told.does(&format!("({READ}; echo read) &"));
    told.until(&line, "unmask-not-armed", "VFIO has no unmask eventfd armed");

    let shown: Value = serde_json::from_str(&told.ask(&["irq", "show"], &[&line, "--json"])).unwrap();
    let resamplefd = told.guest.descriptor(shown["resamplefd"].as_i64().unwrap().try_into().unwrap());
    // VFIO looks, and finds the EOI.
    set_irqs(vfio.as_fd(), &IrqSet::unmask_on(INTX, Some(resamplefd.as_fd()))).unwrap();
    told.guest.wait_for("read");
    told.until(&line, "fine", "says the host's /proc/interrupts");
    drop(vfio);
    told.end();
}

/// Somebody else has VFIO's device interrupt by messages when the guest wants the line.
#[test]
fn a_line_that_vfio_refuses_is_explained() {
    let host = host_or_skip!();
    let device = bind_or_skip!(&host, E1000E);
    let guest = Guest::linux(&host).memory("128M").cmdline("pci=nomsi").option("--vfio", device.name());
    let mut told = Told::start(&host, "refused", guest);
    let line = format!("{E1000E}:intx");
    told.does("control=$(control 1 0x11)");
    told.does("change $control '| 0x8000'; change $control '& ~0x8000'");
    // That is all: the driver has no use for it as long as the network is down.
    let connected = |told: &Told<'_>| told.expect(&line, "spi-disabled", "is disabled by the guest");
    connected(&told);

    let vfio = told.guest.vfio_device();
    let event: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    set_irqs(vfio.as_fd(), &IrqSet::disable(INTX)).unwrap();
    set_irqs(vfio.as_fd(), &IrqSet::trigger(MSI, 0, &[Some(event.as_fd())])).unwrap();
    // The guest tries messages, and goes back to the line: VFIO takes neither.
    told.does("change $control '| 0x8000'; change $control '& ~0x8000'");
    told.expect(&line, "refused", "it cannot be connected");

    set_irqs(vfio.as_fd(), &IrqSet::disable(MSI)).unwrap();
    // It is tried again at the guest's next write.
    told.does("change $control '| 0x4000'; change $control '& ~0x4000'");
    connected(&told);
    drop(vfio);
    told.end();
}

/// Messages of MSI beyond those that the guest allows.
#[test]
fn a_vector_that_the_guest_does_not_allow_is_explained() {
    let host = host_or_skip!();
    let device = bind_or_skip!(&host, XHCI);
    let guest = Guest::linux(&host).memory("128M").option("--vfio", device.name());
    let mut told = Told::start(&host, "allowed", guest);
    let line = format!("{XHCI}:5");
    // Somebody who wants one vector of the sixteen, and then all; and who has not set up anything to receive them.
    told.does("msi=$(cap 1 5); devmem $(ecam 1 $((msi + 4))) 32 0x1000; change $(ecam 1 4) '| 6'");
    told.does("change $(control 1 5) '| 1'");
    told.expect(&line, "not-allowed", "the guest allows the function fewer vectors than 6");
    told.does("change $(control 1 5) '& ~1'; change $(control 1 5) '| 0x41'");
    let (verdict, words) = match host.gic {
        Gic::V2 => ("refused", "cannot be connected"),
        _ => ("no-receiver", "nothing takes messages at 0x1000"),
    };
    told.expect(&line, verdict, words);
    told.end();
}
