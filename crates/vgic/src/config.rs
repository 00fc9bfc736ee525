// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;

use irq_types::{OutOfRange, Ppi, Spi, TriggerMode};

use crate::{ConfigError, GicVersion};

/// Interrupts that each CPU has for itself: 16 SGIs and 16 PPIs. `KVM_DEV_ARM_VGIC_GRP_NR_IRQS` counts them.
const PRIVATE_IRQS: u32 = 32;
/// SPIs come in blocks of this many.
pub(crate) const SPI_BLOCK: u32 = 32;
/// The most SPIs that KVM gives. Its documentation allows an NR_IRQS of 64 to 1024 in steps of 32; the code refuses what is
/// above 1023 (Linux 6.12, `arch/arm64/kvm/vgic/vgic-kvm-device.c`, `vgic_set_common_attr`), which leaves 992 and an
/// INTID of 991 as the last.
pub(crate) const MAX_SPIS: u32 = 992 - PRIVATE_IRQS;

/// A run of SPIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpiRange {
    first: Spi,
    count: u32,
}

impl SpiRange {
    /// `count` SPIs from `first`. The caller has seen to it that they exist.
    pub(crate) const fn new(first: Spi, count: u32) -> Self {
        Self { first, count }
    }

    /// The lowest SPI.
    #[must_use]
    pub const fn first(self) -> Spi {
        self.first
    }

    /// How many there are.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.count
    }

    /// Whether `spi` is one of them.
    #[must_use]
    pub const fn contains(self, spi: Spi) -> bool {
        spi.get() >= self.first.get() && spi.get() - self.first.get() < self.count
    }

    /// One after the other.
    pub fn iter(self) -> impl Iterator<Item = Spi> {
        (0..self.count).filter_map(move |i| Spi::new(self.first.get() + i).ok())
    }
}

impl fmt::Display for SpiRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            0 => f.write_str("no SPIs"),
            1 => self.first.fmt(f),
            n => write!(f, "SPIs {} to {}", self.first.get(), self.first.get() + n - 1),
        }
    }
}

/// How the guest's devices send MSIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MsiConfig {
    /// Over ITSes in the kernel, into LPIs.
    Its {
        /// How many, at least 1.
        count: u8,
    },
    /// Over a GICv2m frame that the VMM emulates, into SPIs.
    V2m {
        /// Which. They are the frame's alone.
        spis: SpiRange,
    },
    /// They do not.
    None,
}

/// What a VM gets. Comes from [`GicRequest::resolve`](crate::GicRequest::resolve), so that every value of this type is one
/// that the kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GicConfig {
    version: GicVersion,
    vcpus: u32,
    spis: u32,
    msi: MsiConfig,
}

impl GicConfig {
    pub(crate) const fn new(version: GicVersion, vcpus: u32, spis: u32, msi: MsiConfig) -> Self {
        Self { version, vcpus, spis, msi }
    }

    /// Which GIC.
    #[must_use]
    pub const fn version(&self) -> GicVersion {
        self.version
    }

    /// How many vCPUs it serves.
    #[must_use]
    pub const fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// How MSIs travel.
    #[must_use]
    pub const fn msi(&self) -> MsiConfig {
        self.msi
    }

    /// How many SPIs it has, those of a GICv2m frame included: a multiple of 32, 32 to 960.
    #[must_use]
    pub const fn spis(&self) -> u32 {
        self.spis
    }

    /// The SPIs that are free for wires: SPI 0 up to the frame's first, or all.
    #[must_use]
    pub const fn wired_spis(&self) -> u32 {
        match self.msi {
            MsiConfig::V2m { spis } => spis.first().get(),
            MsiConfig::Its { .. } | MsiConfig::None => self.spis,
        }
    }

    /// `KVM_DEV_ARM_VGIC_GRP_NR_IRQS`: the SPIs and the 32 private interrupts.
    #[must_use]
    pub const fn nr_irqs(&self) -> u32 {
        self.spis + PRIVATE_IRQS
    }

    /// How many ITSes there are.
    #[must_use]
    pub const fn its_count(&self) -> u8 {
        match self.msi {
            MsiConfig::Its { count } => count,
            MsiConfig::V2m { .. } | MsiConfig::None => 0,
        }
    }

    /// The three device-tree cells of a PPI that is wired to every vCPU. With a GICv2 the flags cell carries a mask of CPUs in
    /// bits 15–8; with a GICv3 these bits must be zero (Linux, `arm,gic.yaml` and `arm,gic-v3.yaml`).
    #[must_use]
    pub const fn ppi_cells(&self, ppi: Ppi, trigger: TriggerMode) -> [u32; 3] {
        let [kind, number, flags] = ppi.fdt_cells(trigger);
        let mask = match self.version {
            GicVersion::V2 => (1 << self.vcpus) - 1,
            GicVersion::V3 => 0,
        };
        [kind, number, flags | mask << 8]
    }

    /// The three device-tree cells of an SPI, for symmetry with [`ppi_cells`](Self::ppi_cells).
    ///
    /// # Errors
    /// If this GIC has no such SPI. KVM takes routes to SPIs that a VM does not have and then loses their interrupts, so the
    /// mistake is best caught here.
    pub const fn spi_cells(&self, spi: Spi, trigger: TriggerMode) -> Result<[u32; 3], OutOfRange> {
        if spi.get() >= self.spis {
            return Err(OutOfRange {
                what: "SPI of this GIC",
                value: spi.get() as u64,
                min: 0,
                max: self.spis as u64 - 1,
            });
        }
        Ok(spi.fdt_cells(trigger))
    }
}

impl fmt::Display for GicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, vcpus, spis, msi } = self;
        write!(f, "{version}")?;
        match msi {
            MsiConfig::Its { count: 1 } => f.write_str(" with an ITS")?,
            MsiConfig::Its { count } => write!(f, " with {count} ITSes")?,
            MsiConfig::V2m { spis } => write!(f, " with a GICv2m frame of {spis}")?,
            MsiConfig::None => {}
        }
        let s = if *vcpus == 1 { "" } else { "s" };
        write!(f, ", {vcpus} vCPU{s}, {spis} SPIs")
    }
}

/// SPI `n`, which fits because the SPIs were counted.
pub(crate) fn spi(n: u32) -> Result<Spi, ConfigError> {
    Spi::new(n).map_err(|_| ConfigError::Spis { asked: n, max: MAX_SPIS })
}
