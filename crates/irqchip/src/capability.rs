// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;

use crate::Error;

/// A question about what a VM can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Capability {
    /// How many entries the routing table may have, and the number that each GSI must lie below
    /// (`KVM_CAP_IRQ_ROUTING`); 0 if there is no table.
    IrqRouting,
    /// Whether an MSI must carry a device ID (`KVM_CAP_MSI_DEVID`). A property of the VM, not of the host: true only once
    /// the VM has an ITS.
    MsiDeviceId,
    /// Eventfds can raise interrupts (`KVM_CAP_IRQFD`).
    Irqfd,
    /// … and be told of the EOI (`KVM_CAP_IRQFD_RESAMPLE`).
    IrqfdResample,
    /// Guest writes can signal eventfds (`KVM_CAP_IOEVENTFD`).
    Ioeventfd,
    /// … whatever the write's width (`KVM_CAP_IOEVENTFD_ANY_LENGTH`).
    IoeventfdAnyLength,
    /// MSIs can be injected without a route (`KVM_CAP_SIGNAL_MSI`).
    SignalMsi,
    /// `KVM_IRQ_LINE` takes more than 256 vCPUs (`KVM_CAP_ARM_IRQ_LINE_LAYOUT_2`).
    ArmIrqLineLayout2,
    /// The kernel has device attributes (`KVM_CAP_DEVICE_CTRL`).
    DeviceCtrl,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IrqRouting => "KVM_CAP_IRQ_ROUTING",
            Self::MsiDeviceId => "KVM_CAP_MSI_DEVID",
            Self::Irqfd => "KVM_CAP_IRQFD",
            Self::IrqfdResample => "KVM_CAP_IRQFD_RESAMPLE",
            Self::Ioeventfd => "KVM_CAP_IOEVENTFD",
            Self::IoeventfdAnyLength => "KVM_CAP_IOEVENTFD_ANY_LENGTH",
            Self::SignalMsi => "KVM_CAP_SIGNAL_MSI",
            Self::ArmIrqLineLayout2 => "KVM_CAP_ARM_IRQ_LINE_LAYOUT_2",
            Self::DeviceCtrl => "KVM_CAP_DEVICE_CTRL",
        })
    }
}

/// Finding out what a VM can do. Asked of the VM, never of the host or the build: the same host answers differently for
/// different VMs.
pub trait Capabilities: Send + Sync {
    /// The capability's value, 0 where it is absent.
    ///
    /// # Errors
    /// When the kernel refuses the question itself.
    fn capability(&self, capability: Capability) -> Result<u32, Error>;
}
