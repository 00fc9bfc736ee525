// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest at PCI: configuration space, BARs, MSI and MSI-X, hot-plug.

use std::sync::{Arc, Mutex};

use irq_types::{Bdf, DeviceId};
use irqchip::fake::Call;
use irqfd::{MsiVector, Obstacle, VectorGroup, Wiring};
use pci::{
    BarIndex, BarKind, BusEvent, Capability, ClassCode, ConfigSpace, DecodedBar, Endpoint, ExpressKind,
    HostBridge, HostConfig, Identity, IoWindow, MsiLayout, MsixLayout, PciFunction, PortConfig,
    PortInterrupts, RootPort, Space,
};

use crate::{Bytes, fail_next, vm};

/// The BAR of MSI-X.
const BAR: BarIndex = match BarIndex::new(1) {
    Ok(bar) => bar,
    Err(_) => BarIndex::ROM,
};
const VECTORS: u16 = 3;
const PENDING: u64 = 0x40;

fn config() -> ConfigSpace {
    let class = ClassCode { base: 2, sub: 0, interface: 0 };
    let mut config =
        ConfigSpace::new(Identity { vendor: 0x1af4, device: 0x1041, class, ..Identity::default() });
    config.add_bar(BAR, BarKind::Memory32 { prefetchable: false }, 0x1000).unwrap();
    config.add_bar(BarIndex::new(2).unwrap(), BarKind::Io, 0x40).unwrap();
    config.add_bar(BarIndex::new(4).unwrap(), BarKind::Memory64 { prefetchable: true }, 0x2000).unwrap();
    config.add_bar(BarIndex::ROM, BarKind::Rom, 0x1000).unwrap();
    config.add_capability(&Capability::power_management()).unwrap();
    config.add_capability(&Capability::express(ExpressKind::Endpoint, true)).unwrap();
    config
}

/// A write, or a read, of some shape to configuration space or to what MSI-X has in a BAR; with signals and failing calls between. The vectors know
/// what table and capability say; what is pending is what the pending bits say; nothing stays behind.
pub fn pci_vectors(bytes: &[u8]) {
    let (vm, router) = vm(None);
    let before = vm.live();
    {
        let group = |count| {
            let wiring = Wiring::new(Arc::clone(&vm) as _, router.clone()).unwrap();
            Arc::new(VectorGroup::new(wiring, DeviceId::new(8), count))
        };
        let (messages, table) = (group(4), group(VECTORS.into()));
        let layout = MsixLayout::new(VECTORS, (BAR, 0), (BAR, PENDING)).unwrap();
        let endpoint = Endpoint::new(config())
            .with_msi(MsiLayout::new(4).unwrap().with_masking(), messages.clone())
            .unwrap()
            .with_msix(layout, table.clone())
            .unwrap();
        let mut bytes = Bytes::new(bytes);
        while bytes.left() {
            let action = bytes.byte();
            let offset = u64::from(bytes.byte());
            let data = bytes.word().to_le_bytes().repeat(2);
            match action % 8 {
                // Capabilities are between 0x40 and 0xc0; the rest is seldom of interest.
                0 | 1 => {
                    let size = [1, 2, 4][usize::from(action >> 4) % 3];
                    endpoint.write(offset as u16 / size * size, &data[..usize::from(size)]);
                }
                2..5 => {
                    endpoint.write_msix(BAR, offset, &data[..[4, 8, 4, 2][usize::from(action >> 4) % 4]]);
                }
                5 => {
                    let group = if action & 0x80 == 0 { &messages } else { &table };
                    if let Ok(vector) = group.vector(usize::from(data[0]) % 4) {
                        let _ = vector.trigger();
                        let _ = if data[1] > 0xf0 { vector.eventfd().map(drop) } else { Ok(()) };
                    }
                }
                6 if action & 0xf0 == 0 => endpoint.reset(),
                _ => {
                    let call = [Call::SetRoutes, Call::AssignIrqfd, Call::DeassignIrqfd][bytes.index(3)];
                    fail_next(&vm, call, &mut bytes);
                }
            }
            vm.process();
            check_table(&endpoint, &table);
            check_messages(&endpoint, &messages);
        }
        vm.clear_faults();
    }
    router.flush().unwrap();
    let after = vm.live();
    assert_eq!((before.irqfds, before.routes), (after.irqfds, after.routes), "something stayed behind");
}

