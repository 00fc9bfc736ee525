// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The signals that end a run, taken over; and what the vCPUs decided, in the event loop.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::error::{Error, Result};
use crate::outcome::{Outcome, Verdict};
use crate::sys;

/// The signals that people and service managers send to end a program.
const ENDING: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// The ending signals, taken over: they do nothing by themselves any more, but wait to be read.
#[derive(Debug, Clone)]
pub struct Taken(Arc<OwnedFd>);

impl Taken {
    /// Takes the signals over from here on, in this thread and those it starts.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new() -> Result<Self> {
        let fd = sys::signal_fd(&ENDING).map_err(|e| Error::failure("cannot take signals").because(e))?;
        Ok(Self(Arc::new(fd)))
    }

    /// Readable when one has arrived.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// The number of the next one, if one has arrived.
    #[must_use]
    pub fn next(&self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        rustix::io::read(&*self.0, &mut info).ok()?;
        // `ssi_signo` is the structure's first word; the kernel writes whole structures.
        info.first_chunk().map(|number| i32::from_ne_bytes(*number)).filter(|&number| number > 0)
    }
}

/// Wakes the loop when an outcome is there.
#[derive(Debug)]
pub struct Wake(pub Verdict);

impl MutEventSubscriber for Wake {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(e) = ops.add(Events::new(self.0.event(), EventSet::IN)) {
            self.0.set(Outcome::Failed(Error::failure("cannot wait for the guest's end").because(e)));
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // What it counts does not matter: the loop looks at the verdict each time round.
        let _ = self.0.event().read();
    }
}

/// The exit status of a process that this signal ended.
#[must_use]
pub fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
