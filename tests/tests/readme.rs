// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The README's first guest, by the very command that is written there.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use doorbell_tests::guest::{Scratch, command};
use doorbell_tests::host_or_skip;

#[test]
fn the_first_guest_boots_by_the_command_in_the_readme() {
    let host = host_or_skip!();
    let readme = include_str!("../../README.md");
    let line = readme
        .lines()
        .find(|line| line.starts_with("doorbell run --kernel Image --initrd initrd.cpio.gz"))
        .unwrap();
    let scratch = Scratch::new();
    let place = |path: &std::path::Path, name: &str| {
        std::os::unix::fs::symlink(path, scratch.path().join(name)).unwrap();
    };
    place(&host.kernel, "Image");
    place(&host.initrd, "initrd.cpio.gz");
    place(&host.doorbell, "doorbell");
    let script = format!("cd {} && PATH=.:$PATH && exec {line}", scratch.path().display());
    let end = command(&["/bin/sh", "-c", &script], None);
    end.assert_status(0);
    assert!(end.text().contains("doorbell-guest: ready"), "{end}");
    assert_eq!(end.errors(), "", "{end}");
}
