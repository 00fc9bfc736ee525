// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration spaces byte by byte, as the specification's tables have them, and what software can write in them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use common::{IDENTITY, Recorder, bar};
use pci::*;
use std::sync::Arc;

const MEMORY: BarKind = BarKind::Memory32 { prefetchable: false };

/// Hexadecimal digits, with blanks wherever they help.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

#[test]
fn each_bit_of_a_capability_is_written_as_it_was_made() {
    let mut space = ConfigSpace::new(IDENTITY);
    let capability =
        Capability::vendor_specific(&[0xff, 0xff, 0xff]).writable(3..5, 0x0f).write_1_to_clear(4..9, 0xf0);
    let at = space.add_capability(&capability).unwrap();
    space.write(at, &[0; 4]);
    space.write(at + 4, &[0; 2]);
    assert_eq!(space.bytes(at + 3..at + 6), [0xf0, 0xf0, 0xff]);
    space.write(at, &[0xff; 4]);
    space.write(at + 4, &[0xff; 2]);
    assert_eq!(space.bytes(at + 2..at + 6), [6, 0xff, 0x0f, 0x0f]);
}

/// What software finds after it has written ones to each dword, one at a time from a fresh start: the bits it can set. Bits that are constant show
/// up too, as on hardware.
fn all_ones(space: &ConfigSpace, range: std::ops::Range<u16>) -> Vec<u8> {
    range
        .step_by(4)
        .flat_map(|at| {
            let mut space = space.clone();
            space.write(at, &[0xff; 4]);
            space.bytes(at..at + 4)
        })
        .collect()
}

#[track_caller]
fn assert_bytes(found: &[u8], expected: &str) {
    let show = |bytes: &[u8]| bytes.chunks(4).map(|dword| format!("{dword:02x?}")).collect::<Vec<_>>();
    assert_eq!(show(found), show(&hex(expected)));
}

#[test]
fn a_header_of_type_0() {
    let mut space = ConfigSpace::new(IDENTITY);
    space.add_bar(bar(0), MEMORY, 0x1000).unwrap();
    space.add_bar(bar(1), BarKind::Memory32 { prefetchable: true }, 0x10).unwrap();
    space.add_bar(bar(2), BarKind::Memory64 { prefetchable: true }, 1 << 33).unwrap();
    space.add_bar(bar(4), BarKind::Io, 0x40).unwrap();
    space.add_bar(BarIndex::ROM, BarKind::Rom, 0x800).unwrap();
    space.set_interrupt_pin(IntxPin::B);
    assert_bytes(
        &space.bytes(0..0x40),
        "f41a4210 00000000 01008001 00000000  00000000 08000000 0c000000 00000000
         01000000 00000000 00000000 f41a0200  00000000 00000000 00000000 00020000",
    );
    assert_bytes(
        &all_ones(&space, 0..0x40),
        "f41a4210 47050000 01008001 ff000000  00f0ffff f8ffffff 0c000000 feffffff
         c1ffffff 00000000 00000000 f41a0200  01f8ffff 00000000 00000000 ff020000",
    );
}

#[test]
fn a_function_without_bars_has_nothing_to_enable() {
    let space = ConfigSpace::new(IDENTITY);
    assert_bytes(&all_ones(&space, 4..8), "44050000");
}

