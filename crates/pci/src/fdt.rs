// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host bridge's node in a device tree.

use std::ops::Range;

use vm_fdt::{Error, FdtWriter};

use crate::{HostBridge, HostConfig, IntxPin};

/// Where the messages of the functions go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsiReceiver {
    /// To an ITS, which tells functions apart by their requester IDs: `msi-map`, all of them one to one.
    Its {
        /// The ITS's phandle.
        phandle: u32,
    },
    /// To a GICv2m frame, which cannot tell who writes: `msi-parent`.
    Frame {
        /// The frame's phandle.
        phandle: u32,
    },
    /// Nowhere: functions have their lines alone.
    None,
}

/// Where the four lines of the host bridge go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntxTarget {
    /// The interrupt controller's phandle.
    pub controller: u32,
    /// The controller's `#address-cells`: that many cells of zeros go between its phandle and the interrupt's cells.
    pub address_cells: usize,
    /// For each line by its [number](HostBridge::line), the interrupt's cells as the controller wants them: level, active high.
    pub lines: [Vec<u32>; 4],
}

/// What a host bridge's node says, besides where the bridge is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNode {
    /// Where messages go.
    pub messages: MsiReceiver,
    /// Where lines go, if they go anywhere.
    pub lines: Option<IntxTarget>,
}

// The first cell of a PCI address (IEEE Std 1275-1994 PCI bus binding, section 2.2.1.1): the space.
const IO_SPACE: u32 = 0x0100_0000;
const MEMORY_SPACE_32: u32 = 0x0200_0000;
const MEMORY_SPACE_64: u32 = 0x0300_0000;
/// In the same cell, where a device number begins.
const DEVICE_SHIFT: u32 = 11;

impl HostBridge {
    /// Writes the bridge's node as a child of the node that is open, whose `#address-cells` and `#size-cells` are 2. The bindings are Linux's
    /// `pci/host-generic-pci.yaml`, `pci/pci-msi.txt` and the specification's `interrupt-map`.
    ///
    /// # Errors
    /// When the writer refuses.
    pub fn write_fdt(&self, node: &HostNode, fdt: &mut FdtWriter) -> Result<(), Error> {
        let config = self.config();
        let pcie = fdt.begin_node(&format!("pcie@{:x}", config.ecam))?;
        fdt.property_string("compatible", "pci-host-ecam-generic")?;
        fdt.property_string("device_type", "pci")?;
        fdt.property_u32("linux,pci-domain", config.segment.into())?;
        fdt.property_u32("#address-cells", 3)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_array_u32("bus-range", &[0, u32::from(config.buses) - 1])?;
        fdt.property_array_u64("reg", &[config.ecam, u64::from(config.buses) << 20])?;
        fdt.property_array_u32("ranges", &ranges(config))?;
        fdt.property_null("dma-coherent")?;
        match node.messages {
            MsiReceiver::Its { phandle } => fdt.property_array_u32("msi-map", &[0, phandle, 0, 0x1_0000])?,
            MsiReceiver::Frame { phandle } => fdt.property_u32("msi-parent", phandle)?,
            MsiReceiver::None => {}
        }
        if let Some(target) = &node.lines {
            fdt.property_u32("#interrupt-cells", 1)?;
            // A line depends on the device number's two lowest bits, and on the pin.
            fdt.property_array_u32("interrupt-map-mask", &[3 << DEVICE_SHIFT, 0, 0, 7])?;
            fdt.property_array_u32("interrupt-map", &interrupt_map(target))?;
        }
        fdt.end_node(pcie)
    }
}

/// The windows: PCI address (3 cells), the CPU's address (2), size (2).
#[allow(clippy::cast_possible_truncation, reason = "addresses are split into cells")]
fn ranges(config: &HostConfig) -> Vec<u32> {
    let cells = |address: u64| [(address >> 32) as u32, address as u32];
    let window = |space: u32, pci: u64, cpu: Range<u64>| {
        let parts = [cells(pci), cells(cpu.start), cells(cpu.end - cpu.start)];
        std::iter::once(space).chain(parts.into_iter().flatten()).collect::<Vec<u32>>()
    };
    let mut all = Vec::new();
    if let Some(io) = config.io {
        all.extend(window(IO_SPACE, 0, io.base..io.base + io.size));
    }
    all.extend(window(MEMORY_SPACE_32, config.memory32.start, config.memory32.clone()));
    if let Some(range) = &config.memory64 {
        // Not marked prefetchable: then it serves BARs that are not, too.
        all.extend(window(MEMORY_SPACE_64, range.start, range.clone()));
    }
    all
}

fn interrupt_map(target: &IntxTarget) -> Vec<u32> {
    let mut map = Vec::new();
    for device in 0..4_u8 {
        for pin in IntxPin::ALL {
            map.extend([u32::from(device) << DEVICE_SHIFT, 0, 0, pin as u32, target.controller]);
            map.extend(std::iter::repeat_n(0, target.address_cells));
            map.extend(&target.lines[pin.swizzled(device).index()]);
        }
    }
    map
}
