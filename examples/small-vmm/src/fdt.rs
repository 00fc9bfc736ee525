// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest is told of its machine.

use irq_types::{Ppi, Spi, TriggerMode};
use irqfd::LevelTrigger;
use vgic::GicLayout;
use vm_fdt::FdtWriter;

use crate::vmm::{Error, INITRD, RAM, RAM_SIZE, UART};

pub(crate) fn device_tree(
    gic: &GicLayout,
    spi: Spi,
    cmdline: &str,
    initrd_end: u64,
) -> Result<Vec<u8>, Error> {
    let nodes = gic.fdt_nodes(1);
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", nodes.phandles().gic)?;
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", cmdline)?;
    fdt.property_u64("linux,initrd-start", INITRD)?;
    fdt.property_u64("linux,initrd-end", initrd_end)?;
    fdt.end_node(chosen)?;
    let memory = fdt.begin_node("memory@40000000")?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM, RAM_SIZE as u64])?;
    fdt.end_node(memory)?;
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    let cpu = fdt.begin_node("cpu@0")?;
    fdt.property_string("device_type", "cpu")?;
    fdt.property_string("compatible", "arm,armv8")?;
    fdt.property_u64("reg", 0)?;
    fdt.property_string("enable-method", "psci")?;
    fdt.end_node(cpu)?;
    fdt.end_node(cpus)?;
    let psci = fdt.begin_node("psci")?;
    fdt.property_string("compatible", "arm,psci-1.0")?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;
    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let mut cells = Vec::new();
    for ppi in [13, 14, 11, 10] {
        cells.extend(gic.config().ppi_cells(Ppi::new(ppi)?, TriggerMode::Level));
    }
    fdt.property_array_u32("interrupts", &cells)?;
    fdt.end_node(timer)?;
    let serial = fdt.begin_node("serial@9000000")?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[UART, 0x1000])?;
    fdt.property_u32("clock-frequency", 1_843_200)?;
    fdt.property_array_u32("interrupts", &spi.fdt_cells(LevelTrigger::MODE))?;
    fdt.end_node(serial)?;
    nodes.write(&mut fdt)?;
    fdt.end_node(root)?;
    Ok(fdt.finish()?)
}
