// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What needs raw pointers: a guest's buffers as the host kernel's `iovec`s, and an io_uring that works on them.
//!
//! Why the safe functions here are sound. An [`IoVec`] points into the guest's memory, or into a [`Bounce`] buffer. It is made by [`Buffers`] alone,
//! which owns what it points into (a clone of the memory map keeps the mapping), cannot be copied, and is lent out only for as long as its `Buffers` is borrowed. Nobody makes
//! a Rust reference to the bytes: the guest writes to them at the same time. What is in flight in an io_uring is owned by it, in a box that does
//! not move, until the kernel has said that it is done.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, Permissions, VolatileSlice,
};

/// A part of a buffer that the host kernel reads or writes.
#[repr(transparent)]
pub(crate) struct IoVec(libc::iovec);

// SAFETY: what it points to is memory that all threads of the process may access, at most with a race that the guest sees.
unsafe impl Send for IoVec {}
// SAFETY: as above; a shared reference allows no more than to pass the pointer on.
unsafe impl Sync for IoVec {}

impl IoVec {
    fn len(&self) -> usize {
        self.0.iov_len
    }

    /// As vm-memory sees it.
    pub(crate) fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the owner of what it points into is borrowed for as long as `self` is (module documentation), and it was made from a slice of
        // that length.
        unsafe { VolatileSlice::new(self.0.iov_base.cast(), self.0.iov_len) }
    }
}

/// The buffers of one request: where its data goes to or comes from.
pub(crate) struct Buffers {
    /// Keeps the memory mapped that `parts` points into.
    memory: GuestMemoryMmap,
    parts: Vec<IoVec>,
    /// How many of them are used up.
    first: usize,
    remaining: u64,
    bounce: Option<Bounce>,
}

/// Aligned memory of our own, between guest memory that is not aligned and a file that wants it to be.
struct Bounce {
    /// Memory that nobody has a Rust reference to, like a guest's: whole pages.
    pages: GuestMemoryMmap,
    part: IoVec,
}

/// How many iovecs the kernel takes (`UIO_MAXIOV`). A chain has no more buffers, but one that lies across two regions of memory has two parts.
const IOV_MAX: usize = 1024;
/// How much goes through a bounce buffer at a time. As many as there are requests may be in use.
const BOUNCE: usize = 64 << 10;
/// What it is aligned to: no block is larger.
pub(crate) const MAX_ALIGN: usize = 4096;

impl Buffers {
    /// None yet, in `memory`.
    pub(crate) fn new(memory: GuestMemoryMmap) -> Self {
        Self { memory, parts: Vec::new(), first: 0, remaining: 0, bounce: None }
    }

    /// Gives the bounce buffer back: few requests need one, and each might come to have one.
    pub(crate) fn release(&mut self) {
        self.bounce = None;
    }

