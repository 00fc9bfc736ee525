// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What guests and VMMs do to a routing table, once through this crate and once through the baseline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gsi_routing::{GsiHandle, Router};
use irq_types::{DeviceId, MsiMessage};
use irqchip::{Error, Route, RouteTarget, RoutingSink, VmId};

use super::baseline::Baseline;

/// Hands tables on, and counts.
pub struct Counting {
    inner: Arc<dyn RoutingSink>,
    calls: AtomicU64,
    entries: AtomicU64,
}

/// What something has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    pub calls: u64,
    pub entries: u64,
}

impl Cost {
    /// What the kernel copies (`struct kvm_irq_routing` and its entries).
    pub const fn bytes(&self) -> u64 {
        self.calls * 8 + self.entries * 48
    }
}

impl Counting {
    pub fn new(inner: Arc<dyn RoutingSink>) -> Arc<Self> {
        Arc::new(Self { inner, calls: AtomicU64::new(0), entries: AtomicU64::new(0) })
    }

    /// What it has cost since the last question.
    pub fn take(&self) -> Cost {
        Cost {
            calls: self.calls.swap(0, Ordering::Relaxed),
            entries: self.entries.swap(0, Ordering::Relaxed),
        }
    }
}

impl RoutingSink for Counting {
    fn vm_id(&self) -> VmId {
        self.inner.vm_id()
    }

    fn set_routes(&self, routes: &[Route]) -> Result<(), Error> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.entries.fetch_add(routes.len() as u64, Ordering::Relaxed);
        self.inner.set_routes(routes)
    }
}

/// Who sends the messages of device `n`.
fn sender(n: usize) -> DeviceId {
    DeviceId::new(0x100 + u32::try_from(n % 256).unwrap())
}

fn data(n: usize) -> u32 {
    u32::try_from(n).unwrap()
}

/// The routers to compare. `message` makes what event `n` sends.
pub struct Contest<'a> {
    pub router: Router,
    pub defaults: Vec<Route>,
    pub sink: Arc<dyn RoutingSink>,
    pub message: &'a dyn Fn(u32) -> MsiMessage,
}

impl Contest<'_> {
    /// A baseline router that starts with the kernel's default routes.
    pub fn baseline(&self) -> Baseline {
        let defaults: Vec<Route> = self
            .defaults
            .iter()
            .filter(|route| matches!(route.target, RouteTarget::Line(_)))
            .copied()
            .collect();
        let first_msi = defaults.iter().map(|route| route.gsi.get() + 1).max().unwrap_or(0);
        Baseline::new(self.sink.clone(), defaults, first_msi, self.router.msi_policy())
    }

    /// All vectors of a device at once: MSI-X is enabled with all of them unmasked.
    pub fn enable(&self, vectors: usize) -> Vec<GsiHandle> {
        let handles = self.router.allocate_many(vectors).unwrap();
        let mut transaction = self.router.transaction();
        for (n, handle) in handles.iter().enumerate() {
            transaction.set_msi(handle, (self.message)(data(n)), sender(0)).unwrap();
        }
        transaction.commit().unwrap();
        handles
    }

    /// The guest programs all vectors and then unmasks them one by one. The first unmask commits the routes of all.
    pub fn enable_one_by_one(&self, vectors: usize) -> Vec<GsiHandle> {
        let handles = self.enable(vectors);
        for (n, handle) in handles.iter().enumerate().skip(1) {
            let mut transaction = self.router.transaction();
            transaction.set_msi(handle, (self.message)(data(n)), sender(0)).unwrap();
            transaction.commit().unwrap();
        }
        handles
    }

    /// The same, by a router that knows one vector at a time.
    pub fn baseline_enable(&self, vectors: usize) {
        let mut baseline = self.baseline();
        for n in 0..vectors {
            baseline.add((self.message)(data(n)), sender(0)).unwrap();
        }
    }

    /// The guest moves its interrupts to other CPUs: each vector gets another message.
    pub fn retarget(&self, handles: &[GsiHandle]) {
        let mut transaction = self.router.transaction();
        for (n, handle) in handles.iter().enumerate() {
            transaction.set_msi(handle, (self.message)(data(n + 1)), sender(0)).unwrap();
        }
        transaction.commit().unwrap();
    }

    /// Devices of `vectors` vectors come and go.
    pub fn plug_cycles(&self, cycles: usize, vectors: usize) {
        for cycle in 0..cycles {
            let budget = self.router.reserve_budget(vectors).unwrap();
            let handles: Vec<_> = (0..vectors).map(|_| budget.allocate().unwrap()).collect();
            let mut transaction = self.router.transaction();
            for (n, handle) in handles.iter().enumerate() {
                transaction.set_msi(handle, (self.message)(data(n)), sender(cycle)).unwrap();
            }
            transaction.commit().unwrap();
        }
        self.router.flush().unwrap();
    }

    /// The same, through the baseline.
    pub fn baseline_plug_cycles(&self, cycles: usize, vectors: usize) {
        let mut baseline = self.baseline();
        for cycle in 0..cycles {
            let gsis: Vec<_> =
                (0..vectors).map(|n| baseline.add((self.message)(data(n)), sender(cycle)).unwrap()).collect();
            for gsi in gsis {
                baseline.remove(gsi).unwrap();
            }
        }
    }
}
