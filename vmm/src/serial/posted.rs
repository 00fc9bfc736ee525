// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Posted output: while the guest writes a lot, the kernel collects its bytes (KVM's coalesced MMIO), and no vCPU returns for them.
//!
//! A driver that works by interrupts fills the port's FIFO without looking between two bytes, and each byte is an exit to this process. From the eighth on
//! the kernel keeps them in a ring (`Documentation/virt/kvm/api.rst`, section 4.116), and whatever the port is asked next is answered after the ring's bytes have been
//! heard: the guest notices nothing. What it leaves in the ring without asking anything, a timer finds. When that has found nothing for a while, it all
//! ends: a quiet guest costs no wake-ups. A driver that looks at the port before each byte, as Linux's early console does, never comes here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::SerialPort;

/// After how many bytes without another access the kernel is asked to collect them. More than a driver writes that looks in between, fewer than
/// the smallest FIFO.
pub(super) const BURST: u32 = 8;

/// How long output may lie in the ring, in nanoseconds: 10 ms, too short to be seen.
const TICK: i64 = 10_000_000;

/// How many ticks without output end it.
pub(super) const QUIET_TICKS: u32 = 10;

/// The kernel's part: it collects what the guest writes to the port's data register.
pub trait WriteRing: Send {
    /// From now on it does.
    ///
    /// # Errors
    /// If it cannot.
    fn start(&mut self) -> io::Result<()>;

    /// From now on it does not. What it has collected stays in the ring.
    ///
    /// # Errors
    /// If it goes on.
    fn stop(&mut self) -> io::Result<()>;

    /// Takes the oldest byte out of the ring.
    fn next(&mut self) -> Option<u8>;
}

/// Whether the kernel collects, and what speaks for or against it.
#[derive(Default)]
pub(super) struct Posted {
    ring: Option<(Box<dyn WriteRing>, Arc<OwnedFd>)>,
    /// How many bytes the guest has written one after the other.
    in_a_row: u32,
    collecting: bool,
    /// How many ticks ago the last byte was found in the ring.
    quiet: u32,
}

impl Posted {
    pub(super) fn enable(&mut self, ring: Box<dyn WriteRing>, timer: Arc<OwnedFd>) {
        self.ring = Some((ring, timer));
    }

    /// Takes the oldest byte that the guest has written and nobody has heard of.
    pub(super) fn next(&mut self) -> Option<u8> {
        if !self.collecting {
            return None;
        }
        let byte = self.ring.as_mut().and_then(|(ring, _)| ring.next());
        if byte.is_some() {
            self.quiet = 0;
        }
        byte
    }

    /// The guest did something else than writing a byte.
    pub(super) fn other_access(&mut self) {
        self.in_a_row = 0;
    }

    /// A vCPU returned for a byte.
    pub(super) fn byte_written(&mut self) {
        self.in_a_row += 1;
        if self.in_a_row < BURST || self.collecting {
            return;
        }
        self.in_a_row = 0;
        let Some((ring, timer)) = &mut self.ring else { return };
        // The timer first: output must not lie where nobody looks.
        match set_timer(timer, TICK).and_then(|()| ring.start()) {
            Ok(()) => {
                self.collecting = true;
                self.quiet = 0;
            }
            Err(e) => {
                tracing::debug!("each byte of output remains an exit: {e}");
                let _ = set_timer(timer, 0);
                self.ring = None;
            }
        }
    }

    /// A tick is over, after what was in the ring has been taken out. Returns whether that has to be done once more, since the kernel does not collect any
    /// longer.
    pub(super) fn tick(&mut self) -> bool {
        let Some((ring, timer)) = &mut self.ring else { return false };
        self.quiet += 1;
        if !self.collecting || self.quiet < QUIET_TICKS {
            return false;
        }
        if let Err(e) = ring.stop() {
            tracing::debug!("the kernel goes on collecting output: {e}");
            self.quiet = 0;
            return false;
        }
        // It fails for a wrong timer only.
        let _ = set_timer(timer, 0);
        true
    }

    /// The kernel does not collect any longer, and its ring is empty.
    pub(super) fn ended(&mut self) {
        self.collecting = false;
    }
}

fn set_timer(timer: &OwnedFd, nanoseconds: i64) -> io::Result<()> {
    let period = Timespec { tv_sec: 0, tv_nsec: nanoseconds };
    let periodic = Itimerspec { it_interval: period, it_value: period };
    Ok(timerfd_settime(timer, TimerfdTimerFlags::empty(), &periodic).map(drop)?)
}

/// Looks for output that the guest has left in the ring, in the event loop, while the kernel collects.
pub struct Ticks {
    port: Arc<SerialPort>,
    timer: Arc<OwnedFd>,
}

impl Ticks {
    /// Lets `ring` collect the output of `port`. Nothing is asked of the kernel before the guest writes a lot.
    ///
    /// # Errors
    /// If there is no descriptor left for the timer.
    pub fn new(port: Arc<SerialPort>, ring: Box<dyn WriteRing>) -> io::Result<Self> {
        let timer = Arc::new(timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?);
        port.let_the_kernel_collect(ring, Arc::clone(&timer));
        Ok(Self { port, timer })
    }

    /// What becomes readable when it is time to look.
    #[must_use]
    pub fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

impl MutEventSubscriber for Ticks {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(e) = ops.add(Events::new(&self.timer, EventSet::IN)) {
            tracing::error!("the guest's output may be late: {e}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        let mut count = [0; 8];
        if rustix::io::read(&self.timer, &mut count).is_ok() {
            self.port.tick();
        }
    }
}
