// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use gsi_routing::GsiHandle;
use irq_types::{Gsi, TriggerMode};

use crate::eventfd::Eventfd;
use crate::lock::lock;
use crate::wiring::Irqfd;
use crate::{EdgeLine, Error, Wiring};

/// An edge-triggered line: an eventfd and, once wired, an irqfd that pulses the line.
///
/// The line exists before it is wired: a device can have its end, and even signal, before the irqchip is there. What was signalled
/// early arrives, once, when it is wired. Dropping the trigger disarms it; ends that devices still hold then lead nowhere.
///
/// The guest must have the line configured as edge: on a level-configured SPI the pulse may be over before anybody looks.
#[derive(Debug)]
pub struct EdgeTrigger {
    core: Arc<EdgeCore>,
    irqfd: Mutex<Option<Irqfd>>,
}

#[derive(Debug)]
struct EdgeCore {
    event: Arc<Eventfd>,
    signals: AtomicU64,
}

/// How an edge-triggered line is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeState {
    /// The eventfd's number in this process.
    pub eventfd: RawFd,
    /// What it is wired to, if it is.
    pub gsi: Option<Gsi>,
    /// Whether a signal waits for the line to be wired.
    pub waiting: bool,
    /// Signals from this process's devices. Those of others who hold the eventfd are not counted by anybody.
    pub signals: u64,
}

impl EdgeTrigger {
    /// What the device tree must say of the line.
    pub const MODE: TriggerMode = TriggerMode::Edge;

    /// A line that is wired to nothing yet.
    ///
    /// # Errors
    /// [`Error::Eventfd`] when the process has no descriptor left.
    pub fn new() -> Result<Self, Error> {
        let core = EdgeCore { event: Arc::new(Eventfd::new()?), signals: AtomicU64::new(0) };
        Ok(Self { core: Arc::new(core), irqfd: Mutex::new(None) })
    }

    /// The device's end.
    #[must_use]
    pub fn line(&self) -> Arc<dyn EdgeLine> {
        self.core.clone()
    }

    /// The eventfd, for somebody in the kernel or another process to signal.
    #[must_use]
    pub fn eventfd(&self) -> BorrowedFd<'_> {
        self.core.event.as_fd()
    }

    /// Wires it to the line that `gsi` is routed to. Several edge triggers may be wired to one GSI.
    ///
    /// # Errors
    /// [`Error::AlreadyWired`]; [`Error::NotALine`] if the GSI fires no line; [`Error::OtherVm`]; [`Error::Kernel`]. It is not wired then.
    pub fn wire(&self, wiring: &Wiring, gsi: &Arc<GsiHandle>) -> Result<(), Error> {
        let mut irqfd = lock(&self.irqfd);
        check_free(irqfd.as_ref())?;
        check_line(gsi, Self::MODE)?;
        *irqfd = Some(wiring.arm(wiring.ready(), self.core.event.clone(), None, gsi.clone())?);
        Ok(())
    }

    /// Takes it off its line. Signals from now on wait for the next [`wire`](Self::wire).
    ///
    /// # Errors
    /// [`Error::Kernel`]; it is still wired then.
    pub fn unwire(&self) -> Result<(), Error> {
        disarm(&mut lock(&self.irqfd))
    }

    /// How it is doing.
    ///
    /// # Errors
    /// [`Error::Eventfd`] when the eventfd cannot be polled.
    pub fn state(&self) -> Result<EdgeState, Error> {
        let irqfd = lock(&self.irqfd);
        let gsi = wired_to(irqfd.as_ref());
        Ok(EdgeState {
            eventfd: self.core.event.number(),
            gsi,
            // While wired, a count in the eventfd is one that arming has delivered already.
            waiting: gsi.is_none() && self.core.event.is_signalled()?,
            signals: self.core.signals.load(Ordering::Relaxed),
        })
    }
}

impl EdgeLine for EdgeCore {
    fn signal(&self) -> Result<(), Error> {
        self.event.signal()?;
        self.signals.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// The GSI that an irqfd raises.
pub(crate) fn wired_to(irqfd: Option<&Irqfd>) -> Option<Gsi> {
    irqfd.and_then(Irqfd::gsi).map(|gsi| gsi.gsi())
}

/// Refuses to wire what is wired.
pub(crate) fn check_free(irqfd: Option<&Irqfd>) -> Result<(), Error> {
    match wired_to(irqfd) {
        Some(gsi) => Err(Error::AlreadyWired { gsi }),
        None => Ok(()),
    }
}

/// Refuses a GSI that is not routed to a line.
pub(crate) fn check_line(gsi: &GsiHandle, mode: TriggerMode) -> Result<(), Error> {
    match gsi.targets() {
        gsi_routing::Targets::Lines(_) => Ok(()),
        _ => Err(Error::NotALine { gsi: gsi.gsi(), mode }),
    }
}

/// Disarms what is armed; on failure it stays armed.
pub(crate) fn disarm(irqfd: &mut Option<Irqfd>) -> Result<(), Error> {
    match irqfd.take().map(Irqfd::disarm) {
        None | Some(Ok(())) => Ok(()),
        Some(Err((still_armed, error))) => {
            *irqfd = Some(still_armed);
            Err(error)
        }
    }
}
