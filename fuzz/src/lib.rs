// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest or a file can write, as functions from bytes: for the fuzzer in `fuzz/`, and for `tests/tests/fuzz.rs`, which feeds them its
//! corpus and random bytes on every machine.
//!
//! Each function panics when a promise is broken, and does nothing else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a fuzz target reports by panicking")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers are made of what bytes there are, and cut to fit"
)]

mod pci_guest;
mod virtio;
mod virtio_queues;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use doorbell::boot;
use doorbell::config::Settings;
use doorbell::kernel::check_header;
use doorbell::serial::SerialPort;
use doorbell::size::Size;
use doorbell::terminal::Keys;
use gsi_routing::{GsiHandle, Router, models};
use irq_types::{DeviceId, MsiMessage, Spi};
use irqchip::fake::{Call, FakeHost, FakeVm, Fault};
use irqchip::{AttrValue, CreateDevice, DeviceKind, Errno, IrqchipReady, arm};
use irqfd::{LevelLine, MsiVector, VectorGroup, Wiring};
pub use pci_guest::{pci_bus, pci_vectors};
pub use virtio::{virtio_block, virtio_pci};
pub use virtio_queues::{virtio_balloon, virtio_console, virtio_net, virtio_vsock};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

/// A fuzz target: its name, which is that of its corpus, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("kernel_header", kernel_header),
    ("config", config),
    ("keys", keys),
    ("serial", serial),
    ("v2m", v2m),
    ("routing", routing),
    ("vectors", vectors),
    ("pci_vectors", pci_vectors),
    ("pci_bus", pci_bus),
    ("virtio_pci", virtio_pci),
    ("virtio_block", virtio_block),
    ("virtio_net", virtio_net),
    ("virtio_console", virtio_console),
    ("virtio_vsock", virtio_vsock),
    ("virtio_balloon", virtio_balloon),
];

/// The bytes, one after another; zero when there are no more.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl<'a> Bytes<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.iter())
    }

    fn left(&self) -> bool {
        self.0.len() > 0
    }

    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn index(&mut self, below: usize) -> usize {
        usize::from(self.byte()) % below
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }
}

/// A kernel file: whatever it says of itself, placing it either fails or stays within memory.
pub fn kernel_header(bytes: &[u8]) {
    let memory = Size(512 << 20);
    if let Ok((offset, size)) = check_header(bytes, bytes.len() as u64) {
        assert!(size >= bytes.len() as u64, "less memory than the file has");
        if let Ok(place) = boot::place(offset, size, 4096, memory) {
            assert!(place.kernel_base.checked_add(offset).unwrap().checked_add(size).unwrap() <= place.fdt);
        }
    }
}

/// A configuration file: an error has a line, a configuration is within its ranges.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Settings::from_toml(text) {
        Ok(settings) => match settings.into_config() {
            Ok(config) => assert!((1..=512).contains(&config.cpus) && config.memory >= Size(16 << 20)),
            Err(e) => assert!(!e.one_line().contains('\n')),
        },
        Err(e) => {
            let line = e.split(':').next().unwrap().parse::<usize>().unwrap();
            assert!((1..=text.matches('\n').count() + 1).contains(&line), "line {line} of {text:?}");
        }
    }
}

/// What a user types: nothing is made up, and only Ctrl-a is ever swallowed.
pub fn keys(bytes: &[u8]) {
    let (mut whole, mut split) = (Vec::new(), Vec::new());
    let leaves = Keys::default().filter(bytes, &mut whole);
    let mut keys = Keys::default();
    let leaves_split = bytes.chunks(1).any(|typed| keys.filter(typed, &mut split));
    assert_eq!((leaves, &whole), (leaves_split, &split), "how it is cut into reads must not matter");
    assert!(whole.len() <= bytes.len());
}

#[derive(Default)]
pub(crate) struct Line(AtomicBool);

impl LevelLine for Line {
    fn set_level(&self, high: bool) -> Result<(), irqfd::Error> {
        self.0.store(high, Ordering::SeqCst);
        Ok(())
    }
}

/// A guest at the serial port: the line is high exactly while the port has something to say.
pub fn serial(bytes: &[u8]) {
    let line = Arc::new(Line::default());
    let port = SerialPort::new(Arc::clone(&line) as _, Box::new(std::io::sink())).unwrap();
    let mut bytes = Bytes::new(bytes);
    while bytes.left() {
        let action = bytes.byte();
        let offset = u64::from(bytes.byte() & 0x0f);
        let mut data = [bytes.byte(); 8];
        let width = [0, 1, 2, 4, 8][usize::from(action >> 2) % 5];
        match action & 3 {
            0 => port.mmio_read(MmioAddress(0), offset, &mut data[..width]),
            1 | 2 => port.mmio_write(MmioAddress(0), offset, &data[..width]),
            _ => {
                let input = vec![data[0]; usize::from(action)];
                assert!(port.feed(&input) <= input.len());
            }
        }
        assert_eq!(line.0.load(Ordering::SeqCst), port.has_something_to_say());
    }
}

/// A guest at the v2m frame: what it raises is always one of the frame's SPIs.
pub fn v2m(bytes: &[u8]) {
    let host = vgic::HostGic { v2: true, v3: false, its: false };
    let request = vgic::GicRequest {
        version: vgic::VersionChoice::V2,
        msi: vgic::MsiChoice::V2m,
        vcpus: 1,
        ..vgic::GicRequest::default()
    };
    let layout =
        vgic::GicLayout::solve(&request.resolve(&host).unwrap(), &doorbell::layout::GIC_WINDOWS).unwrap();
    let frame = layout.v2m_frame().unwrap();
    let mut bytes = Bytes::new(bytes);
    while bytes.left() {
        let offset = u64::from(bytes.word() & 0x1fff);
        let width = bytes.index(9);
        let mut data = bytes.word().to_le_bytes().repeat(2);
        frame.read(offset, &mut data.clone()[..width]);
        if let Some(spi) = frame.write(offset, &data[..width]) {
            assert!(frame.spis().contains(spi) && offset == 0x40 && width == 4);
        }
        data.clear();
    }
}

