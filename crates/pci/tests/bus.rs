// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest at the host bridge: configuration space, BARs that move, overlap and leave the windows, ports and their buses.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::sync::Arc;

use common::*;
use pci::*;

const MEMORY: BarKind = BarKind::Memory32 { prefetchable: false };
const WIDE: BarKind = BarKind::Memory64 { prefetchable: true };

fn decoded(index: u8, space: Space, base: u64, size: u64) -> DecodedBar {
    DecodedBar { bar: bar(index), space, base, size }
}

fn memory(index: u8, base: u64, size: u64) -> DecodedBar {
    decoded(index, Space::Memory, base, size)
}

#[test]
fn accesses_to_configuration_space_are_cut_to_registers() {
    let bus = HostBridge::new(host_config()).unwrap();
    bus.add(bdf("0:3.0"), Device::new(&[])).unwrap();
    let at = ECAM + (3 << 15);
    let mut whole = [0; 8];
    bus.read(at, &mut whole);
    assert_eq!(whole[..4], [0xf4, 0x1a, 0x42, 0x10]);
    // Every shape reads the same bytes.
    for length in 1..=8 {
        for offset in 0..=8 - length {
            let mut part = [0; 8];
            bus.read(at + offset as u64, &mut part[..length]);
            assert_eq!(part[..length], whole[offset..offset + length], "{length} bytes at {offset}");
        }
    }
    // An odd write reaches the cache line size and not its neighbours.
    bus.write(at + 0x0b, &[0xff, 0x12, 0xff]);
    assert_eq!(bus.dword(bdf("0:3.0"), 0x0c), 0x12);
    // The last bytes of a function are not the first ones of the next.
    let mut end = [0; 8];
    bus.read(at + 0xffc, &mut end);
    assert_eq!(end, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn where_nobody_is_all_bits_are_ones() {
    let bus = HostBridge::new(host_config()).unwrap();
    for address in [ECAM, ECAM + (255 << 20), MEMORY_32.start, MEMORY_64.start, IO.base, 0, u64::MAX] {
        let mut data = [0; 8];
        bus.read(address, &mut data);
        assert_eq!(data, [0xff; 8], "{address:#x}");
        bus.write(address, &data);
    }
}

#[test]
fn a_bar_answers_where_the_guest_has_put_it_and_nowhere_else() {
    let bus = HostBridge::new(host_config()).unwrap();
    let device = Device::new(&[(0, MEMORY, 0x1000), (2, WIDE, 0x4000), (4, BarKind::Io, 0x20)]);
    let at = bdf("0:1.0");
    bus.add(at, device.clone()).unwrap();
    assert_eq!(device.take(), [Seen::Bdf(at)]);
    bus.set_dword(at, 0x10, 0x2000_1000);
    bus.set_dword(at, 0x18, 0x0000_4000);
    bus.set_dword(at, 0x1c, 0x81);
    bus.set_dword(at, 0x20, 0x2000);
    assert_eq!((device.take(), bus.load(0x2000_1000)), (vec![], 0xff));
    bus.set_word(at, 4, 3);
    let all = vec![
        memory(0, 0x2000_1000, 0x1000),
        memory(2, 0x81_0000_4000, 0x4000),
        decoded(4, Space::Io, 0x2000, 0x20),
    ];
    assert_eq!(device.take(), [Seen::Placed(all)]);
    for (address, value) in [
        (0x2000_1003, 0x03),
        (0x2000_0fff, 0xff),
        (0x2000_2000, 0xff),
        (0x81_0000_7fff, 0x2f),
        (0x81_0000_8000, 0xff),
        (IO.base + 0x2001, 0x41),
        (IO.base + 0x2020, 0xff),
    ] {
        assert_eq!(bus.load(address), value, "{address:#x}");
    }
    // An access that ends behind a BAR is nobody's.
    let mut data = [0; 4];
    bus.read(0x2000_1ffe, &mut data);
    assert_eq!(data, [0xff; 4]);
    bus.write(0x2000_1ffe, &data);
    bus.write(0x2000_1ffc, &data);
    assert_eq!(device.take(), [Seen::Write(bar(0), 0xffc, vec![0xff; 4])]);
    // It moves; the others stay.
    bus.set_dword(at, 0x10, 0x2000_5000);
    assert_eq!((bus.load(0x2000_1003), bus.load(0x2000_5003), bus.load(0x81_0000_7fff)), (0xff, 0x03, 0x2f));
    device.take();
    bus.set_word(at, 4, 1);
    assert!(matches!(&device.take()[..], [Seen::Placed(left)] | [_, Seen::Placed(left)] if left.len() == 1));
    assert_eq!((bus.load(0x2000_5003), bus.load(IO.base + 0x2001)), (0xff, 0x41));
}

#[test]
fn a_bar_that_is_refused_is_placed_when_the_other_one_moves_away() {
    let events = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = events.clone();
    let bus = HostBridge::new(host_config()).unwrap().with_observer(move |event| {
        if let BusEvent::Refused(refusal) = event {
            log.lock().unwrap().push(refusal.reason);
        }
    });
    let (first, second) = (Device::new(&[(0, MEMORY, 0x2000)]), Device::new(&[(1, MEMORY, 0x1000)]));
    let (a, b) = (bdf("0:1.0"), bdf("0:2.0"));
    bus.add(a, first.clone()).unwrap();
    bus.add(b, second.clone()).unwrap();
    bus.set_dword(b, 0x14, 0x2000_1000);
    bus.set_word(b, 4, 2);
    bus.set_dword(a, 0x10, 0x2000_0000);
    bus.set_word(a, 4, 2);
    // The one that was there first stays, whoever has the lower number.
    assert_eq!(bus.load(0x2000_1000), 0x10);
    assert_eq!(bus.load(0x2000_0000), 0xff);
    let reason = Reason::Overlaps { function: b, bar: bar(1) };
    assert_eq!(bus.refused(), [Refusal { bdf: a, bar: memory(0, 0x2000_0000, 0x2000), reason }]);
    assert_eq!(
        bus.refused()[0].to_string(),
        "BAR 0 of 00:01.0 at 0x20000000, 0x2000 bytes, is not reached: BAR 1 of 00:02.0 has addresses of it"
    );
    assert_eq!(*events.lock().unwrap(), [reason]);
    first.take();
    bus.set_dword(b, 0x14, 0x2000_3000);
    assert_eq!((bus.load(0x2000_1000), bus.load(0x2000_3000)), (0x00, 0x10));
    assert_eq!(
        (first.take(), bus.refused()),
        (vec![Seen::Placed(vec![memory(0, 0x2000_0000, 0x2000)])], vec![])
    );
}

#[test]
fn whoever_takes_a_place_over_hears_of_it_after_it_is_free() {
    // One log for both.
    type Log = Arc<std::sync::Mutex<Vec<(u8, Vec<u64>)>>>;
    struct Shared(Arc<Device>, Log, u8);
    impl PciFunction for Shared {
        fn read_config(&self, offset: u16, data: &mut [u8]) {
            self.0.read_config(offset, data);
        }
        fn write_config(&self, offset: u16, data: &[u8]) {
            self.0.write_config(offset, data);
        }
        fn decoded(&self) -> Vec<DecodedBar> {
            self.0.decoded()
        }
        fn placed(&self, bars: &[DecodedBar]) {
            self.1.lock().unwrap().push((self.2, bars.iter().map(|bar| bar.base).collect()));
        }
        fn read_bar(&self, _: BarIndex, _: u64, _: &mut [u8]) {}
        fn write_bar(&self, _: BarIndex, _: u64, _: &[u8]) {}
        fn reset(&self) {}
    }
    let log = Log::default();
    let bus = HostBridge::new(host_config()).unwrap();
    for n in [1, 2] {
        let at = bdf(&format!("0:{n}.0"));
        bus.add(at, Arc::new(Shared(Device::new(&[(0, MEMORY, 0x1000)]), log.clone(), n))).unwrap();
    }
    for n in [2, 1] {
        bus.set_dword(bdf(&format!("0:{n}.0")), 0x10, 0x2000_0000);
        bus.set_word(bdf(&format!("0:{n}.0")), 4, 2);
    }
    bus.set_dword(bdf("0:2.0"), 0x10, 0x2000_1000);
    let expected = [(2, vec![0x2000_0000]), (2, vec![]), (1, vec![0x2000_0000]), (2, vec![0x2000_1000])];
    assert_eq!(*log.lock().unwrap(), expected);
}

#[test]
fn a_bar_outside_the_windows_is_refused() {
    let bus = HostBridge::new(host_config()).unwrap();
    let device = Device::new(&[(0, WIDE, 0x1000), (2, BarKind::Io, 0x100)]);
    let at = bdf("0:1.0");
    bus.add(at, device).unwrap();
    bus.set_word(at, 4, 3);
    for address in [
        0x1000,                   // memory, or nothing
        MEMORY_32.start - 0x1000, // just before
        MEMORY_32.end,            // just behind: the I/O window
        ECAM,                     // configuration space
        MEMORY_64.end,            // just behind
        u64::MAX - 0xfff,         // its end is 2^64
    ] {
        bus.set_dword(at, 0x10, address as u32);
        bus.set_dword(at, 0x14, (address >> 32) as u32);
        let reasons: Vec<Reason> = bus.refused().iter().map(|refusal| refusal.reason).collect();
        assert_eq!(reasons, [Reason::OutsideWindows], "{address:#x}");
    }
    for inside in [MEMORY_32.start, MEMORY_32.end - 0x1000, MEMORY_64.start, MEMORY_64.end - 0x1000] {
        bus.set_dword(at, 0x10, inside as u32);
        bus.set_dword(at, 0x14, (inside >> 32) as u32);
        assert_eq!((bus.refused(), bus.load(inside + 0xfff)), (vec![], 0x0f), "{inside:#x}");
    }
    bus.set_dword(at, 0x10, 0);
    bus.set_dword(at, 0x14, 0);
    assert_eq!(bus.refused(), [], "no address is no place");
    bus.set_dword(at, 0x18, 0x1_0000);
    assert_eq!(bus.refused()[0].reason, Reason::OutsideWindows);
}

#[test]
fn function_0_says_that_there_are_others() {
    let bus = HostBridge::new(host_config()).unwrap();
    bus.add(bdf("0:1.0"), Device::new(&[])).unwrap();
    assert_eq!(bus.dword(bdf("0:1.0"), 0x0c) >> 16, 0);
    bus.add(bdf("0:1.3"), Device::new(&[])).unwrap();
    assert_eq!(bus.dword(bdf("0:1.0"), 0x0c) >> 16, 0x80);
    assert_eq!(bus.word(bdf("0:1.0"), 0x0e), 0x80);
    assert_eq!(bus.dword(bdf("0:1.3"), 0x0c) >> 16, 0);
}

#[test]
fn what_is_assigned_is_aligned_disjoint_and_reached() {
    let bus = HostBridge::new(host_config()).unwrap();
    let bars = [
        (0, MEMORY, 0x1000),
        (1, MEMORY, 0x10_0000),
        (2, WIDE, 0x4_0000_0000),
        (4, BarKind::Io, 0x20),
        (6, BarKind::Rom, 0x1_0000),
    ];
    for n in 1..=4 {
        bus.add(bdf(&format!("0:{n}.0")), Device::new(&bars)).unwrap();
    }
    for n in 5..=6 {
        let (_, port) = Wires::port(&PortConfig { slot: Some(n), io: true, ..PortConfig::default() });
        let at = bdf(&format!("0:{n}.0"));
        bus.add_port(at, port).unwrap();
        bus.plug(at, vec![(0, Device::new(&bars) as _), (3, Device::new(&[(0, WIDE, 0x2000)]) as _)])
            .unwrap();
    }
    assert_eq!(bus.assign(), []);
    let functions = bus.functions();
    assert_eq!(functions.len(), 4 + 2 + 4);
    for (at, _) in &functions {
        bus.set_word(*at, 4, 7);
        if bus.dword(*at, 0x0c) >> 16 & 0x7f == 0 && bus.dword(*at, 0x30) != 0 {
            bus.set_dword(*at, 0x30, bus.dword(*at, 0x30) | 1);
        }
    }
    assert_eq!(bus.refused(), []);
    let mut all: Vec<DecodedBar> = functions.iter().flat_map(|(_, function)| function.decoded()).collect();
    assert_eq!(all.len(), 6 * bars.len() + 2);
    all.sort_by_key(|bar| (bar.space, bar.base));
    for pair in all.windows(2) {
        assert!(pair[0].space != pair[1].space || pair[0].base + pair[0].size <= pair[1].base, "{pair:x?}");
    }
    for bar in &all {
        assert_eq!(bar.base % bar.size, 0);
        let at = if bar.space == Space::Io { IO.base } else { 0 } + bar.base;
        assert_eq!(bus.load(at + 1), bar.bar.get() << 4 | 1, "{bar:x?}");
    }
}

#[test]
fn behind_a_port_only_prefetchable_memory_is_above_4_gib() {
    let bus = HostBridge::new(host_config()).unwrap();
    let bars = [(0, WIDE, 0x1000), (2, BarKind::Memory64 { prefetchable: false }, 0x1000)];
    let at = bdf("0:5.0");
    bus.add_port(at, Wires::port(&PortConfig::default()).1).unwrap();
    bus.plug(at, vec![(0, Device::new(&bars) as _)]).unwrap();
    bus.add(bdf("0:1.0"), Device::new(&bars)).unwrap();
    assert_eq!(bus.assign(), []);
    let highs = |at: &str| [bus.dword(bdf(at), 0x14), bus.dword(bdf(at), 0x1c)];
    assert_eq!((highs("0:1.0"), highs("1:0.0")), ([0x80, 0x80], [0x80, 0]));
}

#[test]
fn a_bar_without_room_is_named() {
    let bus = HostBridge::new(HostConfig { memory64: None, io: None, ..host_config() }).unwrap();
    bus.add(bdf("0:1.0"), Device::new(&[(0, WIDE, 1 << 40), (2, MEMORY, 0x1000), (3, BarKind::Io, 4)]))
        .unwrap();
    let named: Vec<(u8, u64)> = bus.assign().iter().map(|none| (none.bar.get(), none.size)).collect();
    assert_eq!(named, [(0, 1 << 40), (3, 4)]);
    assert_eq!(bus.dword(bdf("0:1.0"), 0x18), MEMORY_32.start as u32);
}

#[test]
fn a_function_behind_a_port_is_where_the_guest_numbers_the_bus() {
    let bus = HostBridge::new(host_config()).unwrap();
    let (_, port) = Wires::port(&PortConfig::default());
    let at = bdf("0:2.0");
    bus.add_port(at, port).unwrap();
    let device = Device::new(&[(0, MEMORY, 0x1000)]);
    bus.plug(at, vec![(0, device.clone())]).unwrap();
    assert_eq!(device.take(), [], "the bus has no number yet");
    bus.set_dword(at, 0x18, 0x00_05_05_00);
    assert_eq!(device.take(), [Seen::Bdf(bdf("5:0.0"))]);
    assert_eq!(bus.word(bdf("5:0.0"), 0), 0x1af4);
    assert_eq!(bus.word(bdf("5:1.0"), 0), 0xffff, "there is device 0 alone");
    assert_eq!(bus.word(bdf("6:0.0"), 0), 0xffff);
    // Renumbered, as Linux does it: closed, then open elsewhere.
    bus.set_dword(at, 0x18, 0);
    assert_eq!((device.take(), bus.word(bdf("5:0.0"), 0)), (vec![], 0xffff));
    bus.set_dword(at, 0x18, 0x00_ff_01_00);
    assert_eq!(device.take(), [Seen::Bdf(bdf("1:0.0"))]);
    assert_eq!(bus.word(bdf("1:0.0"), 0), 0x1af4);
}

#[test]
fn a_port_forwards_its_windows_and_nothing_else() {
    let bus = HostBridge::new(host_config()).unwrap();
    let (_, port) = Wires::port(&PortConfig::default());
    let (at, behind) = (bdf("0:2.0"), bdf("1:0.0"));
    bus.add_port(at, port).unwrap();
    bus.plug(at, vec![(0, Device::new(&[(0, MEMORY, 0x1000), (2, WIDE, 0x10_0000)]) as _)]).unwrap();
    bus.set_dword(at, 0x18, 0x00_01_01_00);
    bus.set_dword(behind, 0x10, 0x2010_0000);
    bus.set_word(behind, 4, 2);
    let refused = |n: usize| {
        let refused = bus.refused();
        assert_eq!(refused.len(), n, "{refused:?}");
        assert!(refused.iter().all(|refusal| refusal.reason == Reason::NotForwarded { port: at }));
    };
    refused(1);
    bus.set_word(at, 4, 2);
    refused(1);
    // Memory: 0x2010_0000 to 0x201f_ffff.
    bus.set_dword(at, 0x20, 0x2010_2010);
    refused(0);
    assert_eq!(bus.load(0x2010_0005), 0x05);
    bus.set_dword(behind, 0x18, 0x0010_0000);
    bus.set_dword(behind, 0x1c, 0x80);
    refused(1);
    bus.set_dword(at, 0x28, 0x80);
    bus.set_dword(at, 0x2c, 0x80);
    bus.set_dword(at, 0x24, 0x0010_0010);
    refused(0);
    assert_eq!(bus.load(0x80_0010_0005), 0x25);
    bus.set_word(at, 4, 0);
    refused(2);
    assert_eq!((bus.load(0x2010_0005), bus.load(0x80_0010_0005)), (0xff, 0xff));
}

#[test]
fn a_reset_of_the_bus_behind_resets_the_device_and_takes_it_off() {
    let bus = HostBridge::new(host_config()).unwrap();
    let (_, port) = Wires::port(&PortConfig { slot: Some(1), ..PortConfig::default() });
    let (at, behind) = (bdf("0:2.0"), bdf("1:0.0"));
    bus.add_port(at, port).unwrap();
    let device = Device::new(&[(0, MEMORY, 0x1000)]);
    bus.plug(at, vec![(0, device.clone())]).unwrap();
    bus.assign();
    bus.set_word(behind, 4, 2);
    device.take();
    bus.set_word(at, 0x3e, 0x40);
    assert_eq!(device.take(), [Seen::Reset, Seen::Placed(vec![])]);
    assert_eq!(bus.word(behind, 0), 0xffff, "nobody answers while it is being reset");
    bus.set_word(at, 0x3e, 0);
    assert_eq!((bus.word(behind, 0), bus.word(behind, 4), bus.dword(behind, 0x10)), (0x1af4, 0, 0));
    assert_eq!(device.take(), []);
}

#[test]
fn a_port_and_the_device_behind_it_do_not_share_a_line() {
    // A guest's hot-plug driver would wait for its own interrupt handler: see RootPort::PIN.
    for device in 0..32 {
        let port = irq_types::Bdf::new(0, device, 0).unwrap();
        for pin in [IntxPin::A, IntxPin::B, IntxPin::C] {
            assert_ne!(HostBridge::line(port, RootPort::PIN), HostBridge::line(port, pin));
        }
    }
    let (_, port) = Wires::port(&PortConfig::default());
    let mut pin = [0];
    port.read_config(0x3d, &mut pin);
    assert_eq!(pin, [RootPort::PIN as u8]);
}

#[test]
fn with_ari_a_device_has_more_functions() {
    let bus = HostBridge::new(host_config()).unwrap();
    let (_, port) = Wires::port(&PortConfig::default());
    let at = bdf("0:2.0");
    bus.add_port(at, port).unwrap();
    bus.plug(at, [9, 0, 7, 8].map(|number| (number, Device::new(&[]) as _)).into()).unwrap();
    bus.assign();
    let found = |places: [&str; 4]| places.map(|place| bus.word(bdf(place), 0) == 0x1af4);
    assert_eq!(found(["1:0.0", "1:0.7", "1:1.0", "1:1.1"]), [true, true, false, false]);
    let express = bus.capability(at, 0x10);
    assert_ne!(bus.dword(at, express + 0x24) & 1 << 5, 0);
    bus.set_word(at, express + 0x28, 1 << 5);
    assert_eq!(found(["1:0.0", "1:0.7", "1:1.0", "1:1.1"]), [true; 4]);
}

#[test]
fn what_cannot_be_put_on_the_bus_is_refused() {
    let bus = HostBridge::new(host_config()).unwrap();
    let device = || Device::new(&[]) as Arc<dyn PciFunction>;
    let at = bdf("0:1.0");
    bus.add_port(at, Wires::port(&PortConfig::default()).1).unwrap();
    assert_eq!(bus.add(at, device()), Err(BusError::Taken(at)));
    assert_eq!(bus.add(bdf("1:0.0"), device()), Err(BusError::NotOnRootBus(bdf("1:0.0"))));
    assert_eq!(bus.plug(bdf("0:9.0"), vec![(0, device())]), Err(BusError::NoPort(bdf("0:9.0"))));
    assert_eq!(bus.plug(at, vec![]), Err(BusError::Functions(at)));
    assert_eq!(bus.plug(at, vec![(1, device())]), Err(BusError::Functions(at)));
    assert_eq!(bus.plug(at, vec![(0, device()), (0, device())]), Err(BusError::Functions(at)));
    assert_eq!(bus.plug(at, [1, 0, 1].map(|number| (number, device())).into()), Err(BusError::Functions(at)));
    assert_eq!(bus.remove(at).map(drop), Err(BusError::Empty(at)));
    bus.plug(at, vec![(0, device())]).unwrap();
    assert_eq!(bus.plug(at, vec![(0, device())]), Err(BusError::Occupied(at)));
    assert_eq!(bus.request_removal(at), Err(BusError::NoSlot(at)));
    bus.assign();
    assert_eq!(bus.remove(at).map(drop), Err(BusError::NoSlot(at)));
}

#[test]
fn windows_that_cannot_be_are_refused() {
    let good = host_config();
    let expected = vec![ECAM..ECAM + (256 << 20), MEMORY_32, MEMORY_64, IO.base..IO.base + IO.size];
    assert_eq!(HostBridge::new(good.clone()).unwrap().regions(), expected);
    // Next to each other is not over each other.
    for base in [MEMORY_32.start - IO.size, MEMORY_32.end] {
        let io = Some(IoWindow { base, ..IO });
        assert!(HostBridge::new(HostConfig { io, ..good.clone() }).is_ok(), "{base:#x}");
    }
    let cases: [(HostConfig, &str); 9] = [
        (
            HostConfig { io: Some(IoWindow { base: 0x100_0000_0000, size: 0x1_0000_1000 }), ..good.clone() },
            "the I/O window at 0x10000000000..0x10100001000: there are 4 GiB of ports at most",
        ),
        (HostConfig { buses: 0, ..good.clone() }, "0 buses: a host bridge has 1 to 256"),
        (HostConfig { buses: 257, ..good.clone() }, "257 buses: a host bridge has 1 to 256"),
        (
            HostConfig { ecam: 0x1000, ..good.clone() },
            "configuration space at 0x1000: it begins at a multiple of 1 MiB",
        ),
        (
            HostConfig { memory32: 0x2000..0x2000, ..good.clone() },
            "the 32-bit memory window at 0x2000..0x2000: it is empty or has no end",
        ),
        (
            HostConfig { memory32: 0x2000_0000..0x1_0000_1000, ..good.clone() },
            "the 32-bit memory window at 0x20000000..0x100001000: it lies below 4 GiB, and not at address 0",
        ),
        (
            HostConfig { memory64: Some(0x1000..0x2000), ..good.clone() },
            "the 64-bit memory window at 0x1000..0x2000: it lies above 4 GiB",
        ),
        (
            HostConfig { io: Some(IoWindow { base: 0x2000_0000, size: 0x1_0000 }), ..good.clone() },
            "the 32-bit memory window and the I/O window overlap",
        ),
        (
            HostConfig { ecam: !0xf_ffff, ..good.clone() },
            "configuration space at 0xfffffffffff00000..0xffffffffffffffff: it is empty or has no end",
        ),
    ];
    for (config, message) in cases {
        assert_eq!(HostBridge::new(config).unwrap_err().to_string(), message);
    }
}
