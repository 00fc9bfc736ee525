// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All vCPUs of a machine held still, and let go again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where vCPUs wait while the machine is paused. Asking costs a vCPU that runs nothing but a look at a flag at each of its exits.
#[derive(Debug, Default)]
pub struct Pause {
    asked: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// vCPUs that have a thread.
    alive: usize,
    /// Those of them that wait here.
    held: usize,
    /// The machine comes to its end: nobody waits any more.
    ending: bool,
    /// The guest's counter when the last vCPU stopped.
    counter: Option<u64>,
}

/// A vCPU's clock: the virtual counter, which is one for the whole VM.
pub trait Counter {
    /// What it says.
    fn read(&self) -> Option<u64>;
    /// Sets it.
    fn write(&self, value: u64);
}

/// vCPUs that did not stop in time: they wait for something of the host's, such as a reader of the console.
#[derive(Debug, thiserror::Error)]
#[error("{running} of {all} vCPUs did not stop within {seconds} s")]
pub struct NotStopped {
    running: usize,
    all: usize,
    seconds: u64,
}

impl Pause {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the machine is paused, or on its way there.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// A vCPU has a thread now.
    pub fn enter(&self) {
        self.lock().alive += 1;
    }

    /// And now none any more.
    pub fn leave(&self) {
        self.lock().alive -= 1;
        self.changed.notify_all();
    }

    /// A vCPU's thread waits here as long as the machine is paused. The time that passes is none to the guest: the last vCPU to come looks at the
    /// counter, the first to go sets it back.
    pub fn hold(&self, counter: &impl Counter) {
        let mut state = self.lock();
        if !self.is_asked() || state.ending {
            return;
        }
        state.held += 1;
        if state.held == state.alive {
            state.counter = counter.read();
        }
        self.changed.notify_all();
        while self.is_asked() && !state.ending {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(value) = state.counter.take() {
            counter.write(value);
        }
        state.held -= 1;
    }

    /// Pauses: `kick` makes all vCPUs leave the guest. Returns when all have, which is at once if they had before.
    ///
    /// # Errors
    /// [`NotStopped`] if some did not within `patience`; the machine is not paused then.
    pub fn pause(&self, kick: impl FnOnce(), patience: Duration) -> Result<(), NotStopped> {
        self.asked.store(true, Ordering::SeqCst);
        kick();
        let state = self.lock();
        let running = |state: &mut State| state.held < state.alive && !state.ending;
        let (state, _) =
            self.changed.wait_timeout_while(state, patience, running).unwrap_or_else(PoisonError::into_inner);
        if state.held < state.alive && !state.ending {
            let (running, all) = (state.alive - state.held, state.alive);
            drop(state);
            self.resume();
            return Err(NotStopped { running, all, seconds: patience.as_secs() });
        }
        Ok(())
    }

    /// Lets all vCPUs go on.
    pub fn resume(&self) {
        // With the lock, or one that is about to wait would not hear of it.
        let state = self.lock();
        self.asked.store(false, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
    }

    /// Nobody is held from now on, and nobody waits for it: the machine comes to its end.
    pub fn end(&self) {
        self.lock().ending = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, AtomicUsize};
    use std::thread;

    #[derive(Default)]
    struct Clock(AtomicU64);

    impl Counter for Arc<Clock> {
        fn read(&self) -> Option<u64> {
            Some(self.0.load(Ordering::SeqCst))
        }

        fn write(&self, value: u64) {
            self.0.store(value, Ordering::SeqCst);
        }
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn all_are_held_and_the_time_meanwhile_is_none() {
        let (pause, clock) = (Arc::new(Pause::default()), Arc::new(Clock::default()));
        let turns = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let vcpus: Vec<_> = (0..4)
            .map(|_| {
                pause.enter();
                let (pause, clock) = (Arc::clone(&pause), Arc::clone(&clock));
                let (turns, stop) = (Arc::clone(&turns), Arc::clone(&stop));
                thread::spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        turns.fetch_add(1, Ordering::SeqCst);
                        pause.hold(&clock);
                        thread::yield_now();
                    }
                    pause.leave();
                })
            })
            .collect();
        for round in 1..50 {
            pause.pause(|| {}, LONG).unwrap();
            let before = turns.load(Ordering::SeqCst);
            // Twice is as once.
            pause.pause(|| {}, LONG).unwrap();
            let now = clock.0.fetch_add(round, Ordering::SeqCst);
            thread::yield_now();
            assert_eq!(turns.load(Ordering::SeqCst), before);
            pause.resume();
            while turns.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
            assert_eq!(clock.0.load(Ordering::SeqCst), now);
        }
        stop.store(true, Ordering::SeqCst);
        vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
        // Nobody is left to wait for.
        pause.pause(|| {}, LONG).unwrap();
    }

    #[test]
    fn one_that_does_not_come_is_said_and_the_others_go_on() {
        let pause = Arc::new(Pause::default());
        pause.enter();
        pause.enter();
        let other = Arc::clone(&pause);
        let held = thread::spawn(move || {
            while !other.is_asked() {
                thread::yield_now();
            }
            other.hold(&Arc::new(Clock::default()));
        });
        let error = pause.pause(|| {}, Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("of 2 vCPUs did not stop"), "{error}");
        held.join().unwrap();
        assert!(!pause.is_asked());
    }

    #[test]
    fn the_end_lets_everybody_go() {
        let pause = Arc::new(Pause::default());
        pause.enter();
        pause.enter();
        let waiting = Arc::clone(&pause);
        let waiting = thread::spawn(move || waiting.pause(|| {}, LONG));
        let other = Arc::clone(&pause);
        let held = thread::spawn(move || {
            while !other.is_asked() {
                thread::yield_now();
            }
            other.hold(&Arc::new(Clock::default()));
        });
        pause.end();
        waiting.join().unwrap().unwrap();
        held.join().unwrap();
    }
}
