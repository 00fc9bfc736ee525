// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI for a VMM: functions, their configuration space and BARs, MSI and MSI-X, and the bus that finds them. No kernel in it.
//!
//! A guest's access takes this way:
//!
//! ```text
//! ECAM    ─▶ HostBridge ─▶ PciFunction::write_config ─▶ Endpoint ─▶ ConfigSpace      a register, a BAR moves
//!                                                                └▶ Msi, Msix       ─▶ VectorSink
//! windows ─▶ HostBridge ─▶ PciFunction::write_bar    ─▶ Endpoint ─▶ Msix             ─▶ VectorSink
//!                                                    └▶ the device's registers
//! ```
//!
//! Each step can be taken alone. [`ConfigSpace`] is a value with masks; [`Endpoint`] is what an emulated function holds; [`Msi`] and [`Msix`] serve one that passes a
//! device through, too; [`HostBridge`] takes whatever implements [`PciFunction`]; [`RootPort`] lets devices come and go. The README has a whole example.
//!
//! Sections are those of the PCI Express base specification 6.0 where nothing else is said.

#![forbid(unsafe_code)]

mod config;
mod endpoint;
mod error;
#[cfg(feature = "fdt")]
mod fdt;
mod function;
mod host;
mod lock;
mod msi;
mod msix;
mod port;
mod registers;
mod vectors;

pub use config::{BarKind, Capability, ClassCode, ConfigSpace, ExpressKind, Identity, IntxPin};
pub use endpoint::Endpoint;
pub use error::ConfigError;
#[cfg(feature = "fdt")]
pub use fdt::{HostNode, IntxTarget, MsiReceiver};
pub use function::{BarIndex, DecodedBar, PciFunction, Space};
pub use host::{
    BusError, BusEvent, HostBridge, HostConfig, IoWindow, Reason, Refusal, Region, Unassigned, WindowError,
};
pub use msi::{Msi, MsiLayout};
pub use msix::{Msix, MsixLayout, MsixRegion, MsixTable};
pub use port::{ErrorSeverity, PortConfig, PortInterrupts, RootPort};
pub use registers::ConfigWrite;
pub use vectors::{VectorChange, VectorSink};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
