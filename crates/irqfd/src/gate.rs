// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mask and pending of one vector, decided in one atomic word.
//!
//! A device's thread triggers while a vCPU's thread masks. What must hold:
//!
//! - once [`close`](Gate::close) has returned, no signal passes until [`open`](Gate::open) is called: the guest that has
//!   masked a vector and read the mask back is promised silence (PCI Express base specification, section 6.1.4.5);
//! - a signal that did not pass is pending, and however many there were, `open` reports them once;
//! - no signal is neither.
//!
//! To pass is to write an eventfd, which takes a while, so the word counts those that are at it, and `close` waits for them. The waiting is
//! short, a write to a non-blocking eventfd, but it may include being scheduled away: hence a futex, not a spin.
//!
//! The word is the only thing shared, and every step is one atomic read-modify-write of it. The order of such steps on one word is total
//! whatever their memory ordering, so trying all interleavings of the steps, as the tests here do with this very code, leaves out no
//! behaviour that a weaker machine could show.

use std::sync::atomic::{AtomicU32, Ordering};

/// Signals are held back.
const CLOSED: u32 = 1;
/// At least one signal was held back since the gate was closed.
const PENDING: u32 = 1 << 1;
/// Somebody else holds the eventfd and cannot be held back here; the irqfd is disarmed instead, and the eventfd's counter
/// is what is pending. Signals pass whether the gate is closed or not.
const BYPASSED: u32 = 1 << 2;
/// One signal on its way through; the bits from here up count them.
const PASSING: u32 = 1 << 3;

/// The shared word, so that the tests can put a scheduler behind each step.
pub(crate) trait Word {
    /// Reads it.
    fn load(&self) -> u32;
    /// Replaces `current` by `new`, or fails (not spuriously) if it is something else by now.
    fn compare_exchange(&self, current: u32, new: u32) -> bool;
    /// Sets bits; the word as it was before.
    fn fetch_or(&self, bits: u32) -> u32;
    /// Subtracts; the word as it was before.
    fn fetch_sub(&self, n: u32) -> u32;
    /// Sleeps while the word is `current`; may return early.
    fn wait(&self, current: u32);
    /// Wakes all that sleep.
    fn wake(&self);
}

/// The real thing.
#[derive(Debug, Default)]
pub(crate) struct FutexWord(AtomicU32);

impl Word for FutexWord {
    fn load(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    fn compare_exchange(&self, current: u32, new: u32) -> bool {
        self.0.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn fetch_or(&self, bits: u32) -> u32 {
        self.0.fetch_or(bits, Ordering::AcqRel)
    }

    fn fetch_sub(&self, n: u32) -> u32 {
        self.0.fetch_sub(n, Ordering::AcqRel)
    }

    fn wait(&self, current: u32) {
        use rustix::thread::futex::{Flags, wait};
        // The only failures are "it is another value already" and "a signal handler ran": the caller looks again in any case.
        let _ = wait(&self.0, Flags::PRIVATE, current, None);
    }

    fn wake(&self) {
        use rustix::thread::futex::{Flags, wake};
        // With a mapped, aligned word there is nothing to fail.
        let _ = wake(&self.0, Flags::PRIVATE, i32::MAX.cast_unsigned());
    }
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It went through.
    Passed,
    /// It waits, and will be reported by [`Gate::open`].
    Held,
}

/// Lets signals pass or holds them.
#[derive(Debug)]
pub(crate) struct Gate<W = FutexWord> {
    word: W,
}

impl Gate {
    /// A closed gate, nothing pending.
    pub(crate) fn closed() -> Self {
        Self { word: FutexWord(AtomicU32::new(CLOSED)) }
    }
}

/// Takes the passer out of the count, also when passing fails or panics.
struct Leave<'a, W: Word>(&'a W);

impl<W: Word> Drop for Leave<'_, W> {
    fn drop(&mut self) {
        let before = self.0.fetch_sub(PASSING);
        let last = before / PASSING == 1;
        if last && before & CLOSED != 0 {
            self.0.wake();
        }
    }
}

impl<W: Word> Gate<W> {
    /// A signal arrives: it passes by calling `pass`, or is held.
    ///
    /// # Errors
    /// Those of `pass`; the signal is then lost, as it would be for a device whose write failed.
    pub(crate) fn signal<E>(&self, pass: impl FnOnce() -> Result<(), E>) -> Result<Passage, E> {
        loop {
            let word = self.word.load();
            if word & (CLOSED | BYPASSED) == CLOSED {
                // Held with others that are held already is held: nothing to write.
                if word & PENDING != 0 || self.word.compare_exchange(word, word | PENDING) {
                    return Ok(Passage::Held);
                }
            } else if self.word.compare_exchange(word, word + PASSING) {
                let _leave = Leave(&self.word);
                return pass().map(|()| Passage::Passed);
            }
        }
    }

    /// Holds signals from now on. When this returns, all that had passed the gate before have also finished passing.
    ///
    /// With somebody else at the eventfd ([`bypass`](Self::bypass)) there is no waiting, since disarming the irqfd is what stops signals then.
    pub(crate) fn close(&self) {
        let mut word = self.word.fetch_or(CLOSED) | CLOSED;
        while word / PASSING != 0 && word & BYPASSED == 0 {
            self.word.wait(word);
            word = self.word.load();
        }
    }

    /// Lets signals pass from now on. Whether any had been held: the caller then signals, once.
    #[must_use]
    pub(crate) fn open(&self) -> bool {
        self.clear(CLOSED | PENDING) & PENDING != 0
    }

    /// Holds one signal, as if it had come: for the caller of [`open`](Self::open) that could not deliver what it was told of.
    pub(crate) fn hold_one(&self) {
        self.word.fetch_or(CLOSED | PENDING);
    }

    /// Forgets what is held. Whether there was anything.
    pub(crate) fn take_pending(&self) -> bool {
        self.clear(PENDING) & PENDING != 0
    }

    /// From now on signals go to the eventfd whether the gate is open or not. Whether any had been held: the caller
    /// then signals, once. The irqfd must be disarmed if the gate is closed.
    #[must_use]
    pub(crate) fn bypass(&self) -> bool {
        loop {
            let word = self.word.load();
            if self.word.compare_exchange(word, (word | BYPASSED) & !PENDING) {
                return word & PENDING != 0;
            }
        }
    }

    /// Whether a signal is held.
    pub(crate) fn is_pending(&self) -> bool {
        self.word.load() & PENDING != 0
    }

    /// Whether somebody else has the eventfd.
    pub(crate) fn is_bypassed(&self) -> bool {
        self.word.load() & BYPASSED != 0
    }

    fn clear(&self, bits: u32) -> u32 {
        loop {
            let word = self.word.load();
            if self.word.compare_exchange(word, word & !bits) {
                return word;
            }
        }
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
