// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use gsi_routing::GsiHandle;
use irq_types::{Gsi, TriggerMode};

use crate::edge::{check_free, check_line, disarm, wired_to};
use crate::eventfd::Eventfd;
use crate::lock::lock;
use crate::wiring::Irqfd;
use crate::{Error, LevelLine, Wiring};

/// One device's end of a level-triggered line: a trigger eventfd, a resample eventfd and, once wired, a resampling irqfd.
///
/// # How a level crosses an eventfd
///
/// An eventfd can say "up" and nothing else. The kernel keeps the line up until the guest's EOI, lowers it then, and signals the resample eventfd;
/// a device that still wants attention raises the line again (Linux 6.12, `virt/kvm/eventfd.c`, `irqfd_resampler_ack`; Documentation/virt/kvm/api.rst,
/// section 4.75). So
///
/// - [`assert`](LevelLine::assert) raises the line now;
/// - [`deassert`](LevelLine::deassert) says that nobody will raise it again. The line itself falls at the EOI. A device
///   that withdraws before the guest has looked causes one interrupt for which the driver finds no reason, as with a
///   glitch on a real wire;
/// - the [`Resampler`] raises it again while the device's end is high. Somebody must run it: the event loop, or whoever the
///   eventfds are [handed over](Self::hand_over) to.
///
/// # Sharing
///
/// Several triggers may be wired to one GSI, one for each device. The line is up as soon as one of them is asserted; at the EOI all are asked, and those
/// that are still high raise it again. The kernel does this for irqfds of one GSI by itself, so devices that share a line share nothing
/// in this process, and one of them may be handed over while the others are not.
///
/// # Starting high
///
/// The line exists before it is wired, and may be asserted then: it goes up the moment it is wired.
///
/// Dropping the trigger disarms it, and the kernel lowers its end.
#[derive(Debug)]
pub struct LevelTrigger {
    core: Arc<LevelCore>,
    irqfd: Mutex<Option<Irqfd>>,
}

/// The device's end is high.
const HIGH: u8 = 1;
/// Somebody else has the eventfds.
const HANDED_OVER: u8 = 2;

#[derive(Debug)]
struct LevelCore {
    event: Arc<Eventfd>,
    resample: Eventfd,
    /// [`HIGH`] and [`HANDED_OVER`], in one: an end that is somebody else's never goes high here, whoever is just raising it.
    end: AtomicU8,
    wired: AtomicBool,
    /// Held while an EOI is looked at, so that handing over waits for it: it would take the new owner's first EOI, or raise a line that is
    /// no longer ours.
    resampling: Mutex<()>,
    raised: AtomicU64,
    resampled: AtomicU64,
    raised_again: AtomicU64,
}

/// How a device's end of a level-triggered line is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelState {
    /// The trigger eventfd's number in this process.
    pub eventfd: RawFd,
    /// The resample eventfd's number in this process.
    pub resamplefd: RawFd,
    /// What it is wired to, if it is.
    pub gsi: Option<Gsi>,
    /// Whether this process's device drives it high.
    pub high: bool,
    /// Whether somebody else has the eventfds.
    pub handed_over: bool,
    /// Whether the guest has ended an interrupt and nobody has taken the EOI yet. If it stays so, nobody runs the [`Resampler`]; or, handed over, the new owner does not wait for EOIs.
    pub resample_due: bool,
    /// How often this process's device has raised the line.
    pub raised: u64,
    /// How often the resampler has run because of an EOI.
    pub resampled: u64,
    /// How often it has raised the line again.
    pub raised_again: u64,
}

/// The eventfds of a line that somebody else drives.
#[derive(Debug, Clone, Copy)]
pub struct LevelFds<'a> {
    /// A signal raises the line.
    pub trigger: BorrowedFd<'a>,
    /// The kernel signals it after the guest's EOI, when it has lowered the line.
    pub resample: BorrowedFd<'a>,
}

impl LevelTrigger {
    /// What the device tree must say of the line. The kernel reports the EOI only for interrupts that the guest has configured so.
    pub const MODE: TriggerMode = TriggerMode::Level;

    /// A line, low, that is wired to nothing yet.
    ///
    /// # Errors
    /// [`Error::Eventfd`] when the process has no descriptor left.
    pub fn new() -> Result<Self, Error> {
        let core = LevelCore {
            event: Arc::new(Eventfd::new()?),
            resample: Eventfd::new()?,
            end: AtomicU8::new(0),
            wired: AtomicBool::new(false),
            resampling: Mutex::new(()),
            raised: AtomicU64::new(0),
            resampled: AtomicU64::new(0),
            raised_again: AtomicU64::new(0),
        };
        Ok(Self { core: Arc::new(core), irqfd: Mutex::new(None) })
    }

