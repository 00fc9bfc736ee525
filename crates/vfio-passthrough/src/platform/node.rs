// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's device-tree node for a device of the host, made from the host's own node.

use std::fmt;

use irq_types::{Spi, TriggerMode};
use vm_fdt::FdtWriter;

use super::overlay::{Node, Overlay, OverlayError};
use super::tree::{HostNode, HostTree};

/// A device-tree node for the guest.
///
/// What says what the device is goes over as it stands: `compatible` and everything that its binding defines for itself. What says where it is
/// and whom it interrupts is written anew. What refers to other nodes of the host's tree cannot go over, since those are not there in
/// the guest; but a clock of fixed rate is as good as a copy of it. The rest is [`dropped`](Self::dropped), each with a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNode {
    name: String,
    properties: Vec<(String, Vec<u8>)>,
    clocks: Vec<FixedClock>,
    /// For each clock input, which of `clocks`.
    clock_inputs: Vec<usize>,
    clock_names: Vec<String>,
    /// Others may refer to it: a GPIO or interrupt controller.
    wants_phandle: bool,
    dropped: Vec<Dropped>,
    regions: Vec<(u64, u64)>,
    interrupts: Vec<(Spi, TriggerMode)>,
    /// What the user adds, and the highest phandle in it.
    overlay: (Node, u32),
}

/// A clock whose rate never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedClock {
    /// Hertz.
    pub rate: u32,
    /// The host's phandle of it, so that inputs that share a clock go on sharing it.
    source: u32,
}

/// A property of the host's node that the guest's does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Its name.
    pub property: String,
    /// Why.
    pub reason: &'static str,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.reason)
    }
}

/// Written anew, or without meaning in the guest's tree, and so not worth a word.
const REBUILT: &[&str] = &[
    "name",
    "phandle",
    "linux,phandle",
    "status",
    "reg",
    "interrupts",
    "interrupts-extended",
    "interrupt-parent",
    "clocks",
    "clock-names",
    "#address-cells",
    "#size-cells",
    "ranges",
];

/// References to other nodes, which the guest's tree does not have.
const REFERENCES: &[&str] = &[
    "assigned-clock-parents",
    "assigned-clock-rates",
    "assigned-clocks",
    "dma-names",
    "dmas",
    "gpio-ranges",
    "hwlocks",
    "interconnect-names",
    "interconnects",
    "interrupt-map",
    "interrupt-map-mask",
    "io-channel-names",
    "io-channels",
    "iommu-map",
    "iommus",
    "mbox-names",
    "mboxes",
    "memory-region",
    "memory-region-names",
    "msi-map",
    "msi-parent",
    "nvmem-cell-names",
    "nvmem-cells",
    "operating-points-v2",
    "phy-handle",
    "phy-names",
    "phys",
    "power-domain-names",
    "power-domains",
    "pwm-names",
    "pwms",
    "reset-names",
    "resets",
    "thermal-sensors",
];
const REFERENCE_ENDINGS: &[&str] = &["-gpio", "-gpios", "-supply"];
const REFERENCE_BEGINNINGS: &[&str] = &["pinctrl-"];

/// The rate that stands in for a bus clock whose own is not known. Drivers only switch an `apb_pclk` on and off, but an AMBA
/// device without one is not even looked at (Linux 6.12, `drivers/amba/bus.c`, `amba_get_enable_pclk`).
const BUS_CLOCK: u32 = 24_000_000;

impl GuestNode {
    /// The node for a device whose host node is `host`.
    #[must_use]
    pub fn from_host(host: &HostNode, tree: &HostTree) -> Self {
        let base = host.name.split('@').next().unwrap_or_default();
        let name: String =
            base.chars().filter(|c| c.is_ascii_alphanumeric() || "-_,.+".contains(*c)).take(31).collect();
        let mut node = Self {
            name: if name.is_empty() { "device".to_owned() } else { name },
            properties: Vec::new(),
            clocks: Vec::new(),
            clock_inputs: Vec::new(),
            clock_names: Vec::new(),
            wants_phandle: host.get("phandle").is_some(),
            dropped: Vec::new(),
            regions: Vec::new(),
            interrupts: Vec::new(),
            overlay: (Node::default(), 0),
        };
        for (property, value) in &host.properties {
            let name = property.as_str();
            if REBUILT.contains(&name) {
                continue;
            }
            if is_reference(name) {
                node.drop_property(name, "refers to a node that the guest's tree does not have");
            } else if !is_property_name(name) {
                node.drop_property(name, "is no name that a device tree may have");
            } else {
                node.properties.push((property.clone(), value.clone()));
            }
        }
        for child in &host.children {
            node.drop_property(child, "is a node of its own");
        }
        node.rebuild_clocks(host, tree);
        node
    }

