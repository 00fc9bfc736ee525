// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames from the tap into the guest (VIRTIO 1.3, section 5.1.6.4), straight into its buffers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use super::counters::PairCounters;
use super::features::MRG_RXBUF;
use super::tap::HEADER_SIZE;
use crate::sys::scatter::Scatter;
use crate::{Chain, Ring, RingError};

/// The longest packet a tap hands out, its header included: 64 KiB as a segmentation offload makes them, with Ethernet and VLAN headers, and
/// some to spare.
const LONGEST: usize = 64 * 1024 + 256;

/// How long packets mostly are that nobody has left unsegmented.
const SHORT: usize = 2048;

/// After a longer one, room is kept for another until so many short ones have come.
const PATIENCE: u32 = 64;

/// How many pieces a `readv` is given at most. The kernel takes 1024; a piece may turn into two where regions of memory meet.
const PIECES: usize = 512;

/// Where `num_buffers` is in the header.
const NUM_BUFFERS: u32 = 10;

/// No buffer of the guest's.
const NOWHERE: [crate::Segment; 0] = [];

/// How it ended.
#[derive(Debug)]
pub(crate) enum Received {
    /// The tap has no more.
    TapIsEmpty,
    /// The guest has no more buffers. It is going to notify.
    NoBuffers,
    /// The budget is spent, and there may be more.
    More,
    /// The tap is gone.
    TapFailed(io::Error),
}

/// The receiving side of a queue pair.
pub(crate) struct Receiver {
    ring: Ring,
    mergeable: bool,
    /// How many short frames have come since the last long one, up to [`PATIENCE`].
    short: u32,
    /// How many the last call has taken from the tap.
    count: usize,
    /// Buffers of the guest's that wait for a frame, in the order in which it made them available, and how many bytes they hold.
    waiting: VecDeque<Chain>,
    waiting_bytes: usize,
    waiting_pieces: usize,
    /// For the next pop.
    spare: Vec<Chain>,
    /// The end of a frame for which there were not enough buffers. A tap hands out a frame once, and cuts off what it finds no room for.
    overflow: Vec<u8>,
    /// How much of it waits.
    overflowing: usize,
    /// The buffers that the beginning of that frame is in; or, while a frame is being placed, those of it so far.
    filled: Vec<(u16, u32)>,
    /// The first of them.
    first: Option<Chain>,
    scatter: Scatter,
}

impl Receiver {
    pub(crate) fn new(ring: Ring, features: u64) -> Self {
        Self {
            ring,
            mergeable: features & MRG_RXBUF != 0,
            short: PATIENCE,
            count: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            waiting_pieces: 0,
            spare: Vec::new(),
            overflow: vec![0; LONGEST],
            overflowing: 0,
            filled: Vec::new(),
            first: None,
            scatter: Scatter::new(),
        }
    }

    /// The queue.
    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// How many buffers wait for a frame.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many frames the last [`receive`](Self::receive) has taken from the tap.
    pub(crate) fn last_count(&self) -> usize {
        self.count
    }

    /// Moves up to `budget` frames from `tap` to the guest, and interrupts it if it wants to be. With `link_up` unset they are lost, as those
    /// that a cable which is unplugged does not carry.
    ///
    /// # Errors
    /// How the driver has broken the queue.
    pub(crate) fn receive(
        &mut self,
        tap: impl AsFd,
        budget: usize,
        link_up: bool,
        counters: &PairCounters,
    ) -> Result<Received, RingError> {
        let tap = tap.as_fd();
        let mut end = Received::More;
        self.count = 0;
        for _ in 0..budget {
            if self.overflowing > 0 && !self.place_overflow(counters)? {
                end = Received::NoBuffers;
                break;
            }
            if !link_up {
                match self.scatter.read(tap, self.ring.memory(), NOWHERE, &mut self.overflow) {
                    Ok(_) => {
                        self.count += 1;
                        counters.received_dropped.add(1);
                    }
                    Err(error) => {
                        end = ended(error);
                        break;
                    }
                }
                continue;
            }
            self.gather()?;
            if self.waiting.is_empty() {
                end = Received::NoBuffers;
                break;
            }
            let room = self.waiting_bytes;
            let tail = self.overflow.get_mut(..LONGEST.saturating_sub(room)).unwrap_or_default();
            let segments = self.waiting.iter().flat_map(Chain::writable);
            let length = match self.scatter.read(tap, self.ring.memory(), segments, tail) {
                Ok(length) => length,
                Err(error) => {
                    end = ended(error);
                    break;
                }
            };
            self.count += 1;
            self.place(length, counters)?;
        }
        self.ring.interrupt()?;
        Ok(end)
    }

    /// How many bytes of buffers to have waiting for a frame; one buffer anyhow. What a frame has beyond them goes by way of the overflow, which costs a copy; but
    /// each buffer costs something each time that the tap is asked for a frame.
    fn enough(&self) -> usize {
        match self.mergeable {
            false => 0,
            true if self.short < PATIENCE => LONGEST,
            true => SHORT,
        }
    }

