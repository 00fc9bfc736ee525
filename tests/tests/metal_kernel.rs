// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bare-metal guest as a kernel: the shortest whole life that a guest of the VMM can have.

#![cfg(target_arch = "aarch64")]

use std::process::Command;

#[test]
fn the_vmm_boots_the_image_and_it_switches_the_machine_off() {
    let test = "the_vmm_boots_the_image_and_it_switches_the_machine_off";
    let (Ok(vmm), Ok(image)) = (std::env::var("DOORBELL_BIN"), std::env::var("DOORBELL_METAL")) else {
        return println!("SKIP {test}: DOORBELL_BIN and DOORBELL_METAL do not name the VMM and the image");
    };
    for cpus in ["1", "2"] {
        let output = Command::new(&vmm).args(["run", "--cpus", cpus, "--kernel", &image]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
