// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space of a passed-through function: which bytes are the device's and which are the guest's.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::pci::{ConfigSpace, DecodedBar, Identity, IntxPin};

use super::bars::Bar;
use super::capabilities::{self, id};
use crate::Error;
use crate::device::Device;
use crate::info::RegionInfo;

// The type-0 header (PCI Express base specification 6.0, section 7.5.1).
const COMMAND: u16 = 0x04;
const HEADER_TYPE: u16 = 0x0e;
const BARS: std::ops::Range<u16> = 0x10..0x28;
const ROM: u16 = 0x30;
const INTERRUPT: u16 = 0x3c;
const MULTIFUNCTION: u8 = 1 << 7;

// The command register.
const COMMAND_IO: u16 = 1;
const COMMAND_MEMORY: u16 = 2;
const COMMAND_MASTER: u16 = 4;
/// What the guest decides for the device: bus master, parity, SERR, fast back-to-back, INTx disable. Memory and I/O stay enabled for the
/// device whatever the guest says; what the guest says decides whether its BARs are anywhere.
const COMMAND_GUEST: u16 = COMMAND_MASTER | 0x40 | 0x100 | 0x200 | 0x400;

/// Power management control and status, from the capability's start; its two lowest bits are the state.
const POWER_CONTROL: u16 = 4;
const POWER_STATE: u8 = 3;

// The PCI Express capability.
const EXPRESS_FLAGS: u16 = 2;
const EXPRESS_DEVICE_CAPABILITIES: u16 = 4;
const EXPRESS_FLR: u32 = 1 << 28;
const EXPRESS_DEVICE_CONTROL: u16 = 8;
/// Bit 15 of device control, in its upper byte.
const EXPRESS_INITIATE_RESET: u8 = 1 << 7;
const EXPRESS_LINK: std::ops::Range<u16> = 0x0c..0x14;
const EXPRESS_LINK_2: std::ops::Range<u16> = 0x2c..0x34;
const EXPRESS_TYPE: u8 = 0xf0;
const EXPRESS_ENDPOINTS: [u8; 2] = [0x00, 0x10];
const EXPRESS_INTEGRATED: u8 = 0x90;

// The advanced features of a conventional device, which have a function level reset for it (PCI-SIG, "Advanced Capabilities for Conventional PCI" ECN).
const ADVANCED_CAPABILITIES: u16 = 3;
const ADVANCED_FLR: u8 = 1 << 1;
const ADVANCED_CONTROL: u16 = 4;
const ADVANCED_INITIATE_RESET: u8 = 1;

/// A capability that is answered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emulated {
    Msi,
    Msix,
}

/// What a write does beyond changing a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consequence {
    None,
    /// It goes to a capability, so many bytes from its start.
    Emulated(Emulated, u16),
    /// The device stops answering.
    SwitchesOff,
    /// A function level reset.
    Resets,
}

/// What the machine decides about a function's configuration space.
pub(crate) struct Choices {
    pub(crate) on_root_bus: bool,
    pub(crate) dma: bool,
    pub(crate) pin: Option<IntxPin>,
    /// Where the capability is, and how many bytes it has.
    pub(crate) msi: Option<(u16, u16)>,
    pub(crate) msix: Option<(u16, u16)>,
}

/// A function's configuration space.
pub(crate) struct Config {
    region: RegionInfo,
    /// Command, BARs and interrupt line: the guest's.
    header: Mutex<ConfigSpace>,
    /// Bytes that read otherwise than the device has them, and cannot be written.
    shown: Vec<(u16, u8)>,
    msi: Option<(u16, u16)>,
    msix: Option<(u16, u16)>,
    /// Where a byte is that resets the function, and the bit of it that does.
    resets: Vec<(u16, u8)>,
    power: Option<u16>,
    /// The power state that the guest has put it into.
    power_state: AtomicU8,
    dma: bool,
}

/// All of the device's configuration space, as it is.
pub(crate) fn snapshot(device: &Device, region: &RegionInfo) -> Result<Vec<u8>, Error> {
    let size = usize::try_from(region.size).unwrap_or(0).min(4096);
    if size < 64 {
        return Err(Error::Description {
            name: device.name().to_owned(),
            what: format!("{size} bytes of configuration space"),
        });
    }
    let mut bytes = vec![0; size];
    device
        .read(region, 0, &mut bytes)
        .map_err(|e| Error::kernel("read the configuration space of", device.name(), e))?;
    Ok(bytes)
}

