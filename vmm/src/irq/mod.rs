// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every interrupt of a machine, to look at: where it is ([`mod@line`]), as text ([`table`]), and why it does not arrive ([`mod@explain`]).
//!
//! Nothing here runs before somebody asks. What is asked for is collected from states and counters that the crates keep anyway, and what they cannot know, since it goes
//! from kernel to kernel, from the host's `/proc/interrupts` ([`host`]) and the kernel's view of the guest's GIC.

pub mod collect;
pub mod explain;
pub mod gic;
pub mod history;
pub mod host;
pub mod its;
pub mod line;
pub mod look;
pub mod situation;
pub mod table;

pub use history::History;
pub use line::{CountedBy, Kind, Line, Mask, Route};
