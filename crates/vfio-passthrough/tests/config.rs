// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which bytes of a function's configuration space are the device's, which the guest's, and which are shown otherwise; and what BARs become.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::{Arc, Mutex};

use common::watched::{Watched, Watcher};
use common::*;
use pci::{BarIndex, PciFunction};
use vfio_passthrough::fake::{Call, FakeDevice, FakeRegion};
use vfio_passthrough::iommu::IommuKind;
use vfio_passthrough::pci::{Notice, PciEvent, VfioPciFunction};
use vfio_passthrough::{Device, ResamplePath};

/// Regions of a function: BAR 0, the ROM, configuration space.
const ROM: usize = 6;
const CONFIG: usize = 7;

fn read<const N: usize>(function: &VfioPciFunction, at: u16) -> [u8; N] {
    let mut bytes = [0xee; N];
    function.read_config(at, &mut bytes);
    bytes
}

fn of_the_device(fake: &FakeDevice, at: u16, len: usize) -> Vec<u8> {
    fake.contents(CONFIG, at.into(), len).unwrap()
}

fn bar(contents: Vec<u8>) -> FakeRegion {
    FakeRegion { contents, mappable: true, sparse: None }
}

/// AER, ARI, serial number.
fn with_extended_capabilities() -> Vec<u8> {
    let mut config = Nvme::default().config();
    for (at, header) in
        [(0x100, 1 | 2 << 16 | 0x140 << 20), (0x140, 0xe | 1 << 16 | 0x150 << 20), (0x150, 3 | 1 << 16)]
    {
        config[at..at + 4].copy_from_slice(&u32::to_le_bytes(header));
    }
    // The status register: an interrupt is pending, and an error.
    config[6..8].copy_from_slice(&[0x18, 0x80]);
    config
}

#[test]
fn each_byte_is_the_devices_the_guests_or_shown_otherwise() {
    let rig = Rig::new();
    let config = with_extended_capabilities();
    let fake = Nvme::default().device_of(&rig, config.clone(), bar(vec![0; 0x4000]), FakeRegion::default());
    let function = rig.function(&fake, Some(rig.line(4))).unwrap();
    assert_eq!(of_the_device(&fake, 4, 2), [3, 0], "it answers before the guest has said anything");
    // What reads otherwise than the device has it.
    let mut expected = config.clone();
    let mut show = |at: u16, bytes: &[u8]| {
        expected[usize::from(at)..][..bytes.len()].copy_from_slice(bytes);
    };
    show(0x0e, &[0]);
    show(0x3c, &[0, 1, 0, 0]);
    show(EXPRESS + 2, &[0x92]);
    show(EXPRESS + 0x0c, &[0; 8]);
    show(EXPRESS + 0x2c, &[0; 8]);
    show(0x100, &u32::to_le_bytes(1 | 2 << 16 | 0x150 << 20));
    for at in (0..4096).step_by(4) {
        let whole = read::<4>(&function, at);
        assert_eq!(whole, expected[usize::from(at)..][..4], "{at:#x}");
        let [b0, b1] = read::<2>(&function, at + 2);
        let bytes = [read::<1>(&function, at)[0], read::<1>(&function, at + 1)[0], b0, b1];
        assert_eq!(whole, bytes, "{at:#x} in parts");
    }
    // Ones everywhere, but for what resets the function or switches it off; two dwords of each kind are looked at.
    let ours = |at: u16| (MSI..MSI + 24).contains(&at) || (MSIX..MSIX + 12).contains(&at);
    for at in (8..4096).step_by(4).filter(|at| ![PM + 4, EXPRESS + 8, ADVANCED + 4].contains(at)) {
        function.write_config(at, &[0xff; 4]);
        for byte in at..at + 4 {
            let guests = (0x10..0x28).contains(&byte) || (0x30..0x34).contains(&byte) || byte & !3 == 0x3c;
            let shown = byte == 0x0e
                || byte == EXPRESS + 2
                || (EXPRESS + 0x0c..EXPRESS + 0x14).contains(&byte)
                || (EXPRESS + 0x2c..EXPRESS + 0x34).contains(&byte)
                || (0x100..0x104).contains(&byte);
            let now = if guests || shown || ours(byte) { config[usize::from(byte)] } else { 0xff };
            assert_eq!(of_the_device(&fake, byte, 1), [now], "{byte:#x}");
        }
    }
}

