// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a guest's run came to its end, decided once by whoever sees it first.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};

/// How a run came to its end.
#[derive(Debug)]
pub enum Outcome {
    /// The guest powered itself off.
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// The user left.
    UserQuit,
    /// A signal told us to go.
    Signal(i32),
    /// It cannot go on.
    Failed(Error),
}

/// Where the first outcome is kept, with an event for the loop. Shared by everything that may end a run.
#[derive(Debug, Clone)]
pub struct Verdict(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    outcome: Mutex<Option<Outcome>>,
    event: EventFd,
}

impl Verdict {
    /// Undecided.
    ///
    /// # Errors
    /// If there is no descriptor left for the event.
    pub fn new() -> Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(|e: io::Error| Error::host("cannot make an eventfd").because(e))?;
        Ok(Self(Arc::new(Inner { outcome: Mutex::new(None), event })))
    }

    /// Decides, if nobody has.
    pub fn set(&self, outcome: Outcome) {
        self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(outcome);
        // Adding to an eventfd fails only when its counter is full, and then it is readable anyway.
        let _ = self.0.event.write(1);
    }

    /// Takes the outcome, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<Outcome> {
        self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Becomes readable when there is one.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.0.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_outcome_stands() {
        let verdict = Verdict::new().unwrap();
        assert!(verdict.take().is_none());
        verdict.clone().set(Outcome::Reset);
        verdict.set(Outcome::PowerOff);
        assert_eq!(verdict.event().read().unwrap(), 2);
        assert!(matches!(verdict.take(), Some(Outcome::Reset)));
    }
}
