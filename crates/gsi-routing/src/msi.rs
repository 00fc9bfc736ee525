// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::{DeviceId, Intid, IrqchipPin, MsiMessage, Spi};
use irqchip::{MsiDelivery, MsiInjector, RouteTarget};

use crate::Target;

/// Whether this VM's kernel wants to know who sends an MSI. The one place where that is decided, for routes and for `KVM_SIGNAL_MSI`
/// alike.
///
/// Whoever makes an MSI always knows its sender and always says so; a VM whose GIC has an ITS cannot do without the device ID, and any
/// other VM's kernel may refuse it (Linux 6.12, `Documentation/virt/kvm/api.rst`, section 4.52). Which of the two a VM is it says itself
/// (`KVM_CAP_MSI_DEVID`): see the thread "KVM: api: add kvm_irq_routing_extended_msi", Andre Przywara and Pavel Fedin, July 2015.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiPolicy {
    pub(crate) needs_device_id: bool,
    pub(crate) v2m: Option<V2mFrame>,
}

/// A GICv2m frame that the VMM emulates, where there is no ITS: a device that writes an INTID to its `MSI_SETSPI_NS` register raises that
/// SPI (Arm DEN0029, Server Base System Architecture, appendix on GICv2m).
///
/// The kernel does not know the frame. A route to the SPI does the same, and no userspace has a part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct V2mFrame {
    /// Guest-physical address of the register, 0x40 above the frame's base.
    pub setspi: u64,
    /// The first SPI of the frame.
    pub first: Spi,
    /// How many SPIs it has.
    pub count: u32,
}

impl V2mFrame {
    /// The SPI that `message` raises, if it goes to this frame and names one of its SPIs.
    #[must_use]
    pub fn spi(&self, message: MsiMessage) -> Option<Spi> {
        if message.address != self.setspi {
            return None;
        }
        match Intid::new(message.data) {
            Ok(Intid::Spi(spi)) if self.has_pin(spi.pin().get()) => Some(spi),
            _ => None,
        }
    }

    pub(crate) fn has_pin(&self, pin: u32) -> bool {
        pin.checked_sub(self.first.pin().get()).is_some_and(|n| n < self.count)
    }
}

impl MsiPolicy {
    /// Whether the kernel is given device IDs.
    #[must_use]
    pub const fn needs_device_id(self) -> bool {
        self.needs_device_id
    }

    /// What the kernel is told of an MSI's sender.
    #[must_use]
    pub const fn device_id(self, sender: DeviceId) -> Option<DeviceId> {
        if self.needs_device_id { Some(sender) } else { None }
    }

    /// The kernel's form of a table entry's target.
    #[must_use]
    pub fn route_target(self, target: Target) -> RouteTarget {
        match target {
            Target::Line(pin) => RouteTarget::Line(pin),
            Target::Msi { message, device_id } => match self.v2m_spi(message) {
                Some(spi) => RouteTarget::Line(IrqchipPin { irqchip: 0, pin: spi.pin() }),
                None => RouteTarget::Msi { message, device_id: self.device_id(device_id) },
            },
        }
    }

    /// The SPI that `message` raises, where it goes to the VM's GICv2m frame. Injecting such a message is pulsing the SPI
    /// ([`LineInjector::set_spi`](irqchip::LineInjector::set_spi)).
    #[must_use]
    pub fn v2m_spi(self, message: MsiMessage) -> Option<Spi> {
        self.v2m.and_then(|frame| frame.spi(message))
    }

    /// Injects an MSI from userspace (`KVM_SIGNAL_MSI`).
    ///
    /// # Errors
    /// Those of [`MsiInjector::signal_msi`].
    pub fn signal(
        self,
        injector: &dyn MsiInjector,
        message: MsiMessage,
        sender: DeviceId,
    ) -> Result<MsiDelivery, irqchip::Error> {
        injector.signal_msi(message, self.device_id(sender))
    }
}
