// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::{DeviceId, MsiMessage, Ppi, Spi};

use crate::Error;

/// What became of an injected MSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MsiDelivery {
    /// It is pending or was merged with one that was.
    Delivered,
    /// The guest has blocked it: it has not mapped the event to an LPI, or x86's local APIC does not take it. (An LPI that is mapped and
    /// disabled is [`Delivered`](Self::Delivered): it is pending.)
    Blocked,
}

/// Injecting an MSI from userspace, without route or eventfd.
pub trait MsiInjector: Send + Sync {
    /// Sends `message` as if the device with `device_id` had written it. Whether to pass a device ID is a property of the VM:
    /// see [`Capability::MsiDeviceId`](crate::Capability::MsiDeviceId).
    ///
    /// # Errors
    /// On KVM: `EINVAL` without an irqchip, without a device ID where the VM has an ITS, or for an address where no ITS is; `ENODEV` if a
    /// GIC has no ITS; `EBUSY` while the guest has the ITS or its LPIs disabled; `EPERM` on x86 if no CPU is addressed.
    fn signal_msi(&self, message: MsiMessage, device_id: Option<DeviceId>) -> Result<MsiDelivery, Error>;
}

/// Driving a wire of the GIC from userspace. One ioctl a change: for wires that no irqfd can reach (PPIs) and for tests.
pub trait LineInjector: Send + Sync {
    /// Drives an SPI's wire.
    ///
    /// # Errors
    /// On KVM: `EINVAL` for an INTID beyond this VM's NR_IRQS, `ENXIO` without an in-kernel GIC, `EBUSY` if it is a GICv3 that is not
    /// initialised. A GICv2 that is not initialised is by this.
    fn set_spi(&self, spi: Spi, high: bool) -> Result<(), Error>;

    /// Drives the PPI's wire of the vCPU with index `vcpu`. A wire that a device in the kernel drives (timer, PMU) does not move, and KVM
    /// says nothing: `vgic_validate_injection` (Linux 6.12, `arch/arm64/kvm/vgic/vgic.c`) compares owners.
    ///
    /// # Errors
    /// On KVM: `EINVAL` if there is no such vCPU, and otherwise as for an SPI.
    fn set_ppi(&self, vcpu: u32, ppi: Ppi, high: bool) -> Result<(), Error>;
}
