// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use irq_types::{DeviceId, Gsi, MsiMessage};

use crate::eventfd::Eventfd;
use crate::gate::{Gate, Passage};
use crate::lock::lock;
use crate::settle::Vectors;
use crate::{Error, MsiVector};

/// The part of a vector that the device's thread works on, without a lock.
#[derive(Debug)]
pub(crate) struct VectorCore {
    pub(crate) gate: Gate,
    /// Made when somebody first needs it: most vectors of most devices are never used, and descriptors are scarce.
    event: OnceLock<Arc<Eventfd>>,
    /// Whether an irqfd listens. Changes under the group's lock only.
    pub(crate) armed: AtomicBool,
    /// Signals of this process that went to the eventfd at once.
    passed: AtomicU64,
    /// Signals of this process that were held.
    held: AtomicU64,
    /// How often held signals were let go.
    pub(crate) released: AtomicU64,
}

impl VectorCore {
    /// A masked vector, nothing pending.
    pub(crate) fn new() -> Self {
        Self {
            gate: Gate::closed(),
            event: OnceLock::new(),
            armed: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            held: AtomicU64::new(0),
            released: AtomicU64::new(0),
        }
    }

    /// The eventfd, made now if there is none. Called under the group's lock.
    pub(crate) fn make_event(&self) -> Result<&Arc<Eventfd>, Error> {
        if let Some(event) = self.event.get() {
            return Ok(event);
        }
        let made = Arc::new(Eventfd::new()?);
        Ok(self.event.get_or_init(|| made))
    }

    /// The eventfd, if there is one.
    pub(crate) fn event(&self) -> Option<&Arc<Eventfd>> {
        self.event.get()
    }

    fn trigger(&self) -> Result<(), Error> {
        // The gate is closed until there is an eventfd.
        let pass = || self.event().map_or(Ok(()), |event| event.signal());
        let count = match self.gate.signal(pass)? {
            Passage::Passed => &self.passed,
            Passage::Held => &self.held,
        };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a signal waits: in the gate, or in the counter of an eventfd that no irqfd listens to. While one listens, a count is
    /// what arming has delivered already.
    pub(crate) fn pending(&self) -> Result<bool, Error> {
        if self.gate.is_pending() {
            return Ok(true);
        }
        match self.event() {
            Some(event) if !self.armed.load(Ordering::SeqCst) => event.is_signalled(),
            _ => Ok(false),
        }
    }

    /// Forgets what is pending. Called under the group's lock.
    pub(crate) fn clear_pending(&self) -> Result<(), Error> {
        self.gate.take_pending();
        match self.event() {
            Some(event) if !self.armed.load(Ordering::SeqCst) => event.take().map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Lets signals through to `event`, which an irqfd listens to, and what was held as one.
    pub(crate) fn let_pass(&self, event: &Eventfd) -> Result<(), Error> {
        if self.gate.open() {
            event.signal().inspect_err(|_| self.gate.hold_one())?;
            self.released.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Signals are held from now on, or, if somebody else has the eventfd, will stay in its counter once it is disarmed.
    pub(crate) fn hold(&self) {
        self.gate.close();
    }

    pub(crate) fn counts(&self) -> VectorCounts {
        VectorCounts {
            passed: self.passed.load(Ordering::Relaxed),
            held: self.held.load(Ordering::Relaxed),
            released: self.released.load(Ordering::Relaxed),
        }
    }
}

/// One message-signalled interrupt as a device holds it: an eventfd, and behind it mask, pending and route. From
/// [`VectorGroup::vector`](crate::VectorGroup::vector).
///
/// The device knows neither message nor GSI nor whether the guest has masked it. It calls [`trigger`](MsiVector::trigger), from any thread,
/// which is one write to an eventfd while the vector is unmasked, and one atomic operation while it is masked; or it gives the
/// [`eventfd`](Self::eventfd) to somebody who signals it from the kernel or from another process.
///
/// Clones are the same vector. It does not keep its group alive: when the group is gone, or has shrunk, signals lead nowhere.
#[derive(Clone)]
pub struct InterruptVector {
    core: Arc<VectorCore>,
    index: usize,
    group: Weak<Mutex<Vectors>>,
}

impl InterruptVector {
    pub(crate) fn new(core: Arc<VectorCore>, index: usize, group: Weak<Mutex<Vectors>>) -> Self {
        Self { core, index, group }
    }

    /// Which of the device's vectors it is.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The eventfd, for somebody else to signal: VFIO, vhost, another process. It exists from now on, long before the guest programs the
    /// vector, and stays the same.
    ///
    /// From now on the vector cannot hold signals back in this process. Masking disarms the irqfd instead, and what is signalled
    /// meanwhile stays in the eventfd's counter: that is the pending bit then. It costs an ioctl to mask and one to unmask.
    ///
    /// # Errors
    /// [`Error::Gone`]; [`Error::Eventfd`] when the process has no descriptor left; [`Error::Kernel`] if the vector is masked and cannot be
    /// disarmed.
    pub fn eventfd(&self) -> Result<BorrowedFd<'_>, Error> {
        if !self.core.gate.is_bypassed() {
            let group = self.group.upgrade().ok_or(Error::Gone)?;
            lock(&group).share_eventfd(self.index, &self.core)?;
        }
        self.core.event().map(|event| event.as_fd()).ok_or(Error::Gone)
    }
}

impl MsiVector for InterruptVector {
    fn trigger(&self) -> Result<(), Error> {
        self.core.trigger()
    }

    fn is_pending(&self) -> bool {
        self.core.pending().unwrap_or(false)
    }
}

impl fmt::Debug for InterruptVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptVector").field("index", &self.index).field("core", &self.core).finish()
    }
}

/// What has passed through a vector. Signals of those who hold the eventfd themselves are not counted by anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VectorCounts {
    /// Signals that went to the eventfd at once.
    pub passed: u64,
    /// Signals that came while the vector could not deliver.
    pub held: u64,
    /// How often what was held was let go: each time as one interrupt, however many signals it stands for.
    pub released: u64,
}

/// Why a vector delivers nothing now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// The capability is disabled.
    Disabled,
    /// The guest has masked the whole function.
    FunctionMasked,
    /// The guest allows the device fewer vectors (MSI).
    NotAllowed,
    /// The guest has masked the vector.
    Masked,
    /// The guest has not written a message yet.
    NotProgrammed,
    /// It should deliver, and something failed. Any call on the group tries again.
    Failed(Error),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("the capability is disabled"),
            Self::FunctionMasked => f.write_str("the function is masked"),
            Self::NotAllowed => f.write_str("the guest allows fewer vectors"),
            Self::Masked => f.write_str("the vector is masked"),
            Self::NotProgrammed => f.write_str("the guest has written no message"),
            Self::Failed(error) => {
                let error: &dyn std::error::Error = error;
                write!(f, "{error}")?;
                let mut source = error.source();
                while let Some(cause) = source {
                    write!(f, ": {cause}")?;
                    source = cause.source();
                }
                Ok(())
            }
        }
    }
}

