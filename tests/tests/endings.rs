// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every way out of a run: its exit status, its words, and the terminal given back as it was.
//!
//! That no process and no VM is left behind is checked at the end of each run (`Running::wait`).

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use doorbell_tests::guest::{Finished, Guest, Host, Input, Running, Scratch, Terminal, Tiny};
use doorbell_tests::host_or_skip;
use rustix::process::Signal;

/// A guest that says "up" and then does nothing.
fn asleep() -> Tiny {
    Tiny::new().print("up").sleep()
}

/// A guest that says "up", and goes on when a key is pressed.
fn waits_for_a_key() -> Tiny {
    Tiny::new().print("up").wait_for_key()
}

/// Runs `program` on a terminal, and `end` once the guest is up. Checks the terminal before, then and afterwards.
fn on_a_terminal(host: &Host, program: &Tiny, end: impl FnOnce(&mut Running)) -> Finished {
    let terminal = Terminal::new();
    let before = terminal.settings();
    assert!(!before.are_raw());
    let mut guest = Guest::tiny(host, program).option("--on-reset", "exit").terminal(&terminal).start();
    guest.wait_for("up");
    assert!(terminal.settings().are_raw(), "the terminal is not raw while the guest has it");
    end(&mut guest);
    let finished = guest.wait();
    assert!(terminal.settings() == before, "the terminal was not given back as it was{finished}");
    finished
}

#[test]
fn power_off_is_0() {
    let host = host_or_skip!();
    let end = on_a_terminal(&host, &waits_for_a_key().power_off(), |guest| guest.send("k"));
    end.assert_status(0);
    assert_eq!(end.errors(), "");
}

#[test]
fn reset_with_exit_is_4() {
    let host = host_or_skip!();
    let end = on_a_terminal(&host, &waits_for_a_key().reset(), |guest| guest.send("k"));
    end.assert_status(4);
    assert_eq!(end.errors(), "");
}

#[test]
fn an_exit_that_cannot_be_handled_is_5_and_says_where() {
    let host = host_or_skip!();
    let program = waits_for_a_key().load_that_cannot_be_emulated();
    let end = on_a_terminal(&host, &program, |guest| guest.send("k"));
    end.assert_status(5);
    let line = end.error_line();
    assert!(line.contains("vCPU 0") && line.contains("PC 0x400000"), "{line}");
    assert!(line.contains("cannot be emulated"), "{line}");
}

#[test]
fn ctrl_a_x_is_6() {
    let host = host_or_skip!();
    let end = on_a_terminal(&host, &asleep(), |guest| guest.send(b"\x01x"));
    end.assert_status(6);
    assert_eq!(end.errors(), "");
}

#[test]
fn ctrl_a_x_leaves_a_guest_that_never_stops_too() {
    let host = host_or_skip!();
    on_a_terminal(&host, &Tiny::new().print("up").spin(), |guest| guest.send(b"\x01x")).assert_status(6);
}

#[test]
fn signals_are_128_and_their_number() {
    let host = host_or_skip!();
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129), (Signal::QUIT, 131)]
    {
        let end = on_a_terminal(&host, &asleep(), |guest| guest.signal(signal));
        end.assert_status(status);
        assert_eq!(end.errors(), "", "{signal:?}");
    }
}

/// What a login manager does with the button.
const LISTENS_TO_ITS_BUTTON: &str = r#"
    echo "listening"
    # Two events of 24 bytes each, the key and the report's end; the key's code is at offset 18.
    dd if=/dev/input/event0 of=/tmp/event bs=24 count=1 2>/dev/null
    echo "key=$(od -A n -t u2 -j 18 -N 2 /tmp/event | tr -d ' ')"
    poweroff -f
"#;

#[test]
fn sigterm_presses_the_power_button() {
    let host = host_or_skip!();
    let mut guest = Guest::linux(&host).script(LISTENS_TO_ITS_BUTTON).start();
    guest.wait_for("listening");
    guest.signal(Signal::TERM);
    let end = guest.wait();
    end.assert_status(0);
    assert!(end.text().contains("key=116"), "{end}");
}