#[test]
fn capabilities_are_a_list_in_the_order_in_which_they_were_added() {
    let mut space = ConfigSpace::new(IDENTITY);
    let virtio = Capability::vendor_specific(&[1, 4, 0, 0, 0, 0, 0, 0, 0, 0x38, 0, 0, 0]);
    let msix = MsixLayout::new(5, (bar(1), 0x8000), (bar(2), 0x48000)).unwrap();
    let places = [
        &Capability::power_management(),
        &virtio,
        &Capability::express(ExpressKind::IntegratedEndpoint, true),
        &msix.capability(),
        &Capability::extended(0x0003, 1, &[1, 2, 3, 4, 5, 6, 7, 8]),
        &Capability::extended(0x000b, 15, &[0x01, 0x00, 0xc0, 0x00]),
    ]
    .map(|capability| space.add_capability(capability).unwrap());
    assert_eq!(places, [0x40, 0x48, 0x58, 0x94, 0x100, 0x10c]);
    assert_bytes(&space.bytes(4..8), "00001000");
    assert_bytes(&space.bytes(0x34..0x38), "40000000");
    assert_bytes(
        &space.bytes(0x40..0xa0),
        "01480300 08000000  09581001 04000000 00000000 38000000
         10949200 00800010 10280000 00000000 00000000 00000000 00000000 00000000
                  00000000 00000000 00000000 00000000 00000000 00000000 00000000
         11000400 01800000 02800400",
    );
    assert_bytes(&space.bytes(0x100..0x114), "0300c110 01020304 05060708  0b000f00 0100c000");
    // The power state, device control without its reset bit, and MSI-X's two bits.
    assert_bytes(
        &all_ones(&space, 0x40..0xa0),
        "01480300 0b000000  09581001 04000000 00000000 38000000
         10949200 00800010 ff790000 00000000 00000000 00000000 00000000 00000000
                  00000000 00000000 00000000 00000000 00000000 00000000 00000000
         110004c0 01800000 02800400",
    );
}

#[test]
fn an_endpoint_behind_a_port_has_a_link() {
    let mut space = ConfigSpace::new(IDENTITY);
    space.add_capability(&Capability::express(ExpressKind::Endpoint, false)).unwrap();
    assert_bytes(
        &space.bytes(0x40..0x7c),
        "10000200 00800000 10280000 11000000 00001100 00000000 00000000 00000000
         00000000 00000000 00000000 02000000 01000000 00000000 00000000",
    );
    let reset = space.write(0x49, &[0x80]);
    assert!(!space.asks_for_reset(&reset), "it has none");
}

#[test]
fn the_four_shapes_of_msi() {
    let one = MsiLayout::new(1).unwrap();
    let all = MsiLayout::new(32).unwrap();
    for (layout, bytes, ones) in [
        (one.with_32_bit_address(), "05000000 00000000 00000000", "05007100 fcffffff ffff0000"),
        (one, "05008000 00000000 00000000 00000000", "0500f100 fcffffff ffffffff ffff0000"),
        (
            all.with_32_bit_address().with_masking(),
            "05000a01 00000000 00000000 00000000 00000000",
            "05007b01 fcffffff ffff0000 ffffffff 00000000",
        ),
        (
            all.with_masking(),
            "05008a01 00000000 00000000 00000000 00000000 00000000",
            "0500fb01 fcffffff ffffffff ffff0000 ffffffff 00000000",
        ),
        (
            MsiLayout::new(4).unwrap().with_masking(),
            "05008401 00000000 00000000 00000000 00000000 00000000",
            "0500f501 fcffffff ffffffff ffff0000 0f000000 00000000",
        ),
    ] {
        let mut space = ConfigSpace::new(IDENTITY);
        space.add_capability(&layout.capability()).unwrap();
        let end = (0x40 + layout.capability_length()).next_multiple_of(4);
        assert_bytes(&space.bytes(0x40..end), bytes);
        assert_bytes(&all_ones(&space, 0x40..end), ones);
        let control = u16::from_le_bytes([space.bytes(0x42..0x43)[0], space.bytes(0x43..0x44)[0]]);
        assert_eq!(MsiLayout::parse(control), Ok(layout));
    }
    for vectors in [0, 3, 33, 64] {
        assert!(MsiLayout::new(vectors).is_err(), "{vectors}");
    }
    assert!(MsiLayout::parse(6 << 1).is_err());
}

