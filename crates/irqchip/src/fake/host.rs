// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::FakeVm;

/// What an imaginary host can do, from which VMs are made. Start from one of the constructors and change what the test is about.
///
/// ```
/// use irqchip::fake::FakeHost;
///
/// let small = FakeHost { routing_limit: 64, ..FakeHost::arm64_gicv3() }.vm();
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeHost {
    /// KVM can give a guest a GICv2: the host's GIC is one, or a GICv3 with the compatibility interface.
    pub gic_v2: bool,
    /// KVM can give a guest a GICv3.
    pub gic_v3: bool,
    /// KVM can give a guest an ITS: on Linux wherever there is a GICv3.
    pub its: bool,
    /// An x86 host: two PICs and an IOAPIC, no device objects.
    pub x86: bool,
    /// `KVM_MAX_IRQ_ROUTES`: the greatest number of routes, and the number that each GSI must lie below.
    pub routing_limit: u32,
    /// How many vCPUs a VM may have as long as no GIC narrows it: 512 on a GICv3 host, 8 on a GICv2 host.
    pub max_vcpus: u32,
    /// Width of the guest-physical address space in bits, 32 to 52.
    pub ipa_bits: u32,
}

impl FakeHost {
    /// An arm64 host with GICv3 and ITS and without GICv2 compatibility, as servers are.
    #[must_use]
    pub const fn arm64_gicv3() -> Self {
        Self {
            gic_v2: false,
            gic_v3: true,
            its: true,
            x86: false,
            routing_limit: 4096,
            max_vcpus: 512,
            ipa_bits: 40,
        }
    }

    /// An arm64 host whose GICv3 also has the GICv2 compatibility interface: both kinds of guest run.
    #[must_use]
    pub const fn arm64_gicv3_and_v2() -> Self {
        Self { gic_v2: true, ..Self::arm64_gicv3() }
    }

    /// An arm64 host with a GICv2, as a Raspberry Pi 4 or 5.
    #[must_use]
    pub const fn arm64_gicv2() -> Self {
        Self { gic_v2: true, gic_v3: false, its: false, max_vcpus: 8, ..Self::arm64_gicv3() }
    }

    /// An x86 host.
    #[must_use]
    pub const fn x86() -> Self {
        Self { gic_v3: false, its: false, x86: true, max_vcpus: 1024, ipa_bits: 46, ..Self::arm64_gicv3() }
    }

    /// A VM on this host, with nothing in it.
    #[must_use]
    pub fn vm(&self) -> FakeVm {
        FakeVm::new(self.clone())
    }
}
