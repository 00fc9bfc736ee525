// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests of a few instructions, written by hand: what ends a run or talks to the serial port needs no Linux.
//!
//! Encodings are those of the Arm Architecture Reference Manual (DDI 0487), chapter C6. The header is that of Linux's
//! `Documentation/arch/arm64/booting.rst`, section 4.

/// Where the serial port is, bits 31 to 16 of the address.
const SERIAL_HIGH: u32 = 0x0900;
/// An address without a device, likewise.
const NOBODY_HIGH: u32 = 0x0a00;
/// Offset of the serial port's line status register; its bit 0 says that there is input.
const LSR: u32 = 5;
/// PSCI function IDs (Arm DEN 0022, section 5.1).
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;

const HEADER: usize = 64;

/// A program, which becomes an arm64 Image.
#[derive(Debug, Clone, Default)]
pub struct Tiny(Vec<u32>);

impl Tiny {
    /// A program that does nothing yet. It has to end in something that does not fall off the end.
    #[must_use]
    pub fn new() -> Self {
        // x1: the serial port.
        Self(vec![movz(1, SERIAL_HIGH, 1)])
    }

    fn then(mut self, instructions: &[u32]) -> Self {
        self.0.extend_from_slice(instructions);
        self
    }

    /// Writes to the serial port.
    #[must_use]
    pub fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |program, byte| program.then(&[movz(2, u32::from(byte), 0), strb(2, 1, 0)]))
    }

    /// Waits for a byte from the serial port.
    #[must_use]
    pub fn wait_for_key(self) -> Self {
        self.then(&[ldrb(2, 1, LSR), tbz(2, 0, -1), ldrb(2, 1, 0)])
    }

    /// Gives back every byte that comes over the serial port, until one is `last`, which it gives back too.
    #[must_use]
    pub fn echo_until(self, last: u8) -> Self {
        self.wait_for_key().then(&[strb(2, 1, 0), subs(3, 2, u32::from(last)), cbnz(3, -5)])
    }

    /// Writes to the serial port for ever.
    #[must_use]
    pub fn chatter(self) -> Self {
        self.then(&[movz(2, u32::from(b'.'), 0), strb(2, 1, 0), b(-1)])
    }

    /// PSCI SYSTEM_OFF.
    #[must_use]
    pub fn power_off(self) -> Self {
        self.psci(SYSTEM_OFF)
    }

    /// PSCI SYSTEM_RESET.
    #[must_use]
    pub fn reset(self) -> Self {
        self.psci(SYSTEM_RESET)
    }

    fn psci(self, function: u32) -> Self {
        self.then(&[movz(0, function & 0xffff, 0), movk(0, function >> 16, 1), HVC])
    }

    /// Loads from an address without a device, by an instruction that writes its base register back: the CPU does not describe such an access,
    /// so that KVM cannot hand it on.
    #[must_use]
    pub fn load_that_cannot_be_emulated(self) -> Self {
        self.then(&[movz(3, NOBODY_HIGH, 1), LDR_X4_X3_POST_8])
    }

    /// Sleeps for ever, as an idle guest does.
    #[must_use]
    pub fn sleep(self) -> Self {
        self.then(&[WFI, b(-1)])
    }

    /// Keeps its CPU busy for ever.
    #[must_use]
    pub fn spin(self) -> Self {
        self.then(&[b(0)])
    }

    /// The program as an arm64 Image.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; HEADER];
        image[0..4].copy_from_slice(&b(16).to_le_bytes());
        // Its size in memory, and flags: little-endian, 4 KiB pages, anywhere in memory.
        image[16..24].copy_from_slice(&0x1_0000_u64.to_le_bytes());
        image[24..32].copy_from_slice(&0xa_u64.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        image.extend(self.0.iter().flat_map(|instruction| instruction.to_le_bytes()));
        image
    }
}

const HVC: u32 = 0xd400_0002;
const WFI: u32 = 0xd503_207f;
const LDR_X4_X3_POST_8: u32 = 0xf840_8464;

const fn movz(x: u32, value: u32, half: u32) -> u32 {
    0xd280_0000 | half << 21 | value << 5 | x
}

const fn movk(x: u32, value: u32, half: u32) -> u32 {
    0xf280_0000 | half << 21 | value << 5 | x
}

const fn strb(w: u32, base: u32, offset: u32) -> u32 {
    0x3900_0000 | offset << 10 | base << 5 | w
}

const fn ldrb(w: u32, base: u32, offset: u32) -> u32 {
    0x3940_0000 | offset << 10 | base << 5 | w
}

const fn subs(to: u32, from: u32, value: u32) -> u32 {
    0x7100_0000 | value << 10 | from << 5 | to
}

/// Branches count instructions from their own.
const fn b(by: i32) -> u32 {
    0x1400_0000 | by.cast_unsigned() & 0x03ff_ffff
}

const fn tbz(w: u32, bit: u32, by: i32) -> u32 {
    0x3600_0000 | bit << 19 | (by.cast_unsigned() & 0x3fff) << 5 | w
}

const fn cbnz(w: u32, by: i32) -> u32 {
    0x3500_0000 | (by.cast_unsigned() & 0x7_ffff) << 5 | w
}