fn check_table(endpoint: &Endpoint, group: &VectorGroup) {
    let msix = endpoint.msix().unwrap();
    let mut pending = [0; 8];
    assert!(endpoint.read_msix(BAR, PENDING, &mut pending));
    let pending = u64::from_le_bytes(pending);
    assert_eq!(pending >> VECTORS, 0, "bits of vectors that are not there");
    for n in 0..usize::from(VECTORS) {
        let state = group.state(n).unwrap();
        let (message, masked) = msix.vector(n).unwrap();
        assert_eq!(state.masked, masked);
        assert_eq!(state.message.unwrap_or_default(), message);
        assert_eq!(state.pending, pending >> n & 1 != 0);
        let expected = if !msix.is_enabled() {
            Some(Obstacle::Disabled)
        } else if msix.is_function_masked() {
            Some(Obstacle::FunctionMasked)
        } else if masked {
            Some(Obstacle::Masked)
        } else {
            None
        };
        match state.obstacle {
            Some(Obstacle::NotProgrammed | Obstacle::Failed(_)) => assert_eq!(expected, None),
            obstacle => assert_eq!(obstacle, expected),
        }
    }
}

fn check_messages(endpoint: &Endpoint, group: &VectorGroup) {
    let msi = endpoint.msi().unwrap();
    let mut masks = [0; 8];
    msi.read_capability(16, &mut masks);
    for n in 0..4 {
        let state = group.state(n).unwrap();
        assert_eq!(state.masked, masks[0] >> n & 1 != 0);
        assert_eq!(state.pending, masks[4] >> n & 1 != 0);
        let allowed = n < usize::from(msi.allowed());
        match state.obstacle {
            Some(Obstacle::Disabled) => assert!(!msi.is_enabled()),
            Some(Obstacle::NotAllowed) => assert!(msi.is_enabled() && !allowed),
            Some(Obstacle::Masked) => assert!(msi.is_enabled() && allowed && state.masked),
            Some(Obstacle::Failed(_)) | None => assert!(msi.is_enabled() && allowed && !state.masked),
            other => panic!("vector {n} of an MSI: {other:?}"),
        }
    }
}

/// A function that remembers where its BARs are.
struct Function {
    endpoint: Endpoint,
    placed: Mutex<Vec<DecodedBar>>,
}

impl PciFunction for Function {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4) && usize::from(offset % 4) + data.len() <= 4);
        self.endpoint.read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4) && usize::from(offset % 4) + data.len() <= 4);
        let write = self.endpoint.write(offset, data);
        if self.endpoint.with_config(|config| config.asks_for_reset(&write)) {
            self.endpoint.reset();
        }
    }
    fn decoded(&self) -> Vec<DecodedBar> {
        self.endpoint.decoded()
    }
    fn placed(&self, bars: &[DecodedBar]) {
        let mut placed = self.placed.lock().unwrap();
        assert_ne!(*placed, bars, "nothing has changed");
        *placed = bars.to_vec();
    }
    fn read_bar(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.reach(bar, offset, data.len());
        data.fill(bar.get());
    }
    fn write_bar(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        self.reach(bar, offset, data.len());
    }
    fn reset(&self) {
        self.endpoint.reset();
    }
}

impl Function {
    fn new() -> Arc<Self> {
        Arc::new(Self { endpoint: Endpoint::new(config()), placed: Mutex::default() })
    }

    fn reach(&self, bar: BarIndex, offset: u64, length: usize) {
        let placed = self.placed.lock().unwrap();
        let bar = placed.iter().find(|placed| placed.bar == bar).unwrap();
        assert!(offset + length as u64 <= bar.size);
    }
}