#[test]
fn the_command_register_is_the_guests_and_the_status_register_the_devices() {
    let rig = Rig::new();
    let fake = Nvme::default().device_of(
        &rig,
        with_extended_capabilities(),
        bar(vec![0; 0x4000]),
        FakeRegion::default(),
    );
    let function = rig.function(&fake, None).unwrap();
    let status = |fake: &FakeDevice| of_the_device(fake, 6, 2);
    assert_eq!(read::<4>(&function, 4), [0, 0, 0x18, 0x80]);
    function.write_config(4, &[0x47, 5]);
    assert_eq!((of_the_device(&fake, 4, 2), status(&fake)), (vec![0x47, 5], vec![0x18, 0x80]));
    // Ones that clear errors get to the device, byte by byte, and no further.
    function.write_config(7, &[0xf9]);
    assert_eq!((of_the_device(&fake, 4, 2), status(&fake)), (vec![0x47, 5], vec![0x18, 0xf9]));
    function.write_config(6, &[0x11, 0x22]);
    assert_eq!((read::<2>(&function, 4), status(&fake)), ([0x47, 5], vec![0x11, 0x22]));
    function.write_config(4, &[0, 4, 0x33, 0x44]);
    assert_eq!((of_the_device(&fake, 4, 2), status(&fake)), (vec![3, 4], vec![0x33, 0x44]));
    assert_eq!(read::<4>(&function, 4), [0, 4, 0x33, 0x44]);
}

#[test]
fn messages_are_the_guests_and_the_device_never_sees_them() {
    let rig = Rig::new();
    let fake = Nvme::default().device(&rig);
    let function = rig.function(&fake, None).unwrap();
    let before = of_the_device(&fake, 0, 0x100);
    function.write_config(MSIX, &[0xff, 0xff, 0xff, 0xc0]);
    assert_eq!(read::<4>(&function, MSIX), [0x11, 0x60, 7, 0xc0], "enabled, and masked as a function");
    assert_eq!(read::<1>(&function, MSIX + 3), [0xc0]);
    function.write_config(MSIX + 2, &[0, 0]);
    for (at, data) in [(4, [0x43, 0, 9, 8]), (8, [1, 0, 0, 0]), (12, [0x34, 0x12, 0, 0]), (16, [5, 0, 0, 0])]
    {
        function.write_config(MSI + at, &data);
    }
    function.write_config(MSI + 2, &[0x21, 0]);
    assert_eq!(read::<4>(&function, MSI), [5, 0xf0, 0xa5, 1]);
    assert_eq!(read::<4>(&function, MSI + 4), [0x40, 0, 9, 8]);
    assert_eq!(read::<4>(&function, MSI + 8), [1, 0, 0, 0]);
    assert_eq!(read::<2>(&function, MSI + 12), [0x34, 0x12]);
    assert_eq!(read::<4>(&function, MSI + 16), [5, 0, 0, 0]);
    assert_eq!(of_the_device(&fake, MSI, 24), before[usize::from(MSI)..][..24]);
    assert_eq!(of_the_device(&fake, MSIX, 12), before[usize::from(MSIX)..][..12]);
}

#[test]
fn a_conventional_device_has_256_bytes() {
    let rig = Rig::new();
    let mut config = Nvme::default().config();
    config.truncate(0x100);
    config[0xfc..].copy_from_slice(&[1, 2, 3, 4]);
    let fake = Nvme::default().device_of(&rig, config, bar(vec![0; 0x4000]), FakeRegion::default());
    let function = rig.function(&fake, None).unwrap();
    assert_eq!((read::<4>(&function, 0xfc), read::<4>(&function, 0x100)), ([1, 2, 3, 4], [0; 4]));
    function.write_config(0xfc, &[5; 4]);
    function.write_config(0x100, &[5; 4]);
    assert_eq!(of_the_device(&fake, 0xfc, 4), [5; 4]);
    assert_eq!(
        (function.refused().reads, function.refused().writes),
        (0, 0),
        "nobody asks the device in vain"
    );
    // Less than a header is no function.
    let fake = Nvme::default().device_of(&rig, vec![0; 32], bar(vec![]), FakeRegion::default());
    assert!(rig.function(&fake, None).is_err());
}

