// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host has to say about a device while the guest has it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ::pci::BarIndex;
use rustix::event::{EventfdFlags, eventfd};
use vfio_bindings::bindings::vfio::{VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX};

use crate::Error;
use crate::device::Device;
use crate::irq_set::IrqSet;

/// Something that happens to a passed-through function.
#[derive(Debug)]
#[non_exhaustive]
pub enum PciEvent {
    /// The device has reported an uncorrectable error (AER). What it does is not to be trusted until it is reset.
    DeviceError,
    /// The host wants the device back: somebody unbinds it, or pulls it. It is said again until the device is closed.
    ReleaseRequested,
    /// Other devices of the guest's cannot reach this BAR: the IOMMU's driver maps memory only. They reach the guest's memory, which is all that most ever do.
    HiddenFromPeers {
        /// Which BAR.
        bar: BarIndex,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something that the guest asked for did not work. It will be tried again.
    Trouble(Error),
}

/// A kind of event that arrives by an eventfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// [`PciEvent::DeviceError`].
    Error,
    /// [`PciEvent::ReleaseRequested`].
    Release,
}

/// The eventfd of one kind of event. Whoever runs the event loop polls it and, when it is readable, [takes](Self::take) it.
#[derive(Debug)]
pub struct Notifier {
    event: OwnedFd,
    device: Arc<Device>,
    notice: Notice,
}

impl Notice {
    const fn index(self) -> u32 {
        match self {
            Self::Error => VFIO_PCI_ERR_IRQ_INDEX,
            Self::Release => VFIO_PCI_REQ_IRQ_INDEX,
        }
    }
}

impl Notifier {
    /// Asks to be told. `None` if the device never says it.
    pub(crate) fn new(device: &Arc<Device>, notice: Notice) -> Result<Option<Self>, Error> {
        let index = notice.index();
        // Kernels and devices without it answer EINVAL, or that there are none.
        if !device.irq(index).is_ok_and(|info| info.count > 0 && info.has_eventfd()) {
            return Ok(None);
        }
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::kernel("make an eventfd for", device.name(), e.into()))?;
        device.set_irqs("be told of", &IrqSet::trigger(index, 0, &[Some(event.as_fd())]))?;
        Ok(Some(Self { event, device: Arc::clone(device), notice }))
    }

    /// Which kind.
    #[must_use]
    pub const fn notice(&self) -> Notice {
        self.notice
    }

    /// The event, if there was one since the last call.
    #[must_use]
    pub fn take(&self) -> Option<PciEvent> {
        let mut count = [0; 8];
        rustix::io::read(&self.event, &mut count).ok()?;
        Some(match self.notice {
            Notice::Error => PciEvent::DeviceError,
            Notice::Release => PciEvent::ReleaseRequested,
        })
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        let set = IrqSet::trigger(self.notice.index(), 0, &[None]);
        let _ = self.device.set_irqs("not be told of", &set);
    }
}
