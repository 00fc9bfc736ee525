// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function's configuration space.

mod bar;
mod capability;
pub(crate) mod express;
pub(crate) mod header;

use std::ops::Range;

pub use self::bar::BarKind;
pub use self::capability::Capability;
pub use self::express::ExpressKind;

use self::bar::Bar;
pub(crate) use self::capability::id;
use self::header::{
    CACHE_LINE_SIZE, CAPABILITIES, COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_IO,
    COMMAND_MEMORY, COMMAND_OTHERS, EXTENDED, FIRST_CAPABILITY, HEADER_TYPE, INTERRUPT_LINE, INTERRUPT_PIN,
    REVISION_ID, STANDARD, STATUS_CAPABILITIES, STATUS_ERRORS, STATUS_INTX, SUBSYSTEM_VENDOR_ID, VENDOR_ID,
};
use crate::registers::Registers;
use crate::{BarIndex, ConfigError, ConfigWrite, DecodedBar, Space};

/// What kind of thing a function is (PCI Code and ID Assignment Specification, section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ClassCode {
    /// Base class: 0x01 for mass storage, 0x02 for network, …
    pub base: u8,
    /// Sub-class.
    pub sub: u8,
    /// Programming interface.
    pub interface: u8,
}

/// The numbers by which a driver knows a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code.
    pub class: ClassCode,
    /// Subsystem vendor ID. A bridge has none here.
    pub subsystem_vendor: u16,
    /// Subsystem ID. A bridge has none here.
    pub subsystem: u16,
}

/// One of the four interrupt lines of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum IntxPin {
    /// INTA: what a function that uses one takes.
    A = 1,
    /// INTB.
    B = 2,
    /// INTC.
    C = 3,
    /// INTD.
    D = 4,
}

impl IntxPin {
    /// All four.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// From 0 for INTA to 3 for INTD.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// The pin that this one of device `device` is at the bridge above (PCI Express base specification 6.0, table 2-20).
    #[must_use]
    pub const fn swizzled(self, device: u8) -> Self {
        Self::ALL[(self.index() + device as usize) % 4]
    }
}

/// The type of a configuration header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// Type 0: everything that is no bridge.
    Function,
    /// Type 1.
    Bridge,
}

/// The 4096 bytes of configuration space of one function: each bit read-only, writable, or cleared by a one; BARs that can be sized and
/// moved; lists of capabilities (PCI Express base specification 6.0, section 7.5).
///
/// It is made by adding to it, then read and written as software does. It is a value: whoever shares it locks it. [`Endpoint`](crate::Endpoint)
/// does, and joins it with MSI and MSI-X.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    registers: Registers,
    bars: Vec<Bar>,
    /// Where the next capability may begin.
    free: u16,
    /// The byte that will point to it.
    link: u16,
    /// Where the last extended capability begins, and where the next one may.
    last_extended: Option<u16>,
    free_extended: u16,
    /// The PCI Express and the power management capability, if there are any.
    express: Option<u16>,
    power: Option<u16>,
}

