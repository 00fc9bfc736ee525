// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The serial port: vm-superio's 16550 as an MMIO device with a level interrupt.

mod output;
mod posted;
#[cfg(test)]
mod posted_tests;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use irqfd::LevelLine;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_superio::Trigger;
use vm_superio::serial::{Serial, SerialEvents};
use vmm_sys_util::eventfd::EventFd;

pub use output::{Output, Stdout};
pub use posted::{Ticks, WriteRing};

use output::Sink;
use posted::Posted;

/// Receiver buffer and transmitter holding register.
const DATA: u8 = 0;
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

/// How much output may wait for a reader before the event loop, which must not wait, leaves more of it where it is.
const ENOUGH: usize = 512;

/// A 16550 whose interrupt line is high while it has something to say.
///
/// vm-superio's model triggers on the rise of a condition, as an edge-triggered port would, and not again while the condition stands. A
/// level has to follow the condition: after each access and each byte that arrives, the line is driven to
/// [`has_something_to_say`](Self::has_something_to_say), and so it is after the guest's EOI.
///
/// A byte that the guest writes goes out before its vCPU runs on, unless the kernel collects them (see [`Ticks`]). Then it goes out with what the guest asks the
/// port next, or a moment later. Whoever reads slowly slows the guest's vCPUs down, and nobody else: writing does not hold the port.
pub struct SerialPort {
    port: Mutex<Port>,
    /// Taken before `port` by whoever writes, so that bytes leave in the order in which they came.
    sink: Mutex<Sink>,
    line: Arc<dyn LevelLine>,
    room: Arc<Room>,
    line_failures: AtomicU64,
}

/// What an access finds. The model writes output into memory.
struct Port {
    uart: Uart,
    posted: Posted,
}

impl Port {
    /// Hears what the guest wrote before this access.
    fn catch_up(&mut self) {
        while let Some(byte) = self.posted.next() {
            self.write(DATA, byte);
        }
    }

    fn write(&mut self, register: u8, value: u8) {
        // It fails for the trigger, which does not, and for the output, which is memory.
        let _ = self.uart.write(register, value);
    }

    /// Whether output waits to be written.
    fn waits(&self) -> bool {
        !self.uart.writer().is_empty()
    }
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

type Uart = Serial<FollowedByLevel, Arc<Room>, Vec<u8>>;

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

    // Both are counted when the output is written.
    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

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
    pub fn new(line: Arc<dyn LevelLine>, output: Box<dyn Output>) -> io::Result<Self> {
        let room = Arc::new(Room {
            wanted: AtomicBool::new(false),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let uart = Serial::with_events(FollowedByLevel, Arc::clone(&room), Vec::new());
        let port = Mutex::new(Port { uart, posted: Posted::default() });
        let sink = Mutex::new(Sink::new(output));
        Ok(Self { port, sink, line, room, line_failures: AtomicU64::new(0) })
    }

    fn let_the_kernel_collect(&self, ring: Box<dyn WriteRing>, timer: Arc<OwnedFd>) {
        self.lock().posted.enable(ring, timer);
    }

    /// Becomes readable when there is room for input again, once for each [`feed`](Self::feed) that found too little.
    #[must_use]
    pub fn room_event(&self) -> &EventFd {
        &self.room.event
    }

    /// Hands input to the guest. Returns how much the port took; when that is not all, the room event says when to go on.
    pub fn feed(&self, input: &[u8]) -> usize {
        let mut port = self.lock_from_the_loop();
        let room = port.uart.fifo_capacity().min(input.len());
        let taken = match input.get(..room) {
            // It fails for a full queue only, which this one is not.
            Some(now) if room > 0 => port.uart.enqueue_raw_bytes(now).unwrap_or(0),
            _ => 0,
        };
        self.drive(&port.uart);
        self.room.received.fetch_add(taken as u64, Ordering::Relaxed);
        if taken < input.len() {
            // Under the lock: the guest cannot empty the queue between our look and our wish.
            self.room.wanted.store(true, Ordering::Release);
        }
        taken
    }

    /// Whether the interrupt line has to be high: a condition is there and the guest has enabled it.
    pub fn has_something_to_say(&self) -> bool {
        has_something_to_say(&self.lock_from_the_loop().uart)
    }

    /// Time to look what the guest has left with the kernel.
    fn tick(&self) {
        let mut port = self.lock_from_the_loop();
        // What waits for its reader has nobody else to look after it.
        if !port.waits() && port.posted.tick() {
            port.catch_up();
            port.posted.ended();
        }
        self.drive(&port.uart);
        let waits = port.waits();
        drop(port);
        if waits {
            self.flush_without_waiting();
        }
    }

    /// Writes what the guest has left, when it does not run any more. With `patient`, waits for whoever reads it.
    pub fn finish(&self, patient: bool) {
        let mut port = self.lock();
        port.catch_up();
        drop(port);
        if patient {
            self.flush();
        } else {
            self.flush_without_waiting();
        }
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

    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port as it is after what the guest has written so far, for the event loop. It leaves writing to the vCPUs and to the ticks.
    fn lock_from_the_loop(&self) -> MutexGuard<'_, Port> {
        let mut port = self.lock();
        if port.uart.writer().len() < ENOUGH {
            port.catch_up();
        }
        port
    }

    /// Whether output waits for whoever reads it, and a vCPU perhaps with it.
    #[must_use]
    pub fn waits_for_reader(&self) -> bool {
        match self.sink.try_lock() {
            Ok(sink) => sink.would_wait(),
            Err(TryLockError::Poisoned(sink)) => sink.into_inner().would_wait(),
            Err(TryLockError::WouldBlock) => true,
        }
    }

    /// Writes the output that waits.
    fn flush(&self) {
        self.write_out(&mut self.sink.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes the output that waits, unless somebody does already or the reader is slow.
    fn flush_without_waiting(&self) {
        let mut sink = match self.sink.try_lock() {
            Ok(sink) => sink,
            Err(TryLockError::Poisoned(sink)) => sink.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if !sink.would_wait() {
            self.write_out(&mut sink);
        }
    }

    fn write_out(&self, sink: &mut Sink) {
        sink.take(self.lock().uart.writer_mut());
        // The guest must not notice that its output is lost; the counts tell the user.
        let (sent, lost) = sink.write();
        self.room.sent.fetch_add(sent as u64, Ordering::Relaxed);
        self.room.lost.fetch_add(lost as u64, Ordering::Relaxed);
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
        let mut port = self.lock();
        port.catch_up();
        port.posted.other_access();
        *value = port.uart.read(register);
        if register == IIR && *value & IIR_NONE != 0 {
            // The model forgets "received" once it has been identified or a byte was read. A level-triggered port goes
            // on saying it while there is something to read, or a driver that left some would find its line high and no reason.
            let state = port.uart.state();
            if state.interrupt_enable & IER_RECEIVED != 0 && state.line_status & LSR_DATA_READY != 0 {
                *value = (*value & !IIR_NONE) | IIR_RECEIVED;
            }
        }
        self.drive(&port.uart);
        let waits = port.waits();
        drop(port);
        if waits {
            self.flush();
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let (Some(register), Some(&value)) = (register(offset), data.first()) else { return };
        let mut port = self.lock();
        port.catch_up();
        port.write(register, value);
        if register == DATA {
            port.posted.byte_written();
        } else {
            port.posted.other_access();
        }
        self.drive(&port.uart);
        let waits = port.waits();
        drop(port);
        if waits {
            self.flush();
        }
        if register == MCR {
            // A port that leaves loop-back takes input again, and no read of the guest's would say so.
            self.room.in_buffer_empty();
        }
    }
}
