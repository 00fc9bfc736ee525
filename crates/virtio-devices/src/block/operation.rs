// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One request, from the driver's buffers to what the host kernel is to do, step by step, and to its status. VIRTIO 1.3, section 5.2.6.
//!
//! Nothing here does any I/O: whoever runs it executes [`step`](Request::step) and says what came of it.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::geometry::{Geometry, MAX_RANGE_SECTORS, MAX_RANGES, SECTOR};
use crate::sys::storage::{Buffers, Request, Step};
use crate::{Chain, RingError, Segment};

/// Bytes of the request's header: type, reserved, sector.
const HEADER: u32 = 16;
/// Bytes of a range to discard or to zero: sector, number of sectors, flags.
const RANGE: u32 = 16;
/// In a range's flags: its storage may be given back.
const UNMAP: u32 = 1;
/// Bytes of the serial number.
pub(super) const SERIAL: usize = 20;

/// The status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    #[expect(clippy::cast_possible_truncation, reason = "small constants, which bindgen calls u32")]
    const fn byte(self) -> u8 {
        match self {
            Self::Ok => VIRTIO_BLK_S_OK as u8,
            Self::IoError => VIRTIO_BLK_S_IOERR as u8,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
        }
    }
}

/// What is to become of a request that was just taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parsed {
    /// It is answered.
    Done(Status),
    /// There are steps to do.
    Start,
}

/// What is to become of a request whose step was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is another step to do.
    Again,
    Done(Status),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    /// Answered without the image.
    Other,
}

/// How a range is made to read as zeroes; each is tried when the one before is not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeroing {
    /// Its storage is given back.
    Punch,
    /// Its storage is kept.
    Zero,
    /// Zeroes are written.
    Write,
}

/// A part of the disk, in bytes.
#[derive(Debug, Clone, Copy)]
struct Range {
    offset: u64,
    length: u64,
    zeroing: Zeroing,
}

/// A request. It is used again for request after request.
pub(super) struct Operation {
    head: u16,
    /// Where the status byte goes.
    status: GuestAddress,
    kind: Kind,
    buffers: Buffers,
    /// Where in the image what remains of the buffers belongs.
    offset: u64,
    /// Bytes that the driver has room for in front of the status.
    room: u64,
    /// Bytes that were moved, from or to the guest.
    got: u64,
    /// What is left to discard or to zero, the next one last.
    ranges: Vec<Range>,
    /// Writes are to be on stable storage before they are answered.
    durable: bool,
    /// What remains of a write-through request is to make it durable.
    syncing: bool,
    /// What addresses and lengths of buffers have to be multiples of.
    align: usize,
    bouncing: bool,
}

impl Operation {
    pub(super) fn new(memory: GuestMemoryMmap) -> Self {
        Self {
            head: 0,
            status: GuestAddress(0),
            kind: Kind::Flush,
            buffers: Buffers::new(memory),
            offset: 0,
            room: 0,
            got: 0,
            ranges: Vec::new(),
            durable: false,
            syncing: false,
            align: 1,
            bouncing: false,
        }
    }

    /// The chain it came in.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that were moved to or from the guest, for the counters.
    pub(super) fn moved(&self) -> u64 {
        self.got
    }

    pub(super) fn is_read(&self) -> bool {
        self.kind == Kind::Read
    }

    pub(super) fn is_write(&self) -> bool {
        self.kind == Kind::Write
    }

