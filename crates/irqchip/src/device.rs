// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;

use crate::{Error, VmId};

/// A kind of in-kernel device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DeviceKind {
    /// `KVM_DEV_TYPE_ARM_VGIC_V2`.
    GicV2,
    /// `KVM_DEV_TYPE_ARM_VGIC_V3`.
    GicV3,
    /// `KVM_DEV_TYPE_ARM_VGIC_ITS`.
    Its,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GicV2 => "GICv2",
            Self::GicV3 => "GICv3",
            Self::Its => "ITS",
        })
    }
}

/// One attribute of an in-kernel device. The groups of the vGIC and ITS are in [`arm`](crate::arm).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceAttr {
    /// The kernel's `kvm_device_attr.group`.
    pub group: u32,
    /// The kernel's `kvm_device_attr.attr`; what it means depends on the group.
    pub attr: u64,
}

/// What an attribute is set to. The kernel reads as many bytes as the attribute has, so the width is part of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttrValue {
    /// The attribute is a command: there is no value.
    None,
    /// Four bytes.
    U32(u32),
    /// Eight bytes.
    U64(u64),
}

impl fmt::Display for AttrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("nothing"),
            Self::U32(n) => write!(f, "{n:#x}"),
            Self::U64(n) => write!(f, "{n:#x}"),
        }
    }
}

/// Having an interrupt controller in the kernel.
pub trait CreateDevice: Send + Sync {
    /// Which VM this is.
    fn vm_id(&self) -> VmId;

    /// Whether this VM could have a device of `kind`, found out without creating one.
    ///
    /// On KVM this is `KVM_CREATE_DEVICE_TEST`, which leaves no trace on the VM. It tells whether the host knows the
    /// device, not whether this VM already has one.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than not knowing the device (`ENODEV`, which is `Ok(false)`).
    fn supports_device(&self, kind: DeviceKind) -> Result<bool, Error>;

    /// Creates a device of `kind`.
    ///
    /// Devices cannot be destroyed short of closing the VM. A GICv3 that was created and then given up keeps its VM from
    /// ever having a GICv2: probe with [`supports_device`](Self::supports_device).
    ///
    /// # Errors
    /// On KVM: `EEXIST` if the VM already has a GIC, `EBUSY` if a vCPU has run, `ENODEV` if the host cannot, `E2BIG`
    /// if there are more vCPUs already than the device serves.
    fn create_device(&self, kind: DeviceKind) -> Result<Box<dyn DeviceControl>, Error>;
}

/// Configuring an in-kernel device. Dropping it closes our descriptor; the device lives on in its VM.
pub trait DeviceControl: fmt::Debug + Send + Sync {
    /// Which VM the device belongs to.
    fn vm_id(&self) -> VmId;

    /// What it was created as.
    fn kind(&self) -> DeviceKind;

    /// Whether the device has this attribute. Says nothing about whether it may be set now.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than not knowing the attribute (`ENXIO`, which is `Ok(false)`).
    fn has_attr(&self, attr: DeviceAttr) -> Result<bool, Error>;

    /// Sets the attribute.
    ///
    /// # Errors
    /// What the kernel's device documentation lists; the error names device, attribute, value and errno.
    fn set_attr(&self, attr: DeviceAttr, value: AttrValue) -> Result<(), Error>;

    /// Reads the attribute, whose width the caller knows: the result is of the variant of `like`. What `like` holds is handed
    /// to the kernel too, since some attributes take an argument where they return the answer.
    ///
    /// # Errors
    /// As for [`set_attr`](Self::set_attr).
    fn get_attr(&self, attr: DeviceAttr, like: AttrValue) -> Result<AttrValue, Error>;
}

/// Having the interrupt controllers that an architecture comes with (x86: two PICs and an IOAPIC).
pub trait CreateIrqchip: Send + Sync {
    /// Creates them, ready for use: there is no separate initialisation.
    ///
    /// # Errors
    /// On KVM: `EEXIST` if the VM has them, `EINVAL` if it has a vCPU already, `ENOTTY` where the architecture has device objects
    /// instead.
    fn create_irqchip(&self) -> Result<(), Error>;
}
