// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices of the fake VFIO in a guest of the fake KVM.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::watched::{Watched, Watcher};
use common::*;
use irq_types::TriggerMode;
use pci::PciFunction;
use vfio_passthrough::fake::{FakeDevice, FakeIrq, FakeRegion};
use vfio_passthrough::iommu::IommuKind;
use vfio_passthrough::pci::{InterruptMode, Notice, PciEvent, VfioPciFunction};
use vfio_passthrough::platform::PlatformDevice;
use vfio_passthrough::{Device, Error, IrqAction, IrqSet, ResamplePath};

#[test]
fn devices_of_one_space_reach_each_others_registers_where_the_iommu_can_map_them() {
    let rig = Rig::new();
    rig.iommu.add(PLATFORM_NAME, pl031(&rig));
    let function = rig.function(&Nvme::default().device(&rig), None).unwrap();
    enable_memory(&function);
    let memory = [(0x4000_0000, 4 << 20), (0x8000_0000, 2 << 20)];
    assert_eq!(rig.iommu.mapped(), memory, "there is nobody to reach it");
    let _peer = rig.space.open(&rig.platform_name()).unwrap();
    function.show_to_peers();
    let shown = [(0x2000_0000, 0x2000), memory[0], memory[1]];
    assert_eq!((rig.iommu.mapped().as_slice(), function.hidden_from_peers()), (shown.as_slice(), vec![]));
    function.reset();
    assert_eq!(rig.iommu.mapped(), memory);
    enable_memory(&function);
    assert_eq!(rig.iommu.mapped(), shown);
    function.reset();
    // What many an IOMMU driver says to registers.
    rig.faults.fail(vfio_passthrough::fake::Call::MapDma, 1, libc::EINVAL);
    enable_memory(&function);
    function.show_to_peers();
    assert_eq!((rig.iommu.mapped().as_slice(), rig.slots.list().len()), (memory.as_slice(), 1));
    assert_eq!(function.hidden_from_peers(), [bar0()]);
    let events = rig.events.lock().unwrap();
    assert!(
        matches!(events.as_slice(), [PciEvent::HiddenFromPeers { bar, .. }] if *bar == bar0()),
        "{events:?}"
    );
}

#[test]
fn a_platform_devices_registers_are_mapped_and_its_level_interrupt_comes_back() {
    let rig = Rig::new();
    let fake = pl031(&rig);
    rig.iommu.add(PLATFORM_NAME, fake.clone());
    let mut device = PlatformDevice::open(rig.space.open(&rig.platform_name()).unwrap()).unwrap();
    assert_eq!(device.region_sizes().collect::<Vec<_>>(), [0x1000]);
    assert_eq!(device.interrupt_modes().collect::<Vec<_>>(), [TriggerMode::Level]);
    assert!(device.place(0, 0x0c00_0000, &rig.slots).unwrap());
    assert_eq!(rig.slots.list(), [(0x0c00_0000, 0x1000)]);
    device.connect(0, &rig.wiring, &rig.line(16), ResamplePath::Kernel).unwrap();

    for round in 0..3 {
        fake.set_level(0, true).unwrap();
        assert!(rig.line_is_high(16), "round {round}");
        assert!(fake.is_masked(0));
        // The driver clears the device's reason before it ends the interrupt.
        fake.set_level(0, false).unwrap();
        assert!(rig.take_line());
        assert_eq!(fake.process().unwrap(), 1, "the EOI unmasks without anybody else");
        assert!(!fake.is_masked(0) && !rig.line_is_high(16));
    }
    // A device that still asks for attention interrupts again at once.
    fake.set_level(0, true).unwrap();
    assert!(rig.take_line());
    assert!(!rig.line_is_high(16));
    fake.process().unwrap();
    assert!(rig.line_is_high(16));

    drop(device);
    assert!(fake.is_quiet() && !rig.line_is_high(16));
    assert_eq!(fake.left_behind(), 0);
    assert_eq!((rig.slots.list(), rig.vm.live().irqfds), (vec![], 0));
}