    fn drop_property(&mut self, property: &str, reason: &'static str) {
        self.dropped.push(Dropped { property: property.to_owned(), reason });
    }

    /// Copies clocks of fixed rate. An input with another clock goes away with its name, but for a bus clock.
    fn rebuild_clocks(&mut self, host: &HostNode, tree: &HostTree) {
        let Some(cells) = host.cells("clocks") else { return };
        let names = host.strings("clock-names");
        let mut cells = cells.into_iter();
        let mut input = 0;
        while let Some(phandle) = cells.next() {
            let name = names.get(input).cloned().unwrap_or_default();
            input += 1;
            let provider = tree.by_phandle(phandle);
            // How many cells say which of the provider's clocks. Without the provider nothing after it can be told apart.
            let Some(arguments) = provider.as_ref().and_then(|provider| provider.cell("#clock-cells")) else {
                self.drop_property("clocks", "their provider is not in the host's tree");
                return;
            };
            for _ in 0..arguments {
                cells.next();
            }
            let fixed = provider
                .filter(|provider| provider.is_compatible("fixed-clock"))
                .and_then(|provider| provider.cell("clock-frequency"));
            let rate = match fixed {
                Some(rate) => rate,
                None if name == "apb_pclk" => BUS_CLOCK,
                None => {
                    self.drop_property(&format!("clocks: {name}"), "its clock's rate is not fixed");
                    continue;
                }
            };
            let clock = self.clocks.iter().position(|clock| clock.source == phandle && clock.rate == rate);
            let clock = clock.unwrap_or_else(|| {
                self.clocks.push(FixedClock { rate, source: phandle });
                self.clocks.len() - 1
            });
            self.clock_inputs.push(clock);
            self.clock_names.push(name);
        }
    }

    /// What of the host's node is not in it.
    #[must_use]
    pub fn dropped(&self) -> &[Dropped] {
        &self.dropped
    }

    /// Sets a property, whatever the host's node says of it: for what only the user can know.
    pub fn set(&mut self, property: &str, value: Vec<u8>) {
        self.properties.retain(|(name, _)| name != property);
        self.properties.push((property.to_owned(), value));
    }

    /// Adds what the user knows and the host's node does not say, or says by reference. What both have is the overlay's.
    ///
    /// # Errors
    /// [`OverlayError::Ours`] if it sets what is made for the guest.
    pub fn apply(&mut self, overlay: Overlay) -> Result<(), OverlayError> {
        const OURS: [&str; 4] = ["reg", "interrupts", "interrupts-extended", "interrupt-parent"];
        let Overlay { node, phandles } = overlay;
        for property in &node.properties {
            let name = property.name.as_str();
            if OURS.contains(&name) {
                return Err(OverlayError::Ours(name.to_owned()));
            }
        }
        for property in &node.properties {
            let name = property.name.as_str();
            self.properties.retain(|(own, _)| own != name);
            self.dropped.retain(|dropped| dropped.property != name);
            match name {
                "phandle" => self.wants_phandle = false,
                "clocks" => {
                    self.clocks.clear();
                    self.clock_inputs.clear();
                    self.clock_names.clear();
                    self.dropped.retain(|dropped| !dropped.property.starts_with("clocks: "));
                }
                _ => {}
            }
        }
        self.overlay = (node, phandles);
        Ok(())
    }

    /// Says where the guest finds the device: its regions (base, bytes) and its interrupts, in the device's own order.
    pub fn place(&mut self, regions: Vec<(u64, u64)>, interrupts: Vec<(Spi, TriggerMode)>) {
        self.regions = regions;
        self.interrupts = interrupts;
    }

