// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;

use irq_types::Gsi;
use irqchip::{Errno, IoeventSpec};

/// What was being done with an eventfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventfdAction {
    /// `eventfd2`.
    Create,
    /// `write`.
    Signal,
    /// `read`.
    Read,
    /// `poll`.
    Poll,
}

impl fmt::Display for EventfdAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Signal => "signal",
            Self::Read => "read",
            Self::Poll => "poll",
        })
    }
}

/// Why something of this crate could not be done. Each method says what it leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An eventfd call failed: mostly, the process has no descriptor left.
    #[error("cannot {action} an eventfd: {errno}")]
    Eventfd {
        /// What was being done.
        action: EventfdAction,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Two things that were to be connected belong to different VMs.
    #[error("{what} belongs to another VM")]
    OtherVm {
        /// Which of them, in words.
        what: &'static str,
    },
    /// A trigger can only be wired to a GSI whose route is to a line.
    #[error("{gsi} is no line: {mode} triggers drive lines, messages are for vectors")]
    NotALine {
        /// Which GSI.
        gsi: Gsi,
        /// Which kind of trigger.
        mode: irq_types::TriggerMode,
    },
    /// The trigger is wired already.
    #[error("the trigger is wired to {gsi} already")]
    AlreadyWired {
        /// What it is wired to.
        gsi: Gsi,
    },
    /// The line's eventfds have been handed to somebody else, who drives it now.
    #[error("the line's eventfds have been handed over: it is not driven from here")]
    HandedOver,
    /// The group of vectors is gone, or has shrunk.
    #[error("the vector is no longer part of a device")]
    Gone,
    /// There is no vector with this index.
    #[error("there is no vector {index}: the device has {count}")]
    NoSuchVector {
        /// The index asked for.
        index: usize,
        /// How many vectors there are.
        count: usize,
    },
    /// The kernel has no such ioeventfd, or one that would never ring.
    #[error("guest writes at {spec} cannot ring: {reason}")]
    IoeventSpec {
        /// What was asked for.
        spec: IoeventSpec,
        /// Why not.
        reason: &'static str,
    },
    /// A call to the kernel failed.
    #[error(transparent)]
    Kernel(#[from] irqchip::Error),
    /// The routing table refused.
    #[error(transparent)]
    Routing(#[from] gsi_routing::Error),
}
