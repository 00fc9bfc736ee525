// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Something that goes on in another thread while a test does its part.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Set when the test's part is over, also if it ends in a panic: the other thread would otherwise go on, and the failed test with it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs `other` in a thread of its own while `part` runs. It is to return when what it is given says that `part` is over.
///
/// # Panics
/// If one of the two does.
pub fn beside(other: impl FnOnce(&dyn Fn() -> bool) + Send, part: impl FnOnce()) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| other(&|| over.load(Ordering::SeqCst)));
        let _over = Over(&over);
        part();
    });
}
