// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

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
