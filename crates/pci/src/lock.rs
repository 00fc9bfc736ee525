// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks it. What it guards is valid between any two statements, so a thread that died holding it has left nothing half-done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
