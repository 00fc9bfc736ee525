// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts of a device of the host's: counted by the host, and explained.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use doorbell_tests::guest::{Guest, Told};
use doorbell_tests::{bind_or_skip, host_or_skip};
use serde_json::Value;

const NVME: &str = "0000:00:08.0";
const READ: &str = "dd if=/dev/nvme0n1 of=/dev/null bs=4k count=20 iflag=direct 2>/dev/null";

#[test]
fn a_passed_through_devices_interrupts_have_the_hosts_counts_and_are_explained() {
    let host = host_or_skip!();
    let device = bind_or_skip!(&host, NVME);
    let guest = Guest::linux(&host).memory("256M").option("--vfio", device.name());
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
    let guest = Guest::linux(&host).memory("256M").cmdline("pci=nomsi").option("--vfio", device.name());
    let mut told = Told::start(&host, "passed", guest);
    told.does(READ);
    let line = format!("{NVME}:intx");
    told.expect(&line, "fine", "says the host's /proc/interrupts");
    assert!(told.explain(&line)["steps"].to_string().contains("VFIO unmasks at the guest's EOI"));
    told.end();
}
