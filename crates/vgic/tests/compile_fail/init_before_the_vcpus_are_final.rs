// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use vgic::{Addressed, InitializedVgic, Vgic, VgicError};

fn wrong(gic: Vgic<Addressed>) -> Result<InitializedVgic, VgicError> {
    gic.init()
}

fn main() {}
