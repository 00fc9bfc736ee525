// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;

use irqchip::{CreateDevice, DeviceKind, Error};

/// What interrupt controllers a host's KVM can give to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HostGic {
    /// It has a GICv2 for guests: the host has one, or a GICv3 with GICv2 compatibility.
    pub v2: bool,
    /// It has a GICv3 for guests.
    pub v3: bool,
    /// It has an ITS for guests. That takes a GICv3, but no ITS in the host.
    pub its: bool,
}

impl HostGic {
    /// Asks for all three, without creating anything: a GICv3 that was created to see whether it can be would keep the VM
    /// from ever having a GICv2. Three calls; [`GicRequest::resolve_on`](crate::GicRequest::resolve_on) asks only for what its decision depends on.
    ///
    /// # Errors
    /// When the kernel refuses the question itself.
    pub fn probe<V: CreateDevice + ?Sized>(vm: &V) -> Result<Self, Error> {
        Self::ask(&mut |kind| vm.supports_device(kind))
    }

    /// The same, of anybody who can answer.
    pub(crate) fn ask<E>(host: &mut dyn FnMut(DeviceKind) -> Result<bool, E>) -> Result<Self, E> {
        Ok(Self { v2: host(DeviceKind::GicV2)?, v3: host(DeviceKind::GicV3)?, its: host(DeviceKind::Its)? })
    }
}

impl fmt::Display for HostGic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.v2, self.v3, self.its) {
            (false, false, _) => "no GIC",
            (true, false, _) => "GICv2 only",
            (false, true, false) => "GICv3 without ITS",
            (false, true, true) => "GICv3 with ITS",
            (true, true, false) => "GICv2 and GICv3 without ITS",
            (true, true, true) => "GICv2 and GICv3 with ITS",
        })
    }
}
