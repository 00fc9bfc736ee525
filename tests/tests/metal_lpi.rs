// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Message-signalled interrupts over the ITS: vector → irqfd → ITS → LPI, to a bare-metal guest that counts them.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use doorbell_tests::metal::{Command, Machine, beside, exactly_once};
use irq_types::{DeviceId, EventId, Lpi, MsiMessage};
use irqchip::MsiDelivery;
use irqfd::{InterruptVector, MsiSender, MsiVector, VectorGroup};
use vgic::GicRequest;

const DEVICE: DeviceId = DeviceId::new(0x108);

fn machine(test: &str, vcpus: u32) -> Option<Machine> {
    let request = GicRequest { vcpus, ..GicRequest::default() };
    Machine::start(test, request, |host| host.its, "an ITS")
}

fn lpi(n: u32) -> Lpi {
    Lpi::new(8192 + n).unwrap()
}

/// The message that makes event `n` of a device.
fn message(machine: &Machine, n: u32) -> MsiMessage {
    MsiMessage { address: machine.gic().layout().its_doorbell(0).unwrap(), data: n }
}

/// Event n of the device is LPI 8192 + n, every other of them to the same CPU.
fn map_events(machine: &Machine, count: u32) {
    machine.call(0, Command::MapDevice(DEVICE, 8));
    for n in 0..count {
        let cpu = n % machine.gic().config().vcpus();
        machine.call(0, Command::MapEvent(DEVICE, EventId::new(n), lpi(n), cpu));
    }
}

/// A device with as many vectors, all of them programmed (vector n with event n) and masked.
fn group(machine: &Machine, count: u32) -> VectorGroup {
    let group = VectorGroup::new(machine.wiring().clone(), DEVICE, count as usize);
    (0..count).for_each(|n| group.program(n as usize, message(machine, n)).unwrap());
    group
}

#[test]
fn of_100_000_lpis_each_arrives_exactly_once_and_none_through_userspace() {
    let test = "of_100_000_lpis_each_arrives_exactly_once_and_none_through_userspace";
    let Some(machine) = machine(test, 2) else { return };
    map_events(&machine, 100);
    let group = group(&machine, 100);
    group.update(|changes| (0..100).try_for_each(|n| changes.unmask(n))).unwrap();
    let vectors: Vec<_> = (0..100).map(|n| group.vector(n).unwrap()).collect();
    let intids: Vec<_> = (0..100).map(|n| lpi(n).intid()).collect();
    exactly_once(&machine, test, &intids, |n| vectors[n].trigger().unwrap());
}

/// The two kinds of vector: one whose device calls [`MsiVector::trigger`], and one whose device holds the eventfd.
enum Sender {
    Own(InterruptVector),
    Shared(File),
}

impl Sender {
    fn both(group: &VectorGroup) -> [Self; 2] {
        let shared = group.vector(1).unwrap();
        let eventfd = shared.eventfd().unwrap().try_clone_to_owned().unwrap();
        [Self::Own(group.vector(0).unwrap()), Self::Shared(File::from(eventfd))]
    }

    fn send(&self) {
        match self {
            Self::Own(vector) => vector.trigger().unwrap(),
            Self::Shared(eventfd) => (&*eventfd).write_all(&1_u64.to_ne_bytes()).unwrap(),
        }
    }
}

#[test]
fn signals_to_a_masked_vector_set_pending_and_arrive_as_one_when_it_is_unmasked() {
    let test = "signals_to_a_masked_vector_set_pending_and_arrive_as_one_when_it_is_unmasked";
    let Some(machine) = machine(test, 1) else { return };
    map_events(&machine, 2);
    let group = group(&machine, 2);
    let senders = Sender::both(&group);
    for round in 1..=50 {
        for (n, sender) in senders.iter().enumerate() {
            let count = || machine.mailbox().count(lpi(u32::try_from(n).unwrap()).intid());
            group.mask(n).unwrap();
            (0..1000).for_each(|_| sender.send());
            machine.finish(machine.serve());
            assert_eq!(count(), 2 * (round - 1), "vector {n} is masked");
            assert_eq!(group.pending_word(0).unwrap(), 1 << n);
            let serving = machine.serve();
            group.unmask(n).unwrap();
            machine.until("what was held", || count() > 2 * (round - 1));
            assert_eq!(group.pending_word(0).unwrap(), 0);
            machine.finish(serving);
            assert_eq!(count(), 2 * round - 1, "vector {n} was unmasked");
            // And it works as before.
            let serving = machine.serve();
            sender.send();
            machine.until("a signal after that", || count() >= 2 * round);
            machine.finish(serving);
            assert_eq!(count(), 2 * round);
        }
    }
}

