// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asking the guest to power itself off: its power button is pressed, let go, and its patience with us counted.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use vmm_sys_util::eventfd::EventFd;

use crate::gpio::Gpio;
use crate::outcome::{Outcome, Verdict};
use crate::signals::Taken;

/// How long the button is held: longer than drivers wait for a contact to stop bouncing (5 ms in Linux's `gpio_keys`).
const HELD: Duration = Duration::from_millis(100);

/// What the events' `data` says they are.
const SIGNAL: u32 = 0;
const TIMER: u32 = 1;
const REQUEST: u32 = 2;

/// Turns ending signals into an outcome. SIGTERM is first passed on to the guest as a press of its power button, if it has a driver for
/// that, and is an outcome of its own when it comes again or the guest takes too long.
pub struct Signals {
    taken: Taken,
    verdict: Verdict,
    button: Arc<Gpio>,
    timer: OwnedFd,
    request: Arc<EventFd>,
    patience: Duration,
    asked: Asked,
}

/// How far asking the guest has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Not at all.
    No,
    /// The button is down.
    Pressing,
    /// The button is up again, and the guest has some time.
    Waiting,
}

impl Signals {
    /// Acts on the signals in `taken`; a guest that is asked to power off has `patience`.
    ///
    /// # Errors
    /// If there is no descriptor left for the timer.
    pub fn new(taken: Taken, verdict: Verdict, button: Arc<Gpio>, patience: Duration) -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let request = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        Ok(Self { taken, verdict, button, timer, request, patience, asked: Asked::No })
    }

    /// Signalled by whoever wants the guest to power itself off. As SIGTERM, but asking again changes nothing.
    #[must_use]
    pub fn request(&self) -> Arc<EventFd> {
        Arc::clone(&self.request)
    }

    fn signal(&mut self, number: i32) {
        let ask = number == libc::SIGTERM
            && self.asked == Asked::No
            && !self.patience.is_zero()
            && self.button.guest_listens();
        if ask {
            self.ask();
        } else {
            self.verdict.set(Outcome::Signal(number));
        }
    }

    fn ask(&mut self) {
        tracing::info!("asking the guest to power off; it has {} s", self.patience.as_secs());
        self.button.press(true);
        self.asked = Asked::Pressing;
        self.after(HELD);
    }

    fn elapsed(&mut self) {
        if self.asked == Asked::Pressing {
            self.button.press(false);
            self.asked = Asked::Waiting;
            self.after(self.patience);
        } else {
            tracing::warn!("the guest did not power off within {} s: ending it", self.patience.as_secs());
            self.verdict.set(Outcome::Signal(libc::SIGTERM));
        }
    }

    fn after(&self, time: Duration) {
        let time = Timespec::try_from(time).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let once = Itimerspec { it_interval: Timespec::default(), it_value: time };
        if let Err(e) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            tracing::error!("cannot wait for the guest's end: {e}");
            self.verdict.set(Outcome::Signal(libc::SIGTERM));
        }
    }
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let added = ops
            .add(Events::with_data(self.taken.fd(), SIGNAL, EventSet::IN))
            .and_then(|()| ops.add(Events::with_data(&self.timer, TIMER, EventSet::IN)))
            .and_then(|()| ops.add(Events::with_data(&*self.request, REQUEST, EventSet::IN)));
        if let Err(e) = added {
            tracing::error!("signals cannot be taken: {e}");
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        match events.data() {
            TIMER => {
                let mut count = [0; 8];
                if rustix::io::read(&self.timer, &mut count).is_ok() {
                    self.elapsed();
                }
            }
            REQUEST => {
                let _ = self.request.read();
                if self.asked == Asked::No {
                    self.ask();
                }
            }
            _ => {
                if let Some(number) = self.taken.next() {
                    self.signal(number);
                }
            }
        }
    }
}
