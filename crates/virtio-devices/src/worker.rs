// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads of devices: none before activation, joined by reset.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use irqfd::Doorbell;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use crate::ActivateError;

/// Bytes of a worker's stack. Only what is touched costs memory; this is room for a debug build's frames.
const STACK: usize = 256 << 10;

/// Events taken from the kernel at a time: more descriptors than any device here listens to.
const BATCH: usize = 16;

/// The token of [`Worker`]'s own eventfd.
const STOP: u64 = u64::MAX;

/// What to wait for on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Until it can be read.
    Read,
    /// Until it can be written.
    Write,
    /// Until it can be read or written.
    Both,
    /// Only for errors and hang-ups, which are always reported.
    Nothing,
}

impl From<Interest> for epoll::EventFlags {
    fn from(interest: Interest) -> Self {
        match interest {
            Interest::Read => Self::IN,
            Interest::Write => Self::OUT,
            Interest::Both => Self::IN | Self::OUT,
            Interest::Nothing => Self::empty(),
        }
    }
}

/// The descriptors that a worker listens to, level-triggered but for [signals](Self::add_signal): an epoll instance.
#[derive(Debug)]
pub struct Events {
    epoll: OwnedFd,
}

impl Events {
    /// None yet.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Listens to `source`, and calls it `token`, which may be anything but `u64::MAX`.
    ///
    /// # Errors
    /// `EEXIST` if it is listened to already, `EPERM` if it is something that is always ready (a file), `EINVAL` for the token.
    pub fn add(&self, source: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        if token == STOP {
            return Err(rustix::io::Errno::INVAL.into());
        }
        Ok(epoll::add(&self.epoll, source, epoll::EventData::new_u64(token), interest.into())?)
    }

    /// Listens to an eventfd, each of whose signals is told once: nobody has to read it, which saves a system call for each.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_signal(&self, eventfd: impl AsFd, token: u64) -> io::Result<()> {
        if token == STOP {
            return Err(rustix::io::Errno::INVAL.into());
        }
        // Edge-triggered: each write to an eventfd is an edge, whatever its counter was (`eventfd_signal_mask`, Linux 6.12, `fs/eventfd.c`). A signal from before
        // is told as well.
        let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, eventfd, epoll::EventData::new_u64(token), edges)?)
    }

    /// Waits for something else on `source`.
    ///
    /// # Errors
    /// `ENOENT` if it is not listened to, `EINVAL` for the token.
    pub fn modify(&self, source: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        if token == STOP {
            return Err(rustix::io::Errno::INVAL.into());
        }
        Ok(epoll::modify(&self.epoll, source, epoll::EventData::new_u64(token), interest.into())?)
    }

    /// Listens to `source` no more. Closing its last descriptor does the same.
    ///
    /// # Errors
    /// `ENOENT` if it is not listened to.
    pub fn remove(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, source)?)
    }
}

/// What a worker does when a descriptor is ready.
pub trait EventHandler: Send {
    /// The descriptor that was added as `token` can be read or written, or has an error or a hang-up. [`ControlFlow::Break`] ends the worker:
    /// it listens no more, until the device is reset.
    fn ready(&mut self, token: u64, events: &Events) -> ControlFlow<()>;

    /// All that was ready has been handed over. Whether to ask again for what is ready, without waiting for it, and come back here: for a handler that expects
    /// more before long. By default it is waited.
    fn settled(&mut self, events: &Events) -> ControlFlow<(), bool> {
        let _ = events;
        ControlFlow::Continue(false)
    }
}

impl<F: FnMut(u64, &Events) -> ControlFlow<()> + Send> EventHandler for F {
    fn ready(&mut self, token: u64, events: &Events) -> ControlFlow<()> {
        self(token, events)
    }
}

/// A thread of a device. Dropping it tells it to stop, and waits until it has.
#[derive(Debug)]
pub struct Worker {
    stop: Doorbell,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// A thread that waits for `events` and hands them to `handler`. It is shown as `name` to who looks at the process's threads, as far as 15
    /// bytes go.
    ///
    /// # Errors
    /// [`ActivateError::Worker`] when the host has no thread or no descriptor left.
    pub fn spawn(
        name: &str,
        events: impl Into<Arc<Events>>,
        mut handler: impl EventHandler + 'static,
    ) -> Result<Self, ActivateError> {
        let events = events.into();
        Self::spawn_with(name, move |stop| {
            listen(stop, &events, &mut handler);
        })
    }

