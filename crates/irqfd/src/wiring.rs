// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;
use std::sync::Arc;

use gsi_routing::{GsiHandle, Router};
use irqchip::{IrqchipReady, IrqfdBinder, VmId};

use crate::Error;
use crate::eventfd::Eventfd;

/// What triggers and vectors are wired to: a VM's irqfds and its routing table.
///
/// A [`Router`] can only be made with the token of an initialised irqchip, so whoever holds a wiring may arm: before the initialisation the
/// kernel answers `EAGAIN`, and at the initialisation it replaces the routes. Clones are the same wiring.
#[derive(Clone)]
pub struct Wiring {
    binder: Arc<dyn IrqfdBinder>,
    router: Router,
}

impl Wiring {
    /// Wiring on the VM of `router`.
    ///
    /// # Errors
    /// [`Error::OtherVm`] if `binder` is another VM's.
    pub fn new(binder: Arc<dyn IrqfdBinder>, router: Router) -> Result<Self, Error> {
        if binder.vm_id() != router.vm_id() {
            return Err(Error::OtherVm { what: "the irqfd binder" });
        }
        Ok(Self { binder, router })
    }

    /// The routing table.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The token of the VM's irqchip.
    #[must_use]
    pub fn ready(&self) -> &IrqchipReady {
        self.router.ready()
    }

    /// Which VM.
    #[must_use]
    pub fn vm_id(&self) -> VmId {
        self.router.vm_id()
    }

    /// Arms an irqfd: from now on `event` raises `gsi`. The token is asked for although the wiring has one, so that each place that
    /// arms shows why it may.
    pub(crate) fn arm(
        &self,
        _ready: &IrqchipReady,
        event: Arc<Eventfd>,
        resample: Option<&Eventfd>,
        gsi: Arc<GsiHandle>,
    ) -> Result<Irqfd, Error> {
        use std::os::fd::AsFd;
        if gsi.router().vm_id() != self.vm_id() {
            return Err(Error::OtherVm { what: "the GSI" });
        }
        self.binder.assign_irqfd(event.as_fd(), gsi.gsi(), resample.map(AsFd::as_fd))?;
        Ok(Irqfd { binder: self.binder.clone(), event, gsi: Some(gsi) })
    }
}

impl fmt::Debug for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring").field("vm", &self.vm_id()).field("router", &self.router).finish()
    }
}

/// An armed irqfd. It keeps the eventfd open and the GSI taken for as long as it is armed, and disarms when dropped.
pub(crate) struct Irqfd {
    binder: Arc<dyn IrqfdBinder>,
    event: Arc<Eventfd>,
    /// `None` once it is disarmed.
    gsi: Option<Arc<GsiHandle>>,
}

impl Irqfd {
    /// The GSI it raises.
    pub(crate) fn gsi(&self) -> Option<&Arc<GsiHandle>> {
        self.gsi.as_ref()
    }

    fn deassign(&mut self) -> Result<(), irqchip::Error> {
        use std::os::fd::AsFd;
        if let Some(gsi) = &self.gsi {
            self.binder.deassign_irqfd(self.event.as_fd(), gsi.gsi())?;
            self.gsi = None;
        }
        Ok(())
    }

    /// Disarms it. No signal is lost on the way, though `irqfd_shutdown` throws away what it finds in the eventfd's counter.
    ///
    /// With Linux 6.12, `virt/kvm/eventfd.c`, deassigning goes through three moments:
    ///
    /// 1. `irqfd_deactivate` takes the irqfd off the VM's list. It still hangs on the eventfd's wait queue, so a signal
    ///    now calls `irqfd_wakeup`, which takes the counter and, seeing that the irqfd is inactive, queues the slow injection.
    /// 2. `eventfd_ctx_remove_wait_queue` takes the counter and leaves the wait queue, both under the wait queue's lock. Each write to the eventfd
    ///    holds that same lock while it adds to the counter and calls `irqfd_wakeup`, so a write is either wholly before this moment, and was
    ///    taken by the wakeup, or wholly after it, and stays in the counter. What is thrown away here can only be a count from
    ///    before the irqfd was armed, which arming has delivered without taking it (`kvm_irqfd_assign` looks at `EPOLLIN` and queues an
    ///    injection). That it is thrown away here is what keeps it from firing a second time at the next arming.
    /// 3. `flush_work` waits for the injections queued in 1, which look up the GSI in the routing table: so the route
    ///    must still be there. Hence the order disarm → commit.
    ///
    /// So before 2 a signal is delivered, and after it the counter keeps it for the next arming. An `EFD_SEMAPHORE` eventfd
    /// would break the argument, since a wakeup takes only one of its count; this crate makes none.
    ///
    /// If the kernel refuses, the irqfd comes back, armed.
    pub(crate) fn disarm(mut self) -> Result<(), (Self, Error)> {
        match self.deassign() {
            Ok(()) => Ok(()),
            Err(e) => Err((self, e.into())),
        }
    }
}

impl Drop for Irqfd {
    fn drop(&mut self) {
        // The kernel has no reason to refuse the deassignment of an open eventfd. If it does so twice, the number must not go to
        // somebody else while this eventfd may still raise it: the GSI stays taken for the life of the VM. Closing the eventfd's last
        // descriptor, which mostly follows, then detaches the irqfd all the same (EPOLLHUP in `irqfd_wakeup`).
        if self.deassign().is_err() && self.deassign().is_err() {
            std::mem::forget(self.gsi.take());
        }
    }
}

impl fmt::Debug for Irqfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Irqfd").field("eventfd", &self.event.number()).field("gsi", &self.gsi).finish()
    }
}