    /// Empties it. Room is kept.
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.first = 0;
        self.remaining = 0;
    }

    /// Appends guest memory.
    ///
    /// # Errors
    /// If it is not all there.
    pub(crate) fn push(
        &mut self,
        address: GuestAddress,
        length: usize,
    ) -> Result<(), vm_memory::GuestMemoryError> {
        let slices = GuestMemory::get_slices(&self.memory, address, length, Permissions::ReadWrite)?;
        for slice in slices {
            let slice = slice?;
            let pointer = slice.ptr_guard_mut().as_ptr();
            self.parts.push(IoVec(libc::iovec { iov_base: pointer.cast(), iov_len: slice.len() }));
            self.remaining += slice.len() as u64;
        }
        Ok(())
    }

    /// Bytes that are not used up.
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The first `bytes` of what remains are used up.
    pub(crate) fn advance(&mut self, bytes: usize) {
        let mut bytes = bytes;
        while let Some(part) = self.parts.get_mut(self.first) {
            let here = part.len().min(bytes);
            // SAFETY: not beyond the part's end.
            part.0.iov_base = unsafe { part.0.iov_base.cast::<u8>().add(here) }.cast();
            part.0.iov_len -= here;
            self.remaining -= here as u64;
            bytes -= here;
            if part.0.iov_len > 0 {
                return;
            }
            self.first += 1;
            if bytes == 0 {
                return;
            }
        }
    }

    /// What remains, or as much of it as the kernel takes at a time.
    pub(crate) fn parts(&self) -> &[IoVec] {
        let remaining = self.parts.get(self.first..).unwrap_or_default();
        remaining.get(..IOV_MAX).unwrap_or(remaining)
    }

    /// Whether addresses and lengths of what remains are multiples of `align`.
    pub(crate) fn is_aligned(&self, align: usize) -> bool {
        self.parts().iter().all(|part| (part.0.iov_base.addr() | part.len()) & (align - 1) == 0)
    }

    /// Gets aligned memory as long as what remains, or as much of it as goes at a time. Returns how long it is; `None` if the host has no memory.
    pub(crate) fn bounce(&mut self) -> Option<usize> {
        let length = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(BOUNCE);
        if self.bounce.is_none() {
            let pages = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), BOUNCE)]).ok()?;
            let base = pages.get_slice(GuestAddress(0), BOUNCE).ok()?.ptr_guard_mut().as_ptr();
            let part = IoVec(libc::iovec { iov_base: base.cast(), iov_len: 0 });
            self.bounce = Some(Bounce { pages, part });
        }
        if let Some(bounce) = &mut self.bounce {
            bounce.part.0.iov_len = length;
        }
        Some(length)
    }

    /// The bounce buffer as [`bounce`](Self::bounce) has left it.
    pub(crate) fn bounced(&self) -> &[IoVec] {
        self.bounce.as_ref().map_or(&[], |bounce| std::slice::from_ref(&bounce.part))
    }

    /// Copies what was written to the bounce buffer, `bytes` of it, to where it belongs. That is not used up by it.
    pub(crate) fn copy_from_bounce(&self, bytes: usize) {
        self.beside_bounce(bytes, |ours, theirs| ours.copy_to_volatile_slice(theirs));
    }

    /// Fills the bounce buffer from what remains.
    pub(crate) fn copy_to_bounce(&self) {
        let length = self.bounce.as_ref().map_or(0, |bounce| bounce.part.len());
        self.beside_bounce(length, |ours, theirs| theirs.copy_to_volatile_slice(ours));
    }

    /// Goes through the first `bytes` of the bounce buffer and of what remains.
    fn beside_bounce(&self, bytes: usize, copy: impl Fn(VolatileSlice<'_>, VolatileSlice<'_>)) {
        let Some(bounce) = &self.bounce else { return };
        let ours = bounce.part.slice();
        let mut at = 0;
        // All of them: the kernel's limit is none of what it does not see.
        for part in self.parts.get(self.first..).unwrap_or_default() {
            let theirs = part.slice();
            let length = theirs.len().min(bytes.saturating_sub(at));
            if let (Ok(ours), Ok(theirs)) = (ours.subslice(at, length), theirs.subslice(0, length)) {
                copy(ours, theirs);
            }
            at += length;
        }
    }

    /// Zeroes for a write, in the bounce buffer, `length` bytes or as many as go at a time. Returns whether the host has memory for them.
    pub(crate) fn zeroes(&mut self, length: u64) -> bool {
        self.clear();
        self.remaining = length;
        let got = self.bounce();
        self.remaining = 0;
        if let Some(bounce) = &self.bounce {
            let _ = bounce.pages.write_slice(&[0; BOUNCE], GuestAddress(0));
        }
        got.is_some()
    }
}

/// One thing that the host kernel is to do with a file.
#[derive(Clone, Copy)]
pub(crate) enum Step<'a> {
    /// Reads into buffers.
    Read {
        /// Where to.
        to: &'a [IoVec],
        /// Where from, in bytes.
        offset: u64,
    },
    /// Writes from buffers.
    Write {
        /// Where from.
        from: &'a [IoVec],
        /// Where to, in bytes.
        offset: u64,
        /// Returns when it is on stable storage.
        durable: bool,
    },
    /// Returns when everything that was written is on stable storage.
    Sync,
    /// Gives a range's storage back; it reads as zeroes.
    Punch {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u64,
    },
    /// Makes a range read as zeroes, and keeps its storage.
    Zero {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u64,
    },
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

