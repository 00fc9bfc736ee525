// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A block of 32-bit registers, each bit of which is read-only, writable, or cleared by writing a one.

use std::ops::Range;

/// Four bytes of configuration space.
#[derive(Debug, Clone, Copy, Default)]
struct Register {
    value: u32,
    /// What a reset makes of it.
    initial: u32,
    writable: u32,
    /// Bits that software clears by writing ones to them (RW1C).
    clear: u32,
}

/// What one write to configuration space did. The write lies within one 32-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigWrite {
    /// Where the register is; a multiple of 4.
    pub register: u16,
    /// The bits that the write covered: 8, 16 or 32 of them.
    pub mask: u32,
    /// What was written, at its place in the register; zero outside of `mask`.
    pub written: u32,
    /// The register before.
    pub before: u32,
    /// The register now.
    pub after: u32,
}

impl ConfigWrite {
    /// Whether the write covered any of these bytes of configuration space, whatever it changed.
    #[must_use]
    pub fn touches(&self, bytes: Range<u16>) -> bool {
        (0..4).any(|i| self.mask >> (8 * i) & 0xff != 0 && bytes.contains(&(self.register + i)))
    }

    /// The bits of the register that are different now.
    #[must_use]
    pub const fn changed(&self) -> u32 {
        self.before ^ self.after
    }

    /// Whether the write covered bit `bit` of the register at `register`, and what it wrote to it.
    pub(crate) const fn wrote_bit(&self, register: u16, bit: u32) -> Option<bool> {
        if self.register == register && self.mask & (1 << bit) != 0 {
            Some(self.written & (1 << bit) != 0)
        } else {
            None
        }
    }
}

/// Registers from offset 0 on. It grows as registers are defined; what is not defined reads zero and cannot be written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registers(Vec<Register>);

impl Registers {
    fn get(&self, offset: u16) -> Register {
        self.0.get(usize::from(offset / 4)).copied().unwrap_or_default()
    }

    /// The register at `offset`, made if it is not there. Offsets are 16 bits wide, which bounds the block.
    fn get_mut(&mut self, offset: u16) -> &mut Register {
        let index = usize::from(offset / 4);
        if index >= self.0.len() {
            self.0.resize(index + 1, Register::default());
        }
        &mut self.0[index]
    }

    /// Defines bytes from `offset` on: their value from now on and after a reset, which bits software may write, and which
    /// it clears by writing ones. Masks that are shorter than `value` are continued with zeros.
    pub(crate) fn define(&mut self, offset: u16, value: &[u8], writable: &[u8], clear: &[u8]) {
        for (i, at) in (0..value.len()).zip(offset..) {
            let shift = 8 * (at % 4);
            let put = |to: &mut u32, from: &[u8]| {
                let byte = from.get(i).copied().unwrap_or(0);
                *to = *to & !(0xff << shift) | u32::from(byte) << shift;
            };
            let register = self.get_mut(at);
            put(&mut register.value, value);
            put(&mut register.initial, value);
            put(&mut register.writable, writable);
            put(&mut register.clear, clear);
        }
    }

    /// Lets software write more bits of the register at `offset`.
    pub(crate) fn allow(&mut self, offset: u16, bits: u32) {
        self.get_mut(offset).writable |= bits;
    }

    /// Sets bits that the device itself changes. A reset undoes it.
    pub(crate) fn set_bits(&mut self, offset: u16, mask: u32, bits: u32) {
        let register = self.get_mut(offset);
        register.value = register.value & !mask | bits & mask;
    }

    /// The whole register that `offset` lies in.
    pub(crate) fn dword(&self, offset: u16) -> u32 {
        self.get(offset).value
    }

    /// The 16 bits at `offset`, which is even.
    #[allow(clippy::cast_possible_truncation, reason = "the half that is asked for")]
    pub(crate) fn word(&self, offset: u16) -> u16 {
        (self.dword(offset) >> (8 * (offset & 2))) as u16
    }

    /// The byte at `offset`.
    #[allow(clippy::cast_possible_truncation, reason = "the byte that is asked for")]
    pub(crate) fn byte(&self, offset: u16) -> u8 {
        (self.dword(offset) >> (8 * (offset & 3))) as u8
    }

