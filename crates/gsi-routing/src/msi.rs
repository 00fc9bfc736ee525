// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::{DeviceId, MsiMessage};
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
    pub const fn route_target(self, target: Target) -> RouteTarget {
        match target {
            Target::Line(pin) => RouteTarget::Line(pin),
            Target::Msi { message, device_id } => {
                RouteTarget::Msi { message, device_id: self.device_id(device_id) }
            }
        }
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
