// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What firmware does: numbers the buses, finds out what BARs there are, and gives them addresses.
//!
//! It uses configuration cycles and nothing else, so it works for any function, passed through or emulated. Largest first, each at a
//! multiple of its size: since sizes are powers of two, nothing is wasted between them.

use irq_types::Bdf;

use super::{HostBridge, Region};
use crate::config::header::{
    BAR_0, BAR_64, BAR_IO, BAR_PREFETCHABLE, COMMAND, COMMAND_BUS_MASTER, COMMAND_IO, COMMAND_MEMORY,
    IO_BASE, IO_BASE_HIGH, MEMORY_BASE, PREFETCHABLE_BASE, PREFETCHABLE_BASE_HIGH, PREFETCHABLE_LIMIT_HIGH,
    PRIMARY_BUS, ROM_BAR, ROM_ENABLE,
};
use crate::lock::lock;
use crate::{BarIndex, Space};

/// A BAR for which there was no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unassigned {
    /// The function.
    pub bdf: Bdf,
    /// Which of its BARs.
    pub bar: BarIndex,
    /// What it decodes.
    pub space: Space,
    /// How many bytes it needs.
    pub size: u64,
}

/// A kind of window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pool {
    /// Memory below 4 GiB.
    Low,
    /// Memory above 4 GiB; behind a port, prefetchable.
    High,
    Io,
}

/// What needs addresses: a BAR, or a window of a port with what is behind it.
#[derive(Debug)]
enum Need {
    Bar { bdf: Bdf, register: u16, wide: bool, size: u64, bar: BarIndex, pool: Pool },
    Window { port: Bdf, pool: Pool, size: u64, align: u64, inside: Vec<Need> },
}

/// Windows of ports are that large at least, and multiples of it.
const MEMORY_GRANULE: u64 = 1 << 20;
const IO_GRANULE: u64 = 1 << 12;
/// What a port gets for a device that is plugged in later, at least. Linux makes its own choice (`pci=hpmmiosize=`); this is for guests that make none.
const SPARE: u64 = 2 << 20;
/// Ports below this are never given out: zero means "none" to software, and the first ones mean "legacy" to some.
const FIRST_PORT: u64 = 0x1000;

/// Hands out addresses from one range upwards.
struct Cursor {
    next: u64,
    end: u64,
}

impl Cursor {
    fn take(&mut self, size: u64, align: u64) -> Option<u64> {
        let base = self.next.checked_next_multiple_of(align)?;
        let end = base.checked_add(size).filter(|&end| end <= self.end)?;
        self.next = end;
        Some(base)
    }
}

impl Need {
    const fn size(&self) -> u64 {
        match self {
            Self::Bar { size, .. } | Self::Window { size, .. } => *size,
        }
    }

    const fn align(&self) -> u64 {
        match self {
            Self::Bar { size, .. } => *size,
            Self::Window { align, .. } => *align,
        }
    }

    const fn pool(&self) -> Pool {
        match self {
            Self::Bar { pool, .. } | Self::Window { pool, .. } => *pool,
        }
    }
}

impl HostBridge {
    /// Does what firmware would: numbers the buses behind ports, gives each BAR an address, and opens the ports' windows. Functions do not decode yet: their drivers
    /// enable that. Returns the BARs for which there was no room; they have no address.
    ///
    /// Once, when all that is there at the start has been put on the bus, and before the guest runs. A guest that assigns by itself, as Linux does unless it
    /// is told `linux,pci-probe-only`, may do it all over; one that does not finds everything in place. From now on the guest is taken to be
    /// looking: a device that is plugged in is announced.
    pub fn assign(&self) -> Vec<Unassigned> {
        let ports = self.number_buses();
        let is_port = |bdf: &Bdf| lock(&self.topology).ports.contains_key(bdf);
        let mut needs = Vec::new();
        for (port, bus) in &ports {
            needs.extend(self.needs_of_port(*port, *bus));
        }
        for (bdf, _) in self.functions().into_iter().filter(|(bdf, _)| bdf.bus() == 0 && !is_port(bdf)) {
            needs.extend(self.needs_of(bdf, false));
        }
        let mut unassigned = Vec::new();
        for (region, range) in self.regions.clone() {
            let (pool, start, end) = match region {
                Region::Ecam => continue,
                Region::Memory32 => (Pool::Low, range.start, range.end),
                Region::Memory64 => (Pool::High, range.start, range.end),
                Region::Io => (Pool::Io, FIRST_PORT, range.end - range.start),
            };
            let (here, rest) = needs.into_iter().partition(|need: &Need| need.pool() == pool);
            self.give(here, &mut Cursor { next: start, end }, &mut unassigned);
            needs = rest;
        }
        // No window at all for these.
        needs.iter().for_each(|need| without(need, &mut unassigned));
        for (port, _) in ports {
            let command = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER;
            self.write_config(port, COMMAND, &command.to_le_bytes()[..2]);
        }
        lock(&self.topology).live = true;
        unassigned
    }

