// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whatever a guest writes to configuration space, table and registers, in whatever order, and whatever the device does meanwhile: host and guest agree
//! on how the device interrupts and where its registers are; a driver that then starts as drivers do finds a device that works; nothing stays behind.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use common::*;
use pci::{BarIndex, PciFunction};
use proptest::prelude::*;
use vfio_passthrough::fake::FakeDevice;
use vfio_passthrough::pci::{InterruptMode, VfioPciFunction};

const LINE: u32 = 4;
const COMMAND: u16 = 4;

#[derive(Debug, Clone)]
enum Step {
    /// 1, 2 or 4 bytes within a dword of configuration space.
    Config(u16, Vec<u8>),
    /// Within the BAR that has table and pending bits, or beyond its end.
    Bar(u64, Vec<u8>),
    /// A vector of MSI (1) or MSI-X (2) is signalled by the device.
    Signal(usize, usize),
    /// The device's level.
    Level(bool),
    /// The guest takes an interrupt of the line, if there is one, and ends it.
    TakeLine,
    Reset,
}

/// Places that matter, and any.
fn config() -> impl Strategy<Value = Step> {
    let interesting = prop_oneof![
        4 => Just((COMMAND, 2)),
        4 => Just((MSIX + 2, 2)),
        3 => Just((MSI + 2, 2)),
        2 => (0_u16..5).prop_map(|n| (MSI + 4 + 4 * n, 4)),
        2 => (0_u16..6).prop_map(|n| (0x10 + 4 * n, 4)),
        1 => Just((PM + 4, 2)),
        1 => Just((EXPRESS + 8, 2)),
        1 => (0_u16..1024, Just(4_usize)).prop_map(|(dword, len)| (4 * dword, len)),
        1 => (0_u16..256).prop_map(|at| (at, 1)),
    ];
    let value = prop_oneof![
        any::<u32>(),
        Just(0),
        Just(u32::MAX),
        Just(0xc000),
        Just(0x8000),
        Just(0x0406),
        Just(6),
        Just(0x21),
        Just(0x2000_0000),
        Just(TRANSLATER as u32),
    ];
    (interesting, value).prop_map(|((at, len), value)| Step::Config(at, value.to_le_bytes()[..len].to_vec()))
}

