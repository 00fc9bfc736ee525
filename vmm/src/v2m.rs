// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The GICv2m frame: a write to it is an MSI, and an MSI is an edge on an SPI.
//!
//! Devices in this process and behind VFIO do not come this way: their messages become routes, and go without an exit. What arrives
//! here is what the guest itself writes.

use std::sync::Arc;

use irqchip::LineInjector;
use vgic::V2mFrame;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

/// The frame's registers as an MMIO device.
pub struct MsiFrame {
    frame: V2mFrame,
    lines: Arc<dyn LineInjector>,
}

impl MsiFrame {
    /// Registers of `frame`, whose SPIs are `lines` of the GIC.
    #[must_use]
    pub fn new(frame: V2mFrame, lines: Arc<dyn LineInjector>) -> Self {
        Self { frame, lines }
    }
}

impl DeviceMmio for MsiFrame {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.frame.read(offset, data);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let Some(spi) = self.frame.write(offset, data) else { return };
        let pulse = self.lines.set_spi(spi, true).and_then(|()| self.lines.set_spi(spi, false));
        if let Err(e) = pulse {
            tracing::error!("an MSI of the guest's is lost: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    use irq_types::{Ppi, Spi};
    use vgic::{GicLayout, GicRequest, HostGic, MsiChoice, VersionChoice};

    #[derive(Default)]
    struct Lines(Mutex<Vec<(u32, bool)>>);

    impl LineInjector for Lines {
        fn set_spi(&self, spi: Spi, high: bool) -> Result<(), irqchip::Error> {
            self.0.lock().unwrap().push((spi.get(), high));
            Ok(())
        }

        fn set_ppi(&self, _vcpu: u32, _ppi: Ppi, _high: bool) -> Result<(), irqchip::Error> {
            panic!("an MSI is no PPI");
        }
    }

    #[test]
    fn the_guests_own_message_pulses_its_spi() {
        let host = HostGic { v2: true, v3: false, its: false };
        let request =
            GicRequest { version: VersionChoice::V2, msi: MsiChoice::V2m, vcpus: 1, ..GicRequest::default() };
        let layout = GicLayout::solve(&request.resolve(&host).unwrap(), &crate::layout::GIC_WINDOWS).unwrap();
        let frame = layout.v2m_frame().unwrap();
        let lines = Arc::new(Lines::default());
        let device = MsiFrame::new(frame, Arc::clone(&lines) as _);

        let mut typer = [0; 4];
        device.mmio_read(MmioAddress(0), 8, &mut typer);
        let first = u32::from_le_bytes(typer) >> 16;
        device.mmio_write(MmioAddress(0), 0x40, &first.to_le_bytes());
        device.mmio_write(MmioAddress(0), 0x40, &0_u32.to_le_bytes());
        assert_eq!(*lines.0.lock().unwrap(), [(first - 32, true), (first - 32, false)]);
    }
}
