// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtqueue as a device works on it: chains that were checked from end to end, and one interrupt for a batch.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use irqfd::Doorbell;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use crate::{ActiveQueue, QueueInterrupt};

/// How many buffers a chain may have. More than a queue has entries is allowed through indirect descriptors, and this is what a `readv` of
/// the host can take (`IOV_MAX`).
pub const MAX_SEGMENTS: usize = 1024;

const NEXT: u16 = flag(VRING_DESC_F_NEXT);
const WRITE: u16 = flag(VRING_DESC_F_WRITE);
const INDIRECT: u16 = flag(VRING_DESC_F_INDIRECT);
const NO_INTERRUPT: u16 = flag(VRING_AVAIL_F_NO_INTERRUPT);

#[expect(clippy::cast_possible_truncation, reason = "flags of 16-bit fields, which bindgen calls u32")]
const fn flag(bit: u32) -> u16 {
    bit as u16
}

/// One buffer of a chain: inside the guest's memory, and not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The first guest-physical address.
    pub address: GuestAddress,
    /// How many bytes.
    pub length: u32,
}

/// A chain of buffers that the driver has made available. It is used again for chain after chain, so that popping one allocates nothing.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable: usize,
    readable_bytes: u32,
    writable_bytes: u32,
}

impl Chain {
    /// An empty one, to pop into.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The index of the chain's head: what [`Ring::push`] wants back.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The buffers that the device reads.
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        self.segments.split_at(self.readable).0
    }

    /// What is left of the buffers that the device reads when the first `offset` bytes of them are done with.
    pub fn readable_from(&self, offset: u32) -> impl Iterator<Item = Segment> {
        from(self.readable(), offset)
    }

    /// What is left of the buffers that the device writes when the first `offset` bytes of them are done with.
    pub fn writable_from(&self, offset: u32) -> impl Iterator<Item = Segment> {
        from(self.writable(), offset)
    }

    /// The buffers that the device writes.
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        self.segments.split_at(self.readable).1
    }

    /// How many bytes the device can read.
    #[must_use]
    pub fn readable_len(&self) -> u32 {
        self.readable_bytes
    }

    /// How many bytes the device can write.
    #[must_use]
    pub fn writable_len(&self) -> u32 {
        self.writable_bytes
    }

    /// Copies from the readable part, from byte `offset` of it on. Returns how many bytes there were.
    ///
    /// # Errors
    /// None for a chain that a [`Ring`] on the same memory has popped.
    pub fn read(&self, memory: &GuestMemoryMmap, offset: u32, data: &mut [u8]) -> Result<usize, RingError> {
        copy(self.readable(), offset, data.len(), |address, from, length| {
            let part = data.get_mut(from..from + length).unwrap_or_default();
            memory.read_slice(part, address)
        })
    }

    /// Copies into the writable part, from byte `offset` of it on. Returns how many bytes there was room for.
    ///
    /// # Errors
    /// None for a chain that a [`Ring`] on the same memory has popped.
    pub fn write(&self, memory: &GuestMemoryMmap, offset: u32, data: &[u8]) -> Result<usize, RingError> {
        copy(self.writable(), offset, data.len(), |address, from, length| {
            let part = data.get(from..from + length).unwrap_or_default();
            memory.write_slice(part, address)
        })
    }

    /// A chain that no ring has seen.
    #[cfg(test)]
    pub(crate) fn of(head: u16, readable: &[Segment], writable: &[Segment]) -> Self {
        let bytes = |segments: &[Segment]| segments.iter().map(|segment| segment.length).sum();
        Self {
            head,
            segments: [readable, writable].concat(),
            readable: readable.len(),
            readable_bytes: bytes(readable),
            writable_bytes: bytes(writable),
        }
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.readable = 0;
        self.readable_bytes = 0;
        self.writable_bytes = 0;
    }

    /// Appends a buffer.
    fn add(&mut self, memory: &GuestMemoryMmap, descriptor: Descriptor) -> Result<(), RingError> {
        let (address, length) = (descriptor.addr(), descriptor.len());
        let writable = descriptor.flags() & WRITE != 0;
        if !writable && self.segments.len() > self.readable {
            return Err(RingError::ReadableAfterWritable(self.head));
        }
        let bytes = if writable { &mut self.writable_bytes } else { &mut self.readable_bytes };
        *bytes = bytes.checked_add(length).ok_or(RingError::TooLong(self.head))?;
        if length == 0 {
            return Ok(());
        }
        if self.segments.len() == MAX_SEGMENTS {
            return Err(RingError::TooLong(self.head));
        }
        let access = if writable { Permissions::Write } else { Permissions::Read };
        if !memory.check_range(address, length as usize, access) {
            return Err(RingError::OutOfMemory { address: address.raw_value(), length });
        }
        self.segments.push(Segment { address, length });
        self.readable += usize::from(!writable);
        Ok(())
    }
}

