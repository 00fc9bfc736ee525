// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread of a queue pair: it moves frames when the tap or the guest has some.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::control_queue::ControlQueue;
use super::receive::{Received, Receiver};
use super::shared::Shared;
use super::tap::Tap;
use super::transmit::{Sent, Transmitter};
use crate::{ActivateError, EventHandler, Events, Interest, RingError, Transport};

/// How many frames are moved before others get their turn: the other direction, and whoever wants the thread to stop.
const BUDGET: usize = 256;

/// Where nothing comes of it, something is tried only once in so many times.
const SELDOM: u8 = 15;

const TAP: u64 = 0;
const RECEIVE: u64 = 1;
const TRANSMIT: u64 = 2;
const CONTROL: u64 = 3;
const WAKE: u64 = 4;

/// A queue pair at work, and on the first of them the control queue as well.
pub(crate) struct Pair {
    index: usize,
    tap: Arc<Tap>,
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    receiver: Receiver,
    transmitter: Transmitter,
    control: Option<ControlQueue>,
    /// What is waited for on the tap; nothing, and not even errors, if `None`.
    interest: Option<Interest>,
    /// The guest has buffers for frames, as far as is known.
    buffers: bool,
    /// The tap could not take a frame.
    tap_is_full: bool,
    /// Asking the tap for another frame, which costs a system call. Where frames come one at a time there mostly is none; and if there is, the tap says so.
    another: Attempt,
    /// Whether the transmit queue is to be looked at again, without a notification.
    stay: Stay,
    /// Staying at the transmit queue, which costs a system call, where being notified costs an exit of the guest's besides.
    staying: Attempt,
}

/// Something that is worth its price only if something comes of it: it is tried again after one time without, after three, and so on up to [`SELDOM`].
#[derive(Debug, Clone, Copy, Default)]
struct Attempt {
    /// How many times it is to be left out yet.
    rest: u8,
    /// How many times it was last left out.
    pause: u8,
}

impl Attempt {
    /// Whether it is to be tried this time.
    fn is_due(&mut self) -> bool {
        let due = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        due
    }

    /// It was tried, and something came of it or not.
    fn made(&mut self, well: bool) {
        self.pause = if well { 0 } else { (2 * self.pause + 1).min(SELDOM) };
        self.rest = self.pause;
    }
}

/// Whether the transmit queue is to be looked at again without a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    /// The guest notifies.
    No,
    /// When the others have had their turn.
    Soon,
    /// They have had it.
    Now,
}

impl Pair {
    pub(crate) fn new(
        index: usize,
        tap: Arc<Tap>,
        shared: Arc<Shared>,
        transport: Arc<dyn Transport>,
        receiver: Receiver,
        transmitter: Transmitter,
        control: Option<ControlQueue>,
    ) -> Self {
        Self {
            index,
            tap,
            shared,
            transport,
            receiver,
            transmitter,
            control,
            interest: None,
            buffers: true,
            tap_is_full: false,
            another: Attempt::default(),
            stay: Stay::No,
            staying: Attempt::default(),
        }
    }

    /// What the thread is to listen to.
    pub(crate) fn events(&mut self) -> Result<Events, ActivateError> {
        let listen = || {
            let events = Events::new()?;
            events.add_signal(self.receiver.ring().notify(), RECEIVE)?;
            events.add_signal(self.transmitter.ring().notify(), TRANSMIT)?;
            if let Some(control) = &self.control {
                events.add(control.ring().notify(), CONTROL, Interest::Read)?;
            }
            if let Some(wake) = self.shared.wake(self.index) {
                events.add(wake, WAKE, Interest::Read)?;
            }
            Ok(events)
        };
        let events = listen().map_err(|source| ActivateError::Worker { name: self.name(), source })?;
        self.listen_to_tap(&events, Some(Interest::Read));
        Ok(events)
    }

    /// The thread's name.
    pub(crate) fn name(&self) -> String {
        format!("net{}-{}", self.index, self.tap.name())
    }

