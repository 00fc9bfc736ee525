// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use core::fmt;

use crate::range::check;
use crate::{OutOfRange, Pin, TriggerMode};

/// First INTID of the private peripheral interrupts.
const PPI_BASE: u32 = 16;
/// First INTID of the shared peripheral interrupts.
const SPI_BASE: u32 = 32;
/// INTIDs 1020 to 1023 are special (IHI 0069H, section 2.2.1).
const SPI_LAST_INTID: u32 = 1019;
/// First INTID of the locality-specific peripheral interrupts.
const LPI_BASE: u32 = 8192;
/// An ITS of KVM translates to at most 16 bits of INTID (Linux 6.12, `arch/arm64/kvm/vgic/vgic.h`, `INTERRUPT_ID_BITS_ITS`).
const LPI_LAST: u32 = u16::MAX as u32;

/// `KVM_ARM_IRQ_TYPE_SHIFT`, the place of the type in the number that `KVM_IRQ_LINE` takes.
const LINE_TYPE_SHIFT: u32 = 24;
/// `KVM_ARM_IRQ_VCPU_SHIFT`, the place of the low eight bits of the vCPU index.
const LINE_VCPU_SHIFT: u32 = 16;
/// `KVM_ARM_IRQ_VCPU2_SHIFT`, the place of the high four bits of the vCPU index.
const LINE_VCPU2_SHIFT: u32 = 28;
/// `KVM_ARM_IRQ_TYPE_SPI`.
const LINE_TYPE_SPI: u32 = 1;
/// `KVM_ARM_IRQ_TYPE_PPI`.
const LINE_TYPE_PPI: u32 = 2;

/// A software-generated interrupt, SGI 0 to 15, which is also its INTID. CPUs send SGIs to each other; nobody else can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sgi(u32);

/// A private peripheral interrupt, PPI 0 to 15, INTID 16 to 31: one wire for each CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ppi(u32);

/// A shared peripheral interrupt, SPI 0 to 987, INTID 32 to 1019: a wire of the distributor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spi(u32);

/// A locality-specific peripheral interrupt, INTID 8192 to 65535: what an ITS makes of an MSI. It has no wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lpi(u32);

/// An interrupt as the GIC architecture numbers it (IHI 0069H, section 2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Intid {
    /// 0 to 15, from CPU to CPU.
    Sgi(Sgi),
    /// 16 to 31, private to a CPU.
    Ppi(Ppi),
    /// 32 to 1019, shared.
    Spi(Spi),
    /// 8192 and above, message-based.
    Lpi(Lpi),
}

impl Sgi {
    /// SGI `n`.
    ///
    /// # Errors
    /// If `n` is greater than 15.
    pub const fn new(n: u32) -> Result<Self, OutOfRange> {
        match check("SGI", n, 0, PPI_BASE - 1) {
            Ok(n) => Ok(Self(n)),
            Err(e) => Err(e),
        }
    }

    /// The number among the SGIs, which is also the INTID.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// As an INTID.
    #[must_use]
    pub const fn intid(self) -> Intid {
        Intid::Sgi(self)
    }
}

impl Ppi {
    /// PPI `n`, that is INTID 16 + `n`.
    ///
    /// # Errors
    /// If `n` is greater than 15.
    pub const fn new(n: u32) -> Result<Self, OutOfRange> {
        match check("PPI", n, 0, SPI_BASE - PPI_BASE - 1) {
            Ok(n) => Ok(Self(n)),
            Err(e) => Err(e),
        }
    }

    /// The number among the PPIs: the device tree's second cell.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// As an INTID: 16 + n.
    #[must_use]
    pub const fn intid(self) -> Intid {
        Intid::Ppi(self)
    }

    /// The three cells of a GIC interrupt specifier: type 1, number, flags.
    #[must_use]
    pub const fn fdt_cells(self, trigger: TriggerMode) -> [u32; 3] {
        [1, self.0, trigger.fdt_flag()]
    }

