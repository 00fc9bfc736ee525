// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use vgic::{GicConfig, GicVersion, MsiConfig};

fn wrong() -> GicConfig {
    GicConfig { version: GicVersion::V2, vcpus: 9, spis: 33, msi: MsiConfig::Its { count: 1 } }
}

fn main() {}