    /// The device's end.
    #[must_use]
    pub fn line(&self) -> Arc<dyn LevelLine> {
        self.core.clone()
    }

    /// Wires it to the line that `gsi` is routed to, up at once if the device's end is high. Other triggers may be wired to the same GSI.
    ///
    /// # Errors
    /// [`Error::AlreadyWired`]; [`Error::NotALine`] if the GSI fires no line; [`Error::OtherVm`]; [`Error::Kernel`]. It is not wired then.
    pub fn wire(&self, wiring: &Wiring, gsi: &Arc<GsiHandle>) -> Result<(), Error> {
        let mut irqfd = lock(&self.irqfd);
        check_free(irqfd.as_ref())?;
        check_line(gsi, Self::MODE)?;
        let core = &self.core;
        let armed = wiring.arm(wiring.ready(), core.event.clone(), Some(&core.resample), gsi.clone())?;
        // If the device's end is high, there was a count in the eventfd, and arming has raised the line for it. Not once more here: a guest that
        // has dealt with the device by now would be interrupted for nothing.
        core.wired.store(true, Ordering::SeqCst);
        *irqfd = Some(armed);
        Ok(())
    }

    /// Takes it off its line, whose end here falls. The device's own level stays, and counts when it is wired again.
    ///
    /// # Errors
    /// [`Error::Kernel`], and it is still wired; [`Error::Eventfd`], and it is not.
    pub fn unwire(&self) -> Result<(), Error> {
        let mut irqfd = lock(&self.irqfd);
        disarm(&mut irqfd)?;
        self.core.wired.store(false, Ordering::SeqCst);
        // An EOI from before is nobody's business any more, and a device that is high is to be heard of when it is wired again.
        if !self.core.is(HANDED_OVER) {
            self.core.resample.take()?;
            self.core.raise_if_high()?;
        }
        Ok(())
    }

    /// Raises the line again if the device's end is high: for a guest or an interrupt controller that was reset and has forgotten.
    ///
    /// # Errors
    /// [`Error::Eventfd`].
    pub fn refresh(&self) -> Result<(), Error> {
        self.core.raise_if_high()
    }

    /// What the event loop runs when the resample eventfd is readable. The level is what the device last said on its
    /// [`line`](Self::line).
    #[must_use]
    pub fn resampler(&self) -> Resampler {
        Resampler { core: self.core.clone(), device: None }
    }

    /// As [`resampler`](Self::resampler), for a device that has to be asked. It is asked after each EOI and says whether the line is to be high again.
    #[must_use]
    pub fn resampler_for(&self, device: Arc<dyn Resample>) -> Resampler {
        Resampler { core: self.core.clone(), device: Some(device) }
    }

    /// The two eventfds, for whoever drives the line from outside while the resampling is still done here: VFIO's trigger, with a
    /// [`Resample`] that unmasks.
    #[must_use]
    pub fn fds(&self) -> LevelFds<'_> {
        LevelFds { trigger: self.core.event.as_fd(), resample: self.core.resample.as_fd() }
    }

    /// Gives both eventfds to somebody in the kernel, VFIO's INTx trigger and unmask: device → irqfd and EOI → unmask then go without
    /// userspace. From now on this trigger only keeps the irqfd armed: the device's end answers [`Error::HandedOver`], and resamplers leave
    /// the resample eventfd alone. The end must be low, or it would stay up with nobody to lower it: it is taken low here.
    ///
    /// The order that loses no interrupt is the new owner's to keep: mask the device, wire, hand over, unmask. A [`Resampler`] that is running is
    /// waited for, so this is not for a [`Resample`] to call.
    pub fn hand_over(&self) -> LevelFds<'_> {
        let _no_eoi_is_looked_at = lock(&self.core.resampling);
        self.core.end.store(HANDED_OVER, Ordering::SeqCst);
        self.fds()
    }

    /// Forgets an EOI that the eventfds' new owner has seen, but left in the resample eventfd's counter: VFIO looks at an unmask eventfd when it gets it, and takes the count of later
    /// signals only. To be called when it has it, so that [`LevelState::resample_due`] is about EOIs that nobody takes. Whether there was one.
    ///
    /// # Errors
    /// [`Error::Eventfd`].
    pub fn forget_eoi(&self) -> Result<bool, Error> {
        Ok(self.core.resample.take()? != 0)
    }

    /// The eventfds are ours again, after [`hand_over`](Self::hand_over): resamplers work again, and should be run once, since an EOI may have
    /// come between.
    pub fn take_back(&self) {
        self.core.end.fetch_and(!HANDED_OVER, Ordering::SeqCst);
    }

    /// How it is doing.
    ///
    /// # Errors
    /// [`Error::Eventfd`] when an eventfd cannot be polled.
    pub fn state(&self) -> Result<LevelState, Error> {
        let core = &self.core;
        Ok(LevelState {
            eventfd: core.event.number(),
            resamplefd: core.resample.number(),
            gsi: wired_to(lock(&self.irqfd).as_ref()),
            high: core.is(HIGH),
            handed_over: core.is(HANDED_OVER),
            resample_due: core.resample.is_signalled()?,
            raised: core.raised.load(Ordering::Relaxed),
            resampled: core.resampled.load(Ordering::Relaxed),
            raised_again: core.raised_again.load(Ordering::Relaxed),
        })
    }
}