/// The device interrupts a guest which takes the interrupt and ends it as soon as the trigger is set, before VFIO has an unmask eventfd.
struct BeforeUnmask(Arc<irqchip::fake::FakeVm>);

impl Watcher for BeforeUnmask {
    fn after_set_irqs(&self, fake: &FakeDevice, set: &IrqSet<'_>) {
        if set.action() == IrqAction::Trigger && set.fds().is_some() {
            fake.set_level(0, true).unwrap();
            self.0.process();
            assert!(fake.is_masked(0));
            fake.set_level(0, false).unwrap();
            self.0.guest().eoi(self.0.guest().take().unwrap());
            self.0.process();
        }
    }
}

#[test]
fn an_eoi_from_before_the_unmask_eventfd_unmasks_and_is_not_left_over() {
    let rig = Rig::new();
    let fake = pl031(&rig);
    let raw = Watched(fake.clone(), BeforeUnmask(Arc::clone(&rig.vm)));
    let open = Device::new(PLATFORM_NAME, IommuKind::NoIommu, Box::new(raw), Box::new(())).unwrap();
    let mut device = PlatformDevice::open(open).unwrap();
    device.connect(0, &rig.wiring, &rig.line(16), ResamplePath::Kernel).unwrap();
    assert!(!fake.is_masked(0));
    let [(0, state)] = &device.level_states()[..] else { panic!("one line") };
    assert!(state.handed_over && !state.resample_due, "{state:?}");
}

#[test]
fn the_way_back_through_the_event_loop_does_the_same() {
    let rig = Rig::new();
    let fake = pl031(&rig);
    rig.iommu.add(PLATFORM_NAME, fake.clone());
    let mut device = PlatformDevice::open(rig.space.open(&rig.platform_name()).unwrap()).unwrap();
    device.connect(0, &rig.wiring, &rig.line(16), ResamplePath::EventLoop).unwrap();
    let resamplers = device.resamplers();
    assert_eq!((resamplers.len(), fake.has_unmask(0)), (1, false));
    for _ in 0..3 {
        fake.set_level(0, true).unwrap();
        assert!(rig.line_is_high(16));
        assert!(rig.take_line());
        assert!(fake.is_masked(0));
        assert!(resamplers[0].run().unwrap());
        assert!(rig.line_is_high(16), "it still asks for attention");
        fake.set_level(0, false).unwrap();
        assert!(rig.take_line());
        assert!(resamplers[0].run().unwrap());
        assert!(!rig.line_is_high(16) && !fake.is_masked(0));
    }
}

#[test]
fn an_edge_interrupt_of_any_index_needs_no_way_back() {
    let rig = Rig::new();
    let edge = FakeIrq { count: 1, level: false, can_grow: true };
    let level = FakeIrq { level: true, ..edge };
    let region = FakeRegion { contents: vec![0; 0x20], mappable: true, sparse: None };
    let fake = FakeDevice::new(rig.faults.clone(), AMBA, vec![region], &[level, edge, edge]).unwrap();
    rig.iommu.add(PLATFORM_NAME, fake.clone());
    let mut device = PlatformDevice::open(rig.space.open(&rig.platform_name()).unwrap()).unwrap();
    assert_eq!(
        device.interrupt_modes().collect::<Vec<_>>(),
        [TriggerMode::Level, TriggerMode::Edge, TriggerMode::Edge]
    );
    let spi = irq_types::Spi::new(20).unwrap();
    rig.vm.guest().configure_spi(spi, TriggerMode::Edge).unwrap();
    let gsi = Arc::new(rig.wiring.router().claim_spi(spi).unwrap());
    device.connect(2, &rig.wiring, &gsi, ResamplePath::Kernel).unwrap();
    assert!(!fake.send(1, 0).unwrap());
    for _ in 0..5 {
        assert!(fake.send(2, 0).unwrap());
        assert!(rig.take_line());
    }
    assert_eq!(device.edges(), 1);
    // Registers of less than a page cannot be mapped: they are trapped.
    assert!(!device.place(0, 0x0c00_0000, &rig.slots).unwrap());
    device.store(0, 4, &[1, 2, 3, 4]);
    let mut read = [0; 4];
    device.load(0, 4, &mut read);
    assert_eq!((read, fake.contents(0, 4, 4).unwrap()), ([1, 2, 3, 4], vec![1, 2, 3, 4]));
    device.load(0, 0x1e, &mut read);
    device.store(0, 0x1e, &read);
    let refused = device.refused();
    assert_eq!((read, refused.reads, refused.writes), ([0xff; 4], 1, 1), "beyond its end");
}

