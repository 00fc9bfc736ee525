// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things are in the guest's physical address space.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0x0800_0000` | `0x0900_0000` | GIC: distributor, ITS, v2m frame, up to some 120 redistributors |
//! | `0x0900_0000` | `0x0900_1000` | serial port |
//! | `0x0901_0000` | `0x0901_1000` | real-time clock |
//! | `0x1000_0000` | `0x2000_0000` | GIC: further redistributors |
//! | `0x4000_0000` | … | memory |
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

/// Where memory begins: 1 GiB, so that a 1 GiB block of the stage-2 tables can map the start of it.
pub const RAM_BASE: u64 = 0x4000_0000;

/// How many SPIs the guest gets. Interrupt lines are few; MSIs do not count here.
pub const SPIS: u32 = 64;

/// The serial port's interrupt.
///
/// # Errors
/// Never: the number is a constant within the range.
pub const fn serial_spi() -> Result<Spi, OutOfRange> {
    Spi::new(0)
}

/// The performance monitor's interrupt, where Arm's Base System Architecture wants it (PPI 7, INTID 23).
///
/// # Errors
/// Never: the number is a constant within the range.
pub const fn pmu_ppi() -> Result<Ppi, OutOfRange> {
    Ppi::new(7)
}
