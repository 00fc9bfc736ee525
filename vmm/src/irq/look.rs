// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel knows of an interrupt at the guest's GIC: from its debugfs, and where that is not there or not for us, from the GIC's registers and the guest's tables.

use std::path::PathBuf;

use irqchip::DeviceKind;
use vgic::InitializedVgic;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Route;
use super::gic::{GicState, Interrupt};
use super::its::{self, Translation};
use super::situation::Situation;

/// A VM to look at.
#[derive(Debug)]
pub struct Look<'a> {
    /// Its GIC.
    pub gic: &'a InitializedVgic,
    /// Its memory, where the guest has the tables of ITS and LPIs.
    pub memory: &'a GuestMemoryMmap,
    /// Its directory in debugfs ([`gic::directory`](super::gic::directory)); `None` to do without.
    pub debugfs: Option<PathBuf>,
    /// Whether no vCPU runs: the kernel shows the registers of a GIC only then.
    pub still: bool,
}

impl Look<'_> {
    /// Fills in whether the GIC is on, what the ITS makes of the message, and how the interrupt is doing.
    pub fn fill_in(&self, situation: &mut Situation) {
        let shown = self.debugfs.as_deref().and_then(GicState::read);
        situation.gic.enabled = shown
            .as_ref()
            .and_then(|state| state.enabled)
            .or_else(|| self.distributor(0).map(|ctlr| ctlr & 3 != 0));
        let intid = match situation.line.route {
            None => return,
            Some(Route::Pin { pin }) => pin.saturating_add(32),
            Some(Route::Message { data, device_id, .. }) => {
                let translation = self.translate(device_id, data);
                let intid = match translation {
                    Translation::Mapped { intid, .. } => Some(intid),
                    _ => None,
                };
                situation.translation = Some(translation);
                let Some(intid) = intid else { return };
                intid
            }
        };
        situation.interrupt = shown
            .and_then(|state| state.interrupt(intid))
            .or_else(|| if intid >= 8192 { self.lpi(intid) } else { self.spi(intid) });
        if let (Some(interrupt), Some(Translation::Mapped { target, .. })) =
            (&mut situation.interrupt, &situation.translation)
        {
            interrupt.target = interrupt.target.or(*target);
        }
    }

    fn distributor(&self, offset: u32) -> Option<u32> {
        if self.still { self.gic.read_distributor(offset).ok() } else { None }
    }

    fn translate(&self, device: u32, event: u32) -> Translation {
        if let Some(found) =
            self.debugfs.as_deref().and_then(|directory| its::from_debugfs(directory, device, event))
        {
            return found;
        }
        if !self.still {
            return Translation::Unknown { why: "the guest could not be held still".to_owned() };
        }
        // GITS_BASER0 and 1 are the device and the collection table in KVM's ITS.
        let register = |offset| self.gic.read_its(0, offset).and_then(Result::ok);
        let (Some(devices), Some(collections)) = (register(0x100), register(0x108)) else {
            return Translation::Unknown { why: "the kernel does not show the ITS's registers".to_owned() };
        };
        let save = || match self.gic.save_its_tables(0) {
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => Err(e.to_string()),
            None => Err("there is no ITS".to_owned()),
        };
        its::translate(&Words(self.memory), (devices, collections), (device, event), save)
    }

    /// An SPI by the distributor's registers (Arm IHI 0069, section 12.9).
    fn spi(&self, intid: u32) -> Option<Interrupt> {
        let register = |offset| self.distributor(offset);
        let bit = |base: u32| Some(register(base + intid / 32 * 4)? >> (intid % 32) & 1 != 0);
        let edge = register(0xc00 + intid / 16 * 4)? >> (intid % 16 * 2) & 2 != 0;
        let target = match self.gic.device_kind() {
            DeviceKind::GicV2 => {
                let mask = register(0x800 + intid / 4 * 4)? >> (intid % 4 * 8) & 0xff;
                (mask != 0).then(|| mask.trailing_zeros())
            }
            _ => {
                // KVM numbers 16 vCPUs in the lowest affinity, and 256 in each other.
                let affinity = register(0x6000 + intid * 8)?;
                Some((affinity & 0xf) | (affinity >> 8 & 0xff) << 4 | (affinity >> 16 & 0xff) << 12)
            }
        };
        Some(Interrupt {
            intid,
            enabled: bit(0x100)?,
            pending: bit(0x200)?,
            active: bit(0x300)?,
            level: Some(!edge),
            target,
        })
    }

    /// An LPI by the guest's table, whose lowest bit in each byte enables one (Arm IHI 0069, section 5.1.1).
    fn lpi(&self, intid: u32) -> Option<Interrupt> {
        /// `GICR_PROPBASER`, of the first vCPU: all have the same table.
        const PROPBASER: u32 = 0x70;
        if !self.still {
            return None;
        }
        let half = |offset| self.gic.read_redistributor(0, offset).ok().map(u64::from);
        let register = half(PROPBASER)? | half(PROPBASER + 4)? << 32;
        let table = register & 0xf_ffff_ffff_f000;
        let at = GuestAddress(table + u64::from(intid.checked_sub(8192)?));
        let entry: u8 = self.memory.read_obj(at).ok()?;
        Some(Interrupt {
            intid,
            enabled: entry & 1 != 0,
            pending: false,
            active: false,
            level: Some(false),
            target: None,
        })
    }
}

/// Guest memory in words of eight bytes.
struct Words<'a>(&'a GuestMemoryMmap);

impl its::Memory for Words<'_> {
    fn read(&self, address: u64) -> Option<u64> {
        self.0.read_obj::<u64>(GuestAddress(address)).ok().map(u64::from_le)
    }

    fn write(&self, address: u64, value: u64) -> bool {
        self.0.write_obj(value.to_le(), GuestAddress(address)).is_ok()
    }
}
