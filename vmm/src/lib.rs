// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMM: a thin composition of the interrupt crates, rust-vmm's devices and one event loop.
//!
//! [`run`] is the whole of it: from a [`Config`] to an exit status. A reader who wants to follow one interrupt
//! starts at [`serial`] (the device), goes on to the crates `irqfd` and `gsi-routing`, and ends in `vgic`; the machine that connects them is
//! built in `machine`.

// Elsewhere the crate is built for its tests and its answers to wrong input; what makes VMs is then not called.
#![cfg_attr(not(target_arch = "aarch64"), allow(dead_code))]

pub mod balloon;
pub mod boot;
pub mod bus;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod devices;
pub mod doctor;
pub mod error;
pub mod fdt;
pub mod gpio;
#[cfg(target_arch = "aarch64")]
mod host;
#[cfg(target_arch = "aarch64")]
mod hotplug;
#[cfg(target_arch = "aarch64")]
mod inspect;
pub mod irq;
pub mod kernel;
pub mod layout;
#[cfg(target_arch = "aarch64")]
mod lines;
#[cfg(target_arch = "aarch64")]
mod live;
#[cfg(target_arch = "aarch64")]
mod load;
mod log;
#[cfg(target_arch = "aarch64")]
mod machine;
#[cfg(target_arch = "aarch64")]
mod measure;
pub mod memory;
pub mod metrics;
pub mod outcome;
pub mod pause;
#[cfg(target_arch = "aarch64")]
mod pci_host;
#[cfg(target_arch = "aarch64")]
mod platform;
pub mod power;
pub mod report;
pub mod rtc;
pub mod serial;
pub mod signals;
pub mod size;
pub mod status;
mod sys;
pub mod terminal;
pub mod v2m;
#[cfg(target_arch = "aarch64")]
pub mod vcpu;
mod vfio;
pub mod vfio_command;
pub mod vfio_config;
#[cfg(target_arch = "aarch64")]
mod vfio_pci;
#[cfg(target_arch = "aarch64")]
mod virtio;
pub mod wrap;

use config::Config;
use error::Result;
use kernel::{Initrd, Kernel};

/// Prepares the process for running guests. Once, before there are other threads.
pub fn prepare_process() {
    sys::one_heap();
    terminal::restore_on_panic();
}

/// Runs a guest to its end. Returns the exit status.
///
/// # Errors
/// If it cannot be started or cannot go on; the error has the exit status.
pub fn run(config: &Config) -> Result<u8> {
    log::init(config.log, config.log_format);
    // The user's files before the host: the same mistake gives the same message on every machine.
    let kernel = Kernel::open(&config.kernel, config.memory)?;
    let initrd = config.initrd.as_deref().map(Initrd::open).transpose()?;
    boot::place(
        kernel.text_offset(),
        kernel.image_size(),
        initrd.as_ref().map_or(0, Initrd::len),
        config.memory,
    )?;
    run_guest(config, kernel, initrd)
}

#[cfg(target_arch = "aarch64")]
use machine::run_guest;

#[cfg(not(target_arch = "aarch64"))]
fn run_guest(_config: &Config, _kernel: Kernel, _initrd: Option<Initrd>) -> Result<u8> {
    Err(error::Error::host(format!(
        "this is a {} host, and the guests of Doorbell are arm64: KVM cannot run one here",
        std::env::consts::ARCH
    ))
    .hint("use an arm64 host, or the emulated one: `make run`"))
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
