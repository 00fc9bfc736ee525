// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the thread of a queue pair waits for, with a datagram socket in place of a tap.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use super::super::pair::Pair;
use super::super::receive::Receiver;
use super::super::shared::Shared;
use super::super::tap::Tap;
use super::super::transmit::Transmitter;
use crate::testing::{Driver, readable, run_until_quiet, writable};
use crate::{Events, MacAddress, NetHandle, Ring, Transport};

const DATA: u64 = Driver::DATA;

struct Rig {
    driver: Driver,
    shared: Arc<Shared>,
    pair: Pair,
    events: Events,
    wire: UnixDatagram,
}

impl Rig {
    fn new() -> Self {
        let driver = Driver::new(&[16, 16], 0, 1 << 20);
        let activation = driver.activation(0);
        let mut rings = activation.queues.into_iter().map(|queue| Ring::new(queue, driver.memory.clone()));
        let receiver = Receiver::new(rings.next().unwrap(), 0);
        let transmitter = Transmitter::new(rings.next().unwrap());
        let (wire, tap) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared::new(MacAddress::derived_from(b"pair"), 1).unwrap());
        let transport = Arc::clone(&driver.transport) as Arc<dyn Transport>;
        let tap = Arc::new(Tap::imitated(tap.into()));
        let mut pair = Pair::new(0, tap, Arc::clone(&shared), transport, receiver, transmitter, None);
        let events = pair.events().unwrap();
        Self { driver, shared, pair, events, wire }
    }

    fn run(&mut self) {
        run_until_quiet(&mut self.pair, &self.events);
    }

    fn buffer(&mut self) {
        self.driver.queues[0].add(&[writable(DATA, 2000)]);
    }

    fn received(&mut self) -> usize {
        std::iter::from_fn(|| self.driver.queues[0].used()).count()
    }
}

#[test]
fn frames_without_buffers_are_not_reported_for_ever_whatever_has_woken_the_thread() {
    for wakes in 0..4 {
        let mut rig = Rig::new();
        rig.run();
        for _ in 0..2 {
            rig.buffer();
        }
        rig.run();
        for _ in 0..wakes {
            rig.shared.wake_all();
            rig.run();
        }
        for _ in 0..4 {
            rig.wire.send(&[0; 72]).unwrap();
        }
        rig.run();
        assert_eq!(rig.received(), 2, "{wakes}");
        // They wait, and come when they can.
        for _ in 0..3 {
            rig.buffer();
        }
        rig.run();
        assert_eq!(rig.received(), 2, "{wakes}");
        rig.wire.send(&[0; 72]).unwrap();
        rig.run();
        assert_eq!(rig.received(), 1, "{wakes}");
    }
}

#[test]
fn frames_that_wait_are_lost_as_soon_as_the_cable_is_pulled() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        rig.wire.send(&[0; 72]).unwrap();
    }
    rig.run();
    let dropped = |rig: &Rig| NetHandle(Arc::clone(&rig.shared)).counters().received_dropped;
    assert_eq!(dropped(&rig), 0, "they wait for buffers");
    rig.shared.set_link(false);
    rig.run();
    assert_eq!(dropped(&rig), 3);
    // And others with a cable arrive.
    rig.shared.set_link(true);
    rig.buffer();
    rig.wire.send(&[0; 72]).unwrap();
    rig.run();
    assert_eq!((rig.received(), dropped(&rig)), (1, 3));
}

#[test]
fn what_a_full_tap_does_not_take_goes_when_it_does() {
    let mut rig = Rig::new();
    let mut added = 0;
    loop {
        for _ in 0..8 {
            rig.driver.queues[1].add(&[readable(DATA, 72)]);
            added += 1;
        }
        rig.run();
        if std::iter::from_fn(|| rig.driver.queues[1].used()).count() < 8 {
            break;
        }
        assert!(added < 10_000, "a datagram socket fills up");
    }
    let mut got = 0;
    while got < added {
        while rig.wire.recv(&mut [0; 100]).is_ok() {
            got += 1;
        }
        rig.run();
    }
    assert_eq!(rig.driver.queues[1].peek_used(), added);
}
