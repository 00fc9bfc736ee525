// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine is controlled while it runs: by name, over its socket.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use doorbell_tests::guest::{Guest, Host, Input, Running, Scratch, Tiny, done, refused};
use doorbell_tests::host_or_skip;
use serde_json::Value;

/// The rows of `ps` that are about this machine.
fn ps(host: &Host, name: &str) -> Vec<Value> {
    let rows: Vec<Value> = serde_json::from_str(&done(host, &["ps", "--json"])).unwrap();
    rows.into_iter().filter(|row| row["name"] == name).collect()
}

fn wait_until_gone(host: &Host, name: &str) {
    while !ps(host, name).is_empty() {
        sleep(Duration::from_millis(50));
    }
}

/// What anybody who speaks HTTP sees.
fn http(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A guest that counts, one line each tenth of a second of its own time, until a key is pressed.
const COUNT: &str = "stty -echo
    echo begin
    n=0
    while ! read -t 0.1 -n 1 key; do n=$((n + 1)); echo tick=$n; done
    echo up=$(cut -d. -f1 /proc/uptime)";

fn last_tick(running: &mut Running) -> u32 {
    // The number that was begun may not be whole yet.
    running.wait_for("tick=");
    running.wait_for("\n").trim().parse().unwrap()
}

/// Longer than it takes to get from the program's start to that of the guest's clock.
const PAUSE: Duration = Duration::from_secs(12);

#[test]
fn a_paused_guest_does_nothing_and_its_clock_stands_still() {
    let host = host_or_skip!();
    let start = Instant::now();
    let mut guest =
        Guest::linux(&host).cpus(2).option("--control", "held").input(Input::PIPE).script(COUNT).start();
    guest.wait_for("begin");
    last_tick(&mut guest);
    let row = &ps(&host, "held")[0];
    assert_eq!((&row["state"], &row["vcpus"]), (&Value::from("running"), &Value::from(2)));
    assert_eq!(row["pid"], guest.pid());
    done(&host, &["pause", "held"]);
    done(&host, &["pause", "held"]);
    assert_eq!(ps(&host, "held")[0]["state"], "paused");
    refused(&host, &["shutdown", "held"], 3, &["paused", "resume"]);
    // What it had written before is on its way here; then nothing comes, however long.
    sleep(Duration::from_millis(500));
    let switches = |guest: &Running| -> u64 {
        let threads = std::fs::read_dir(guest.proc("task")).unwrap().flatten();
        threads
            .filter(|task| std::fs::read_to_string(task.path().join("comm")).unwrap().starts_with("vcpu"))
            .map(|task| {
                let status = std::fs::read_to_string(task.path().join("status")).unwrap();
                let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:")).unwrap();
                line.split_whitespace().last().unwrap().parse::<u64>().unwrap()
            })
            .sum()
    };
    let before = switches(&guest);
    sleep(PAUSE);
    assert_eq!(switches(&guest), before, "a vCPU ran");
    done(&host, &["resume", "held"]);
    last_tick(&mut guest);
    assert_eq!(ps(&host, "held")[0]["state"], "running");
    guest.send("k");
    let end = guest.wait();
    end.assert_status(0);
    // Its clock has not begun before the program, and stood still during the pause.
    let up = Duration::from_secs(end.value("up").parse().unwrap());
    assert!(up + PAUSE < start.elapsed() + Duration::from_secs(1), "the clock went on{end}");
    assert!(end.lines_with("rcu").is_empty() && end.lines_with("lockup").is_empty(), "{end}");
    wait_until_gone(&host, "held");
}

#[test]
fn a_machine_is_asked_to_shut_down_or_killed_and_takes_its_socket_along() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let path = scratch.path().join("a.sock");
    let socket = path.to_str().unwrap();
    // Nobody listens to the button yet.
    let mut guest = Guest::tiny(&host, &Tiny::new().print("here").sleep()).option("--control", &path).start();
    guest.wait_for("here");
    refused(&host, &["shutdown", socket], 3, &["power button"]);
    refused(&host, &["device", "add", socket, "0000:00:08.0"], 3, &["no PCI slot", "--pci-slots"]);
    refused(&host, &["balloon", socket], 3, &["no balloon", "--balloon"]);
    refused(&host, &["balloon", socket, "1M"], 3, &["no balloon", "--balloon"]);
    refused(&host, &["device", "remove", socket, "disk"], 2, &["no device called disk"]);
    refused(&host, &["device", "add", socket, "0000:00:08.0,colour=red"], 2, &["colour"]);
    assert_eq!(done(&host, &["device", "list", socket, "--json"]).trim(), "[]");
    let text = http(&path, "GET /vm HTTP/1.1\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\"vcpus\":1"), "{text}");
    assert!(http(&path, "PUT /vm HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(http(&path, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    // A second machine cannot have the same socket, and the first is none the worse for it.
    let second = Guest::tiny(&host, &Tiny::new().power_off()).option("--control", &path).run();
    second.assert_status(2);
    assert!(second.error_line().contains("another machine"), "{second}");
    done(&host, &["kill", socket]);
    guest.wait().assert_status(6);
    assert!(!path.exists());
    refused(&host, &["kill", socket], 2, &["no machine", "doorbell ps"]);

    let mut guest = Guest::debian(&host)
        .option("--control", "asked")
        .script("modprobe gpio_keys 2>/dev/null; echo ready; sleep 1000")
        .start();
    guest.wait_for("ready");
    guest.signal(rustix::process::Signal::KILL);
    drop(guest.wait());
    // The socket is left, and nobody is there.
    assert!(ps(&host, "asked").is_empty());
    let mut guest =
        Guest::tiny(&host, &Tiny::new().print("again").sleep()).option("--control", "asked").start();
    guest.wait_for("again");
    assert_eq!(ps(&host, "asked").len(), 1);
    done(&host, &["kill", "asked"]);
    guest.wait().assert_status(6);
}

#[test]
fn a_paused_machine_ends_as_any_other() {
    let host = host_or_skip!();
    for (command, status) in [("kill", 6), ("", 143)] {
        let mut guest = Guest::tiny(&host, &Tiny::new().print("here").spin())
            .cpus(2)
            .option("--control", "still")
            .start();
        guest.wait_for("here");
        done(&host, &["pause", "still"]);
        if command.is_empty() {
            guest.signal(rustix::process::Signal::TERM);
        } else {
            done(&host, &[command, "still"]);
        }
        guest.wait().assert_status(status);
        assert!(ps(&host, "still").is_empty());
    }
}

#[test]
fn a_guest_that_resets_itself_is_reached_as_before() {
    let host = host_or_skip!();
    let script = "if [ ! -e /sys/firmware/x ]; then echo up; read -n 1 key; reboot -f; fi";
    let mut guest =
        Guest::linux(&host).option("--control", "again").input(Input::PIPE).script(script).start();
    for _ in 0..3 {
        guest.wait_for("up");
        done(&host, &["pause", "again"]);
        done(&host, &["resume", "again"]);
        guest.send("k");
    }
    guest.wait_for("up");
    done(&host, &["kill", "again"]);
    guest.wait().assert_status(6);
}