#[test]
fn msix_layouts_survive_the_way_through_their_bytes() {
    for (vectors, table, pending) in
        [(1, (0, 0), (0, 0x10)), (2048, (5, 0xffff_fff8), (1, 8)), (33, (4, 0x5200), (4, 0x8000))]
    {
        let layout = MsixLayout::new(vectors, (bar(table.0), table.1), (bar(pending.0), pending.1)).unwrap();
        let mut space = ConfigSpace::new(IDENTITY);
        space.add_capability(&layout.capability()).unwrap();
        assert_eq!(MsixLayout::parse(&space.bytes(0x40..0x4c)), Ok(layout));
        let words = u64::from(vectors).div_ceil(64);
        assert_eq!(layout.table(), (bar(table.0), table.1..table.1 + 16 * u64::from(vectors)));
        assert_eq!(layout.pending(), (bar(pending.0), pending.1..pending.1 + 8 * words));
    }
    let ok = (bar(0), 0);
    for (vectors, table, pending) in [
        (0, ok, ok),
        (2049, ok, ok),
        (1, (bar(0), 4), ok),
        (1, ok, (bar(0), 1 << 32)),
        (1, (BarIndex::ROM, 0), ok),
    ] {
        assert!(MsixLayout::new(vectors, table, pending).is_err());
    }
    let mut bytes = hex("11000000 00000000 00000000");
    assert!(MsixLayout::parse(&bytes).is_ok() && MsixLayout::parse(&bytes[..11]).is_err());
    bytes[4] = 6;
    assert!(MsixLayout::parse(&bytes).is_err(), "BAR 6 is no BAR of MSI-X");
    bytes[0] = 5;
    assert!(MsixLayout::parse(&bytes).is_err());
}

#[test]
fn a_root_port() {
    let (_, port) = common::Wires::port(&PortConfig { slot: Some(3), io: true, ..PortConfig::default() });
    let read = |range: std::ops::Range<u16>| {
        range
            .map(|at| {
                let mut byte = [0];
                port.read_config(at, &mut byte);
                byte[0]
            })
            .collect::<Vec<u8>>()
    };
    assert_bytes(
        &read(0..0x40),
        "361b0c00 00001000 00000406 00000100  00000000 00000000 00000000 01010000
         00000000 01000100 00000000 00000000  00000000 40000000 00000000 00040000",
    );
    assert_bytes(
        &read(0x40..0x9c),
        "107c4201 00800000 10280000 04011000 00000000 5b001800 c0070000 00000000
         00000000 20000000 00000000 1e000000 04000000 00000000 00000000
         01840300 08000000
         05008001 00000000 00000000 00000000 00000000 00000000",
    );
    // AER, then ACS.
    assert_bytes(
        &read(0x100..0x140),
        "01008213 00000000 00004000 30204600 00000000 00e00000 00000000 00000000
         00000000 00000000 00000000 00000000 00000000 00000000 0d000100 1f000000",
    );
    // What can be written, dword by dword.
    for (at, writable) in [
        (0x04, 0x0000_0547_u32),
        (0x18, 0x00ff_ffff),
        (0x1c, 0x0000_f0f0),
        (0x20, 0xfff0_fff0),
        (0x24, 0xfff0_fff0),
        (0x28, 0xffff_ffff),
        (0x2c, 0xffff_ffff),
        (0x30, 0xffff_ffff),
        (0x38, 0),
        (0x3c, 0x0043_00ff),
        (0x50, 0x0000_00d3),
        // Slot control; and that the command has completed.
        (0x58, 0x0010_17fb),
        (0x5c, 0x0000_000f),
        (0x68, 0x0000_0020),
        (0x104, 0),
        (0x108, 0x007f_f030),
        (0x10c, 0x007f_f030),
        (0x110, 0),
        (0x114, 0x0000_f1c1),
        (0x12c, 0x0000_0007),
        (0x13c, 0x001f_0000),
    ] {
        let before = u32::from_le_bytes(read(at..at + 4).try_into().unwrap());
        port.write_config(at, &(!before).to_le_bytes());
        let after = u32::from_le_bytes(read(at..at + 4).try_into().unwrap());
        assert_eq!(before ^ after, writable, "{at:#x}");
        port.write_config(at, &before.to_le_bytes());
    }
    let plain = RootPort::new(
        &PortConfig::default(),
        PortInterrupts {
            sink: Arc::new(Recorder::default()),
            message: Box::new(|| ()),
            line: Box::new(|_| ()),
        },
    )
    .unwrap();
    let mut io = [0; 2];
    plain.write_config(0x1c, &[0xff; 2]);
    plain.read_config(0x1c, &mut io);
    assert_eq!(io, [0; 2], "software sees that there is no I/O window");
    assert!(!plain.has_slot());
    let mut flags = [0; 2];
    plain.read_config(0x42, &mut flags);
    assert_eq!(flags, [0x42, 0], "version 2, root port, no slot");
    let mut slot = [0xff; 8];
    plain.write_config(0x58, &[0xff; 4]);
    plain.read_config(0x54, &mut slot[..4]);
    plain.read_config(0x58, &mut slot[4..]);
    assert_eq!(slot, [0, 0, 0, 0, 0, 0, 0x40, 0], "no slot, and something present");
}

