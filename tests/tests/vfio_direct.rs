// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a device's messages go: on most hosts to the host, which takes an interrupt for each and passes it on; on a host whose GICv4 KVM uses, straight
//! to the guest's CPU.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;

use doorbell_tests::guest::Guest;
use doorbell_tests::{bind_or_skip, host_or_skip};

const NVME: &str = "0000:00:08.0";
const READS: u64 = 3000;

/// How many interrupts of the device the host has taken for VFIO.
fn taken_by_host() -> u64 {
    let text = fs::read_to_string("/proc/interrupts").unwrap();
    let numbers = |line: &str| -> u64 {
        line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok()).sum()
    };
    text.lines().filter(|line| line.contains("vfio-msi") && line.contains(NVME)).map(numbers).sum()
}

#[test]
fn a_host_with_direct_injection_takes_no_interrupt_for_a_guests_and_others_take_each() {
    let host = host_or_skip!();
    let nvme = bind_or_skip!(&host, NVME);
    let script = format!(
        "dd if=/dev/nvme0n1 of=/dev/null bs=4k count={READS} iflag=direct 2>/dev/null
         echo arrived=$(awk '/nvme0q/ {{ n += $2 }} END {{ print n }}' /proc/interrupts)
         echo look-now
         read line"
    );
    let mut guest = Guest::linux(&host)
        .option("--vfio", NVME)
        .input(doorbell_tests::guest::Input::PIPE)
        .script(&script)
        .start();
    guest.wait_for("look-now");
    let taken = taken_by_host();
    guest.send("go\n");
    let end = guest.wait();
    end.assert_status(0);
    let arrived: u64 = end.value("arrived").parse().unwrap();
    let direct = std::env::var("DOORBELL_HOST_GIC").is_ok_and(|gic| gic == "v4");
    println!("GICv4: {direct}; in the guest arrived {arrived}, the host took {taken}");
    assert!(arrived >= READS);
    if direct {
        assert!(taken < READS / 10, "the host took {taken} of {arrived}");
    } else {
        assert!(taken >= READS, "the host took {taken} of {arrived}");
    }
    drop(nvme);
}
