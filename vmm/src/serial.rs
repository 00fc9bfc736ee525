// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The serial port: vm-superio's 16550 as an MMIO device with a level interrupt.

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use irqfd::LevelLine;
use rustix::event::{PollFd, PollFlags, poll};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_superio::Trigger;
use vm_superio::serial::{Serial, SerialEvents};
use vmm_sys_util::eventfd::EventFd;

/// Bits of the interrupt enable register.
const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
/// Interrupt identification register, and its values.
const IIR: u8 = 2;
const IIR_NONE: u8 = 1 << 0;
const IIR_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IIR_RECEIVED: u8 = 1 << 2;
/// Modem control register.
const MCR: u8 = 4;
/// Bit of the line status register: there is something to read.
const LSR_DATA_READY: u8 = 1 << 0;

/// The guest's output, to standard output or wherever.
type Output = Box<dyn Write + Send>;

/// A 16550 whose interrupt line is high while it has something to say.
///
/// vm-superio's model triggers on the rise of a condition, as an edge-triggered port would, and not again while the condition stands. A
/// level has to follow the condition: after each access and each byte that arrives, the line is driven to
/// [`has_something_to_say`](Self::has_something_to_say), and so it is after the guest's EOI.
pub struct SerialPort {
    uart: Mutex<Uart>,
    line: Arc<dyn LevelLine>,
    room: Arc<Room>,
    line_failures: AtomicU64,
}

/// What the model triggers: nothing, since the line follows its state.
#[derive(Debug)]
struct FollowedByLevel;

impl Trigger for FollowedByLevel {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

type Uart = Serial<FollowedByLevel, Arc<Room>, Output>;

/// A condition is there and the guest has enabled its interrupt (16550 data sheet, "Interrupt Enable Register").
fn has_something_to_say(uart: &Uart) -> bool {
    let state = uart.state();
    let received = state.interrupt_enable & IER_RECEIVED != 0 && state.line_status & LSR_DATA_READY != 0;
    let transmitted = state.interrupt_enable & IER_TRANSMITTER_EMPTY != 0
        && state.interrupt_identification & IIR_TRANSMITTER_EMPTY != 0;
    received || transmitted
}

/// Tells the one who feeds the port that there is room again, when they asked for it.
#[derive(Debug)]
pub struct Room {
    wanted: AtomicBool,
    event: EventFd,
    sent: AtomicU64,
    received: AtomicU64,
    lost: AtomicU64,
}

impl SerialEvents for Room {
    // Also called when the guest reads and there is nothing; what it got is counted when it is queued.
    fn buffer_read(&self) {}

