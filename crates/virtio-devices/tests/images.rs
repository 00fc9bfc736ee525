// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which images can be disks, and which say why not. qcow2, as qemu-img makes it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::error::Error;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::disk::{
    DISCARD, Directory, Disk, IOERR, OK, WRITE_ZEROES, contents, has_direct, open, pattern, qemu_img,
};
use common::wait_for;
use virtio_devices::{Block, BlockError, BlockFormat, BlockOptions};

fn options(path: impl AsRef<Path>) -> BlockOptions {
    BlockOptions::new(path.as_ref())
}

/// An error with its causes, as a user reads it.
fn told(result: Result<Block, BlockError>) -> String {
    let error = result.unwrap_err();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn what_is_no_image_is_refused_with_a_reason() {
    let directory = Directory::new();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let fifo = directory.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    std::fs::create_dir(directory.path("folder")).unwrap();
    let table = [
        (directory.path("missing.img"), "cannot open disk image", "No such file"),
        (directory.path("folder"), "is a directory", ""),
        (fifo, "is neither a file nor a block device", ""),
        ("/dev/null".into(), "is neither a file nor a block device", ""),
        (file("empty.img", &[]), "has 0 bytes", ""),
        (file("odd.img", &[0; 1000]), "has 1000 bytes: a disk has a multiple of 512", ""),
        (file("disguised.img", b"QFI\xfb and more that is no qcow2"), "looks like qcow2", "say which format"),
        (file("named.qcow2", &[0; 1024]), "is named like qcow2, but is not", ""),
        (file("short.qcow2", b"QFI\xfb\0\0\0\x03"), "header is cut off", ""),
        (
            file("damaged.qcow2", &[b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 1024]].concat()),
            "cannot use qcow2 image",
            "",
        ),
    ];
    for (path, expected, more) in table {
        let text = told(Block::open(&options(&path)));
        assert!(text.contains(expected) && text.contains(more), "{}: {text}", path.display());
        assert!(text.contains(path.to_str().unwrap()), "it says which: {text}");
    }
    let good = directory.raw("good.img", 8);
    let text = told(Block::open(&BlockOptions { serial: "x".repeat(21), ..options(&good) }));
    assert!(text.contains("more than 20 bytes"), "{text}");
    for queues in [0, 65] {
        let text = told(Block::open(&BlockOptions { queues, ..options(&good) }));
        assert!(text.contains(&format!("{queues} queues")), "{text}");
    }
    // What looks like qcow2 may be used as what the user says it is.
    let raw = file("guest-wrote-this.img", &[b"QFI\xfb".as_slice(), &[0; 508]].concat());
    assert!(Block::open(&BlockOptions { format: BlockFormat::Raw, ..options(&raw) }).is_ok());
}

#[test]
fn an_image_that_may_not_be_opened_is_refused() {
    if rustix::process::geteuid().is_root() {
        println!("SKIP an_image_that_may_not_be_opened_is_refused: root may open anything");
        return;
    }
    let directory = Directory::new();
    let path = directory.raw("locked-away.img", 8);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    assert!(told(Block::open(&options(&path))).contains("cannot open for writing"));
    assert!(Block::open(&BlockOptions { readonly: true, ..options(&path) }).is_ok());
}

#[test]
fn an_image_belongs_to_one_writer_or_to_many_readers() {
    let directory = Directory::new();
    let path = directory.raw("shared.img", 64);
    let link = directory.path("link.img");
    symlink(&path, &link).unwrap();
    let writing = options(&path);
    let reading = BlockOptions { readonly: true, ..options(&link) };
    let in_use = |options: &BlockOptions| matches!(Block::open(options), Err(BlockError::InUse { .. }));
    let writer = Block::open(&writing).unwrap();
    assert!(in_use(&writing), "twice, in one process");
    assert!(in_use(&reading), "under another name");
    drop(writer);
    let readers = [open(&reading), open(&reading)];
    assert!(in_use(&writing));
    drop(readers);
    drop(open(&writing));
}