#[test]
fn a_device_without_a_function_level_reset_has_none_asked_of_it() {
    let rig = Rig::new();
    let mut config = Nvme::default().config();
    config[usize::from(EXPRESS) + 7] = 0;
    config[usize::from(ADVANCED) + 3] = 1;
    let fake = Nvme::default().device_of(&rig, config, bar(vec![0x5a; 0x4000]), FakeRegion::default());
    let function = rig.function(&fake, None).unwrap();
    enable_memory(&function);
    set_config(&function, EXPRESS + 8, &[0, 0x80]);
    set_config(&function, ADVANCED + 4, &[1]);
    assert_eq!(rig.slots.list().len(), 1, "nothing of the guest's is gone");
    assert_eq!(of_the_device(&fake, EXPRESS + 8, 2), [0, 0x80], "what it makes of it is its own affair");
}

#[test]
fn the_rom_is_placed_like_a_bar_and_read_with_exits() {
    for mappable in [false, true] {
        let rig = Rig::new();
        let rom = FakeRegion { contents: vec![0x55; 0x1000], mappable, sparse: None };
        let fake = Nvme::default().device_of(&rig, Nvme::default().config(), bar(vec![0; 0x4000]), rom);
        let function = rig.function(&fake, None).unwrap();
        set_config(&function, 0x30, &[0xff; 4]);
        assert_eq!(config32(&function, 0x30), 0xffff_f001);
        enable_memory(&function);
        set_config(&function, 0x30, &0x2800_0001_u32.to_le_bytes());
        assert!(function.decoded().iter().any(|bar| bar.bar == BarIndex::ROM && bar.base == 0x2800_0000));
        assert_eq!(rig.slots.list(), [(0x2000_0000, 0x2000)], "a ROM is not worth a slot");
        let mut byte = [0];
        function.read_bar(BarIndex::ROM, 0xfff, &mut byte);
        assert_eq!((byte, of_the_device(&fake, 0x30, 4)), ([0x55], vec![0; 4]));
        assert_eq!(fake.contents(ROM, 0, 1).unwrap(), [0x55]);
    }
}

/// Sizes of a BAR, whether VFIO lets it be mapped, what the guest sees, what it reaches without an exit.
#[test]
fn a_bar_that_is_smaller_than_a_page_is_a_page_where_it_has_the_page_for_itself() {
    let table = [
        (0x800, true, 0x1000, vec![(0, 0x1000)]),
        (0x800, false, 0x800, vec![]),
        (0x4000, false, 0x4000, vec![]),
        (0x4000, true, 0x4000, vec![(0, 0x4000)]),
    ];
    for (size, mappable, shown, mapped) in table {
        let rig = Rig::new();
        // Without MSI-X there is nothing to trap.
        let mut config = Nvme::default().config();
        config[0x34] = u8::try_from(PM).unwrap();
        let region = FakeRegion { contents: vec![7; size], mappable, sparse: None };
        let fake = Nvme::default().device_of(&rig, config, region, FakeRegion::default());
        let function = rig.function(&fake, None).unwrap();
        set_config(&function, 0x10, &[0xff; 4]);
        assert_eq!(!(config32(&function, 0x10) & !0xf) + 1, shown, "{size:#x}, {mappable}");
        let parts: Vec<_> = function.mapped().iter().map(|(_, offset, len)| (*offset, *len)).collect();
        assert_eq!(parts, mapped, "{size:#x}, {mappable}");
        enable_memory(&function);
        assert_eq!(rig.slots.list().len(), mapped.len());
        let mut byte = [0];
        function.read_bar(BarIndex::new(0).unwrap(), 0x7ff, &mut byte);
        assert_eq!(byte, [7]);
    }
}

