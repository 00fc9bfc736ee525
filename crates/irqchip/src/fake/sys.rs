// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The only place that talks to the real kernel, about real eventfds.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::Errno;

/// A new eventfd with a counter of zero, non-blocking and closed on exec.
///
/// # Errors
/// When the process or the system has no descriptors left.
pub fn eventfd() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)
}

/// Adds one to an eventfd's counter.
///
/// # Errors
/// If `event` is no eventfd, or its counter is at the maximum.
pub fn signal(event: impl AsFd) -> io::Result<()> {
    add(event, 1)
}

/// Reads an eventfd's counter and sets it to zero. Does not block: an unsignalled eventfd reads as 0.
///
/// # Errors
/// If `event` is no eventfd.
pub fn drain(event: impl AsFd) -> io::Result<u64> {
    let event = event.as_fd();
    // The descriptor may be a blocking one, which is its owner's choice; so look before reading.
    if ready(&[event])?.is_empty() {
        return Ok(0);
    }
    let mut count = [0; 8];
    match rustix::io::read(event, &mut count) {
        Ok(_) => Ok(u64::from_ne_bytes(count)),
        Err(rustix::io::Errno::AGAIN) => Ok(0),
        Err(e) => Err(e.into()),
    }
}

/// Adds `count` to an eventfd's counter.
pub(super) fn add(event: impl AsFd, count: u64) -> io::Result<()> {
    rustix::io::write(event, &count.to_ne_bytes())?;
    Ok(())
}

/// The indices of those that are readable now.
pub(super) fn ready(events: &[BorrowedFd<'_>]) -> io::Result<Vec<usize>> {
    let mut fds: Vec<PollFd<'_>> =
        events.iter().map(|event| PollFd::from_borrowed_fd(*event, PollFlags::IN)).collect();
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds
        .iter()
        .enumerate()
        .filter(|(_, fd)| fd.revents().contains(PollFlags::IN))
        .map(|(index, _)| index)
        .collect())
}

/// An eventfd that a model holds on to, as the kernel does with a reference to its context.
#[derive(Debug)]
pub(super) struct Event {
    fd: OwnedFd,
    id: u64,
}

impl Event {
    /// Takes a reference: `eventfd_ctx_fdget`, which answers `EINVAL` to what is no eventfd.
    pub(super) fn hold(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let id = identity(fd)?;
        let fd = fd.try_clone_to_owned().map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::new))?;
        Ok(Self { fd, id })
    }

    /// Whether both are the same eventfd, through whatever descriptors.
    pub(super) fn is(&self, id: u64) -> bool {
        self.id == id
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The number by which the kernel tells eventfds apart, whatever descriptors lead to them: `eventfd-id` of their fdinfo
/// (Linux 6.12, `fs/eventfd.c`, `eventfd_show_fdinfo`). `EINVAL` if it is no eventfd.
pub(super) fn identity(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = fs::read_to_string(path).map_err(|_| Errno::EBADF)?;
    info.lines()
        .find_map(|line| line.strip_prefix("eventfd-id:"))
        .and_then(|id| id.trim().parse().ok())
        .ok_or(Errno::EINVAL)
}