/// Sends one signal after the other, each when the one before has arrived, while `storm` does its worst in another thread until told to stop.
/// How often `arrived` says that something has must be how often something was sent.
fn signals_in_a_storm(
    machine: &Machine,
    signals: u64,
    senders: &[Sender],
    arrived: impl Fn(usize) -> u64,
    storm: impl FnOnce(&dyn Fn() -> bool) + Send,
) {
    let serving = machine.serve();
    beside(storm, || {
        for n in 1..=signals {
            senders.iter().for_each(Sender::send);
            machine.until("the signals", || (0..senders.len()).all(|vector| arrived(vector) >= n));
        }
    });
    machine.finish(serving);
    for vector in 0..senders.len() {
        assert_eq!(arrived(vector), signals, "vector {vector}");
    }
}

#[test]
fn each_signal_in_a_storm_of_masking_arrives_exactly_once() {
    let test = "each_signal_in_a_storm_of_masking_arrives_exactly_once";
    let Some(machine) = machine(test, 1) else { return };
    map_events(&machine, 2);
    let group = group(&machine, 2);
    let storms = AtomicU64::new(0);
    let count = |n: usize| machine.mailbox().count(lpi(u32::try_from(n).unwrap()).intid());
    signals_in_a_storm(&machine, 1000, &Sender::both(&group), count, |over| {
        while !over() {
            for n in [0, 1] {
                group.unmask(n).unwrap();
                thread::yield_now();
                group.mask(n).unwrap();
            }
            storms.fetch_add(1, Ordering::Relaxed);
        }
    });
    println!("2000 signals, each vector masked {} times", storms.into_inner());
    let counts = [0, 1].map(|n| group.state(n).unwrap().counts);
    assert_eq!(counts[0].passed + counts[0].held, 1000);
    assert!(counts[0].held > 0, "the storm has hit nothing: {counts:?}");
}

#[test]
fn each_signal_to_a_vector_that_is_moved_about_arrives_exactly_once() {
    let test = "each_signal_to_a_vector_that_is_moved_about_arrives_exactly_once";
    let Some(machine) = machine(test, 2) else { return };
    // Vector 0 has events 0 and 2, vector 1 events 1 and 3; of each two, one with each CPU.
    machine.call(0, Command::MapDevice(DEVICE, 8));
    for (n, cpu) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        machine.call(0, Command::MapEvent(DEVICE, EventId::new(n), lpi(n), cpu));
    }
    let group = group(&machine, 2);
    group.update(|changes| (0..2).try_for_each(|n| changes.unmask(n))).unwrap();
    let moves = AtomicU64::new(0);
    let taken = |n: u32| machine.mailbox().count(lpi(n).intid());
    let count = |n: usize| {
        let n = u32::try_from(n).unwrap();
        taken(n) + taken(n + 2)
    };
    signals_in_a_storm(&machine, 1000, &Sender::both(&group), count, |over| {
        for round in 0.. {
            if over() {
                break;
            }
            let to = if round % 2 == 0 { 2 } else { 0 };
            for n in 0..2 {
                // One way as drivers do it, the other way without care.
                if round % 4 < 2 {
                    group.mask(n as usize).unwrap();
                }
                group.program(n as usize, message(&machine, n + to)).unwrap();
                group.unmask(n as usize).unwrap();
            }
            moves.fetch_add(1, Ordering::Relaxed);
        }
    });
    let counts = [0, 1, 2, 3].map(taken);
    println!("2000 signals, each vector moved {} times; {counts:?}", moves.into_inner());
    assert!(counts.iter().all(|&count| count > 0), "each target has had some");
}

/// What was held while the vector was masked goes to where it points when it is unmasked.
#[test]
fn a_signal_to_a_masked_vector_that_is_moved_arrives_at_its_new_target_only() {
    let test = "a_signal_to_a_masked_vector_that_is_moved_arrives_at_its_new_target_only";
    let Some(machine) = machine(test, 2) else { return };
    map_events(&machine, 4);
    let group = group(&machine, 2);
    for (n, sender) in [0, 1].into_iter().zip(&Sender::both(&group)) {
        let counts = || [n, n + 2].map(|n| machine.mailbox().count(lpi(n).intid()));
        let vector = n as usize;
        group.unmask(vector).unwrap();
        group.mask(vector).unwrap();
        sender.send();
        group.program(vector, message(&machine, n + 2)).unwrap();
        let serving = machine.serve();
        group.unmask(vector).unwrap();
        machine.until("it at its new target", || counts()[1] > 0);
        machine.finish(serving);
        assert_eq!(counts(), [0, 1]);
        // Not masked: from when the call returns, nothing goes to the old one.
        group.program(vector, message(&machine, n)).unwrap();
        let serving = machine.serve();
        sender.send();
        machine.until("it at its old target", || counts()[0] > 0);
        machine.finish(serving);
        assert_eq!(counts(), [1, 1]);
    }
}

