// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use vgic::{Created, InitializedVgic, Vgic, VgicError};

fn wrong(gic: Vgic<Created>) -> Result<InitializedVgic, VgicError> {
    gic.init()
}

fn main() {}
