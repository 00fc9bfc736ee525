// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtio over PCI.

mod function;
mod layout;
mod registers;
mod signals;

pub use function::{PciError, PciWiring, VirtioPciFunction, VirtioPciState};
