// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest's ITS makes of a message.
//!
//! The kernel shows its mappings in debugfs where it is new enough (`vgic-its-state@ADDRESS`). Every kernel writes them into the guest's own tables when it is told to,
//! which is meant for migration, and so is described: Documentation/virt/kvm/devices/arm-vgic-its.rst, "ITS Table ABI REV0". The tables are the ITS's
//! alone; a guest has no business in them. What was saved there before is not cleared by each kernel when a mapping goes, so the entries that are asked for are cleared first.

use std::fs;
use std::path::Path;

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Translation {
    /// It is an interrupt.
    Mapped {
        /// Who sends it.
        device: u32,
        /// What it sends.
        event: u32,
        /// Which.
        intid: u32,
        /// For which vCPU, by its index.
        target: Option<u32>,
    },
    /// The sender is not known.
    NoDevice {
        /// Who.
        device: u32,
    },
    /// The sender is, and this message of its is not.
    NoEvent {
        /// Who.
        device: u32,
        /// What.
        event: u32,
    },
    /// It cannot be found out.
    Unknown {
        /// Why.
        why: String,
    },
}

/// Guest memory.
pub trait Memory {
    /// Eight bytes, little-endian; `None` where there is no memory.
    fn read(&self, address: u64) -> Option<u64>;
    /// Writes them; whether there is memory.
    fn write(&self, address: u64, value: u64) -> bool;
}

/// `GITS_BASER<n>` (Arm IHI 0069, section 12.19.1).
const VALID: u64 = 1 << 63;
const INDIRECT: u64 = 1 << 62;
const PAGE: u64 = 64 << 10;
/// Bytes of an entry of each table in revision 0.
const ENTRY: u64 = 8;

fn base_of(baser: u64) -> u64 {
    // With pages of 64 KiB, as KVM has them always, bits 51 to 48 are where the low bits would be.
    (baser & 0xffff_ffff_0000) | ((baser >> 12) & 0xf) << 48
}

/// Where the device table has the entry of a device.
fn device_entry(memory: &impl Memory, baser: u64, device: u32) -> Option<u64> {
    let (base, bytes) = (base_of(baser), ((baser & 0xff) + 1) * PAGE);
    if baser & INDIRECT == 0 {
        let at = u64::from(device) * ENTRY;
        return (at < bytes).then_some(base + at);
    }
    let a_page = PAGE / ENTRY;
    let at = u64::from(device) / a_page * 8;
    let first = (at < bytes).then(|| memory.read(base + at))??;
    (first & VALID != 0).then(|| (first & 0xf_ffff_ffff_0000) + u64::from(device) % a_page * ENTRY)
}

/// Translates by the tables. `device_table` and `collections` are the ITS's registers, `save` makes the kernel write its mappings into the guest's memory.
pub fn translate(
    memory: &impl Memory,
    (device_table, collections): (u64, u64),
    (device, event): (u32, u32),
    save: impl Fn() -> Result<(), String>,
) -> Translation {
    let unknown = |why: String| Translation::Unknown { why };
    if device_table & VALID == 0 {
        return Translation::NoDevice { device };
    }
    let Some(entry) = device_entry(memory, device_table, device) else {
        return Translation::NoDevice { device };
    };
    let look = |at: u64| -> Result<u64, String> {
        if !memory.write(at, 0) {
            return Err(format!("the ITS's table is not in memory: {at:#x}"));
        }
        save()?;
        memory.read(at).ok_or_else(|| format!("the ITS's table is not in memory: {at:#x}"))
    };
    let found = match look(entry) {
        Ok(found) => found,
        Err(why) => return unknown(why),
    };
    if found & VALID == 0 {
        return Translation::NoDevice { device };
    }
    let bits = (found & 0x1f) + 1;
    let table = ((found >> 5) & ((1 << 44) - 1)) << 8;
    if bits < 32 && u64::from(event) >= 1 << bits {
        return Translation::NoEvent { device, event };
    }
    let found = match look(table + u64::from(event) * ENTRY) {
        Ok(found) => found,
        Err(why) => return unknown(why),
    };
    let Some(intid) = u32::try_from((found >> 16) & 0xffff_ffff).ok().filter(|&intid| intid != 0) else {
        return Translation::NoEvent { device, event };
    };
    Translation::Mapped { device, event, intid, target: target(memory, collections, found & 0xffff) }
}

/// The vCPU of a collection: the table is a list, which an entry that is not valid ends.
fn target(memory: &impl Memory, collections: u64, collection: u64) -> Option<u32> {
    if collections & VALID == 0 {
        return None;
    }
    let (base, bytes) = (base_of(collections), ((collections & 0xff) + 1) * PAGE);
    for at in (0..bytes).step_by(8) {
        let entry = memory.read(base + at)?;
        if entry & VALID == 0 {
            return None;
        }
        if entry & 0xffff == collection {
            return u32::try_from((entry >> 16) & 0xffff_ffff).ok();
        }
    }
    None
}

/// Looks into the files of newer kernels; `None` where there is none.
#[must_use]
pub fn from_debugfs(directory: &Path, device: u32, event: u32) -> Option<Translation> {
    let mut found = None;
    for entry in fs::read_dir(directory).ok()?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("vgic-its-state@") {
            let translation = parse(&fs::read_to_string(entry.path()).ok()?, device, event);
            if matches!(translation, Translation::Mapped { .. }) {
                return Some(translation);
            }
            found.get_or_insert(translation);
        }
    }
    found
}

