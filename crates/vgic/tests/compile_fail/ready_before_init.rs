// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use irqchip::IrqchipReady;
use vgic::{VcpusFinal, Vgic};

fn wrong(gic: &Vgic<VcpusFinal>) -> &IrqchipReady {
    gic.ready()
}

fn main() {}