fn count(parts: &[IoVec]) -> u32 {
    // At most IOV_MAX.
    u32::try_from(parts.len()).unwrap_or(u32::MAX)
}

/// Does `step` now. Returns how many bytes were read or written.
///
/// # Errors
/// The kernel's.
pub(crate) fn execute(file: BorrowedFd<'_>, step: Step<'_>) -> io::Result<usize> {
    let fd = file.as_raw_fd();
    let signed = |value: u64| i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
    loop {
        let result = match step {
            Step::Read { to, offset } => {
                let offset = signed(offset)?;
                let parts = i32::try_from(to.len()).unwrap_or(i32::MAX);
                // SAFETY: `IoVec` is a transparent `iovec`, and what it points to is there and writable while `to` is borrowed.
                unsafe { libc::preadv(fd, to.as_ptr().cast(), parts, offset) }
            }
            Step::Write { from, offset, durable } => {
                let offset = signed(offset)?;
                let parts = i32::try_from(from.len()).unwrap_or(i32::MAX);
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: as above.
                unsafe { libc::pwritev2(fd, from.as_ptr().cast(), parts, offset, flags) }
            }
            // SAFETY: no pointers.
            Step::Sync => unsafe { libc::fdatasync(fd) as isize },
            Step::Punch { offset, length } => {
                let (offset, length) = (signed(offset)?, signed(length)?);
                // SAFETY: no pointers.
                unsafe { libc::fallocate(fd, PUNCH, offset, length) as isize }
            }
            Step::Zero { offset, length } => {
                let (offset, length) = (signed(offset)?, signed(length)?);
                // SAFETY: no pointers.
                unsafe { libc::fallocate(fd, ZERO, offset, length) as isize }
            }
        };
        match usize::try_from(result) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Whether reads of a file can be asked not to wait (`RWF_NOWAIT`): what io_uring goes by.
pub(crate) fn knows_nowait(file: BorrowedFd<'_>) -> bool {
    let mut byte = 0u8;
    let part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: one iovec, of one byte that is there. A read that would have to wait says so, and does not write later.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, 0, libc::RWF_NOWAIT) };
    // Past the page cache a single byte is not allowed, which is found out only afterwards.
    read >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EOPNOTSUPP)
}

/// What an [`Uring`] does for a request, until the request says that it is done.
pub(crate) trait Request {
    /// The next thing to do.
    fn step(&self) -> Step<'_>;
}

/// What came of waiting.
pub(crate) enum Event<T> {
    /// A descriptor that is listened to was signalled.
    Signalled(u64),
    /// A request's step is done: the request back, with how many bytes it was, or the kernel's answer.
    Completed(Box<T>, Result<usize, i32>),
}

/// Tokens from here on are descriptors; below, slots.
const DESCRIPTORS: u64 = 1 << 32;

/// An io_uring on one file. One system call submits all that is new and waits for what comes next, be it a completion or a signal on an eventfd.
pub(crate) struct Uring<T> {
    ring: IoUring,
    file: File,
    /// Owns what is in flight: dropping waits for the kernel.
    slots: Vec<Option<Box<T>>>,
    free: Vec<usize>,
    in_flight: usize,
    /// Descriptors to listen to again.
    unarmed: Vec<u64>,
    listened: Vec<std::os::fd::OwnedFd>,
    /// Why listening has failed, if it has.
    deaf: Option<i32>,
}

impl<T: Request> Uring<T> {
    /// A ring for up to `depth` requests at a time on `file`, and for signals on `descriptors`, whose tokens are their places there. The thread that makes it is the
    /// one that uses it.
    ///
    /// # Errors
    /// Where the host has no io_uring, or forbids it.
    pub(crate) fn new(depth: u32, file: &File, descriptors: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let entries = depth.next_power_of_two();
        // Completions are worked off by this thread when it asks, not by interrupting it (Linux 6.1); older kernels do without. The flag says that there are some: without
        // it, only who blocks would ask.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries)
            .or_else(|_| IoUring::builder().build(entries))?;
        // Polls that last came with Linux 5.13, and so did this.
        if !ring.params().is_feature_resource_tagging() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Not registered with the ring: the kernel takes a ring apart some time after it was closed, and the image would stay open and locked until then.
        let file = file.try_clone()?;
        let listened =
            descriptors.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<Vec<_>>>()?;
        let unarmed = (0..listened.len() as u64).collect();
        Ok(Self {
            ring,
            file,
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            unarmed,
            listened,
            deaf: None,
        })
    }