/// `Device ID: 0x10, Event ID Range: [0 - 31]`, and below it rows of event, INTID, hardware INTID, target, collection (Linux 6.15, `vgic_its_debug_show`).
#[must_use]
pub fn parse(text: &str, device: u32, event: u32) -> Translation {
    let mut known = false;
    let mut here = false;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("Device ID: 0x") {
            let id = rest.split(',').next().and_then(|hex| u32::from_str_radix(hex, 16).ok());
            here = id == Some(device);
            known |= here;
            continue;
        }
        let numbers: Vec<u32> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        if let (true, &[number, intid, _, target, ..]) = (here, numbers.as_slice())
            && number == event
        {
            return Translation::Mapped { device, event, intid, target: Some(target) };
        }
    }
    if known { Translation::NoEvent { device, event } } else { Translation::NoDevice { device } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    /// Memory in which everything reads as what was written there last; below 0x1000 there is none.
    #[derive(Default)]
    struct Words(RefCell<BTreeMap<u64, u64>>);

    impl Memory for Words {
        fn read(&self, address: u64) -> Option<u64> {
            (address >= 0x1000).then(|| self.0.borrow().get(&address).copied().unwrap_or(0))
        }

        fn write(&self, address: u64, value: u64) -> bool {
            self.0.borrow_mut().insert(address, value);
            address >= 0x1000
        }
    }

    const DEVICES: u64 = 0x4000_0000;
    const COLLECTIONS: u64 = 0x4100_0000;
    const EVENTS: u64 = 0x4200_0000;
    const REGISTERS: (u64, u64) = (VALID | DEVICES | 7, VALID | COLLECTIONS);

    /// Device 0x10 has 32 events, of which 3 is LPI 8195 of collection 1, on vCPU 5.
    fn save(memory: &Words, entry: u64) {
        memory.write(entry, VALID | (EVENTS >> 8) << 5 | 4);
        memory.write(EVENTS + 3 * 8, 8195 << 16 | 1);
        memory.write(COLLECTIONS, VALID | 4 << 16);
        memory.write(COLLECTIONS + 8, VALID | 5 << 16 | 1);
    }

    #[test]
    fn a_message_is_found_in_flat_and_in_two_level_tables() {
        let found = Translation::Mapped { device: 0x10, event: 3, intid: 8195, target: Some(5) };
        let memory = Words::default();
        let saved = || {
            save(&memory, DEVICES + 0x10 * 8);
            Ok(())
        };
        assert_eq!(translate(&memory, REGISTERS, (0x10, 3), saved), found);
        for (device, event, expected) in [
            (0x10, 4, Translation::NoEvent { device: 0x10, event: 4 }),
            (0x10, 32, Translation::NoEvent { device: 0x10, event: 32 }),
            (0x11, 3, Translation::NoDevice { device: 0x11 }),
            (1 << 20, 3, Translation::NoDevice { device: 1 << 20 }),
        ] {
            assert_eq!(translate(&memory, REGISTERS, (device, event), saved), expected);
        }

        let memory = Words::default();
        memory.write(DEVICES, VALID | 0x4300_0000);
        let registers = (REGISTERS.0 | INDIRECT, REGISTERS.1);
        let saved = || {
            save(&memory, 0x4300_0000 + 0x10 * 8);
            Ok(())
        };
        assert_eq!(translate(&memory, registers, (0x10, 3), saved), found);
        // The first level has nothing for devices from 8192 on.
        assert_eq!(translate(&memory, registers, (9000, 3), saved), Translation::NoDevice { device: 9000 });
    }

    #[test]
    fn what_was_saved_once_is_not_believed_when_the_mapping_has_gone() {
        let memory = Words::default();
        save(&memory, DEVICES + 0x10 * 8);
        let nothing = || Ok(());
        assert_eq!(translate(&memory, REGISTERS, (0x10, 3), nothing), Translation::NoDevice { device: 0x10 });
    }

    #[test]
    fn what_cannot_be_found_out_says_why() {
        let memory = Words::default();
        let refused = || Err("EACCES".to_owned());
        assert_eq!(
            translate(&memory, REGISTERS, (0x10, 3), refused),
            Translation::Unknown { why: "EACCES".into() }
        );
        assert_eq!(translate(&memory, (0, 0), (0x10, 3), refused), Translation::NoDevice { device: 0x10 });
        assert!(matches!(translate(&memory, (VALID, 0), (0x10, 3), refused), Translation::Unknown { .. }));
    }

    #[test]
    fn newer_kernels_say_it_themselves() {
        let text = "
Device ID: 0x8, Event ID Range: [0 - 31]
EVENT_ID    INTID  HWINTID   TARGET   COL_ID HW
-----------------------------------------------
       0     8192        0        0        0  0

Device ID: 0x10, Event ID Range: [0 - 31]
EVENT_ID    INTID  HWINTID   TARGET   COL_ID HW
-----------------------------------------------
       3     8195        0        1        1  0
";
        let mapped = Translation::Mapped { device: 0x10, event: 3, intid: 8195, target: Some(1) };
        assert_eq!(parse(text, 0x10, 3), mapped);
        assert_eq!(parse(text, 0x8, 3), Translation::NoEvent { device: 8, event: 3 });
        assert_eq!(parse(text, 0x18, 3), Translation::NoDevice { device: 0x18 });
    }
}
