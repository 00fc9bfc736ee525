// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest and its disks: what is written is in the image, whatever comes in between, and interrupts go straight to the guest.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use doorbell_tests::guest::{Finished, Gic, Guest, Host, Scratch};
use doorbell_tests::histogram::Histogram;
use doorbell_tests::{host_or_skip, skip};
use rustix::process::Signal;

const MIB: usize = 1 << 20;

/// Bytes that differ from sector to sector and from seed to seed.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64 / 8)
        .flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.rotate_left(17)).to_le_bytes())
        .collect()
}

/// An empty image of so many MiB.
fn image(scratch: &Scratch, name: &str, mib: usize) -> PathBuf {
    let path = scratch.path().join(name);
    File::create(&path).unwrap().set_len((mib * MIB) as u64).unwrap();
    path
}

fn disk(path: &Path, more: &str) -> String {
    format!("path={}{more}", path.display())
}

/// `len` bytes of the image from `offset` on.
fn part(path: &Path, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(path).unwrap().read_exact_at(&mut bytes, offset as u64).unwrap();
    bytes
}

/// What the guest's /proc/interrupts says of virtio devices: where from, and what.
fn vectors(end: &Finished) -> Vec<String> {
    end.text().lines().filter(|line| line.contains("virtio")).map(str::to_owned).collect()
}

/// Writers of 1 MiB each, side by side and past the guest's page cache, then a reader of it all.
fn writes_and_reads(host: &Host, queues: u32, more: &str, cmdline: &str) -> (Finished, PathBuf, Scratch) {
    let scratch = Scratch::new();
    let path = image(&scratch, "disk.img", 32);
    let mut guest = Guest::linux(host)
        .cpus(queues)
        .cmdline(cmdline)
        .flag("--report")
        .option("--disk", disk(&path, &format!(",queues={queues}{more}")));
    for n in 0..4 {
        guest = guest.file(&format!("pattern{n}"), pattern(MIB, n));
    }
    let end = guest
        .script(
            r#"
            echo "queues=$(ls /sys/block/vda/mq | wc -l)"
            for n in 0 1 2 3; do
                dd if=/pattern$n of=/dev/vda bs=16k seek=$((n * 512)) oflag=direct conv=notrunc 2>/dev/null &
            done
            wait
            for n in 0 1 2 3; do
                dd if=/dev/vda bs=16k skip=$((n * 512)) count=64 iflag=direct 2>/dev/null | cmp - /pattern$n && echo "same$n=yes"
            done
            cat /proc/interrupts
            "#,
        )
        .run();
    end.assert_status(0);
    assert_eq!(end.value("queues"), queues.to_string());
    for n in 0..4 {
        assert_eq!(end.value(&format!("same{n}")), "yes");
        assert!(part(&path, n * 8 * MIB, MIB) == pattern(MIB, n as u64), "part {n} of the image");
    }
    (end, path, scratch)
}

#[test]
fn what_one_queue_writes_is_in_the_image() {
    let host = host_or_skip!();
    let _ = writes_and_reads(&host, 1, "", "");
}

#[test]
fn what_four_queues_write_is_in_the_image_and_each_has_its_vector() {
    let host = host_or_skip!();
    let (end, ..) = writes_and_reads(&host, 4, "", "");
    let vectors = vectors(&end);
    let kind = match host.gic {
        Gic::V3 => "ITS-PCI-MSIX",
        // The frame has no name of its own there.
        Gic::V2 => "MSIX",
    };
    let requests: Vec<_> = vectors.iter().filter(|line| line.contains("virtio0-req")).collect();
    assert_eq!(requests.len(), 4, "{vectors:#?}");
    assert!(requests.iter().all(|line| line.contains(kind)), "{vectors:#?}");
}

#[test]
fn where_there_are_no_messages_the_interrupt_line_does() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let path = image(&scratch, "disk.img", 8);
    let end = Guest::linux(&host)
        .cpus(2)
        .option("--disk", disk(&path, ""))
        .option("--msi", "none")
        .file("pattern", pattern(2 * MIB, 9))
        .script("dd if=/pattern of=/dev/vda bs=4k oflag=direct 2>/dev/null && echo wrote=yes; cat /proc/interrupts")
        .run();
    end.assert_status(0);
    assert_eq!(end.value("wrote"), "yes");
    assert!(part(&path, 0, 2 * MIB) == pattern(2 * MIB, 9));
    let vectors = vectors(&end);
    assert!(!vectors.is_empty() && vectors.iter().all(|line| line.contains("Level")), "{vectors:#?}");
}

/// A guest's returns from `KVM_RUN` to userspace, as the VMM counts them and as the kernel does.
struct Returns {
    own: u64,
    kernel: Option<u64>,
    /// Interrupts of the disk's queue that the guest has taken.
    interrupts: u64,
}