/// `segments` without their first `offset` bytes.
fn from(segments: &[Segment], offset: u32) -> impl Iterator<Item = Segment> {
    let mut skip = offset;
    segments.iter().filter_map(move |segment| {
        let here = skip.min(segment.length);
        skip -= here;
        // A segment was checked to be in memory, to its end.
        let address = segment.address.checked_add(u64::from(here))?;
        (here < segment.length).then_some(Segment { address, length: segment.length - here })
    })
}

/// Calls `part` with (address, offset in the data, length) for the bytes from `offset` on.
fn copy(
    segments: &[Segment],
    offset: u32,
    length: usize,
    mut part: impl FnMut(GuestAddress, usize, usize) -> Result<(), vm_memory::GuestMemoryError>,
) -> Result<usize, RingError> {
    let mut skip = offset;
    let mut done = 0;
    for segment in segments {
        if done == length {
            break;
        }
        if skip >= segment.length {
            skip -= segment.length;
            continue;
        }
        let here = ((segment.length - skip) as usize).min(length - done);
        let outside = RingError::OutOfMemory { address: segment.address.raw_value(), length: segment.length };
        let Some(address) = segment.address.checked_add(u64::from(skip)) else { return Err(outside) };
        part(address, done, here).map_err(|_| outside)?;
        done += here;
        skip = 0;
    }
    Ok(done)
}