    /// A thread that runs `body`, which has to return soon after the eventfd it is given has become readable.
    ///
    /// # Errors
    /// [`ActivateError::Worker`] when the host has no thread or no descriptor left.
    pub fn spawn_with(
        name: &str,
        body: impl FnOnce(BorrowedFd<'_>) + Send + 'static,
    ) -> Result<Self, ActivateError> {
        let stop = Doorbell::new()?;
        let theirs = stop.clone();
        let thread = std::thread::Builder::new()
            .name(name.replace('\0', ""))
            .stack_size(STACK)
            .spawn(move || body(theirs.as_fd()))
            .map_err(|source| ActivateError::Worker { name: name.to_owned(), source })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

/// Hands what `events` hears to `handler`, until that breaks or `stop` is signalled.
pub(crate) fn listen(stop: BorrowedFd<'_>, events: &Events, handler: &mut dyn EventHandler) {
    let added = epoll::add(&events.epoll, stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN);
    // Without it the thread could not be stopped: better no thread.
    if added.is_err() {
        return;
    }
    let mut ready = Vec::with_capacity(BATCH);
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut again = false;
    loop {
        ready.clear();
        match epoll::wait(&events.epoll, spare_capacity(&mut ready), again.then_some(&now)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        for event in &ready {
            let token = event.data.u64();
            if token == STOP || handler.ready(token, events).is_break() {
                return;
            }
        }
        match handler.settled(events) {
            ControlFlow::Continue(wanted) => again = wanted,
            ControlFlow::Break(()) => return,
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Writing to an eventfd that is open cannot fail.
        let _ = self.stop.ring();
        if let Some(thread) = self.thread.take() {
            // A thread that has panicked has ended, which is all that is asked here.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_worker_hears_its_events_and_ends_when_dropped() {
        let bell = Doorbell::new().unwrap();
        let events = Events::new().unwrap();
        events.add(&bell, 7, Interest::Read).unwrap();
        let (heard, hear) = mpsc::channel();
        let theirs = bell.clone();
        let worker = Worker::spawn("test", events, move |token, _: &Events| {
            heard.send((token, theirs.take().unwrap())).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
        for _ in 0..3 {
            bell.ring().unwrap();
            assert_eq!(hear.recv().unwrap(), (7, 1));
        }
        drop(worker);
        assert!(hear.recv().is_err(), "the thread has ended, and its handler is dropped");
    }

    #[test]
    fn each_signal_is_told_once_though_nobody_reads_it() {
        let (quiet, loud) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
        // One from before is told too.
        loud.ring().unwrap();
        let events = Events::new().unwrap();
        events.add_signal(&quiet, 1).unwrap();
        events.add_signal(&loud, 2).unwrap();
        assert!(events.add_signal(Doorbell::new().unwrap(), u64::MAX).is_err());
        let (heard, hear) = mpsc::channel();
        let _worker = Worker::spawn("test", events, move |token, _: &Events| {
            heard.send(token).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(hear.recv().unwrap(), 2);
        for _ in 0..100 {
            loud.ring().unwrap();
            assert_eq!(hear.recv().unwrap(), 2);
        }
        quiet.ring().unwrap();
        assert_eq!(hear.recv().unwrap(), 1, "and nothing in between");
    }

    #[test]
    fn a_handler_that_breaks_ends_the_worker() {
        let bell = Doorbell::new().unwrap();
        bell.ring().unwrap();
        let events = Events::new().unwrap();
        events.add(&bell, 0, Interest::Read).unwrap();
        let (alive, ended) = mpsc::channel::<()>();
        let worker = Worker::spawn("test", events, move |_, _: &Events| {
            let _ = &alive;
            ControlFlow::Break(())
        })
        .unwrap();
        assert!(ended.recv().is_err());
        drop(worker);
    }

    #[test]
    fn the_token_of_the_stop_is_taken() {
        let events = Events::new().unwrap();
        let bell = Doorbell::new().unwrap();
        assert!(events.add(&bell, u64::MAX, Interest::Read).is_err());
        events.add(&bell, 1, Interest::Read).unwrap();
        assert!(events.modify(&bell, u64::MAX, Interest::Read).is_err());
        events.modify(&bell, 2, Interest::Nothing).unwrap();
        events.remove(&bell).unwrap();
        assert!(events.remove(&bell).is_err());
    }

    /// Hears what is ready, once.
    struct Look(Vec<u64>);

    impl EventHandler for Look {
        fn ready(&mut self, token: u64, _: &Events) -> ControlFlow<()> {
            self.0.push(token);
            ControlFlow::Continue(())
        }

        fn settled(&mut self, _: &Events) -> ControlFlow<(), bool> {
            ControlFlow::Break(())
        }
    }

    #[test]
    fn a_descriptor_is_told_of_if_it_is_ready_for_what_is_waited_for() {
        // One that can be written, and one that can be read as well.
        let (full, mut empty) = std::os::unix::net::UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut empty, b"x").unwrap();
        let bell = Doorbell::new().unwrap();
        bell.ring().unwrap();
        let table = [
            (Interest::Read, true, false),
            (Interest::Write, true, true),
            (Interest::Both, true, true),
            (Interest::Nothing, false, false),
        ];
        for (interest, with_data, without) in table {
            for (socket, told) in [(&full, with_data), (&empty, without)] {
                let events = Events::new().unwrap();
                events.add(socket, 1, interest).unwrap();
                events.add(&bell, 2, Interest::Read).unwrap();
                let mut look = Look(Vec::new());
                listen(Doorbell::new().unwrap().as_fd(), &events, &mut look);
                assert_eq!((look.0.contains(&1), look.0.contains(&2)), (told, true), "{interest:?}");
            }
        }
    }
}
