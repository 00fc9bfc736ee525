// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI and platform devices of the host in a guest, through VFIO, their interrupts from eventfd to irqfd without userspace.
//!
//! A device goes through four hands:
//!
//! 1. [`host`] finds it in sysfs and says which driver and IOMMU group it has;
//! 2. [`iommu`] opens it by one of the kernel's interfaces and attaches it to the guest's memory, which [`DmaSpace`] maps once for all
//!    devices;
//! 3. [`Device`] is the open device: regions, interrupts, reset;
//! 4. [`pci`] and [`platform`] make it a device of the guest: registers into the guest's address space through [`GuestSlots`], interrupts to
//!    the guest's lines and messages through the crate `irqfd`, and for [`platform`] the node of the device tree.
//!
//! A guest's memory is mapped when the first device is opened; everything is undone in reverse when it is dropped, also half-way through a
//! failure. [`RawDevice`] and [`iommu::Iommu`] are the seams to the kernel.

mod device;
mod dma;
mod error;
#[cfg(feature = "fake")]
pub mod fake;
pub mod host;
mod hot_reset;
mod info;
pub mod iommu;
mod irq_set;
mod level;
pub mod pci;
pub mod platform;
mod slots;
mod sys;

pub use device::{Device, RawDevice, Refused};
pub use dma::{DmaSpace, DmaSpaces, PeerMapping};
pub use error::Error;
pub use hot_reset::{AffectedDevice, HotReset, HotResetInfo, ResetOwner};
pub use info::{DeviceInfo, DeviceKind, IrqInfo, RegionInfo};
pub use irq_set::{IrqAction, IrqSet};
pub use level::{LevelInterrupt, ResamplePath};
pub use slots::{GuestSlots, Slot, SlotMemory};
pub use sys::Mapping;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
