// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What firmware leaves to a guest that takes things as they are (`linux,pci-probe-only`): buses, addresses, and the windows of ports.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::ops::RangeInclusive;

use common::*;
use irq_types::Bdf;
use pci::*;
use proptest::prelude::*;

/// Ports are the devices behind this one on the root bus, and other functions those before.
const FIRST_PORT: u8 = 16;

/// A function's BARs: kind, logarithm of the size.
type Bars = Vec<(BarKind, u32)>;

/// The same as a function has them: index, kind, size.
type Layout = Vec<(u8, BarKind, u64)>;

#[derive(Debug, Clone)]
struct Behind {
    slot: bool,
    io: bool,
    /// None: nothing is plugged in yet.
    functions: Vec<Bars>,
}

fn bars() -> impl Strategy<Value = Bars> {
    let one = prop_oneof![
        3 => (any::<bool>(), 4_u32..=22).prop_map(|(prefetchable, log)| (BarKind::Memory32 { prefetchable }, log)),
        3 => (any::<bool>(), 4_u32..=34).prop_map(|(prefetchable, log)| (BarKind::Memory64 { prefetchable }, log)),
        1 => (2_u32..=8).prop_map(|log| (BarKind::Io, log)),
        1 => (11_u32..=18).prop_map(|log| (BarKind::Rom, log)),
    ];
    prop::collection::vec(one, 0..4)
}

fn ports() -> impl Strategy<Value = Vec<Behind>> {
    let port = (any::<bool>(), any::<bool>(), prop::collection::vec(bars(), 0..3));
    prop::collection::vec(port.prop_map(|(slot, io, functions)| Behind { slot, io, functions }), 0..4)
}

/// Those of `bars` that one function has registers for. What has to lie below 4 GiB is kept small enough for all to fit.
fn layout(bars: &Bars, low: impl Fn(BarKind) -> bool) -> Layout {
    let mut placed: Layout = Vec::new();
    let mut next = 0;
    for (kind, log) in bars {
        let log = if low(*kind) { (*log).min(22) } else { *log };
        let index = if *kind == BarKind::Rom { 6 } else { next };
        let registers = if matches!(kind, BarKind::Memory64 { .. }) { 2 } else { 1 };
        if index == 6 && placed.iter().any(|(index, ..)| *index == 6) || index != 6 && next + registers > 6 {
            continue;
        }
        next += if index == 6 { 0 } else { registers };
        placed.push((index, *kind, 1 << log));
    }
    placed
}

/// Where a port's window is, as its registers say (PCI Express base specification 6.0, section 7.5.1.3); `None` if it is closed.
fn window(base: u64, limit: u64) -> Option<RangeInclusive<u64>> {
    (base <= limit).then_some(base..=limit)
}

/// Memory, prefetchable memory, I/O ports. Without the latter there are zeros, which mean nothing.
fn windows(bus: &HostBridge, port: Bdf, has_io: bool) -> [Option<RangeInclusive<u64>>; 3] {
    let memory = bus.dword(port, 0x20);
    let (prefetchable, base_high, limit_high) =
        (bus.dword(port, 0x24), bus.dword(port, 0x28), bus.dword(port, 0x2c));
    let (io, io_high) = (bus.dword(port, 0x1c), bus.dword(port, 0x30));
    let part =
        |register: u32| (u64::from(register & 0xfff0) << 16, u64::from(register & 0xfff0_0000) | 0xf_ffff);
    let (low, high) = (part(memory), part(prefetchable));
    let ports = (u64::from(io & 0xf0) << 8, u64::from(io & 0xf000) | 0xfff);
    let io_window =
        window(ports.0 | u64::from(io_high & 0xffff) << 16, ports.1 | u64::from(io_high & 0xffff_0000));
    [
        window(low.0, low.1),
        window(high.0 | u64::from(base_high) << 32, high.1 | u64::from(limit_high) << 32),
        io_window.filter(|_| has_io),
    ]
}

