// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use irqfd::Doorbell;

use super::*;

/// A request that waits for nothing.
struct Flush;

impl Request for Flush {
    fn step(&self) -> Step<'_> {
        Step::Sync
    }
}

/// A ring on a file that has nothing in it; `None` where the host has no io_uring.
fn uring(test: &str, bells: &[&Doorbell]) -> Option<Uring<Flush>> {
    let file = File::open("/dev/null").unwrap();
    let descriptors: Vec<_> = bells.iter().map(|bell| bell.as_fd()).collect();
    let uring = Uring::new(4, &file, &descriptors).ok();
    if uring.is_none() {
        println!("SKIP {test}: no io_uring on this host");
    }
    uring
}

/// Looks until something has happened.
fn look(uring: &mut Uring<Flush>) -> Event<Flush> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        uring.wait(false).unwrap();
        if let Some(event) = uring.next() {
            return event;
        }
        assert!(Instant::now() < deadline, "looked in vain");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn who_only_looks_sees_signals_and_completions() {
    let (one, other) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
    let Some(mut uring) = uring("who_only_looks_sees_signals_and_completions", &[&one, &other]) else {
        return;
    };
    uring.wait(false).unwrap();
    assert!(uring.next().is_none());
    for (bell, token) in [(&one, 0), (&other, 1), (&one, 0)] {
        bell.ring().unwrap();
        assert!(matches!(look(&mut uring), Event::Signalled(at) if at == token));
        assert!(uring.next().is_none(), "once");
    }
    assert!(uring.start(Box::new(Flush)).is_ok());
    assert_eq!(uring.in_flight(), 1);
    // Who has no data to write has none to flush.
    assert!(matches!(look(&mut uring), Event::Completed(_, Err(libc::EINVAL))));
    assert_eq!(uring.in_flight(), 0);
}

/// A read, which leaves what it has got where others see it when it goes.
struct Fetch {
    buffers: Buffers,
    got: Arc<AtomicU8>,
}

impl Request for Fetch {
    fn step(&self) -> Step<'_> {
        Step::Read { to: self.buffers.parts(), offset: 0 }
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let byte = self.buffers.memory.read_obj(GuestAddress(0)).unwrap();
        self.got.store(byte, Ordering::SeqCst);
    }
}

/// What the kernel works on stays until it is done, whatever else comes meanwhile.
#[test]
fn a_ring_goes_when_its_requests_are_done() {
    let bell = Doorbell::new().unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let reader = File::from(std::os::fd::OwnedFd::from(reader));
    let Ok(mut uring) = Uring::new(4, &reader, &[bell.as_fd()]) else {
        println!("SKIP a_ring_goes_when_its_requests_are_done: no io_uring on this host");
        return;
    };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
    let mut buffers = Buffers::new(memory);
    buffers.push(GuestAddress(0), 1).unwrap();
    let got = Arc::new(AtomicU8::new(0));
    assert!(uring.start(Box::new(Fetch { buffers, got: Arc::clone(&got) })).is_ok());
    uring.wait(false).unwrap();
    bell.ring().unwrap();
    let writer = std::thread::spawn(move || {
        // Time for a ring that does not wait to be gone.
        std::thread::sleep(Duration::from_millis(50));
        writer.write_all(b"x").unwrap();
        writer
    });
    drop(uring);
    assert_eq!(got.load(Ordering::SeqCst), b'x');
    drop(writer.join().unwrap());
}
