// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One guest with a device of each kind, each of which is used; for tests that differ in how the devices interrupt, or in the guest's kernel.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

use super::socket::{ask, there_and_back};
use super::{Finished, Guest, Host, Input, Running, Scratch, Tap, hvc};
use crate::noise;

const MIB: usize = 1 << 20;

/// Long enough for a guest to boot, and for whatever else happens at all.
const PATIENCE: Duration = Duration::from_secs(300);

/// The ports that the guest listens to and calls.
const LISTENED: u32 = 5000;
const CALLED: u32 = 5001;

/// Who carries frames and sockets on the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The VMM.
    Program,
    /// The host's kernel: vhost.
    Kernel,
}

/// The devices in the order of their slots; Linux numbers them so.
const DEVICES: [&str; 6] = ["disk", "network", "entropy", "sockets", "balloon", "console"];

/// The guest's script. Each device's interrupts are counted around its own use, since a line may have several.
const SCRIPT: &str = r#"
    count() { awk -v name="$1" '$0 ~ name { sum += $2 + $3 } END { print sum + 0 }' /proc/interrupts; }
    begin() { before=$(count $1); }
    end() { echo "$1=$(($(count $1) - before))"; }
    for module in $(cat /etc/virtio-modules 2>/dev/null); do modprobe $module; done
    echo "release=$(uname -r)"
    echo "page=$(awk '/KernelPageSize/ { print $2; exit }' /proc/self/smaps)"
    HVC_OPEN

    begin virtio0
    cmp -n 1048576 /dev/vda /pattern && echo disk=same
    dd if=/pattern of=/dev/vda bs=64k seek=16 oflag=direct 2>/dev/null
    end virtio0

    begin virtio1
    ip link set eth0 up
    ip addr add SUBNET.2/24 dev eth0
    ping -c 3 SUBNET.1 >/dev/null && echo network=answers
    end virtio1

    begin virtio2
    echo "entropy=$(dd if=/dev/hwrng bs=4096 count=4 iflag=fullblock 2>/dev/null | wc -c)"
    end virtio2

    begin virtio3
    inside call CALLED
    inside echo LISTENED
    end virtio3

    begin virtio4
    dd if=/dev/zero of=/tmp/fill bs=1M count=FILL 2>/dev/null
    echo filled
    read -r line <&3
    rm /tmp/fill
    read -r line <&3
    # The host has its memory back before it says so.
    until [ $(count virtio4) -gt $before ]; do usleep 10000; done
    end virtio4

    begin virtio5
    HVC_TALK
    end virtio5

    cat /proc/interrupts
    dmesg | grep GICv2m
    "#;

/// Waits until the guest has called.
fn called<S>(mut accept: impl FnMut() -> io::Result<S>) -> S {
    let start = Instant::now();
    loop {
        match accept() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                assert!(start.elapsed() < PATIENCE, "the guest does not call");
                thread::sleep(Duration::from_millis(20));
            }
            other => return other.unwrap(),
        }
    }
}

/// A connection to the guest's port, and one from the guest.
enum Sockets {
    Unix(PathBuf, UnixListener),
    Kernel(u32, VsockListener),
}

impl Sockets {
    fn new(carrier: Carrier, scratch: &Scratch) -> Self {
        match carrier {
            Carrier::Program => {
                let path = scratch.path().join("guest.sock");
                let listener = UnixListener::bind(format!("{}_{CALLED}", path.display())).unwrap();
                listener.set_nonblocking(true).unwrap();
                Self::Unix(path, listener)
            }
            Carrier::Kernel => {
                let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, CALLED).unwrap();
                listener.set_nonblocking(true).unwrap();
                Self::Kernel(78, listener)
            }
        }
    }

    fn option(&self) -> String {
        match self {
            Self::Unix(path, _) => format!("cid=3,socket={}", path.display()),
            Self::Kernel(cid, _) => format!("cid={cid}"),
        }
    }

    /// Answers the guest's call, waits until it listens, and calls it; megabytes go there and back over the second connection.
    fn talk(&self, guest: &mut Running, mib: usize) {
        let (short, long) = (noise(100_000, 5), noise(mib * MIB, 6));
        match self {
            Self::Unix(path, listener) => {
                let called = called(|| listener.accept()).0;
                let (writer, end) = (called.try_clone().unwrap(), called.try_clone().unwrap());
                there_and_back(called, writer, &short, move || end.shutdown(Shutdown::Write).unwrap());
                guest.wait_for("listening");
                let mut stream = UnixStream::connect(path).unwrap();
                let answer = ask(&mut stream, LISTENED).unwrap();
                assert!(answer.starts_with("OK "), "{answer:?}");
                let (writer, end) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
                there_and_back(stream, writer, &long, move || end.shutdown(Shutdown::Write).unwrap());
            }
            Self::Kernel(cid, listener) => {
                let called = called(|| listener.accept()).0;
                let (writer, end) = (called.try_clone().unwrap(), called.try_clone().unwrap());
                there_and_back(called, writer, &short, move || end.shutdown(Shutdown::Write).unwrap());
                guest.wait_for("listening");
                let stream = VsockStream::connect_with_cid_port(*cid, LISTENED).unwrap();
                let (writer, end) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
                there_and_back(stream, writer, &long, move || end.shutdown(Shutdown::Write).unwrap());
            }
        }
    }
}