impl LevelCore {
    fn is(&self, bit: u8) -> bool {
        self.end.load(Ordering::SeqCst) & bit != 0
    }

    /// Takes the device's end down; whether it was up.
    fn go_low(&self) -> bool {
        self.end.fetch_and(!HIGH, Ordering::SeqCst) & HIGH != 0
    }

    fn raise_if_high(&self) -> Result<(), Error> {
        if self.is(HIGH) { self.event.signal() } else { Ok(()) }
    }

    /// Takes the device's end up and raises the line, unless it was up: then it is raised, or a resampler is about to look at it.
    fn go_high(&self, count: &AtomicU64) -> Result<(), Error> {
        let up = |end| (end & HANDED_OVER == 0).then_some(end | HIGH);
        let before = self.end.fetch_update(Ordering::SeqCst, Ordering::SeqCst, up);
        if before.map_err(|_| Error::HandedOver)? & HIGH != 0 {
            return Ok(());
        }
        // Back down, so that the next attempt does not believe that this one succeeded.
        self.event.signal().inspect_err(|_| {
            self.go_low();
        })?;
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl LevelLine for LevelCore {
    fn set_level(&self, high: bool) -> Result<(), Error> {
        if high {
            return self.go_high(&self.raised);
        }
        if self.is(HANDED_OVER) {
            return Err(Error::HandedOver);
        }
        if self.go_low() && !self.wired.load(Ordering::SeqCst) {
            // Nobody has seen it yet, so nobody need. If it is being wired at this moment, the guest may see it once.
            self.event.take()?;
            // What was taken may have been another thread's assertion that came after the look.
            self.raise_if_high()?;
        }
        Ok(())
    }
}

/// A device that has to be asked for its level after an EOI.
pub trait Resample: Send + Sync {
    /// The guest has ended the interrupt and the line has been lowered. Whether the device still has something to say, so that the line
    /// is to be raised again. What the device asserts by itself while being asked is not lost.
    fn resampled(&self) -> bool;
}

/// The way back of a level-triggered line: after the guest's EOI, raises the line again while there is a reason to.
///
/// Whoever runs the event loop polls it ([`AsFd`]) and calls [`run`](Self::run) when it is readable. With the feature `event-manager` it is a
/// ready-made subscriber.
pub struct Resampler {
    core: Arc<LevelCore>,
    device: Option<Arc<dyn Resample>>,
}

impl Resampler {
    /// Looks whether the guest has ended an interrupt since the last call, and if so, raises the line again if it is to be high.
    /// Returns whether there was an EOI. Does nothing while the eventfds are handed over.
    ///
    /// # Errors
    /// [`Error::Eventfd`].
    pub fn run(&self) -> Result<bool, Error> {
        let core = &self.core;
        let _hand_over_waits = lock(&core.resampling);
        // Take first, look then: an EOI that comes in between makes the eventfd readable again.
        if core.is(HANDED_OVER) || core.resample.take()? == 0 {
            return Ok(false);
        }
        core.resampled.fetch_add(1, Ordering::Relaxed);
        match &self.device {
            None => {
                if core.is(HIGH) {
                    core.event.signal()?;
                    core.raised_again.fetch_add(1, Ordering::Relaxed);
                }
            }
            Some(device) => {
                // Down first, as the kernel has taken the line. What the device asserts from here on then goes up by itself, whether or
                // not its answer accounts for it.
                core.go_low();
                if device.resampled() {
                    core.go_high(&core.raised_again)?;
                }
            }
        }
        Ok(true)
    }

    /// Whether the eventfds are handed over, so that there is nothing to run.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.core.is(HANDED_OVER)
    }
}

impl AsFd for Resampler {
    /// The resample eventfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.resample.as_fd()
    }
}

impl std::fmt::Debug for Resampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resampler").field("core", &self.core).finish_non_exhaustive()
    }
}