fn returns_with(host: &Host, reads: u32) -> Returns {
    let scratch = Scratch::new();
    let path = image(&scratch, "disk.img", 8);
    // No other guest runs meanwhile, so the hits of all threads are this one's.
    let kernel = Histogram::start("kvm/kvm_userspace_exit", "common_pid");
    let end = Guest::linux(host)
        .flag("--report")
        .option("--disk", disk(&path, ""))
        .script(&format!(
            "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null
            n=0; while [ $n -lt {reads} ]; do dd if=/dev/vda of=/dev/null bs=4k count=1000 iflag=direct 2>/dev/null; n=$((n + 1000)); done
            echo \"arrived=$(grep virtio0-req /proc/interrupts | awk '{{ print $2 }}')\""
        ))
        .run();
    let kernel = kernel.map(|kernel| kernel.counts().values().sum());
    end.assert_status(0);
    Returns { own: end.report("exits")[0], kernel, interrupts: end.value("arrived").parse().unwrap() }
}

#[test]
fn neither_notifying_nor_interrupting_comes_by_userspace() {
    let host = host_or_skip!();
    let (few, many) = (returns_with(&host, 0), returns_with(&host, 4000));
    println!(
        "returns of KVM_RUN: {} and {}; kvm_userspace_exit: {:?} and {:?}",
        few.own, many.own, few.kernel, many.kernel
    );
    assert!(many.interrupts > few.interrupts + 3000, "{} interrupts of the queue", many.interrupts);
    // Anything that came by userspace would come 4000 times.
    assert!(
        many.own < few.own + 400,
        "{} returns of KVM_RUN without the reads, {} with 4000",
        few.own,
        many.own
    );
    let (Some(few), Some(many)) = (few.kernel, many.kernel) else {
        skip!("no tracepoint kvm_userspace_exit with histograms here");
    };
    assert!(few > 0, "the tracepoint counts");
    assert!(many < few + 400, "{few} hits of kvm_userspace_exit without the reads, {many} with 4000");
}

#[test]
fn a_read_only_disk_is_not_written() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let path = scratch.file("disk.img", pattern(MIB, 1));
    let end = Guest::linux(&host)
        .option("--disk", disk(&path, ",readonly=on,serial=of-the-test"))
        .file("pattern", pattern(MIB, 1))
        .script(
            r#"
            echo "ro=$(cat /sys/block/vda/ro)"
            echo "serial=$(cat /sys/block/vda/serial)"
            cmp /dev/vda /pattern && echo same=yes
            dd if=/dev/zero of=/dev/vda bs=4k count=1 2>/dev/null || echo refused=yes
            "#,
        )
        .run();
    end.assert_status(0);
    let values = ["ro", "serial", "same", "refused"].map(|name| end.value(name));
    assert_eq!(values, ["1", "of-the-test", "yes", "yes"]);
    assert!(fs::read(&path).unwrap() == pattern(MIB, 1));
}

#[test]
fn unbound_and_bound_fifty_times_it_still_works() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let path = scratch.file("disk.img", pattern(MIB, 2));
    let end = Guest::linux(&host)
        .cpus(2)
        .option("--disk", disk(&path, ""))
        .file("pattern", pattern(MIB, 2))
        .patience(4)
        .script(
            r#"
            cd /sys/bus/virtio/drivers/virtio_blk
            n=0
            while [ $n -lt 50 ]; do
                echo virtio0 >unbind
                echo virtio0 >bind
                dd if=/dev/vda bs=64k count=1 iflag=direct of=/tmp/part 2>/dev/null || echo "broken=$n"
                n=$((n + 1))
            done
            cmp /dev/vda /pattern && echo same=yes
            "#,
        )
        .run();
    end.assert_status(0);
    assert_eq!(end.value("same"), "yes");
    assert!(end.lines_with("broken").is_empty(), "{end}");
}

#[test]
fn what_was_flushed_survives_the_vmms_end() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let path = image(&scratch, "disk.img", 8);
    let mut guest = Guest::linux(&host)
        .option("--disk", disk(&path, ""))
        .file("pattern", pattern(4 * MIB, 3))
        .script(
            r#"
            n=0
            while [ $n -lt 1024 ]; do
                dd if=/pattern of=/dev/vda bs=4k count=1 skip=$n seek=$n conv=notrunc,fsync 2>/dev/null
                n=$((n + 1))
                echo "flushed=$n;"
            done
            "#,
        )
        .start();
    let seen = guest.wait_for("flushed=20;");
    guest.signal(Signal::KILL);
    let flushed = seen.matches("flushed=").count().max(20);
    let _ = guest.wait();
    assert!(part(&path, 0, flushed * 4096) == pattern(4 * MIB, 3)[..flushed * 4096], "{flushed} blocks");
}

