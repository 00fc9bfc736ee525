// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The MSI-X table (PCI Express base specification 6.0, section 7.7.2.5 to 7.7.2.8).

use irq_types::MsiMessage;

use super::layout::ENTRY;
use crate::VectorChange;

/// Vector control: the mask bit. The others are reserved.
const MASKED: u32 = 1;

#[derive(Debug, Clone, Copy)]
struct Entry {
    message: MsiMessage,
    masked: bool,
}

impl Default for Entry {
    fn default() -> Self {
        Self { message: MsiMessage::default(), masked: true }
    }
}

/// The table of a function's messages and mask bits.
///
/// Software may access aligned 4 and 8 bytes. What else it does is undefined; here such a read gets the bytes that are there, and such a
/// write is lost.
#[derive(Debug, Clone)]
pub struct MsixTable {
    entries: Vec<Entry>,
}

impl MsixTable {
    /// A table of `vectors` entries, all zero but for their mask bits, which are set.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        Self { entries: vec![Entry::default(); usize::from(vectors)] }
    }

    /// The message of a vector; `None` if there is no such vector.
    #[must_use]
    pub fn message(&self, vector: usize) -> Option<MsiMessage> {
        self.entries.get(vector).map(|entry| entry.message)
    }

    /// The mask bit of a vector; `None` if there is no such vector.
    #[must_use]
    pub fn is_masked(&self, vector: usize) -> Option<bool> {
        self.entries.get(vector).map(|entry| entry.masked)
    }

    /// Software reads at `offset`. Beyond the table there are zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (byte, at) in data.iter_mut().zip(offset..=u64::MAX) {
            *byte = self.dword(at / 4).to_le_bytes()[(at % 4) as usize];
        }
    }

    fn dword(&self, index: u64) -> u32 {
        let entry = usize::try_from(index / 4).ok().and_then(|at| self.entries.get(at));
        entry.map_or(0, |entry| match index % 4 {
            0 => entry.message.address_lo(),
            1 => entry.message.address_hi(),
            2 => entry.message.data,
            _ => u32::from(entry.masked),
        })
    }

    /// Software writes at `offset`. What that changes is added to `changes`: a message if any part of it was written, a mask bit if
    /// it is another one now.
    pub fn write(&mut self, offset: u64, data: &[u8], changes: &mut Vec<VectorChange>) {
        let aligned = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64);
        let Some(vector) = usize::try_from(offset / ENTRY).ok().filter(|_| aligned) else { return };
        let Some(entry) = self.entries.get_mut(vector) else { return };
        let mut programmed = false;
        let masked = entry.masked;
        let dwords = data.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes));
        for (dword, at) in dwords.zip(offset % ENTRY / 4..) {
            let address = &mut entry.message.address;
            match at {
                // The two lowest bits of an address are zero: messages are aligned (section 7.7.2.5).
                0 => *address = *address & !0xffff_ffff | u64::from(dword & !3),
                1 => *address = *address & 0xffff_ffff | u64::from(dword) << 32,
                2 => entry.message.data = dword,
                _ => entry.masked = dword & MASKED != 0,
            }
            programmed |= at < 3;
        }
        if programmed {
            changes.push(VectorChange::Program(vector, entry.message));
        }
        if entry.masked != masked {
            changes.push(VectorChange::Mask(vector, entry.masked));
        }
    }
}
