// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The example boots a Linux whose serial port works by interrupts.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use doorbell_tests::guest::command;
use doorbell_tests::host_or_skip;

#[test]
fn a_guest_boots_and_its_serial_line_finds_its_way_back() {
    let host = host_or_skip!();
    let cmdline = "console=ttyS0 quiet doorbell.do=report,poweroff";
    let (kernel, initrd) = (host.kernel.to_str().unwrap(), host.initrd.to_str().unwrap());
    let end = command(&[env!("CARGO_BIN_EXE_small-vmm"), kernel, initrd, cmdline], None);
    end.assert_status(0);
    let line = end
        .lines_with("ttyS0")
        .into_iter()
        .find(|line| line.contains("GIC"))
        .unwrap_or_else(|| panic!("{end}"));
    // INTID 33 is SPI 1, and the guest has it as what the VMM's types say.
    assert!(line.contains(" 33 Level"), "{line}");
    let last = end.errors();
    let numbers: Vec<u64> = last.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [raised, resampled] = numbers[..] else { panic!("{last}") };
    // The driver may lower the line and the port raise it again before the guest ends the interrupt.
    assert!(resampled > 0 && raised >= resampled, "{last}");
    // What the guest had counted by then came this way.
    let counted: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(counted > 0 && counted <= resampled, "{line}: {last}");
}

#[test]
fn what_is_missing_is_said() {
    let host = host_or_skip!();
    let end = command(&[env!("CARGO_BIN_EXE_small-vmm"), host.kernel.to_str().unwrap()], None);
    end.assert_status(1);
    assert!(end.errors().contains("usage: small-vmm KERNEL INITRD"));
}
