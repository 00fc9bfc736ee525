// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use vgic::{Created, GicLayout, Vgic, VgicError};

fn wrong(gic: Vgic<Created>, layout: GicLayout) -> Result<(), VgicError> {
    let addressed = gic.set_addresses(layout.clone())?;
    let again = gic.set_addresses(layout)?;
    drop((addressed, again));
    Ok(())
}

fn main() {}
