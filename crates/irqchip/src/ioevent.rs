// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::Error;

/// Where a guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IoAddress {
    /// A guest-physical address.
    Mmio(u64),
    /// An x86 I/O port.
    Pio(u16),
}

impl fmt::Display for IoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mmio(address) => write!(f, "MMIO {address:#x}"),
            Self::Pio(port) => write!(f, "port {port:#x}"),
        }
    }
}

/// Which guest write rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IoeventSpec {
    /// The first byte written.
    pub address: IoAddress,
    /// The width of the write in bytes: 1, 2, 4, 8, or 0 for any.
    pub length: u32,
    /// The only value that rings, compared over `length` bytes; `None` for any value.
    pub datamatch: Option<u64>,
}

impl fmt::Display for IoeventSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.address, self.length)?;
        match self.datamatch {
            Some(value) => write!(f, " equal to {value:#x}"),
            None => Ok(()),
        }
    }
}

/// Letting a guest's write signal an eventfd, without an exit to userspace.
pub trait IoeventBinder: Send + Sync {
    /// From now on a write that fits `spec` signals `event` and goes nowhere else.
    ///
    /// # Errors
    /// On KVM: `EEXIST` if another ioeventfd takes the same writes, `EINVAL` for a length or a combination the kernel does not
    /// have, `ENOSPC` if the bus is full, `EBADF`.
    fn assign_ioevent(&self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Result<(), Error>;

    /// Undoes [`assign_ioevent`](Self::assign_ioevent) of the same eventfd and specification.
    ///
    /// # Errors
    /// On KVM: `ENOENT` if it is not assigned.
    fn deassign_ioevent(&self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Result<(), Error>;
}
