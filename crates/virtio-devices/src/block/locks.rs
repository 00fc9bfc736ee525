// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image belongs to one guest at a time.
//!
//! The locks are those of QEMU (`block/file-posix.c`, `raw_apply_lock_bytes`), so that QEMU and its tools respect our images, and we theirs: whoever uses an image
//! in some way holds a lock on one byte for that way, and on another byte for each way that nobody else may use it in. They are locks of the open file description, which go when
//! it is closed, however the process ends.

use std::fs::File;
use std::io;

use crate::sys::storage::{is_byte_locked, lock_byte};

/// First byte of the ways an image is used in.
const USED: i64 = 100;
/// First byte of the ways it must not be used in by others.
const REFUSED: i64 = 200;
/// What is read stays as it is.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What came of locking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Locked {
    /// The image is ours, to read if others read, to write if nobody else does anything.
    Yes,
    /// Somebody uses it.
    InUse,
    /// The file system has no such locks.
    NoLocks,
}

/// Locks an image for as long as `file` is open.
pub(super) fn lock(file: &File, writable: bool) -> io::Result<Locked> {
    let used: &[i64] = if writable { &[CONSISTENT_READ, WRITE] } else { &[CONSISTENT_READ] };
    let refused = &[WRITE, RESIZE];
    // All locks first, then a look at those of others: of two that come at once, at least one sees the other.
    let bytes = used.iter().map(|way| USED + way).chain(refused.iter().map(|way| REFUSED + way));
    for byte in bytes {
        match lock_byte(file, byte) {
            Ok(()) => {}
            Err(e) => return without(e),
        }
    }
    let others = used.iter().map(|way| REFUSED + way).chain(refused.iter().map(|way| USED + way));
    for byte in others {
        match is_byte_locked(file, byte) {
            Ok(false) => {}
            Ok(true) => return Ok(Locked::InUse),
            Err(e) => return without(e),
        }
    }
    Ok(Locked::Yes)
}

fn without(error: io::Error) -> io::Result<Locked> {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(Locked::InUse),
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => Ok(Locked::NoLocks),
        _ => Err(error),
    }
}
