// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's accesses to devices that live in this process, dispatched by address through vm-device.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vm_device::DeviceMmio;
use vm_device::bus::{self, BusRange, MmioAddress, MmioAddressOffset, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};

use crate::metrics::Histogram;

/// The MMIO bus.
#[derive(Default)]
pub struct Bus {
    devices: IoManager,
    reads: AtomicU64,
    writes: AtomicU64,
    nobody: AtomicU64,
    /// How long accesses take, by where the devices begin; `None` if nobody wants to know.
    times: Option<Vec<(u64, Arc<Histogram>)>>,
}

/// A device whose accesses are timed.
struct Timed {
    device: Arc<dyn DeviceMmio + Send + Sync>,
    histogram: Arc<Histogram>,
}

impl DeviceMmio for Timed {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        let start = Instant::now();
        self.device.mmio_read(base, offset, data);
        self.histogram.record(start.elapsed());
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let start = Instant::now();
        self.device.mmio_write(base, offset, data);
        self.histogram.record(start.elapsed());
    }
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

    /// An empty bus that times each access to the devices that are put on it, if that is asked for. If not, it costs nothing.
    #[must_use]
    pub fn timed(timed: bool) -> Self {
        Self { times: timed.then(Vec::new), ..Self::default() }
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
        let start = range.start;
        let range: MmioRange = BusRange::new(MmioAddress(start), range.end - start)?;
        let Some(times) = &mut self.times else { return self.devices.register_mmio(range, device) };
        let histogram = Arc::new(Histogram::default());
        let timed = Timed { device, histogram: Arc::clone(&histogram) };
        self.devices.register_mmio(range, Arc::new(timed))?;
        times.push((start, histogram));
        Ok(())
    }

    /// How long accesses to each device took, by the address where it begins. Empty if they are not timed.
    #[must_use]
    pub fn times(&self) -> &[(u64, Arc<Histogram>)] {
        self.times.as_deref().unwrap_or_default()
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
        assert!(bus.times().is_empty());
    }

    #[test]
    fn a_bus_that_is_to_be_timed_counts_each_devices_accesses() {
        let mut bus = Bus::timed(true);
        bus.attach(&(0x1000..0x2000), Arc::new(RealTimeClock::new())).unwrap();
        bus.attach(&(0x3000..0x4000), Arc::new(RealTimeClock::new())).unwrap();
        assert!(bus.attach(&(0x1800..0x2800), Arc::new(RealTimeClock::new())).is_err());
        let mut word = [0; 4];
        bus.read(0x1fe0, &mut word);
        assert_eq!(word, [0x31, 0, 0, 0]);
        bus.write(0x1000, &word);
        bus.read(0x8000, &mut word);
        let counts: Vec<_> = bus.times().iter().map(|(at, times)| (*at, times.snapshot().count)).collect();
        assert_eq!(counts, [(0x1000, 2), (0x3000, 0)]);
    }
}
