// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::super::overlay::{self, tests::Blob};
use super::*;
use crate::host::Sysfs;
use std::fs;
use vmm_sys_util::tempdir::TempDir;

/// A directory that looks like a device tree in sysfs.
struct Tree(TempDir);

impl Tree {
    fn new(properties: &[(&str, &[u8])]) -> Self {
        let root = TempDir::new().unwrap();
        let base = root.as_path().join("firmware/devicetree/base");
        fs::create_dir_all(&base).unwrap();
        for (path, value) in properties {
            let path = base.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        Self(root)
    }

    fn node(&self, name: &str) -> GuestNode {
        let root = self.0.as_path();
        let host = HostNode::read(&root.join("firmware/devicetree/base").join(name)).unwrap();
        GuestNode::from_host(&host, &HostTree::new(&Sysfs::at(root)))
    }
}

fn dropped(node: &GuestNode) -> Vec<&str> {
    node.dropped().iter().map(|dropped| dropped.property.as_str()).collect()
}

const CLOCK: [(&str, &[u8]); 4] = [
    ("apb-pclk/compatible", b"fixed-clock\0"),
    ("apb-pclk/#clock-cells", &[0; 4]),
    ("apb-pclk/clock-frequency", &[1, 0x6e, 0x36, 0]),
    ("apb-pclk/phandle", &[0, 0, 0x80, 0]),
];

/// What the guest finds: the node's root, read back.
fn written(node: &GuestNode, phandle: &mut u32) -> Node {
    let mut fdt = FdtWriter::new().unwrap();
    let root = fdt.begin_node("").unwrap();
    node.write(&mut fdt, phandle).unwrap();
    fdt.end_node(root).unwrap();
    overlay::parse(&fdt.finish().unwrap()).unwrap()
}

/// A node's properties, in order.
fn properties(node: &Node) -> Vec<(&str, &[u8])> {
    node.properties.iter().map(|property| (property.name.as_str(), property.value.as_slice())).collect()
}

#[test]
fn a_pl011_keeps_what_it_is_and_its_shared_clock() {
    let mut of_the_host = CLOCK.to_vec();
    of_the_host.extend([
        ("pl011@9000000/clock-names", &b"uartclk\0apb_pclk\0"[..]),
        ("pl011@9000000/clocks", &[0, 0, 0x80, 0, 0, 0, 0x80, 0]),
        ("pl011@9000000/compatible", b"arm,pl011\0arm,primecell\0"),
        ("pl011@9000000/interrupts", &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4]),
        ("pl011@9000000/name", b"pl011\0"),
        ("pl011@9000000/reg", &[0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]),
    ]);
    let tree = Tree::new(&of_the_host);
    let mut node = tree.node("pl011@9000000");
    assert_eq!(dropped(&node), [""; 0]);
    node.place(vec![(0x0c02_0000, 0x1000)], vec![(Spi::new(18).unwrap(), TriggerMode::Level)]);
    let mut phandle = 0x1000;
    let guest = written(&node, &mut phandle);
    assert_eq!(phandle, 0x1001);
    let [clock, device] = &guest.children[..] else { panic!("a clock and a device: {guest:?}") };
    assert_eq!((clock.name.as_str(), device.name.as_str()), ("clock-c020000-0", "pl011@c020000"));
    let clock_is: [(&str, &[u8]); 4] = [
        ("compatible", b"fixed-clock\0"),
        ("#clock-cells", &[0; 4]),
        ("clock-frequency", &[1, 0x6e, 0x36, 0]),
        ("phandle", &[0, 0, 0x10, 0]),
    ];
    assert_eq!(properties(clock), clock_is);
    let device_is: [(&str, &[u8]); 5] = [
        ("reg", &[0, 0, 0, 0, 0x0c, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]),
        // Of the guest's line.
        ("interrupts", &[0, 0, 0, 0, 0, 0, 0, 18, 0, 0, 0, 4]),
        // Both are one.
        ("clocks", &[0, 0, 0x10, 0, 0, 0, 0x10, 0]),
        ("clock-names", b"uartclk\0apb_pclk\0"),
        ("compatible", b"arm,pl011\0arm,primecell\0"),
    ];
    assert_eq!(properties(device), device_is);
}

