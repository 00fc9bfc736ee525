// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bare-metal guest that takes interrupts and counts them, in a VM put together straight from the crates.
//!
//! There is nothing between an interrupt and its count but a handler of a few instructions, and nothing between the count and the test
//! but memory: the guest's `resources/metal` and this module share a [`Mailbox`]. So "arrived exactly once" is a comparison of two numbers,
//! and an exit to userspace for an interrupt cannot hide among others.
//!
//! ```no_run
//! use doorbell_tests::metal::{Kind, Machine};
//! use irqfd::EdgeTrigger;
//! use vgic::GicRequest;
//!
//! # fn test() {
//! let Some(machine) = Machine::start("a_test", GicRequest::default(), |_| true, "a GIC") else { return };
//! let spi = irq_types::Spi::new(3).unwrap();
//! machine.wire(spi.intid(), Kind::Edge, 0);
//! let trigger = EdgeTrigger::new().unwrap();
//! trigger.wire(machine.wiring(), &machine.line(spi)).unwrap();
//! let serving = machine.serve();
//! trigger.line().signal().unwrap();
//! machine.until("the interrupt to arrive", || machine.mailbox().count(spi.intid()) == 1);
//! # }
//! ```

mod beside;
mod cpu;
mod device;
mod event_loop;
mod exactly_once;
mod machine;
mod mailbox;
mod returns;
mod slots;
mod vcpu;

pub use beside::beside;
pub use cpu::{Command, Serving};
pub use device::Device;
pub use event_loop::EventLoop;
pub use exactly_once::exactly_once;
pub use machine::Machine;
pub use mailbox::{Kind, Mailbox};
pub use returns::Returns;
pub use slots::Slots;
