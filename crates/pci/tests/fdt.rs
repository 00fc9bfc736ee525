// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host bridge's node, property by property.

#![cfg(feature = "fdt")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;
#[path = "../../vgic/tests/common/fdt.rs"]
mod fdt;

use common::*;
use fdt::{Node, cells, cells64, parse};
use pci::*;
use vm_fdt::FdtWriter;

fn node(config: HostConfig, node: &HostNode) -> Node {
    let bus = HostBridge::new(config).unwrap();
    let mut writer = FdtWriter::new().unwrap();
    let root = writer.begin_node("").unwrap();
    bus.write_fdt(node, &mut writer).unwrap();
    writer.end_node(root).unwrap();
    parse(&writer.finish().unwrap()).children.remove(0)
}

fn property(node: &Node, name: &str) -> Option<Vec<u8>> {
    node.properties.iter().find(|(property, _)| property == name).map(|(_, value)| value.clone())
}

#[test]
fn a_host_bridge_with_an_its_and_four_lines() {
    let lines =
        IntxTarget { controller: 2, address_cells: 2, lines: [3, 4, 5, 6].map(|spi| vec![0, spi, 4]) };
    let node = node(
        HostConfig { segment: 1, ..host_config() },
        &HostNode { messages: MsiReceiver::Its { phandle: 3 }, lines: Some(lines) },
    );
    assert_eq!(node.name, "pcie@4010000000");
    let expected = [
        ("compatible", b"pci-host-ecam-generic\0".to_vec()),
        ("device_type", b"pci\0".to_vec()),
        ("linux,pci-domain", cells(&[1])),
        ("#address-cells", cells(&[3])),
        ("#size-cells", cells(&[2])),
        ("bus-range", cells(&[0, 255])),
        ("reg", cells64(&[ECAM, 256 << 20])),
        (
            "ranges",
            cells(&[
                0x0100_0000,
                0,
                0,
                0,
                0x3fff_0000,
                0,
                0x1_0000, //
                0x0200_0000,
                0,
                0x2000_0000,
                0,
                0x2000_0000,
                0,
                0x1fff_0000, //
                0x0300_0000,
                0x80,
                0,
                0x80,
                0,
                0x40,
                0,
            ]),
        ),
        ("dma-coherent", vec![]),
        // Requester IDs are device IDs, all of them.
        ("msi-map", cells(&[0, 3, 0, 0x1_0000])),
        ("#interrupt-cells", cells(&[1])),
        ("interrupt-map-mask", cells(&[0x1800, 0, 0, 7])),
    ];
    for (name, value) in &expected {
        assert_eq!(property(&node, name).as_ref(), Some(value), "{name}");
    }
    assert_eq!(node.properties.len(), expected.len() + 1);
    // The map says of each device and pin what the bus says.
    let map = property(&node, "interrupt-map").unwrap();
    let words: Vec<u32> = map.as_chunks::<4>().0.iter().map(|bytes| u32::from_be_bytes(*bytes)).collect();
    assert_eq!(words.len(), 16 * 10);
    for device in 0..32_u8 {
        for pin in IntxPin::ALL {
            let unit = u32::from(device) << 11 & 0x1800;
            let mut entries = words.chunks(10).filter(|entry| entry[0] == unit && entry[3] == pin as u32);
            let line = HostBridge::line(irq_types::Bdf::new(0, device, 0).unwrap(), pin);
            assert_eq!(entries.next().unwrap()[4..], [2, 0, 0, 0, 3 + line as u32, 4]);
            assert_eq!(entries.next(), None);
        }
    }
    assert_eq!(&words[..20], &[0, 0, 0, 1, 2, 0, 0, 0, 3, 4, 0, 0, 0, 2, 2, 0, 0, 0, 4, 4]);
}

#[test]
fn a_host_bridge_with_a_v2m_frame_or_nothing() {
    let config = HostConfig { buses: 16, memory64: None, io: None, ..host_config() };
    let frame = node(config.clone(), &HostNode { messages: MsiReceiver::Frame { phandle: 7 }, lines: None });
    assert_eq!(property(&frame, "msi-parent"), Some(cells(&[7])));
    assert_eq!(property(&frame, "bus-range"), Some(cells(&[0, 15])));
    assert_eq!(property(&frame, "reg"), Some(cells64(&[ECAM, 16 << 20])));
    let window = [0x0200_0000, 0, 0x2000_0000, 0, 0x2000_0000, 0, 0x1fff_0000];
    assert_eq!(property(&frame, "ranges"), Some(cells(&window)));
    let none = node(config, &HostNode { messages: MsiReceiver::None, lines: None });
    for name in ["msi-map", "msi-parent", "interrupt-map", "interrupt-map-mask"] {
        assert_eq!(property(&none, name), None, "{name}");
    }
}
