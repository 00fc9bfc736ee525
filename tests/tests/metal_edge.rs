// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Edge-triggered SPIs, from an eventfd to a bare-metal guest that counts them.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;

use doorbell_tests::metal::{Command, Kind, Machine, exactly_once};
use irq_types::{Intid, Spi};
use irqfd::{EdgeLine, EdgeTrigger};
use vgic::GicRequest;

struct Edge {
    intid: Intid,
    trigger: EdgeTrigger,
    line: Arc<dyn EdgeLine>,
}

/// `count` lines, every other of them to the same CPU.
fn edges(machine: &Machine, count: u32) -> Vec<Edge> {
    (0..count)
        .map(|n| {
            let spi = Spi::new(n).unwrap();
            machine.wire(spi.intid(), Kind::Edge, n % machine.gic().config().vcpus());
            let trigger = EdgeTrigger::new().unwrap();
            trigger.wire(machine.wiring(), &machine.line(spi)).unwrap();
            let line = trigger.line();
            Edge { intid: spi.intid(), trigger, line }
        })
        .collect()
}

fn machine(test: &str, vcpus: u32) -> Option<Machine> {
    let request = GicRequest { vcpus, spis: 128, ..GicRequest::default() };
    Machine::start(test, request, |host| host.v2 || host.v3, "a GIC")
}

#[test]
fn of_100_000_edges_each_arrives_exactly_once_and_none_through_userspace() {
    let test = "of_100_000_edges_each_arrives_exactly_once_and_none_through_userspace";
    let Some(machine) = machine(test, 2) else { return };
    let edges = edges(&machine, 100);
    let intids: Vec<Intid> = edges.iter().map(|edge| edge.intid).collect();
    exactly_once(&machine, test, &intids, |n| edges[n].line.signal().unwrap());
    for edge in &edges {
        assert_eq!(
            edge.trigger.state().unwrap().signals,
            machine.mailbox().count(edge.intid),
            "{}",
            edge.intid
        );
    }
}

#[test]
fn of_edges_that_nobody_waits_for_some_merge_and_the_last_arrives() {
    let test = "of_edges_that_nobody_waits_for_some_merge_and_the_last_arrives";
    let Some(machine) = machine(test, 1) else { return };
    let signals = 100_000;
    let edges = edges(&machine, 4);
    let serving = machine.serve();
    for n in 1..=signals {
        for edge in &edges {
            machine.mailbox().set_sent(edge.intid, n);
            edge.line.signal().unwrap();
        }
    }
    machine.until("the last edge", || edges.iter().all(|edge| machine.mailbox().seen(edge.intid) == signals));
    machine.finish(serving);
    for edge in &edges {
        let count = machine.mailbox().count(edge.intid);
        println!("{}: {signals} edges became {count} interrupts", edge.intid);
        assert!((1..=signals).contains(&count), "{}: {count}", edge.intid);
        assert_eq!(machine.mailbox().seen(edge.intid), signals);
    }
}

#[test]
fn an_edge_signalled_before_the_line_is_wired_arrives_once_when_it_is() {
    let test = "an_edge_signalled_before_the_line_is_wired_arrives_once_when_it_is";
    let Some(machine) = machine(test, 1) else { return };
    let spi = Spi::new(127).unwrap();
    machine.wire(spi.intid(), Kind::Edge, 0);
    let gsi = machine.line(spi);
    let trigger = EdgeTrigger::new().unwrap();
    let count = || machine.mailbox().count(spi.intid());
    for wired in 1..=100 {
        // Several signals, one interrupt.
        trigger.line().signal().unwrap();
        trigger.line().signal().unwrap();
        let serving = machine.serve();
        assert!(trigger.state().unwrap().waiting);
        trigger.wire(machine.wiring(), &gsi).unwrap();
        machine.until("the early edge", || count() == wired);
        trigger.unwire().unwrap();
        machine.finish(serving);
        assert_eq!(count(), wired);
    }
}

#[test]
fn an_edge_that_comes_while_the_guest_has_the_line_disabled_arrives_once_when_it_is_enabled() {
    let test = "an_edge_that_comes_while_the_guest_has_the_line_disabled_arrives_once_when_it_is_enabled";
    let Some(machine) = machine(test, 1) else { return };
    let edges = edges(&machine, 1);
    let Edge { intid, line, .. } = &edges[0];
    machine.call(0, Command::Enable(*intid, false));
    (0..1000).for_each(|_| line.signal().unwrap());
    machine.finish(machine.serve());
    assert_eq!(machine.mailbox().count(*intid), 0);
    machine.call(0, Command::Enable(*intid, true));
    let serving = machine.serve();
    machine.until("the edge", || machine.mailbox().count(*intid) > 0);
    machine.finish(serving);
    assert_eq!(machine.mailbox().count(*intid), 1);
}

#[test]
fn a_machine_switches_itself_off() {
    let test = "a_machine_switches_itself_off";
    let Some(machine) = machine(test, 2) else { return };
    machine.power_off();
}
