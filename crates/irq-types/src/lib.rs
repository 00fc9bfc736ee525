// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt numbers and units that cannot be mistaken for each other.
//!
//! One interrupt of an arm64 guest has half a dozen numbers. The fifth shared peripheral interrupt is
//! [SPI](Spi) 4 in the device tree, [INTID](Intid) 36 in the GIC, [pin](Pin) 4 of KVM's irqchip 0, any
//! [GSI](Gsi) at all in the routing table, and `0x0100_0024` for `KVM_IRQ_LINE`. This crate gives each number space a type
//! with a checked constructor, and each crossing from one to another a name. Nothing else in a VMM needs to know the
//! arithmetic.
//!
//! ```
//! use irq_types::{Spi, TriggerMode};
//!
//! let uart = Spi::new(4)?;
//! assert_eq!(uart.intid().get(), 36);
//! assert_eq!(uart.pin().get(), 4);
//! assert_eq!(uart.kvm_irq_line(), 0x0100_0024);
//! // Device tree: <type number flags>, as the GIC binding has it.
//! assert_eq!(uart.fdt_cells(TriggerMode::Level), [0, 4, 4]);
//! # Ok::<(), irq_types::OutOfRange>(())
//! ```
//!
//! The crate has no dependencies and needs no standard library.

#![no_std]
#![forbid(unsafe_code)]

mod bdf;
mod gsi;
mod intid;
mod msi;
mod range;
mod trigger;

pub use bdf::{Bdf, ParseBdfError, Sbdf};
pub use gsi::{Gsi, IrqchipPin, Pin};
pub use intid::{Intid, Lpi, Ppi, Sgi, Spi};
pub use msi::{DeviceId, EventId, MsiMessage};
pub use range::OutOfRange;
pub use trigger::TriggerMode;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
