// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The real-time clock: vm-superio's PL031 as an MMIO device. It tells the time; it has no alarm.

use std::sync::{Mutex, PoisonError};

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_superio::Rtc;
use vm_superio::rtc_pl031::NoEvents;

/// A PL031 (Arm DDI 0224).
pub struct RealTimeClock(Mutex<Rtc<NoEvents>>);

impl RealTimeClock {
    /// A clock that shows the host's time.
    #[must_use]
    pub fn new() -> Self {
        Self(Mutex::new(Rtc::new()))
    }
}

impl Default for RealTimeClock {
    fn default() -> Self {
        Self::new()
    }
}

impl DeviceMmio for RealTimeClock {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        // The registers take 32-bit accesses only; others read as zero.
        if let (Ok(offset), Ok(word)) = (u16::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset, word);
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let (Ok(offset), Ok(word)) = (u16::try_from(offset), <&[u8; 4]>::try_from(data)) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifies_itself_as_a_pl031_and_tells_a_time_after_2020() {
        let rtc = RealTimeClock::new();
        let read = |offset| {
            let mut word = [0; 4];
            rtc.mmio_read(MmioAddress(0), offset, &mut word);
            u32::from_le_bytes(word)
        };
        // PeriphID0 to 3, one byte each: part 0x031 of designer 0x41.
        let id: Vec<u32> = (0..4).map(|n| read(0xfe0 + 4 * n)).collect();
        assert_eq!(id, [0x31, 0x10, 0x04, 0x00]);
        assert!(read(0) > 1_577_836_800);
    }

    #[test]
    fn odd_accesses_do_no_harm() {
        let rtc = RealTimeClock::new();
        let mut byte = [0xff];
        rtc.mmio_read(MmioAddress(0), 0, &mut byte);
        assert_eq!(byte, [0]);
        rtc.mmio_write(MmioAddress(0), 0x10_0000, &[0; 4]);
    }
}
