// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control queue: commands in, answers out, and the tap does what they say.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::control::{Ack, Carrier, ControlState, LONGEST};
use super::features::TapOffloads;
use super::filter::ReceiveFilter;
use super::mac::MacAddress;
use super::shared::Shared;
use super::tap::Tap;
use crate::{Chain, EventHandler, Events, Ring, RingError, Transport};

/// How many commands are carried out before others get their turn.
const BUDGET: usize = 64;

/// The control queue and what it steers.
pub(crate) struct ControlQueue {
    ring: Ring,
    chain: Chain,
    command: Vec<u8>,
    state: ControlState,
    carrier: TapCarrier,
}

/// Steers the tap.
struct TapCarrier {
    tap: Arc<Tap>,
    shared: Arc<Shared>,
}

impl Carrier for TapCarrier {
    fn filter(&mut self, filter: &ReceiveFilter, own: MacAddress) -> bool {
        self.tap.set_filter(&filter.for_tap(own)).is_ok()
    }

    fn queue_pairs(&mut self, active: u16) -> bool {
        let done = self.tap.set_active_queues(usize::from(active)).is_ok();
        self.shared.wake_all();
        done
    }

    fn offloads(&mut self, offloads: TapOffloads) -> bool {
        self.tap.set_offloads(offloads).is_ok()
    }
}

impl ControlQueue {
    pub(crate) fn new(ring: Ring, state: ControlState, tap: Arc<Tap>, shared: Arc<Shared>) -> Self {
        let carrier = TapCarrier { tap, shared };
        Self { ring, chain: Chain::new(), command: Vec::new(), state, carrier }
    }

    /// The queue.
    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The driver has notified: carries out what there is.
    ///
    /// # Errors
    /// How the driver has broken the queue.
    pub(crate) fn serve(&mut self) -> Result<(), RingError> {
        let _ = self.ring.notify().take();
        for turn in 0.. {
            if turn == BUDGET {
                let _ = self.ring.notify().ring();
                break;
            }
            if !self.ring.pop(&mut self.chain)? {
                if self.ring.enable_notifications()? {
                    continue;
                }
                break;
            }
            if self.chain.writable_len() == 0 {
                let problem = "is a command without room for an answer";
                return Err(RingError::Malformed { head: self.chain.head(), problem });
            }
            let ack = match usize::try_from(self.chain.readable_len()) {
                Ok(length) if length <= LONGEST => {
                    self.command.resize(length, 0);
                    self.chain.read(self.ring.memory(), 0, &mut self.command)?;
                    self.state.execute(&self.command, &mut self.carrier)
                }
                _ => Ack::Err,
            };
            self.carrier.shared.set_mac(self.state.mac);
            self.chain.write(self.ring.memory(), 0, &[ack as u8])?;
            self.ring.push(self.chain.head(), 1)?;
        }
        self.ring.interrupt()
    }

    /// A handler for a thread of its own, for when vhost moves the frames and there is no other.
    pub(crate) fn alone(mut self, transport: Arc<dyn Transport>) -> impl EventHandler {
        move |_token: u64, _: &Events| match self.serve() {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                transport.needs_reset(&error);
                ControlFlow::Break(())
            }
        }
    }
}
