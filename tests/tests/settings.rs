// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine described by a file, and the device tree that comes of it.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use doorbell_tests::guest::{Gic, Guest, Scratch, Tiny, doorbell};
use doorbell_tests::host_or_skip;

#[test]
fn a_configuration_file_describes_the_whole_machine() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    // Beside the file, by relative paths: they count from the file's directory.
    fs::copy(&host.kernel, scratch.path().join("Image")).unwrap();
    fs::copy(&host.initrd, scratch.path().join("initrd")).unwrap();
    let file = scratch.file(
        "machine.toml",
        r#"
        # A machine.
        kernel = "Image"
        initrd = "initrd"
        cmdline = "console=ttyS0 quiet doorbell.do=report,reboot"
        cpus = 3
        memory = "192M"
        backing = "memfd"
        gic = "auto"
        msi = "none"
        on-reset = "exit"
        dump-fdt = "tree.dtb"
        log = "info"
        report = true
        "#,
    );
    let end = doorbell(&host, &["run".as_ref(), "--config".as_ref(), file.as_ref()]);
    end.assert_status(4);
    assert!(end.text().contains("doorbell-guest: cpus 0-2 (3)"), "{end}");
    assert!(!end.text().contains("doorbell-guest: msi"), "{end}");
    assert!(end.errors().contains("doorbell: report") && end.errors().contains("192M"), "{end}");
    assert!(scratch.path().join("tree.dtb").exists());
}

#[test]
fn the_command_line_wins_over_the_file() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let kernel = scratch.file("Image", Tiny::new().print("the right one").reset().image());
    let file = scratch.file("machine.toml", "kernel = \"nowhere\"\ncpus = 600\non-reset = \"restart\"\n");
    let words = ["run", "--cpus", "2", "--on-reset", "exit", "--config"];
    let mut args: Vec<&std::ffi::OsStr> = words.iter().map(AsRef::as_ref).collect();
    args.extend([file.as_os_str(), "--kernel".as_ref(), kernel.as_os_str()]);
    let end = doorbell(&host, &args);
    end.assert_status(4);
    assert_eq!(end.text(), "the right one");
}

/// A device tree: each property's value by its node's path and its name.
type Tree = BTreeMap<String, Vec<u8>>;

/// Reads a device tree blob (Devicetree Specification 0.4, chapter 5), and checks that it is one.
fn tree(blob: &[u8]) -> Tree {
    let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
    let name = |at: usize| {
        let end = at + blob[at..].iter().position(|&byte| byte == 0).unwrap();
        std::str::from_utf8(&blob[at..end]).unwrap()
    };
    assert_eq!(word(0), 0xd00d_feed, "magic");
    assert!(word(4) <= blob.len(), "total size");
    assert!(word(20) >= 17 && word(24) <= 17, "version");
    let (structure, strings) = (word(8), word(12));
    assert!(structure + word(36) <= word(4) && strings + word(32) <= word(4), "sizes of the blocks");
    let mut properties = Tree::new();
    let mut path: Vec<String> = Vec::new();
    let mut at = structure;
    loop {
        let token = word(at);
        at += 4;
        match token {
            1 => {
                let node = name(at);
                path.push(node.to_owned());
                at = (at + node.len() + 1).next_multiple_of(4);
            }
            2 => drop(path.pop().unwrap()),
            3 => {
                let (len, property) = (word(at), name(strings + word(at + 4)));
                let value = blob[at + 8..at + 8 + len].to_vec();
                let old = properties.insert(format!("{}/{property}", path.join("/")), value);
                assert!(old.is_none(), "{property} twice in {path:?}");
                at = (at + 8 + len).next_multiple_of(4);
            }
            4 => {}
            9 => {
                assert!(path.is_empty() && at == structure + word(36), "the end is not at the end");
                return properties;
            }
            other => panic!("token {other} at {at}"),
        }
    }
}

#[test]
fn the_dumped_device_tree_is_what_the_guest_gets() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let file = scratch.path().join("tree.dtb");
    let end = Guest::linux(&host)
        .cpus(2)
        .cmdline("loglevel=0")
        .option("--dump-fdt", &file)
        .script("printf 'tree='; hexdump -v -e '1/1 \"%02x\"' /sys/firmware/fdt; echo")
        .run();
    end.assert_status(0);
    let digits = end.value("tree");
    let received: Vec<u8> =
        (0..digits.len() / 2).map(|n| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).unwrap()).collect();
    let (mut dumped, mut received) = (tree(&fs::read(&file).unwrap()), tree(&received));
    // Secrets, which Linux may wipe once it has used them (drivers/of/fdt.c, arch/arm64/kernel/pi/kaslr_early.c).
    for seed in ["/chosen/rng-seed", "/chosen/kaslr-seed"] {
        let given = dumped.remove(seed).unwrap();
        assert!(given.iter().any(|&byte| byte != 0), "{seed}");
        let kept = received.remove(seed).unwrap_or_default();
        assert!(kept == given || kept.iter().all(|&byte| byte == 0), "{seed}: {kept:?}");
    }
    assert_eq!(dumped, received);
    let gic = match host.gic {
        Gic::V2 => &b"arm,cortex-a15-gic\0"[..],
        Gic::V3 => b"arm,gic-v3\0",
    };
    assert!(dumped.iter().any(|(path, value)| path.ends_with("/compatible") && value == gic));
    assert!(String::from_utf8_lossy(&dumped["/chosen/bootargs"]).contains("doorbell.do=test"));
    assert!(dumped.keys().any(|path| path.starts_with("/cpus/cpu@1/")));
}

#[test]
fn two_machines_get_different_seeds() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let seeds = |name: &str| {
        let file = scratch.path().join(name);
        Guest::tiny(&host, &Tiny::new().power_off()).option("--dump-fdt", &file).run().assert_status(0);
        let tree = tree(&fs::read(Path::new(&file)).unwrap());
        (tree["/chosen/rng-seed"].clone(), tree["/chosen/kaslr-seed"].clone())
    };
    let (first, second) = (seeds("first"), seeds("second"));
    assert_eq!((first.0.len(), first.1.len()), (64, 8));
    assert!(first.0 != second.0 && first.1 != second.1);
}