/// How a driver has broken a virtqueue. Nothing in it can be trusted any more: the device says so with
/// [`Transport::needs_reset`](crate::Transport::needs_reset), and stops working on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The available ring says that more was added than fits, or is out of memory.
    #[error("the available ring is broken")]
    Available,
    /// The used ring cannot be written.
    #[error("the used ring is broken")]
    Used,
    /// A descriptor that is not there.
    #[error("descriptor {index} of a table of {size}")]
    NoSuchDescriptor {
        /// Which.
        index: u16,
        /// How many there are.
        size: u16,
    },
    /// A chain that ends in itself, or has more than 4 GiB or more than [`MAX_SEGMENTS`] buffers.
    #[error("the chain from descriptor {0} on is a loop, or too long")]
    TooLong(u16),
    /// An indirect table inside another, continued by a next descriptor, empty, or of no whole number of descriptors.
    #[error("the chain from descriptor {0} on has an indirect table that cannot be one")]
    Indirect(u16),
    /// The device would read what follows a buffer that it writes.
    #[error("the chain from descriptor {0} on has a readable buffer after a writable one")]
    ReadableAfterWritable(u16),
    /// A buffer that is not in the guest's memory.
    #[error("a buffer of {length} bytes at {address:#x} is not in memory")]
    OutOfMemory {
        /// Guest-physical.
        address: u64,
        /// In bytes.
        length: u32,
    },
    /// A chain that the device type cannot make sense of.
    #[error("the chain from descriptor {head} on {problem}")]
    Malformed {
        /// Its head.
        head: u16,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// A virtqueue with the memory it is in: what a device's worker holds.
pub struct Ring {
    queue: Queue,
    memory: GuestMemoryMmap,
    notify: Doorbell,
    interrupt: QueueInterrupt,
    index: u16,
    /// The used index when the driver was last asked whether it wants an interrupt.
    asked_at: Wrapping<u16>,
}

impl Ring {
    /// The rings of a queue in `memory`.
    #[must_use]
    pub fn new(active: ActiveQueue, memory: GuestMemoryMmap) -> Self {
        let ActiveQueue { index, queue, notify, interrupt } = active;
        let asked_at = Wrapping(queue.next_used());
        Self { queue, memory, notify, interrupt, index, asked_at }
    }

    /// The rings of a device's first `N` queues, each at its index; `None` for a queue that is not in use. Queues beyond are let go.
    pub(crate) fn by_index<const N: usize>(
        queues: Vec<ActiveQueue>,
        memory: &GuestMemoryMmap,
    ) -> [Option<Self>; N] {
        let mut rings = [const { None }; N];
        for queue in queues {
            if let Some(ring) = rings.get_mut(usize::from(queue.index)) {
                *ring = Some(Self::new(queue, memory.clone()));
            }
        }
        rings
    }

    /// Which of the device's queues.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// How many entries it has.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The memory it is in.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// What the driver notifies the device with.
    #[must_use]
    pub fn notify(&self) -> &Doorbell {
        &self.notify
    }

    /// Takes the next chain that the driver has made available, if there is one: reads all of its descriptors, once, and checks them.
    ///
    /// # Errors
    /// What is wrong with the ring or the chain.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        let head = {
            let mut available = self.queue.iter(&self.memory).map_err(|_| RingError::Available)?;
            match available.next() {
                Some(next) => next.head_index(),
                None => return Ok(false),
            }
        };
        chain.clear();
        chain.head = head;
        self.walk(chain)?;
        Ok(true)
    }

    /// Gives the last popped chain back, as if it had not been popped: for a device that has no room for it yet.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    fn walk(&self, chain: &mut Chain) -> Result<(), RingError> {
        let size = self.queue.size();
        let table = GuestAddress(self.queue.desc_table());
        let mut index = chain.head;
        // A chain that is longer than the table it is in comes back to where it has been.
        for _ in 0..size {
            let descriptor = self.descriptor(table, size, index)?;
            let flags = descriptor.flags();
            if flags & INDIRECT != 0 {
                // Section 2.7.5.3.1: not both; after direct ones it is allowed.
                if flags & NEXT != 0 {
                    return Err(RingError::Indirect(chain.head));
                }
                return self.walk_indirect(chain, descriptor);
            }
            chain.add(&self.memory, descriptor)?;
            if flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next();
        }
        Err(RingError::TooLong(chain.head))
    }

    fn walk_indirect(&self, chain: &mut Chain, table: Descriptor) -> Result<(), RingError> {
        let broken = RingError::Indirect(chain.head);
        let entry = size_of::<Descriptor>();
        let bytes = table.len() as usize;
        // Longer ones cannot be used up.
        let size = match u16::try_from(bytes / entry) {
            Ok(size) if size > 0 && bytes.is_multiple_of(entry) => size,
            _ => return Err(broken),
        };
        let mut index = 0;
        for _ in 0..size {
            let descriptor = self.descriptor(table.addr(), size, index)?;
            let flags = descriptor.flags();
            if flags & INDIRECT != 0 {
                return Err(broken);
            }
            chain.add(&self.memory, descriptor)?;
            if flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next();
        }
        Err(RingError::TooLong(chain.head))
    }

    fn descriptor(&self, table: GuestAddress, size: u16, index: u16) -> Result<Descriptor, RingError> {
        if index >= size {
            return Err(RingError::NoSuchDescriptor { index, size });
        }
        let entry = size_of::<Descriptor>();
        let outside = || RingError::OutOfMemory { address: table.raw_value(), length: u32::from(size) * 16 };
        let address = table.checked_add(u64::from(index) * entry as u64).ok_or_else(outside)?;
        self.memory.read_obj(address).map_err(|_| outside())
    }

    /// Says that the chain from `head` on is used, and that the device has written `written` bytes to it.
    ///
    /// # Errors
    /// [`RingError::Used`]; [`RingError::NoSuchDescriptor`].
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        let size = self.queue.size();
        if head >= size {
            return Err(RingError::NoSuchDescriptor { index: head, size });
        }
        self.queue.add_used(&self.memory, head, written).map_err(|_| RingError::Used)
    }

    /// Says that all these chains (head, bytes written) are used, in one step: the driver sees all of them, or none yet.
    ///
    /// That is what several buffers of one frame want (VIRTIO 1.3, section 5.1.6.4): a driver that finds the first takes the others to be there.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_together(&mut self, chains: &[(u16, u32)]) -> Result<(), RingError> {
        let Some((&(last, last_written), others)) = chains.split_last() else { return Ok(()) };
        let size = self.queue.size();
        if let Some(&(index, _)) = chains.iter().find(|(head, _)| *head >= size) {
            return Err(RingError::NoSuchDescriptor { index, size });
        }
        let mut slot = Wrapping(self.queue.next_used());
        for &(head, written) in others {
            let entry = GuestAddress(self.queue.used_ring())
                .checked_add(4 + u64::from(slot.0 % size) * size_of::<u64>() as u64)
                .ok_or(RingError::Used)?;
            let element = u64::from(head) | u64::from(written) << 32;
            self.memory.write_obj(element.to_le(), entry).map_err(|_| RingError::Used)?;
            slot += 1;
        }
        // The last one's index is what the driver sees, and it is stored after all of the above.
        self.queue.set_next_used(slot.0);
        self.queue.add_used(&self.memory, last, last_written).map_err(|_| RingError::Used)
    }

    /// Whether the driver wants to be interrupted for what was pushed since the last call. Ask once for a batch.
    ///
    /// # Errors
    /// [`RingError::Available`].
    pub fn wants_interrupt(&mut self) -> Result<bool, RingError> {
        let used = Wrapping(self.queue.next_used());
        let before = std::mem::replace(&mut self.asked_at, used);
        if used == before {
            // Nothing that it could want to hear of.
            return Ok(false);
        }
        // The used index is visible before the flag or the event is read: section 2.7.7.2.
        fence(Ordering::SeqCst);
        if self.queue.event_idx_enabled() {
            let event = GuestAddress(self.queue.avail_ring())
                .checked_add(4 + 2 * u64::from(self.queue.size()))
                .ok_or(RingError::Available)?;
            let event: u16 = self
                .memory
                .load(event, Ordering::Relaxed)
                .map_err(|_| RingError::Available)
                .map(u16::from_le)?;
            // Whether the event lies in what was pushed since (vring_need_event, section 2.7.10.1).
            return Ok(used - Wrapping(event) - Wrapping(1) < used - before);
        }
        let flags = GuestAddress(self.queue.avail_ring());
        let flags: u16 =
            self.memory.load(flags, Ordering::Relaxed).map_err(|_| RingError::Available).map(u16::from_le)?;
        Ok(flags & NO_INTERRUPT == 0)
    }

    /// Interrupts the driver if it [wants](Self::wants_interrupt) that.
    ///
    /// # Errors
    /// [`RingError::Available`]. That an interrupt could not be passed on is kept by the transport.
    pub fn interrupt(&mut self) -> Result<(), RingError> {
        if self.wants_interrupt()? {
            let _ = self.interrupt.signal();
        }
        Ok(())
    }

    /// Asks the driver not to notify: the device is looking anyway.
    ///
    /// # Errors
    /// [`RingError::Used`].
    pub fn disable_notifications(&mut self) -> Result<(), RingError> {
        self.queue.disable_notification(&self.memory).map_err(|_| RingError::Used)
    }

    /// Asks the driver to notify from now on. Returns whether there is something already, for which it may not have.
    ///
    /// # Errors
    /// [`RingError::Used`].
    pub fn enable_notifications(&mut self) -> Result<bool, RingError> {
        self.queue.enable_notification(&self.memory).map_err(|_| RingError::Used)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
#[allow(clippy::cast_possible_truncation, reason = "tests")]
mod ring_tests;

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 0x4000;

    /// Segments of `lengths`, each behind the last with a gap of one byte.
    fn segments(start: u64, lengths: &[u32]) -> Vec<Segment> {
        let mut at = start;
        let segment = |&length: &u32| {
            let address = GuestAddress(at);
            at += u64::from(length) + 1;
            Segment { address, length }
        };
        lengths.iter().map(segment).collect()
    }

    proptest! {
        /// Whatever the buffers are, they are one row of bytes, of which any part can be read, written, or handed on.
        #[test]
        fn a_chain_is_its_bytes_in_a_row(
            readable in prop::collection::vec(1_u32..40, 0..6),
            writable in prop::collection::vec(1_u32..40, 0..6),
            offset in 0_u32..130,
            length in 0_usize..130,
        ) {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
            let fresh: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
            memory.write_slice(&fresh, GuestAddress(0)).unwrap();
            let chain = Chain::of(0, &segments(0x100, &readable), &segments(0x2000, &writable));
            let places = |segments: Vec<Segment>| -> Vec<usize> {
                let of = |segment: Segment| (segment.address.0..).take(segment.length as usize);
                segments.into_iter().flat_map(of).map(|at| usize::try_from(at).unwrap()).collect()
            };
            let rest = |segments: &[Segment]| places(segments.to_vec()).split_off(
                (offset as usize).min(segments.iter().map(|segment| segment.length as usize).sum())
            );
            let (readable, writable) = (rest(chain.readable()), rest(chain.writable()));
            prop_assert_eq!(&places(chain.readable_from(offset).collect()), &readable);
            prop_assert_eq!(&places(chain.writable_from(offset).collect()), &writable);
            prop_assert!(chain.readable_from(offset).chain(chain.writable_from(offset)).all(|part| part.length > 0));

            let mut data = vec![0xff; length];
            let got = chain.read(&memory, offset, &mut data).unwrap();
            let expected: Vec<u8> = readable.iter().take(length).map(|&at| fresh[at]).collect();
            prop_assert_eq!((got, &data[..got]), (expected.len(), &expected[..]));
            prop_assert!(data[got..].iter().all(|&byte| byte == 0xff));

            let new: Vec<u8> = (0..length).map(|at| 0x80 | at as u8).collect();
            let put = chain.write(&memory, offset, &new).unwrap();
            prop_assert_eq!(put, writable.len().min(length));
            let mut expected = fresh.clone();
            for (&at, &byte) in writable.iter().zip(&new) {
                expected[at] = byte;
            }
            let mut now = vec![0; SIZE];
            memory.read_slice(&mut now, GuestAddress(0)).unwrap();
            prop_assert!(now == expected);
        }
    }
}