    /// Writes it, and its clocks before it, as children of the node that is open, whose `#address-cells` and `#size-cells` are 2 and whose interrupt
    /// parent is the GIC. `next_phandle` is the first phandle that is free, and is moved on.
    ///
    /// # Errors
    /// When the writer refuses.
    pub fn write(&self, fdt: &mut FdtWriter, next_phandle: &mut u32) -> Result<(), vm_fdt::Error> {
        let Self { regions, interrupts, .. } = self;
        let mut phandle = || {
            *next_phandle += 1;
            *next_phandle - 1
        };
        let unit = regions.first().map(|(base, _)| format!("@{base:x}")).unwrap_or_default();
        let mut clocks = Vec::new();
        for (n, clock) in self.clocks.iter().enumerate() {
            let number = phandle();
            // The binding wants "clock-" and a number or rate; the unit address makes it unique among several devices.
            let node = fdt.begin_node(&format!("clock-{}-{n}", unit.trim_start_matches('@')))?;
            fdt.property_string("compatible", "fixed-clock")?;
            fdt.property_u32("#clock-cells", 0)?;
            fdt.property_u32("clock-frequency", clock.rate)?;
            fdt.property_phandle(number)?;
            fdt.end_node(node)?;
            clocks.push(number);
        }
        let node = fdt.begin_node(&format!("{}{unit}", self.name))?;
        if !regions.is_empty() {
            let reg: Vec<u64> = regions.iter().flat_map(|&(base, size)| [base, size]).collect();
            fdt.property_array_u64("reg", &reg)?;
        }
        if !interrupts.is_empty() {
            let cells: Vec<u32> = interrupts.iter().flat_map(|(spi, mode)| spi.fdt_cells(*mode)).collect();
            fdt.property_array_u32("interrupts", &cells)?;
        }
        let inputs: Vec<u32> = self.clock_inputs.iter().filter_map(|&n| clocks.get(n).copied()).collect();
        if !inputs.is_empty() {
            fdt.property_array_u32("clocks", &inputs)?;
            if self.clock_names.iter().all(|name| !name.is_empty()) {
                fdt.property_string_list("clock-names", self.clock_names.clone())?;
            }
        }
        for (name, value) in &self.properties {
            fdt.property(name, value)?;
        }
        if self.wants_phandle {
            fdt.property_phandle(phandle())?;
        }
        let (added, phandles) = &self.overlay;
        added.write(fdt, *next_phandle)?;
        *next_phandle = next_phandle.saturating_add(*phandles);
        fdt.end_node(node)
    }
}