#[test]
fn the_configuration_space_is_the_devices_but_for_what_is_the_guests() {
    let rig = Rig::new();
    let fake = Nvme::default().device(&rig);
    let function = rig.function(&fake, Some(rig.line(4))).unwrap();
    assert_eq!(config32(&function, 0), 0x0010_1b36);
    assert_eq!(config32(&function, 0x2c), 0x1100_1af4);
    assert_eq!(config32(&function, VENDOR + 4), 0xbbaa, "the vendor's capability is there");
    assert_eq!(config32(&function, 0x0c) >> 16 & 0xff, 0, "the bus says whether there are other functions");
    assert_eq!(config32(&function, EXPRESS) >> 16 & 0xf0, 0x90, "integrated: it has no link on a root bus");
    assert_eq!(config32(&function, EXPRESS + 0xc), 0);
    assert_eq!(config32(&function, 0x3c) >> 8 & 0xff, 1);

    // BARs are sized and placed here, and the device's stay.
    let before = fake.contents(7, 0x10, 0x18).unwrap();
    for at in [0x10, 0x14, 0x18] {
        set_config(&function, at, &[0xff; 4]);
    }
    assert_eq!([0x10, 0x14, 0x18].map(|at| config32(&function, at)), [0xffff_c004, 0xffff_ffff, 0xffff_ffe1]);
    assert_eq!(fake.contents(7, 0x10, 0x18).unwrap(), before);
    enable_memory(&function);
    assert_eq!(rig.slots.list(), [(0x2000_0000, 0x2000)], "all but the pages of table and pending bits");
    assert_eq!(fake.contents(7, 4, 2).unwrap(), [7, 0], "memory, I/O; bus master is the guest's");
    // Moved while it decodes.
    set_config(&function, 0x10, &0x2400_0000_u32.to_le_bytes());
    assert_eq!(rig.slots.list(), [(0x2400_0000, 0x2000)]);
    set_config(&function, COMMAND, &[0, 4]);
    assert_eq!(rig.slots.list(), []);
    assert_eq!(
        fake.contents(7, 4, 2).unwrap(),
        [3, 4],
        "it answers as before, INTx is disabled, bus master off"
    );
    // D3: nothing is left in the guest's address space, whatever the command register says.
    enable_memory(&function);
    set_config(&function, PM + 4, &[3, 0]);
    assert_eq!(rig.slots.list(), []);
    set_config(&function, PM + 4, &[0, 0]);
    assert_eq!(rig.slots.list(), [(0x2400_0000, 0x2000)].map(|_| (0x2000_0000, 0x2000)));
    // The interrupt line register is the guest's; capabilities that are nobody's are the device's.
    set_config(&function, 0x3c, &[77]);
    set_config(&function, VENDOR + 6, &[0xcc]);
    assert_eq!((config32(&function, 0x3c) & 0xff, fake.contents(7, 0x3c, 1).unwrap()), (77, vec![0]));
    assert_eq!(fake.contents(7, u64::from(VENDOR) + 6, 1).unwrap(), [0xcc]);
}

