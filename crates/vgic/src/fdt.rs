// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::{Ppi, TriggerMode};
use vm_fdt::{Error, FdtWriter};

use crate::{GicLayout, GicVersion, MmioRegion};

/// `#address-cells` of the GIC's node. An `interrupt-map` whose parent is the GIC has this many cells of unit address, all zero,
/// between the parent's phandle and the interrupt's three cells.
pub const INTERRUPT_PARENT_ADDRESS_CELLS: u32 = 2;

/// What the rest of the tree refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GicPhandles {
    /// The GIC: the tree's `interrupt-parent`.
    pub gic: u32,
    /// The receivers of MSIs: each ITS by index, or the GICv2m frame, or nothing. One of them is a host bridge's `msi-parent` or
    /// the target of its `msi-map`.
    pub msi: Vec<u32>,
}

impl GicPhandles {
    /// The first phandle that is free again.
    #[must_use]
    pub fn next(&self) -> u32 {
        self.msi.last().map_or(self.gic, |&last| last) + 1
    }
}

/// The device-tree nodes of a GIC.
#[derive(Debug, Clone)]
pub struct GicNodes<'a> {
    layout: &'a GicLayout,
    phandles: GicPhandles,
    maintenance: Option<Ppi>,
}

impl GicLayout {
    /// The nodes that tell the guest of this GIC, with phandles counted from `first_phandle`: the GIC's own, then one for each
    /// receiver of MSIs.
    #[must_use]
    pub fn fdt_nodes(&self, first_phandle: u32) -> GicNodes<'_> {
        let receivers = self.its_frames().len() + usize::from(self.v2m_frame().is_some());
        let msi = (first_phandle + 1..).take(receivers).collect();
        GicNodes { layout: self, phandles: GicPhandles { gic: first_phandle, msi }, maintenance: None }
    }
}

impl GicNodes<'_> {
    /// How the rest of the tree refers to them.
    #[must_use]
    pub const fn phandles(&self) -> &GicPhandles {
        &self.phandles
    }

    /// Names the maintenance interrupt, PPI 9 by convention, for a guest that runs guests of its own. Others have no use for it.
    #[must_use]
    pub const fn with_maintenance_interrupt(mut self, ppi: Ppi) -> Self {
        self.maintenance = Some(ppi);
        self
    }

    /// Writes them as children of the node that is open, whose `#address-cells` and `#size-cells` are 2, as a root node's
    /// are in practice. The bindings are Linux's `arm,gic.yaml` and `arm,gic-v3.yaml`.
    ///
    /// # Errors
    /// When the writer refuses: no node is open, or a phandle is taken.
    pub fn write(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let layout = self.layout;
        let version = layout.config().version();
        let gic = fdt.begin_node(&unit("interrupt-controller", layout.distributor()))?;
        fdt.property_string(
            "compatible",
            match version {
                GicVersion::V2 => "arm,cortex-a15-gic",
                GicVersion::V3 => "arm,gic-v3",
            },
        )?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 3)?;
        fdt.property_u32("#address-cells", INTERRUPT_PARENT_ADDRESS_CELLS)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_null("ranges")?;
        fdt.property_array_u64("reg", &self.reg())?;
        let regions = layout.redistributor_regions().len();
        if let Ok(regions @ 2..) = u32::try_from(regions) {
            fdt.property_u32("#redistributor-regions", regions)?;
        }
        if let Some(ppi) = self.maintenance {
            let cells = layout.config().ppi_cells(ppi, TriggerMode::Level);
            fdt.property_array_u32("interrupts", &cells)?;
        }
        fdt.property_phandle(self.phandles.gic)?;
        self.write_msi_receivers(fdt)?;
        fdt.end_node(gic)
    }

    /// The distributor, then what serves the CPUs: `reg` in the order of the bindings.
    fn reg(&self) -> Vec<u64> {
        let layout = self.layout;
        std::iter::once(layout.distributor())
            .chain(layout.cpu_interface())
            .chain(layout.redistributor_regions().iter().map(|region| region.mmio()))
            .flat_map(cells)
            .collect()
    }

    fn write_msi_receivers(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let mut phandles = self.phandles.msi.iter().copied();
        for (&its, phandle) in self.layout.its_frames().iter().zip(&mut phandles) {
            let node = fdt.begin_node(&unit("msi-controller", its))?;
            fdt.property_string("compatible", "arm,gic-v3-its")?;
            fdt.property_null("msi-controller")?;
            fdt.property_u32("#msi-cells", 1)?;
            fdt.property_array_u64("reg", &cells(its))?;
            fdt.property_phandle(phandle)?;
            fdt.end_node(node)?;
        }
        if let (Some(frame), Some(phandle)) = (self.layout.v2m_frame(), phandles.next()) {
            let node = fdt.begin_node(&unit("v2m", frame.region()))?;
            fdt.property_string("compatible", "arm,gic-v2m-frame")?;
            fdt.property_null("msi-controller")?;
            fdt.property_array_u64("reg", &cells(frame.region()))?;
            // INTIDs in spite of the name: the driver takes them in place of MSI_TYPER.
            fdt.property_u32("arm,msi-base-spi", frame.spis().first().intid().get())?;
            fdt.property_u32("arm,msi-num-spis", frame.spis().count())?;
            fdt.property_phandle(phandle)?;
            fdt.end_node(node)?;
        }
        Ok(())
    }
}

fn unit(name: &str, region: MmioRegion) -> String {
    format!("{name}@{:x}", region.base)
}

fn cells(region: MmioRegion) -> [u64; 2] {
    [region.base, region.size]
}
