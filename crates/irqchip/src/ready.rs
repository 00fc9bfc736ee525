// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;

use crate::{AttrValue, CreateDevice, CreateIrqchip, DeviceControl, DeviceKind, Error, VmId, arm};

/// Proof that a VM's interrupt controller is initialised.
///
/// Arming an irqfd takes one, since before initialisation the kernel answers `EAGAIN`, and since initialisation *replaces* the
/// VM's routing table with a default one: routes committed earlier would be gone without a word. The only way to a token is
/// through the initialisation itself, which is what the constructors here do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IrqchipReady {
    vm: VmId,
    lines: u32,
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyError {
    /// The device is not a GIC: initialising an ITS does not make a VM's interrupts ready.
    NotAGic(DeviceKind),
    /// The kernel refused.
    Kernel(Error),
}

impl fmt::Display for ReadyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAGic(kind) => {
                write!(f, "an {kind} is no interrupt controller to wait for; initialise the GIC")
            }
            Self::Kernel(_) => f.write_str("the interrupt controller could not be initialised"),
        }
    }
}

impl std::error::Error for ReadyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Kernel(e) => Some(e),
            Self::NotAGic(_) => None,
        }
    }
}

impl IrqchipReady {
    /// Initialises a vGIC (`KVM_DEV_ARM_VGIC_CTRL_INIT`) whose NR_IRQS gives it `spis` shared peripheral interrupts. All addresses
    /// are set and all vCPUs exist before; the `vgic` crate sees to that with types.
    ///
    /// # Errors
    /// If `gic` is no GIC, or when the kernel refuses: `EBUSY` while a vCPU is being created, `ENOMEM`. Missing addresses are *not*
    /// refused here but by the first run of a vCPU, with `ENXIO`, and the VM is dead then.
    pub fn init_vgic(gic: &dyn DeviceControl, spis: u32) -> Result<Self, ReadyError> {
        match gic.kind() {
            DeviceKind::GicV2 | DeviceKind::GicV3 => {}
            other => return Err(ReadyError::NotAGic(other)),
        }
        gic.set_attr(arm::CTRL_INIT, AttrValue::None).map_err(ReadyError::Kernel)?;
        Ok(Self { vm: gic.vm_id(), lines: spis })
    }

    /// Creates the PICs and the IOAPIC of x86 (`KVM_CREATE_IRQCHIP`), which are ready at once.
    ///
    /// # Errors
    /// When the kernel refuses: `EEXIST` if the VM has them already.
    pub fn create_pic_and_ioapic<V: CreateIrqchip + CreateDevice + ?Sized>(
        vm: &V,
    ) -> Result<Self, ReadyError> {
        vm.create_irqchip().map_err(ReadyError::Kernel)?;
        Ok(Self { vm: vm.vm_id(), lines: 24 })
    }

    /// Whose interrupt controller is ready.
    #[must_use]
    pub fn vm_id(&self) -> VmId {
        self.vm
    }

    /// How many lines can be routed to: on arm64 the SPIs of this VM, NR_IRQS − 32; on x86 the 24 of the IOAPIC.
    #[must_use]
    pub fn lines(&self) -> u32 {
        self.lines
    }
}
