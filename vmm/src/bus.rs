// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's accesses to devices that live in this process, dispatched by address through vm-device.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_device::DeviceMmio;
use vm_device::bus::{self, BusRange, MmioAddress, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};

/// The MMIO bus.
#[derive(Default)]
pub struct Bus {
    devices: IoManager,
    reads: AtomicU64,
    writes: AtomicU64,
    nobody: AtomicU64,
}

/// How many accesses came, and how many found nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BusCounts {
    /// Loads.
    pub reads: u64,
    /// Stores.
    pub writes: u64,
    /// Of both, those to an address where no device is.
    pub nobody: u64,
}

impl Bus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at these addresses.
    ///
    /// # Errors
    /// If another is there.
    pub fn attach(
        &mut self,
        range: &Range<u64>,
        device: Arc<dyn DeviceMmio + Send + Sync>,
    ) -> Result<(), bus::Error> {
        let range: MmioRange = BusRange::new(MmioAddress(range.start), range.end - range.start)?;
        self.devices.register_mmio(range, device)
    }

    /// A load. Where no device is, all bits are ones, as a bus without anybody driving it reads.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.devices.mmio_read(MmioAddress(address), data).is_err() {
            data.fill(0xff);
            self.nobody(address, "read");
        }
    }

    /// A store. Where no device is, it is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if self.devices.mmio_write(MmioAddress(address), data).is_err() {
            self.nobody(address, "write");
        }
    }

    /// How many accesses there were.
    #[must_use]
    pub fn counts(&self) -> BusCounts {
        BusCounts {
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            nobody: self.nobody.load(Ordering::Relaxed),
        }
    }

    fn nobody(&self, address: u64, what: &str) {
        // Said once: a guest that probes must not be able to fill its host's log.
        if self.nobody.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                "the guest's {what} at {address:#x} finds no device; further ones are only counted"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtc::RealTimeClock;

    #[test]
    fn accesses_reach_the_device_or_nobody() {
        let mut bus = Bus::new();
        bus.attach(&(0x1000..0x2000), Arc::new(RealTimeClock::new())).unwrap();
        assert!(bus.attach(&(0x1800..0x2800), Arc::new(RealTimeClock::new())).is_err());
        let mut word = [0; 4];
        bus.read(0x1fe0, &mut word);
        assert_eq!(word, [0x31, 0, 0, 0]);
        bus.read(0x3000, &mut word);
        assert_eq!(word, [0xff; 4]);
        bus.write(0x3000, &word);
        // An access that straddles the end belongs to nobody.
        bus.read(0x1ffe, &mut word);
        assert_eq!(bus.counts(), BusCounts { reads: 3, writes: 1, nobody: 3 });
    }
}
