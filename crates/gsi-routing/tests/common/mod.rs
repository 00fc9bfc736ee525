// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMs to try a router on: the fake kernel model, and one that takes anything and counts.

#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]
#![allow(clippy::unwrap_used, reason = "tests")]

pub mod baseline;
pub mod scenarios;

use std::sync::{Arc, Mutex};

use gsi_routing::{IrqchipModel, Router, models};
use irq_types::{DeviceId, MsiMessage};
use irqchip::fake::{FakeHost, FakeVm};
use irqchip::{
    AttrValue, Capabilities, Capability, CreateDevice, DeviceAttr, DeviceControl, DeviceKind, Errno, Error,
    IrqchipReady, Operation, Route, RoutingSink, VmId, arm,
};

/// Where the guest's ITS is in these tests.
const ITS_BASE: u64 = 0x0808_0000;

/// Its register that takes messages, `GITS_TRANSLATER`.
pub const DOORBELL: u64 = ITS_BASE + 0x1_0040;

/// The message that a guest programs for event `event`.
pub fn msi(event: u32) -> MsiMessage {
    MsiMessage { address: DOORBELL, data: event }
}

/// Device `n` of bus 1.
pub fn device(n: u32) -> DeviceId {
    DeviceId::new(0x0100 | (n << 3))
}

/// A fake arm64 VM with a GICv3 of `spis` SPIs, and an ITS if wanted; the token of its initialisation.
pub fn arm_vm(spis: u32, its: bool) -> (Arc<FakeVm>, IrqchipReady) {
    let vm = Arc::new(FakeHost::arm64_gicv3().vm());
    let gic = vm.create_device(DeviceKind::GicV3).unwrap();
    gic.set_attr(arm::NR_IRQS, AttrValue::U32(spis + 32)).unwrap();
    vm.create_vcpu(0).unwrap();
    if its {
        let its = vm.create_device(DeviceKind::Its).unwrap();
        its.set_attr(arm::ADDR_ITS, AttrValue::U64(ITS_BASE)).unwrap();
        its.set_attr(arm::CTRL_INIT, AttrValue::None).unwrap();
    }
    let ready = IrqchipReady::init_vgic(&*gic, spis).unwrap();
    vm.forget_calls();
    (vm, ready)
}

/// A router on [`arm_vm`] with an ITS.
pub fn arm(spis: u32) -> (Arc<FakeVm>, Router) {
    let (vm, ready) = arm_vm(spis, true);
    let router = Router::new(vm.clone(), &*vm, &ready, &models::ARM_GIC).unwrap();
    vm.forget_calls();
    (vm, router)
}

/// A router on a fake x86 VM.
pub fn x86() -> (Arc<FakeVm>, Router) {
    let vm = Arc::new(FakeHost::x86().vm());
    let ready = IrqchipReady::create_pic_and_ioapic(&*vm).unwrap();
    let router = Router::new(vm.clone(), &*vm, &ready, &models::X86_PIC_IOAPIC).unwrap();
    vm.forget_calls();
    (vm, router)
}

/// What the kernel would have if it believed what the router believes, sorted.
pub fn believed(router: &Router) -> Vec<Route> {
    let policy = router.msi_policy();
    let mut routes: Vec<Route> = router
        .snapshot()
        .iter()
        .map(|entry| Route { gsi: entry.gsi, target: policy.route_target(entry.target) })
        .collect();
    routes.sort_unstable();
    routes
}

/// The fake kernel's table, sorted.
pub fn in_kernel(vm: &FakeVm) -> Vec<Route> {
    let mut routes = vm.routes();
    routes.sort_unstable();
    routes
}

/// A VM that takes any table and counts.
pub struct CountingVm {
    id: VmId,
    pub limit: u32,
    pub device_ids: bool,
    pub log: Mutex<Log>,
}

/// What a [`CountingVm`] has seen.
#[derive(Debug, Clone, Default)]
pub struct Log {
    pub table: Vec<Route>,
    pub calls: u64,
    pub entries: u64,
    pub questions: Vec<Capability>,
    /// The next table is refused with this.
    pub refuse: Option<Errno>,
}

impl CountingVm {
    pub fn new(limit: u32, device_ids: bool) -> Arc<Self> {
        Arc::new(Self { id: VmId::unique(), limit, device_ids, log: Mutex::default() })
    }

    pub fn log(&self) -> Log {
        self.log.lock().unwrap().clone()
    }

    /// A token for this VM. The seam hands tokens out for GICs only, so this VM says it is one, whatever its model.
    pub fn ready(&self, lines: u32) -> IrqchipReady {
        IrqchipReady::init_vgic(&AnyGic(self.id), lines).unwrap()
    }

    /// A router on a new VM.
    pub fn router(model: &'static IrqchipModel, lines: u32) -> (Arc<Self>, Router) {
        let limit = if model.table == gsi_routing::TableKind::Routed { 4096 } else { 0 };
        let vm = Self::new(limit, model.spis);
        let router = Router::new(vm.clone(), &*vm, &vm.ready(lines), model).unwrap();
        (vm, router)
    }
}

impl RoutingSink for CountingVm {
    fn vm_id(&self) -> VmId {
        self.id
    }

    fn set_routes(&self, routes: &[Route]) -> Result<(), Error> {
        let mut log = self.log.lock().unwrap();
        log.calls += 1;
        log.entries += routes.len() as u64;
        if let Some(errno) = log.refuse.take() {
            return Err(Error::new(Operation::SetRoutes { entries: routes.len() }, errno));
        }
        log.table.clear();
        log.table.extend_from_slice(routes);
        Ok(())
    }
}

impl Capabilities for CountingVm {
    fn capability(&self, capability: Capability) -> Result<u32, Error> {
        self.log.lock().unwrap().questions.push(capability);
        Ok(match capability {
            Capability::IrqRouting => self.limit,
            Capability::MsiDeviceId => self.device_ids.into(),
            _ => 0,
        })
    }
}

#[derive(Debug)]
struct AnyGic(VmId);

impl DeviceControl for AnyGic {
    fn vm_id(&self) -> VmId {
        self.0
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::GicV3
    }

    fn has_attr(&self, _: DeviceAttr) -> Result<bool, Error> {
        Ok(true)
    }

    fn set_attr(&self, _: DeviceAttr, _: AttrValue) -> Result<(), Error> {
        Ok(())
    }

    fn get_attr(&self, _: DeviceAttr, like: AttrValue) -> Result<AttrValue, Error> {
        Ok(like)
    }
}
