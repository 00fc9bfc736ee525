// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::{DeviceId, MsiMessage, Ppi, Spi};

use crate::Error;

/// What became of an injected MSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MsiDelivery {
    /// It is pending or was merged with one that was.
    Delivered,
    /// The guest has blocked it: the ITS or the device is not mapped, the LPI is disabled.
    Blocked,
}

/// Injecting an MSI from userspace, without route or eventfd.
pub trait MsiInjector: Send + Sync {
    /// Sends `message` as if the device with `device_id` had written it. Whether to pass a device ID is a property of the VM:
    /// see [`Capability::MsiDeviceId`](crate::Capability::MsiDeviceId).
    ///
    /// # Errors
    /// On KVM: `EINVAL` if the VM needs a device ID and got none, `ENODEV` if it has nothing that takes MSIs, `EFAULT` and others
    /// from the ITS.
    fn signal_msi(&self, message: MsiMessage, device_id: Option<DeviceId>) -> Result<MsiDelivery, Error>;
}

/// Driving a wire of the GIC from userspace. One ioctl a change: for wires that no irqfd can reach (PPIs) and for tests.
pub trait LineInjector: Send + Sync {
    /// Drives an SPI's wire.
    ///
    /// # Errors
    /// On KVM: `EINVAL` for an INTID beyond this VM's NR_IRQS, `ENXIO` without an in-kernel GIC.
    fn set_spi(&self, spi: Spi, high: bool) -> Result<(), Error>;

    /// Drives the PPI's wire of the vCPU with index `vcpu`.
    ///
    /// # Errors
    /// On KVM: `EINVAL` if there is no such vCPU, or its kernel device (timer, PMU) owns the PPI.
    fn set_ppi(&self, vcpu: u32, ppi: Ppi, high: bool) -> Result<(), Error>;
}
