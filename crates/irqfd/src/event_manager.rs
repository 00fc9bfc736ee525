// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The resampler as a subscriber of an event-manager loop.

use std::os::fd::{AsFd, AsRawFd};

use event_manager::{EventOps, EventSet, EventSubscriber, Events};

use crate::{Error, Resampler};

/// What a [`ResampleSubscriber`] has come across. It is told to the callback given to it, since a library prints nothing.
#[derive(Debug)]
#[non_exhaustive]
pub enum ResampleEvent {
    /// The resample eventfd could not be registered: the line will stick after its first interrupt.
    NotRegistered(event_manager::Error),
    /// The line could not be raised again.
    Failed(Error),
}

/// Runs a [`Resampler`] in an event-manager loop, from the moment it is added until it is removed or the line is handed over.
///
/// ```
/// use event_manager::{EventManager, SubscriberOps};
/// use irqfd::{LevelTrigger, ResampleSubscriber};
///
/// let uart = LevelTrigger::new()?;
/// let mut events = EventManager::new()?;
/// events.add_subscriber(ResampleSubscriber::new(uart.resampler(), |trouble| eprintln!("UART: {trouble:?}")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ResampleSubscriber {
    resampler: Resampler,
    trouble: Box<dyn Fn(ResampleEvent) + Send + Sync>,
}

impl ResampleSubscriber {
    /// Runs `resampler`, and tells `trouble` what goes wrong.
    #[must_use]
    pub fn new(resampler: Resampler, trouble: impl Fn(ResampleEvent) + Send + Sync + 'static) -> Self {
        Self { resampler, trouble: Box::new(trouble) }
    }

    fn events(&self) -> Events {
        Events::new_raw(self.resampler.as_fd().as_raw_fd(), EventSet::IN)
    }
}

impl EventSubscriber for ResampleSubscriber {
    fn process(&self, _: Events, ops: &mut EventOps<'_>) {
        if self.resampler.is_idle() {
            // Somebody else takes the counter now; polling it here as well would only spin.
            let _ = ops.remove(self.events());
        } else if let Err(error) = self.resampler.run() {
            (self.trouble)(ResampleEvent::Failed(error));
        }
    }

    fn init(&self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(self.events()) {
            (self.trouble)(ResampleEvent::NotRegistered(error));
        }
    }
}

impl event_manager::MutEventSubscriber for ResampleSubscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        EventSubscriber::process(self, events, ops);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        EventSubscriber::init(self, ops);
    }
}

impl std::fmt::Debug for ResampleSubscriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResampleSubscriber").field("resampler", &self.resampler).finish_non_exhaustive()
    }
}