pub(crate) fn dword(bytes: &[u8], at: u16) -> u32 {
    let at = usize::from(at);
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

impl Config {
    pub(crate) fn new(
        device: &Device,
        region: RegionInfo,
        snapshot: Vec<u8>,
        bars: &[Bar],
        choices: &Choices,
    ) -> Result<Self, String> {
        let byte = |at: u16| snapshot.get(usize::from(at)).copied().unwrap_or(0);
        if byte(HEADER_TYPE) & !MULTIFUNCTION != 0 {
            return Err("it is a bridge".to_owned());
        }
        // What it is by name and class is read from the device.
        let mut header = ConfigSpace::new(Identity::default());
        for bar in bars {
            header
                .add_bar(bar.index, bar.kind, bar.size)
                .map_err(|e| format!("BAR {} of {}: {e}", bar.index.get(), device.name()))?;
        }
        if let Some(pin) = choices.pin {
            header.set_interrupt_pin(pin);
        }

        let standard = capabilities::standard(&snapshot);
        let find = |wanted| standard.iter().find(|(id, _)| *id == wanted).map(|&(_, at)| at);
        let mut shown = Vec::new();
        let express = find(id::EXPRESS);
        if let Some(at) = express.filter(|_| choices.on_root_bus) {
            let flags = byte(at + EXPRESS_FLAGS);
            if EXPRESS_ENDPOINTS.contains(&(flags & EXPRESS_TYPE)) {
                shown.push((at + EXPRESS_FLAGS, flags & !EXPRESS_TYPE | EXPRESS_INTEGRATED));
                shown.extend(EXPRESS_LINK.chain(EXPRESS_LINK_2).map(|offset| (at + offset, 0)));
            }
        }
        for (at, value) in capabilities::rewritten(&snapshot) {
            shown.extend((at..).zip(value.to_le_bytes()));
        }
        // Whether there are other functions in the slot is for the guest's bus to say.
        shown.push((HEADER_TYPE, byte(HEADER_TYPE) & !MULTIFUNCTION));
        let mut resets = Vec::new();
        if let Some(at) =
            express.filter(|at| dword(&snapshot, at + EXPRESS_DEVICE_CAPABILITIES) & EXPRESS_FLR != 0)
        {
            resets.push((at + EXPRESS_DEVICE_CONTROL + 1, EXPRESS_INITIATE_RESET));
        }
        if let Some(at) =
            find(id::ADVANCED_FEATURES).filter(|at| byte(at + ADVANCED_CAPABILITIES) & ADVANCED_FLR != 0)
        {
            resets.push((at + ADVANCED_CONTROL, ADVANCED_INITIATE_RESET));
        }
        Ok(Self {
            region,
            header: Mutex::new(header),
            shown,
            msi: choices.msi,
            msix: choices.msix,
            resets,
            power: find(id::POWER_MANAGEMENT),
            power_state: AtomicU8::new(0),
            dma: choices.dma,
        })
    }

    fn header(&self) -> MutexGuard<'_, ConfigSpace> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is emulated at this place: which capability, and how far from its start.
    fn emulated(&self, offset: u16) -> Option<(Emulated, u16)> {
        let within = |capability: Option<(u16, u16)>| {
            let (start, length) = capability?;
            // Capabilities are dword-aligned, and what is left of the last dword is nobody's.
            (start..start + length.next_multiple_of(4)).contains(&offset).then(|| offset - start)
        };
        within(self.msi)
            .map(|at| (Emulated::Msi, at))
            .or_else(|| within(self.msix).map(|at| (Emulated::Msix, at)))
    }

    /// Whether the dword at this place is the guest's.
    fn is_header(offset: u16) -> bool {
        BARS.contains(&offset)
            || (ROM..ROM + 4).contains(&offset)
            || (INTERRUPT..INTERRUPT + 4).contains(&offset)
    }

    /// A read of 1, 2 or 4 bytes within a dword. `capability` reads from what is emulated.
    pub(crate) fn read(
        &self,
        device: &Device,
        offset: u16,
        data: &mut [u8],
        capability: impl FnOnce(Emulated, u16, &mut [u8]),
    ) {
        if Self::is_header(offset) {
            return self.header().read(offset, data);
        }
        if u64::from(offset) + data.len() as u64 > self.region.size {
            // A conventional device has 256 bytes; beyond, an extended capability list that is empty.
            return data.fill(0);
        }
        device.load(&self.region, offset.into(), data);
        if let Some((emulated, relative)) = self.emulated(offset) {
            let mut answer = data.to_vec();
            capability(emulated, relative, &mut answer);
            // ID and next pointer stay the device's.
            for ((byte, answer), at) in data.iter_mut().zip(answer).zip(relative..) {
                if at >= 2 {
                    *byte = answer;
                }
            }
        }
        if offset & !3 == COMMAND {
            // The lower half is the guest's, the upper, the status register, the device's.
            let mut command = vec![0; data.len()];
            self.header().read(offset, &mut command);
            for ((byte, command), at) in data.iter_mut().zip(command).zip(offset..) {
                if at < COMMAND + 2 {
                    *byte = command;
                }
            }
        }
        for (byte, at) in data.iter_mut().zip(offset..) {
            if let Some(&(_, value)) = self.shown.iter().find(|(shown, _)| *shown == at) {
                *byte = value;
            }
        }
    }

    /// What a write is about to do.
    pub(crate) fn classify(&self, offset: u16, data: &[u8]) -> Consequence {
        if let Some((emulated, relative)) = self.emulated(offset) {
            return Consequence::Emulated(emulated, relative);
        }
        let byte = |at: u16| at.checked_sub(offset).and_then(|i| data.get(usize::from(i)).copied());
        if let Some(at) = self.power
            && byte(at + POWER_CONTROL).is_some_and(|value| value & POWER_STATE != 0)
        {
            return Consequence::SwitchesOff;
        }
        if self.resets.iter().any(|&(at, bit)| byte(at).is_some_and(|value| value & bit != 0)) {
            return Consequence::Resets;
        }
        Consequence::None
    }

    /// A write of 1, 2 or 4 bytes within a dword.
    pub(crate) fn write(&self, device: &Device, offset: u16, data: &[u8]) {
        if Self::is_header(offset) {
            self.header().write(offset, data);
            return;
        }
        if u64::from(offset) + data.len() as u64 > self.region.size {
            return;
        }
        if offset & !3 == COMMAND {
            return self.write_command(device, offset, data);
        }
        self.write_through(device, offset, data);
        if let Some(at) = self.power
            && (offset..offset + 4).contains(&(at + POWER_CONTROL))
        {
            // What the device has made of it: it need not have the state.
            let mut control = [0];
            device.load(&self.region, (at + POWER_CONTROL).into(), &mut control);
            self.power_state.store(control[0] & POWER_STATE, Ordering::Release);
        }
    }

    /// To the device, but for the bytes that are shown otherwise.
    pub(crate) fn write_through(&self, device: &Device, offset: u16, data: &[u8]) {
        let read_only = |at: u16| self.shown.iter().any(|(shown, _)| *shown == at);
        if (offset..).zip(data).any(|(at, _)| read_only(at)) {
            for (at, byte) in (offset..).zip(data).filter(|(at, _)| !read_only(*at)) {
                device.store(&self.region, at.into(), &[*byte]);
            }
        } else {
            device.store(&self.region, offset.into(), data);
        }
    }

    fn write_command(&self, device: &Device, offset: u16, data: &[u8]) {
        // Held while the device is told, so that two writes reach it in the order in which the guest reads them.
        let mut header = self.header();
        let status = |at: u16| at >= COMMAND + 2;
        let command: Vec<u8> =
            (offset..).zip(data).filter(|(at, _)| !status(*at)).map(|(_, byte)| *byte).collect();
        if !command.is_empty() {
            header.write(offset, &command);
            let value = self.command(&header);
            device.store(&self.region, COMMAND.into(), &value.to_le_bytes());
        }
        // The status register's error bits are cleared by writing ones.
        for (at, byte) in (offset..).zip(data).filter(|(at, _)| status(*at)) {
            device.store(&self.region, at.into(), &[*byte]);
        }
    }

    /// What the device's command register is to be.
    fn command(&self, header: &ConfigSpace) -> u16 {
        let mut bytes = [0; 2];
        header.read(COMMAND, &mut bytes);
        let allowed = if self.dma { COMMAND_GUEST } else { COMMAND_GUEST & !COMMAND_MASTER };
        u16::from_le_bytes(bytes) & allowed | COMMAND_IO | COMMAND_MEMORY
    }

    /// Makes the device answer: memory and I/O enabled, and nothing else that the guest has not asked for.
    pub(crate) fn prepare(&self, device: &Device) -> Result<(), Error> {
        let value = self.command(&self.header());
        device
            .write(&self.region, COMMAND.into(), &value.to_le_bytes())
            .map_err(|e| Error::kernel("switch on", device.name(), e))
    }

    /// The guest's part of it is as at the start.
    pub(crate) fn reset(&self) {
        self.header().reset();
        self.power_state.store(0, Ordering::Release);
    }

    /// The BARs that decode.
    pub(crate) fn decoded(&self) -> Vec<DecodedBar> {
        if self.power_state.load(Ordering::Acquire) == 0 { self.header().decoded() } else { Vec::new() }
    }
}