#[test]
fn signals_that_nobody_waits_for_merge_in_a_storm_of_masking_and_the_last_arrives() {
    let test = "signals_that_nobody_waits_for_merge_in_a_storm_of_masking_and_the_last_arrives";
    let Some(machine) = machine(test, 1) else { return };
    let signals = 50_000;
    map_events(&machine, 2);
    let group = group(&machine, 2);
    let senders = Sender::both(&group);
    let serving = machine.serve();
    let storm = |over: &dyn Fn() -> bool| {
        while !over() {
            (0..2).for_each(|n| group.unmask(n).unwrap());
            (0..2).for_each(|n| group.mask(n).unwrap());
        }
    };
    beside(storm, || {
        for n in 1..=signals {
            for (event, sender) in (0..).zip(&senders) {
                machine.mailbox().set_sent(lpi(event).intid(), n);
                sender.send();
            }
        }
    });
    group.update(|changes| (0..2).try_for_each(|n| changes.unmask(n))).unwrap();
    machine.until("the last", || (0..2).all(|n| machine.mailbox().seen(lpi(n).intid()) == signals));
    machine.finish(serving);
    for n in 0..2 {
        let count = machine.mailbox().count(lpi(n).intid());
        println!("{}: {signals} signals became {count} interrupts", lpi(n));
        assert!((1..=signals).contains(&count));
    }
}

#[test]
fn an_injected_message_is_delivered_or_blocked_and_the_sender_is_told_which() {
    let test = "an_injected_message_is_delivered_or_blocked_and_the_sender_is_told_which";
    let Some(machine) = machine(test, 2) else { return };
    map_events(&machine, 2);
    let sender = |device| {
        let vm = machine.vm();
        MsiSender::new(Arc::clone(vm) as _, Arc::clone(vm) as _, machine.wiring().router().clone(), device)
    };
    let (known, unknown) = (sender(DEVICE), sender(DeviceId::new(0x109)));
    let count = |n| machine.mailbox().count(lpi(n).intid());
    let serving = machine.serve();
    for round in 1..=1000 {
        for n in [0, 1] {
            assert_eq!(known.send(message(&machine, n)).unwrap(), MsiDelivery::Delivered);
        }
        machine.until("both", || [0, 1].into_iter().all(|n| count(n) >= round));
    }
    // An event, and a device, of which the guest has told the ITS nothing.
    assert_eq!(known.send(message(&machine, 2)).unwrap(), MsiDelivery::Blocked);
    assert_eq!(unknown.send(message(&machine, 0)).unwrap(), MsiDelivery::Blocked);
    machine.finish(serving);
    assert_eq!([count(0), count(1), count(2)], [1000, 1000, 0]);

    // The guest moves one event to the other CPU, and has the ITS forget the other.
    machine.call(0, Command::Move(DEVICE, EventId::new(0), 1));
    machine.call(0, Command::Discard(DEVICE, EventId::new(1)));
    let serving = machine.serve();
    assert_eq!(known.send(message(&machine, 0)).unwrap(), MsiDelivery::Delivered);
    assert_eq!(known.send(message(&machine, 1)).unwrap(), MsiDelivery::Blocked);
    machine.until("the one that was moved", || count(0) > 1000);
    machine.finish(serving);
    assert_eq!(
        [machine.mailbox().count_on(0, lpi(0).intid()), machine.mailbox().count_on(1, lpi(0).intid())],
        [1000, 1]
    );
    assert_eq!(count(1), 1000);

    // A disabled LPI becomes pending, however often it is sent, and arrives when it is enabled.
    machine.call(0, Command::EnableLpi(DEVICE, EventId::new(0), lpi(0), false));
    (0..10).for_each(|_| assert_eq!(known.send(message(&machine, 0)).unwrap(), MsiDelivery::Delivered));
    machine.finish(machine.serve());
    assert_eq!(count(0), 1001);
    machine.call(0, Command::EnableLpi(DEVICE, EventId::new(0), lpi(0), true));
    let serving = machine.serve();
    machine.until("what was pending", || count(0) > 1001);
    machine.finish(serving);
    assert_eq!(count(0), 1002);
}
