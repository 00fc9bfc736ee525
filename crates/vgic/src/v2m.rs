// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::{MsiMessage, Spi};

use crate::{MmioRegion, SpiRange};

/// `V2M_MSI_TYPER`: bits 25–16 the INTID of the first SPI, 9–0 how many.
const MSI_TYPER: u64 = 0x008;
/// `V2M_MSI_SETSPI_NS`: bits 9–0 of what is written are the INTID to raise. Write-only.
const MSI_SETSPI_NS: u64 = 0x040;
/// `V2M_MSI_IIDR`: who made it.
const MSI_IIDR: u64 = 0xfcc;

/// ProductID 0x44 in bits 31–20, no JEP106 code. Two implementations are known to guests by this register, and by having faults
/// (Linux 6.12, `drivers/irqchip/irq-gic-v2m.c`): this must be neither 0x0600_0170 nor 0x0000_013f.
const IIDR: u32 = 0x44 << 20;

/// The width of the INTID fields.
const INTID_MASK: u32 = 0x3ff;

/// A GICv2m frame: a page of registers that turns MSIs into edge-triggered SPIs (Arm Server Base System Architecture, appendix
/// "GICv2m Architecture").
///
/// KVM has none, so the VMM puts this one on its MMIO bus, at [`region`](Self::region). A device of the VMM or one passed
/// through does not come by here: its messages are recognised with [`spi_of`](Self::spi_of), and what raises the SPI is a
/// route to the SPI's *pin*, not an MSI route, which takes an ITS. Only writes of the guest's CPUs come by here.
///
/// The frame has no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct V2mFrame {
    region: MmioRegion,
    spis: SpiRange,
}

impl V2mFrame {
    /// How many bytes of registers there are.
    pub const SIZE: u64 = 0x1000;

    pub(crate) const fn new(region: MmioRegion, spis: SpiRange) -> Self {
        Self { region, spis }
    }

    /// Where it lies.
    #[must_use]
    pub const fn region(&self) -> MmioRegion {
        self.region
    }

    /// The SPIs it raises.
    #[must_use]
    pub const fn spis(&self) -> SpiRange {
        self.spis
    }

    /// The address that devices write to: `MSI_SETSPI_NS`.
    #[must_use]
    pub const fn doorbell(&self) -> u64 {
        self.region.base + MSI_SETSPI_NS
    }

    /// The message that raises `spi`, as a guest would program it. `None` if the SPI is not the frame's.
    #[must_use]
    pub const fn message(&self, spi: Spi) -> Option<MsiMessage> {
        if self.spis.contains(spi) {
            Some(MsiMessage { address: self.doorbell(), data: spi.intid().get() })
        } else {
            None
        }
    }

    /// The SPI that `message` raises. `None` if it goes somewhere else, or names an SPI that is not the frame's.
    #[must_use]
    pub fn spi_of(&self, message: MsiMessage) -> Option<Spi> {
        if message.address == self.doorbell() { self.raised_by(message.data) } else { None }
    }

    /// A guest's read at `offset` bytes into the frame, `data.len()` bytes wide. All registers are 32 bits wide; what is no
    /// register, and any other width, reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.register(offset).to_le_bytes();
        }
    }

    /// A guest's write at `offset` bytes into the frame. The result is the SPI to pulse, if any: everything but a 32-bit write of
    /// one of the frame's INTIDs to `MSI_SETSPI_NS` is ignored.
    #[must_use = "the SPI wants to be pulsed"]
    pub fn write(&self, offset: u64, data: &[u8]) -> Option<Spi> {
        match (offset, data.try_into()) {
            (MSI_SETSPI_NS, Ok(word)) => self.raised_by(u32::from_le_bytes(word)),
            _ => None,
        }
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            MSI_TYPER => self.spis.first().intid().get() << 16 | self.spis.count(),
            MSI_IIDR => IIDR,
            _ => 0,
        }
    }

    fn raised_by(&self, data: u32) -> Option<Spi> {
        match irq_types::Intid::new(data & INTID_MASK) {
            Ok(irq_types::Intid::Spi(spi)) if self.spis.contains(spi) => Some(spi),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x0802_0000;

    fn frame(first: u32, count: u32) -> V2mFrame {
        let region = MmioRegion { base: BASE, size: V2mFrame::SIZE };
        V2mFrame::new(region, SpiRange::new(Spi::new(first).unwrap(), count))
    }

    fn read(frame: &V2mFrame, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        frame.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn registers_read_as_the_binding_s_driver_expects() {
        let frame = frame(64, 32);
        // (offset, value): base INTID 96 and 32 SPIs; SETSPI is write-only; the rest is reserved.
        for (offset, value) in [(0x008, 96 << 16 | 32), (0x040, 0), (0xfcc, 0x0440_0000), (0, 0), (0xffc, 0)]
        {
            assert_eq!(read(&frame, offset), value, "offset {offset:#x}");
        }
    }

    #[test]
    fn an_access_of_another_width_reads_as_zero_and_raises_nothing() {
        let frame = frame(64, 32);
        for width in [1, 2, 3, 8] {
            let mut data = vec![0xff; width];
            frame.read(0x008, &mut data);
            assert_eq!(data, vec![0; width]);
            let mut data = vec![0; width];
            data[0] = 96;
            assert_eq!(frame.write(0x040, &data), None, "{width} bytes");
        }
    }

    #[test]
    fn only_the_frame_s_own_intids_raise_something() {
        let frame = frame(64, 32);
        for data in 0..=0x1400 {
            let want = (96..128).contains(&(data & 0x3ff)).then(|| Spi::new((data & 0x3ff) - 32).unwrap());
            assert_eq!(frame.write(0x040, &data.to_le_bytes()), want, "data {data:#x}");
            assert_eq!(frame.spi_of(MsiMessage { address: BASE + 0x40, data }), want);
            assert_eq!(frame.write(0x044, &data.to_le_bytes()), None);
            assert_eq!(frame.spi_of(MsiMessage { address: BASE + 0x44, data }), None);
        }
    }

    #[test]
    fn messages_and_spis_convert_both_ways() {
        let frame = frame(64, 32);
        for n in 0..Spi::COUNT {
            let spi = Spi::new(n).unwrap();
            match frame.message(spi) {
                Some(message) => assert_eq!(frame.spi_of(message), Some(spi)),
                None => assert!(!(64..96).contains(&n), "SPI {n}"),
            }
        }
    }
}
