// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space of a root port: a type-1 header (PCI Express base specification 6.0, section 7.5.1.3), and the capabilities that a driver looks for.

use std::ops::RangeInclusive;

use crate::config::express::{
    Block, DEVICE_CAPABILITIES_2, DEVICE_CONTROL_2, FLAGS, LINK_CAPABILITIES, LINK_CAPABILITIES_2,
    LINK_CONTROL, LINK_CONTROL_2, ROOT_CONTROL, SLOT_CAPABILITIES, SLOT_CONTROL, VERSION,
};
use crate::config::header::{
    BRIDGE_CONTROL, COMMAND, COMMAND_IO, COMMAND_MEMORY, IO_BASE, IO_BASE_HIGH, MEMORY_BASE,
    PREFETCHABLE_BASE, PREFETCHABLE_BASE_HIGH, PREFETCHABLE_LIMIT_HIGH, PRIMARY_BUS,
};
use crate::config::{ClassCode, Header};
use crate::registers::Registers;
use crate::{Capability, ConfigError, ConfigSpace, DecodedBar, Identity, PortConfig, RootPort, Space};

/// PCI-to-PCI bridge.
const CLASS: ClassCode = ClassCode { base: 0x06, sub: 0x04, interface: 0x00 };

/// Bridge control: parity error response, SERR# enable.
const BRIDGE_ERRORS: u16 = 3;
/// Bridge control: secondary bus reset.
pub(crate) const BRIDGE_RESET: u16 = 1 << 6;

/// Link speed 4 is 16 GT/s; 16 lanes.
const LINK: u16 = 4 | 16 << 4;
/// Link capabilities: the port says in link status whether the data link layer is active.
const LINK_ACTIVE_REPORTING: u32 = 1 << 20;
/// Link capabilities 2: the supported speeds, 2.5 to 16 GT/s.
const SPEEDS: u32 = 0xf << 1;
/// Link control: link disable.
pub(crate) const LINK_DISABLE: u16 = 1 << 4;
/// Link control: ASPM, link disable, common clock, extended synch.
const LINK_CONTROL_WRITABLE: u16 = 0x03 | LINK_DISABLE | 1 << 6 | 1 << 7;
/// Link status, when the link is up: speed, width, data link layer active.
pub(crate) const LINK_UP: u16 = LINK | 1 << 13;

/// Slot capabilities: attention button, power controller, attention and power indicator, hot-plug capable. Not: latch, surprise, interlock.
const SLOT_PRESENT: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6;
const SLOT_NUMBER_SHIFT: u32 = 19;
/// Slot control: event enables, both indicators, power; and link state change enable.
const SLOT_CONTROL_WRITABLE: u16 = 0x17ff & !(1 << 2);

/// Device capabilities 2 and device control 2: ARI forwarding.
const ARI_FORWARDING: u16 = 1 << 5;
/// Root control: which errors become system errors, and PME interrupt enable.
const ROOT_CONTROL_WRITABLE: u16 = 0xf;

/// Where the capabilities are that the port looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) express: u16,
    pub(crate) aer: u16,
}

pub(crate) fn config_space(config: &PortConfig) -> Result<(ConfigSpace, Places), ConfigError> {
    let PortConfig { vendor, device, slot, .. } = *config;
    let identity = Identity { vendor, device, class: CLASS, ..Identity::default() };
    let mut space = ConfigSpace::with_header(Header::Bridge, identity);
    let registers = space.registers_mut();
    registers.allow(COMMAND, COMMAND_MEMORY);
    registers.define(PRIMARY_BUS, &[0; 3], &[0xff; 3], &[]);
    let mut io = [0; 4];
    let mut io_writable = [0; 4];
    if config.io {
        // Ports have 32-bit addresses.
        registers.allow(COMMAND, COMMAND_IO);
        io[..2].fill(1);
        io_writable[..2].fill(0xf0);
        registers.define(IO_BASE_HIGH, &[0; 4], &[0xff; 4], &[]);
    }
    // With the secondary status, whose errors never happen.
    registers.define(IO_BASE, &io, &io_writable, &[]);
    let window = [0xf0, 0xff, 0xf0, 0xff];
    registers.define(MEMORY_BASE, &[0; 4], &window, &[]);
    // Prefetchable memory has 64-bit addresses.
    registers.define(PREFETCHABLE_BASE, &[1, 0, 1, 0], &window, &[]);
    registers.define(PREFETCHABLE_BASE_HIGH, &[0; 4], &[0xff; 4], &[]);
    registers.define(PREFETCHABLE_LIMIT_HIGH, &[0; 4], &[0xff; 4], &[]);
    registers.define(BRIDGE_CONTROL, &[0; 2], &(BRIDGE_ERRORS | BRIDGE_RESET).to_le_bytes(), &[]);
    space.set_interrupt_pin(RootPort::PIN);

    let express = space.add_capability(&express(slot))?;
    space.add_capability(&Capability::power_management())?;
    let aer = space.add_capability(&super::aer::capability())?;
    space.add_capability(&access_control())?;
    Ok((space, Places { express, aer }))
}

