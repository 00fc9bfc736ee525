// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The power button: a PL061 GPIO controller with one input, since a machine without ACPI has no other way to be asked politely.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use irqfd::{LevelLine, Resample};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

/// Which input is the power button.
pub const POWER_BUTTON: u8 = 3;

/// The PL061's identification (Arm DDI 0190, section 3.3.10): part 0x061 of designer 0x41, revision 0.
pub const PL061_ID: u32 = 0x0004_1061;
/// `GPIOPCellID0` to `3` (section 3.3.15).
const CELL_ID: u32 = 0xb105_f00d;

/// Register offsets (section 3.2). The data register fills everything below the direction register.
const DIRECTION: u64 = 0x400;
const SENSE: u64 = 0x404;
const BOTH_EDGES: u64 = 0x408;
const EVENT: u64 = 0x40c;
const ENABLE: u64 = 0x410;
const RAW_STATUS: u64 = 0x414;
const MASKED_STATUS: u64 = 0x418;
const CLEAR: u64 = 0x41c;
const MODE: u64 = 0x420;
const PERIPH_ID: u64 = 0xfe0;
const PCELL_ID: u64 = 0xff0;

/// A PL061 (Arm DDI 0190): eight lines, of which the outside drives the inputs, and one interrupt, a level.
pub struct Gpio {
    registers: Mutex<Registers>,
    line: Arc<dyn LevelLine>,
    line_failures: AtomicU64,
}

#[derive(Debug, Default)]
struct Registers {
    /// What the outside drives the lines to.
    inputs: u8,
    /// What the guest drives its outputs to.
    outputs: u8,
    /// Set: output.
    direction: u8,
    /// Set: the interrupt follows a level, clear: it is kept from an edge on.
    sense: u8,
    /// Set: both edges count.
    both_edges: u8,
    /// Set: rising edge, or high level.
    event: u8,
    enable: u8,
    /// Edges that the guest has not cleared.
    edges: u8,
    mode: u8,
}

impl Registers {
    fn lines(&self) -> u8 {
        (self.inputs & !self.direction) | (self.outputs & self.direction)
    }

    /// `GPIORIS`: levels as they are, edges as they were seen.
    fn raw_status(&self) -> u8 {
        let levels = !(self.lines() ^ self.event) & self.sense;
        levels | (self.edges & !self.sense)
    }

    fn masked_status(&self) -> u8 {
        self.raw_status() & self.enable
    }

    /// Changes something that may change what the lines are, and takes note of edges.
    fn with_edges(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.lines();
        change(self);
        let after = self.lines();
        let changed = before ^ after;
        let wanted = self.both_edges | !(after ^ self.event);
        self.edges |= changed & wanted & !self.sense;
    }

    fn read(&self, offset: u64) -> u32 {
        let byte = |id: u32, base| (id >> (8 * ((offset - base) / 4))) & 0xff;
        u32::from(match offset {
            // Address bits 9 to 2 are the mask (section 3.3.1).
            0..DIRECTION => self.lines() & mask(offset),
            DIRECTION => self.direction,
            SENSE => self.sense,
            BOTH_EDGES => self.both_edges,
            EVENT => self.event,
            ENABLE => self.enable,
            RAW_STATUS => self.raw_status(),
            MASKED_STATUS => self.masked_status(),
            MODE => self.mode,
            PERIPH_ID..PCELL_ID => return byte(PL061_ID, PERIPH_ID),
            PCELL_ID..0x1000 => return byte(CELL_ID, PCELL_ID),
            _ => 0,
        })
    }

    fn write(&mut self, offset: u64, value: u8) {
        match offset {
            0..DIRECTION => {
                let mask = mask(offset);
                self.with_edges(|r| r.outputs = (r.outputs & !mask) | (value & mask));
            }
            DIRECTION => self.with_edges(|r| r.direction = value),
            SENSE => self.sense = value,
            BOTH_EDGES => self.both_edges = value,
            EVENT => self.event = value,
            ENABLE => self.enable = value,
            CLEAR => self.edges &= !value,
            MODE => self.mode = value,
            _ => {}
        }
    }
}

/// The lines that an access to the data register is about.
fn mask(offset: u64) -> u8 {
    u8::try_from((offset >> 2) & 0xff).unwrap_or(u8::MAX)
}

impl Gpio {
    /// A controller at rest, all lines low, that interrupts through `line`.
    #[must_use]
    pub fn new(line: Arc<dyn LevelLine>) -> Self {
        Self { registers: Mutex::default(), line, line_failures: AtomicU64::new(0) }
    }

    /// Presses or lets go of the power button.
    pub fn press(&self, down: bool) {
        let bit = 1 << POWER_BUTTON;
        let mut registers = self.lock();
        registers.with_edges(|r| r.inputs = if down { r.inputs | bit } else { r.inputs & !bit });
        self.drive(&registers);
    }

    /// Whether the guest has a driver that waits for the power button.
    #[must_use]
    pub fn guest_listens(&self) -> bool {
        self.lock().enable & (1 << POWER_BUTTON) != 0
    }

