// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the thread of a queue pair waits for, with a datagram socket in place of a tap.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use irqfd::Doorbell;

use super::super::pair::Pair;
use super::super::receive::Receiver;
use super::super::shared::Shared;
use super::super::tap::Tap;
use super::super::transmit::Transmitter;
use crate::testing::{Driver, writable};
use crate::worker::listen;
use crate::{EventHandler, Events, Interest, MacAddress, Ring, Transport};

const DATA: u64 = Driver::DATA;

/// More events than anything here has a reason for.
const ENDLESS: usize = 200;

/// The token of what the tests themselves have to say.
const BEGIN: u64 = 99;

struct Rig {
    driver: Driver,
    shared: Arc<Shared>,
    pair: Pair,
    events: Events,
    begin: Doorbell,
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
        let begin = Doorbell::new().unwrap();
        events.add(&begin, BEGIN, Interest::Read).unwrap();
        Self { driver, shared, pair, events, begin, wire }
    }

    /// Runs until nothing is ready, which has to come.
    fn run(&mut self) {
        let stop = Doorbell::new().unwrap();
        self.begin.ring().unwrap();
        let mut course = Course { pair: &mut self.pair, begin: &self.begin, heard: 0, settled: 0 };
        listen(stop.as_fd(), &self.events, &mut course);
        assert!(course.heard < ENDLESS, "something is reported for ever");
    }

    fn buffer(&mut self) {
        self.driver.queues[0].add(&[writable(DATA, 2000)]);
    }

    fn received(&mut self) -> usize {
        std::iter::from_fn(|| self.driver.queues[0].used()).count()
    }
}

/// Counts what is handed to a queue pair, and ends when nothing is.
struct Course<'r> {
    pair: &'r mut Pair,
    begin: &'r Doorbell,
    heard: usize,
    /// How many had been heard when it last settled.
    settled: usize,
}

impl EventHandler for Course<'_> {
    fn ready(&mut self, token: u64, events: &Events) -> ControlFlow<()> {
        self.heard += 1;
        match token {
            _ if self.heard == ENDLESS => ControlFlow::Break(()),
            BEGIN => {
                self.begin.take().unwrap();
                ControlFlow::Continue(())
            }
            token => self.pair.ready(token, events),
        }
    }

    fn settled(&mut self, events: &Events) -> ControlFlow<(), bool> {
        let more = self.pair.settled(events)?;
        if !more && self.heard == self.settled {
            return ControlFlow::Break(());
        }
        self.settled = self.heard;
        ControlFlow::Continue(true)
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
