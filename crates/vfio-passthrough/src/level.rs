// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A level interrupt of a device: from VFIO's trigger to the guest's line, and from the guest's EOI to VFIO's unmask.

use std::sync::Arc;

use gsi_routing::GsiHandle;
use irqfd::{LevelState, LevelTrigger, Resample, Resampler, Wiring};

use crate::Error;
use crate::device::Device;
use crate::irq_set::IrqSet;

/// The way back, from the guest's EOI to the unmasking of the device's interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ResamplePath {
    /// KVM signals the resample eventfd and VFIO unmasks on it: kernel to kernel.
    #[default]
    Kernel,
    /// The VMM's event loop is woken by it and tells VFIO to unmask. For kernels whose VFIO has no unmask eventfd, and for comparison.
    EventLoop,
}

/// A level interrupt of a VFIO device, connected to a line of the guest.
///
/// ```text
/// device ─▶ host's handler, which masks ─▶ eventfd ─▶ irqfd ─▶ GSI ─▶ line up ─▶ vCPU
/// device ◀─ unmask ◀─────────────────────── eventfd ◀─ KVM, line down ◀─ EOI ◀───┘
/// ```
///
/// The host masks the interrupt when it fires, since a level would fire for ever, and the guest cannot be waited for. So somebody has to unmask it
/// when the guest has dealt with the device, and only the EOI tells when: "level-sensitive interrupts
/// absolutely need a IRQFD and a RESAMPLEFD to be implemented in a sane way" (answer to Eric Auger of 5 May 2014 in "\[RFC PATCH 0/4\] ARM: KVM:
/// Enable the ioeventfd capability of KVM on ARM", kvmarm). If the device still asks for attention when it is unmasked, it fires again at once.
///
/// # No interrupt is lost or doubled while it is being connected
///
/// The irqfd is armed first, then the device's trigger is set, then the unmask eventfd. The device may fire as soon as it has a trigger, and the
/// guest's EOI may come before the unmask eventfd is known to VFIO: VFIO looks whether it was signalled before it was registered (Linux
/// 6.12, `drivers/vfio/virqfd.c`, `vfio_virqfd_enable`) and unmasks then. It is taken apart in reverse.
#[derive(Debug)]
pub struct LevelInterrupt {
    trigger: Arc<LevelTrigger>,
    device: Arc<Device>,
    index: u32,
    path: ResamplePath,
}

impl LevelInterrupt {
    /// Connects interrupt `index` of `device` to the line behind `gsi`, which others may share.
    ///
    /// # Errors
    /// [`Error::Interrupt`] if the line cannot be armed; [`Error::SharedInterrupt`] or [`Error::Kernel`] if VFIO refuses. It is as before then.
    pub fn connect(
        device: Arc<Device>,
        index: u32,
        wiring: &Wiring,
        gsi: &Arc<GsiHandle>,
        path: ResamplePath,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Interrupt { name: device.name().to_owned(), index, source };
        let trigger = LevelTrigger::new().map_err(failed)?;
        Self::connect_trigger(Arc::new(trigger), device, index, wiring, gsi, path)
    }

    /// The same with a trigger that lasts longer: for an interrupt that is disconnected and connected again while somebody runs its
    /// [`resampler`](Self::resampler_of).
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) fn connect_trigger(
        trigger: Arc<LevelTrigger>,
        device: Arc<Device>,
        index: u32,
        wiring: &Wiring,
        gsi: &Arc<GsiHandle>,
        path: ResamplePath,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Interrupt { name: device.name().to_owned(), index, source };
        trigger.wire(wiring, gsi).map_err(failed)?;
        // From here on, dropping it undoes what was done.
        let this = Self { trigger, device, index, path };
        let Self { trigger, device, .. } = &this;
        let fds = match path {
            ResamplePath::Kernel => trigger.hand_over(),
            ResamplePath::EventLoop => trigger.fds(),
        };
        device.set_irqs("get a trigger for", &IrqSet::trigger(index, 0, &[Some(fds.trigger)]))?;
        if path == ResamplePath::Kernel {
            device.set_irqs("get an unmask eventfd for", &IrqSet::unmask_on(index, Some(fds.resample)))?;
            // VFIO has looked, and leaves what was there: it would look like an EOI that nobody takes.
            trigger.forget_eoi().map_err(|source| Error::Interrupt {
                name: device.name().to_owned(),
                index,
                source,
            })?;
        }
        Ok(this)
    }

    /// What the event loop has to run, if the way back goes through it.
    #[must_use]
    pub fn resampler(&self) -> Option<Resampler> {
        (self.path == ResamplePath::EventLoop)
            .then(|| Self::resampler_of(&self.trigger, Arc::clone(&self.device), self.index))
    }

    /// What the event loop has to run for a trigger, connected or not.
    pub(crate) fn resampler_of(trigger: &LevelTrigger, device: Arc<Device>, index: u32) -> Resampler {
        trigger.resampler_for(Arc::new(Unmask { device, index }))
    }

    /// Which way back.
    #[must_use]
    pub const fn path(&self) -> ResamplePath {
        self.path
    }

    /// How the line is doing.
    ///
    /// # Errors
    /// If an eventfd cannot be polled.
    pub fn state(&self) -> Result<LevelState, irqfd::Error> {
        self.trigger.state()
    }
}

impl Drop for LevelInterrupt {
    fn drop(&mut self) {
        // Nobody can be told of a failure; closing the device, and dropping the trigger, does the same.
        let _ = self.device.set_irqs("disable", &IrqSet::disable(self.index));
        if self.path == ResamplePath::Kernel {
            // A PCI device has forgotten it with the trigger, and refuses; a platform device has not.
            let _ =
                self.device.set_irqs("take the unmask eventfd from", &IrqSet::unmask_on(self.index, None));
        }
        let _ = self.trigger.unwire();
    }
}

/// The way back through the event loop.
struct Unmask {
    device: Arc<Device>,
    index: u32,
}

impl Resample for Unmask {
    fn resampled(&self) -> bool {
        // A device that still asks for attention signals the trigger by itself as soon as it is unmasked. If it cannot be unmasked, the
        // interrupt is dead, as it is when the kernel's own unmasking fails.
        let _ = self.device.set_irqs("unmask", &IrqSet::unmask(self.index));
        false
    }
}
