// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From standard input to the guest's console, the serial port or a virtio console, in the event loop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::outcome::{Outcome, Verdict};
use crate::serial::SerialPort;
use crate::terminal::Keys;

/// How much is read at once. The port takes 64 bytes at a time; the rest waits here.
const CHUNK: usize = 4096;

/// What the events' `data` says they are.
const INPUT: u32 = 0;
const ROOM: u32 = 1;

/// Where a guest's input goes.
pub enum Keyboard {
    /// The serial port.
    Serial(Arc<SerialPort>),
    /// A pipe that a virtio console reads; non-blocking.
    Pipe(OwnedFd),
}

impl Keyboard {
    /// Hands input over. Returns how much was taken; when that is not all, [`room`](Self::room) says when to go on.
    fn feed(&self, input: &[u8]) -> usize {
        match self {
            Self::Serial(port) => port.feed(input),
            // Whatever the pipe says, the guest hears of it when it can: it is full, or the machine ends.
            Self::Pipe(pipe) => rustix::io::write(pipe, input).unwrap_or(0),
        }
    }

    /// What happens when there is room again.
    fn room(&self) -> Events {
        match self {
            Self::Serial(port) => Events::with_data(port.room_event(), ROOM, EventSet::IN),
            // It has room most of the time: only that it has room *again* is an event.
            Self::Pipe(pipe) => Events::with_data(pipe, ROOM, EventSet::OUT | EventSet::EDGE_TRIGGERED),
        }
    }

    fn room_is_noticed(&self) {
        if let Self::Serial(port) = self {
            // What it counts does not matter.
            let _ = port.room_event().read();
        }
    }
}

/// Feeds the guest from standard input. No byte is lost: while the guest takes none, nothing is read.
pub struct Console {
    port: Keyboard,
    input: Input,
    keys: Keys,
    /// Read and filtered, and not yet taken by the port.
    waiting: Vec<u8>,
    /// There will be no more.
    ended: bool,
    verdict: Verdict,
}

/// How standard input tells that there is something to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// By epoll, which listens now.
    Listening,
    /// By epoll, which does not listen now since nothing more can be taken.
    Paused,
    /// It always has something, as a regular file: epoll refuses it.
    AlwaysReady,
}

impl Console {
    /// Feeds `port`; the user's wish to leave goes to `verdict`.
    #[must_use]
    pub fn new(port: Keyboard, verdict: Verdict) -> Self {
        Self { port, input: Input::Paused, keys: Keys::default(), waiting: Vec::new(), ended: false, verdict }
    }

    /// Hands over what waits. Returns whether everything went.
    fn hand_over(&mut self) -> bool {
        while !self.waiting.is_empty() {
            match self.port.feed(&self.waiting) {
                // No room: the room event comes when there is.
                0 => return false,
                taken => drop(self.waiting.drain(..taken)),
            }
        }
        true
    }

    /// Reads once and passes on what was read.
    fn read(&mut self) {
        let mut typed = [0; CHUNK];
        match rustix::io::read(io::stdin(), &mut typed) {
            Ok(0) => self.ended = true,
            Ok(n) => {
                let typed = typed.get(..n).unwrap_or_default();
                if self.keys.filter(typed, &mut self.waiting) {
                    self.verdict.set(Outcome::UserQuit);
                }
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(e) => {
                tracing::warn!("standard input cannot be read any more: {}", io::Error::from(e));
                self.ended = true;
            }
        }
    }

    /// Moves input along as far as it goes, and listens for more exactly when more can be taken.
    fn pump(&mut self, ready: bool, ops: &mut EventOps<'_>) {
        let mut ready = ready;
        while self.hand_over() && !self.ended && (ready || self.input == Input::AlwaysReady) {
            self.read();
            ready = false;
        }
        let listen = self.waiting.is_empty() && !self.ended;
        match (self.input, listen) {
            (Input::Paused, true) => {
                self.input = match ops.add(input_event()) {
                    Ok(()) => Input::Listening,
                    Err(e) => self.not_pollable(&e, ops),
                };
            }
            (Input::Listening, false) => {
                if let Err(e) = ops.remove(input_event()) {
                    tracing::warn!("cannot stop listening to standard input: {e}");
                }
                self.input = Input::Paused;
            }
            _ => {}
        }
    }

    /// epoll takes terminals, pipes and sockets. A regular file or /dev/null (EPERM) can simply be read; everything else is no input.
    fn not_pollable(&mut self, error: &event_manager::Error, ops: &mut EventOps<'_>) -> Input {
        match error {
            event_manager::Error::Epoll(e) if e.errno() == libc::EPERM => {
                self.input = Input::AlwaysReady;
                self.pump(true, ops);
            }
            e => {
                tracing::warn!("cannot listen to standard input: {e}");
                self.ended = true;
            }
        }
        Input::AlwaysReady
    }
}

fn input_event() -> Events {
    Events::with_data(&io::stdin(), INPUT, EventSet::IN)
}

impl MutEventSubscriber for Console {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(e) = ops.add(self.port.room()) {
            tracing::error!("standard input stays disconnected: {e}");
            return;
        }
        self.pump(false, ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            ROOM => {
                self.port.room_is_noticed();
                self.pump(false, ops);
            }
            // Also on hang-up and error: reading says what it is.
            _ => self.pump(true, ops),
        }
    }
}
