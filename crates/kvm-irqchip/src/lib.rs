// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The [`irqchip`] seam over KVM.
//!
//! [`KvmVm`] wraps a `kvm_ioctls::VmFd` and implements every trait of the seam, so that crates written against it run on the real
//! kernel. It adds no policy and keeps no state: each method is one ioctl, and the kernel's answer comes back with the operation and its
//! operands attached.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use irqchip::{CreateDevice, DeviceKind};
//! use kvm_ioctls::Kvm;
//! use kvm_irqchip::{HostIrqchips, KvmVm};
//!
//! let kvm = Kvm::new()?;
//! let host = HostIrqchips::probe(&kvm)?;
//! let vm = KvmVm::new(Arc::new(kvm.create_vm()?));
//! let gic = vm.create_device(if host.gic_v3 { DeviceKind::GicV3 } else { DeviceKind::GicV2 })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate is for arm64 and x86-64. What an architecture does not have answers as it does in the
//! kernel: no GIC on x86 (`ENODEV`), no PIC and IOAPIC on arm64 (`ENOTTY`).
//!
//! All of the workspace's unsafe code about KVM interrupts is in this crate's `sys` module.

mod device;
mod probe;
mod routing;
mod sys;
mod vm;

pub use device::KvmDevice;
pub use probe::{HostIrqchips, ProbeError};
pub use vm::KvmVm;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
