// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A fake VM with everything wired, and a guard between it and the code under test.

#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use gsi_routing::{Router, V2mFrame, models};
use irq_types::{DeviceId, EventId, Gsi, Intid, Lpi, MsiMessage, Spi};
use irqchip::fake::{Call, FakeHost, FakeVm, Interrupt, Live};
use irqchip::{
    AttrValue, CreateDevice, DeviceKind, Error, IrqchipReady, IrqfdBinder, Route, RouteTarget, RoutingSink,
    VmId, arm,
};
use irqfd::{EdgeTrigger, LevelTrigger, VectorGroup, Wiring};

/// Where the guest's ITS is, and the register that devices write to.
pub const ITS: u64 = 0x0808_0000;
pub const TRANSLATER: u64 = ITS + 0x1_0040;
/// How many SPIs the VM has.
pub const SPIS: u32 = 224;
/// The first LPI; event `e` of device `d` is LPI `FIRST_LPI + 64 * d + e` in these tests.
pub const FIRST_LPI: u32 = 8192;

pub const NIC: DeviceId = DeviceId::new(8);
pub const DISK: DeviceId = DeviceId::new(9);

/// A VM, and what devices are wired to.
pub struct Rig {
    pub vm: Arc<FakeVm>,
    pub wiring: Wiring,
    pub guard: Arc<OrderGuard>,
}

/// Passes everything on, and insists on the order: no armed GSI changes its route. A route may only change between disarm and arm.
pub struct OrderGuard {
    vm: Arc<FakeVm>,
    state: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    routes: BTreeMap<Gsi, BTreeSet<RouteTarget>>,
    armed: BTreeMap<Gsi, usize>,
}

impl OrderGuard {
    fn new(vm: Arc<FakeVm>) -> Arc<Self> {
        let state = Watched { routes: by_gsi(&vm.routes()), ..Watched::default() };
        Arc::new(Self { vm, state: Mutex::new(state) })
    }
}

fn by_gsi(routes: &[Route]) -> BTreeMap<Gsi, BTreeSet<RouteTarget>> {
    let mut map: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for route in routes {
        map.entry(route.gsi).or_default().insert(route.target);
    }
    map
}

impl RoutingSink for OrderGuard {
    fn vm_id(&self) -> VmId {
        CreateDevice::vm_id(&*self.vm)
    }

    fn set_routes(&self, routes: &[Route]) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap();
        let new = by_gsi(routes);
        for gsi in state.armed.keys() {
            assert_eq!(
                state.routes.get(gsi),
                new.get(gsi),
                "{gsi} changes its route while an irqfd is armed on it"
            );
        }
        self.vm.set_routes(routes)?;
        state.routes = new;
        Ok(())
    }
}

impl IrqfdBinder for OrderGuard {
    fn vm_id(&self) -> VmId {
        CreateDevice::vm_id(&*self.vm)
    }

    fn assign_irqfd(
        &self,
        event: BorrowedFd<'_>,
        gsi: Gsi,
        resample: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap();
        assert!(state.routes.contains_key(&gsi), "{gsi} is armed without a route");
        self.vm.assign_irqfd(event, gsi, resample)?;
        *state.armed.entry(gsi).or_default() += 1;
        Ok(())
    }

    fn deassign_irqfd(&self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap();
        self.vm.deassign_irqfd(event, gsi)?;
        let count =
            state.armed.get_mut(&gsi).unwrap_or_else(|| panic!("{gsi} is disarmed and was not armed"));
        *count -= 1;
        if *count == 0 {
            state.armed.remove(&gsi);
        }
        Ok(())
    }
}

impl Rig {
    /// An arm64 VM with a GICv3 and an ITS.
    pub fn arm() -> Self {
        Self::arm_with(&FakeHost::arm64_gicv3())
    }

    /// The same on another host.
    pub fn arm_with(host: &FakeHost) -> Self {
        let vm = Arc::new(host.vm());
        let gic = vm.create_device(DeviceKind::GicV3).unwrap();
        gic.set_attr(arm::NR_IRQS, AttrValue::U32(SPIS + 32)).unwrap();
        vm.create_vcpu(0).unwrap();
        let its = vm.create_device(DeviceKind::Its).unwrap();
        its.set_attr(arm::ADDR_ITS, AttrValue::U64(ITS)).unwrap();
        let ready = IrqchipReady::init_vgic(&*gic, SPIS).unwrap();
        let rig = Self::wired(vm, |sink, vm| Router::new(sink, vm, &ready, &models::ARM_GIC).unwrap());
        for device in [NIC, DISK] {
            rig.map_events(device, 64);
        }
        rig
    }

