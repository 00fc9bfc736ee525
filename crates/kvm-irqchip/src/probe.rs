// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;
use std::sync::Arc;

use irqchip::{Capabilities, Capability, CreateDevice, DeviceKind, Errno, Error};
use kvm_ioctls::Kvm;

use crate::{KvmVm, sys};

/// What KVM on this host offers to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostIrqchips {
    /// A guest may have a GICv2.
    pub gic_v2: bool,
    /// A guest may have a GICv3.
    pub gic_v3: bool,
    /// A guest with a GICv3 may have an ITS.
    pub its: bool,
    /// How many routes a VM may have, and the number that each GSI must lie below; 0 without a routing table.
    pub routes: u32,
    /// Interrupts can be told of their EOI (`KVM_CAP_IRQFD_RESAMPLE`).
    pub resample: bool,
}

/// Why the host could not be probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeError {
    /// There is no VM to ask.
    CreateVm(Errno),
    /// The VM did not answer.
    Ask(Error),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateVm(_) => {
                f.write_str("cannot create a VM to find out what interrupt controllers KVM has")
            }
            Self::Ask(_) => f.write_str("cannot find out what interrupt controllers KVM has"),
        }
    }
}

impl std::error::Error for ProbeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::CreateVm(errno) => Some(errno),
            Self::Ask(error) => Some(error),
        }
    }
}

impl HostIrqchips {
    /// Asks a VM that is thrown away afterwards, so that nothing is left on the one that counts.
    ///
    /// # Errors
    /// When KVM makes no VM, or the VM does not answer.
    pub fn probe(kvm: &Kvm) -> Result<Self, ProbeError> {
        let vm = kvm.create_vm().map_err(|e| ProbeError::CreateVm(sys::errno(e)))?;
        let vm = KvmVm::new(Arc::new(vm));
        let device = |kind| vm.supports_device(kind).map_err(ProbeError::Ask);
        let capability = |which| vm.capability(which).map_err(ProbeError::Ask);
        Ok(Self {
            gic_v2: device(DeviceKind::GicV2)?,
            gic_v3: device(DeviceKind::GicV3)?,
            its: device(DeviceKind::Its)?,
            routes: capability(Capability::IrqRouting)?,
            resample: capability(Capability::IrqfdResample)? != 0,
        })
    }
}