proptest! {
    #[test]
    fn what_there_is_room_for_is_reached_and_the_rest_is_named(
        memory64: bool,
        io: bool,
        root in prop::collection::vec(bars(), 0..3),
        ports in ports(),
    ) {
        let config = HostConfig {
            memory64: memory64.then_some(MEMORY_64),
            io: io.then_some(IO),
            ..host_config()
        };
        let bus = HostBridge::new(config).unwrap();
        let at = |device: u8| Bdf::new(0, device, 0).unwrap();
        // Functions where they are going to be, with their BARs and whether these may have I/O ports.
        let mut all: Vec<(Bdf, Layout, bool)> = Vec::new();
        for (bars, n) in root.iter().zip(1..) {
            let bars = layout(bars, |kind| !memory64 || !matches!(kind, BarKind::Memory64 { .. }));
            let device = Device::new(&bars);
            // Whatever was here before: it decodes nowhere while addresses are given out, and keeps its other bits.
            device.endpoint.write(4, &[0x47, 5]);
            bus.add(at(n), device).unwrap();
            all.push((at(n), bars, io));
        }
        for (port, n) in ports.iter().zip(1..) {
            let slot = port.slot.then_some(n.into());
            let wires = Wires::port(&PortConfig { slot, io: port.io, ..PortConfig::default() });
            bus.add_port(at(FIRST_PORT + n), wires.1).unwrap();
            let mut functions = Vec::new();
            for (bars, number) in port.functions.iter().zip(0..) {
                let high = BarKind::Memory64 { prefetchable: true };
                let bars = layout(bars, |kind| !memory64 || kind != high);
                functions.push((number, Device::new(&bars) as _));
                all.push((Bdf::new(n, 0, number).unwrap(), bars, io && port.io));
            }
            if !functions.is_empty() {
                bus.plug(at(FIRST_PORT + n), functions).unwrap();
            }
        }
        let unassigned = bus.assign();
        prop_assert!(unassigned.iter().all(|none| none.space == Space::Io));
        let named: Vec<(Bdf, u8)> = unassigned.iter().map(|none| (none.bdf, none.bar.get())).collect();

        for (bdf, bars, has_io) in &all {
            prop_assert_eq!(bus.word(*bdf, 4), if bdf.bus() == 0 { 0x544 } else { 0 });
            bus.set_word(*bdf, 4, 3);
            for (index, kind, size) in bars {
                // There is memory for all of them here, and there are I/O ports where host bridge and port have some.
                let register = if *index == 6 { 0x30 } else { 0x10 + 4 * u16::from(*index) };
                if *index == 6 {
                    bus.set_dword(*bdf, register, bus.dword(*bdf, register) | 1);
                }
                let found = bus.placed().into_iter().find(|(at, bar)| at == bdf && bar.bar.get() == *index);
                let room = kind.space() == Space::Memory || *has_io;
                prop_assert_eq!(found.is_some(), room, "{} {:?}", bdf, kind);
                prop_assert_eq!(named.contains(&(*bdf, *index)), !room);
                match found {
                    Some((_, bar)) => prop_assert_eq!((bar.size, bar.base % size), (*size, 0)),
                    None => prop_assert_eq!(bus.dword(*bdf, register) & !3, 0, "no address"),
                }
            }
        }
        prop_assert_eq!(bus.refused(), []);

        // Each port's windows have what is behind it, and what may be plugged in later, and nothing of anybody else's.
        let placed = bus.placed();
        let behind = |n: u8, space| placed.iter().filter(move |(bdf, bar)| bdf.bus() == n && bar.space == space);
        let mut taken: Vec<(usize, u64, u64)> = Vec::new();
        for (bdf, bar) in placed.iter().filter(|(bdf, _)| bdf.bus() == 0) {
            prop_assert!(bdf.device() <= FIRST_PORT);
            taken.push((usize::from(bar.space == Space::Io), bar.base, bar.base + bar.size - 1));
        }
        for (port, n) in ports.iter().zip(1..) {
            let [low, high, ports_window] = windows(&bus, at(FIRST_PORT + n), port.io);
            let length = |window: &Option<RangeInclusive<u64>>| {
                window.as_ref().map_or(0, |window| window.end() - window.start() + 1)
            };
            let spare = |wanted: bool, spare: u64| if port.slot && wanted { spare } else { 0 };
            prop_assert!(length(&low) >= spare(true, 2 << 20));
            prop_assert!(length(&high) >= spare(memory64, 2 << 20));
            prop_assert!(length(&ports_window) >= spare(io && port.io, 0x1000));
            prop_assert!(memory64 || high.is_none());
            prop_assert!(io && port.io || ports_window.is_none());
            if !port.slot {
                // No more than is needed: what nobody uses is closed.
                let any = |space, range: &RangeInclusive<u64>| behind(n, space).any(|(_, bar)| range.contains(&bar.base));
                prop_assert!(low.iter().chain(&high).all(|window| any(Space::Memory, window)));
                prop_assert!(ports_window.iter().all(|window| any(Space::Io, window)));
            }
            for (window, space) in [(low, 0), (high, 0), (ports_window, 1)] {
                taken.extend(window.map(|window| (space, *window.start(), *window.end())));
            }
            prop_assert_eq!(bus.word(at(FIRST_PORT + n), 4), if port.io { 7 } else { 6 });
        }
        taken.sort_unstable();
        for pair in taken.windows(2) {
            prop_assert!(pair[0].0 != pair[1].0 || pair[0].2 < pair[1].1, "{:x?}", pair);
        }
        for (space, first, last) in taken {
            let inside = |range: std::ops::Range<u64>| range.contains(&first) && range.contains(&last);
            let fits = if space == 1 { inside(0x1000..IO.size) } else { inside(MEMORY_32) || inside(MEMORY_64) };
            prop_assert!(fits, "{first:#x}..={last:#x}");
        }
    }
}

#[test]
fn ports_without_a_bus_to_give_them_lead_nowhere() {
    let bus = HostBridge::new(HostConfig { buses: 2, ..host_config() }).unwrap();
    for port in ["0:1.0", "0:2.0"] {
        bus.add_port(bdf(port), Wires::port(&PortConfig::default()).1).unwrap();
        bus.plug(bdf(port), vec![(0, Device::new(&[]) as _)]).unwrap();
    }
    bus.assign();
    assert_eq!([bdf("0:1.0"), bdf("0:2.0")].map(|port| bus.dword(port, 0x18)), [0x0001_0100, 0]);
    assert_eq!(bus.functions().len(), 3);
}
