// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts that no irqfd can raise, or that are too rare to be worth one: an ioctl each.

use std::fmt;
use std::sync::{Arc, Mutex};

use gsi_routing::Router;
use irq_types::{DeviceId, MsiMessage, Ppi, Spi};
use irqchip::{LineInjector, MsiDelivery, MsiInjector};

use crate::lock::lock;
use crate::{Error, LevelLine};

/// A wire that `KVM_IRQ_LINE` drives: a PPI, which no route reaches, or an SPI where nobody needs to hear of the EOI.
///
/// The line really falls when it is deasserted, which an irqfd cannot do. One ioctl for each change. Whoever drives an SPI both ways
/// must not have a resampling irqfd on it too: on arm64 the two drive the same wire, and the last word counts. Dropping it
/// lowers the line.
pub struct InjectedLine {
    injector: Arc<dyn LineInjector>,
    wire: Wire,
    high: Mutex<bool>,
}

#[derive(Debug, Clone, Copy)]
enum Wire {
    Ppi { vcpu: u32, ppi: Ppi },
    Spi(Spi),
}

impl InjectedLine {
    /// A private interrupt of one vCPU. Not one that a device in the kernel drives, as the timer's: KVM ignores what userspace says of
    /// those, without an error (Linux 6.12, `arch/arm64/kvm/vgic/vgic.c`, `vgic_validate_injection`).
    #[must_use]
    pub fn ppi(injector: Arc<dyn LineInjector>, vcpu: u32, ppi: Ppi) -> Self {
        Self { injector, wire: Wire::Ppi { vcpu, ppi }, high: Mutex::new(false) }
    }

    /// A shared interrupt.
    #[must_use]
    pub fn spi(injector: Arc<dyn LineInjector>, spi: Spi) -> Self {
        Self { injector, wire: Wire::Spi(spi), high: Mutex::new(false) }
    }

    fn drive(&self, high: bool) -> Result<(), irqchip::Error> {
        match self.wire {
            Wire::Ppi { vcpu, ppi } => self.injector.set_ppi(vcpu, ppi, high),
            Wire::Spi(spi) => self.injector.set_spi(spi, high),
        }
    }
}

impl LevelLine for InjectedLine {
    fn set_level(&self, high: bool) -> Result<(), Error> {
        // Held over the ioctl, so that the last caller's word is the last the kernel hears.
        let mut is_high = lock(&self.high);
        if *is_high != high {
            self.drive(high)?;
            *is_high = high;
        }
        Ok(())
    }
}

impl Drop for InjectedLine {
    fn drop(&mut self) {
        if *lock(&self.high) {
            let _ = self.drive(false).or_else(|_| self.drive(false));
        }
    }
}

impl fmt::Debug for InjectedLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InjectedLine").field("wire", &self.wire).field("high", &*lock(&self.high)).finish()
    }
}

/// Sends a device's messages without routes or eventfds: for interrupts too rare to be worth a GSI, and for messages that are made up at run
/// time, as those of a restored device.
///
/// Unlike an irqfd it is told what became of the message.
pub struct MsiSender {
    msi: Arc<dyn MsiInjector>,
    lines: Arc<dyn LineInjector>,
    router: Router,
    sender: DeviceId,
}

impl MsiSender {
    /// Sends as the device `sender`. Whether the kernel is told so is the router's business.
    #[must_use]
    pub fn new(
        msi: Arc<dyn MsiInjector>,
        lines: Arc<dyn LineInjector>,
        router: Router,
        sender: DeviceId,
    ) -> Self {
        Self { msi, lines, router, sender }
    }

    /// Sends `message`. A message to the VM's GICv2m frame, which the kernel does not know, pulses its SPI instead; of that, delivery is all that
    /// can be said.
    ///
    /// # Errors
    /// [`Error::Kernel`]: `EINVAL` if the address is nobody's, `EBUSY` if the guest has not enabled its ITS or its LPIs, `ENODEV` if the VM has
    /// nothing that takes messages.
    pub fn send(&self, message: MsiMessage) -> Result<MsiDelivery, Error> {
        match self.router.msi_policy().v2m_spi(message) {
            Some(spi) => {
                self.lines.set_spi(spi, true)?;
                self.lines.set_spi(spi, false)?;
                Ok(MsiDelivery::Delivered)
            }
            None => Ok(self.router.signal_msi(&*self.msi, message, self.sender)?),
        }
    }
}

impl fmt::Debug for MsiSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsiSender").field("sender", &self.sender).finish_non_exhaustive()
    }
}
