// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian from its disk: it boots, is asked to leave and leaves cleanly, and its programs use the devices.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]
#![allow(clippy::cast_possible_truncation, reason = "a hundred million fits")]

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use doorbell_tests::guest::{Guest, Host, Scratch};
use doorbell_tests::{host_or_skip, skip};
use rustix::process::Signal;

/// The disk, and the initial RAM disk that leads to it. Their host is `resources/host/with/debian`.
fn debian() -> Option<(String, PathBuf)> {
    Some((env::var("DOORBELL_DEBIAN_DISK").ok()?, env::var_os("DOORBELL_GUEST_ROOT_INITRD")?.into()))
}

/// Debian on its disk, with a script that its first process runs when it is up; `poweroff` is not in it.
fn guest<'a>(host: &'a Host, disk: &str, initrd: &Path, script: &Path, then: &str) -> Guest<'a> {
    Guest::disk(host, initrd)
        .cpus(2)
        .patience(3)
        .cmdline("root=/dev/vda rw systemd.show_status=0 systemd.mask=serial-getty@ttyS0.service")
        .cmdline(&format!("doorbell.do=run{then} doorbell.run=/dev/vdb"))
        .option("--disk", format!("path={disk}"))
        .option("--disk", format!("path={},readonly=on", script.display()))
}

/// A disk whose contents are a shell script.
fn script(scratch: &Scratch, text: &str) -> PathBuf {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), b'\n');
    scratch.file("script.img", bytes)
}

#[test]
fn sigterm_shuts_it_down_cleanly() {
    let host = host_or_skip!();
    let Some((disk, initrd)) = debian() else { skip!("there is no disk with Debian on it here") };
    let scratch = Scratch::new();
    // The button's driver is a module, which comes in its own time; so does the login manager that listens.
    let text = r#"
        echo state=$(systemctl is-system-running --wait)
        until ls -l /proc/$(pidof systemd-logind)/fd | grep -q /dev/input/event; do sleep 0.2; done
        echo listening
        sleep infinity
        "#;
    let script = script(&scratch, text);
    let mut guest = guest(&host, &disk, &initrd, &script, "").start();
    guest.wait_for("listening");
    assert!(Ext4::of(&disk).has_to_be_recovered());
    guest.signal(Signal::TERM);
    let end = guest.wait();
    end.assert_status(0);
    assert_eq!(end.value("state"), "running");
    assert!(end.text().contains("reboot: Power down"), "{end}");
    // A file system that was unmounted has nothing to recover.
    let after = Ext4::of(&disk);
    assert!(after.is_clean() && !after.has_to_be_recovered(), "{after:?}");
}

/// What the superblock of an ext4 file system says of its state (the kernel's `Documentation/filesystems/ext4/super.rst`).
#[derive(Debug)]
struct Ext4 {
    state: u16,
    incompatible: u32,
}

impl Ext4 {
    fn of(disk: &str) -> Self {
        let mut block = [0; 1024];
        File::open(disk).unwrap().read_exact_at(&mut block, 1024).unwrap();
        let [state, incompatible_low, incompatible_high, magic] =
            [0x3a, 0x60, 0x62, 0x38].map(|at| u16::from_le_bytes([block[at], block[at + 1]]));
        assert_eq!(magic, 0xef53, "no ext4 on {disk}");
        Self { state, incompatible: u32::from(incompatible_low) | u32::from(incompatible_high) << 16 }
    }

    /// Unmounted, and without errors.
    fn is_clean(&self) -> bool {
        self.state == 1
    }

    /// Mounted, or it was until something fell over.
    fn has_to_be_recovered(&self) -> bool {
        self.incompatible & 0x4 != 0
    }
}

#[test]
fn a_socket_to_the_host_gives_back_a_hundred_megabytes() {
    const LEN: usize = 100 << 20;
    let host = host_or_skip!();
    let Some((disk, initrd)) = debian() else { skip!("there is no disk with Debian on it here") };
    let scratch = Scratch::new();
    // A page at a time: that much fits into a pipe that says that it can be written. More would have socat wait for room that only it can make.
    let text = "until grep -q vsock_virtio /proc/modules; do sleep 0.2; done
        echo listening
        exec socat -b 4096 VSOCK-LISTEN:5000 PIPE";
    let script = script(&scratch, text);
    let socket = scratch.path().join("guest.sock");
    let mut guest = guest(&host, &disk, &initrd, &script, ",poweroff")
        .option("--vsock", format!("cid=3,socket={}", socket.display()))
        .start();
    guest.wait_for("listening");
    // Until somebody listens, connections are refused.
    let (mut stream, mut reader) = loop {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // Whoever stands still for so long has stopped.
        stream.set_read_timeout(Some(Duration::from_secs(180))).unwrap();
        stream.write_all(b"CONNECT 5000\n").unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut answer = String::new();
        if reader.read_line(&mut answer).is_ok_and(|_| answer.starts_with("OK ")) {
            break (stream, reader);
        }
        thread::sleep(Duration::from_millis(200));
    };
    let chunk = |n: usize| (n as u32).wrapping_mul(0x9e37_79b9).to_le_bytes();
    let sender = thread::spawn(move || {
        let mut block = Vec::new();
        for n in 0..LEN / 4 {
            block.extend(chunk(n));
            if block.len() == 1 << 16 {
                stream.write_all(&block).unwrap();
                block.clear();
            }
        }
        stream.write_all(&block).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert_eq!(received.len(), LEN);
    assert!(received.chunks(4).enumerate().all(|(n, bytes)| bytes == chunk(n)), "other bytes came back");
    guest.wait().assert_status(0);
}
