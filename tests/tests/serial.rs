// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The serial port: every byte arrives, once and in order, in both directions.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::Write;
use std::thread;

use doorbell_tests::guest::{Gic, Guest, Host, Input, Scratch, Tiny};
use doorbell_tests::{host_or_skip, noise};
use rustix::process::Signal;

/// How much goes each way.
///
/// Every byte to the guest is two exits to this process, a tenth of a millisecond each on an emulated host with nothing else to do: minutes for
/// the megabyte, which one kind of host has to do for all. The other differs in the interrupt controller only.
fn amount(host: &Host) -> usize {
    match host.gic {
        Gic::V3 => 1 << 20,
        Gic::V2 => 32 << 10,
    }
}

const CTRL_A: u8 = 1;

/// As a person has to type it: Ctrl-a twice.
fn typed(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 100);
    for &byte in bytes {
        if byte == CTRL_A {
            out.push(CTRL_A);
        }
        out.push(byte);
    }
    out
}

/// Where `a` and `b` part.
fn difference(a: &[u8], b: &[u8]) -> Option<String> {
    if a == b {
        return None;
    }
    let at = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    Some(format!("{} bytes instead of {}, the first difference at {at}", a.len(), b.len()))
}

/// The kernel's own words must not come between the bytes. On an emulated host under load the guest's interrupt handler may be busy with one
/// burst of input for longer than RCU waits, which then stops all CPUs to complain: not what this is about.
const QUIET: &str = "loglevel=0 rcupdate.rcu_cpu_stall_suppress=1";

#[test]
fn a_megabyte_each_way_at_once_arrives_whole() {
    let host = host_or_skip!();
    let (down, up) = (noise(amount(&host), 1), noise(amount(&host), 2));
    let mut guest = Guest::linux(&host)
        .cpus(2)
        .cmdline(QUIET)
        .file("up", &up)
        .file("down", &down)
        .flag("--report")
        .input(Input::PIPE)
        .patience(20)
        .script(
            r#"
            size=$(stat -c %s /down)
            stty raw -echo
            head -c "$size" </dev/console >/tmp/down &
            printf 'begin'
            cat /up
            echo end
            wait
            stty sane
            cmp /down /tmp/down && echo "same=yes"
            echo "got=$(stat -c %s /tmp/down)"
            "#,
        )
        .start();
    guest.wait_for("begin");
    let mut input = guest.input();
    let keys = typed(&down);
    let typist = thread::spawn(move || input.write_all(&keys).unwrap());
    let end = guest.wait();
    typist.join().unwrap();
    end.assert_status(0);
    let all = end.output();
    let begin = all.windows(5).position(|w| w == b"begin").unwrap() + 5;
    let sent = &all[begin..];
    let difference = difference(&sent[..sent.len().min(up.len())], &up);
    assert_eq!(difference, None, "from the guest");
    assert!(sent[up.len()..].starts_with(b"end"), "more came than the guest sent");
    let tail = String::from_utf8_lossy(&sent[up.len()..]).replace('\r', "");
    assert!(tail.contains("\nsame=yes\n"), "to the guest: {tail}");
    let [sent, received, raised, resampled] = end.report("serial port")[..] else { panic!("{end}") };
    assert!(sent >= up.len() as u64, "{sent} sent");
    assert!(received >= down.len() as u64, "{received} received");
    assert!(resampled > 0 && resampled <= raised, "{raised} raised, {resampled} EOIs");
    // The kernel collects what the guest sends.
    let [returns, reads, writes] = end.report("exits")[..] else { panic!("{end}") };
    assert!(
        writes < sent / 8,
        "{returns} returns of KVM_RUN for {reads} reads and {writes} writes, {sent} bytes sent"
    );
}

/// The kernel collects output from the eighth byte on, and this guest never returns from it again.
#[test]
fn what_a_guest_writes_before_it_sleeps_or_spins_arrives() {
    let host = host_or_skip!();
    for program in
        [Tiny::new().print("12345678 and nine").sleep(), Tiny::new().print("12345678 and nine").spin()]
    {
        let mut guest = Guest::tiny(&host, &program).start();
        guest.wait_for("12345678 and nine");
        guest.signal(Signal::TERM);
        guest.wait().assert_status(143);
    }
}