/// Where a vector is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VectorState {
    /// Which of the device's vectors.
    pub index: usize,
    /// The eventfd's number in this process, once somebody has needed it.
    pub eventfd: Option<RawFd>,
    /// Whether somebody else may signal the eventfd.
    pub eventfd_shared: bool,
    /// What the guest has written.
    pub message: Option<MsiMessage>,
    /// The GSI, once it has one.
    pub gsi: Option<Gsi>,
    /// The route in the kernel. Until the next unmask it may be behind `message`.
    pub route: Option<(MsiMessage, DeviceId)>,
    /// Whether an irqfd listens to the eventfd.
    pub armed: bool,
    /// The vector's own mask bit.
    pub masked: bool,
    /// The pending bit.
    pub pending: bool,
    /// Why nothing would be delivered now; `None` if a signal would reach the guest's interrupt controller.
    pub obstacle: Option<Obstacle>,
    /// What has passed through.
    pub counts: VectorCounts,
}

impl fmt::Display for VectorState {
    /// One line a vector, for a person who asks why an interrupt does not arrive.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vector {}: ", self.index)?;
        match &self.obstacle {
            None => f.write_str("delivers")?,
            Some(obstacle) => write!(f, "holds, since {obstacle}")?,
        }
        if self.pending {
            f.write_str("; pending")?;
        }
        if let Some(message) = self.message {
            write!(f, "; message {message}")?;
        }
        if let Some(gsi) = self.gsi {
            write!(f, "; {gsi}")?;
        }
        match self.route {
            Some((message, _)) if Some(message) != self.message => write!(f, " still routed to {message}")?,
            Some((_, sender)) => write!(f, " routed, from {sender}")?,
            None => {}
        }
        if let Some(fd) = self.eventfd {
            let armed = if self.armed { "armed" } else { "not armed" };
            let shared = if self.eventfd_shared { ", shared" } else { "" };
            write!(f, "; eventfd {fd} {armed}{shared}")?;
        }
        let VectorCounts { passed, held, released } = self.counts;
        write!(f, "; {passed} passed, {held} held, {released} released")
    }
}