    /// Takes buffers until a frame fits that is as long as they are just now, or there are no more.
    fn gather(&mut self) -> Result<(), RingError> {
        while self.waiting.is_empty() || self.waiting_bytes < self.enough() {
            let mut chain = self.spare.pop().unwrap_or_default();
            if !self.pop(&mut chain)? {
                self.spare.push(chain);
                return Ok(());
            }
            let pieces = chain.writable().len();
            let malformed = |problem| Err(RingError::Malformed { head: chain.head(), problem });
            if chain.readable_len() != 0 {
                return malformed("is for a frame to be written to, and has readable buffers");
            }
            if chain.writable_len() < HEADER_SIZE {
                return malformed("has no room for a header");
            }
            if pieces > PIECES {
                return malformed("is in more pieces than a frame can be");
            }
            if self.waiting_pieces + pieces > PIECES {
                self.ring.unpop();
                self.spare.push(chain);
                return Ok(());
            }
            self.waiting_bytes += chain.writable_len() as usize;
            self.waiting_pieces += pieces;
            self.waiting.push_back(chain);
        }
        Ok(())
    }

    /// Takes a buffer, and asks for a notification of the next if there is none.
    fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        if self.ring.pop(chain)? {
            return Ok(true);
        }
        if !self.ring.enable_notifications()? {
            return Ok(false);
        }
        // One came while the driver was not asked to say so.
        self.ring.disable_notifications()?;
        self.ring.pop(chain)
    }

    /// A frame of `length` bytes, header and all, is in the first of the waiting buffers, and in the overflow what they had no room for.
    fn place(&mut self, length: usize, counters: &PairCounters) -> Result<(), RingError> {
        if length < HEADER_SIZE as usize {
            // No frame at all; the buffers wait for the next.
            counters.received_dropped.add(1);
            return Ok(());
        }
        if length > self.waiting_bytes && !self.mergeable {
            // A driver's buffers have to hold what it has agreed to receive (section 5.1.6.3.1). These did not, and wait for a shorter one.
            counters.received_dropped.add(1);
            return Ok(());
        }
        counters.received(length - HEADER_SIZE as usize);
        self.short = if length > SHORT { 0 } else { (self.short + 1).min(PATIENCE) };
        let mut left = length;
        while left > 0 {
            let Some(chain) = self.take_waiting() else { break };
            left -= self.fill(chain, left);
        }
        self.overflowing = left;
        if left == 0 { self.finish() } else { self.place_overflow(counters).map(|_| ()) }
    }

    /// Continues a frame from the overflow. Whether it is complete now.
    fn place_overflow(&mut self, counters: &PairCounters) -> Result<bool, RingError> {
        let mut done = 0;
        while done < self.overflowing {
            if self.waiting.is_empty() {
                let before = self.waiting.len();
                self.gather()?;
                if self.waiting.len() == before {
                    break;
                }
            }
            let Some(chain) = self.take_waiting() else { break };
            let rest = self.overflow.get(done..self.overflowing).unwrap_or_default();
            let written = chain.write(self.ring.memory(), 0, rest)?;
            done += self.fill(chain, written);
        }
        self.overflow.copy_within(done..self.overflowing, 0);
        self.overflowing -= done;
        if self.overflowing > 0 {
            counters.received_waited.add(1);
            return Ok(false);
        }
        self.finish().map(|()| true)
    }

    fn take_waiting(&mut self) -> Option<Chain> {
        let chain = self.waiting.pop_front()?;
        self.waiting_bytes -= chain.writable_len() as usize;
        self.waiting_pieces -= chain.writable().len();
        Some(chain)
    }

    /// `chain` has as many bytes of the frame as go into it, of `left`. Returns how many.
    fn fill(&mut self, chain: Chain, left: usize) -> usize {
        let written = u32::try_from(left).map_or(chain.writable_len(), |left| left.min(chain.writable_len()));
        self.filled.push((chain.head(), written));
        match self.first {
            None => self.first = Some(chain),
            Some(_) => self.spare.push(chain),
        }
        written as usize
    }

    /// The frame is complete: its buffers go back together, and the first says how many they are.
    fn finish(&mut self) -> Result<(), RingError> {
        if let Some(first) = self.first.take() {
            // Also if buffers cannot be merged: then it is 1 (section 5.1.6.4.1). The tap leaves these two bytes alone.
            let count = u16::try_from(self.filled.len()).map_err(|_| RingError::TooLong(first.head()))?;
            first.write(self.ring.memory(), NUM_BUFFERS, &count.to_le_bytes())?;
            self.spare.push(first);
        }
        self.ring.push_together(&self.filled)?;
        self.filled.clear();
        Ok(())
    }
}

fn ended(error: io::Error) -> Received {
    match error.kind() {
        io::ErrorKind::WouldBlock => Received::TapIsEmpty,
        _ => Received::TapFailed(error),
    }
}