const ITS: u64 = 0x0808_0000;
const SPIS: u32 = 96;

fn vm(limit: Option<u32>) -> (Arc<FakeVm>, Router) {
    let mut host = FakeHost::arm64_gicv3();
    if let Some(limit) = limit {
        host.routing_limit = limit;
    }
    let vm = Arc::new(host.vm());
    let gic = vm.create_device(DeviceKind::GicV3).unwrap();
    gic.set_attr(arm::NR_IRQS, AttrValue::U32(SPIS + 32)).unwrap();
    vm.create_vcpu(0).unwrap();
    let its = vm.create_device(DeviceKind::Its).unwrap();
    its.set_attr(arm::ADDR_ITS, AttrValue::U64(ITS)).unwrap();
    let ready = IrqchipReady::init_vgic(&*gic, SPIS).unwrap();
    let router = Router::new(Arc::clone(&vm) as _, &*vm, &ready, &models::ARM_GIC).unwrap();
    (vm, router)
}

fn fail_next(vm: &FakeVm, call: Call, bytes: &mut Bytes<'_>) {
    let errno = [Errno::ENOMEM, Errno::EINVAL, Errno::EBUSY][bytes.index(3)];
    vm.inject(Fault::next(call, errno).after(u64::from(bytes.byte() % 4)));
}

/// Any order of allocations, routes, commits and failures: the kernel has what the router believes, and all GSIs come back.
pub fn routing(bytes: &[u8]) {
    let (vm, router) = vm(Some(160));
    let mut held: Vec<GsiHandle> = Vec::new();
    let mut bytes = Bytes::new(bytes);
    while bytes.left() {
        match bytes.byte() % 7 {
            0 => held.extend(router.allocate().ok()),
            1 => {
                held.extend(Spi::new(u32::from(bytes.byte())).ok().and_then(|spi| router.claim_spi(spi).ok()))
            }
            2 if !held.is_empty() => drop(held.swap_remove(bytes.index(held.len()))),
            3 => fail_next(&vm, Call::SetRoutes, &mut bytes),
            4 => drop(router.flush()),
            5 => router.release_default_routes(),
            _ => {
                let mut transaction = router.transaction();
                for _ in 0..bytes.index(4) {
                    if held.is_empty() {
                        break;
                    }
                    let handle = &held[bytes.index(held.len())];
                    let message = MsiMessage { address: ITS + 0x1_0040, data: u32::from(bytes.byte()) };
                    if bytes.byte() & 1 == 0 {
                        let _ = transaction.set_msi(handle, message, DeviceId::new(bytes.word() & 0x1_ffff));
                    } else {
                        let _ = transaction.clear(handle);
                    }
                }
                let _ = transaction.commit();
            }
        }
        let policy = router.msi_policy();
        let mut believed: Vec<_> = router
            .snapshot()
            .iter()
            .map(|entry| irqchip::Route { gsi: entry.gsi, target: policy.route_target(entry.target) })
            .collect();
        let mut kernel = vm.routes();
        believed.sort_unstable();
        kernel.sort_unstable();
        assert_eq!(believed, kernel);
    }
    held.clear();
    vm.clear_faults();
    router.flush().unwrap();
    let free = router.allocate().unwrap();
    assert!(free.gsi().get() >= SPIS, "a line's number is not for messages");
}

/// Any order of a guest's writes to its MSI-X table, of signals and of failures: nothing panics, no signal is delivered twice, and
/// all descriptors and routes are gone in the end.
pub fn vectors(bytes: &[u8]) {
    const COUNT: usize = 4;
    let (vm, router) = vm(None);
    let before = vm.live();
    {
        let wiring = Wiring::new(Arc::clone(&vm) as _, router.clone()).unwrap();
        let group = VectorGroup::new(wiring, DeviceId::new(8), COUNT);
        let mut bytes = Bytes::new(bytes);
        while bytes.left() {
            let action = bytes.byte();
            let index = bytes.index(COUNT + 1);
            let _ = match action % 10 {
                0 => group.program(index, MsiMessage { address: ITS + 0x1_0040, data: bytes.word() }),
                1 => group.mask(index),
                2 => group.unmask(index),
                3 => group.set_function_mask(action & 0x80 != 0),
                4 => group.set_enabled(action & 0x80 != 0),
                5 => group.set_device_id(DeviceId::new(bytes.word() & 0xffff)),
                6 => group.resize(1 + index),
                7 => group.vector(index).and_then(|vector| vector.trigger()),
                8 => group.vector(index).and_then(|vector| vector.eventfd().map(drop)),
                _ => {
                    let call = [Call::SetRoutes, Call::AssignIrqfd, Call::DeassignIrqfd][bytes.index(3)];
                    fail_next(&vm, call, &mut bytes);
                    Ok(())
                }
            };
            vm.process();
            let _ = group.pending_word(0);
            let _ = group.state(index);
        }
        vm.clear_faults();
    }
    router.flush().unwrap();
    let after = vm.live();
    assert_eq!((before.irqfds, before.routes), (after.irqfds, after.routes), "something stayed behind");
}
