// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtio devices over virtio-pci: VIRTIO 1.3.
//!
//! A [`VirtioDevice`] is a device without its transport: [`Block`], [`Net`], [`Console`], [`Vsock`], [`Balloon`], [`Rng`], or one of your own. A
//! [`VirtioPciFunction`] makes a PCI function of it, whose queues are notified through ioeventfds and interrupt through irqfds. Between the driver's DRIVER_OK and its
//! reset the device works on its queues in threads of its own ([`Worker`]), each through a [`Ring`] that trusts the driver in nothing.
//!
//! ```
//! use virtio_devices::{Rng, VirtioDevice};
//!
//! let source = Rng::new();
//! assert_eq!((source.device_type(), source.queue_sizes().len()), (4, 1));
//! ```
//!
//! The README has a whole example.

mod balloon;
mod block;
mod console;
mod device;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod lock;
mod net;
mod queue;
mod rng;
mod sys;
#[cfg(test)]
mod testing;
mod transport;
mod vhost;
mod vsock;
mod worker;

pub use balloon::{Balloon, BalloonHandle, BalloonOptions, BalloonStats};
pub use block::{Block, BlockCounters, BlockError, BlockFormat, BlockOptions, host_has_io_uring};
pub use console::{Console, ConsoleError, ConsoleHandle};
pub use device::{ActivateError, Activation, ActiveQueue, QueueInterrupt, Transport, VirtioDevice};
pub use net::{
    MAX_TAP_QUEUES, MacAddress, MacError, Net, NetCounters, NetError, NetHandle, NetOptions, Tap, TapError,
};
pub use queue::{Chain, MAX_SEGMENTS, Ring, RingError, Segment};
pub use rng::Rng;
pub use transport::{PciError, PciWiring, VirtioPciFunction, VirtioPciState};
pub use vhost::Vhost;
pub use vsock::{GuestCid, VhostVsock, Vsock, VsockError};
pub use worker::{EventHandler, Events, Interest, Worker};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
