// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things are in the guest's physical address space.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0x0800_0000` | `0x0900_0000` | GIC: distributor, ITS, v2m frame, up to some 120 redistributors |
//! | `0x0900_0000` | `0x0900_1000` | serial port |
//! | `0x0901_0000` | `0x0901_1000` | real-time clock |
//! | `0x0902_0000` | `0x0902_1000` | GPIO: the power button |
//! | `0x0b00_0000` | `0x0b01_0000` | PCI: I/O ports |
//! | `0x0c00_0000` | `0x0e00_0000` | platform devices of the host's |
//! | `0x1000_0000` | `0x2000_0000` | GIC: further redistributors |
//! | `0x2000_0000` | `0x3000_0000` | PCI: 32-bit memory window |
//! | `0x3000_0000` | `0x4000_0000` | PCI: configuration space, 256 buses of 1 MiB |
//! | `0x4000_0000` | … | memory |
//! | after memory, at a multiple of its size | 256 GiB (less where addresses are narrow) | PCI: 64-bit memory window |
//!
//! The order is that of QEMU's and kvmtool's machines, which firmware and kernels have seen most of.

use std::ops::Range;

use irq_types::{OutOfRange, Ppi, Spi};

/// Where the GIC may put its registers, in order of preference.
pub const GIC_WINDOWS: [Range<u64>; 2] = [0x0800_0000..0x0900_0000, 0x1000_0000..0x2000_0000];

/// The serial port's registers.
pub const SERIAL: Range<u64> = 0x0900_0000..0x0900_1000;

/// The real-time clock's registers.
pub const RTC: Range<u64> = 0x0901_0000..0x0901_1000;

/// The GPIO controller's registers.
pub const GPIO: Range<u64> = 0x0902_0000..0x0902_1000;

/// What the CPU sees of PCI's I/O ports, which begin at 0.
pub const PCI_IO: Range<u64> = 0x0b00_0000..0x0b01_0000;

/// Where the registers of the host's platform devices are put.
pub const PLATFORM: Range<u64> = 0x0c00_0000..0x0e00_0000;

/// PCI memory below 4 GiB.
pub const PCI_MEMORY_32: Range<u64> = 0x2000_0000..0x3000_0000;

/// PCI configuration space (ECAM): 256 buses.
pub const PCI_ECAM: Range<u64> = 0x3000_0000..0x4000_0000;

/// The 64-bit window at its full size.
const PCI_MEMORY_64: u64 = 256 << 30;

/// PCI memory above all else, for a guest with `memory` bytes and `bits` bits of guest-physical address: as much as fits, aligned to its size;
/// `None` if that is less than 1 GiB.
#[must_use]
pub fn pci_memory_64(memory: u64, bits: u32) -> Option<Range<u64>> {
    let limit = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
    let end = RAM_BASE.checked_add(memory)?.max(1 << 32);
    (30..=PCI_MEMORY_64.trailing_zeros()).rev().map(|log| 1_u64 << log).find_map(|size| {
        let base = end.checked_next_multiple_of(size)?;
        base.checked_add(size).filter(|&end| end <= limit).map(|end| base..end)
    })
}

/// Where memory begins: 1 GiB, so that a 1 GiB block of the stage-2 tables can map the start of it.
pub const RAM_BASE: u64 = 0x4000_0000;

/// How many SPIs the guest gets. Interrupt lines are few; MSIs do not count here.
pub const SPIS: u32 = 64;

/// The SPIs that platform devices of the host's get.
pub const PLATFORM_SPIS: Range<u32> = 16..SPIS;

/// The serial port's interrupt.
///
/// # Errors
/// Never: the number is a constant within the range.
pub const fn serial_spi() -> Result<Spi, OutOfRange> {
    Spi::new(0)
}

/// The power button's interrupt.
///
/// # Errors
/// Never: the number is a constant within the range.
pub const fn gpio_spi() -> Result<Spi, OutOfRange> {
    Spi::new(1)
}

/// The lines of PCI's INTA to INTD at slot 0; further slots take them in turn.
///
/// # Errors
/// Never: the numbers are constants within the range.
pub fn pci_spis() -> Result<[Spi; 4], OutOfRange> {
    Ok([Spi::new(4)?, Spi::new(5)?, Spi::new(6)?, Spi::new(7)?])
}

/// The performance monitor's interrupt, where Arm's Base System Architecture wants it (PPI 7, INTID 23).
///
/// # Errors
/// Never: the number is a constant within the range.
pub const fn pmu_ppi() -> Result<Ppi, OutOfRange> {
    Ppi::new(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_64_bit_window_is_as_large_as_addresses_allow() {
        const GIB: u64 = 1 << 30;
        for (memory, bits, window) in [
            (512 << 20, 40, Some(256 * GIB..512 * GIB)),
            (512 << 20, 36, Some(32 * GIB..64 * GIB)),
            (300 * GIB, 40, Some(512 * GIB..768 * GIB)),
            (512 << 20, 33, Some(4 * GIB..8 * GIB)),
            (512 << 20, 32, None),
            (1000 * GIB, 40, Some(1008 * GIB..1024 * GIB)),
            (u64::MAX - 1, 52, None),
        ] {
            assert_eq!(pci_memory_64(memory, bits), window, "{memory:#x} bytes, {bits} bits");
        }
    }
}