/// A guest at a host bridge, and a VMM that plugs and unplugs: BARs that are placed are disjoint and in the windows, and each access reaches the one that is there.
pub fn pci_bus(bytes: &[u8]) {
    const ECAM: u64 = 0x40_0000_0000;
    const MEMORY: u64 = 0x2000_0000;
    const HIGH: u64 = 0x80_0000_0000;
    const PORTS: u64 = 0x3000_0000;
    let removed = Arc::new(Mutex::new(0));
    let count = removed.clone();
    let bus = HostBridge::new(HostConfig {
        segment: 0,
        ecam: ECAM,
        buses: 4,
        memory32: MEMORY..PORTS,
        memory64: Some(HIGH..2 * HIGH),
        io: Some(IoWindow { base: PORTS, size: 0x1_0000 }),
    })
    .unwrap()
    .with_observer(move |event| {
        if let BusEvent::Removed { functions, .. } = event {
            *count.lock().unwrap() += functions.len();
        }
    });
    let (vm, router) = vm(None);
    let wiring = Wiring::new(Arc::clone(&vm) as _, router).unwrap();
    let port = Bdf::new(0, 2, 0).unwrap();
    let group = Arc::new(VectorGroup::new(wiring, port.device_id(0), 1));
    let vector = group.vector(0).unwrap();
    let interrupts = PortInterrupts {
        sink: group,
        message: Box::new(move || drop(vector.trigger())),
        line: Box::new(|_| ()),
    };
    let config = PortConfig { slot: Some(1), io: true, ..PortConfig::default() };
    let functions: Vec<_> = (0..3).map(|_| Function::new()).collect();
    bus.add(Bdf::new(0, 1, 0).unwrap(), functions[0].clone()).unwrap();
    bus.add_port(port, Arc::new(RootPort::new(&config, interrupts).unwrap())).unwrap();
    bus.plug(port, vec![(0, functions[1].clone()), (1, functions[2].clone())]).unwrap();
    assert_eq!(bus.assign(), []);
    let mut bytes = Bytes::new(bytes);
    while bytes.left() {
        let action = bytes.byte();
        let place = u64::from(bytes.byte());
        let offset = u64::from(bytes.byte());
        let data = bytes.word().to_le_bytes().repeat(2);
        let length = [4, 2, 1, 8, 3][usize::from(action >> 4) % 5];
        // Device 1, the port, and what is behind it on two buses.
        let config =
            ECAM + ([1 << 15, 2 << 15, 1 << 20, 1 << 20 | 1 << 12, 2 << 20][place as usize % 5]) + offset;
        match action % 8 {
            0..5 => bus.write(config, &data[..length]),
            5 => {
                let base = [MEMORY, HIGH, PORTS, ECAM][place as usize % 4];
                let at = base + (u64::from(u16::from_le_bytes([data[0], data[1]])) << 4) + offset;
                bus.write(at, &data[..length]);
                bus.read(at, &mut [0; 8][..length]);
            }
            6 => drop(bus.request_removal(port)),
            _ if action & 0x80 == 0 => drop(bus.plug(port, vec![(0, functions[1].clone())])),
            _ => drop(bus.remove(port)),
        }
        let mut all: Vec<DecodedBar> =
            functions.iter().flat_map(|function| function.placed.lock().unwrap().clone()).collect();
        all.sort_by_key(|bar| (bar.space, bar.base));
        for bar in &all {
            let inside = |start: u64, end: u64| start <= bar.base && bar.base + bar.size <= end;
            assert!(match bar.space {
                Space::Memory => inside(MEMORY, PORTS) || inside(HIGH, 2 * HIGH),
                Space::Io => inside(0, 0x1_0000),
            });
            let base = if bar.space == Space::Io { PORTS + bar.base } else { bar.base };
            let mut byte = [0xff];
            bus.read(base + bar.size - 1, &mut byte);
            assert_eq!(byte, [bar.bar.get()], "{bar:?}");
        }
        for pair in all.windows(2) {
            assert!(pair[0].space != pair[1].space || pair[0].base + pair[0].size <= pair[1].base);
        }
    }
    drop(bus);
    assert!(
        functions.iter().all(|function| Arc::strong_count(function) == 1),
        "somebody holds on to a function"
    );
}