#[test]
fn clocks_that_are_two_stay_two_and_an_open_input_stays_open() {
    let mut of_the_host = CLOCK.to_vec();
    of_the_host.extend([
        ("other/compatible", &b"fixed-clock\0"[..]),
        ("other/#clock-cells", &[0; 4]),
        ("other/clock-frequency", &[1, 0x6e, 0x36, 0]),
        ("other/phandle", &[0, 0, 0x80, 1]),
        // Inputs: the other, none, the first, the other.
        ("dev@5/clocks", &[0, 0, 0x80, 1, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0x80, 1]),
        ("dev@5/phandle", &[0, 0, 0x80, 2]),
    ]);
    let tree = Tree::new(&of_the_host);
    let mut node = tree.node("dev@5");
    assert_eq!(dropped(&node), [""; 0]);
    node.place(vec![(0x0c01_0000, 0x100), (0x0c02_0000, 0x200)], Vec::new());
    let mut phandle = 7;
    let guest = written(&node, &mut phandle);
    assert_eq!(phandle, 10);
    let names: Vec<&str> = guest.children.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["clock-c010000-0", "clock-c010000-1", "dev@c010000"]);
    let device_is: [(&str, &[u8]); 3] = [
        (
            "reg",
            &[
                0, 0, 0, 0, 0x0c, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x0c, 2, 0, 0, 0, 0, 0, 0, 0,
                0, 2, 0,
            ],
        ),
        // Without names there is nothing but the place to tell inputs apart by.
        ("clocks", &[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 7]),
        ("phandle", &[0, 0, 0, 9]),
    ];
    assert_eq!(properties(&guest.children[2]), device_is);
}

#[test]
fn a_name_is_one_that_a_node_may_have() {
    let tree = HostTree::new(&Sysfs::at("/nonexistent"));
    let long = "n".repeat(31);
    for (of_the_host, guests) in [
        ("pl011@9000000", "pl011"),
        ("1-wire,a.b_c+d~@5", "wire,a.b_c+d"),
        ("9@1", "device"),
        (&format!("{long}n@1"), &long),
    ] {
        let host = HostNode { name: of_the_host.to_owned(), ..HostNode::default() };
        let guest = written(&GuestNode::from_host(&host, &tree), &mut 1);
        assert_eq!(guest.children[0].name, guests);
    }
}

#[test]
fn references_that_the_guest_cannot_follow_are_dropped_with_a_reason() {
    let properties: [(&str, &[u8]); 17] = [
        ("soc/phandle", &[0, 0, 0, 9]),
        ("soc/#clock-cells", &[0, 0, 0, 2]),
        ("soc/compatible", b"vendor,clocks\0"),
        ("dev@1/compatible", b"vendor,thing\0"),
        ("dev@1/vendor,depth", &[0, 0, 0, 7]),
        // Two clocks of a provider with two cells, one the bus clock of a PrimeCell.
        ("dev@1/clocks", &[0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0, 0, 4]),
        ("dev@1/clock-names", b"core\0apb_pclk\0"),
        ("dev@1/iommus", &[0, 0, 0, 3]),
        ("dev@1/vmmc-supply", &[0, 0, 0, 4]),
        ("dev@1/pinctrl-0", &[0, 0, 0, 5]),
        ("dev@1/reset-gpios", &[0, 0, 0, 6]),
        ("dev@1/enable-gpio", &[0, 0, 0, 6]),
        ("dev@1/gpios", &[0, 0, 0, 6]),
        // How many it has.
        ("dev@1/snps,nr-gpios", &[0, 0, 0, 32]),
        ("dev@1/a-name-of-more-than-thirty-one-characters", b""),
        ("dev@1/status", b"okay\0"),
        ("dev@1/port/endpoint", b""),
    ];
    let tree = Tree::new(&properties);
    let node = tree.node("dev@1");
    assert_eq!(
        dropped(&node),
        [
            "a-name-of-more-than-thirty-one-characters",
            "enable-gpio",
            "gpios",
            "iommus",
            "pinctrl-0",
            "reset-gpios",
            "vmmc-supply",
            "port",
            "clocks: core"
        ]
    );
    let kept: Vec<&str> = node.properties.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(kept, ["compatible", "snps,nr-gpios", "vendor,depth"]);
    assert_eq!(node.clock_names, ["apb_pclk"], "AMBA devices are not looked at without one");
    assert!(node.dropped().iter().all(|dropped| !dropped.reason.is_empty()));
}

#[test]
fn a_controller_that_others_refer_to_has_a_phandle_and_a_user_may_set_what_is_missing() {
    let tree = Tree::new(&[
        ("pl061@9030000/phandle", &[0, 0, 0x80, 6]),
        ("pl061@9030000/gpio-controller", b""),
        ("pl061@9030000/#gpio-cells", &[0, 0, 0, 2]),
        ("pl061@9030000/clocks", &[0, 0, 0, 1]),
    ]);
    let mut node = tree.node("pl061@9030000");
    assert!(node.wants_phandle);
    assert_eq!(dropped(&node), ["clocks"]);
    node.set("#gpio-cells", vec![0, 0, 0, 3]);
    assert_eq!(node.properties.iter().filter(|(name, _)| name == "#gpio-cells").count(), 1);
}

/// The properties of a device's node after this overlay was applied to it.
fn with_overlay(node: &mut GuestNode, overlay: &Blob) -> Node {
    node.apply(Overlay::parse(&overlay.finish()).unwrap()).unwrap();
    written(node, &mut 0x1000).children.pop().unwrap()
}

