// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A panic gives the terminal back before it says anything. The other ways out need a guest: `tests/tests/endings.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::env;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use doorbell::terminal::{self, RawTerminal};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// Set in the process that is to panic.
const VICTIM: &str = "DOORBELL_TEST_PANICS";

/// What a run does around a guest, and then a bug. Does nothing unless the test below has started it.
#[test]
fn victim() {
    if env::var_os(VICTIM).is_none() {
        return;
    }
    terminal::restore_on_panic();
    // Never dropped: unwinding must not be what restores.
    std::mem::forget(RawTerminal::enter().unwrap());
    let raw = tcgetattr(std::io::stdin()).unwrap().local_modes;
    assert!(!raw.intersects(LocalModes::ICANON | LocalModes::ECHO), "the terminal is not raw: {raw:?}");
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        previous(info);
        println!("after the hook: {:?}", tcgetattr(std::io::stdin()).unwrap().local_modes);
    }));
    panic!("on purpose");
}

#[test]
fn a_panic_gives_the_terminal_back() {
    let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let name = ptsname(&person, Vec::new()).unwrap();
    let program: OwnedFd = rustix::fs::open(&*name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let before = tcgetattr(&program).unwrap();
    assert!(before.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
        .env(VICTIM, "1")
        .stdin(Stdio::from(program.try_clone().unwrap()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("on purpose"), "{text}");
    let in_the_hook = format!("after the hook: {:?}", before.local_modes);
    assert!(text.contains(&in_the_hook), "{in_the_hook} is missing in: {text}");
    assert_eq!(tcgetattr(&program).unwrap().local_modes, before.local_modes, "{text}");
}