#[test]
fn bars_that_cannot_be_are_refused() {
    let wide = BarKind::Memory64 { prefetchable: false };
    for (index, kind, size, message) in [
        (0, MEMORY, 0, "no 32-bit memory BAR has 0x0 bytes: it takes a power of two from 0x10 to 0x80000000"),
        (
            0,
            MEMORY,
            0x1800,
            "no 32-bit memory BAR has 0x1800 bytes: it takes a power of two from 0x10 to 0x80000000",
        ),
        (
            0,
            MEMORY,
            1 << 32,
            "no 32-bit memory BAR has 0x100000000 bytes: it takes a power of two from 0x10 to 0x80000000",
        ),
        (0, BarKind::Io, 512, "no I/O BAR has 0x200 bytes: it takes a power of two from 0x4 to 0x100"),
        (
            6,
            BarKind::Rom,
            0x400,
            "no expansion ROM BAR has 0x400 bytes: it takes a power of two from 0x800 to 0x1000000",
        ),
        (5, wide, 0x1000, "BAR 5 is not for 64-bit memory"),
        (6, MEMORY, 0x1000, "BAR 6 is not for 32-bit memory"),
        (0, BarKind::Rom, 0x1000, "BAR 0 is not for expansion ROM"),
        (2, wide, 0x1000, "BAR 3 is taken"),
    ] {
        let mut space = ConfigSpace::new(IDENTITY);
        space.add_bar(bar(3), MEMORY, 0x1000).unwrap();
        assert_eq!(space.add_bar(bar(index), kind, size).unwrap_err().to_string(), message);
    }
    let mut space = ConfigSpace::new(IDENTITY);
    space.add_bar(bar(2), wide, 0x1000).unwrap();
    assert_eq!(space.add_bar(bar(3), MEMORY, 0x1000), Err(ConfigError::BarTaken(bar(3))));
    // The last registers are as good as the others.
    space.clone().add_bar(bar(4), wide, 0x1000).unwrap();
    space.add_bar(bar(5), MEMORY, 0x1000).unwrap();
}

#[test]
fn a_list_that_is_full_says_so() {
    let mut space = ConfigSpace::new(IDENTITY);
    let big = Capability::vendor_specific(&[0xaa; 300]);
    assert_eq!(big.len(), 256);
    assert!(matches!(space.add_capability(&big), Err(ConfigError::NoRoom { id: 9, length: 256, left: 192 })));
    let fits = Capability::vendor_specific(&[0xaa; 189]);
    assert_eq!(space.add_capability(&fits), Ok(0x40));
    assert!(space.add_capability(&Capability::power_management()).is_err());
    assert_eq!(space.bytes(0x34..0x35), [0x40]);
    assert_eq!(space.bytes(0x41..0x42), [0], "it ends there");
    let whole = Capability::extended(0xb, 1, &vec![0; 0xf00 - 4]);
    assert_eq!(space.add_capability(&whole), Ok(0x100));
    assert!(space.add_capability(&Capability::extended(0xb, 1, &[])).is_err());
}

