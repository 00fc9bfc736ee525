// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VM's interrupt routing table: which GSI fires what.
//!
//! Each KVM VM has one table that leads from GSIs to inputs of irqchips and to MSIs, and irqfds find their targets in it. The kernel
//! only knows how to replace it as a whole, which copies each entry and waits for all readers; and it accepts routes whose
//! interrupts then vanish. So a VMM wants one owner of the table, who batches, checks, and never loses it: the [`Router`].
//!
//! - **Who has which GSI** is a [`GsiHandle`]; a [`Budget`] promises some before a device is accepted, a [`ReservedRange`] keeps some for
//!   those who ask by number.
//! - **What it fires** changes in a [`Transaction`]: any number of changes, one call to the kernel, all or nothing.
//! - **What can be fired** is an [`IrqchipModel`], a table of data; [`models`] has those of KVM. Nothing in this crate is x86 or arm64.
//! - **What there is** is a [`Snapshot`]; two of them have a [`Diff`].
//!
//! The crate talks to the kernel through [`irqchip::RoutingSink`] only.

#![forbid(unsafe_code)]

mod allocator;
mod counters;
mod error;
mod handle;
mod model;
pub mod models;
mod msi;
mod number_space;
mod range_set;
mod router;
mod rules;
mod snapshot;
mod table;
mod transaction;

pub use counters::{Counters, Usage};
pub use error::Error;
pub use handle::{Budget, GsiHandle, ReservedRange};
pub use model::{Chip, Count, IrqchipModel, KernelUser, LineRun, MsiPath, TableKind, Wired};
pub use msi::{MsiPolicy, V2mFrame};
pub use number_space::{ForeignError, ForeignMap, NumberSpace};
pub use router::{Commit, Router};
pub use snapshot::{Diff, Snapshot};
pub use table::{Entry, Table, Target, Targets};
pub use transaction::Transaction;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