    fn receive(&mut self) -> Result<(), RingError> {
        let (Some(tap), Some(counters)) = (self.tap.queue(self.index), self.shared.counters(self.index))
        else {
            return Ok(());
        };
        let asks = self.another.is_due();
        let budget = if asks { BUDGET } else { 1 };
        let received = self.receiver.receive(tap, budget, self.shared.link_is_up(), counters)?;
        if asks {
            self.another.made(self.receiver.last_count() > 1);
        }
        match received {
            // The tap reports itself as long as there is more.
            Received::TapIsEmpty | Received::More => self.buffers = true,
            Received::NoBuffers => self.buffers = false,
            Received::TapFailed(error) => return self.tap_failed(&error),
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), RingError> {
        let (Some(tap), Some(counters)) = (self.tap.queue(self.index), self.shared.counters(self.index))
        else {
            return Ok(());
        };
        let again = self.stay == Stay::Now;
        // Who has stayed for good reason goes on doing so.
        let stays = again || self.staying.is_due();
        let sent = self.transmitter.send(tap, BUDGET, stays, self.shared.link_is_up(), counters)?;
        if again {
            self.staying.made(sent != Sent::QueueIsEmpty);
        }
        self.tap_is_full = sent == Sent::TapIsFull;
        self.stay = match sent {
            Sent::QueueIsEmptyYet | Sent::More => Stay::Soon,
            Sent::QueueIsEmpty | Sent::TapIsFull => Stay::No,
        };
        Ok(())
    }

    /// A queue that takes no part fails, until it takes part again; the first one always does, and so its interface is gone.
    fn tap_failed(&mut self, error: &std::io::Error) -> Result<(), RingError> {
        self.interest = None;
        if self.index == 0 {
            self.shared.tap_failed(error);
        }
        Ok(())
    }

    fn tap_has_error(&self) -> bool {
        let Some(tap) = self.tap.queue(self.index) else { return true };
        let mut fds = [PollFd::new(tap, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    fn listen_to_tap(&mut self, events: &Events, interest: Option<Interest>) {
        let Some(tap) = self.tap.queue(self.index).map(AsFd::as_fd) else { return };
        // Whatever it was before. Failures are those of a descriptor that is listened to already, or not any more.
        let listening = match interest {
            Some(wanted) => events.modify(tap, TAP, wanted).or_else(|_| events.add(tap, TAP, wanted)).is_ok(),
            None => {
                let _ = events.remove(tap);
                false
            }
        };
        self.interest = interest.filter(|_| listening);
    }

    fn handle(&mut self, token: u64) -> Result<(), RingError> {
        match token {
            TAP => {
                if !self.buffers && !self.tap_is_full {
                    // Nothing is waited for: it is from before that was so, or an error, which would be reported for ever.
                    return if self.tap_has_error() {
                        self.tap_failed(&std::io::Error::from_raw_os_error(libc::EBADFD))
                    } else {
                        Ok(())
                    };
                }
                if self.buffers {
                    self.receive()?;
                }
                if self.tap_is_full {
                    self.send()?;
                }
            }
            RECEIVE => self.receive()?,
            // Otherwise it goes on when the tap says so.
            TRANSMIT if !self.tap_is_full => self.send()?,
            CONTROL => {
                if let Some(control) = &mut self.control {
                    control.serve()?;
                }
            }
            WAKE => {
                if let Some(wake) = self.shared.wake(self.index) {
                    let _ = wake.take();
                }
                // Perhaps the queue takes part again. If not, this comes to nothing. What is listened to goes on being known: a tap that was taken to be
                // listened to for nothing would report a frame without a buffer for ever.
                self.interest.get_or_insert(Interest::Nothing);
                self.receive()?;
                self.send()?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Pair {
    /// After `handled`, what the thread waits for: `before`, it waited for that on the tap.
    fn go_on(
        &mut self,
        handled: Result<(), RingError>,
        before: Option<Interest>,
        events: &Events,
    ) -> ControlFlow<()> {
        if let Err(error) = handled {
            self.transport.needs_reset(&error);
            return ControlFlow::Break(());
        }
        let wanted = self.interest.map(|_| match (self.buffers, self.tap_is_full) {
            (true, false) => Interest::Read,
            (false, true) => Interest::Write,
            (true, true) => Interest::Both,
            // An interface that is removed meanwhile is noticed when the guest has buffers again. The removal leaves an error, but wakes as a frame does (`tun_detach_all`,
            // Linux 6.12, `drivers/net/tun.c`), and epoll looks for errors only if it is woken with something that is waited for. It would be with `EPOLLPRI`, which
            // a tap wakes with and never has; but so would it by each frame that comes while a guest is slow, and under a flood the thread took twice the CPU time.
            (false, false) => Interest::Nothing,
        });
        if wanted != before {
            self.listen_to_tap(events, wanted);
        }
        ControlFlow::Continue(())
    }
}

impl EventHandler for Pair {
    fn ready(&mut self, token: u64, events: &Events) -> ControlFlow<()> {
        let before = self.interest;
        let handled = self.handle(token);
        self.go_on(handled, before, events)
    }

    fn settled(&mut self, events: &Events) -> ControlFlow<(), bool> {
        match self.stay {
            Stay::No => return ControlFlow::Continue(false),
            Stay::Soon => {}
            Stay::Now => {
                let before = self.interest;
                let handled = self.send();
                self.go_on(handled, before, events)?;
            }
        }
        if self.stay == Stay::Soon {
            self.stay = Stay::Now;
        }
        ControlFlow::Continue(self.stay == Stay::Now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_to_nothing_is_tried_ever_less_often_and_what_comes_well_each_time() {
        let mut attempt = Attempt::default();
        let mut until_due = || {
            let rest = std::iter::from_fn(|| (!attempt.is_due()).then_some(())).count();
            attempt.made(false);
            rest
        };
        let rests: Vec<usize> = (0..6).map(|_| until_due()).collect();
        assert_eq!(rests, [0, 1, 3, 7, 15, 15]);
        attempt.made(true);
        assert!(attempt.is_due() && attempt.is_due());
    }
}