#[test]
fn a_second_sigterm_ends_a_guest_that_ignores_its_power_button() {
    let host = host_or_skip!();
    let mut guest = Guest::linux(&host)
        .script("echo listening; dd if=/dev/input/event0 of=/dev/null bs=24 count=1 2>/dev/null; echo pressed; sleep 1000")
        .start();
    guest.wait_for("listening");
    guest.signal(Signal::TERM);
    guest.wait_for("pressed");
    guest.signal(Signal::TERM);
    guest.wait().assert_status(143);
}

#[test]
fn a_guest_that_ignores_its_power_button_is_ended_when_patience_is_over() {
    let host = host_or_skip!();
    let mut guest =
        Guest::linux(&host).option("--patience", "1").script("echo listening; sleep 1000").start();
    guest.wait_for("listening");
    guest.signal(Signal::TERM);
    let end = guest.wait();
    end.assert_status(143);
    assert!(end.errors().contains("did not power off within 1 s"), "{end}");
}

#[test]
fn without_patience_sigterm_ends_at_once() {
    let host = host_or_skip!();
    let mut guest =
        Guest::linux(&host).option("--patience", "0").script("echo listening; sleep 1000").start();
    guest.wait_for("listening");
    guest.signal(Signal::TERM);
    let end = guest.wait();
    end.assert_status(143);
    assert_eq!(end.errors(), "");
}

#[test]
fn a_signal_ends_a_run_whose_output_nobody_reads() {
    let host = host_or_skip!();
    let mut guest = Guest::tiny(&host, &Tiny::new().print("up").chatter()).start();
    guest.wait_for("up");
    guest.stop_reading();
    // From here on a vCPU is stuck in a write.
    guest.wait_until_full();
    guest.signal(Signal::TERM);
    guest.wait().assert_status(143);
}

#[test]
fn ctrl_a_x_ends_a_run_whose_output_nobody_reads() {
    let host = host_or_skip!();
    let mut guest = Guest::tiny(&host, &Tiny::new().print("up").chatter()).input(Input::PIPE).start();
    guest.wait_for("up");
    guest.stop_reading();
    guest.wait_until_full();
    // The keys before have to find their way past the vCPU that is stuck.
    guest.send(b"abc\x01x");
    guest.wait().assert_status(6);
}

#[test]
fn keys_that_end_other_programs_go_to_the_guest() {
    let host = host_or_skip!();
    let terminal = Terminal::new();
    let mut guest =
        Guest::tiny(&host, &Tiny::new().print("up").echo_until(b'.').power_off()).terminal(&terminal).start();
    guest.wait_for("up");
    // Ctrl-c, Ctrl-z, Ctrl-backslash, Ctrl-s, Ctrl-q, Ctrl-d, carriage return, and Ctrl-a by typing it twice.
    guest.send(b"\x03\x1a\x1c\x13\x11\x04\r\x01\x01.");
    let end = guest.wait();
    end.assert_status(0);
    assert_eq!(end.output(), b"up\x03\x1a\x1c\x13\x11\x04\r\x01.");
}

#[test]
fn a_host_that_lacks_something_gives_the_terminal_back() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let terminal = Terminal::new();
    let before = terminal.settings();
    let end = Guest::tiny(&host, &asleep())
        .option("--dump-fdt", scratch.path().join("nowhere/tree.dtb"))
        .terminal(&terminal)
        .run();
    end.assert_status(2);
    assert!(end.error_line().contains("--dump-fdt"));
    assert!(terminal.settings() == before);
}

#[test]
fn a_message_that_nobody_reads_changes_no_status() {
    let host = host_or_skip!();
    // What is logged, the report and the error all go to a device that is always full.
    let reported = Tiny::new().power_off();
    let failed = Tiny::new().load_that_cannot_be_emulated();
    for (program, status) in [(reported, 0), (failed, 5)] {
        Guest::tiny(&host, &program)
            .flag("--report")
            .option("--log", "trace")
            .through(&["/bin/sh", "-c", r#"exec "$@" 2>/dev/full"#, "sh"])
            .run()
            .assert_status(status);
    }
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_guest() {
    let host = host_or_skip!();
    let program = Tiny::new().print("up").wait_for_key().print("more").wait_for_key().power_off();
    let mut guest = Guest::tiny(&host, &program).flag("--report").input(Input::PIPE).start();
    guest.wait_for("up");
    guest.close_output();
    guest.send("kk");
    guest.wait().assert_status(0);
}