    /// An arm64 VM with a GICv2 and a v2m frame of 32 SPIs from SPI 64 on, whose register is at [`TRANSLATER`].
    pub fn arm_v2m() -> Self {
        let vm = Arc::new(FakeHost::arm64_gicv2().vm());
        let gic = vm.create_device(DeviceKind::GicV2).unwrap();
        gic.set_attr(arm::NR_IRQS, AttrValue::U32(SPIS + 32)).unwrap();
        vm.create_vcpu(0).unwrap();
        let ready = IrqchipReady::init_vgic(&*gic, SPIS).unwrap();
        let frame = V2mFrame { setspi: TRANSLATER, first: Spi::new(64).unwrap(), count: 32 };
        Self::wired(vm, |sink, vm| Router::with_v2m(sink, vm, &ready, &models::ARM_GIC, frame).unwrap())
    }

    fn wired(vm: Arc<FakeVm>, router: impl FnOnce(Arc<dyn RoutingSink>, &FakeVm) -> Router) -> Self {
        let guard = OrderGuard::new(vm.clone());
        let router = router(guard.clone(), &vm);
        let wiring = Wiring::new(guard.clone(), router).unwrap();
        vm.forget_calls();
        Self { vm, wiring, guard }
    }

    /// What the guest's driver does for events `0..count` of a device.
    pub fn map_events(&self, device: DeviceId, count: u32) {
        for event in 0..count {
            self.vm.guest().map_event(device, EventId::new(event), lpi(device, event)).unwrap();
        }
    }

    /// The interrupts that event `event` of `device` has raised so far.
    pub fn raised(&self, device: DeviceId, event: u32) -> u64 {
        self.vm.raised(Interrupt::Intid(lpi(device, event).intid()))
    }

    /// All interrupts of the first `events` events of a device.
    pub fn raised_in_all(&self, device: DeviceId, events: u32) -> u64 {
        (0..events).map(|event| self.raised(device, event)).sum()
    }

    /// A line of the VM, wired as level.
    pub fn level(&self, spi: u32) -> (LevelTrigger, Spi) {
        let spi = Spi::new(spi).unwrap();
        self.vm.guest().configure_spi(spi, LevelTrigger::MODE).unwrap();
        let trigger = LevelTrigger::new().unwrap();
        let gsi = self.wiring.router().claim_spi(spi).unwrap();
        trigger.wire(&self.wiring, &Arc::new(gsi)).unwrap();
        (trigger, spi)
    }

    /// A line of the VM, wired as edge.
    pub fn edge(&self, spi: u32) -> (EdgeTrigger, Spi) {
        let spi = Spi::new(spi).unwrap();
        self.vm.guest().configure_spi(spi, EdgeTrigger::MODE).unwrap();
        let trigger = EdgeTrigger::new().unwrap();
        let gsi = self.wiring.router().claim_spi(spi).unwrap();
        trigger.wire(&self.wiring, &Arc::new(gsi)).unwrap();
        (trigger, spi)
    }

    /// The vectors of a device.
    pub fn group(&self, device: DeviceId, count: usize) -> VectorGroup {
        VectorGroup::new(self.wiring.clone(), device, count)
    }

    /// How many commits, arms and disarms there were since the count was last taken.
    pub fn costs(&self) -> Costs {
        let costs = Costs {
            commits: self.vm.count(Call::SetRoutes),
            arms: self.vm.count(Call::AssignIrqfd),
            disarms: self.vm.count(Call::DeassignIrqfd),
            all: self.vm.total_calls(),
        };
        self.vm.forget_calls();
        costs
    }

    /// What the kernel has bound.
    pub fn live(&self) -> Live {
        self.vm.live()
    }
}

/// Calls to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    pub commits: u64,
    pub arms: u64,
    pub disarms: u64,
    pub all: u64,
}

/// So many commits, arms and disarms, and nothing else.
pub fn costs(commits: u64, arms: u64, disarms: u64) -> Costs {
    Costs { commits, arms, disarms, all: commits + arms + disarms }
}

/// The LPI that the guest has made of an event.
pub fn lpi(device: DeviceId, event: u32) -> Lpi {
    Lpi::new(FIRST_LPI + 64 * device.get() + event).unwrap()
}

/// What a guest writes for event `event`.
pub fn message(event: u32) -> MsiMessage {
    MsiMessage { address: TRANSLATER, data: event }
}

/// A line's interrupt as the guest takes it.
pub fn interrupt(spi: Spi) -> Interrupt {
    Interrupt::Intid(Intid::Spi(spi))
}

/// How many descriptors this process has open.
pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