#[test]
fn accesses_beside_the_msix_table_reach_the_device() {
    let rig = Rig::new();
    let fake = Nvme { table: 0x200, pending: 0x1200, ..Nvme::default() }.device(&rig);
    let function = rig.function(&fake, None).unwrap();
    enable_memory(&function);
    assert_eq!(rig.slots.list(), [(0x2000_2000, 0x2000)]);
    function.write_bar(bar0(), 0x100, &[1, 2, 3, 4]);
    assert_eq!(fake.contents(0, 0x100, 4).unwrap(), [1, 2, 3, 4]);
    let mut read = [0; 4];
    function.read_bar(bar0(), 0x1ffc, &mut read);
    assert_eq!(read, [0x5a; 4]);
    program(&function, 0x200, 1, 9);
    assert_eq!(fake.contents(0, 0x200, 0x80).unwrap(), [0x5a; 0x80], "the device's own table is the host's");
    function.read_bar(bar0(), 0x218, &mut read);
    assert_eq!(read, [9, 0, 0, 0]);
}

#[test]
fn vectors_are_allocated_as_the_guest_uses_them() {
    for can_grow in [false, true] {
        let rig = Rig::new();
        let fake = Nvme { can_grow, vectors: 16, ..Nvme::default() }.device(&rig);
        let function = rig.function(&fake, Some(rig.line(4))).unwrap();
        assert_eq!(fake.enabled(0), (1, vec![0]), "the line, as long as there is no MSI-X");
        enable_memory(&function);

        // As Linux does: masked enable, all messages, function unmasked, each vector when its driver asks for it.
        set_config(&function, MSIX_CONTROL, &ENABLE_MASKED);
        assert_eq!(fake.enabled(0), (0, vec![]));
        for vector in 0..5 {
            program(&function, 0x2000, vector, u32::try_from(vector).unwrap());
        }
        set_config(&function, MSIX_CONTROL, &ENABLE);
        for vector in [0, 3, 1] {
            mask(&function, 0x2000, vector, false);
        }
        assert_eq!(fake.enabled(2).1, [0, 1, 3], "those that nobody waits for have no trigger");
        let state = function.interrupts();
        assert_eq!((state.mode, state.used, state.vectors), (InterruptMode::Msix, 3, 16));
        assert_eq!(state.allocated, if can_grow { 4 } else { 5 });
        for vector in [0_u32, 3, 1] {
            assert!(fake.send(2, vector as usize).unwrap());
            assert_eq!(rig.raised(vector), 1, "vector {vector}, can grow: {can_grow}");
        }
        // One that was not foreseen.
        program(&function, 0x2000, 9, 9);
        mask(&function, 0x2000, 9, false);
        assert_eq!(fake.enabled(2).1, [0, 1, 3, 9]);
        assert!(fake.send(2, 9).unwrap());
        let lost_and_found = if can_grow { 1 } else { 2 };
        assert_eq!(
            [rig.raised(9), rig.raised(0), rig.raised(3), rig.raised(2)],
            [1, lost_and_found, lost_and_found, 0],
            "where MSI-X was off for a moment, what may have been lost is fired again"
        );

        // Masked: held, shown as pending, delivered once.
        mask(&function, 0x2000, 3, true);
        for _ in 0..3 {
            fake.send(2, 3).unwrap();
        }
        assert_eq!(rig.raised(3), lost_and_found);
        let mut pending = [0; 8];
        function.read_bar(bar0(), 0x3000, &mut pending);
        assert_eq!(pending, [8, 0, 0, 0, 0, 0, 0, 0]);
        mask(&function, 0x2000, 3, false);
        assert_eq!(rig.raised(3), lost_and_found + 1);

        // Off: the line is back.
        set_config(&function, MSIX_CONTROL, &[0, 0]);
        assert_eq!((fake.enabled(2), fake.enabled(0)), ((0, vec![]), (1, vec![0])));
        drop(function);
        assert!(fake.is_quiet());
        assert_eq!(fake.left_behind(), 0);
        assert_eq!(rig.vm.live().irqfds, 0);
        assert!(rig.events.lock().unwrap().is_empty(), "{:?}", rig.events);
    }
}

