// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An eventfd, as this crate uses them: a counter that a write raises and that whoever listens resets.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use irqchip::Errno;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::error::{Error, EventfdAction};

/// A non-blocking, close-on-exec eventfd.
///
/// It is not a semaphore (`EFD_SEMAPHORE`): the kernel's irqfd takes the whole counter at each signal, and a semaphore would hand
/// it one at a time and leave the rest behind (Linux 6.12, `fs/eventfd.c`, `eventfd_ctx_do_read`).
#[derive(Debug)]
pub(crate) struct Eventfd(OwnedFd);

fn error(action: EventfdAction, errno: rustix::io::Errno) -> Error {
    Error::Eventfd { action, errno: Errno::new(errno.raw_os_error()) }
}

impl Eventfd {
    /// A new one, counter zero.
    pub(crate) fn new() -> Result<Self, Error> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Self)
            .map_err(|e| error(EventfdAction::Create, e))
    }

    /// Adds one. A counter that can take no more is signalled already, so that is no error.
    pub(crate) fn signal(&self) -> Result<(), Error> {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.0, &1u64.to_ne_bytes())) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(e) => Err(error(EventfdAction::Signal, e)),
        }
    }

    /// Takes the counter; 0 if nobody has signalled.
    pub(crate) fn take(&self) -> Result<u64, Error> {
        let mut count = [0; 8];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut count)) {
            Ok(_) => Ok(u64::from_ne_bytes(count)),
            Err(rustix::io::Errno::AGAIN) => Ok(0),
            Err(e) => Err(error(EventfdAction::Read, e)),
        }
    }

    /// Whether the counter is above zero, without taking it.
    pub(crate) fn is_signalled(&self) -> Result<bool, Error> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now)))
            .map_err(|e| error(EventfdAction::Poll, e))?;
        Ok(fds[0].revents().contains(PollFlags::IN))
    }

    /// The descriptor's number, for messages and state reports.
    pub(crate) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_add_up_and_are_taken_together() {
        let event = Eventfd::new().unwrap();
        assert!(!event.is_signalled().unwrap());
        assert_eq!(event.take().unwrap(), 0);
        for _ in 0..3 {
            event.signal().unwrap();
        }
        assert!(event.is_signalled().unwrap());
        assert!(event.is_signalled().unwrap(), "looking takes nothing");
        assert_eq!(event.take().unwrap(), 3);
        assert!(!event.is_signalled().unwrap());
    }

    #[test]
    fn a_full_counter_is_a_signalled_one() {
        let event = Eventfd::new().unwrap();
        rustix::io::write(&event.0, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.signal().unwrap();
        assert_eq!(event.take().unwrap(), u64::MAX - 1);
    }
}
