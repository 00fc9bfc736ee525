// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use vgic::{Created, VcpusFinal, Vgic, VgicError};

fn wrong(gic: Vgic<Created>) -> Result<Vgic<VcpusFinal>, VgicError> {
    gic.vcpus_final(1)
}

fn main() {}
