// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread that dispatches events, as a VMM's event loop does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use irqfd::{ResampleSubscriber, Resampler};

/// How often the loop looks whether it is to end, in milliseconds.
const LOOK: i32 = 10;

/// Runs resamplers until it is dropped.
#[derive(Debug)]
pub struct EventLoop {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Runs these.
    ///
    /// # Panics
    /// If there can be no event loop. What goes wrong in it makes its drop panic.
    #[must_use]
    pub fn of(resamplers: impl IntoIterator<Item = Resampler>) -> Self {
        let mut events = EventManager::<Box<dyn MutEventSubscriber + Send>>::new_with_capacity(128).unwrap();
        let failed = Arc::new(AtomicBool::new(false));
        for resampler in resamplers {
            let failed = Arc::clone(&failed);
            let subscriber = ResampleSubscriber::new(resampler, move |trouble| {
                eprintln!("resampling: {trouble:?}");
                failed.store(true, Ordering::SeqCst);
            });
            events.add_subscriber(Box::new(subscriber));
        }
        let end = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&end);
        let thread = thread::spawn(move || {
            while !ending.load(Ordering::SeqCst) {
                events.run_with_timeout(LOOK).unwrap();
            }
            assert!(!failed.load(Ordering::SeqCst), "a resampler failed");
        });
        Self { end, thread: Some(thread) }
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}