#[test]
fn an_overlay_gives_what_was_dropped_with_phandles_of_the_guests() {
    let tree = Tree::new(&[
        ("mmc@1/compatible", b"vendor,mmc\0"),
        ("mmc@1/vmmc-supply", &[0, 0, 0, 4]),
        ("mmc@1/phandle", &[0, 0, 0x80, 9]),
        ("mmc@1/card/reg", &[0; 4]),
        ("mmc@1/other/reg", &[0; 4]),
    ]);
    let mut node = tree.node("mmc@1");
    assert_eq!(dropped(&node), ["vmmc-supply", "card", "other"]);
    // /dts-v1/; /plugin/; &{/} {
    //     vmmc-supply = <&supply 5>; compatible = "other,mmc"; bus-width = <8>;
    //     supply: regulator { ready-gpios = <1 &pin>; };
    //     card { pin: pin {}; };
    // };
    let overlay = Blob::overlay(|blob| {
        blob.prop("vmmc-supply", &[0, 0, 0, 1, 0, 0, 0, 5]);
        blob.prop("compatible", b"other,mmc\0").prop("bus-width", &[0, 0, 0, 8]);
        blob.begin("regulator").prop("ready-gpios", &[0, 0, 0, 1, 0, 0, 0, 2]);
        blob.prop("phandle", &[0, 0, 0, 1]).end();
        blob.begin("card").begin("pin").prop("phandle", &[0, 0, 0, 2]).end().end()
    })
    .local_fixups(|blob| {
        blob.prop("vmmc-supply", &[0; 4]);
        blob.begin("regulator").prop("ready-gpios", &[0, 0, 0, 4]).end()
    });
    node.apply(Overlay::parse(&overlay.finish()).unwrap()).unwrap();
    assert_eq!(dropped(&node), ["other"]);
    let mut phandle = 0x1000;
    let guest = written(&node, &mut phandle);
    assert_eq!(phandle, 0x1003, "the device's own, and two of the overlay's");
    let device = &guest.children[0];
    let device_is: [(&str, &[u8]); 4] = [
        ("phandle", &[0, 0, 0x10, 0]),
        ("vmmc-supply", &[0, 0, 0x10, 1, 0, 0, 0, 5]),
        ("compatible", b"other,mmc\0"),
        ("bus-width", &[0, 0, 0, 8]),
    ];
    assert_eq!(properties(device), device_is, "what both have is the overlay's");
    let [regulator, card] = &device.children[..] else { panic!("{device:?}") };
    let regulator_is: [(&str, &[u8]); 2] =
        [("ready-gpios", &[0, 0, 0, 1, 0, 0, 0x10, 2]), ("phandle", &[0, 0, 0x10, 1])];
    assert_eq!(properties(regulator), regulator_is);
    assert_eq!(properties(&card.children[0]), [("phandle", &[0, 0, 0x10, 2][..])]);
}

#[test]
fn what_an_overlay_says_of_clocks_and_phandle_is_not_said_twice() {
    let mut of_the_host = CLOCK.to_vec();
    of_the_host.extend([
        ("soc/phandle", &[0, 0, 0, 9][..]),
        ("soc/#clock-cells", &[0; 4]),
        ("a@1/clocks", &[0, 0, 0x80, 0, 0, 0, 0, 9]),
        ("a@1/clock-names", b"core\0bus\0"),
        ("a@1/phandle", &[0, 0, 0x80, 1]),
    ]);
    let tree = Tree::new(&of_the_host);
    let mut node = tree.node("a@1");
    assert_eq!(dropped(&node), ["clocks: bus"]);
    let device = with_overlay(&mut node, &Blob::overlay(|blob| blob.prop("clock-names", b"x\0")));
    let device_is: [(&str, &[u8]); 3] =
        [("clocks", &[0, 0, 0x10, 0]), ("phandle", &[0, 0, 0x10, 1]), ("clock-names", b"x\0")];
    assert_eq!((properties(&device).as_slice(), dropped(&node)), (&device_is[..], vec!["clocks: bus"]));

    let mut node = tree.node("a@1");
    let overlay = Blob::overlay(|blob| blob.prop("clocks", &[0; 4]).prop("phandle", &[0, 0, 0, 3]));
    let device = with_overlay(&mut node, &overlay);
    let device_is: [(&str, &[u8]); 2] = [("clocks", &[0; 4]), ("phandle", &[0, 0, 0x10, 2])];
    assert_eq!((properties(&device).as_slice(), dropped(&node)), (&device_is[..], vec![]));
}

#[test]
fn where_a_device_is_and_whom_it_interrupts_is_not_an_overlays_to_say() {
    let tree = Tree::new(&[("a@1/compatible", b"a\0")]);
    for name in ["reg", "interrupts", "interrupts-extended", "interrupt-parent"] {
        let mut node = tree.node("a@1");
        let overlay = Blob::overlay(|blob| blob.prop("compatible", b"b\0").prop(name, &[0; 16]));
        let overlay = Overlay::parse(&overlay.finish()).unwrap();
        assert_eq!(node.apply(overlay), Err(OverlayError::Ours(name.to_owned())));
        assert_eq!(node, tree.node("a@1"), "nothing of it is applied");
    }
}