    /// Requests that the kernel has.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Gives a request to the kernel, at the latest with the next [`wait`](Self::wait).
    ///
    /// # Errors
    /// The request, if it could not be submitted: the kernel is out of memory.
    pub(crate) fn start(&mut self, request: Box<T>) -> Result<(), (Box<T>, io::Error)> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let Some(place) = self.slots.get_mut(slot) else {
            return Err((request, io::ErrorKind::Other.into()));
        };
        let entry = entry(&self.file, place.insert(request).step()).user_data(slot as u64);
        if let Err(e) = self.push(entry) {
            self.free.push(slot);
            match self.slots.get_mut(slot).and_then(Option::take) {
                Some(request) => return Err((request, e)),
                None => return Ok(()),
            }
        }
        self.in_flight += 1;
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what the entry points to is owned by `slots` until the completion is taken: a box that does not move, and that nobody
        // changes. Polls point to nothing. All descriptors are owned.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return Ok(());
        }
        self.ring.submit()?;
        // SAFETY: as above.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Submits what is new and waits until something has happened: then [`next`](Self::next) has it. Unless it is to `block`, it only looks.
    ///
    /// # Errors
    /// The kernel's. What is in flight stays so.
    pub(crate) fn wait(&mut self, block: bool) -> io::Result<()> {
        if let Some(errno) = self.deaf {
            return Err(io::Error::from_raw_os_error(errno));
        }
        loop {
            match self.arm().and_then(|()| self.ring.submit_and_wait(usize::from(block))) {
                Ok(_) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                // Completions have to be taken first.
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                // Out of memory for requests, for a moment.
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {
                    std::thread::sleep(Duration::from_millis(1));
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Listens, once and for all: each signal from then on is a completion, and nobody need read the eventfd. The kernel ends that only when the completion queue
    /// has overflowed.
    fn arm(&mut self) -> io::Result<()> {
        while let Some(&token) = self.unarmed.last() {
            let fd = usize::try_from(token).ok().and_then(|at| self.listened.get(at));
            if let Some(fd) = fd {
                let events = u32::from(libc::POLLIN.cast_unsigned());
                let poll = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events).multi(true).build();
                self.push(poll.user_data(DESCRIPTORS + token))?;
            }
            self.unarmed.pop();
        }
        Ok(())
    }

    /// What has happened, one at a time; `None` when there is nothing more for now.
    pub(crate) fn next(&mut self) -> Option<Event<T>> {
        loop {
            let completion = self.ring.completion().next()?;
            let token = completion.user_data();
            if let Some(descriptor) = token.checked_sub(DESCRIPTORS) {
                if completion.result() < 0 {
                    self.deaf = Some(-completion.result());
                }
                if !io_uring::cqueue::more(completion.flags()) {
                    self.unarmed.push(descriptor);
                }
                return Some(Event::Signalled(descriptor));
            }
            let slot = usize::try_from(token).ok();
            let Some(request) = slot.and_then(|slot| self.slots.get_mut(slot)).and_then(Option::take) else {
                continue;
            };
            self.free.extend(slot);
            self.in_flight -= 1;
            let result = usize::try_from(completion.result()).map_err(|_| -completion.result());
            return Some(Event::Completed(request, result));
        }
    }
}

impl<T> Drop for Uring<T> {
    fn drop(&mut self) {
        // The kernel writes to the guest's memory, and reads the iovecs, until it has said that it is done.
        let mut left = self.in_flight;
        while left > 0 {
            while let Some(completion) = self.ring.completion().next() {
                left -= usize::from(completion.user_data() < DESCRIPTORS);
            }
            match if left > 0 { self.ring.submit_and_wait(1) } else { Ok(0) } {
                Err(e) if !matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {
                    // Nobody will say so any more: what may be in use must not be freed.
                    std::mem::forget(std::mem::take(&mut self.slots));
                    return;
                }
                _ => {}
            }
        }
    }
}

/// The submission of a step on `file`.
fn entry(file: &File, step: Step<'_>) -> squeue::Entry {
    let file = types::Fd(file.as_raw_fd());
    match step {
        Step::Read { to: [one], offset } if one.len() <= u32::MAX as usize =>
        {
            #[expect(clippy::cast_possible_truncation, reason = "checked")]
            opcode::Read::new(file, one.0.iov_base.cast(), one.len() as u32).offset(offset).build()
        }
        Step::Read { to, offset } => {
            opcode::Readv::new(file, to.as_ptr().cast(), count(to)).offset(offset).build()
        }
        Step::Write { from, offset, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            opcode::Writev::new(file, from.as_ptr().cast(), count(from))
                .offset(offset)
                .rw_flags(flags)
                .build()
        }
        Step::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        Step::Punch { offset, length } => {
            opcode::Fallocate::new(file, length).offset(offset).mode(PUNCH).build()
        }
        Step::Zero { offset, length } => {
            opcode::Fallocate::new(file, length).offset(offset).mode(ZERO).build()
        }
    }
}

/// Puts a read lock on one byte of an open file (`F_OFD_SETLK`): it goes with the open file description.
///
/// # Errors
/// `EAGAIN` if somebody has a write lock there; `ENOLCK`, `EOPNOTSUPP` where the file system has no locks.
pub(crate) fn lock_byte(file: &File, offset: i64) -> io::Result<()> {
    let mut lock = byte_lock(libc::F_RDLCK, offset);
    // SAFETY: `F_OFD_SETLK` takes a pointer to a `flock` with `l_pid` 0.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether somebody else has locked one byte of a file (`F_OFD_GETLK`).
///
/// # Errors
/// As [`lock_byte`].
pub(crate) fn is_byte_locked(file: &File, offset: i64) -> io::Result<bool> {
    let mut lock = byte_lock(libc::F_WRLCK, offset);
    // SAFETY: `F_OFD_GETLK` takes a pointer to a `flock` with `l_pid` 0, and writes it.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } {
        0 => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
        _ => Err(io::Error::last_os_error()),
    }
}

fn byte_lock(kind: i32, offset: i64) -> libc::flock {
    // SAFETY: a `flock` is plain numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    #[expect(clippy::cast_possible_truncation, reason = "small constants, of another type in each C library")]
    {
        lock.l_type = kind as _;
        lock.l_whence = libc::SEEK_SET as _;
    }
    lock.l_start = offset;
    lock.l_len = 1;
    lock
}

/// Reads `length` bytes from `offset` on, or as many as there are, whatever direct I/O wants of an alignment.
///
/// # Errors
/// The kernel's.
pub(crate) fn read_some(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let before = usize::try_from(offset % MAX_ALIGN as u64).unwrap_or(0);
    let mut bytes = read_blocks(file, offset - before as u64, before.saturating_add(length), MAX_ALIGN)?;
    bytes.drain(..before.min(bytes.len()));
    bytes.truncate(length);
    Ok(bytes)
}

/// Reads `length` bytes, rounded up to whole blocks of `block` bytes, into memory that is aligned to pages.
///
/// # Errors
/// The kernel's: `EINVAL` if direct I/O wants something larger.
pub(crate) fn read_blocks(file: &File, offset: u64, length: usize, block: usize) -> io::Result<Vec<u8>> {
    let length = length.next_multiple_of(block);
    // One region, page-aligned, as a guest's memory is.
    let pages = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), length.next_multiple_of(MAX_ALIGN))])
        .map_err(io::Error::other)?;
    let mut buffers = Buffers::new(pages.clone());
    buffers.push(GuestAddress(0), length).map_err(io::Error::other)?;
    let read = execute(file.as_fd(), Step::Read { to: buffers.parts(), offset })?;
    let mut bytes = vec![0; read.min(length)];
    pages.read_slice(&mut bytes, GuestAddress(0)).map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;
