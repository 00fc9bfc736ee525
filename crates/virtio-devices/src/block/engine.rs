// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The worker of one queue: takes requests, has them done, answers them.
//!
//! With io_uring, one system call submits what is new and waits for whatever comes next: completions, notifications of the driver, the end. Where
//! the host has no io_uring, and for qcow2, the thread does one request after the other.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::geometry::Geometry;
use super::operation::{Operation, Parsed, Progress, Status};
use super::prompt::Prompt;
use super::shared::Shared;
use crate::sys::storage::{self, Event, Request, Step, Uring};
use crate::worker::{Events, listen};
use crate::{Chain, Ring, RingError, Transport};

/// Does what a request wants of an image, and returns when it is done.
pub(super) trait Executor: Send + Sync {
    /// Returns how many bytes were read or written.
    fn execute(&self, step: Step<'_>) -> io::Result<usize>;
}

impl Executor for File {
    fn execute(&self, step: Step<'_>) -> io::Result<usize> {
        storage::execute(self.as_fd(), step)
    }
}

/// What a queue's worker starts from.
pub(super) struct Queue {
    pub(super) ring: Ring,
    pub(super) geometry: Arc<Geometry>,
    pub(super) shared: Arc<Shared>,
    pub(super) transport: Arc<dyn Transport>,
}

/// A queue at work.
struct Server {
    queue: Queue,
    chain: Chain,
    /// Requests that were answered, to be used again.
    #[expect(clippy::vec_box, reason = "what the kernel works on must not move")]
    spare: Vec<Box<Operation>>,
    /// Answers that the driver was not interrupted for yet.
    answered: bool,
    /// Bytes that they have moved.
    moved: u64,
}

/// What came of looking for a request.
enum Taken {
    /// There is none.
    Nothing,
    /// There was one, which is answered.
    Answered,
    Request(Box<Operation>),
}

/// When so many bytes were moved, the driver hears of it, though there is more to do: it can go on with what it has.
const PORTION: u64 = 128 << 10;

/// A raw image, for io_uring.
struct Storage {
    uring: Uring<Operation>,
    file: Arc<File>,
    prompt: Prompt,
}

/// The tokens of what an [`Uring`] listens to, besides its requests.
const NOTIFIED: u64 = 0;
const STOPPED: u64 = 1;

/// Whether this host lets a raw disk's queue work on many requests at a time, through io_uring. Where not, it works on one after the other.
#[must_use]
pub fn host_has_io_uring() -> bool {
    File::open("/dev/null").is_ok_and(|file| Uring::<Operation>::new(1, &file, &[]).is_ok())
}

/// Serves a raw image until `stop` is signalled.
pub(super) fn serve_file(queue: Queue, file: &Arc<File>, blocking: bool, stop: BorrowedFd<'_>) {
    let depth = u32::from(queue.ring.size());
    // In the thread that uses it: a ring belongs to one.
    let uring = match blocking {
        true => Err(io::ErrorKind::Unsupported.into()),
        false => Uring::new(depth, file, &[queue.ring.notify().as_fd(), stop]),
    };
    match uring {
        Ok(uring) => {
            queue.shared.rings.fetch_add(1, Ordering::Relaxed);
            let prompt = Prompt::new(file, queue.geometry.align > 1);
            let mut server = Server::new(queue);
            let outcome = server.run(&mut Storage { uring, file: Arc::clone(file), prompt });
            server.finish(outcome);
        }
        Err(_) => serve_blocking(queue, Arc::clone(file) as _, stop),
    }
}

/// Serves any image until `stop` is signalled, one request after the other.
pub(super) fn serve_blocking(queue: Queue, disk: Arc<dyn Executor>, stop: BorrowedFd<'_>) {
    let transport = Arc::clone(&queue.transport);
    let events = match Events::new() {
        Ok(events) => events,
        Err(e) => return transport.needs_reset(&e),
    };
    if let Err(e) = events.add_signal(queue.ring.notify(), NOTIFIED) {
        return transport.needs_reset(&e);
    }
    let mut server = Server::new(queue);
    listen(stop, &events, &mut |_, _: &Events| match server.drain(&*disk) {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            transport.needs_reset(&e);
            ControlFlow::Break(())
        }
    });
}

/// Serves what there is, and gives the ring back.
pub(super) fn serve_now(queue: Queue, disk: &dyn Executor) -> Result<Ring, RingError> {
    let mut server = Server::new(queue);
    server.drain(disk)?;
    Ok(server.queue.ring)
}

impl Server {
    fn new(queue: Queue) -> Self {
        Self { queue, chain: Chain::new(), spare: Vec::new(), answered: false, moved: 0 }
    }

    /// Tells the driver what went wrong, if something did.
    fn finish(&self, outcome: Result<(), Broken>) {
        if let Err(broken) = outcome {
            self.queue.transport.needs_reset(&broken);
        }
    }

