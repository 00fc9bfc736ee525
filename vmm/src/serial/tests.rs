// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use super::*;
use std::io::Write;
use std::sync::atomic::AtomicU32;

/// A line that remembers its level and how often it rose.
#[derive(Default)]
pub(super) struct Line {
    high: AtomicBool,
    rises: AtomicU32,
}

impl LevelLine for Line {
    fn set_level(&self, high: bool) -> Result<(), irqfd::Error> {
        if !self.high.swap(high, Ordering::SeqCst) && high {
            self.rises.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl Line {
    pub(super) fn is_high(&self) -> bool {
        self.high.load(Ordering::SeqCst)
    }
}

#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<u8>>>);

impl Output for Sent {
    fn would_wait(&self) -> bool {
        false
    }
}

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn port() -> (SerialPort, Arc<Line>, Sent) {
    let (line, sent) = (Arc::new(Line::default()), Sent::default());
    (SerialPort::new(Arc::clone(&line) as _, Box::new(sent.clone())).unwrap(), line, sent)
}

pub(super) fn read(port: &SerialPort, register: u64) -> u8 {
    let mut data = [0xff];
    port.mmio_read(MmioAddress(0), register, &mut data);
    data[0]
}

pub(super) fn write(port: &SerialPort, register: u64, value: u8) {
    port.mmio_write(MmioAddress(0), register, &[value]);
}

#[test]
fn output_goes_out_and_raises_the_line_when_wanted() {
    let (port, line, sent) = port();
    write(&port, 0, b'a');
    assert!(!line.is_high());
    write(&port, 1, IER_TRANSMITTER_EMPTY);
    assert!(line.is_high());
    // Identified is acknowledged: a driver that leaves the interrupt enabled is not called for ever.
    assert_eq!(read(&port, 2) & 0xf, IIR_TRANSMITTER_EMPTY);
    assert!(!line.is_high());
    write(&port, 0, b'b');
    assert!(line.is_high());
    assert_eq!(line.rises.load(Ordering::SeqCst), 2);
    assert_eq!(*sent.0.lock().unwrap(), b"ab");
    assert_eq!(port.counts(), SerialCounts { sent: 2, received: 0, lost: 0 });
}

#[test]
fn the_line_stays_up_with_a_reason_until_all_input_is_read() {
    let (port, line, _) = port();
    write(&port, 1, IER_RECEIVED);
    assert_eq!(port.feed(b"xyz"), 3);
    for &byte in b"xyz" {
        assert!(line.is_high());
        // Every time it asks, the driver is told the reason, though it left some data behind last time.
        assert_eq!(read(&port, 2) & 0xf, IIR_RECEIVED);
        assert_eq!(read(&port, 0), byte);
    }
    assert!(!line.is_high());
    assert_eq!(read(&port, 2) & 0xf, IIR_NONE);
}

/// What went wrong: a console writes with its interrupt disabled, which leaves "transmitter empty" standing in the model. When the
/// driver then enabled the interrupt, nothing rose, and the line stayed low for ever.
#[test]
fn a_condition_that_stood_before_its_interrupt_was_enabled_raises_the_line() {
    let (port, line, _) = port();
    write(&port, 1, IER_TRANSMITTER_EMPTY);
    assert!(line.is_high());
    write(&port, 1, 0);
    // The guest's EOI: nothing to say while it is disabled.
    assert!(!port.has_something_to_say() && !line.is_high());
    write(&port, 0, b'a');
    write(&port, 1, IER_TRANSMITTER_EMPTY);
    assert!(line.is_high());
}

#[test]
fn a_full_port_says_when_there_is_room() {
    let (port, _, _) = port();
    let input = [b'i'; 100];
    let taken = port.feed(&input);
    assert_eq!(taken, 64);
    assert!(port.room_event().read().is_err(), "no room yet");
    for _ in 0..taken {
        assert_eq!(read(&port, 0), b'i');
    }
    assert_eq!(port.room_event().read().unwrap(), 1);
    assert_eq!(port.feed(&input[taken..]), 36);
    for _ in 0..36 {
        read(&port, 0);
    }
    assert!(port.room_event().read().is_err(), "nobody waits any more");
}

#[test]
fn input_waits_for_the_end_of_loop_back() {
    const LOOP: u8 = 1 << 4;
    let (port, _, _) = port();
    write(&port, 4, LOOP);
    assert_eq!(port.feed(b"a"), 0);
    assert!(port.room_event().read().is_err());
    write(&port, 4, 0);
    assert_eq!(port.room_event().read().unwrap(), 1);
    assert_eq!(port.feed(b"a"), 1);
}

#[test]
fn odd_accesses_do_no_harm() {
    let (port, _, _) = port();
    let mut data = [0xff; 8];
    port.mmio_read(MmioAddress(0), 0xff8, &mut data);
    assert_eq!(data, [0; 8]);
    port.mmio_write(MmioAddress(0), 0x800, &[1; 8]);
    port.mmio_read(MmioAddress(0), 5, &mut []);
    port.mmio_write(MmioAddress(0), 0, &[]);
}
