// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use vgic::{GicLayout, InitializedVgic};

fn wrong(gic: InitializedVgic, layout: GicLayout) {
    let _ = gic.set_addresses(layout);
}

fn main() {}
