// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A model of the kernel that enforces the kernel's rules.
//!
//! [`FakeVm`] implements every trait of this crate the way Linux 6.12 does, refusals included: an irqfd before the GIC's
//! initialisation is `EAGAIN`, initialisation replaces the routing table, a second GIC is `EEXIST`, and so on; each rule's code
//! cites the kernel file it was read off. The workspace's contract suite runs the same tests on this model and on real KVM, so
//! that a difference between the two is a failing test.
//!
//! Beyond what the kernel has, a fake offers what a test needs:
//!
//! * a guest, [`FakeVm::guest`], which configures, takes and ends interrupts, and writes to ioeventfds;
//! * vCPUs, to be created and run ([`FakeVm::create_vcpu`], [`FakeVm::run_vcpu`]);
//! * failures on request: the n-th call of a kind, or of any kind, answers any errno ([`Fault`]). A call that fails so has changed
//!   nothing;
//! * a count and a log of calls, for tests of how many ioctls something costs ([`FakeVm::calls`], [`FakeVm::count`]);
//! * an account of what is still bound, for tests of what is left behind ([`FakeVm::live`]).
//!
//! Eventfds are real ones. The kernel acts the moment one is signalled; the model has no wait queue and looks at all bound
//! eventfds at the start of each call and of each look at its state, so that a test which signals and then looks sees what the
//! kernel would have done. [`FakeVm::process`] looks explicitly.
//!
//! ```
//! use irq_types::{Gsi, Spi, TriggerMode};
//! use irqchip::fake::{FakeHost, Interrupt, eventfd, signal};
//! use irqchip::{CreateDevice, DeviceKind, IrqchipReady, IrqfdBinder};
//! use std::os::fd::AsFd;
//!
//! let vm = FakeHost::arm64_gicv3().vm();
//! let gic = vm.create_device(DeviceKind::GicV3)?;
//! vm.create_vcpu(0)?;
//! let ready = IrqchipReady::init_vgic(&*gic, 224)?;
//! assert_eq!(ready.lines(), 224);
//!
//! // The guest's driver for SPI 7, and a device's eventfd on the default route of its pin.
//! let spi = Spi::new(7)?;
//! vm.guest().configure_spi(spi, TriggerMode::Edge)?;
//! let event = eventfd()?;
//! vm.assign_irqfd(event.as_fd(), Gsi::new(7), None)?;
//! signal(&event)?;
//! assert_eq!(vm.guest().take_all(10), [Interrupt::Intid(spi.intid())]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What the model leaves out: `EPOLLHUP` (closing an eventfd's last descriptor detaches its irqfd in the kernel; the model keeps
//! a descriptor of its own until the irqfd is deassigned, so a forgotten one shows up in [`FakeVm::live`]); guest memory, and with it
//! the ITS's command queue and tables (the guest maps events by a call instead); SGIs; timers; the GICv4 paths; which of several
//! vCPUs takes an SPI.

mod base_registers;
mod cpu_interface;
mod device;
mod faults;
mod guest;
mod host;
mod ioevent;
mod irqfd;
mod its;
mod lines;
mod redist;
mod registers;
mod routing;
mod state;
mod sys;
mod vgic;
mod vm;
mod x86;

pub use device::FakeDevice;
pub use faults::{Call, Fault, LoggedCall};
pub use guest::{FakeGuest, Interrupt};
pub use host::FakeHost;
pub use sys::{drain, eventfd, signal};
pub use vm::{FakeVm, Live};

#[cfg(test)]
mod tests;