    /// Each port gets one bus, from 1 on, as long as there are any.
    fn number_buses(&self) -> Vec<(Bdf, u8)> {
        let ports: Vec<Bdf> = lock(&self.topology).ports.keys().copied().collect();
        let last = u8::try_from(self.config.buses - 1).unwrap_or(u8::MAX);
        let numbered: Vec<(Bdf, u8)> = ports.into_iter().zip(1..=last).collect();
        for (port, bus) in &numbered {
            self.write_config(*port, PRIMARY_BUS, &[0, *bus, *bus]);
        }
        numbered
    }

    fn dword(&self, bdf: Bdf, register: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read_config(bdf, register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn set_dword(&self, bdf: Bdf, register: u16, value: u32) {
        self.write_config(bdf, register, &value.to_le_bytes());
    }

    /// Which bits of a BAR's register can be written.
    fn probe(&self, bdf: Bdf, register: u16, ones: u32) -> u32 {
        let before = self.dword(bdf, register);
        self.set_dword(bdf, register, ones);
        let bits = self.dword(bdf, register);
        self.set_dword(bdf, register, before);
        bits
    }

    /// The BARs of a function that is no port. Its decoding is turned off.
    fn needs_of(&self, bdf: Bdf, behind_port: bool) -> Vec<Need> {
        let command = self.dword(bdf, COMMAND) & 0xffff & !(COMMAND_IO | COMMAND_MEMORY);
        self.write_config(bdf, COMMAND, &command.to_le_bytes()[..2]);
        let mut needs = Vec::new();
        let mut n = 0;
        while n < 6 {
            let register = BAR_0 + 4 * u16::from(n);
            let low = self.probe(bdf, register, u32::MAX);
            let wide = low & (BAR_IO | 3 << 1) == BAR_64 && n < 5;
            let high = if wide { self.probe(bdf, register + 4, u32::MAX) } else { 0 };
            let (mask, pool) = if low & BAR_IO != 0 {
                (u64::from(low & !3) | 0xffff_ffff_0000_0000, Pool::Io)
            } else if wide {
                // Behind a port, the window that reaches beyond 4 GiB is for prefetchable memory alone.
                let high_pool =
                    self.config.memory64.is_some() && (!behind_port || low & BAR_PREFETCHABLE != 0);
                (
                    u64::from(high) << 32 | u64::from(low & !0xf),
                    if high_pool { Pool::High } else { Pool::Low },
                )
            } else {
                (u64::from(low & !0xf) | 0xffff_ffff_0000_0000, Pool::Low)
            };
            // I/O BARs, too, have address bits from bit 8 on.
            if low & !0xf != 0 || wide && high != 0 {
                needs.extend(need(bdf, n, register, wide, mask, pool));
            }
            n += 1 + u8::from(wide);
        }
        let rom = self.probe(bdf, ROM_BAR, !ROM_ENABLE) & !0x7ff;
        if rom != 0 {
            let mask = u64::from(rom) | 0xffff_ffff_0000_0000;
            needs.extend(need(bdf, BarIndex::ROM.get(), ROM_BAR, false, mask, Pool::Low));
        }
        needs
    }

    /// The windows that a port needs for what is behind it.
    fn needs_of_port(&self, port: Bdf, bus: u8) -> Vec<Need> {
        let behind = self.functions().into_iter().filter(|(bdf, _)| bdf.bus() == bus);
        let mut inside: Vec<Need> = behind.flat_map(|(bdf, _)| self.needs_of(bdf, true)).collect();
        let has_io = self.probe(port, IO_BASE, 0xf0f0) & 0xf0f0 != 0;
        let has_slot = lock(&self.topology).ports.get(&port).is_some_and(|entry| entry.port.has_slot());
        // Closed until it is known what is in them: as they are after a reset, they forward the first addresses of all.
        for pool in [Pool::Low, Pool::High].into_iter().chain(has_io.then_some(Pool::Io)) {
            self.open(port, pool, None);
        }
        let mut windows = Vec::new();
        for (pool, granule, has) in [
            (Pool::Low, MEMORY_GRANULE, true),
            (Pool::High, MEMORY_GRANULE, self.config.memory64.is_some()),
            (Pool::Io, IO_GRANULE, has_io),
        ] {
            let (here, rest): (Vec<Need>, Vec<Need>) =
                inside.into_iter().partition(|need| has && need.pool() == pool);
            inside = rest;
            let used = here.iter().map(Need::size).fold(0, u64::saturating_add);
            let spare = if has_slot && pool != Pool::Io { SPARE } else { 0 };
            let spare = if has_slot && pool == Pool::Io { IO_GRANULE } else { spare };
            let size = used.max(spare).checked_next_multiple_of(granule).unwrap_or(u64::MAX);
            let align = here.iter().map(Need::align).max().unwrap_or(granule).max(granule);
            if has && size != 0 {
                windows.push(Need::Window { port, pool, size, align, inside: here });
            }
        }
        // What no window of the port can hold goes the same way as what the host bridge has no window for.
        windows.extend(inside.into_iter().map(|need| Need::Window {
            port,
            pool: Pool::Low,
            size: u64::MAX,
            align: 1,
            inside: vec![need],
        }));
        windows
    }

    /// Gives addresses from `cursor`.
    fn give(&self, mut needs: Vec<Need>, cursor: &mut Cursor, unassigned: &mut Vec<Unassigned>) {
        sort(&mut needs);
        for need in needs {
            let Some(base) = cursor.take(need.size(), need.align()) else {
                without(&need, unassigned);
                continue;
            };
            match need {
                Need::Bar { bdf, register, wide, .. } => {
                    #[allow(clippy::cast_possible_truncation, reason = "the halves of an address")]
                    let (low, high) = (base as u32, (base >> 32) as u32);
                    self.set_dword(bdf, register, low);
                    if wide {
                        self.set_dword(bdf, register + 4, high);
                    }
                }
                Need::Window { port, pool, size, inside, .. } => {
                    self.open(port, pool, Some((base, base + size - 1)));
                    self.give(inside, &mut Cursor { next: base, end: base + size }, unassigned);
                }
            }
        }
    }

    /// Sets a window of a port, or closes it: a limit below its base.
    #[allow(clippy::cast_possible_truncation, reason = "the parts of addresses that registers hold")]
    fn open(&self, port: Bdf, pool: Pool, window: Option<(u64, u64)>) {
        match pool {
            Pool::Low | Pool::High => {
                let (base, limit) = window.unwrap_or((0xfff0_0000, 0));
                let register = (base as u32 >> 16 & 0xfff0) | (limit as u32 & 0xfff0_0000);
                if pool == Pool::Low {
                    self.set_dword(port, MEMORY_BASE, register);
                } else {
                    self.set_dword(port, PREFETCHABLE_BASE, register);
                    self.set_dword(port, PREFETCHABLE_BASE_HIGH, (base >> 32) as u32);
                    self.set_dword(port, PREFETCHABLE_LIMIT_HIGH, (limit >> 32) as u32);
                }
            }
            Pool::Io => {
                let (base, limit) = window.unwrap_or((0xf000, 0));
                let low = [(base >> 8) as u8 & 0xf0, (limit >> 8) as u8 & 0xf0];
                self.write_config(port, IO_BASE, &low);
                let high = (base >> 16) as u32 & 0xffff | (limit as u32 & 0xffff_0000);
                self.set_dword(port, IO_BASE_HIGH, high);
            }
        }
    }
}

/// A BAR whose writable address bits are `mask`; nothing if that leaves no size.
fn need(bdf: Bdf, index: u8, register: u16, wide: bool, mask: u64, pool: Pool) -> Option<Need> {
    let size = 1_u64.checked_shl(mask.trailing_zeros())?;
    let bar = BarIndex::new(index).ok()?;
    Some(Need::Bar { bdf, register, wide, size, bar, pool })
}

/// The most demanding first.
fn sort(needs: &mut [Need]) {
    needs.sort_by_key(|need| std::cmp::Reverse((need.align(), need.size())));
}

fn without(need: &Need, unassigned: &mut Vec<Unassigned>) {
    match need {
        Need::Bar { bdf, size, bar, pool, .. } => {
            let space = if *pool == Pool::Io { Space::Io } else { Space::Memory };
            unassigned.push(Unassigned { bdf: *bdf, bar: *bar, space, size: *size });
        }
        Need::Window { inside, .. } => inside.iter().for_each(|need| without(need, unassigned)),
    }
}

impl std::fmt::Display for Unassigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bdf, bar, size, .. } = self;
        write!(f, "no room for BAR {} of {bdf}, {size:#x} bytes", bar.get())
    }
}
