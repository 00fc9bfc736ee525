// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The console's thread: output at the pace of the host, input at the pace of the guest.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::NonBlocking;
use crate::sys::scatter::Scatter;
use crate::{Chain, EventHandler, Events, Interest, Ring, RingError, Transport};

/// How many buffers are moved before the other direction gets its turn.
const BUDGET: usize = 64;

/// How many pieces a `readv` or `writev` is given at most, of a chain that may have more.
const PIECES: usize = 256;

const INPUT: u64 = 0;
const OUTPUT: u64 = 1;
const RECEIVE: u64 = 2;
const TRANSMIT: u64 = 3;

/// Both directions at work.
pub(super) struct Port {
    input: Option<Arc<NonBlocking>>,
    output: Arc<NonBlocking>,
    receive: Ring,
    transmit: Ring,
    transport: Arc<dyn Transport>,
    scatter: Scatter,
    input_chain: Chain,
    output_chain: Chain,
    /// How much of the output chain was written; `None` if it is done with.
    written: Option<u32>,
    /// The output takes no more for now.
    blocked: bool,
    /// The input is listened to: the guest has room, and there is no end of it yet.
    listening: bool,
    /// The output has failed.
    deaf: bool,
}

impl Port {
    pub(super) fn new(
        input: Option<Arc<NonBlocking>>,
        output: Arc<NonBlocking>,
        receive: Ring,
        transmit: Ring,
        transport: Arc<dyn Transport>,
    ) -> Self {
        Self {
            input,
            output,
            receive,
            transmit,
            transport,
            scatter: Scatter::new(),
            input_chain: Chain::new(),
            output_chain: Chain::new(),
            written: None,
            blocked: false,
            listening: false,
            deaf: false,
        }
    }

    /// What the thread is to listen to. The input comes later, when the guest has room.
    pub(super) fn events(&mut self) -> io::Result<Events> {
        let events = Events::new()?;
        events.add(self.receive.notify(), RECEIVE, Interest::Read)?;
        events.add(self.transmit.notify(), TRANSMIT, Interest::Read)?;
        // What there is already may have been said before anybody listened.
        for ring in [&self.receive, &self.transmit] {
            ring.notify().ring().map_err(io::Error::other)?;
        }
        Ok(events)
    }

    /// Reads what was typed, as long as the guest has room for it.
    fn receive(&mut self, events: &Events) -> Result<(), RingError> {
        let Some(input) = self.input.clone() else { return Ok(()) };
        let mut listen = true;
        for _ in 0..BUDGET {
            if !self.receive.pop(&mut self.input_chain)? {
                if self.receive.enable_notifications()? {
                    continue;
                }
                listen = false;
                break;
            }
            if self.input_chain.writable_len() == 0 {
                let problem = "is for input, and has no room";
                return Err(RingError::Malformed { head: self.input_chain.head(), problem });
            }
            let room = self.input_chain.writable().iter().take(PIECES);
            match self.scatter.read(&*input, self.receive.memory(), room, &mut []) {
                Ok(length) if length > 0 => {
                    let length = u32::try_from(length).unwrap_or(u32::MAX);
                    self.receive.push(self.input_chain.head(), length)?;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.receive.unpop();
                    break;
                }
                // The end, or the other end of a terminal is closed.
                Ok(_) | Err(_) => {
                    self.receive.unpop();
                    self.input = None;
                    listen = false;
                    break;
                }
            }
        }
        if listen != self.listening {
            self.listening = if listen {
                match events.add(&*input, INPUT, Interest::Read) {
                    Ok(()) => true,
                    // A file: there is always something, or it is at its end. Our own reminder.
                    Err(_) => {
                        let _ = self.receive.notify().ring();
                        false
                    }
                }
            } else {
                // Not only asked to be quiet: a hang-up would be reported all the same.
                let _ = events.remove(&*input);
                false
            };
        }
        self.receive.interrupt()
    }

    /// Writes what the guest says, as long as the output takes it.
    fn transmit(&mut self, events: &Events) -> Result<(), RingError> {
        let mut blocked = false;
        for turn in 0.. {
            if turn == BUDGET {
                let _ = self.transmit.notify().ring();
                break;
            }
            let done = match self.written {
                Some(done) => done,
                None if self.transmit.pop(&mut self.output_chain)? => 0,
                None if self.transmit.enable_notifications()? => continue,
                None => break,
            };
            let length = self.output_chain.readable_len();
            let done = if self.deaf {
                length
            } else {
                let rest = self.output_chain.readable_from(done).take(PIECES);
                match self.scatter.write(&*self.output, self.transmit.memory(), rest) {
                    Ok(step) => done.saturating_add(u32::try_from(step).unwrap_or(u32::MAX)),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.written = Some(done);
                        blocked = true;
                        break;
                    }
                    Err(_) => {
                        self.deaf = true;
                        length
                    }
                }
            };
            if done < length {
                self.written = Some(done);
            } else {
                self.written = None;
                self.transmit.push(self.output_chain.head(), 0)?;
            }
        }
        if blocked != self.blocked {
            self.blocked = blocked;
            let _ = if blocked {
                events.add(&*self.output, OUTPUT, Interest::Write)
            } else {
                events.remove(&*self.output)
            };
        }
        self.transmit.interrupt()
    }
}

impl EventHandler for Port {
    fn ready(&mut self, token: u64, events: &Events) -> ControlFlow<()> {
        let result = match token {
            INPUT => self.receive(events),
            RECEIVE => {
                let _ = self.receive.notify().take();
                self.receive(events)
            }
            OUTPUT => self.transmit(events),
            TRANSMIT => {
                let _ = self.transmit.notify().take();
                // Otherwise it goes on when the output says so.
                if self.blocked { Ok(()) } else { self.transmit(events) }
            }
            _ => Ok(()),
        };
        match result {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.transport.needs_reset(&error);
                ControlFlow::Break(())
            }
        }
    }
}
