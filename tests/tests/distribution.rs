// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian from its disk: it boots, is asked to leave and leaves cleanly, and its programs use the devices.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::env;
use std::fs::File;
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use doorbell_tests::guest::{Guest, Scratch, socket};
use doorbell_tests::{host_or_skip, noise, skip};
use rustix::process::Signal;

/// The disk, and the initial RAM disk that leads to it. Their host is `resources/host/with/debian`.
fn debian() -> Option<(String, PathBuf)> {
    Some((env::var("DOORBELL_DEBIAN_DISK").ok()?, env::var_os("DOORBELL_GUEST_ROOT_INITRD")?.into()))
}

/// A disk whose contents are a shell script.
fn script(scratch: &Scratch, text: &str) -> PathBuf {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), b'\n');
    scratch.file("script.img", bytes)
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

/// Sends noise to whoever gives back what comes to the guest's port 5000, and compares.
fn there_and_back(path: &Path) {
    // Until somebody listens, connections are refused.
    let stream = loop {
        let mut stream = UnixStream::connect(path).unwrap();
        // Whoever stands still for so long has stopped.
        stream.set_read_timeout(Some(Duration::from_secs(180))).unwrap();
        if socket::ask(&mut stream, 5000).is_ok_and(|answer| answer.starts_with("OK ")) {
            break stream;
        }
        thread::sleep(Duration::from_millis(200));
    };
    let (writer, end) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
    socket::there_and_back(stream, writer, &noise(8 << 20, 7), move || {
        end.shutdown(Shutdown::Write).unwrap()
    });
}

#[test]
fn its_programs_use_a_socket_to_the_host_and_sigterm_shuts_it_down_cleanly() {
    let host = host_or_skip!();
    let Some((disk, initrd)) = debian() else { skip!("there is no disk with Debian on it here") };
    let scratch = Scratch::new();
    // The drivers are modules, which come in their own time; so does the login manager that listens to the button.
    // socat takes a page at a time: that much fits into a pipe that says that it can be written. More would have it wait for room that only it can make.
    let text = r#"
        echo state=$(systemctl is-system-running --wait)
        until grep -q vsock_virtio /proc/modules; do sleep 0.2; done
        echo listening
        socat -b 4096 VSOCK-LISTEN:5000 PIPE
        until ls -l /proc/$(pidof systemd-logind)/fd | grep -q /dev/input/event; do sleep 0.2; done
        echo ready for the button
        sleep infinity
        "#;
    let script = script(&scratch, text);
    let socket = scratch.path().join("guest.sock");
    let mut guest = Guest::disk(&host, &initrd)
        .cpus(2)
        .patience(3)
        .cmdline("root=/dev/vda rw systemd.show_status=0 systemd.mask=serial-getty@ttyS0.service")
        // What Debian's first process runs when it is up.
        .cmdline("doorbell.do=run doorbell.run=/dev/vdb")
        .option("--disk", format!("path={disk}"))
        .option("--disk", format!("path={},readonly=on", script.display()))
        .option("--vsock", format!("cid=3,socket={}", socket.display()))
        .start();
    guest.wait_for("listening");
    there_and_back(&socket);
    guest.wait_for("ready for the button");
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