/// Nothing that the guest said is lost when it ends itself, or asks the host for something that no host has.
#[test]
fn what_a_guest_writes_before_its_end_arrives() {
    let host = host_or_skip!();
    let words = "0123456789".repeat(30);
    for (program, status) in [
        (Tiny::new().print(&words).power_off(), 0),
        (Tiny::new().print(&words).load_that_cannot_be_emulated(), 5),
    ] {
        let end = Guest::tiny(&host, &program).run();
        end.assert_status(status);
        assert_eq!(end.text(), words);
    }
}

#[test]
fn the_guests_own_words_for_sending_and_receiving_agree_with_what_arrives() {
    let host = host_or_skip!();
    let bytes = 8 << 10;
    let mut guest = Guest::linux(&host)
        .cmdline(&format!("{QUIET} doorbell.bytes={bytes}"))
        .actions(&["send", "receive", "poweroff"])
        .input(Input::PIPE)
        .start();
    guest.wait_for("send begin\n");
    let lines = guest.wait_for("doorbell-guest: send end ");
    let expected: String = (0..bytes / 16).map(|n| format!("{n:015}\n")).collect();
    assert_eq!(difference(lines.as_bytes(), expected.as_bytes()), None);
    guest.wait_for("receive begin\r\n");
    guest.send(typed(expected.as_bytes()));
    let end = guest.wait();
    end.assert_status(0);
    // What went out came back in, so the guest's two checksums are of the same bytes.
    let word = |line: &str, n: usize| line.split_whitespace().nth(n).map(str::to_owned);
    let sent = end.lines_with("send end").first().and_then(|line| word(line, 3));
    let received = end.lines_with("receive end").first().and_then(|line| word(line, 4));
    assert!(sent.is_some() && sent == received, "{end}");
}

#[test]
fn a_regular_file_as_input_arrives_whole() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    // More than a chunk that is read at once, and all byte values but the one that ends the guest's echo.
    let mut bytes = noise(20_000, 3);
    bytes.retain(|&byte| byte != b'.');
    bytes.push(b'.');
    let file = scratch.file("input", typed(&bytes));
    let end = Guest::tiny(&host, &Tiny::new().echo_until(b'.').power_off()).input(Input::file(&file)).run();
    end.assert_status(0);
    assert_eq!(difference(end.output(), &bytes), None);
}

#[test]
fn a_pipe_as_input_arrives_whole_and_its_end_ends_nothing() {
    let host = host_or_skip!();
    let program = Tiny::new().print("up").echo_until(b'.').print("still here").power_off();
    let mut guest = Guest::tiny(&host, &program).input(Input::PIPE).start();
    guest.wait_for("up");
    guest.send("abc.");
    guest.close_input();
    let end = guest.wait();
    end.assert_status(0);
    assert_eq!(end.text(), "upabc.still here");
}

#[test]
fn ctrl_a_twice_is_one_and_before_other_keys_it_passes() {
    let host = host_or_skip!();
    let mut guest = Guest::tiny(&host, &Tiny::new().echo_until(b'.').power_off()).input(Input::PIPE).start();
    guest.send(b"a\x01\x01b\x01c");
    // In two halves, which may be read apart.
    guest.send(b"\x01");
    guest.wait_for("b\u{1}c");
    guest.send(b"\x01.");
    let end = guest.wait();
    end.assert_status(0);
    assert_eq!(end.output(), b"a\x01b\x01c\x01.");
}

#[test]
fn without_input_the_guest_runs_to_its_end() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let empty = scratch.file("empty", "");
    for input in
        [Input::NULL, Input::CLOSED, Input::file(&empty), Input::file(std::path::Path::new("/dev/zero"))]
    {
        let name = format!("{input:?}");
        let end = Guest::tiny(&host, &Tiny::new().print("done").power_off()).input(input).run();
        end.assert_status(0);
        assert_eq!((end.text().as_str(), end.errors().as_str()), ("done", ""), "{name}");
    }
}
