// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds in the form that the crate vhost takes them in.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};

use vmm_sys_util::eventfd::EventFd;

/// Another descriptor of the eventfd `fd`.
pub(crate) fn event_fd(fd: BorrowedFd<'_>) -> io::Result<EventFd> {
    let fd = fd.try_clone_to_owned()?.into_raw_fd();
    // SAFETY: the descriptor was ours alone a line ago, and is given away here.
    Ok(unsafe { EventFd::from_raw_fd(fd) })
}
