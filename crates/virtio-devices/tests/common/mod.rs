// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's side of virtio over PCI, as Linux does it (`drivers/virtio/virtio_pci_modern_dev.c`, `virtio_ring.c`), on the model of the kernel.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

pub mod disk;
pub mod driver;
pub mod echo;

use std::sync::Arc;
use std::time::{Duration, Instant};

use gsi_routing::{Router, models};
use irq_types::{Bdf, DeviceId, EventId, Lpi, MsiMessage, Spi};
use irqchip::fake::{FakeHost, FakeVm, Interrupt};
use irqchip::{AttrValue, CreateDevice, DeviceKind, IrqchipReady, arm};
use irqfd::{LevelTrigger, Resampler, Wiring};
use pci::IntxPin;
use virtio_devices::PciWiring;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const ITS: u64 = 0x0808_0000;
const TRANSLATER: u64 = ITS + 0x1_0040;
const SPIS: u32 = 224;
const INTX: u32 = 40;
pub const BDF: u16 = 3 << 3;
/// What the device tree's `msi-map` adds.
const DEVICE_ID_BASE: u32 = 0x100;

/// Guest memory: two regions next to each other, so that a buffer may lie across both.
pub const MEMORY: u64 = 0x4000_0000;
pub const REGION: u64 = 8 << 20;

/// Long enough for anything that happens at all, on the slowest of machines.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done` has a value.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A VM with a GICv3 and an ITS, and what a function is connected to.
pub struct Machine {
    pub vm: Arc<FakeVm>,
    pub wiring: Wiring,
    pub memory: GuestMemoryMmap,
    pub line: LevelTrigger,
    pub resampler: Resampler,
}

impl Machine {
    pub fn new() -> Self {
        let vm = Arc::new(FakeHost::arm64_gicv3().vm());
        let gic = vm.create_device(DeviceKind::GicV3).unwrap();
        gic.set_attr(arm::NR_IRQS, AttrValue::U32(SPIS + 32)).unwrap();
        vm.create_vcpu(0).unwrap();
        let its = vm.create_device(DeviceKind::Its).unwrap();
        its.set_attr(arm::ADDR_ITS, AttrValue::U64(ITS)).unwrap();
        let ready = IrqchipReady::init_vgic(&*gic, SPIS).unwrap();
        let router = Router::new(vm.clone(), &*vm, &ready, &models::ARM_GIC).unwrap();
        let wiring = Wiring::new(vm.clone(), router).unwrap();
        for event in 0..64 {
            vm.guest().map_event(device_id(), EventId::new(event), lpi(event)).unwrap();
        }
        let line = LevelTrigger::new().unwrap();
        vm.guest().configure_spi(spi(), LevelTrigger::MODE).unwrap();
        line.wire(&wiring, &Arc::new(wiring.router().claim_spi(spi()).unwrap())).unwrap();
        let half = |n| (GuestAddress(MEMORY + n * REGION), REGION as usize);
        let memory = GuestMemoryMmap::from_ranges(&[half(0), half(1)]).unwrap();
        let resampler = line.resampler();
        vm.forget_calls();
        Self { vm, wiring, memory, line, resampler }
    }

    /// What a function is connected to: with MSI-X and INTx, or as with `pci=nomsi` but from the host's side.
    pub fn pci(&self, msix: bool) -> PciWiring {
        PciWiring {
            memory: self.memory.clone(),
            ioevents: self.vm.clone(),
            msix: msix.then(|| self.wiring.clone()),
            device_id_base: DEVICE_ID_BASE,
            intx: Some((IntxPin::A, self.line.line())),
        }
    }

    /// Interrupts of MSI-X vector `event` so far.
    pub fn raised(&self, event: u32) -> u64 {
        self.vm.raised(Interrupt::Intid(lpi(event).intid()))
    }

    /// Interrupts of the INTx line so far.
    pub fn raised_line(&self) -> u64 {
        self.vm.raised(self.intx())
    }

    pub fn intx(&self) -> Interrupt {
        Interrupt::Intid(irq_types::Intid::Spi(spi()))
    }

    pub fn line_is_high(&self) -> bool {
        self.vm.line_is_high(spi())
    }
}

fn spi() -> Spi {
    Spi::new(INTX).unwrap()
}

/// The device as the ITS knows it.
pub fn device_id() -> DeviceId {
    Bdf::from_requester_id(BDF).device_id(DEVICE_ID_BASE)
}

fn lpi(event: u32) -> Lpi {
    Lpi::new(8192 + event).unwrap()
}

/// What a guest writes for event `event`.
pub fn message(event: u32) -> MsiMessage {
    MsiMessage { address: TRANSLATER, data: event }
}