fn express(slot: Option<u16>) -> Capability {
    const ROOT_PORT: u16 = 4 << 4;
    const SLOT_IMPLEMENTED: u16 = 1 << 8;
    let implemented = if slot.is_some() { SLOT_IMPLEMENTED } else { 0 };
    let block = Block::new()
        .word(FLAGS, VERSION | ROOT_PORT | implemented, 0)
        .device(0)
        .dword(LINK_CAPABILITIES, u32::from(LINK) | LINK_ACTIVE_REPORTING)
        .word(LINK_CONTROL, 0, LINK_CONTROL_WRITABLE)
        .word(ROOT_CONTROL, 0, ROOT_CONTROL_WRITABLE)
        .dword(DEVICE_CAPABILITIES_2, ARI_FORWARDING.into())
        .word(DEVICE_CONTROL_2, 0, ARI_FORWARDING)
        .dword(LINK_CAPABILITIES_2, SPEEDS)
        .word(LINK_CONTROL_2, 4, 0);
    match slot {
        // What is behind a port without a slot is always there.
        None => block.word(SLOT_CONTROL + 2, super::slot::PRESENT, 0),
        Some(number) => block
            .dword(SLOT_CAPABILITIES, SLOT_PRESENT | u32::from(number & 0x1fff) << SLOT_NUMBER_SHIFT)
            .word(SLOT_CONTROL, super::slot::CONTROL_DEFAULT, SLOT_CONTROL_WRITABLE)
            .clear(SLOT_CONTROL + 2, super::slot::EVENTS),
    }
    .finish()
}

/// Access control services (section 7.7.11): no peer-to-peer request passes the port, which is true, since there is no wire for one.
fn access_control() -> Capability {
    /// Source validation, translation blocking, request and completion redirect, upstream forwarding.
    const SERVICES: u8 = 0x1f;
    Capability::extended(0x000d, 1, &[SERVICES, 0, 0, 0]).writable(6..7, SERVICES)
}

/// What a port forwards to the bus behind it, as its registers say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Forwarding {
    /// The secondary bus; `None` while requests reach no bus behind the port.
    pub(crate) bus: Option<u8>,
    /// All 256 functions are device 0's.
    pub(crate) ari: bool,
    memory: Option<RangeInclusive<u64>>,
    prefetchable: Option<RangeInclusive<u64>>,
    io: Option<RangeInclusive<u64>>,
}

impl Forwarding {
    /// As the registers have it, if the link is up.
    pub(crate) fn of(registers: &Registers, express: u16) -> Self {
        if registers.word(BRIDGE_CONTROL) & BRIDGE_RESET != 0 {
            return Self::default();
        }
        let (secondary, subordinate) = (registers.byte(PRIMARY_BUS + 1), registers.byte(PRIMARY_BUS + 2));
        // Bus 0 is the root bus. A range that ends before it begins holds no bus.
        let bus = (secondary != 0 && secondary <= subordinate).then_some(secondary);
        let command = registers.dword(COMMAND);
        let high = |at| u64::from(registers.dword(at)) << 32;
        let window =
            |base: u64, limit: u64, granule: u64| (base <= limit).then(|| base..=limit + granule - 1);
        let memory = |at: u16, base_high: u64, limit_high: u64| {
            let part = |at| u64::from(registers.word(at) & 0xfff0) << 16;
            window(base_high | part(at), limit_high | part(at + 2), 1 << 20)
        };
        let io = || {
            let part =
                |at, high| u64::from(registers.byte(at) & 0xf0) << 8 | u64::from(registers.word(high)) << 16;
            window(part(IO_BASE, IO_BASE_HIGH), part(IO_BASE + 1, IO_BASE_HIGH + 2), 1 << 12)
        };
        let (memory_on, io_on) = (command & COMMAND_MEMORY != 0, command & COMMAND_IO != 0);
        let (base_high, limit_high) = (high(PREFETCHABLE_BASE_HIGH), high(PREFETCHABLE_LIMIT_HIGH));
        Self {
            bus,
            ari: registers.word(express + DEVICE_CONTROL_2) & ARI_FORWARDING != 0,
            memory: memory_on.then(|| memory(MEMORY_BASE, 0, 0)).flatten(),
            prefetchable: memory_on.then(|| memory(PREFETCHABLE_BASE, base_high, limit_high)).flatten(),
            io: io_on.then(io).flatten(),
        }
    }

    /// Whether requests to all addresses of a BAR get through.
    pub(crate) fn passes(&self, bar: &DecodedBar) -> bool {
        let Some(last) = bar.base.checked_add(bar.size - 1) else { return false };
        let through = |window: &Option<RangeInclusive<u64>>| {
            window.as_ref().is_some_and(|window| window.contains(&bar.base) && window.contains(&last))
        };
        match bar.space {
            Space::Memory => through(&self.memory) || through(&self.prefetchable),
            Space::Io => through(&self.io),
        }
    }
}
