// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfd plumbing for interrupts: the way from a device to the routing table, and back.
//!
//! A device holds a *wire*: an [`EdgeLine`], a [`LevelLine`], or an [`MsiVector`]. It never learns a GSI, an INTID or a message. The
//! VMM holds the other end: an [`EdgeTrigger`] or a [`LevelTrigger`], which it wires to a line, or a [`VectorGroup`], to which it passes what the
//! guest writes to a device's MSI or MSI-X capability. Between the two is an eventfd, so that a device in the kernel, or in
//! another process, can hold the wire as well.
//!
//! ```
//! use irqfd::LevelTrigger;
//!
//! let uart = LevelTrigger::new()?;
//! let line = uart.line(); // for the device
//! line.assert()?; // nobody hears it yet; it is up the moment the VMM wires it
//! assert!(uart.state()?.high);
//! # Ok::<(), irqfd::Error>(())
//! ```
//!
//! The README has a whole example. [`LevelTrigger`] says how a level crosses an eventfd; [`VectorGroup`] what calls cost and what a failure means;
//! the other direction, a guest's write that signals an eventfd, is [`IoEvent`].

#![forbid(unsafe_code)]

mod edge;
mod error;
#[cfg(feature = "event-manager")]
mod event_manager;
mod eventfd;
mod gate;
mod group;
mod inject;
mod ioevent;
mod level;
mod lock;
#[cfg(feature = "pci")]
mod pci;
mod settle;
mod vector;
mod wires;
mod wiring;

#[cfg(feature = "event-manager")]
pub use self::event_manager::{ResampleEvent, ResampleSubscriber};
pub use edge::{EdgeState, EdgeTrigger};
pub use error::{Error, EventfdAction};
pub use group::{Changes, VectorGroup};
pub use inject::{InjectedLine, MsiSender};
pub use ioevent::{Doorbell, IoEvent};
pub use level::{LevelFds, LevelState, LevelTrigger, Resample, Resampler};
pub use vector::{InterruptVector, Obstacle, VectorCounts, VectorState};
pub use wires::{EdgeLine, LevelLine, MsiVector};
pub use wiring::Wiring;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