#[test]
fn a_full_host_is_an_error_in_the_guest_and_the_vmm_lives_on() {
    let host = host_or_skip!();
    if !host.is_root() {
        skip!("makes a small file system, which takes root");
    }
    let scratch = Scratch::new();
    let path = scratch.path().join("small");
    fs::create_dir(&path).unwrap();
    let script = format!(
        r#"mount -t tmpfs -o size=4M tmpfs {0} && truncate -s 64M {0}/disk.img && exec "$@""#,
        path.display()
    );
    let end = Guest::linux(&host)
        .option("--disk", disk(&path.join("disk.img"), ""))
        .through(&["unshare", "-m", "/bin/sh", "-c", &script, "sh"])
        .script(
            r#"
            dd if=/dev/zero of=/dev/vda bs=64k count=256 oflag=direct 2>/dev/null || echo failed=yes
            dd if=/dev/vda of=/dev/null bs=64k count=8 iflag=direct 2>/dev/null && echo reads=yes
            "#,
        )
        .run();
    end.assert_status(0);
    assert_eq!((end.value("failed").as_str(), end.value("reads").as_str()), ("yes", "yes"), "{end}");
}

#[test]
fn an_image_that_shrinks_is_an_error_in_the_guest_and_the_vmm_lives_on() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let path = scratch.file("disk.img", pattern(4 * MIB, 5));
    let mut guest = Guest::linux(&host)
        .option("--disk", disk(&path, ""))
        .file("pattern", pattern(4 * MIB, 5))
        .script(
            r#"
            echo "up"
            until dd if=/dev/vda of=/dev/null bs=4k skip=1000 count=1 iflag=direct 2>/dev/null; [ $? != 0 ]; do usleep 100000; done
            echo failed=yes
            dd if=/dev/vda bs=64k count=1 iflag=direct 2>/dev/null | cmp -n 65536 - /pattern && echo reads=yes
            "#,
        )
        .start();
    guest.wait_for("up");
    File::options().write(true).open(&path).unwrap().set_len(MIB as u64).unwrap();
    let end = guest.wait();
    end.assert_status(0);
    assert_eq!((end.value("failed").as_str(), end.value("reads").as_str()), ("yes", "yes"), "{end}");
}

/// A qcow2 image, without a mapping: as much of it as is looked at before its backing file is.
fn qcow2(scratch: &Scratch, name: &str, backing: &str) -> PathBuf {
    let mut header = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    // Version 2; where the backing file's name is, and its length; clusters of 64 KiB; a disk of 1 MiB.
    for (at, number) in
        [(4, 2), (12, 0x200), (16, u32::try_from(backing.len()).unwrap()), (20, 16), (28, 1 << 20)]
    {
        put(at, &number.to_be_bytes());
    }
    put(0, b"QFI\xfb");
    put(0x200, backing.as_bytes());
    scratch.file(name, header)
}

#[test]
fn an_image_that_cannot_be_read_is_one_line() {
    let host = host_or_skip!();
    if !host.is_root() {
        skip!("gives up root's rights, which takes root");
    }
    let scratch = Scratch::new();
    let path = image(&scratch, "locked-away.img", 1);
    fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    // In a user namespace of its own the process still owns root's files, and has no right that the owner has not: the image is closed to it, /dev/kvm is not.
    for readonly in ["", ",readonly=on"] {
        let end =
            Guest::linux(&host).option("--disk", disk(&path, readonly)).through(&["unshare", "-U"]).run();
        end.assert_status(2);
        let line = end.error_line();
        for word in ["locked-away.img", "Permission denied", "--disk"] {
            assert!(line.contains(word), "{word:?} is not in {line:?}");
        }
    }
}

#[test]
fn an_image_that_cannot_be_a_disk_is_one_line() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let odd = scratch.file("odd.img", vec![0; 1000]);
    let used = image(&scratch, "used.img", 1);
    let raw = image(&scratch, "raw.img", 1);
    let missing = scratch.path().join("missing.img");
    let behind_nothing = qcow2(&scratch, "front.qcow2", "nowhere.img");
    let behind_itself = qcow2(&scratch, "one.qcow2", "two.qcow2");
    let _ = qcow2(&scratch, "two.qcow2", "one.qcow2");
    let holder = Guest::linux(&host)
        .option("--disk", disk(&used, ""))
        .script("echo up; sleep 1000")
        .option("--patience", "0");
    let mut holder = holder.start();
    holder.wait_for("up");
    for (path, more, words) in [
        (missing.as_path(), "", ["missing.img", "No such file"]),
        (scratch.path(), "", ["directory", "--disk"]),
        (odd.as_path(), "", ["odd.img", "512"]),
        (used.as_path(), "", ["used.img", "in use"]),
        (raw.as_path(), ",format=qcow2", ["raw.img", "qcow2"]),
        (behind_nothing.as_path(), "", ["front.qcow2", "nowhere.img: No such file"]),
        (behind_itself.as_path(), "", ["two.qcow2", "one.qcow2"]),
    ] {
        let end = Guest::linux(&host).option("--disk", disk(path, more)).run();
        end.assert_status(2);
        let line = end.error_line();
        for word in words {
            assert!(line.contains(word), "{word:?} is not in {line:?}");
        }
    }
    holder.signal(Signal::TERM);
    holder.wait().assert_status(143);
}
