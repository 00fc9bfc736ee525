// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Output that the kernel collects, against a ring that does what the kernel does.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::{io, thread};

use proptest::prelude::*;
use rustix::time::timerfd_gettime;

use super::posted::QUIET_TICKS;
use super::tests::{Line, read, write};
use super::*;

/// A page of entries of 24 bytes after two indices, one of them always free.
const RING: usize = 169;

const IER: u64 = 1;
const LSR: u64 = 5;

#[derive(Default)]
struct Ring {
    collecting: bool,
    bytes: VecDeque<u8>,
    starts: u32,
    refuses: bool,
}

struct SharedRing(Arc<Mutex<Ring>>);

impl WriteRing for SharedRing {
    fn start(&mut self) -> io::Result<()> {
        let mut ring = self.0.lock().unwrap();
        assert!(!ring.collecting, "registered twice");
        ring.starts += 1;
        if ring.refuses {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        ring.collecting = true;
        Ok(())
    }

    fn stop(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().collecting = false;
        Ok(())
    }

    fn next(&mut self) -> Option<u8> {
        self.0.lock().unwrap().bytes.pop_front()
    }
}

/// What has gone out, one entry a write.
#[derive(Clone, Default)]
struct Writes {
    writes: Arc<Mutex<Vec<Vec<u8>>>>,
    slow: bool,
}

impl Writes {
    fn all(&self) -> Vec<u8> {
        self.writes.lock().unwrap().concat()
    }

    fn count(&self) -> usize {
        self.writes.lock().unwrap().len()
    }
}

impl Write for Writes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes.lock().unwrap().push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Writes {
    fn would_wait(&self) -> bool {
        self.slow
    }
}

/// A guest whose kernel collects.
struct Guest {
    port: Arc<SerialPort>,
    line: Arc<Line>,
    ring: Arc<Mutex<Ring>>,
    ticks: Ticks,
}

impl Guest {
    fn new(output: impl Output + 'static) -> Self {
        let line = Arc::new(Line::default());
        let port = Arc::new(SerialPort::new(Arc::clone(&line) as _, Box::new(output)).unwrap());
        let ring = Arc::new(Mutex::new(Ring::default()));
        let ticks = Ticks::new(Arc::clone(&port), Box::new(SharedRing(Arc::clone(&ring)))).unwrap();
        Self { port, line, ring, ticks }
    }

    /// Returns whether the kernel took the byte.
    fn write_byte(&self, byte: u8) -> bool {
        let mut ring = self.ring.lock().unwrap();
        let takes = ring.collecting && ring.bytes.len() < RING;
        if takes {
            ring.bytes.push_back(byte);
        }
        drop(ring);
        if !takes {
            write(&self.port, 0, byte);
        }
        takes
    }

    /// Returns how many bytes were exits.
    fn write_bytes(&self, bytes: &[u8]) -> usize {
        bytes.iter().filter(|&&byte| !self.write_byte(byte)).count()
    }

    fn collecting(&self) -> bool {
        self.ring.lock().unwrap().collecting
    }

