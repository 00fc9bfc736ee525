// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device holds: a wire, never a number.

use crate::Error;

/// An edge-triggered line: each signal is an interrupt, and nothing comes back.
pub trait EdgeLine: Send + Sync {
    /// Raises an interrupt. Signals that the guest has not taken yet merge.
    ///
    /// # Errors
    /// When the signal could not be passed on; the interrupt is lost then.
    fn signal(&self) -> Result<(), Error>;
}

/// A level-triggered line: high while the device wants attention.
///
/// Several devices may share the wire. Each drives its own end; the line is high while any end is.
pub trait LevelLine: Send + Sync {
    /// Drives this end high or low. Saying what is so already costs nothing.
    ///
    /// # Errors
    /// When a change could not be passed on. The next call tries again.
    fn set_level(&self, high: bool) -> Result<(), Error>;

    /// Drives this end high.
    ///
    /// # Errors
    /// As [`set_level`](Self::set_level).
    fn assert(&self) -> Result<(), Error> {
        self.set_level(true)
    }

    /// Drives this end low.
    ///
    /// # Errors
    /// As [`set_level`](Self::set_level).
    fn deassert(&self) -> Result<(), Error> {
        self.set_level(false)
    }
}

/// One message-signalled interrupt of a device.
pub trait MsiVector: Send + Sync {
    /// Sends the message, or remembers that it is to be sent while the vector is masked.
    ///
    /// # Errors
    /// When the signal could not be passed on; the interrupt is lost then.
    fn trigger(&self) -> Result<(), Error>;

    /// Whether a signal waits for the vector to be unmasked: the vector's bit of the pending bit array.
    fn is_pending(&self) -> bool;
}
