// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that moves packets.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::muxer::{FIRST_TOKEN, Muxer};
use crate::{Chain, EventHandler, Events, Interest, Ring, RingError, Transport};

/// How many packets are moved one way before others get their turn.
const BUDGET: usize = 256;

/// How long host programs wait that could not be taken because there is no descriptor left. Whoever closes one does not say so.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

pub(super) const LISTENER: u64 = 0;
const RECEIVE: u64 = 1;
const TRANSMIT: u64 = 2;
pub(super) const RESUME: u64 = 3;
const _: () = assert!(RESUME < FIRST_TOKEN, "tokens of connections are others");

/// The device at work.
pub(super) struct Multiplexer {
    muxer: Muxer,
    receive: Ring,
    transmit: Ring,
    transport: Arc<dyn Transport>,
    receive_chain: Chain,
    transmit_chain: Chain,
    /// Packets of the guest's wait until it has taken answers.
    stalled: bool,
    /// When host programs are listened to again. It is there from the beginning: it is needed when there is no descriptor left.
    resume: OwnedFd,
}

impl Multiplexer {
    pub(super) fn new(
        muxer: Muxer,
        receive: Ring,
        transmit: Ring,
        transport: Arc<dyn Transport>,
    ) -> io::Result<Self> {
        let resume =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self {
            muxer,
            receive,
            transmit,
            transport,
            receive_chain: Chain::new(),
            transmit_chain: Chain::new(),
            stalled: false,
            resume,
        })
    }

    pub(super) fn events(&self) -> io::Result<Events> {
        let events = Events::new()?;
        events.add(self.muxer.listener(), LISTENER, Interest::Read)?;
        events.add(self.receive.notify(), RECEIVE, Interest::Read)?;
        events.add(self.transmit.notify(), TRANSMIT, Interest::Read)?;
        events.add(&self.resume, RESUME, Interest::Read)?;
        // What there is already may have been said before anybody listened.
        self.transmit.notify().ring().map_err(io::Error::other)?;
        Ok(events)
    }

    /// Takes the guest's packets, as long as there is room for answers.
    fn take(&mut self, events: &Events) -> Result<(), RingError> {
        self.stalled = false;
        for turn in 0.. {
            if !self.muxer.can_take() {
                self.stalled = true;
                break;
            }
            if turn == BUDGET {
                let _ = self.transmit.notify().ring();
                break;
            }
            if !self.transmit.pop(&mut self.transmit_chain)? {
                if self.transmit.enable_notifications()? {
                    continue;
                }
                break;
            }
            self.muxer.receive(&self.transmit_chain, self.transmit.memory(), events)?;
            self.transmit.push(self.transmit_chain.head(), 0)?;
        }
        self.transmit.interrupt()
    }

    /// Gives the guest what there is for it, as long as it has room.
    fn give(&mut self, events: &Events) -> Result<(), RingError> {
        for turn in 0.. {
            if !self.muxer.has_something() {
                break;
            }
            if turn == BUDGET {
                let _ = self.receive.notify().ring();
                break;
            }
            if !self.receive.pop(&mut self.receive_chain)? {
                if self.receive.enable_notifications()? {
                    continue;
                }
                break;
            }
            match self.muxer.fill(&self.receive_chain, self.receive.memory(), events)? {
                Some(length) => self.receive.push(self.receive_chain.head(), length)?,
                None => {
                    self.receive.unpop();
                    break;
                }
            }
        }
        self.receive.interrupt()
    }

    /// Takes host programs. Those that cannot be taken for now would be reported again and again.
    fn accept(&mut self, events: &Events) {
        if self.muxer.accept(events).is_err() {
            let once = Itimerspec { it_interval: Timespec::default(), it_value: PAUSE };
            // Without the timer they would never be listened to again.
            if timerfd_settime(&self.resume, TimerfdTimerFlags::empty(), &once).is_ok() {
                let _ = events.modify(self.muxer.listener(), LISTENER, Interest::Nothing);
            }
        }
    }

    /// Listens to host programs again.
    fn resume(&mut self, events: &Events) {
        let _ = rustix::io::read(&self.resume, &mut [0; 8]);
        let _ = events.modify(self.muxer.listener(), LISTENER, Interest::Read);
    }

    fn handle(&mut self, token: u64, events: &Events) -> Result<(), RingError> {
        match token {
            LISTENER => self.accept(events),
            RESUME => self.resume(events),
            RECEIVE => {
                let _ = self.receive.notify().take();
            }
            TRANSMIT => {
                let _ = self.transmit.notify().take();
                self.take(events)?;
            }
            token => self.muxer.ready(token, events),
        }
        self.give(events)?;
        if self.stalled && self.muxer.can_take() {
            self.take(events)?;
        }
        Ok(())
    }
}

impl EventHandler for Multiplexer {
    fn ready(&mut self, token: u64, events: &Events) -> ControlFlow<()> {
        match self.handle(token, events) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.transport.needs_reset(&error);
                ControlFlow::Break(())
            }
        }
    }
}
