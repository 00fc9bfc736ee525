// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The router that most VMMs have: each change of a vector is a table of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gsi_routing::{MsiPolicy, Target};
use irq_types::{DeviceId, Gsi, MsiMessage};
use irqchip::{Error, Route, RouteTarget, RoutingSink};

/// Commits once a vector, and copies the whole table each time.
pub struct Baseline {
    sink: Arc<dyn RoutingSink>,
    routes: Vec<Route>,
    messages: BTreeMap<Gsi, RouteTarget>,
    free: BTreeSet<Gsi>,
    policy: MsiPolicy,
}

impl Baseline {
    /// Starts with the routes given, and gives GSIs from `first_msi` on.
    pub fn new(sink: Arc<dyn RoutingSink>, defaults: Vec<Route>, first_msi: u32, policy: MsiPolicy) -> Self {
        let free = (first_msi..4096).map(Gsi::new).collect();
        Self { sink, routes: defaults, messages: BTreeMap::new(), free, policy }
    }

    fn commit(&self) -> Result<(), Error> {
        let messages = self.messages.iter().map(|(&gsi, &target)| Route { gsi, target });
        let routes: Vec<Route> = self.routes.iter().copied().chain(messages).collect();
        self.sink.set_routes(&routes)
    }

    /// Adds one route.
    pub fn add(&mut self, message: MsiMessage, device_id: DeviceId) -> Result<Gsi, Error> {
        let gsi = self.free.pop_first().unwrap();
        self.messages.insert(gsi, self.policy.route_target(Target::Msi { message, device_id }));
        self.commit()?;
        Ok(gsi)
    }

    /// Removes one route.
    pub fn remove(&mut self, gsi: Gsi) -> Result<(), Error> {
        self.messages.remove(&gsi);
        self.free.insert(gsi);
        self.commit()
    }
}
