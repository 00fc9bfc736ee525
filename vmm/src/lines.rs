// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine's interrupt lines and messages: one routing table, and what is wired to it.

use std::sync::Arc;

use gsi_routing::{GsiHandle, Router, V2mFrame, models};
use irq_types::Spi;
use irqfd::{LevelTrigger, Wiring};
use kvm_irqchip::KvmVm;
use vgic::InitializedVgic;

use crate::error::{Error, Result};

/// Where devices get their interrupts from, once the GIC is initialised.
pub(crate) struct Lines {
    router: Router,
    wiring: Wiring,
}

impl Lines {
    /// The routing table of a VM whose GIC is initialised.
    pub(crate) fn new(vm: &Arc<KvmVm>, gic: &InitializedVgic) -> Result<Self> {
        let failed = || Error::failure("cannot take over the VM's interrupt routing");
        let router = match gic.v2m_frame() {
            // Messages to the frame become routes to its SPIs.
            Some(frame) => {
                let frame = V2mFrame {
                    setspi: frame.doorbell(),
                    first: frame.spis().first(),
                    count: frame.spis().count(),
                };
                Router::with_v2m(Arc::clone(vm) as _, &**vm, gic.ready(), &models::ARM_GIC, frame)
            }
            None => Router::new(Arc::clone(vm) as _, &**vm, gic.ready(), &models::ARM_GIC),
        }
        .map_err(|e| failed().because(e))?;
        let wiring = Wiring::new(Arc::clone(vm) as _, router.clone()).map_err(|e| failed().because(e))?;
        Ok(Self { router, wiring })
    }

    /// What vectors and triggers are wired to.
    pub(crate) fn wiring(&self) -> &Wiring {
        &self.wiring
    }

    /// The line of the GIC that `what` interrupts through.
    pub(crate) fn claim(&self, what: &str, spi: Spi) -> Result<Arc<GsiHandle>> {
        let gsi = self.router.claim_spi(spi);
        gsi.map(Arc::new).map_err(|e| Error::failure(format!("no interrupt line for {what}")).because(e))
    }

    /// One device's end of a line, wired: SPI → irqfd with resamplefd → the route that the kernel made for that pin.
    pub(crate) fn level(&self, what: &str, line: &Arc<GsiHandle>) -> Result<LevelTrigger> {
        let failed = || Error::failure(format!("cannot connect the interrupt of {what}"));
        let trigger = LevelTrigger::new().map_err(|e| failed().because(e))?;
        trigger.wire(&self.wiring, line).map_err(|e| failed().because(e))?;
        Ok(trigger)
    }
}
