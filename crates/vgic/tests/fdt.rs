// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device-tree nodes, read back property by property.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]
#![allow(
    clippy::single_range_in_vec_init,
    reason = "a slice of one window is meant, not the addresses in it"
)]

mod common;

use common::fdt::{Node, cells, cells64, parse};
use irq_types::{Ppi, Spi, TriggerMode};
use vgic::{GicLayout, GicRequest, HostGic, MsiChoice, VersionChoice};
use vm_fdt::FdtWriter;

const ANY: HostGic = HostGic { v2: true, v3: true, its: true };

fn layout(request: GicRequest, windows: &[std::ops::Range<u64>]) -> GicLayout {
    GicLayout::solve(&request.resolve(&ANY).unwrap(), windows).unwrap()
}

fn tree(write: impl FnOnce(&mut FdtWriter)) -> Node {
    let mut fdt = FdtWriter::new().unwrap();
    let root = fdt.begin_node("").unwrap();
    write(&mut fdt);
    fdt.end_node(root).unwrap();
    parse(&fdt.finish().unwrap())
}

fn node(name: &str, properties: &[(&str, Vec<u8>)], children: Vec<Node>) -> Node {
    let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Node { name: name.to_owned(), properties, children }
}

#[test]
fn a_gicv3_with_two_regions_and_two_itses() {
    // 16 MiB at 0x800_0000: distributor, two ITSes, 125 redistributors; five more above.
    let windows = [0x0800_0000..0x0900_0000, 0x100_0000_0000..0x100_0010_0000];
    let layout = layout(GicRequest { vcpus: 130, its_count: 2, ..GicRequest::default() }, &windows);
    let nodes = layout.fdt_nodes(7);
    assert_eq!(
        (nodes.phandles().gic, &nodes.phandles().msi[..], nodes.phandles().next()),
        (7, &[8, 9][..], 10)
    );
    let its = |base: u64, phandle| {
        let properties = [
            ("compatible", b"arm,gic-v3-its\0".to_vec()),
            ("msi-controller", vec![]),
            ("#msi-cells", cells(&[1])),
            ("reg", cells64(&[base, 0x2_0000])),
            ("phandle", cells(&[phandle])),
        ];
        node(&format!("msi-controller@{base:x}"), &properties, vec![])
    };
    let gic = node(
        "interrupt-controller@8000000",
        &[
            ("compatible", b"arm,gic-v3\0".to_vec()),
            ("interrupt-controller", vec![]),
            ("#interrupt-cells", cells(&[3])),
            ("#address-cells", cells(&[2])),
            ("#size-cells", cells(&[2])),
            ("ranges", vec![]),
            (
                "reg",
                cells64(&[0x0800_0000, 0x1_0000, 0x0805_0000, 125 * 0x2_0000, 0x100_0000_0000, 5 * 0x2_0000]),
            ),
            ("#redistributor-regions", cells(&[2])),
            ("phandle", cells(&[7])),
        ],
        vec![its(0x0801_0000, 8), its(0x0803_0000, 9)],
    );
    assert_eq!(tree(|fdt| nodes.write(fdt).unwrap()), node("", &[], vec![gic]));
}

#[test]
fn a_gicv2_with_a_v2m_frame() {
    let request = GicRequest { version: VersionChoice::V2, vcpus: 3, ..GicRequest::default() };
    let layout = layout(request, &[0x0800_0000..0x1000_0000]);
    let nodes = layout.fdt_nodes(1);
    let frame = node(
        "v2m@8020000",
        &[
            ("compatible", b"arm,gic-v2m-frame\0".to_vec()),
            ("msi-controller", vec![]),
            ("reg", cells64(&[0x0802_0000, 0x1000])),
            // SPI 64 is INTID 96.
            ("arm,msi-base-spi", cells(&[96])),
            ("arm,msi-num-spis", cells(&[64])),
            ("phandle", cells(&[2])),
        ],
        vec![],
    );
    let gic = node(
        "interrupt-controller@8000000",
        &[
            ("compatible", b"arm,cortex-a15-gic\0".to_vec()),
            ("interrupt-controller", vec![]),
            ("#interrupt-cells", cells(&[3])),
            ("#address-cells", cells(&[2])),
            ("#size-cells", cells(&[2])),
            ("ranges", vec![]),
            ("reg", cells64(&[0x0800_0000, 0x1000, 0x0801_0000, 0x2000])),
            ("phandle", cells(&[1])),
        ],
        vec![frame],
    );
    assert_eq!(tree(|fdt| nodes.write(fdt).unwrap()), node("", &[], vec![gic]));
}

#[test]
fn without_msis_there_is_only_the_gic_and_one_region_needs_no_count() {
    let layout = layout(GicRequest { msi: MsiChoice::None, ..GicRequest::default() }, &[0..0x100_0000]);
    let nodes = layout.fdt_nodes(1);
    assert_eq!((nodes.phandles().msi.len(), nodes.phandles().next()), (0, 2));
    let tree = tree(|fdt| nodes.write(fdt).unwrap());
    assert!(tree.children[0].children.is_empty());
    let names: Vec<&str> = tree.children[0].properties.iter().map(|(name, _)| name.as_str()).collect();
    assert!(!names.contains(&"#redistributor-regions") && !names.contains(&"interrupts"), "{names:?}");
}

#[test]
fn a_guest_with_guests_of_its_own_learns_of_the_maintenance_interrupt() {
    let layout = layout(GicRequest::default(), &[0..0x100_0000]);
    let nodes = layout.fdt_nodes(1).with_maintenance_interrupt(Ppi::new(9).unwrap());
    let tree = tree(|fdt| nodes.write(fdt).unwrap());
    let interrupts = ("interrupts".to_owned(), cells(&[1, 9, 4]));
    assert!(tree.children[0].properties.contains(&interrupts));
}

#[test]
fn ppi_cells_carry_the_cpu_mask_on_a_gicv2_only() {
    let ppi = Ppi::new(14).unwrap();
    // (version, vCPUs, flags cell)
    for (version, vcpus, flags) in [
        (VersionChoice::V2, 1, 0x0104),
        (VersionChoice::V2, 3, 0x0704),
        (VersionChoice::V2, 8, 0xff04),
        (VersionChoice::V3, 8, 0x0004),
        (VersionChoice::V3, 512, 0x0004),
    ] {
        let config = GicRequest { version, vcpus, ..GicRequest::default() }.resolve(&ANY).unwrap();
        assert_eq!(config.ppi_cells(ppi, TriggerMode::Level), [1, 14, flags], "{config}");
    }
}

#[test]
fn an_spi_that_the_gic_does_not_have_gets_no_cells() {
    let config = GicRequest::default().resolve(&ANY).unwrap();
    let cells = |n| config.spi_cells(Spi::new(n).unwrap(), TriggerMode::Edge);
    assert_eq!(cells(63), Ok([0, 63, 1]));
    assert_eq!(cells(64).unwrap_err().to_string(), "64 is no SPI of this GIC: the range is 0 to 63");
}
