// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which requests reach what is behind a port, as its registers say: buses and windows.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use common::*;
use pci::*;
use proptest::prelude::*;

const MEMORY: BarKind = BarKind::Memory32 { prefetchable: false };
const WIDE: BarKind = BarKind::Memory64 { prefetchable: true };

#[test]
fn a_bus_that_two_ports_claim_is_the_first_ones() {
    let bus = HostBridge::new(host_config()).unwrap();
    let ports = [bdf("0:2.0"), bdf("0:3.0")];
    let devices = [Device::new(&[]), Device::new(&[])];
    for (port, device) in ports.into_iter().zip(&devices).rev() {
        bus.add_port(port, Wires::port(&PortConfig::default()).1).unwrap();
        bus.plug(port, vec![(0, device.clone() as _)]).unwrap();
        bus.set_dword(port, 0x18, 0x00_01_01_00);
    }
    let who = || {
        bus.write_config(bdf("1:0.0"), 0x0c, &[0x5a]);
        let seen = devices.each_ref().map(|device| {
            let mut byte = [0];
            device.endpoint.read(0x0c, &mut byte);
            device.endpoint.write(0x0c, &[0]);
            byte[0] == 0x5a
        });
        (seen, bus.functions().len())
    };
    assert_eq!(who(), ([true, false], 3));
    bus.set_dword(ports[0], 0x18, 0x00_02_02_00);
    assert_eq!(who(), ([false, true], 4));
    bus.set_dword(ports[0], 0x18, 0);
    assert_eq!(who(), ([false, true], 3));
}

proptest! {
    /// Section 7.5.1.3, as arithmetic: base and limit registers are the upper bits of the first and the last address.
    #[test]
    fn what_a_port_forwards_is_what_its_registers_say(
        memory: u32,
        prefetchable: [u32; 3],
        ports: [u16; 3],
        command in 0_u16..4,
        places: [u64; 3],
    ) {
        // Few addresses, so that edges meet.
        let io = Some(IoWindow { base: 0x100_0000_0000, size: 1 << 32 });
        let bus = HostBridge::new(HostConfig { io, memory32: 0x10_0000..0xf000_0000, ..host_config() }).unwrap();
        let (at, behind) = (bdf("0:2.0"), bdf("1:0.0"));
        bus.add_port(at, Wires::port(&PortConfig { io: true, ..PortConfig::default() }).1).unwrap();
        let bars = [(0, MEMORY, 0x8_0000), (2, WIDE, 0x8_0000), (4, BarKind::Io, 0x100)];
        bus.plug(at, vec![(0, Device::new(&bars) as _)]).unwrap();
        bus.set_dword(at, 0x18, 0x00_01_01_00);
        let memory = memory & 0x0030_0030 | 0x2000_2000;
        let [low, base_high, limit_high] = prefetchable;
        let (low, base_high, limit_high) = (low & 0x0010_0010, 0x80 + base_high % 2, 0x80 + limit_high % 2);
        let [ports, base_io, limit_io] = ports;
        let (ports, base_io, limit_io) = (ports & 0x3030, base_io % 3, limit_io % 3);
        bus.set_dword(at, 0x20, memory);
        bus.set_dword(at, 0x24, low);
        bus.set_dword(at, 0x28, base_high);
        bus.set_dword(at, 0x2c, limit_high);
        bus.set_word(at, 0x1c, ports);
        bus.set_dword(at, 0x30, u32::from(limit_io) << 16 | u32::from(base_io));
        bus.set_word(at, 4, command);
        let bars = [
            0x2000_0000 + places[0] % 8 * 0x8_0000,
            0x80_0000_0000 + (places[1] & 1) * 0x1_0000_0000 + (places[1] >> 1) % 4 * 0x8_0000,
            0x1000 + places[2] % 0x400 * 0x100,
        ];
        bus.set_dword(behind, 0x10, bars[0] as u32);
        bus.set_dword(behind, 0x18, bars[1] as u32);
        bus.set_dword(behind, 0x1c, (bars[1] >> 32) as u32);
        bus.set_dword(behind, 0x20, bars[2] as u32);
        bus.set_word(behind, 4, 3);

        let register = |register: u32, shift: u32| u64::from(register >> shift & 0xfff0) << 16;
        let windows = [
            (register(memory, 0), register(memory, 16) + 0x10_0000),
            (
                u64::from(base_high) << 32 | register(low, 0),
                (u64::from(limit_high) << 32 | register(low, 16)) + 0x10_0000,
            ),
        ];
        let reaches = |(base, end): (u64, u64), at: u64, size: u64| base <= at && at + size <= end;
        let memory = |at| windows.iter().any(|window| reaches(*window, at, 0x8_0000));
        let io = (
            u64::from(base_io) << 16 | u64::from(ports & 0xf0) << 8,
            (u64::from(limit_io) << 16 | u64::from(ports & 0xf000)) + 0x1000,
        );
        let expected = [
            command & 2 != 0 && memory(bars[0]),
            command & 2 != 0 && memory(bars[1]),
            command & 1 != 0 && reaches(io, bars[2], 0x100),
        ];
        let placed = bus.placed();
        let found = [0, 2, 4].map(|index| placed.iter().any(|(_, placed)| placed.bar == bar(index)));
        prop_assert_eq!(found, expected);
        prop_assert_eq!(bus.refused().len(), expected.iter().filter(|reached| !**reached).count());
    }
}