fn bar() -> impl Strategy<Value = Step> {
    // Entries of the table, most of them sensible.
    let entry = (0_u64..9, 0_u64..4, prop_oneof![0_u32..12, Just(TRANSLATER as u32), any::<u32>()]);
    prop_oneof![
        6 => entry.prop_map(|(vector, word, value)| {
            Step::Bar(0x2000 + 16 * vector + 4 * word, value.to_le_bytes().to_vec())
        }),
        3 => (0_u64..8, 0_u32..2).prop_map(|(vector, mask)| {
            Step::Bar(0x200c + 16 * vector, mask.to_le_bytes().to_vec())
        }),
        1 => (0_u64..0x4010, prop::collection::vec(any::<u8>(), 1..=8)).prop_map(|(at, data)| Step::Bar(at, data)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => config(),
        8 => bar(),
        4 => (1_usize..3, 0_usize..8).prop_map(|(index, vector)| Step::Signal(index, vector)),
        2 => any::<bool>().prop_map(Step::Level),
        2 => Just(Step::TakeLine),
        1 => Just(Step::Reset),
    ]
}

struct Machine {
    rig: Rig,
    device: FakeDevice,
    function: std::sync::Arc<VfioPciFunction>,
}

impl Machine {
    fn new(can_grow: bool) -> Self {
        let rig = Rig::new();
        let device = Nvme { can_grow, ..Nvme::default() }.device(&rig);
        let function = rig.function(&device, Some(rig.line(LINE))).unwrap();
        Self { rig, device, function }
    }

    fn set(&self, at: u16, bytes: &[u8]) {
        self.function.write_config(at, bytes);
        self.function.placed(&self.function.decoded());
    }

    fn get(&self, at: u16) -> u16 {
        let mut bytes = [0; 2];
        self.function.read_config(at, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn do_it(&self, step: &Step) {
        let bar = BarIndex::new(0).unwrap();
        match step {
            Step::Config(at, bytes) => self.set(*at, bytes),
            Step::Bar(at, bytes) => {
                self.function.write_bar(bar, *at, bytes);
                self.function.read_bar(bar, *at, &mut vec![0; bytes.len()]);
            }
            // What is not allocated does not interrupt.
            Step::Signal(index, vector) => drop(self.device.send(*index, *vector)),
            Step::Level(level) => self.device.set_level(0, *level).unwrap(),
            Step::TakeLine => {
                self.rig.take_line();
                self.device.process().unwrap();
            }
            Step::Reset => {
                self.function.reset();
                self.function.placed(&self.function.decoded());
            }
        }
    }

    /// Host and guest agree.
    fn check(&self) {
        let allocated = [0, 1, 2].map(|index| self.device.enabled(index).0 > 0);
        let (msix, msi) = (self.get(MSIX + 2) & 0x8000 != 0, self.get(MSI + 2) & 1 != 0);
        let mode = self.function.interrupts().mode;
        assert!(allocated.iter().filter(|&&on| on).count() <= 1, "one kind at a time: {allocated:?}");
        match mode {
            InterruptMode::Off => panic!("it has a line at least"),
            // INTx disable in the command register is the device's own, and the kernel's.
            InterruptMode::Intx => assert!(!msi && !msix && allocated == [true, false, false]),
            InterruptMode::Msi => assert!(msi && !allocated[0] && !allocated[2]),
            InterruptMode::Msix => assert!(msix && !allocated[0] && !allocated[1]),
        }
        // Registers are where the guest has put them, all but the pages of table and pending bits, and nowhere else.
        let wanted: Vec<(u64, u64)> = self
            .function
            .decoded()
            .iter()
            .filter(|bar| bar.bar == BarIndex::new(0).unwrap())
            .map(|bar| (bar.base, 0x2000))
            .collect();
        assert_eq!(self.rig.slots.list(), wanted);
        // The guest cannot reach what is the host's: memory and I/O stay on, whatever the guest's command register says.
        assert_eq!(self.device.contents(7, 4, 1).unwrap()[0] & 3, 3);
    }

    /// What a driver does when it starts: reset, place, messages, one interrupt of each vector it wants; then the line.
    fn works_after_all(&self) {
        self.do_it(&Step::Level(false));
        self.function.reset();
        self.function.placed(&self.function.decoded());
        self.rig.take_line();
        self.device.process().unwrap();
        self.set(0x10, &0x3000_0000_u32.to_le_bytes());
        self.set(0x14, &[0; 4]);
        self.set(COMMAND, &[6, 0]);
        self.set(MSIX + 2, &[0, 0xc0]);
        let bar = BarIndex::new(0).unwrap();
        for vector in 0..3_u32 {
            let entry = 0x2000 + 16 * u64::from(vector);
            self.function.write_bar(bar, entry, &TRANSLATER.to_le_bytes());
            self.function.write_bar(bar, entry + 8, &(40 + vector).to_le_bytes());
            self.function.write_bar(bar, entry + 12, &[0; 4]);
        }
        self.set(MSIX + 2, &[0, 0x80]);
        for vector in 0..3_u32 {
            let before = self.rig.raised(40 + vector);
            assert!(self.device.send(2, vector as usize).unwrap());
            assert_eq!(self.rig.raised(40 + vector) - before, 1, "vector {vector}");
        }
        self.set(MSIX + 2, &[0, 0]);
        for _ in 0..2 {
            self.device.set_level(0, true).unwrap();
            assert!(self.rig.line_is_high(LINE));
            self.device.set_level(0, false).unwrap();
            assert!(self.rig.take_line());
            self.device.process().unwrap();
            assert!(!self.rig.line_is_high(LINE) && !self.device.is_masked(0));
        }
        self.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_order_leaves_a_device_that_works(can_grow: bool, steps in prop::collection::vec(step(), 1..60)) {
        let machine = Machine::new(can_grow);
        for step in &steps {
            machine.do_it(step);
            machine.check();
        }
        machine.works_after_all();
        let Machine { rig, device, function } = machine;
        drop(function);
        assert!(device.is_quiet());
        assert_eq!((rig.vm.live().irqfds, rig.slots.list(), rig.iommu.attached()), (0, vec![], 0));
    }
}