    fn drive(&self, registers: &Registers) {
        if self.line.set_level(registers.masked_status() != 0).is_err() {
            // The next access tries again.
            self.line_failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// After the guest's EOI: the line goes up again while an enabled line still has its condition.
impl Resample for Gpio {
    fn resampled(&self) -> bool {
        self.lock().masked_status() != 0
    }
}

impl DeviceMmio for Gpio {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        // Registers are words; a narrower load gets the low bytes, as from a bus that drives them all.
        let value = if offset.is_multiple_of(4) { self.lock().read(offset) } else { 0 };
        let bytes = u64::from(value).to_le_bytes();
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = value;
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let (true, Some(&value)) = (offset.is_multiple_of(4), data.first()) else { return };
        let mut registers = self.lock();
        registers.write(offset, value);
        self.drive(&registers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[derive(Default)]
    struct Line(AtomicBool);

    impl LevelLine for Line {
        fn set_level(&self, high: bool) -> Result<(), irqfd::Error> {
            self.0.store(high, Ordering::SeqCst);
            Ok(())
        }
    }

    struct Board {
        gpio: Gpio,
        line: Arc<Line>,
    }

    impl Board {
        fn new() -> Self {
            let line = Arc::new(Line::default());
            Self { gpio: Gpio::new(Arc::clone(&line) as _), line }
        }

        fn read(&self, offset: u64) -> u32 {
            let mut word = [0; 4];
            self.gpio.mmio_read(MmioAddress(0), offset, &mut word);
            u32::from_le_bytes(word)
        }

        fn write(&self, offset: u64, value: u8) {
            self.gpio.mmio_write(MmioAddress(0), offset, &u32::from(value).to_le_bytes());
        }

        fn interrupts(&self) -> bool {
            self.line.0.load(Ordering::SeqCst)
        }
    }

    const BUTTON: u8 = 1 << POWER_BUTTON;

    #[test]
    fn it_says_what_it_is() {
        let board = Board::new();
        let id = |base| (0..4).fold(0, |id, n| id | board.read(base + 4 * n) << (8 * n));
        assert_eq!((id(PERIPH_ID), id(PCELL_ID)), (PL061_ID, CELL_ID));
    }

    #[test]
    fn a_press_is_an_edge_that_stays_until_it_is_cleared() {
        let board = Board::new();
        assert!(!board.gpio.guest_listens());
        board.write(BOTH_EDGES, BUTTON);
        board.write(ENABLE, BUTTON);
        assert!(board.gpio.guest_listens());
        for down in [true, false] {
            board.gpio.press(down);
            assert!(board.interrupts() && board.gpio.resampled());
            assert_eq!((board.read(MASKED_STATUS), board.read(RAW_STATUS)), (8, 8));
            assert_eq!(board.read(u64::from(BUTTON) << 2), if down { 8 } else { 0 });
            board.write(CLEAR, BUTTON);
            assert!(!board.interrupts() && !board.gpio.resampled());
            // The same again is no edge.
            board.gpio.press(down);
            assert!(!board.interrupts());
        }
    }

    #[test]
    fn one_edge_is_the_one_that_was_asked_for() {
        for rising in [true, false] {
            let board = Board::new();
            board.write(EVENT, if rising { BUTTON } else { 0 });
            board.write(ENABLE, BUTTON);
            board.gpio.press(true);
            assert_eq!(board.interrupts(), rising);
            board.write(CLEAR, 0xff);
            board.gpio.press(false);
            assert_eq!(board.interrupts(), !rising);
        }
    }

    #[test]
    fn a_level_goes_with_the_line_and_cannot_be_cleared() {
        let board = Board::new();
        board.write(SENSE, BUTTON);
        board.write(EVENT, BUTTON);
        board.write(ENABLE, BUTTON);
        board.gpio.press(true);
        board.write(CLEAR, 0xff);
        assert!(board.interrupts());
        board.gpio.press(false);
        assert!(!board.interrupts());
    }

    #[test]
    fn an_interrupt_that_is_not_enabled_waits() {
        let board = Board::new();
        board.write(BOTH_EDGES, BUTTON);
        board.gpio.press(true);
        assert_eq!((board.interrupts(), board.read(RAW_STATUS)), (false, 8));
        board.write(ENABLE, BUTTON);
        assert!(board.interrupts());
    }

    #[test]
    fn the_data_register_is_masked_by_its_address_and_inputs_cannot_be_written() {
        let board = Board::new();
        board.write(DIRECTION, 0x0f);
        board.write(0x3fc, 0xff);
        assert_eq!(board.read(0x3fc), 0x0f);
        board.write(0x05 << 2, 0);
        assert_eq!(board.read(0x3fc), 0x0a);
        assert_eq!(board.read(0x02 << 2), 0x02);
    }

    #[test]
    fn odd_accesses_do_no_harm() {
        let board = Board::new();
        board.gpio.mmio_write(MmioAddress(0), 0x3fd, &[0xff; 8]);
        board.gpio.mmio_write(MmioAddress(0), 0x1000, &[0xff; 8]);
        board.gpio.mmio_write(MmioAddress(0), 0x400, &[]);
        let mut data = [0xff; 8];
        board.gpio.mmio_read(MmioAddress(0), 0xfe1, &mut data);
        assert_eq!(data, [0; 8]);
        board.gpio.mmio_read(MmioAddress(0), 0xfe0, &mut data[..1]);
        assert_eq!(data[0], 0x61);
    }
}
