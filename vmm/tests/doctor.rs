// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `doorbell doctor` on whatever machine this is. What it says of an arm64 host is tested in `tests/tests/doctor.rs`.

use std::process::Command;

#[test]
fn any_machine_gets_an_answer_that_fits_the_screen() {
    let output = Command::new(env!("CARGO_BIN_EXE_doorbell")).arg("doctor").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let runs = text.ends_with("A guest can run here.\n");
    assert_eq!(output.status.code(), Some(if runs { 0 } else { 3 }), "{text}");
    assert!(output.stderr.is_empty());
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    if cfg!(not(target_arch = "aarch64")) {
        assert!(!runs && text.contains("No guest can run here: architecture"), "{text}");
        assert!(text.contains("make run"), "{text}");
    }
    let json = Command::new(env!("CARGO_BIN_EXE_doorbell")).args(["doctor", "--json"]).output().unwrap();
    assert_eq!(json.status.code(), output.status.code());
    assert!(String::from_utf8(json.stdout).unwrap().contains(&format!("\"guest_can_run\": {runs}")));
}