    /// The number that `KVM_IRQ_LINE` takes for this PPI of vCPU `vcpu` (Linux 6.12, `Documentation/virt/kvm/api.rst`,
    /// section 4.25): bits 31–28 and 23–16 the vCPU index, 27–24 the type, 15–0 the INTID.
    ///
    /// # Errors
    /// If `vcpu` does not fit the twelve bits the encoding has for it.
    pub const fn kvm_irq_line(self, vcpu: u32) -> Result<u32, OutOfRange> {
        match check("vCPU index of KVM_IRQ_LINE", vcpu, 0, 0xfff) {
            Ok(vcpu) => Ok(((vcpu >> 8) << LINE_VCPU2_SHIFT)
                | (LINE_TYPE_PPI << LINE_TYPE_SHIFT)
                | ((vcpu & 0xff) << LINE_VCPU_SHIFT)
                | (PPI_BASE + self.0)),
            Err(e) => Err(e),
        }
    }
}

impl Spi {
    /// How many SPIs the architecture has room for.
    pub const COUNT: u32 = SPI_LAST_INTID - SPI_BASE + 1;

    /// SPI `n`, that is INTID 32 + `n`.
    ///
    /// # Errors
    /// If `n` is greater than 987.
    pub const fn new(n: u32) -> Result<Self, OutOfRange> {
        match check("SPI", n, 0, Self::COUNT - 1) {
            Ok(n) => Ok(Self(n)),
            Err(e) => Err(e),
        }
    }

    /// The number among the SPIs: the device tree's second cell.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// As an INTID: 32 + n.
    #[must_use]
    pub const fn intid(self) -> Intid {
        Intid::Spi(self)
    }

    /// The input of KVM's in-kernel GIC that drives this SPI. KVM counts the pins of its GIC without the 32 private
    /// interrupts (Linux 6.12, `arch/arm64/kvm/vgic/vgic-irqfd.c`, `vgic_irqfd_set_irq`).
    #[must_use]
    pub const fn pin(self) -> Pin {
        Pin::new(self.0)
    }

    /// The SPI behind a pin of KVM's in-kernel GIC.
    ///
    /// # Errors
    /// If the GIC architecture has no such SPI.
    pub const fn from_pin(pin: Pin) -> Result<Self, OutOfRange> {
        Self::new(pin.get())
    }

    /// The three cells of a GIC interrupt specifier: type 0, number, flags.
    #[must_use]
    pub const fn fdt_cells(self, trigger: TriggerMode) -> [u32; 3] {
        [0, self.0, trigger.fdt_flag()]
    }

    /// The number that `KVM_IRQ_LINE` takes for this SPI (Linux 6.12, `Documentation/virt/kvm/api.rst`, section 4.25):
    /// the type in bits 27–24 and the INTID, not the pin, in bits 15–0.
    #[must_use]
    pub const fn kvm_irq_line(self) -> u32 {
        (LINE_TYPE_SPI << LINE_TYPE_SHIFT) | (SPI_BASE + self.0)
    }
}

impl Lpi {
    /// The LPI with INTID `intid`.
    ///
    /// # Errors
    /// If `intid` is not in 8192..=65535.
    pub const fn new(intid: u32) -> Result<Self, OutOfRange> {
        match check("LPI", intid, LPI_BASE, LPI_LAST) {
            Ok(n) => Ok(Self(n)),
            Err(e) => Err(e),
        }
    }

    /// The INTID; LPIs are not counted from zero anywhere.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// As an INTID.
    #[must_use]
    pub const fn intid(self) -> Intid {
        Intid::Lpi(self)
    }
}

impl Intid {
    /// The interrupt with this INTID.
    ///
    /// # Errors
    /// For the special INTIDs 1020–1023, the extended and reserved ranges 1024–8191, and beyond what an ITS of KVM
    /// can translate to. The error names the LPI range for numbers from 1020 up, since no wire lives there.
    pub const fn new(intid: u32) -> Result<Self, OutOfRange> {
        if intid < PPI_BASE {
            Ok(Self::Sgi(Sgi(intid)))
        } else if intid < SPI_BASE {
            Ok(Self::Ppi(Ppi(intid - PPI_BASE)))
        } else if intid <= SPI_LAST_INTID {
            Ok(Self::Spi(Spi(intid - SPI_BASE)))
        } else {
            match Lpi::new(intid) {
                Ok(lpi) => Ok(Self::Lpi(lpi)),
                Err(e) => Err(e),
            }
        }
    }

