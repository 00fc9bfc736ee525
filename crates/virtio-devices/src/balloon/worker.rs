// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon's thread.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::Shared;
use super::pages::ranges;
use super::stats::{BalloonStats, LONGEST};
use crate::sys::discard::discard;
use crate::{Chain, EventHandler, Events, Interest, Ring, RingError, Transport};

/// How many chains of a queue are dealt with before others get their turn.
const BUDGET: usize = 32;

/// The longest list of page numbers in one chain: 1 GiB of pages. Linux sends 256 numbers at a time.
const LONGEST_LIST: u32 = 1 << 20;

const INFLATE: u64 = 0;
const DEFLATE: u64 = 1;
const STATS: u64 = 2;
const REPORTING: u64 = 3;
const WAKE: u64 = 4;

/// The queues, by what they are for.
pub(super) struct Queues {
    pub(super) inflate: Ring,
    pub(super) deflate: Ring,
    pub(super) stats: Option<Ring>,
    pub(super) reporting: Option<Ring>,
}

/// The balloon at work.
pub(super) struct Inflator {
    queues: Queues,
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    chain: Chain,
    bytes: Vec<u8>,
    /// The buffer that goes back to ask for statistics.
    stats_buffer: Option<u16>,
    /// Somebody waits for statistics, and there was no such buffer.
    stats_wanted: bool,
}

impl Inflator {
    pub(super) fn new(queues: Queues, shared: Arc<Shared>, transport: Arc<dyn Transport>) -> Self {
        Self {
            queues,
            shared,
            transport,
            chain: Chain::new(),
            bytes: Vec::new(),
            stats_buffer: None,
            stats_wanted: false,
        }
    }

    pub(super) fn events(&self) -> io::Result<Events> {
        let events = Events::new()?;
        let Queues { inflate, deflate, stats, reporting } = &self.queues;
        let queues = [
            (INFLATE, Some(inflate)),
            (DEFLATE, Some(deflate)),
            (STATS, stats.as_ref()),
            (REPORTING, reporting.as_ref()),
        ];
        for (token, ring) in queues {
            if let Some(ring) = ring {
                events.add(ring.notify(), token, Interest::Read)?;
                // What there is already may have been said before anybody listened.
                ring.notify().ring().map_err(io::Error::other)?;
            }
        }
        events.add(&self.shared.wake, WAKE, Interest::Read)?;
        Ok(events)
    }

    fn inflate(&mut self) -> Result<(), RingError> {
        let Self { queues, shared, chain, bytes, .. } = self;
        each(&mut queues.inflate, chain, |ring, chain| {
            let length = chain.readable_len();
            if length > LONGEST_LIST {
                let problem = "has more page numbers than a list may have";
                return Err(RingError::Malformed { head: chain.head(), problem });
            }
            bytes.resize(length as usize, 0);
            chain.read(ring.memory(), 0, bytes)?;
            for (address, length) in ranges(bytes) {
                shared.count_discarded(discard(ring.memory(), address, length));
            }
            Ok(true)
        })
    }

    fn deflate(&mut self) -> Result<(), RingError> {
        // Pages that are used again are there again.
        each(&mut self.queues.deflate, &mut self.chain, |_, _| Ok(true))
    }

    fn report(&mut self) -> Result<(), RingError> {
        let Self { queues, shared, chain, .. } = self;
        let Some(ring) = &mut queues.reporting else { return Ok(()) };
        each(ring, chain, |ring, chain| {
            // Free pages that the guest expects to hold a pattern must go on holding it (section 5.5.6.6): they would be zero.
            if shared.poison() == 0 {
                for segment in chain.writable() {
                    shared.count_discarded(discard(
                        ring.memory(),
                        segment.address,
                        u64::from(segment.length),
                    ));
                }
            }
            Ok(true)
        })
    }

    fn take_stats(&mut self) -> Result<(), RingError> {
        let Self { queues, shared, chain, bytes, stats_buffer, .. } = self;
        let Some(ring) = &mut queues.stats else { return Ok(()) };
        each(ring, chain, |ring, chain| {
            bytes.resize(chain.readable_len().min(LONGEST) as usize, 0);
            chain.read(ring.memory(), 0, bytes)?;
            shared.set_stats(BalloonStats::parse(bytes));
            // There is one such buffer, and it stays here until it is to be filled again. Another one takes its place.
            if let Some(old) = stats_buffer.replace(chain.head()) {
                ring.push(old, 0)?;
            }
            Ok(false)
        })?;
        if self.stats_wanted { self.ask_for_stats() } else { Ok(()) }
    }

    fn ask_for_stats(&mut self) -> Result<(), RingError> {
        let Some(ring) = &mut self.queues.stats else { return Ok(()) };
        self.stats_wanted = self.stats_buffer.is_none();
        if let Some(head) = self.stats_buffer.take() {
            ring.push(head, 0)?;
            ring.interrupt()?;
        }
        Ok(())
    }
}

/// Has `take` deal with each chain of `ring`, and gives it back if `take` says so.
fn each(
    ring: &mut Ring,
    chain: &mut Chain,
    mut take: impl FnMut(&mut Ring, &Chain) -> Result<bool, RingError>,
) -> Result<(), RingError> {
    let _ = ring.notify().take();
    for turn in 0.. {
        if turn == BUDGET {
            let _ = ring.notify().ring();
            break;
        }
        if !ring.pop(chain)? {
            if ring.enable_notifications()? {
                continue;
            }
            break;
        }
        if take(ring, chain)? {
            ring.push(chain.head(), 0)?;
        }
    }
    ring.interrupt()
}

impl EventHandler for Inflator {
    fn ready(&mut self, token: u64, _: &Events) -> ControlFlow<()> {
        let result = match token {
            INFLATE => self.inflate(),
            DEFLATE => self.deflate(),
            STATS => self.take_stats(),
            REPORTING => self.report(),
            WAKE => {
                let _ = self.shared.wake.take();
                self.ask_for_stats()
            }
            _ => Ok(()),
        };
        match result {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.transport.needs_reset(&error);
                ControlFlow::Break(())
            }
        }
    }
}
