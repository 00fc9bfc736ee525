// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;

use irq_types::{DeviceId, Gsi, MsiMessage, Ppi, Spi};

use crate::{AttrValue, Capability, DeviceAttr, DeviceKind, Errno, IoeventSpec, arm};

/// A call to the kernel that failed: what was being done, to what, and the kernel's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What was being done.
    pub operation: Operation,
    /// What the kernel said.
    pub errno: Errno,
}

/// A call to the kernel with its operands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// [`CreateDevice::create_device`](crate::CreateDevice::create_device).
    CreateDevice {
        /// What was to be created.
        kind: DeviceKind,
    },
    /// [`CreateDevice::supports_device`](crate::CreateDevice::supports_device).
    TestDevice {
        /// What was asked for.
        kind: DeviceKind,
    },
    /// [`CreateIrqchip::create_irqchip`](crate::CreateIrqchip::create_irqchip).
    CreateIrqchip,
    /// [`DeviceControl::has_attr`](crate::DeviceControl::has_attr).
    HasAttr {
        /// Which device.
        kind: DeviceKind,
        /// Which attribute.
        attr: DeviceAttr,
    },
    /// [`DeviceControl::set_attr`](crate::DeviceControl::set_attr).
    SetAttr {
        /// Which device.
        kind: DeviceKind,
        /// Which attribute.
        attr: DeviceAttr,
        /// To what.
        value: AttrValue,
    },
    /// [`DeviceControl::get_attr`](crate::DeviceControl::get_attr).
    GetAttr {
        /// Which device.
        kind: DeviceKind,
        /// Which attribute.
        attr: DeviceAttr,
    },
    /// [`RoutingSink::set_routes`](crate::RoutingSink::set_routes).
    SetRoutes {
        /// How many entries the table had.
        entries: usize,
    },
    /// [`IrqfdBinder::assign_irqfd`](crate::IrqfdBinder::assign_irqfd).
    AssignIrqfd {
        /// The eventfd's number in this process.
        fd: i32,
        /// Which GSI it was to raise.
        gsi: Gsi,
        /// Whether it was to have a resamplefd.
        resample: bool,
    },
    /// [`IrqfdBinder::deassign_irqfd`](crate::IrqfdBinder::deassign_irqfd).
    DeassignIrqfd {
        /// The eventfd's number in this process.
        fd: i32,
        /// Which GSI it raised.
        gsi: Gsi,
    },
    /// [`IoeventBinder::assign_ioevent`](crate::IoeventBinder::assign_ioevent).
    AssignIoevent {
        /// Which writes.
        spec: IoeventSpec,
    },
    /// [`IoeventBinder::deassign_ioevent`](crate::IoeventBinder::deassign_ioevent).
    DeassignIoevent {
        /// Which writes.
        spec: IoeventSpec,
    },
    /// [`MsiInjector::signal_msi`](crate::MsiInjector::signal_msi).
    SignalMsi {
        /// The message.
        message: MsiMessage,
        /// Its sender, if given.
        device_id: Option<DeviceId>,
    },
    /// [`LineInjector::set_spi`](crate::LineInjector::set_spi).
    SetSpi {
        /// Which wire.
        spi: Spi,
        /// To what.
        high: bool,
    },
    /// [`LineInjector::set_ppi`](crate::LineInjector::set_ppi).
    SetPpi {
        /// Of which vCPU.
        vcpu: u32,
        /// Which wire.
        ppi: Ppi,
        /// To what.
        high: bool,
    },
    /// [`Capabilities::capability`](crate::Capabilities::capability).
    CheckCapability {
        /// Which one.
        capability: Capability,
    },
}

impl Error {
    /// `operation` failed with `errno`.
    #[must_use]
    pub const fn new(operation: Operation, errno: Errno) -> Self {
        Self { operation, errno }
    }
}

/// "the GICv3's distributor address (ADDR/V3_DIST) [group 0, attribute 2]".
fn attribute(f: &mut fmt::Formatter<'_>, kind: DeviceKind, attr: DeviceAttr) -> fmt::Result {
    let name = arm::attr_name(kind, attr).unwrap_or("unknown attribute");
    write!(f, "the {kind}'s {name} [group {}, attribute {:#x}]", attr.group, attr.attr)
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = |high| if high { "high" } else { "low" };
        match self {
            Self::CreateDevice { kind } => write!(f, "create the in-kernel {kind}"),
            Self::TestDevice { kind } => write!(f, "ask whether the kernel has a {kind}"),
            Self::CreateIrqchip => f.write_str("create the in-kernel irqchip"),
            Self::HasAttr { kind, attr } => {
                f.write_str("ask for ")?;
                attribute(f, *kind, *attr)
            }
            Self::SetAttr { kind, attr, value: AttrValue::None } => {
                f.write_str("request ")?;
                attribute(f, *kind, *attr)
            }
            Self::SetAttr { kind, attr, value } => {
                f.write_str("set ")?;
                attribute(f, *kind, *attr)?;
                write!(f, " to {value}")
            }
            Self::GetAttr { kind, attr } => {
                f.write_str("read ")?;
                attribute(f, *kind, *attr)
            }
            Self::SetRoutes { entries } => write!(f, "install a GSI routing table of {entries} entries"),
            Self::AssignIrqfd { fd, gsi, resample } => {
                let kind = if *resample { "resampling irqfd" } else { "irqfd" };
                write!(f, "bind eventfd {fd} to {gsi} as {kind}")
            }
            Self::DeassignIrqfd { fd, gsi } => write!(f, "unbind eventfd {fd} from {gsi}"),
            Self::AssignIoevent { spec } => write!(f, "bind an eventfd to guest writes at {spec}"),
            Self::DeassignIoevent { spec } => write!(f, "unbind an eventfd from guest writes at {spec}"),
            Self::SignalMsi { message, device_id: Some(id) } => {
                write!(f, "inject the MSI {message} from {id}")
            }
            Self::SignalMsi { message, device_id: None } => write!(f, "inject the MSI {message}"),
            Self::SetSpi { spi, high } => write!(f, "drive {spi} {}", level(*high)),
            Self::SetPpi { vcpu, ppi, high } => write!(f, "drive {ppi} of vCPU {vcpu} {}", level(*high)),
            Self::CheckCapability { capability } => write!(f, "ask the VM for {capability}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.operation, self.errno)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_device_group_attribute_value_and_errno() {
        let operation = Operation::SetAttr {
            kind: DeviceKind::GicV3,
            attr: arm::ADDR_V3_DIST,
            value: AttrValue::U64(0x800_0000),
        };
        assert_eq!(
            Error::new(operation, Errno::EEXIST).to_string(),
            "cannot set the GICv3's distributor address (ADDR/V3_DIST) [group 0, attribute 0x2] to 0x8000000: File exists \
             (EEXIST)"
        );
    }
}
