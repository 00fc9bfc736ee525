// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio device's registers, through the files that sysfs has of a PCI function: VIRTIO 1.3, section 4.1.4.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

/// Capabilities of this kind are virtio's.
const VENDOR_SPECIFIC: u8 = 9;
/// `cfg_type` of a capability.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;

/// Bits of the PCI command register.
const MEMORY: u16 = 2;
const MASTER: u16 = 4;

/// A virtio device that no driver has at the moment.
#[derive(Debug)]
pub struct Function {
    config: File,
    registers: MmapRegion,
    common: usize,
    notify: usize,
    /// Bytes between two notification addresses.
    step: usize,
    isr: usize,
}

impl Function {
    /// The function with this address, `0000:00:01.0`.
    ///
    /// # Panics
    /// If there is none, or it is no virtio device with all its registers in one BAR.
    #[must_use]
    pub fn open(address: &str) -> Self {
        let directory = format!("/sys/bus/pci/devices/{address}");
        let config = File::options().read(true).write(true).open(format!("{directory}/config")).unwrap();
        let space = fs::read(format!("{directory}/config")).unwrap();
        let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
        let (mut common, mut notify, mut isr) = (None, None, None);
        let mut at = usize::from(space[0x34]);
        while at != 0 {
            if space[at] == VENDOR_SPECIFIC {
                let place = (space[at + 4], usize::try_from(word(at + 8)).unwrap());
                match space[at + 3] {
                    COMMON => common = Some(place),
                    NOTIFY => notify = Some((place, usize::try_from(word(at + 16)).unwrap())),
                    ISR => isr = Some(place),
                    _ => {}
                }
            }
            at = usize::from(space[at + 1]);
        }
        let (Some((bar, common)), Some(((notify_bar, notify), step)), Some((isr_bar, isr))) =
            (common, notify, isr)
        else {
            panic!("{address} is no virtio device");
        };
        assert!(bar == notify_bar && bar == isr_bar, "{address} has its registers in several BARs");
        let resource =
            File::options().read(true).write(true).open(format!("{directory}/resource{bar}")).unwrap();
        let size = usize::try_from(resource.metadata().unwrap().len()).unwrap();
        let registers = MmapRegion::from_file(FileOffset::new(resource, 0), size).unwrap();
        Self { config, registers, common, notify, step, isr }
    }

    /// Has it decode its BARs and reach memory, as a driver does first of all.
    pub(super) fn enable(&self) {
        let mut command = [0; 2];
        self.config.read_exact_at(&mut command, 4).unwrap();
        let command = u16::from_le_bytes(command) | MEMORY | MASTER;
        self.config.write_all_at(&command.to_le_bytes(), 4).unwrap();
    }

    fn read<T: AtomicAccess>(&self, at: usize) -> T {
        self.registers.as_volatile_slice().load(at, Ordering::Relaxed).unwrap()
    }

    fn write<T: AtomicAccess>(&self, at: usize, value: T) {
        self.registers.as_volatile_slice().store(value, at, Ordering::Relaxed).unwrap();
    }

    pub(super) fn status(&self) -> u8 {
        self.read(self.common + 0x14)
    }

    pub(super) fn set_status(&self, status: u8) {
        self.write(self.common + 0x14, status);
    }

    /// Reading it clears it.
    pub(super) fn isr(&self) -> u8 {
        self.read(self.isr)
    }

    pub(super) fn accept_all_features(&self) {
        for half in 0..2_u32 {
            self.write(self.common, half);
            let offered: u32 = self.read(self.common + 4);
            self.write(self.common + 8, half);
            self.write(self.common + 0xc, offered);
        }
    }

    pub(super) fn queues(&self) -> u16 {
        self.read(self.common + 0x12)
    }

    /// Enables a queue of `size` entries with these parts: descriptor table, available ring, used ring.
    pub(super) fn set_queue(&self, index: u16, size: u16, parts: [u64; 3]) -> Result<(), String> {
        self.write(self.common + 0x16, index);
        self.write(self.common + 0x18, size);
        for (n, part) in parts.into_iter().enumerate() {
            let at = self.common + 0x20 + 8 * n;
            let [low, high] = [part & 0xffff_ffff, part >> 32].map(|half| u32::try_from(half).unwrap());
            self.write(at, low);
            self.write(at + 4, high);
        }
        self.write(self.common + 0x1c, 1_u16);
        match self.read::<u16>(self.common + 0x1c) {
            1 => Ok(()),
            _ => Err(format!("queue {index} cannot be enabled")),
        }
    }

    /// Tells the device that there is something in a queue.
    pub(super) fn notify(&self, queue: u16) {
        self.write(self.common + 0x16, queue);
        let offset: u16 = self.read(self.common + 0x1e);
        self.write(self.notify + usize::from(offset) * self.step, queue);
    }
}