    /// The number in the GIC's own space.
    #[must_use]
    pub const fn get(self) -> u32 {
        match self {
            Self::Sgi(Sgi(n)) => n,
            Self::Ppi(Ppi(n)) => PPI_BASE + n,
            Self::Spi(Spi(n)) => SPI_BASE + n,
            Self::Lpi(Lpi(n)) => n,
        }
    }
}

impl fmt::Display for Sgi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SGI {}", self.0)
    }
}

impl fmt::Display for Ppi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PPI {}", self.0)
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SPI {}", self.0)
    }
}

impl fmt::Display for Lpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LPI {}", self.0)
    }
}

impl fmt::Display for Intid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sgi(n) => n.fmt(f),
            Self::Ppi(n) => n.fmt(f),
            Self::Spi(n) => n.fmt(f),
            Self::Lpi(n) => n.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intid_ranges_follow_the_architecture() {
        // (INTID, kind and number within the kind, or None where no interrupt lives)
        let table: &[(u32, Option<Intid>)] = &[
            (0, Some(Intid::Sgi(Sgi(0)))),
            (15, Some(Intid::Sgi(Sgi(15)))),
            (16, Some(Intid::Ppi(Ppi(0)))),
            (31, Some(Intid::Ppi(Ppi(15)))),
            (32, Some(Intid::Spi(Spi(0)))),
            (1019, Some(Intid::Spi(Spi(987)))),
            (1020, None),
            (1023, None),
            (1024, None),
            (8191, None),
            (8192, Some(Intid::Lpi(Lpi(8192)))),
            (65535, Some(Intid::Lpi(Lpi(65535)))),
            (65536, None),
            (u32::MAX, None),
        ];
        for &(n, want) in table {
            assert_eq!(Intid::new(n).ok(), want, "INTID {n}");
            if let Ok(intid) = Intid::new(n) {
                assert_eq!(intid.get(), n);
            }
        }
    }

    #[test]
    fn constructors_refuse_what_lies_outside() {
        assert!(Sgi::new(15).is_ok() && Sgi::new(16).is_err());
        assert!(Ppi::new(15).is_ok() && Ppi::new(16).is_err());
        assert!(Spi::new(987).is_ok() && Spi::new(988).is_err());
        assert!(Lpi::new(8191).is_err() && Lpi::new(8192).is_ok());
        let error = Spi::new(988).unwrap_err();
        assert_eq!((error.what, error.value, error.min, error.max), ("SPI", 988, 0, 987));
    }

    #[test]
    fn each_kind_counts_from_its_own_zero() {
        let (sgi, ppi) = (Sgi::new(7).unwrap(), Ppi::new(11).unwrap());
        let (spi, lpi) = (Spi::new(7).unwrap(), Lpi::new(8200).unwrap());
        assert_eq!([sgi.get(), ppi.get(), spi.get(), lpi.get()], [7, 11, 7, 8200]);
        let intids = [sgi.intid(), ppi.intid(), spi.intid(), lpi.intid()];
        assert_eq!(intids.map(Intid::get), [7, 27, 39, 8200]);
        assert_eq!((spi.pin(), Spi::from_pin(Pin::new(7))), (Pin::new(7), Ok(spi)));
    }

    #[test]
    fn irq_line_numbers_are_those_of_the_kernel_documentation() {
        let spi = |n| Spi::new(n).unwrap().kvm_irq_line();
        assert_eq!(spi(0), 0x0100_0020);
        assert_eq!(spi(987), 0x0100_03fb);
        let ppi = |n, vcpu| Ppi::new(n).unwrap().kvm_irq_line(vcpu);
        assert_eq!(ppi(11, 0), Ok(0x0200_001b));
        assert_eq!(ppi(11, 255), Ok(0x02ff_001b));
        assert_eq!(ppi(11, 256), Ok(0x1200_001b));
        assert_eq!(ppi(11, 0xfff), Ok(0xf2ff_001b));
        assert!(ppi(11, 0x1000).is_err());
    }

    #[test]
    fn fdt_cells_count_within_the_kind() {
        assert_eq!(Spi::new(7).unwrap().fdt_cells(TriggerMode::Edge), [0, 7, 1]);
        assert_eq!(Ppi::new(14).unwrap().fdt_cells(TriggerMode::Level), [1, 14, 4]);
    }
}