#[test]
fn registers_that_cannot_be_mapped_are_trapped_and_that_is_said() {
    for call in [Call::Map, Call::Slot] {
        let rig = Rig::new();
        let fake = Nvme::default().device(&rig);
        rig.faults.fail(call, 1, libc::ENOMEM);
        let function = rig.function(&fake, None).unwrap();
        enable_memory(&function);
        assert_eq!(rig.slots.list(), [], "{call:?}");
        let mut read = [0; 4];
        function.read_bar(BarIndex::new(0).unwrap(), 0, &mut read);
        assert_eq!(read, [0x5a; 4]);
        let events = rig.events.lock().unwrap();
        assert!(matches!(events.as_slice(), [PciEvent::Trouble(_)]), "{call:?}: {events:?}");
    }
}

#[test]
fn peers_reach_a_part_where_it_is_in_the_bar() {
    let rig = Rig::new();
    rig.iommu.add(PLATFORM_NAME, pl031(&rig));
    let _peer = rig.space.open(&rig.platform_name()).unwrap();
    let fake = Nvme { table: 0, pending: 0x800, ..Nvme::default() }.device(&rig);
    let function = rig.function(&fake, None).unwrap();
    enable_memory(&function);
    assert_eq!(rig.slots.list(), [(0x2000_1000, 0x3000)]);
    assert!(rig.iommu.mapped().contains(&(0x2000_1000, 0x3000)), "{:x?}", rig.iommu.mapped());
}

#[test]
fn what_a_device_never_says_nobody_waits_for() {
    let rig = Rig::new();
    let regions = vec![FakeRegion::default(); 7].into_iter();
    let config = FakeRegion { contents: Nvme::default().config(), ..FakeRegion::default() };
    let fake =
        FakeDevice::new(rig.faults.clone(), PCI, regions.chain([config]).collect(), &[Default::default(); 5])
            .unwrap();
    let function = rig.function(&fake, Some(rig.line(4))).unwrap();
    assert!(function.notifier(Notice::Error).unwrap().is_none());
    assert!(function.notifier(Notice::Release).unwrap().is_none());
    // Nor has it a line, whatever its interrupt pin register says, or messages.
    assert_eq!(read::<1>(&function, 0x3d), [0]);
    assert_eq!((function.line().map(|_| ()), function.vectors().1.len()), (None, 0));
}

/// What was done, how many slots there were then, and whether interrupts were set up.
type Moment = (&'static str, usize, bool);

/// Notes what the guest reaches of a device at the moments that matter.
struct Noting {
    slots: FakeSlots,
    seen: Arc<Mutex<Vec<Moment>>>,
}

impl Noting {
    fn note(&self, fake: &FakeDevice, what: &'static str) {
        self.seen.lock().unwrap().push((what, self.slots.list().len(), !fake.is_quiet()));
    }
}

impl Watcher for Noting {
    fn before_write(&self, fake: &FakeDevice, offset: u64, data: &[u8]) {
        match offset & 0xfff {
            at if at == u64::from(PM) + 4 && data[0] & 3 != 0 => self.note(fake, "off"),
            at if at == u64::from(EXPRESS) + 8 => self.note(fake, "function level reset"),
            _ => {}
        }
    }

    fn before_reset(&self, fake: &FakeDevice) {
        self.note(fake, "reset");
    }
}

/// A guest that reached registers which do not answer would make the host's CPU take an error.
#[test]
fn registers_leave_the_guest_before_the_device_stops_answering() {
    let rig = Rig::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noting = Noting { slots: rig.slots.clone(), seen: Arc::clone(&seen) };
    let raw = Watched(Nvme::default().device(&rig), noting);
    let open = Device::new(PCI_NAME, IommuKind::NoIommu, Box::new(raw), Box::new(())).unwrap();
    let function = VfioPciFunction::new(open, rig.options(Some(rig.line(4)), ResamplePath::Kernel)).unwrap();
    enable_memory(&function);
    set_config(&function, PM + 4, &[3]);
    set_config(&function, PM + 4, &[0]);
    assert_eq!(rig.slots.list().len(), 1);
    set_config(&function, EXPRESS + 8, &[0, 0x80]);
    enable_memory(&function);
    function.reset();
    let quiet = ["function level reset", "reset"].map(|what| (what, 0, false));
    assert_eq!(*seen.lock().unwrap(), [("off", 0, true), quiet[0], quiet[1]]);
}