    fn ticking(&self) -> bool {
        let period = timerfd_gettime(self.ticks.timer()).unwrap().it_interval;
        period.tv_sec != 0 || period.tv_nsec != 0
    }
}

#[test]
fn after_a_burst_the_kernel_collects_and_the_next_access_hears_all_of_it_first() {
    let output = Writes::default();
    let guest = Guest::new(output.clone());
    assert!(!guest.ticking());
    assert_eq!(guest.write_bytes(b"12345678abcdefgh"), 8);
    assert_eq!(output.all(), b"12345678");
    assert!(guest.collecting() && guest.ticking());
    read(&guest.port, LSR);
    assert_eq!(output.all(), b"12345678abcdefgh");
    assert_eq!(output.count(), 8 + 1, "the collected bytes go out in one piece");
    assert_eq!(guest.port.counts(), SerialCounts { sent: 16, received: 0, lost: 0 });
}

#[test]
fn a_driver_that_looks_before_each_byte_is_answered_at_once_each_time() {
    let output = Writes::default();
    let guest = Guest::new(output.clone());
    for n in 0..100 {
        read(&guest.port, LSR);
        assert!(!guest.write_byte(n));
        assert_eq!(output.count(), usize::from(n) + 1);
    }
    assert_eq!(guest.ring.lock().unwrap().starts, 0);
}

#[test]
fn whatever_comes_between_two_bytes_begins_the_count_anew() {
    let guest = Guest::new(Writes::default());
    for other in [0, 1] {
        for _ in 0..10 {
            assert_eq!(guest.write_bytes(b"1234567"), 7);
            if other == 0 {
                let _ = read(&guest.port, LSR);
            } else {
                write(&guest.port, IER, 0);
            }
        }
    }
    assert_eq!(guest.ring.lock().unwrap().starts, 0);
}

#[test]
fn a_byte_now_and_then_keeps_the_kernel_collecting() {
    let output = Writes::default();
    let guest = Guest::new(output.clone());
    guest.write_bytes(b"12345678");
    for byte in b'a'..=b'z' {
        assert!(guest.write_byte(byte));
        (0..QUIET_TICKS).for_each(|_| guest.port.tick());
    }
    assert_eq!(output.all(), b"12345678abcdefghijklmnopqrstuvwxyz");
    assert_eq!(guest.ring.lock().unwrap().starts, 1);
}

#[test]
fn what_the_guest_leaves_is_found_by_a_tick_and_quiet_ticks_end_it() {
    let output = Writes::default();
    let guest = Guest::new(output.clone());
    for round in 1..=3 {
        assert_eq!(guest.write_bytes(b"12345678left"), 8);
        guest.port.tick();
        assert!(output.all().ends_with(b"12345678left"));
        for _ in 0..QUIET_TICKS {
            assert!(guest.collecting() && guest.ticking());
            guest.port.tick();
        }
        assert!(!guest.collecting() && !guest.ticking());
        assert_eq!(guest.ring.lock().unwrap().starts, round);
    }
    assert_eq!(output.all(), b"12345678left".repeat(3));
}

#[test]
fn what_is_collected_while_it_ends_is_not_left_behind() {
    /// A kernel that takes a last byte while it is told to stop.
    struct Late(SharedRing);
    impl WriteRing for Late {
        fn start(&mut self) -> io::Result<()> {
            self.0.start()
        }
        fn stop(&mut self) -> io::Result<()> {
            self.0.0.lock().unwrap().bytes.push_back(b'!');
            self.0.stop()
        }
        fn next(&mut self) -> Option<u8> {
            self.0.next()
        }
    }
    let output = Writes::default();
    let guest = Guest::new(output.clone());
    let late = Late(SharedRing(Arc::clone(&guest.ring)));
    let _ticks = Ticks::new(Arc::clone(&guest.port), Box::new(late)).unwrap();
    guest.write_bytes(b"12345678");
    for _ in 0..=QUIET_TICKS {
        guest.port.tick();
    }
    assert!(!guest.collecting());
    assert_eq!(output.all(), b"12345678!");
}

#[test]
fn a_full_ring_is_heard_before_the_byte_that_found_it_full() {
    let output = Writes::default();
    let guest = Guest::new(output.clone());
    let bytes: Vec<u8> = (0..=255).cycle().take(8 + RING + 1 + 5).collect();
    assert_eq!(guest.write_bytes(&bytes), 8 + 1);
    assert_eq!(output.all(), &bytes[..8 + RING + 1]);
    guest.port.finish(true);
    assert_eq!(output.all(), bytes);
}

#[test]
fn a_kernel_that_does_not_collect_is_asked_once_and_every_byte_goes_out() {
    let output = Writes::default();
    let guest = Guest::new(output.clone());
    guest.ring.lock().unwrap().refuses = true;
    assert_eq!(guest.write_bytes(&[b'x'; 100]), 100);
    assert_eq!(output.all(), [b'x'; 100]);
    assert_eq!(guest.ring.lock().unwrap().starts, 1);
    assert!(!guest.ticking());
}

#[test]
fn at_the_eoi_a_byte_in_the_ring_is_a_reason_to_interrupt_and_the_loop_does_not_write() {
    let output = Writes::default();
    let guest = Guest::new(output.clone());
    guest.write_bytes(b"12345678");
    write(&guest.port, IER, IER_TRANSMITTER_EMPTY);
    assert_eq!(read(&guest.port, IIR.into()) & 0xf, IIR_TRANSMITTER_EMPTY);
    assert!(!guest.line.is_high() && !guest.port.has_something_to_say());
    assert!(guest.write_byte(b'9'));
    assert!(guest.port.has_something_to_say());
    assert_eq!(output.all(), b"12345678");
    assert_eq!(read(&guest.port, IIR.into()) & 0xf, IIR_TRANSMITTER_EMPTY);
    assert_eq!(output.all(), b"123456789");
}

#[test]
fn what_a_slow_reader_does_not_take_is_offered_again_until_it_is_gone() {
    let output = Writes { slow: true, ..Writes::default() };
    let guest = Guest::new(output.clone());
    guest.write_bytes(b"12345678left");
    for _ in 0..3 * QUIET_TICKS {
        guest.port.tick();
    }
    // A vCPU would have waited; a tick does not, and goes on.
    assert_eq!(output.all(), b"12345678");
    assert!(guest.collecting() && guest.ticking());
    guest.port.finish(false);
    assert_eq!(output.all(), b"12345678");
    guest.port.finish(true);
    assert_eq!(output.all(), b"12345678left");
}

#[test]
fn ticks_do_not_pile_up_what_nobody_reads() {
    let guest = Guest::new(Writes { slow: true, ..Writes::default() });
    guest.write_bytes(b"12345678");
    for _ in 0..200 {
        while guest.ring.lock().unwrap().bytes.len() < RING {
            assert!(guest.write_byte(b'x'));
        }
        guest.port.tick();
    }
    let waiting = guest.port.lock().uart.writer().len();
    assert!((ENOUGH..ENOUGH + RING).contains(&waiting), "{waiting} bytes");
}

/// An output that says when it is written to, and waits to be told to go on.
struct Stuck {
    written: Sender<Vec<u8>>,
    go_on: Receiver<()>,
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written.send(bytes.to_vec()).unwrap();
        self.go_on.recv().unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Stuck {
    fn would_wait(&self) -> bool {
        true
    }
}

#[test]
fn while_a_vcpu_waits_for_a_reader_input_and_eois_do_not_wait_for_it() {
    let (written, has_written) = channel();
    let (go, go_on) = channel();
    let guest = Guest::new(Stuck { written, go_on });
    thread::scope(|scope| {
        let vcpu = scope.spawn(|| write(&guest.port, 0, b'a'));
        assert_eq!(has_written.recv().unwrap(), b"a");
        // Each of these would hang if the vCPU held the port.
        assert_eq!(guest.port.feed(b"input"), 5);
        assert!(!guest.port.has_something_to_say());
        guest.port.tick();
        assert_eq!(guest.port.counts().received, 5);
        go.send(()).unwrap();
        vcpu.join().unwrap();
    });
    assert_eq!(guest.port.counts().sent, 1);
}

#[derive(Debug, Clone)]
enum Step {
    Bytes(Vec<u8>),
    Read(u64),
    Write(u64, u8),
    Feed(Vec<u8>),
    Eoi,
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(Step::Bytes),
        3 => (0..8u64).prop_map(Step::Read),
        2 => (1..8u64, any::<u8>()).prop_map(|(register, value)| Step::Write(register, value)),
        1 => proptest::collection::vec(any::<u8>(), 0..100).prop_map(Step::Feed),
        1 => Just(Step::Eoi),
        2 => Just(Step::Tick),
    ]
}

proptest! {
    /// Whatever a guest does, also with loop-back and divisors, it reads the same, and the same goes out.
    #[test]
    fn a_guest_does_not_notice_that_its_output_is_collected(steps in proptest::collection::vec(step(), 0..60)) {
        let (collected, plain) = (Writes::default(), Writes::default());
        let guest = Guest::new(collected.clone());
        let line = Arc::new(Line::default());
        let port = SerialPort::new(Arc::clone(&line) as _, Box::new(plain.clone())).unwrap();
        for step in steps {
            match step {
                Step::Bytes(bytes) => {
                    let exits = guest.write_bytes(&bytes);
                    prop_assert!(bytes.len() < RING || exits < bytes.len());
                    bytes.iter().for_each(|&byte| write(&port, 0, byte));
                }
                Step::Read(register) => prop_assert_eq!(read(&guest.port, register), read(&port, register)),
                Step::Write(register, value) => {
                    write(&guest.port, register, value);
                    write(&port, register, value);
                }
                Step::Feed(input) => prop_assert_eq!(guest.port.feed(&input), port.feed(&input)),
                Step::Eoi => {
                    let high = port.has_something_to_say();
                    prop_assert_eq!(guest.port.has_something_to_say(), high);
                    // What the event loop does with the answer.
                    guest.line.set_level(high).unwrap();
                    line.set_level(high).unwrap();
                }
                Step::Tick => guest.port.tick(),
            }
            // What lies in the ring has had no effect yet; an access would give it one first.
            if guest.ring.lock().unwrap().bytes.is_empty() {
                prop_assert_eq!(guest.line.is_high(), line.is_high());
            }
        }
        guest.port.finish(true);
        prop_assert_eq!(collected.all(), plain.all());
        prop_assert_eq!(guest.port.counts(), port.counts());
    }
}