/// MiB of the host's memory that the program has.
fn resident(guest: &Running) -> u64 {
    let text = fs::read_to_string(guest.proc("smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// A guest with a device of each kind, and the host's part.
#[derive(Debug)]
pub struct EveryDevice<'a> {
    /// With the kernel and the initial RAM disk that the guest is to have.
    pub host: &'a Host,
    /// The program [`inside`](Guest::inside).
    pub inside: &'a str,
    /// Who carries frames and sockets.
    pub carrier: Carrier,
    /// The guest's network, whose host side has the address 1 in `subnet`.
    pub tap: &'a Tap,
    /// `10.0.85`
    pub subnet: &'a str,
    /// How many MiB go over a socket to the guest and come back.
    pub mib: usize,
    /// `--msi`
    pub msi: &'a str,
    /// More for the kernel's command line.
    pub cmdline: &'a str,
    /// The guest's memory, how many MiB of it are used and given back, and how many of those the host must have back: free memory is reported in
    /// blocks, whose size depends on that of pages.
    pub memory: (&'a str, u32, u64),
}

impl EveryDevice<'_> {
    /// Runs the guest, plays the host's part, and checks that each device has worked and interrupted.
    ///
    /// # Panics
    /// If one has not.
    #[must_use]
    pub fn run(&self) -> Finished {
        let Self { host, inside, carrier, tap, subnet, mib, msi, cmdline, memory } = *self;
        let (memory, fill, back) = memory;
        let scratch = Scratch::new();
        let pattern = noise(MIB, 8);
        let mut image = pattern.clone();
        image.resize(2 * MIB, 0);
        let disk = scratch.file("disk.img", image);
        let sockets = Sockets::new(carrier, &scratch);
        let vhost = if carrier == Carrier::Kernel { "on" } else { "off" };
        let mut guest = Guest::linux(host)
            .cpus(2)
            .patience(3)
            .cmdline(cmdline)
            // Nothing of the kernel's between the characters of a value.
            .cmdline("loglevel=1")
            .option("--msi", msi)
            .inside(inside)
            .memory(memory)
            .input(Input::PIPE)
            .option("--disk", format!("path={}", disk.display()))
            .option("--net", format!("tap={},vhost={vhost}", tap.name()))
            .flag("--rng")
            .option("--vsock", sockets.option())
            .flag("--balloon")
            .flag("--console")
            .file("pattern", &pattern)
            .script(
                &SCRIPT
                    .replace("HVC_OPEN", hvc::OPEN)
                    .replace("HVC_TALK", hvc::TALK)
                    .replace("SUBNET", subnet)
                    .replace("FILL", &fill.to_string())
                    .replace("CALLED", &CALLED.to_string())
                    .replace("LISTENED", &LISTENED.to_string()),
            )
            .start();
        sockets.talk(&mut guest, mib);
        guest.wait_for("filled");
        let full = resident(&guest);
        guest.send("empty it\n");
        // Linux reports what is free two seconds later (`mm/page_reporting.c`).
        let start = Instant::now();
        while resident(&guest) + back > full {
            assert!(start.elapsed() < PATIENCE, "{} MiB of {full} MiB stay resident", resident(&guest));
            thread::sleep(Duration::from_millis(50));
        }
        guest.send("it is empty\n");
        hvc::talk(&mut guest);
        let end = guest.wait();
        end.assert_status(0);
        let values = ["disk", "network", "entropy"].map(|name| end.value(name));
        assert_eq!(values, ["same", "answers", "16384"], "{end}");
        hvc::assert_heard(&end);
        assert!(fs::read(&disk).unwrap() == pattern.repeat(2), "what the guest wrote");
        for (n, device) in DEVICES.iter().enumerate() {
            let interrupts: u64 = end.value(&format!("virtio{n}")).parse().unwrap();
            assert!(interrupts > 0, "the {device} has not interrupted{end}");
        }
        end
    }
}
