// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Arm's Generic Interrupt Controller in a hypervisor's kernel: which one a VM gets, where it lies, what the guest is told of
//! it, and the one order in which it comes to life.
//!
//! A GIC passes through four hands, and each is a value that the next one takes:
//!
//! | | what it is | pure? |
//! |---|---|---|
//! | [`GicRequest`] | what a user asks for: version, MSIs, vCPUs, SPIs | yes |
//! | [`GicConfig`] | what the VM gets on this host, found with [`GicRequest::resolve_on`] | yes, but for two or three probes |
//! | [`GicLayout`] | where each frame of registers lies, solved from the free guest-physical ranges; writes the device-tree nodes | yes |
//! | [`Vgic`] → [`InitializedVgic`] | the devices in the kernel | each step is a call or a few |
//!
//! # The order
//! Create the devices, set their attributes, complete the initialisation explicitly, set no attribute after that, run the
//! vCPUs: so the kernel's maintainers and users agreed (thread "\[PATCH v7 10/17\] KVM: arm64: introduce new KVM ITS device",
//! Peter Maydell, 2016-07-04). The states of [`Vgic`] are types, so that another order does not compile:
//!
//! ```text
//! Vgic::create ─▶ Vgic<Created> ─set_addresses─▶ Vgic<Addressed> ─vcpus_final─▶ Vgic<VcpusFinal> ─init─▶ InitializedVgic
//! ```
//!
//! Only [`InitializedVgic`] hands out the [`IrqchipReady`](irqchip::IrqchipReady) token that arming an irqfd takes.
//!
//! The vCPUs are the VMM's. It creates them between `set_addresses` and `vcpus_final`, in ascending order and one after the
//! other: KVM gives redistributors to vCPUs in the order in which both are made, and that order is part of a saved VM's
//! ABI (Linux, `Documentation/virt/kvm/devices/arm-vgic-v3.rst`).
//!
//! # MSIs
//! With an ITS the kernel takes MSIs by itself. On hosts without one the guest gets a GICv2m frame, a page of registers
//! that the VMM emulates with [`V2mFrame`] and that turns MSIs into edge-triggered SPIs.
//!
//! # What is not here
//! Saving and restoring a GIC's state. It will come as further methods of [`InitializedVgic`].
//!
//! The crate talks to the kernel through the traits of the `irqchip` crate only; `kvm-irqchip` implements them over KVM. The
//! README has an example without any VMM around it.

#![forbid(unsafe_code)]

mod config;
mod error;
mod fdt;
mod host;
mod initialized;
mod layout;
mod lifecycle;
mod request;
mod v2m;
mod version;

pub use config::{GicConfig, MsiConfig, SpiRange};
pub use error::{ConfigError, Frame, LayoutError, VgicError};
pub use fdt::{GicNodes, GicPhandles, INTERRUPT_PARENT_ADDRESS_CELLS};
pub use host::HostGic;
pub use initialized::InitializedVgic;
pub use layout::{GicLayout, MmioRegion, RedistributorRegion};
pub use lifecycle::{Addressed, Created, VcpusFinal, Vgic};
pub use request::{GicRequest, MsiChoice, ParseChoiceError, VersionChoice};
pub use v2m::V2mFrame;
pub use version::GicVersion;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