#[test]
fn a_rom_decodes_when_it_is_enabled_itself() {
    let mut space = ConfigSpace::new(IDENTITY);
    space.add_bar(BarIndex::ROM, BarKind::Rom, 0x1000).unwrap();
    space.write(4, &[2, 0]);
    space.write(0x30, &[0, 0, 0, 0x20]);
    assert_eq!(space.decoded(), []);
    space.write(0x30, &[1]);
    let rom = DecodedBar { bar: BarIndex::ROM, space: Space::Memory, base: 0x2000_0000, size: 0x1000 };
    assert_eq!(space.decoded(), [rom]);
    // In the order of their indices, whichever was added first.
    space.add_bar(bar(1), MEMORY, 0x1000).unwrap();
    space.write(0x14, &[0, 0, 0, 0x30]);
    assert_eq!(space.decoded(), [DecodedBar { bar: bar(1), base: 0x3000_0000, ..rom }, rom]);
}

#[test]
fn a_state_that_the_function_does_not_have_is_not_taken() {
    let mut space = ConfigSpace::new(IDENTITY);
    space.add_bar(bar(0), MEMORY, 0x1000).unwrap();
    let at = space.add_capability(&Capability::power_management()).unwrap() + 4;
    space.write(0x10, &[0, 0, 0, 0x20]);
    space.write(4, &[2, 0]);
    for (written, state) in [(1, 0), (2, 0), (3, 3), (1, 3), (0, 0)] {
        let write = space.write(at, &[written]);
        assert_eq!((space.power_state(), write.after & 3), (state, state.into()), "{written}");
        assert_eq!(space.decoded().len(), usize::from(state == 0), "in D3hot nothing decodes");
    }
}

#[test]
fn a_function_may_send_requests_when_software_lets_it() {
    let mut space = ConfigSpace::new(IDENTITY);
    assert!(!space.bus_master());
    let write = space.write(4, &[4, 4]);
    assert_eq!((space.bus_master(), write.changed()), (true, 0x404));
    assert_eq!((space.write(4, &[3, 4]).changed(), space.bus_master()), (4, false));
}

#[test]
fn intx_is_pending_whether_it_is_disabled_or_not() {
    let mut space = ConfigSpace::new(IDENTITY);
    space.set_intx_status(true);
    assert!(space.intx_level());
    space.write(5, &[4]);
    assert!(space.intx_disabled() && !space.intx_level());
    assert_eq!(space.bytes(6..7), [8]);
    space.set_intx_status(false);
    space.write(5, &[0]);
    assert_eq!((space.intx_level(), space.bytes(6..7)), (false, vec![0]));
}

#[test]
fn a_reset_undoes_what_software_and_the_function_have_changed() {
    let mut space = ConfigSpace::new(IDENTITY);
    space.add_bar(bar(0), MEMORY, 0x1000).unwrap();
    let at = space.add_capability(&Capability::express(ExpressKind::Endpoint, true)).unwrap();
    let before = space.bytes(0..0x1000);
    space.write(4, &[7, 4]);
    space.write(0x10, &[0xff; 4]);
    space.set(at + 0x0a, &[0x0f]);
    space.set(0xffe, &[1, 2, 3]);
    space.set(at + 0x3c, &[1]);
    assert_eq!(space.bytes(0xffe..0x1000), [0, 0], "what is not there stays away");
    assert_eq!(space.bytes(at + 0x3c..at + 0x3d), [0], "right behind the last of it, too");
    // The status register: an error, and the bit that there are capabilities.
    space.set(7, &[0x80]);
    space.write(6, &[0xff, 0xff]);
    assert_eq!(space.bytes(6..8), [0x10, 0], "an error is cleared by a one");
    space.write(at + 0x0a, &[0x05]);
    assert_eq!(space.bytes(at + 0x0a..at + 0x0b), [0x0a], "cleared by ones");
    let reset = space.write(at + 9, &[0x80]);
    assert!(space.asks_for_reset(&reset));
    assert_eq!(reset.after & 0x8000, 0);
    space.reset();
    assert_eq!(space.bytes(0..0x1000), before);
}