#[test]
fn qemu_respects_our_locks() {
    let directory = Directory::new();
    let path = directory.raw("ours.img", 64);
    let block = Block::open(&options(&path)).unwrap();
    let resize = || {
        Command::new("qemu-img").args(["resize", "-q", "-f", "raw", path.to_str().unwrap(), "64K"]).output()
    };
    let Ok(output) = resize() else {
        println!("SKIP qemu_respects_our_locks: there is no qemu-img on this machine");
        return;
    };
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("lock"), "{output:?}");
    assert_eq!(contents(&path), pattern(0, 64));
    drop(block);
    wait_for("the image to be free", || resize().unwrap().status.success().then_some(()));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_qcow2_image_keeps_what_is_written_to_it() {
    const NAME: &str = "a_qcow2_image_keeps_what_is_written_to_it";
    let directory = Directory::new();
    let path = directory.path("disk.qcow2");
    let Some(()) = qemu_img(NAME, &["create", "-q", "-f", "qcow2", text(&path), "64M"]) else { return };
    let raw = directory.path("converted.img");
    let mut expected = vec![0; 64 << 20];
    {
        let mut disk = Disk::new(&options(&path));
        assert_eq!(disk.capacity(), 131_072);
        for (sector, sectors) in [(0u64, 8u64), (1000, 1), (1001, 777), (130_000, 1072), (65_536, 4096)] {
            let data = pattern(sector * 3, sectors);
            assert_eq!(disk.write(sector, &data), OK);
            assert!(disk.read(sector, data.len()).unwrap() == data);
            let at = sector as usize * 512;
            expected[at..at + data.len()].copy_from_slice(&data);
        }
        assert_eq!(disk.ranges(DISCARD, &[(65_536, 1024, 0)]), OK);
        expected[65_536 * 512..66_560 * 512].fill(0);
        assert_eq!(disk.ranges(WRITE_ZEROES, &[(66_560, 128, 0), (66_700, 3, 1)]), OK);
        expected[66_560 * 512..66_688 * 512].fill(0);
        expected[66_700 * 512..66_703 * 512].fill(0);
        assert!(disk.read(65_536, 4096 * 512).unwrap() == expected[65_536 * 512..][..4096 * 512]);
        assert_eq!(disk.read(131_071, 1024), Err(IOERR));
        assert_eq!(disk.flush(), OK);
        // What was flushed is safe, whatever becomes of us: a copy made now has it all.
        let copy = directory.path("copy.qcow2");
        std::fs::copy(&path, &copy).unwrap();
        qemu_img(NAME, &["convert", "-O", "raw", text(&copy), text(&raw)]).unwrap();
        assert!(contents(&raw) == expected);
        assert_eq!(disk.write(5000, &pattern(5, 3)), OK);
        expected[5000 * 512..5003 * 512].copy_from_slice(&pattern(5, 3));
    }
    qemu_img(NAME, &["check", "-q", text(&path)]).unwrap();
    qemu_img(NAME, &["convert", "-O", "raw", text(&path), text(&raw)]).unwrap();
    assert!(contents(&raw) == expected);
}

#[test]
fn a_qcow2_image_in_front_of_others_shows_them_through_and_leaves_them_alone() {
    const NAME: &str = "a_qcow2_image_in_front_of_others_shows_them_through_and_leaves_them_alone";
    let directory = Directory::new();
    let base = directory.raw("base.img", 4096);
    let middle = directory.path("middle.qcow2");
    let top = directory.path("top.qcow2");
    // Names relative to the image's own folder.
    let create = |backing: &str, format: &str, path: &Path| {
        qemu_img(NAME, &["create", "-q", "-f", "qcow2", "-b", backing, "-F", format, text(path)])
    };
    let Some(()) = create("base.img", "raw", &middle) else { return };
    create("middle.qcow2", "qcow2", &top).unwrap();
    let before = (contents(&base), contents(&middle));
    for direct in [false, true] {
        let options = BlockOptions { direct, ..options(&top) };
        if direct && !has_direct(NAME, &options.path) {
            continue;
        }
        let mut disk = Disk::new(&options);
        assert_eq!(disk.capacity(), 4096);
        assert!(disk.read(1024, 512 * 512).unwrap() == pattern(1024, 512));
        assert_eq!(disk.write(600, &pattern(1, 1)), OK);
        assert!(
            disk.read(599, 512 * 3).unwrap() == [pattern(599, 1), pattern(1, 1), pattern(601, 1)].concat()
        );
        // Nobody else may write to what is behind it.
        assert!(matches!(Block::open(&self::options(&base)), Err(BlockError::InUse { .. })));
    }
    assert!(before == (contents(&base), contents(&middle)));
}

