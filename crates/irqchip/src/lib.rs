// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The seam between interrupt code and the hypervisor that runs under it.
//!
//! Each trait here is one thing that a VMM wants of the kernel, in the VMM's words, and no more:
//!
//! | trait | intent | KVM's name for it |
//! |---|---|---|
//! | [`CreateDevice`] | have an interrupt controller | `KVM_CREATE_DEVICE` |
//! | [`DeviceControl`] | configure it | `KVM_{HAS,SET,GET}_DEVICE_ATTR` |
//! | [`CreateIrqchip`] | have the one an architecture comes with | `KVM_CREATE_IRQCHIP` |
//! | [`RoutingSink`] | say which GSI fires what | `KVM_SET_GSI_ROUTING` |
//! | [`IrqfdBinder`] | let an eventfd raise a GSI | `KVM_IRQFD` |
//! | [`IoeventBinder`] | let a guest's write signal an eventfd | `KVM_IOEVENTFD` |
//! | [`MsiInjector`], [`LineInjector`] | raise an interrupt from userspace | `KVM_SIGNAL_MSI`, `KVM_IRQ_LINE` |
//! | [`Capabilities`] | find out what this VM can do | `KVM_CHECK_EXTENSION` on the VM |
//!
//! All methods take `&self`, all traits are object-safe, `Send` and `Sync`: a backend is as shareable as the kernel's
//! file descriptor behind it. The crate `kvm-irqchip` implements them over KVM; with the feature `fake` this crate has a
//! model of the kernel that enforces the kernel's rules and fails any call on request, so that code on this
//! seam can be tested on any machine.
//!
//! An order that the kernel insists on is a type where that is possible: whoever holds an [`IrqchipReady`] has an
//! interrupt controller whose initialisation is finished.
//!
//! Types of the KVM bindings do not appear here. File descriptors cross as `BorrowedFd`.

#![forbid(unsafe_code)]

pub mod arm;
mod capability;
mod device;
mod errno;
mod error;
#[cfg(feature = "fake")]
pub mod fake;
mod inject;
mod ioevent;
mod irqfd;
mod ready;
mod routing;
mod vm;

pub use capability::{Capabilities, Capability};
pub use device::{AttrValue, CreateDevice, CreateIrqchip, DeviceAttr, DeviceControl, DeviceKind};
pub use errno::Errno;
pub use error::{Error, Operation};
pub use inject::{LineInjector, MsiDelivery, MsiInjector};
pub use ioevent::{IoAddress, IoeventBinder, IoeventSpec};
pub use irqfd::IrqfdBinder;
pub use ready::{IrqchipReady, ReadyError};
pub use routing::{Route, RouteTarget, RoutingSink};
pub use vm::{InterruptVm, VmId};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