    /// Takes the next request. One that needs nothing of the image is answered.
    fn take(&mut self) -> Result<Taken, RingError> {
        if !self.queue.ring.pop(&mut self.chain)? {
            return Ok(Taken::Nothing);
        }
        let memory = self.queue.ring.memory();
        let mut operation = self.spare.pop().unwrap_or_else(|| Box::new(Operation::new(memory.clone())));
        let durable = !self.queue.shared.writeback.load(Ordering::Relaxed);
        match operation.parse(&self.chain, memory, &self.queue.geometry, durable)? {
            Parsed::Start => Ok(Taken::Request(operation)),
            Parsed::Done(status) => self.answer(operation, status).map(|()| Taken::Answered),
        }
    }

    fn answer(&mut self, mut operation: Box<Operation>, status: Status) -> Result<(), RingError> {
        self.queue.shared.counters.count(&operation, status);
        let written = operation.answer(self.queue.ring.memory(), status)?;
        self.queue.ring.push(operation.head(), written)?;
        self.answered = true;
        self.moved += operation.moved();
        self.spare.push(operation);
        if self.moved >= PORTION { self.interrupt() } else { Ok(()) }
    }

    /// Interrupts the driver, once, for all that was answered since the last time.
    fn interrupt(&mut self) -> Result<(), RingError> {
        self.moved = 0;
        if std::mem::take(&mut self.answered) { self.queue.ring.interrupt() } else { Ok(()) }
    }

    /// Serves all there is, one after the other. If there is no end of it, comes back soon, so that a stop is heard.
    fn drain(&mut self, disk: &dyn Executor) -> Result<(), RingError> {
        for _ in 0..self.queue.ring.size() {
            self.queue.ring.disable_notifications()?;
            let mut operation = match self.take()? {
                Taken::Request(operation) => operation,
                Taken::Answered => continue,
                Taken::Nothing => {
                    self.interrupt()?;
                    if self.queue.ring.enable_notifications()? {
                        continue;
                    }
                    return Ok(());
                }
            };
            let status = loop {
                match operation.finish_step(disk.execute(operation.step()).map_err(errno)) {
                    Progress::Again => {}
                    Progress::Done(status) => break status,
                }
            };
            self.answer(operation, status)?;
        }
        self.interrupt()?;
        // An eventfd that is open takes the signal.
        let _ = self.queue.ring.notify().ring();
        Ok(())
    }

    /// Gives the kernel all there is. Returns whether there may be more, for which there was no room.
    fn submit(&mut self, storage: &mut Storage) -> Result<bool, RingError> {
        let size = usize::from(self.queue.ring.size());
        self.queue.ring.disable_notifications()?;
        // A driver that makes the same chain available again and again gets no more done at a time than one that does not.
        for _ in 0..size {
            if storage.uring.in_flight() >= size {
                // The next completion makes room, and brings us back here.
                return Ok(false);
            }
            match self.take()? {
                Taken::Request(operation) => self.start(storage, operation)?,
                Taken::Answered => {}
                Taken::Nothing => {
                    // The driver hears of what was done at once before we look again: it may have more for us then.
                    self.interrupt()?;
                    if !self.queue.ring.enable_notifications()? {
                        return Ok(false);
                    }
                    self.queue.ring.disable_notifications()?;
                }
            }
        }
        Ok(true)
    }

    /// Does a request's steps as far as that goes at once, and gives the kernel the first that does not.
    fn start(&mut self, storage: &mut Storage, mut operation: Box<Operation>) -> Result<(), RingError> {
        while storage.prompt.takes(&operation.step()) {
            let start = Instant::now();
            let result = storage.file.execute(operation.step()).map_err(errno);
            storage.prompt.took(start, *result.as_ref().unwrap_or(&0));
            if let Progress::Done(status) = operation.finish_step(result) {
                return self.answer(operation, status);
            }
        }
        match storage.uring.start(operation) {
            Ok(()) => Ok(()),
            Err((operation, _)) => self.answer(operation, Status::IoError),
        }
    }

    /// Serves with io_uring until the stop.
    fn run(&mut self, storage: &mut Storage) -> Result<(), Broken> {
        loop {
            let more = self.submit(storage)?;
            self.interrupt()?;
            storage.uring.wait(!more)?;
            while let Some(event) = storage.uring.next() {
                match event {
                    Event::Signalled(STOPPED) => return Ok(()),
                    Event::Signalled(_) => {}
                    Event::Completed(mut operation, result) => match operation.finish_step(result) {
                        Progress::Again => self.start(storage, operation)?,
                        Progress::Done(status) => self.answer(operation, status)?,
                    },
                }
            }
            // Now: the driver goes on while we look for more.
            self.interrupt()?;
        }
    }
}

/// What the kernel would say.
fn errno(error: io::Error) -> i32 {
    match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => errno,
        // An old qcow2 image has no way to say that a cluster is zero: imago says so itself.
        (None, io::ErrorKind::Unsupported) => libc::EOPNOTSUPP,
        _ => libc::EIO,
    }
}

/// Why a worker has ended before it was told to.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("the host's io_uring has failed: {0}")]
    Uring(#[from] io::Error),
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
