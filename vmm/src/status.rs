// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a run ends, for whoever started it.

/// The exit status of the process. Part of the command line's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The guest powered itself off.
    PowerOff = 0,
    /// Something failed that is nobody's fault in particular: an I/O error, a system call that should not fail.
    Failure = 1,
    /// The command line, the configuration file or a file named there is wrong.
    Usage = 2,
    /// The host lacks something: no KVM, no permission, no such GIC, not enough memory.
    Host = 3,
    /// The guest reset itself and `--on-reset exit` was given.
    GuestReset = 4,
    /// The guest brought its own end: a crash it reported, or an exit that nobody can handle.
    GuestFailed = 5,
    /// The user left with `Ctrl-a x`.
    UserQuit = 6,
}

impl Status {
    /// The number that the shell sees. A run that a signal ended has 128 plus the signal's number, as everywhere.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The table for `--help` and the documentation, generated from one place.
    pub const HELP: &'static str = "\
Exit status:
  0  the guest powered itself off
  1  an operation failed that should not
  2  the command line, the configuration or a file named there is wrong
  3  the host lacks something that is needed
  4  the guest reset itself and --on-reset exit was given
  5  the guest brought its own end (a reported crash, an exit that cannot be handled)
  6  the user left with Ctrl-a x
  128+N  ended by signal N (SIGTERM: 143, SIGINT: 130)";
}
