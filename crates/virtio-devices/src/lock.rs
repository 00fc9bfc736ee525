// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever happened to other holders: the values behind this crate's locks are whole between any two statements.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