    fn out_byte(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    fn tx_lost_byte(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    fn in_buffer_empty(&self) {
        if self.wanted.swap(false, Ordering::AcqRel) {
            // Adding to an eventfd fails only when its counter is full, and then it is readable anyway.
            let _ = self.event.write(1);
        }
    }
}

/// How many bytes went which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SerialCounts {
    /// From the guest.
    pub sent: u64,
    /// To the guest.
    pub received: u64,
    /// From the guest, with nobody to take them.
    pub lost: u64,
}

impl SerialPort {
    /// A port at rest that writes what the guest sends to `output`.
    ///
    /// # Errors
    /// If there is no descriptor left for the event.
    pub fn new(line: Arc<dyn LevelLine>, output: Output) -> io::Result<Self> {
        let room = Arc::new(Room {
            wanted: AtomicBool::new(false),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let uart = Mutex::new(Serial::with_events(FollowedByLevel, Arc::clone(&room), output));
        Ok(Self { uart, line, room, line_failures: AtomicU64::new(0) })
    }

    /// Becomes readable when there is room for input again, once for each [`feed`](Self::feed) that found too little.
    #[must_use]
    pub fn room_event(&self) -> &EventFd {
        &self.room.event
    }

    /// Hands input to the guest. Returns how much the port took; when that is not all, the room event says when to go on.
    pub fn feed(&self, input: &[u8]) -> usize {
        let mut uart = self.lock();
        let room = uart.fifo_capacity().min(input.len());
        let taken = match input.get(..room) {
            // It fails for a full queue only, which this one is not.
            Some(now) if room > 0 => uart.enqueue_raw_bytes(now).unwrap_or(0),
            _ => 0,
        };
        self.drive(&uart);
        self.room.received.fetch_add(taken as u64, Ordering::Relaxed);
        if taken < input.len() {
            // Under the lock: the guest cannot empty the queue between our look and our wish.
            self.room.wanted.store(true, Ordering::Release);
        }
        taken
    }

    /// Whether the interrupt line has to be high: a condition is there and the guest has enabled it.
    pub fn has_something_to_say(&self) -> bool {
        has_something_to_say(&self.lock())
    }

    /// Drives the line to where the port's state wants it. Under the port's lock, so that the last word is about the last state.
    fn drive(&self, uart: &Uart) {
        if self.line.set_level(has_something_to_say(uart)).is_err() {
            // The next access tries again; nobody is asked to stop a guest for it.
            self.line_failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many bytes went which way so far.
    #[must_use]
    pub fn counts(&self) -> SerialCounts {
        SerialCounts {
            sent: self.room.sent.load(Ordering::Relaxed),
            received: self.room.received.load(Ordering::Relaxed),
            lost: self.room.lost.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The register behind an MMIO offset. There are eight, a byte apart; the page's rest is empty.
fn register(offset: MmioAddressOffset) -> Option<u8> {
    u8::try_from(offset).ok().filter(|&register| register < 8)
}

impl DeviceMmio for SerialPort {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        let (Some(register), Some(value)) = (register(offset), data.first_mut()) else { return };
        let mut uart = self.lock();
        *value = uart.read(register);
        if register == IIR && *value & IIR_NONE != 0 {
            // The model forgets "received" once it has been identified or a byte was read. A level-triggered port goes
            // on saying it while there is something to read, or a driver that left some would find its line high and no reason.
            let state = uart.state();
            if state.interrupt_enable & IER_RECEIVED != 0 && state.line_status & LSR_DATA_READY != 0 {
                *value = (*value & !IIR_NONE) | IIR_RECEIVED;
            }
        }
        self.drive(&uart);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let (Some(register), Some(&value)) = (register(offset), data.first()) else { return };
        let mut uart = self.lock();
        // The guest must not notice that its output is lost; the counts tell the user.
        let _ = uart.write(register, value);
        self.drive(&uart);
        drop(uart);
        if register == MCR {
            // A port that leaves loop-back takes input again, and no read of the guest's would say so.
            self.room.in_buffer_empty();
        }
    }
}

/// Standard output, as the other side of a serial port: each byte goes out when it comes, and a slow reader slows the guest down.
#[derive(Debug)]
pub struct Stdout(pub io::Stdout);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            // Straight to the descriptor: the standard library's buffer would hold back what has no line end yet.
            match rustix::io::write(self.0.as_fd(), bytes) {
                Ok(n) => return Ok(n),
                Err(rustix::io::Errno::INTR) => {}
                // Somebody who shares the descriptor made it non-blocking.
                Err(rustix::io::Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
                    match poll(&mut fds, None) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    /// A line that remembers its level and how often it rose.
    #[derive(Default)]
    struct Line {
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
        fn is_high(&self) -> bool {
            self.high.load(Ordering::SeqCst)
        }
    }

    #[derive(Clone, Default)]
    struct Sent(Arc<Mutex<Vec<u8>>>);

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

    fn read(port: &SerialPort, register: u64) -> u8 {
        let mut data = [0xff];
        port.mmio_read(MmioAddress(0), register, &mut data);
        data[0]
    }

    fn write(port: &SerialPort, register: u64, value: u8) {
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
}
