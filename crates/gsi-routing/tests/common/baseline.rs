// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The router that most VMMs have: each change of a vector is a table of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use irq_types::{DeviceId, Gsi, MsiMessage};
use irqchip::{Error, Route, RouteTarget, RoutingSink};

/// Commits once a vector, and copies the whole table each time.
pub struct Baseline {
    sink: Arc<dyn RoutingSink>,
    routes: BTreeMap<Gsi, RouteTarget>,
    first_msi: u32,
}

impl Baseline {
    /// Starts with the routes given, and gives GSIs from `first_msi` on.
    pub fn new(sink: Arc<dyn RoutingSink>, defaults: Vec<Route>, first_msi: u32) -> Self {
        Self { sink, routes: defaults.into_iter().map(|r| (r.gsi, r.target)).collect(), first_msi }
    }

    fn commit(&self) -> Result<(), Error> {
        let routes: Vec<Route> = self.routes.iter().map(|(&gsi, &target)| Route { gsi, target }).collect();
        self.sink.set_routes(&routes)
    }

    /// Adds one route.
    pub fn add(&mut self, message: MsiMessage, device_id: DeviceId) -> Result<Gsi, Error> {
        let free = (self.first_msi..).map(Gsi::new).find(|gsi| !self.routes.contains_key(gsi)).unwrap();
        self.routes.insert(free, RouteTarget::Msi { message, device_id: Some(device_id) });
        self.commit()?;
        Ok(free)
    }

    /// Removes one route.
    pub fn remove(&mut self, gsi: Gsi) -> Result<(), Error> {
        self.routes.remove(&gsi);
        self.commit()
    }
}
