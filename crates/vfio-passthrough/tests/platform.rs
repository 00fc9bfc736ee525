// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a platform device has, where it is put, and how its interrupts are connected.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::watched::{Watched, Watcher};
use common::*;
use gsi_routing::GsiHandle;
use irq_types::{Spi, TriggerMode};
use vfio_passthrough::fake::{Call, FakeDevice, FakeIrq, FakeRegion};
use vfio_passthrough::iommu::IommuKind;
use vfio_passthrough::platform::{HostNode, PlatformDevice};
use vfio_passthrough::{Device, Error, IrqInfo, RegionInfo, ResamplePath};

/// `VFIO_DEVICE_FLAGS_PLATFORM`.
const PLATFORM: u32 = 4;
const LEVEL: FakeIrq = FakeIrq { count: 1, level: true, can_grow: true };
const EDGE: FakeIrq = FakeIrq { level: false, ..LEVEL };

fn page() -> FakeRegion {
    FakeRegion { contents: vec![0x31; 0x1000], mappable: true, sparse: None }
}

fn open(fake: FakeDevice, watcher: impl Watcher + 'static) -> Result<PlatformDevice, Error> {
    let raw = Box::new(Watched(fake, watcher));
    PlatformDevice::open(Device::new(PLATFORM_NAME, IommuKind::NoIommu, raw, Box::new(())).unwrap())
}

/// A line that the guest has as edge.
fn edge_line(rig: &Rig, spi: u32) -> Arc<GsiHandle> {
    let spi = Spi::new(spi).unwrap();
    rig.vm.guest().configure_spi(spi, TriggerMode::Edge).unwrap();
    Arc::new(rig.wiring.router().claim_spi(spi).unwrap())
}

struct Nothing;

impl Watcher for Nothing {}

type SaysOfRegion = fn(RegionInfo) -> RegionInfo;
type SaysOfIrq = fn(IrqInfo) -> IrqInfo;

/// Says other things of its regions and interrupts than the fake does.
#[derive(Clone, Copy)]
struct Says {
    region: SaysOfRegion,
    irq: SaysOfIrq,
}

impl Watcher for Says {
    fn region(&self, info: RegionInfo) -> RegionInfo {
        (self.region)(info)
    }

    fn irq(&self, info: IrqInfo) -> IrqInfo {
        (self.irq)(info)
    }
}

const SAYS_THE_SAME: Says = Says { region: |info| info, irq: |info| info };

