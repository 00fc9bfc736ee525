// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that moves packets.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::muxer::{FIRST_TOKEN, Muxer};
use super::socket::Listener;
use crate::{Chain, EventHandler, Events, Interest, Ring, RingError, Transport};

/// How many packets are moved one way before others get their turn.
const BUDGET: usize = 256;

const LISTENER: u64 = 0;
const RECEIVE: u64 = 1;
const TRANSMIT: u64 = 2;
const _: () = assert!(TRANSMIT < FIRST_TOKEN, "tokens of connections are others");

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
}

impl Multiplexer {
    pub(super) fn new(muxer: Muxer, receive: Ring, transmit: Ring, transport: Arc<dyn Transport>) -> Self {
        Self {
            muxer,
            receive,
            transmit,
            transport,
            receive_chain: Chain::new(),
            transmit_chain: Chain::new(),
            stalled: false,
        }
    }

    pub(super) fn events(&self, listener: &Listener) -> io::Result<Events> {
        let events = Events::new()?;
        events.add(listener, LISTENER, Interest::Read)?;
        events.add(self.receive.notify(), RECEIVE, Interest::Read)?;
        events.add(self.transmit.notify(), TRANSMIT, Interest::Read)?;
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

    fn handle(&mut self, token: u64, events: &Events) -> Result<(), RingError> {
        match token {
            LISTENER => self.muxer.accept(events),
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
