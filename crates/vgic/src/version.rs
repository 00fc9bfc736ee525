// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;

use irqchip::DeviceKind;

/// A version of the GIC architecture that KVM can give to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GicVersion {
    /// GICv2: up to eight CPUs, memory-mapped CPU interface, no ITS (IHI 0048).
    V2,
    /// GICv3: a redistributor a CPU, CPU interface in system registers, ITS (IHI 0069).
    V3,
}

impl GicVersion {
    /// How many vCPUs a GIC of this version serves in KVM (Linux 6.12, `include/kvm/arm_vgic.h`, `VGIC_V2_MAX_CPUS` and
    /// `VGIC_V3_MAX_CPUS`).
    #[must_use]
    pub const fn max_vcpus(self) -> u32 {
        match self {
            Self::V2 => 8,
            Self::V3 => 512,
        }
    }

    /// The in-kernel device.
    #[must_use]
    pub const fn device_kind(self) -> DeviceKind {
        match self {
            Self::V2 => DeviceKind::GicV2,
            Self::V3 => DeviceKind::GicV3,
        }
    }
}

impl fmt::Display for GicVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.device_kind().fmt(f)
    }
}
