// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;

use irq_types::{DeviceId, Gsi, IrqchipPin, MsiMessage};

use crate::{Error, VmId};

/// What happens when a GSI fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteTarget {
    /// An input of an irqchip is raised.
    Line(IrqchipPin),
    /// A message is sent.
    Msi {
        /// Where to and what.
        message: MsiMessage,
        /// Who sent it, when this VM's kernel wants to know (`KVM_MSI_VALID_DEVID`).
        device_id: Option<DeviceId>,
    },
}

/// One entry of the routing table. A GSI may have several, on different irqchips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Which GSI.
    pub gsi: Gsi,
    /// What it fires.
    pub target: RouteTarget,
}

impl fmt::Display for RouteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(pin) => pin.fmt(f),
            Self::Msi { message, device_id: Some(device_id) } => write!(f, "MSI {message} from {device_id}"),
            Self::Msi { message, device_id: None } => write!(f, "MSI {message}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.gsi, self.target)
    }
}

/// Where a routing table goes.
pub trait RoutingSink: Send + Sync {
    /// Which VM's table this is.
    fn vm_id(&self) -> VmId;

    /// Replaces the VM's whole table. There is no smaller change: each call copies every entry and waits for the
    /// kernel's readers, so changes want to be batched.
    ///
    /// # Errors
    /// On KVM: `EINVAL` for too many entries, a GSI beyond the limit, a pin beyond any GIC, two entries of one GSI on the same
    /// irqchip or an MSI beside a line; `ENOMEM`, `E2BIG`. After an error the old table stands.
    fn set_routes(&self, routes: &[Route]) -> Result<(), Error>;
}