#[test]
fn a_host_with_too_few_vectors_says_so_and_gives_those_it_has() {
    let rig = Rig::new();
    let fake = Nvme { vectors: 16, ..Nvme::default() }.device(&rig).with_vectors(3);
    let function = rig.function(&fake, None).unwrap();
    for vector in 0..6 {
        program(&function, 0x2000, vector, u32::try_from(vector).unwrap());
        mask(&function, 0x2000, vector, false);
    }
    set_config(&function, MSIX_CONTROL, &ENABLE);
    assert_eq!(fake.enabled(2), (3, vec![0, 1, 2]));
    fake.send(2, 2).unwrap();
    assert_eq!(rig.raised(2), 1);
    let events = rig.events.lock().unwrap();
    assert!(
        matches!(
            events.as_slice(),
            [PciEvent::Trouble(Error::TooFewVectors { wanted: 6, available: 3, .. })]
        ),
        "{events:?}"
    );
}

#[test]
fn each_vector_of_multiple_msi_has_its_own_message() {
    let rig = Rig::new();
    let fake = Nvme::default().device(&rig);
    let function = rig.function(&fake, Some(rig.line(4))).unwrap();
    set_config(&function, MSI + 4, &TRANSLATER.to_le_bytes()[..4]);
    set_config(&function, MSI + 8, &TRANSLATER.to_le_bytes()[4..]);
    set_config(&function, MSI + 12, &[8, 0]);
    // Four vectors allowed, enabled.
    set_config(&function, MSI + 2, &[0x21, 0]);
    assert_eq!((fake.enabled(1), fake.enabled(0)), ((4, vec![0, 1, 2, 3]), (0, vec![])));
    for vector in 0..4 {
        assert!(fake.send(1, vector as usize).unwrap());
        assert_eq!(rig.raised(8 + vector), 1);
    }
    // Fewer, while it is enabled: anew with as many, since VFIO cannot change their number.
    set_config(&function, MSI + 2, &[0x11, 0]);
    assert_eq!(fake.enabled(1), (2, vec![0, 1]));
    assert!(fake.send(1, 1).unwrap() && !fake.send(1, 2).unwrap());
    assert_eq!((rig.raised(9), rig.raised(10)), (2, 1));
    set_config(&function, MSI + 2, &[0x31, 0]);
    assert_eq!(fake.enabled(1), (4, vec![0, 1, 2, 3]), "as many as there are, at most");
    set_config(&function, MSI + 2, &[0, 0]);
    set_config(&function, MSI + 2, &[0x01, 0]);
    assert_eq!(fake.enabled(1), (1, vec![0]));
    set_config(&function, MSI + 2, &[0, 0]);
    assert_eq!((fake.enabled(1), fake.enabled(0)), ((0, vec![]), (1, vec![0])));
}

#[test]
fn the_line_goes_to_messages_and_back_without_being_stuck() {
    let rig = Rig::new();
    let fake = Nvme::default().device(&rig);
    let function = rig.function(&fake, Some(rig.line(4))).unwrap();
    for round in 0..4 {
        fake.set_level(0, true).unwrap();
        assert!(rig.line_is_high(4) && fake.has_unmask(0), "round {round}");
        set_config(&function, MSIX_CONTROL, &ENABLE);
        assert!(!rig.line_is_high(4), "a function with MSI-X does not drive its line");
        assert!(!fake.has_unmask(0), "nor does an EOI on it unmask anything");
        set_config(&function, MSIX_CONTROL, &[0, 0]);
        assert!(rig.line_is_high(4), "it still wants attention");
        fake.set_level(0, false).unwrap();
        assert!(rig.take_line());
        fake.process().unwrap();
        assert!(!rig.line_is_high(4) && !fake.is_masked(0));
    }
}