#[test]
fn a_device_of_a_bus_or_of_more_parts_than_any_has_is_refused() {
    let rig = Rig::new();
    for (flags, regions, irqs, fits) in [
        (PLATFORM, 256, 256, true),
        (AMBA, 0, 0, true),
        (PLATFORM, 257, 1, false),
        (PLATFORM, 1, 257, false),
        (PCI, 1, 1, false),
    ] {
        let regions = vec![FakeRegion::default(); regions];
        let fake = FakeDevice::new(rig.faults.clone(), flags, regions, &vec![LEVEL; irqs]).unwrap();
        match open(fake, Nothing) {
            Ok(_) => assert!(fits, "flags {flags}"),
            Err(Error::Unsupported { .. }) => assert_eq!(flags, PCI),
            Err(Error::Description { .. }) => assert!(flags != PCI && !fits),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_interrupt_is_one_line_with_an_eventfd() {
    let rig = Rig::new();
    let says: [SaysOfIrq; 3] = [
        |info| IrqInfo { count: 0, ..info },
        |info| IrqInfo { count: 2, ..info },
        // VFIO_IRQ_INFO_EVENTFD
        |info| IrqInfo { flags: info.flags & !1, ..info },
    ];
    for irq in says {
        let error = open(pl031(&rig), Says { irq, ..SAYS_THE_SAME }).unwrap_err();
        assert!(matches!(&error, Error::Description { what, .. } if what.contains("interrupt 0")), "{error}");
    }
    assert!(open(pl031(&rig), SAYS_THE_SAME).is_ok());
}

#[test]
fn registers_are_mapped_where_the_guest_can_do_with_them_whatever_the_device_lets_it() {
    let rig = Rig::new();
    // Read, write and mmap are bits 0, 1 and 2 of a region's flags.
    let says: [(SaysOfRegion, bool); 6] = [
        (|info| info, true),
        (|info| RegionInfo { flags: info.flags & !1, ..info }, false),
        (|info| RegionInfo { flags: info.flags & !2, ..info }, false),
        (|info| RegionInfo { flags: info.flags & !4, ..info }, false),
        (|info| RegionInfo { size: 0xfff, ..info }, false),
        (|info| RegionInfo { size: 0, ..info }, false),
    ];
    for (case, (region, mapped)) in says.into_iter().enumerate() {
        let mut device = open(pl031(&rig), Says { region, ..SAYS_THE_SAME }).unwrap();
        assert_eq!(device.placed(), []);
        assert_eq!(device.place(0, 0x0c00_0000, &rig.slots).unwrap(), mapped, "case {case}");
        assert_eq!(rig.slots.list().len(), usize::from(mapped), "case {case}");
        let size = device.region_sizes().next().unwrap();
        assert_eq!(device.placed(), [(0x0c00_0000, size)], "case {case}");
    }
    let mut device = open(pl031(&rig), SAYS_THE_SAME).unwrap();
    assert!(matches!(device.place(1, 0x0c00_0000, &rig.slots), Err(Error::Description { .. })));
}

#[test]
fn what_could_not_be_placed_is_not_placed() {
    let rig = Rig::new();
    for call in [Call::Map, Call::Slot] {
        let fake = FakeDevice::new(rig.faults.clone(), PLATFORM, vec![page(), page()], &[]).unwrap();
        let mut device = open(fake, Nothing).unwrap();
        rig.faults.fail(call, 1, libc::EIO);
        device.place(0, 0x0c00_0000, &rig.slots).unwrap_err();
        assert!(device.place(1, 0x0c10_0000, &rig.slots).unwrap());
        assert_eq!(device.placed(), [(0x0c10_0000, 0x1000)], "{call:?}");
    }
}

#[test]
fn an_interrupt_that_is_connected_again_leads_to_the_new_line_only() {
    let rig = Rig::new();
    let fake = FakeDevice::new(rig.faults.clone(), AMBA, vec![], &[LEVEL, EDGE]).unwrap();
    let mut device = open(fake.clone(), Nothing).unwrap();
    assert_eq!((device.edges(), device.edge_states(), device.level_states()), (0, vec![], vec![]));
    for spi in [16, 20] {
        device.connect(0, &rig.wiring, &rig.line(spi), ResamplePath::EventLoop).unwrap();
        device.connect(1, &rig.wiring, &edge_line(&rig, spi + 1), ResamplePath::EventLoop).unwrap();
    }
    assert_eq!((rig.vm.live().irqfds, device.resamplers().len(), device.edges()), (2, 1, 1));
    let [(0, level)] = &device.level_states()[..] else { panic!("one level") };
    let [(1, edge)] = &device.edge_states()[..] else { panic!("one edge") };
    let gsi = |spi| Spi::new(spi).unwrap().pin().get();
    assert_eq!(level.gsi.map(irq_types::Gsi::get), Some(gsi(20)));
    assert_eq!(edge.gsi.map(irq_types::Gsi::get), Some(gsi(21)));
    assert!(fake.send(1, 0).unwrap() && rig.take_line());
    fake.set_level(0, true).unwrap();
    assert!(rig.line_is_high(20) && !rig.line_is_high(16));
    let none = device.connect(2, &rig.wiring, &rig.line(24), ResamplePath::Kernel);
    assert!(matches!(none, Err(Error::Description { .. })));

    drop(device);
    assert!(fake.is_quiet() && !rig.line_is_high(20));
    assert_eq!((fake.left_behind(), rig.vm.live().irqfds), (0, 0));
    assert!(!fake.send(1, 0).unwrap(), "nobody is told any more");
}

#[test]
fn a_device_whose_interrupts_the_host_could_not_map_is_refused() {
    let rig = Rig::new();
    let with = |irqs: &[FakeIrq]| {
        open(FakeDevice::new(rig.faults.clone(), AMBA, vec![page()], irqs).unwrap(), Nothing).unwrap()
    };
    for (property, value) in [("interrupts", vec![0, 0, 0, 0]), ("interrupts-extended", vec![0, 0, 0, 1])] {
        let mut node = HostNode::default();
        with(&[]).check(&node).unwrap();
        node.properties.insert(property.to_owned(), Vec::new());
        with(&[]).check(&node).unwrap();
        node.properties.insert(property.to_owned(), value);
        let error = with(&[]).check(&node).unwrap_err();
        assert!(matches!(error, Error::NoInterrupt { .. }) && error.hint().is_some(), "{error}");
        with(&[LEVEL]).check(&node).unwrap();
    }
}
