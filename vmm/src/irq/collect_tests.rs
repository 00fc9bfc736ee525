// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The states of real triggers and vectors, on the model of the kernel.

use std::sync::Arc;

use gsi_routing::{Router, models};
use irq_types::{DeviceId, MsiMessage, Spi};
use irqchip::fake::{FakeHost, FakeVm};
use irqchip::{AttrValue, CreateDevice, DeviceKind, IrqchipReady, arm};
use irqfd::{EdgeTrigger, LevelTrigger, MsiVector, VectorGroup, Wiring};

use super::*;

const SPIS: u32 = 64;
const ITS: u64 = 0x0808_0000;

struct Rig {
    _vm: Arc<FakeVm>,
    router: Router,
    wiring: Wiring,
}

fn rig() -> Rig {
    let vm = Arc::new(FakeHost::arm64_gicv3().vm());
    let gic = vm.create_device(DeviceKind::GicV3).unwrap();
    gic.set_attr(arm::NR_IRQS, AttrValue::U32(SPIS + 32)).unwrap();
    vm.create_vcpu(0).unwrap();
    let its = vm.create_device(DeviceKind::Its).unwrap();
    its.set_attr(arm::ADDR_ITS, AttrValue::U64(ITS)).unwrap();
    let ready = IrqchipReady::init_vgic(&*gic, SPIS).unwrap();
    its.set_attr(arm::CTRL_INIT, AttrValue::None).unwrap();
    let router = Router::new(vm.clone(), &*vm, &ready, &models::ARM_GIC).unwrap();
    let wiring = Wiring::new(vm.clone(), router.clone()).unwrap();
    Rig { _vm: vm, router, wiring }
}

fn owner(device: &str, host: Host) -> Owner<'_> {
    Owner { device, bdf: Some("00:01.0".into()), host }
}

#[test]
fn a_level_line_has_its_pin_and_its_counts() {
    let rig = rig();
    let (snapshot, trigger) = (rig.router.snapshot(), LevelTrigger::new().unwrap());
    let routes = Routes { table: &snapshot, msi: rig.router.msi_policy() };
    let before = level(&owner("serial port", Host::No), "", &trigger.state().unwrap(), routes);
    assert_eq!(
        (before.line.as_str(), before.armed, before.state().as_str()),
        ("serial-port", false, "parked")
    );
    assert_eq!((before.gsi, before.route), (None, None));

    let gsi = Arc::new(rig.router.claim_spi(Spi::new(5).unwrap()).unwrap());
    trigger.wire(&rig.wiring, &gsi).unwrap();
    trigger.line().set_level(true).unwrap();
    let line = level(&owner("serial port", Host::No), "", &trigger.state().unwrap(), routes);
    assert_eq!((line.gsi, line.route), (Some(5), Some(Route::Pin { pin: 5 })));
    assert_eq!((line.fired, line.delivered, line.resampled), (Some(1), Some(1), Some(0)));
    assert_eq!((line.high, line.pending, line.state().as_str()), (Some(true), true, "armed"));
}

#[test]
fn what_the_hosts_kernel_signals_has_the_hosts_count() {
    let rig = rig();
    let (snapshot, trigger) = (rig.router.snapshot(), LevelTrigger::new().unwrap());
    let routes = Routes { table: &snapshot, msi: rig.router.msi_policy() };
    let gsi = Arc::new(rig.router.claim_spi(Spi::new(6).unwrap()).unwrap());
    trigger.wire(&rig.wiring, &gsi).unwrap();
    let _ = trigger.hand_over();
    let state = trigger.state().unwrap();
    let line = level(&owner("0000:00:08.0", Host::Counts(42)), "intx", &state, routes);
    assert_eq!(line.line, "0000:00:08.0:intx");
    assert_eq!((line.fired, line.resampled, line.counted_by), (Some(42), None, CountedBy::Host));
    let line = level(&owner("0000:00:08.0", Host::Silent), "intx", &state, routes);
    assert_eq!((line.fired, line.counted_by), (None, CountedBy::Nobody));
}

#[test]
fn an_edge_line_that_is_not_wired_waits() {
    let rig = rig();
    let (snapshot, trigger) = (rig.router.snapshot(), EdgeTrigger::new().unwrap());
    let routes = Routes { table: &snapshot, msi: rig.router.msi_policy() };
    trigger.line().signal().unwrap();
    let line = edge(&owner("a", Host::No), "0", &trigger.state().unwrap(), routes);
    assert_eq!((line.pending, line.parked, line.fired, line.delivered), (true, true, Some(1), None));
}

#[test]
fn a_vector_says_who_masks_it() {
    let rig = rig();
    let group = VectorGroup::new(rig.wiring.clone(), DeviceId::new(0x10), 4);
    let look = |index: usize| {
        let snapshot = rig.router.snapshot();
        let routes = Routes { table: &snapshot, msi: rig.router.msi_policy() };
        vector(&owner("net tap0", Host::No), Kind::Msix, &group.state(index).unwrap(), routes)
    };
    let line = look(3);
    assert_eq!((line.line.as_str(), line.masked, line.in_use()), ("net-tap0:3", Some(Mask::Entry), false));

    let message = MsiMessage { address: ITS + 0x1_0040, data: 3 };
    group.program(3, message).unwrap();
    let device = group.vector(3).unwrap();
    device.trigger().unwrap();
    let line = look(3);
    assert_eq!((line.pending, line.fired, line.delivered), (true, Some(1), Some(0)));
    assert_eq!((line.message, line.in_use()), (Some((message.address, 3)), true));

    group.unmask(3).unwrap();
    device.trigger().unwrap();
    let line = look(3);
    assert_eq!((line.pending, line.fired, line.delivered, line.masked), (false, Some(2), Some(2), None));
    assert_eq!((line.state().as_str(), line.kind_and_index().as_str()), ("armed", "MSI-X 3"));
    let expected =
        Route::Message { address: message.address, data: 3, device_id: 0x10, with_device_id: true };
    assert_eq!(line.route, Some(expected));

    group.set_function_mask(true).unwrap();
    assert_eq!(look(3).masked, Some(Mask::Function));
    group.set_enabled(false).unwrap();
    assert_eq!(look(3).state(), "disabled");
    assert_eq!(look(3).route, None, "a disabled capability has given its routes back");
}

#[test]
fn a_line_comes_back_from_json_as_it_went() {
    let mut line = crate::irq::line::test_line("a", 1);
    line.route = Some(Route::Message { address: 1, data: 2, device_id: 3, with_device_id: true });
    line.masked = Some(Mask::NotAllowed);
    let text = serde_json::to_string(&line).unwrap();
    assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
    assert!(text.contains(r#""masked":"not-allowed""#), "{text}");
}