/// Functions of one device have different pins on the host. In the guest each is in a slot of its own.
#[test]
fn the_pin_is_that_of_the_line_whichever_the_device_has_on_the_host() {
    for (pin, line, shown) in [(1, true, 1), (2, true, 1), (4, true, 1), (2, false, 0)] {
        let rig = Rig::new();
        let fake = Nvme { pin, ..Nvme::default() }.device(&rig);
        let function = rig.function(&fake, line.then(|| rig.line(4))).unwrap();
        assert_eq!(config32(&function, 0x3c) >> 8 & 0xff, shown, "pin {pin}");
    }
}

#[test]
fn a_reset_leaves_nothing_of_the_guests() {
    let rig = Rig::new();
    let fake = Nvme::default().device(&rig);
    let function = rig.function(&fake, Some(rig.line(4))).unwrap();
    let set_up = || {
        enable_memory(&function);
        program(&function, 0x2000, 0, 0);
        mask(&function, 0x2000, 0, false);
        set_config(&function, MSIX_CONTROL, &ENABLE);
        assert_eq!((fake.enabled(2).1, rig.slots.list().len()), (vec![0], 1));
    };
    let check = |resets| {
        assert_eq!((rig.slots.list(), function.decoded()), (vec![], vec![]));
        assert_eq!((fake.enabled(2), fake.enabled(0)), ((0, vec![]), (1, vec![0])));
        assert_eq!((config32(&function, COMMAND) & 0xffff, config32(&function, 0x10)), (0, 4));
        assert_eq!((fake.contents(7, 4, 2).unwrap(), fake.resets()), (vec![3, 0], resets));
    };
    set_up();
    // In D3, from which the reset brings it back.
    set_config(&function, PM + 4, &[3]);
    set_config(&function, MSI + 4, &[0, 0, 9, 8]);
    function.reset();
    check(1);
    assert_eq!(config32(&function, MSI + 4), 0);
    set_up();
    // A function level reset is the device's own doing, whichever of the capabilities that have one it is asked of.
    set_config(&function, EXPRESS + 8, &[0, 0x80]);
    assert_eq!(fake.contents(7, u64::from(EXPRESS) + 8, 2).unwrap(), [0, 0x80]);
    check(1);
    set_up();
    set_config(&function, ADVANCED + 4, &[1]);
    assert_eq!(fake.contents(7, u64::from(ADVANCED) + 4, 1).unwrap(), [1]);
    check(1);
    set_up();
    // Where nothing is reset, nothing is lost.
    set_config(&function, ADVANCED + 4, &[0]);
    assert_eq!((fake.enabled(2).1, rig.slots.list().len()), (vec![0], 1));
}

#[test]
fn the_host_is_heard_while_the_guest_has_the_device() {
    let rig = Rig::new();
    let fake = Nvme::default().device(&rig);
    let function = rig.function(&fake, None).unwrap();
    let error = function.notifier(Notice::Error).unwrap().unwrap();
    let release = function.notifier(Notice::Release).unwrap().unwrap();
    assert!(error.take().is_none() && release.take().is_none());
    fake.send(4, 0).unwrap();
    assert!(matches!(release.take(), Some(PciEvent::ReleaseRequested)));
    assert!(error.take().is_none() && release.take().is_none());
    fake.send(3, 0).unwrap();
    assert!(matches!(error.take(), Some(PciEvent::DeviceError)));
    drop((error, release));
    assert!(!fake.send(3, 0).unwrap() && !fake.send(4, 0).unwrap());
}

#[test]
fn a_device_without_an_iommu_is_never_made_a_bus_master() {
    let rig = Rig::new();
    let fake = Nvme::default().device(&rig);
    rig.iommu.add(PCI_NAME, fake.clone());
    let open = rig.space.open(&rig.pci_name()).unwrap();
    let mut options = rig.options(None, ResamplePath::Kernel);
    options.dma = false;
    let function = VfioPciFunction::new(open, options).unwrap();
    set_config(&function, COMMAND, &[6, 0]);
    assert_eq!((config32(&function, COMMAND) & 7, fake.contents(7, 4, 1).unwrap()), (6, vec![3]));
}