impl ConfigSpace {
    /// A function with a type-0 header and nothing in it but its identity.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut space = Self::with_header(Header::Function, identity);
        let subsystem = [identity.subsystem_vendor.to_le_bytes(), identity.subsystem.to_le_bytes()];
        space.registers.define(SUBSYSTEM_VENDOR_ID, subsystem.as_flattened(), &[], &[]);
        space
    }

    pub(crate) fn with_header(header: Header, identity: Identity) -> Self {
        let mut registers = Registers::default();
        let ids = [identity.vendor.to_le_bytes(), identity.device.to_le_bytes()];
        registers.define(VENDOR_ID, ids.as_flattened(), &[], &[]);
        let command = COMMAND_BUS_MASTER | COMMAND_OTHERS;
        registers.define(COMMAND, &[0; 4], &command.to_le_bytes(), &STATUS_ERRORS.to_le_bytes());
        let ClassCode { base, sub, interface } = identity.class;
        registers.define(REVISION_ID, &[identity.revision, interface, sub, base], &[], &[]);
        // Writable for compatibility's sake, without effect (section 7.5.1.1.7).
        registers.define(CACHE_LINE_SIZE, &[0], &[0xff], &[]);
        registers.define(HEADER_TYPE, &[u8::from(header == Header::Bridge)], &[], &[]);
        registers.define(INTERRUPT_LINE, &[0, 0], &[0xff], &[]);
        Self {
            registers,
            bars: Vec::new(),
            free: FIRST_CAPABILITY,
            link: CAPABILITIES,
            last_extended: None,
            free_extended: STANDARD,
            express: None,
            power: None,
        }
    }

    // Putting it together.

    /// Adds a BAR of `size` bytes, a power of two.
    ///
    /// # Errors
    /// [`ConfigError::BarSize`], [`ConfigError::BarPlace`], [`ConfigError::BarTaken`].
    pub fn add_bar(&mut self, index: BarIndex, kind: BarKind, size: u64) -> Result<(), ConfigError> {
        let bar = Bar::new(index, kind, size)?;
        for other in &self.bars {
            if let Some(taken) = bar.indices().find(|taken| other.indices().contains(taken)) {
                return Err(ConfigError::BarTaken(BarIndex::new(taken)?));
            }
        }
        bar.define(&mut self.registers);
        // A function that decodes nothing of a space need not have its enable bit.
        let enable = match kind.space() {
            Space::Io => COMMAND_IO,
            Space::Memory => COMMAND_MEMORY,
        };
        self.registers.allow(COMMAND, enable);
        self.bars.push(bar);
        self.bars.sort_unstable_by_key(|bar| bar.index);
        Ok(())
    }

    /// The function uses this interrupt line.
    pub fn set_interrupt_pin(&mut self, pin: IntxPin) {
        self.registers.define(INTERRUPT_PIN, &[pin as u8], &[], &[]);
    }

    /// Adds a capability at the end of its list, the standard or the extended one. Returns where it begins.
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`].
    pub fn add_capability(&mut self, capability: &Capability) -> Result<u16, ConfigError> {
        match capability.version {
            None => self.add_standard(capability),
            Some(version) => self.add_extended(capability, version),
        }
    }

    /// The dword-aligned place for `capability` in `free..end`, and where the next one may begin.
    fn place(capability: &Capability, free: u16, end: u16) -> Result<(u16, u16), ConfigError> {
        let left = end - free;
        u16::try_from(capability.len())
            .ok()
            .filter(|&length| length <= left)
            .map(|length| (free, (free + length).next_multiple_of(4)))
            .ok_or(ConfigError::NoRoom {
                id: capability.id,
                length: capability.len(),
                left: usize::from(left),
            })
    }

    #[allow(clippy::cast_possible_truncation, reason = "a standard capability's ID and place have 8 bits")]
    fn add_standard(&mut self, capability: &Capability) -> Result<u16, ConfigError> {
        let (at, free) = Self::place(capability, self.free, STANDARD)?;
        let mut bytes = capability.bytes.clone();
        bytes[0] = capability.id as u8;
        self.registers.define(at, &bytes, &capability.writable, &capability.clear);
        self.registers.define(self.link, &[at as u8], &[], &[]);
        self.link = at + 1;
        self.free = free;
        let status = self.registers.word(COMMAND + 2) | (STATUS_CAPABILITIES >> 16) as u16;
        let clear = (STATUS_ERRORS >> 16) as u16;
        self.registers.define(COMMAND + 2, &status.to_le_bytes(), &[], &clear.to_le_bytes());
        match bytes[0] {
            id::EXPRESS => self.express = Some(at),
            id::POWER_MANAGEMENT => self.power = Some(at),
            _ => {}
        }
        Ok(at)
    }

    fn add_extended(&mut self, capability: &Capability, version: u8) -> Result<u16, ConfigError> {
        let (at, free) = Self::place(capability, self.free_extended, EXTENDED)?;
        let header = u32::from(capability.id) | u32::from(version) << 16;
        let mut bytes = capability.bytes.clone();
        bytes[..4].copy_from_slice(&header.to_le_bytes());
        self.registers.define(at, &bytes, &capability.writable, &capability.clear);
        if let Some(last) = self.last_extended {
            let header = self.registers.dword(last) & 0xf_ffff | u32::from(at) << 20;
            self.registers.define(last, &header.to_le_bytes(), &[], &[]);
        }
        self.last_extended = Some(at);
        self.free_extended = free;
        Ok(at)
    }

    // Software's side.

    /// Software reads: any bytes, `offset` below 4096.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        self.registers.read(offset, data);
    }

    /// Software writes 1, 2 or 4 bytes that do not cross a 4-byte boundary; those beyond one are lost.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> ConfigWrite {
        let mut write = self.registers.write(offset, data);
        if let Some(power) = self.power
            && write.register == power + 4
        {
            // A state that the function does not have is not taken (section 7.5.2.2).
            const STATE: u32 = 3;
            if matches!(write.after & STATE, 1 | 2) {
                self.registers.set_bits(power + 4, STATE, write.before);
                write.after = self.registers.dword(power + 4);
            }
        }
        write
    }

    /// Whether this write asked for a function level reset. The function does it, [`reset`](Self::reset) included.
    #[must_use]
    pub fn asks_for_reset(&self, write: &ConfigWrite) -> bool {
        let control = |at| write.wrote_bit(at + express::DEVICE_CONTROL, express::INITIATE_RESET);
        self.express.is_some_and(|at| {
            const FLR: u32 = 1 << 28;
            self.registers.dword(at + express::DEVICE_CAPABILITIES) & FLR != 0 && control(at) == Some(true)
        })
    }

    // The function's side.

    /// The BARs that decode: their space is enabled, the function is in D0, and they have an address other than zero.
    #[must_use]
    pub fn decoded(&self) -> Vec<DecodedBar> {
        let command = self.registers.dword(COMMAND);
        if self.power_state() != 0 || command & (COMMAND_IO | COMMAND_MEMORY) == 0 {
            return Vec::new();
        }
        let decodes = |bar: &&Bar| {
            let enable = match bar.kind.space() {
                Space::Io => COMMAND_IO,
                Space::Memory => COMMAND_MEMORY,
            };
            command & enable != 0 && bar.is_enabled(&self.registers)
        };
        self.bars
            .iter()
            .filter(decodes)
            .map(|bar| DecodedBar {
                bar: bar.index,
                space: bar.kind.space(),
                base: bar.address(&self.registers),
                size: bar.size,
            })
            .filter(|bar| bar.base != 0)
            .collect()
    }

    /// The device power state: 0 for D0, 3 for D3hot.
    #[must_use]
    pub fn power_state(&self) -> u8 {
        self.power.map_or(0, |at| self.registers.byte(at + 4) & 3)
    }

    /// Whether the function may send requests: DMA, and messages that are interrupts.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.registers.dword(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// Whether software forbids INTx.
    #[must_use]
    pub fn intx_disabled(&self) -> bool {
        self.registers.dword(COMMAND) & COMMAND_INTX_DISABLE != 0
    }

    /// Whether the function wants to interrupt by INTx: the interrupt status bit, which says so whether INTx is disabled or not.
    pub fn set_intx_status(&mut self, pending: bool) {
        self.registers.set_bits(COMMAND, STATUS_INTX, if pending { STATUS_INTX } else { 0 });
    }

    /// The level of the function's line: pending and not disabled.
    #[must_use]
    pub fn intx_level(&self) -> bool {
        self.registers.dword(COMMAND) & STATUS_INTX != 0 && !self.intx_disabled()
    }

    /// The function itself changes bytes, read-only or not; for status fields, and capabilities with a meaning of their own. What the space does not have
    /// stays away. A [reset](Self::reset) undoes it.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        for (byte, at) in data.iter().zip(offset..EXTENDED) {
            let shift = 8 * (at % 4);
            if self.registers.is_defined(at) {
                self.registers.set_bits(at, 0xff << shift, u32::from(*byte) << shift);
            }
        }
    }

    /// The bytes of a range, for looking at.
    #[must_use]
    pub fn bytes(&self, range: Range<u16>) -> Vec<u8> {
        range.map(|at| self.registers.byte(at)).collect()
    }

    /// As after a reset: all that software has written is gone, and all that the function has [set](Self::set).
    pub fn reset(&mut self) {
        self.registers.reset();
    }

    pub(crate) fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }
}