    /// Makes this the request in `chain`.
    ///
    /// # Errors
    /// A chain that has no room for a header and a status is none that the driver may make.
    pub(super) fn parse(
        &mut self,
        chain: &Chain,
        memory: &GuestMemoryMmap,
        geometry: &Geometry,
        durable: bool,
    ) -> Result<Parsed, RingError> {
        let malformed = |problem| RingError::Malformed { head: chain.head(), problem };
        self.head = chain.head();
        let mut header = [0; HEADER as usize];
        if chain.read(memory, 0, &mut header)? < header.len() {
            return Err(malformed("is too short for the header of a block request"));
        }
        let last = chain.writable().last().ok_or(malformed("has no room for the status"))?;
        // Segments are not empty, and do not wrap around.
        self.status = last.address.unchecked_add(u64::from(last.length) - 1);
        self.buffers.clear();
        self.ranges.clear();
        let room = chain.writable_len() - 1;
        (self.kind, self.room, self.got) = (Kind::Other, u64::from(room), 0);
        (self.durable, self.syncing, self.bouncing) = (durable, false, false);
        self.align = geometry.align;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => {
                self.kind = Kind::Read;
                self.transfer(chain.writable(), 0, room, sector, geometry)
            }
            VIRTIO_BLK_T_OUT => {
                self.kind = Kind::Write;
                if geometry.readonly {
                    return Ok(Parsed::Done(Status::IoError));
                }
                let length = chain.readable_len() - HEADER;
                self.transfer(chain.readable(), HEADER, length, sector, geometry)
            }
            VIRTIO_BLK_T_FLUSH => {
                self.kind = Kind::Flush;
                // Nothing was written, so everything is safe.
                Ok(if geometry.readonly { Parsed::Done(Status::Ok) } else { Parsed::Start })
            }
            VIRTIO_BLK_T_GET_ID => {
                let room = usize::try_from(room).unwrap_or(SERIAL).min(SERIAL);
                let serial = geometry.serial.get(..room).unwrap_or_default();
                self.got = chain.write(memory, 0, serial)? as u64;
                Ok(Parsed::Done(Status::Ok))
            }
            VIRTIO_BLK_T_DISCARD => {
                self.kind = Kind::Discard;
                self.ranges(chain, memory, geometry)
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                self.kind = Kind::WriteZeroes;
                self.ranges(chain, memory, geometry)
            }
            _ => Ok(Parsed::Done(Status::Unsupported)),
        }
    }

    /// A read or write of `length` bytes, which are in `segments` from byte `skip` on.
    fn transfer(
        &mut self,
        segments: &[Segment],
        skip: u32,
        length: u32,
        sector: u64,
        geometry: &Geometry,
    ) -> Result<Parsed, RingError> {
        let Some(offset) = geometry.locate(sector, u64::from(length)) else {
            return Ok(Parsed::Done(Status::IoError));
        };
        if length == 0 {
            return Ok(Parsed::Done(Status::Ok));
        }
        self.offset = offset;
        let (mut skip, mut left) = (skip, length);
        for segment in segments {
            let here = segment.length.saturating_sub(skip).min(left);
            if here > 0 {
                let address = segment.address.unchecked_add(u64::from(skip));
                let outside = RingError::OutOfMemory { address: address.raw_value(), length: here };
                self.buffers.push(address, here as usize).map_err(|_| outside)?;
            }
            skip = skip.saturating_sub(segment.length);
            left -= here;
        }
        Ok(self.begin())
    }

    /// A list of ranges: section 5.2.6.2.
    fn ranges(
        &mut self,
        chain: &Chain,
        memory: &GuestMemoryMmap,
        geometry: &Geometry,
    ) -> Result<Parsed, RingError> {
        let bytes = chain.readable_len() - HEADER;
        let count = bytes / RANGE;
        if geometry.readonly || count > MAX_RANGES || !bytes.is_multiple_of(RANGE) {
            return Ok(Parsed::Done(Status::IoError));
        }
        let mut possible = true;
        // The next one is the last of the list.
        for index in (0..count).rev() {
            let mut entry = [0; RANGE as usize];
            chain.read(memory, HEADER + index * RANGE, &mut entry)?;
            let [sector @ .., s0, s1, s2, s3, f0, f1, f2, f3] = entry;
            let sectors = u32::from_le_bytes([s0, s1, s2, s3]);
            let flags = u32::from_le_bytes([f0, f1, f2, f3]);
            let known = if self.kind == Kind::WriteZeroes { UNMAP } else { 0 };
            if flags & !known != 0 {
                return Ok(Parsed::Done(Status::Unsupported));
            }
            let length = u64::from(sectors) * SECTOR;
            let offset = geometry.locate(u64::from_le_bytes(sector), length);
            let Some(offset) = offset.filter(|_| sectors <= MAX_RANGE_SECTORS) else {
                // Unless the flags of another one are unknown, which is to be said first.
                possible = false;
                continue;
            };
            if length > 0 {
                let zeroing = if flags & UNMAP != 0 { Zeroing::Punch } else { Zeroing::Zero };
                self.ranges.push(Range { offset, length, zeroing });
            }
        }
        if !possible {
            return Ok(Parsed::Done(Status::IoError));
        }
        if self.ranges.is_empty() {
            return Ok(Parsed::Done(Status::Ok));
        }
        Ok(self.begin())
    }

    fn begin(&mut self) -> Parsed {
        match self.prepare() {
            Progress::Again => Parsed::Start,
            Progress::Done(status) => Parsed::Done(status),
        }
    }

    /// Makes ready what the next step needs. Without memory for it, there is none.
    fn prepare(&mut self) -> Progress {
        let ready = match self.kind {
            Kind::Read | Kind::Write => {
                self.bouncing = self.align > 1 && !self.buffers.is_aligned(self.align);
                let ready = !self.bouncing || self.buffers.bounce().is_some();
                if self.bouncing && self.kind == Kind::Write {
                    self.buffers.copy_to_bounce();
                }
                ready
            }
            Kind::WriteZeroes => match self.ranges.last() {
                Some(&Range { length, zeroing: Zeroing::Write, .. }) => self.buffers.zeroes(length),
                _ => true,
            },
            Kind::Flush | Kind::Discard | Kind::Other => true,
        };
        if ready { Progress::Again } else { Progress::Done(Status::IoError) }
    }

    /// The step was done: `result` is how many bytes it was, or the host's `errno`.
    pub(super) fn finish_step(&mut self, result: Result<usize, i32>) -> Progress {
        if self.syncing || self.kind == Kind::Flush {
            return Progress::Done(if result.is_ok() { Status::Ok } else { Status::IoError });
        }
        match self.kind {
            Kind::Read | Kind::Write => self.finish_transfer(result),
            Kind::Discard | Kind::WriteZeroes | Kind::Flush | Kind::Other => self.finish_range(result),
        }
    }

    fn finish_transfer(&mut self, result: Result<usize, i32>) -> Progress {
        // Nothing read is the end of a file that has shrunk; nothing written does not happen.
        let bytes = match result {
            Ok(bytes) if bytes > 0 => bytes,
            Err(libc::EINTR | libc::EAGAIN) => return Progress::Again,
            _ => return Progress::Done(Status::IoError),
        };
        if self.bouncing && self.kind == Kind::Read {
            self.buffers.copy_from_bounce(bytes);
        }
        self.buffers.advance(bytes);
        self.offset += bytes as u64;
        self.got += bytes as u64;
        if self.buffers.remaining() == 0 {
            return Progress::Done(Status::Ok);
        }
        self.prepare()
    }

    fn finish_range(&mut self, result: Result<usize, i32>) -> Progress {
        let Some(range) = self.ranges.last_mut() else { return Progress::Done(Status::IoError) };
        let unsupported = matches!(
            result,
            Err(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::ENOTTY | libc::EINVAL)
        );
        match (self.kind, range.zeroing, result) {
            (_, _, Err(libc::EINTR | libc::EAGAIN)) => return Progress::Again,
            (Kind::WriteZeroes, Zeroing::Punch, Err(_)) if unsupported => range.zeroing = Zeroing::Zero,
            (Kind::WriteZeroes, Zeroing::Zero, Err(_)) if unsupported => range.zeroing = Zeroing::Write,
            (Kind::WriteZeroes, Zeroing::Write, Ok(bytes)) if bytes > 0 => {
                let bytes = (bytes as u64).min(range.length);
                range.offset += bytes;
                range.length -= bytes;
                if range.length == 0 {
                    self.ranges.pop();
                }
            }
            (Kind::WriteZeroes, Zeroing::Write, Ok(_)) => return Progress::Done(Status::IoError),
            // A discard is a hint: where storage cannot be given back, it is kept.
            (Kind::Discard, _, Err(_)) if unsupported => {
                self.ranges.pop();
            }
            (_, _, Ok(_)) => {
                self.ranges.pop();
            }
            (_, _, Err(_)) => return Progress::Done(Status::IoError),
        }
        if !self.ranges.is_empty() {
            return self.prepare();
        }
        if self.durable && self.kind == Kind::WriteZeroes {
            self.syncing = true;
            return Progress::Again;
        }
        Progress::Done(Status::Ok)
    }

    /// Tells the driver: writes the status byte, and returns how many bytes of the chain were written from its beginning on (section 2.7.8.2).
    ///
    /// # Errors
    /// None: the chain was in memory, which does not go away.
    pub(super) fn answer(&mut self, memory: &GuestMemoryMmap, status: Status) -> Result<u32, RingError> {
        self.buffers.release();
        let outside = RingError::OutOfMemory { address: self.status.raw_value(), length: 1 };
        memory.write_obj(status.byte(), self.status).map_err(|_| outside)?;
        let filled = if self.kind == Kind::Write { 0 } else { self.got };
        // The status is behind the data: it counts only if all of that was written.
        let written = if filled == self.room { self.room + 1 } else { filled };
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }
}

impl Request for Operation {
    fn step(&self) -> Step<'_> {
        let parts = || if self.bouncing { self.buffers.bounced() } else { self.buffers.parts() };
        match (self.kind, self.ranges.last()) {
            (Kind::Read, _) => Step::Read { to: parts(), offset: self.offset },
            (Kind::Write, _) => Step::Write { from: parts(), offset: self.offset, durable: self.durable },
            (Kind::Discard, Some(range)) => Step::Punch { offset: range.offset, length: range.length },
            (Kind::WriteZeroes, Some(range)) if !self.syncing => match range.zeroing {
                Zeroing::Punch => Step::Punch { offset: range.offset, length: range.length },
                Zeroing::Zero => Step::Zero { offset: range.offset, length: range.length },
                Zeroing::Write => {
                    Step::Write { from: self.buffers.bounced(), offset: range.offset, durable: self.durable }
                }
            },
            _ => Step::Sync,
        }
    }
}

#[cfg(test)]
#[path = "operation_tests.rs"]
mod tests;