    /// Whether something was defined in the register that `offset` lies in, or behind it.
    pub(crate) fn is_defined(&self, offset: u16) -> bool {
        usize::from(offset / 4) < self.0.len()
    }

    /// Software's read.
    pub(crate) fn read(&self, offset: u16, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = u16::try_from(i).ok().and_then(|i| offset.checked_add(i)).map_or(0, |at| self.byte(at));
        }
    }

    /// Software's write. What lies beyond the register that it begins in is lost.
    pub(crate) fn write(&mut self, offset: u16, data: &[u8]) -> ConfigWrite {
        let (mut mask, mut written) = (0, 0);
        for (byte, at) in data.iter().zip(offset % 4..4) {
            mask |= 0xff << (8 * at);
            written |= u32::from(*byte) << (8 * at);
        }
        let register = offset & !3;
        let Some(entry) = self.0.get_mut(usize::from(register / 4)) else {
            return ConfigWrite { register, mask, written, before: 0, after: 0 };
        };
        let before = entry.value;
        let writable = entry.writable & mask;
        entry.value = (before & !writable | written & writable) & !(written & entry.clear);
        ConfigWrite { register, mask, written, before, after: entry.value }
    }

    /// All values as they were defined.
    pub(crate) fn reset(&mut self) {
        for register in &mut self.0 {
            register.value = register.initial;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_bit_takes_a_write_in_its_way() {
        let mut registers = Registers::default();
        // Read-only, writable, cleared by ones, in the three nibbles from the top.
        registers.define(4, &0x0000_0aaa_u32.to_le_bytes(), &[0xf0], &[0x0f]);
        for (offset, data, expected) in [
            (4, &[0xff, 0xff, 0xff, 0xff][..], 0x0af0),
            (4, &[0x05], 0x0aa0_u32 & !0xf5 | 0x000a),
            (5, &[0xff], 0x0aaa),
            (6, &[0xff, 0xff], 0x0aaa),
            (4, &[0x20], 0x0a2a),
            // The second byte belongs to the next register.
            (7, &[0, 0xff], 0x0aaa),
        ] {
            registers.reset();
            let write = registers.write(offset, data);
            assert_eq!(write.after, expected, "{data:x?} at {offset}: {:#x}", write.after);
            assert_eq!((write.before, write.register), (0x0aaa, 4));
            assert_eq!(registers.dword(8), 0);
        }
    }

    #[test]
    fn what_is_defined_again_is_only_what_was_defined_last() {
        let mut registers = Registers::default();
        registers.define(0, &[0x11, 0x22, 0x33, 0x44], &[0xff; 4], &[]);
        registers.define(1, &[0x80], &[], &[0x80]);
        assert_eq!(registers.dword(0), 0x4433_8011);
        assert_eq!(registers.write(0, &[0xff; 4]).after, 0xffff_00ff);
        registers.reset();
        assert_eq!(registers.dword(0), 0x4433_8011);
    }

    #[test]
    fn what_is_not_defined_reads_zero_and_takes_nothing() {
        let mut registers = Registers::default();
        let write = registers.write(0xffc, &[1, 2, 3, 4]);
        assert_eq!((write.before, write.after, write.written), (0, 0, 0x0403_0201));
        assert!(!registers.is_defined(0));
        let mut data = [0xff; 4];
        registers.read(0xffff, &mut data);
        assert_eq!(data, [0; 4]);
        assert!(registers.0.is_empty(), "a guest's write must not make it grow");
    }

    #[test]
    fn a_write_knows_the_bytes_that_it_covered() {
        let mut registers = Registers::default();
        let write = registers.write(0x06, &[1, 2]);
        assert!(write.touches(0x06..0x07) && write.touches(0x07..0x09));
        assert!(!write.touches(0x04..0x06) && !write.touches(0x08..0x10));
        assert_eq!((write.wrote_bit(4, 16), write.wrote_bit(4, 17)), (Some(true), Some(false)));
        assert_eq!((write.wrote_bit(4, 0), write.wrote_bit(8, 16)), (None, None));
    }
}
