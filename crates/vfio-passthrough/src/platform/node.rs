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
    /// For each clock input, which of `clocks`, if it has one.
    clock_inputs: Vec<Option<usize>>,
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

/// References to other nodes, which the guest's tree does not have: those that Linux 6.12 follows (`drivers/of/property.c`,
/// `of_supplier_bindings`), and what goes with them.
const REFERENCES: &[&str] = &[
    "access-controller-names",
    "access-controllers",
    "assigned-clock-parents",
    "assigned-clock-rates",
    "assigned-clocks",
    "backlight",
    "dma-names",
    "dmas",
    "extcon",
    "gpio",
    "gpio-ranges",
    "gpios",
    "hwlocks",
    "interconnect-names",
    "interconnects",
    "interrupt-map",
    "interrupt-map-mask",
    "io-backends",
    "io-channel-names",
    "io-channels",
    "iommu-map",
    "iommus",
    "leds",
    "mbox-names",
    "mboxes",
    "memory-region",
    "memory-region-names",
    "msi-map",
    "msi-parent",
    "nvmem-cell-names",
    "nvmem-cells",
    "operating-points-v2",
    "panel",
    "phy-handle",
    "phy-names",
    "phys",
    "post-init-providers",
    "power-domain-names",
    "power-domains",
    "power-supplies",
    "pses",
    "pwm-names",
    "pwms",
    "reset-names",
    "resets",
    "thermal-sensors",
    "wakeup-parent",
];
const REFERENCE_ENDINGS: &[&str] = &["-gpio", "-gpios", "-supply"];
const REFERENCE_BEGINNINGS: &[&str] = &["pinctrl-"];
/// A number of GPIOs, which only ends like a reference.
const COUNT_ENDING: &str = ",nr-gpios";

/// The rate that stands in for a bus clock whose own is not known. Drivers only switch an `apb_pclk` on and off, but an AMBA
/// device without one is not even looked at (Linux 6.12, `drivers/amba/bus.c`, `amba_get_enable_pclk`).
const BUS_CLOCK: u32 = 24_000_000;

impl GuestNode {
    /// The node for a device whose host node is `host`.
    #[must_use]
    pub fn from_host(host: &HostNode, tree: &HostTree) -> Self {
        let base = host.name.split('@').next().unwrap_or_default();
        // As a node's name has to be: a letter first (Devicetree Specification, section 2.2.1), which Linux does not insist on.
        let name: String = base
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || "-_,.+".contains(*c))
            .skip_while(|c| !c.is_ascii_alphabetic())
            .take(31)
            .collect();
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
            // An input that the host leaves open, which holds the place of an optional clock: no provider, and so no cells of one.
            if phandle == 0 {
                self.clock_inputs.push(None);
                self.clock_names.push(name);
                continue;
            }
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
            let clock = self.clocks.iter().position(|clock| clock.source == phandle);
            let clock = clock.unwrap_or_else(|| {
                self.clocks.push(FixedClock { rate, source: phandle });
                self.clocks.len() - 1
            });
            self.clock_inputs.push(Some(clock));
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
                "clock-names" => self.clock_names.clear(),
                _ => {}
            }
        }
        self.dropped.retain(|dropped| !node.has_child(&dropped.property));
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
        let input = |n: &Option<usize>| n.and_then(|n| clocks.get(n).copied()).unwrap_or(0);
        let inputs: Vec<u32> = self.clock_inputs.iter().map(input).collect();
        if !inputs.is_empty() {
            fdt.property_array_u32("clocks", &inputs)?;
            if !self.clock_names.is_empty() && self.clock_names.iter().all(|name| !name.is_empty()) {
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
    let ends_like_one = REFERENCE_ENDINGS.iter().any(|ending| name.ends_with(ending));
    REFERENCES.contains(&name)
        || (ends_like_one && !name.ends_with(COUNT_ENDING))
        || REFERENCE_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Devicetree Specification, section 2.2.4.1.
pub(super) fn is_property_name(name: &str) -> bool {
    (1..=31).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b",._+?#-".contains(&b))
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