#[test]
fn backing_files_that_cannot_be_are_refused() {
    const NAME: &str = "backing_files_that_cannot_be_are_refused";
    let directory = Directory::new();
    let create = |backing: &str, format: &str, name: &str| {
        let path = directory.path(name);
        // -u: qemu-img does not look at the backing file.
        let arguments = ["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, text(&path), "1M"];
        qemu_img(NAME, &arguments).map(|()| path.clone())
    };
    let Some(absent) = create("nowhere.img", "raw", "absent.qcow2") else { return };
    let message = told(Block::open(&options(&absent)));
    assert!(message.contains("absent.qcow2") && message.contains("nowhere.img"), "{message}");
    assert!(message.contains("No such file"), "{message}");

    let itself = create("itself.qcow2", "qcow2", "itself.qcow2").unwrap();
    assert!(matches!(Block::open(&options(&itself)), Err(BlockError::Loop { .. })));
    let one = create("two.qcow2", "qcow2", "one.qcow2").unwrap();
    create("link.qcow2", "qcow2", "two.qcow2").unwrap();
    symlink(&one, directory.path("link.qcow2")).unwrap();
    assert!(matches!(Block::open(&options(&one)), Err(BlockError::Loop { .. })));

    let remote = create("nbd://example.org/disk", "raw", "remote.qcow2").unwrap();
    assert!(told(Block::open(&options(&remote))).contains("no file of this host"));
    let exotic = create("x.vmdk", "vmdk", "exotic.qcow2").unwrap();
    assert!(told(Block::open(&options(&exotic))).contains("a format other than"));

    // 65 in a row.
    for n in 0..66 {
        create(&format!("chain{}.qcow2", n + 1), "qcow2", &format!("chain{n}.qcow2")).unwrap();
    }
    assert!(matches!(
        Block::open(&options(directory.path("chain0.qcow2"))),
        Err(BlockError::ChainTooLong { most: 64, .. })
    ));

    // A raw image behind it that somebody has made look like qcow2, and no word of its format: not believed.
    let raw = directory.path("raw.img");
    std::fs::write(&raw, [b"QFI\xfb".as_slice(), &[0; 1 << 20]].concat()).unwrap();
    let silent = create("raw.img", "raw", "silent.qcow2").unwrap();
    let file = std::fs::OpenOptions::new().write(true).read(true).open(&silent).unwrap();
    let mut header = vec![0; 512];
    file.read_exact_at(&mut header, 0).unwrap();
    let at = header.windows(4).position(|bytes| bytes == 0xe279_2acau32.to_be_bytes()).unwrap();
    file.write_all_at(&0x1234_5678u32.to_be_bytes(), at as u64).unwrap();
    assert!(told(Block::open(&options(&silent))).contains("looks like qcow2"));
}

#[test]
fn damaged_headers_are_refused_or_used_but_do_no_harm() {
    const NAME: &str = "damaged_headers_are_refused_or_used_but_do_no_harm";
    let directory = Directory::new();
    let good = directory.path("good.qcow2");
    let arguments = ["create", "-q", "-u", "-f", "qcow2", "-b", "b.img", "-F", "raw", text(&good), "1M"];
    let Some(()) = qemu_img(NAME, &arguments) else { return };
    directory.raw("b.img", 2048);
    let bytes = contents(&good);
    let bad = directory.path("bad.qcow2");
    for at in 4..120 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            std::fs::write(&bad, &damaged).unwrap();
            let _ = Block::open(&BlockOptions { readonly: true, ..options(&bad) });
        }
    }
}

#[test]
fn a_qcow2_image_of_any_age_is_zeroed_and_discarded_and_longer_than_what_is_behind_it() {
    const NAME: &str = "a_qcow2_image_of_any_age_is_zeroed_and_discarded_and_longer_than_what_is_behind_it";
    let directory = Directory::new();
    let base = directory.raw("base.img", 2048);
    for age in ["compat=0.10", "compat=1.1"] {
        let path = directory.path(&format!("{age}.qcow2"));
        let options = ["-o", age, "-b", text(&base), "-F", "raw", text(&path), "2M"];
        let create = [&["create", "-q", "-f", "qcow2"], &options[..]].concat();
        let Some(()) = qemu_img(NAME, &create) else { return };
        let mut expected = [pattern(0, 2048), vec![0; 2048 * 512]].concat();
        let mut disk = Disk::new(&self::options(&path));
        assert!(disk.read(0, 4096 * 512).unwrap() == expected, "{age}");
        assert_eq!(disk.write(2000, &pattern(7, 100)), OK, "{age}");
        expected[2000 * 512..2100 * 512].copy_from_slice(&pattern(7, 100));
        // Whole clusters, and parts of them; what is there, what is behind it, and what is nowhere.
        for (sector, sectors) in [(256u64, 128u32), (1000, 3), (2010, 128), (3000, 1000)] {
            for unmap in [0, 1] {
                let from = sector + u64::from(unmap) * 5;
                assert_eq!(disk.ranges(WRITE_ZEROES, &[(from, sectors, unmap)]), OK, "{age}");
                expected[from as usize * 512..][..sectors as usize * 512].fill(0);
            }
        }
        assert!(disk.read(0, 4096 * 512).unwrap() == expected, "{age}");
        // A discard is a hint, which need not come to anything.
        assert_eq!(disk.ranges(DISCARD, &[(0, 128, 0), (700, 3, 0)]), OK, "{age}");
        assert!(disk.read(1000, 512 * 1000).unwrap() == expected[1000 * 512..2000 * 512], "{age}");
    }
}
