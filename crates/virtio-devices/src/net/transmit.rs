// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames from the guest to the tap (VIRTIO 1.3, section 5.1.6.2), straight from its buffers.

use std::io;
use std::os::fd::AsFd;

use super::counters::PairCounters;
use super::tap::HEADER_SIZE;
use crate::sys::scatter::Scatter;
use crate::{Chain, Ring, RingError};

/// The longest that is handed to the host. What a segmentation offload takes is 64 KiB with its headers; the host refuses what is longer, but
/// would find memory for it first.
const LONGEST: u32 = 128 * 1024;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The guest has no more. It is going to notify.
    QueueIsEmpty,
    /// The guest has no more just now, and was not asked to notify.
    QueueIsEmptyYet,
    /// The tap takes no more for now.
    TapIsFull,
    /// The budget is spent, and there may be more.
    More,
}

/// The sending side of a queue pair.
pub(crate) struct Transmitter {
    ring: Ring,
    chain: Chain,
    scatter: Scatter,
    /// How many frames have gone back to the guest since it was last asked whether it wants an interrupt.
    unsaid: usize,
}

impl Transmitter {
    pub(crate) fn new(ring: Ring) -> Self {
        Self { ring, chain: Chain::new(), scatter: Scatter::new(), unsaid: 0 }
    }

    /// The queue.
    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Moves up to `budget` frames from the guest to `tap`, and interrupts it if it wants to be. With `link_up` unset they are lost. To `stay` is to look again soon
    /// if there were any, rather than to be notified of the next.
    ///
    /// Who stays also keeps the interrupt for then: a driver that hears of an answer meanwhile takes back what it has sent on the way, and wants none any more.
    ///
    /// A frame that the host refuses (a header that makes no sense, an interface that is down) is lost, as on a wire.
    ///
    /// # Errors
    /// How the driver has broken the queue.
    pub(crate) fn send(
        &mut self,
        tap: impl AsFd,
        budget: usize,
        stay: bool,
        link_up: bool,
        counters: &PairCounters,
    ) -> Result<Sent, RingError> {
        let tap = tap.as_fd();
        let mut end = Sent::More;
        let mut moved = 0;
        self.ring.disable_notifications()?;
        for sent in 0..budget {
            if !self.ring.pop(&mut self.chain)? {
                if stay && sent > 0 {
                    end = Sent::QueueIsEmptyYet;
                    break;
                }
                if self.ring.enable_notifications()? {
                    self.ring.disable_notifications()?;
                    continue;
                }
                end = Sent::QueueIsEmpty;
                break;
            }
            let length = self.chain.readable_len();
            if !link_up || !(HEADER_SIZE..=LONGEST).contains(&length) {
                counters.sent_dropped.add(1);
            } else {
                match self.scatter.write(tap, self.ring.memory(), self.chain.readable()) {
                    Ok(_) => counters.sent((length - HEADER_SIZE) as usize),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.ring.unpop();
                        end = Sent::TapIsFull;
                        break;
                    }
                    Err(_) => counters.sent_dropped.add(1),
                }
            }
            self.ring.push(self.chain.head(), 0)?;
            moved += 1;
        }
        self.unsaid += moved;
        // A driver that waits for room does not have to wait for the end of a long stay.
        let many = usize::from(self.ring.size()) / 4;
        if self.unsaid > 0 && (end != Sent::QueueIsEmptyYet || self.unsaid >= many) {
            self.unsaid = 0;
            self.ring.interrupt()?;
        }
        Ok(end)
    }
}