fn is_reference(name: &str) -> bool {
    REFERENCES.contains(&name)
        || REFERENCE_ENDINGS.iter().any(|ending| name.ends_with(ending))
        || REFERENCE_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Devicetree Specification, section 2.2.4.1.
pub(super) fn is_property_name(name: &str) -> bool {
    (1..=31).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b",._+?#-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Sysfs;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// A directory that looks like a device tree in sysfs.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, properties: &[(&str, &[u8])]) -> Self {
            let root = std::env::temp_dir().join(format!("vfio-node-{}-{name}", std::process::id()));
            let base = root.join("firmware/devicetree/base");
            fs::create_dir_all(&base).unwrap();
            for (path, value) in properties {
                let path = base.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, value).unwrap();
            }
            Self(root)
        }

        fn node(&self, name: &str) -> GuestNode {
            let directory = self.0.join("firmware/devicetree/base").join(name);
            let host = HostNode::read(Path::new(&directory)).unwrap();
            GuestNode::from_host(&host, &HostTree::new(&Sysfs::at(&self.0)))
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
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

    #[test]
    fn a_pl011_keeps_what_it_is_and_its_shared_clock() {
        let mut properties = CLOCK.to_vec();
        properties.extend([
            ("pl011@9000000/clock-names", &b"uartclk\0apb_pclk\0"[..]),
            ("pl011@9000000/clocks", &[0, 0, 0x80, 0, 0, 0, 0x80, 0]),
            ("pl011@9000000/compatible", b"arm,pl011\0arm,primecell\0"),
            ("pl011@9000000/interrupts", &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4]),
            ("pl011@9000000/name", b"pl011\0"),
            ("pl011@9000000/reg", &[0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]),
        ]);
        let tree = Tree::new("pl011", &properties);
        let mut node = tree.node("pl011@9000000");
        assert_eq!(dropped(&node), [""; 0]);
        assert_eq!(node.clocks.iter().map(|clock| clock.rate).collect::<Vec<_>>(), [24_000_000]);
        assert_eq!((node.clock_inputs.as_slice(), node.clock_names.len()), ([0, 0].as_slice(), 2));
        assert_eq!(node.properties, [("compatible".to_owned(), b"arm,pl011\0arm,primecell\0".to_vec())]);

        node.place(vec![(0x0c02_0000, 0x1000)], vec![(Spi::new(18).unwrap(), TriggerMode::Level)]);
        let mut fdt = FdtWriter::new().unwrap();
        let root = fdt.begin_node("").unwrap();
        let mut phandle = 0x1000;
        node.write(&mut fdt, &mut phandle).unwrap();
        fdt.end_node(root).unwrap();
        let blob = fdt.finish().unwrap();
        let has = |bytes: &[u8]| blob.windows(bytes.len()).any(|window| window == bytes);
        assert!(has(b"pl011@c020000\0") && has(b"clock-c020000-0\0"));
        assert!(has(&[0, 0, 0, 0, 0x0c, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]), "reg");
        assert!(has(&[0, 0, 0, 0, 0, 0, 0, 18, 0, 0, 0, 4]), "interrupts, of the guest's line");
        assert!(has(&[0, 0, 0x10, 0, 0, 0, 0x10, 0]), "both clocks are one");
        assert_eq!(phandle, 0x1001);
    }

    #[test]
    fn references_that_the_guest_cannot_follow_are_dropped_with_a_reason() {
        let properties: [(&str, &[u8]); 14] = [
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
            ("dev@1/a-name-of-more-than-thirty-one-characters", b""),
            ("dev@1/status", b"okay\0"),
            ("dev@1/port/endpoint", b""),
        ];
        let tree = Tree::new("references", &properties);
        let node = tree.node("dev@1");
        assert_eq!(
            dropped(&node),
            [
                "a-name-of-more-than-thirty-one-characters",
                "iommus",
                "pinctrl-0",
                "reset-gpios",
                "vmmc-supply",
                "port",
                "clocks: core"
            ]
        );
        let kept: Vec<&str> = node.properties.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(kept, ["compatible", "vendor,depth"]);
        assert_eq!(node.clock_names, ["apb_pclk"], "AMBA devices are not looked at without one");
        assert!(node.dropped().iter().all(|dropped| !dropped.reason.is_empty()));
    }

    #[test]
    fn a_controller_that_others_refer_to_has_a_phandle_and_a_user_may_set_what_is_missing() {
        let tree = Tree::new(
            "gpio",
            &[
                ("pl061@9030000/phandle", &[0, 0, 0x80, 6]),
                ("pl061@9030000/gpio-controller", b""),
                ("pl061@9030000/#gpio-cells", &[0, 0, 0, 2]),
                ("pl061@9030000/clocks", &[0, 0, 0, 1]),
            ],
        );
        let mut node = tree.node("pl061@9030000");
        assert!(node.wants_phandle);
        assert_eq!(dropped(&node), ["clocks"]);
        node.set("#gpio-cells", vec![0, 0, 0, 3]);
        assert_eq!(node.properties.iter().filter(|(name, _)| name == "#gpio-cells").count(), 1);
    }

    /// An overlay as dtc makes it from
    /// `/dts-v1/; /plugin/; &{/} { ...properties...; supply: regulator { compatible = "x"; }; vmmc-supply = <&supply>; };`
    /// The writer takes no names that begin with an underscore.
    fn overlay(properties: &[(&str, &[u8])], target: &str) -> Vec<u8> {
        let mut fdt = FdtWriter::new().unwrap();
        let root = fdt.begin_node("").unwrap();
        let fragment = fdt.begin_node("fragment@0").unwrap();
        fdt.property_string("target-path", "/").unwrap();
        let overlay = fdt.begin_node("qqoverlayqq").unwrap();
        for (name, value) in properties {
            fdt.property(name, value).unwrap();
        }
        fdt.property_u32("vmmc-supply", 1).unwrap();
        let regulator = fdt.begin_node("regulator").unwrap();
        fdt.property_string("compatible", "x").unwrap();
        fdt.property_phandle(1).unwrap();
        fdt.end_node(regulator).unwrap();
        fdt.end_node(overlay).unwrap();
        fdt.end_node(fragment).unwrap();
        let fixups = fdt.begin_node("qqfixupsqq").unwrap();
        fdt.property_string("soc", &format!("/fragment@0:{target}:0")).unwrap();
        fdt.end_node(fixups).unwrap();
        let local = fdt.begin_node("qqlocal_fixupsqq").unwrap();
        let fragment = fdt.begin_node("fragment@0").unwrap();
        let overlay = fdt.begin_node("qqoverlayqq").unwrap();
        fdt.property_u32("vmmc-supply", 0).unwrap();
        fdt.end_node(overlay).unwrap();
        fdt.end_node(fragment).unwrap();
        fdt.end_node(local).unwrap();
        fdt.end_node(root).unwrap();
        let mut blob = fdt.finish().unwrap();
        for at in 0..blob.len() {
            if blob[at..].starts_with(b"qq") {
                blob[at..at + 2].fill(b'_');
            }
        }
        blob
    }

    #[test]
    fn an_overlay_gives_what_was_dropped_with_phandles_of_the_guests() {
        let tree = Tree::new(
            "overlay",
            &[("mmc@1/compatible", b"vendor,mmc\0"), ("mmc@1/vmmc-supply", &[0, 0, 0, 4])],
        );
        let mut node = tree.node("mmc@1");
        assert_eq!(dropped(&node), ["vmmc-supply"]);
        let blob = overlay(&[("compatible", b"other,mmc\0"), ("bus-width", &[0, 0, 0, 8])], "target");
        node.apply(Overlay::parse(&blob).unwrap()).unwrap();
        assert_eq!(dropped(&node), [""; 0]);
        let mut fdt = FdtWriter::new().unwrap();
        let root = fdt.begin_node("").unwrap();
        let mut phandle = 0x1000;
        node.write(&mut fdt, &mut phandle).unwrap();
        fdt.end_node(root).unwrap();
        assert_eq!(phandle, 0x1001);
        let blob = fdt.finish().unwrap();
        let has = |bytes: &[u8]| blob.windows(bytes.len()).any(|window| window == bytes);
        assert!(has(b"other,mmc\0") && has(b"bus-width\0") && has(b"regulator\0"));
        assert!(!has(b"vendor,mmc\0"), "what both have is the overlay's");
        let references = blob.chunks(4).filter(|cell| *cell == [0, 0, 0x10, 0]).count();
        assert_eq!(references, 2, "the regulator's phandle and the reference to it");
    }

    #[test]
    fn an_overlay_that_cannot_be_used_is_said_and_no_bytes_panic() {
        let parse = |blob: &[u8]| Overlay::parse(blob).map(|_| ());
        assert_eq!(
            parse(&overlay(&[], "vqmmc-supply")),
            Err(OverlayError::External("soc".to_owned())),
            "a label of somebody else's tree"
        );
        assert_eq!(parse(b"/dts-v1/;"), Err(OverlayError::Blob("it does not begin like one")));
        let tree = Tree::new("overlay-ours", &[("a@1/compatible", b"a\0")]);
        let mut node = tree.node("a@1");
        let ours = Overlay::parse(&overlay(&[("reg", &[0; 16])], "target")).unwrap();
        assert_eq!(node.apply(ours), Err(OverlayError::Ours("reg".to_owned())));
        let good = overlay(&[("bus-width", &[0, 0, 0, 8])], "target");
        for len in 0..good.len() {
            assert!(parse(&good[..len]).is_err(), "{len} of {} bytes", good.len());
        }
        for at in 0..good.len() {
            for byte in [0, 1, 2, 3, 9, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = parse(&bad);
            }
        }
    }
}
