// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The models against what the kernel's source and documentation say of each kind (Linux 6.12). Those of arm64 and x86 are held against
//! real KVM elsewhere.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{CountingVm, device, msi};
use gsi_routing::{
    Error, ForeignMap, IrqchipModel, MsiPath, NumberSpace, Router, TableKind, Target, Targets, models,
};
use irq_types::{Gsi, IrqchipPin, MsiMessage, Pin};

const ALL: [(&IrqchipModel, u32); 5] = [
    (&models::ARM_GIC, 224),
    (&models::X86_PIC_IOAPIC, 24),
    (&models::RISCV_AIA, 96),
    (&models::POWER_XICS, 0),
    (&models::POWER_MPIC, 80),
];

/// (gsi, irqchip, pin) of all default routes, in order.
fn defaults(model: &'static IrqchipModel, lines: u32) -> Vec<(u32, u32, u32)> {
    let (_vm, router) = CountingVm::router(model, lines);
    let entries = router.snapshot();
    entries
        .iter()
        .map(|entry| match entry.target {
            Target::Line(pin) => (entry.gsi.get(), pin.irqchip, pin.pin.get()),
            Target::Msi { .. } => panic!("{entry}"),
        })
        .collect()
}

#[test]
fn default_routes_are_those_of_the_kernel() {
    let identity = |n: u32| (0..n).map(|i| (i, 0, i)).collect::<Vec<_>>();
    // kvm_vgic_setup_default_irq_routing
    assert_eq!(defaults(&models::ARM_GIC, 224), identity(224));
    // default_routing[]: ROUTING_ENTRY2 for 0 to 15, ROUTING_ENTRY1 for 16 to 23
    let mut x86: Vec<_> = (0..8).flat_map(|i| [(i, 0, i), (i, 2, i)]).collect();
    x86.extend((8..16).flat_map(|i| [(i, 1, i - 8), (i, 2, i)]));
    x86.extend((16..24).map(|i| (i, 2, i)));
    assert_eq!(defaults(&models::X86_PIC_IOAPIC, 24), x86);
    // kvm_riscv_setup_default_irq_routing(kvm, aplic->nr_irqs), where nr_irqs = nr_sources + 1
    assert_eq!(defaults(&models::RISCV_AIA, 96), identity(97));
    // kvm_irq_map_gsi: no table
    assert_eq!(defaults(&models::POWER_XICS, 0), []);
    // mpic_set_default_irq_routing: "a nop default map"
    assert_eq!(defaults(&models::POWER_MPIC, 80), []);
}

#[test]
fn pins_are_those_that_the_kernel_takes_and_the_chip_has() {
    // (model, lines, irqchip, first pin, last pin)
    let table: &[(&'static IrqchipModel, u32, u32, u32, u32)] = &[
        (&models::ARM_GIC, 32, 0, 0, 31),
        (&models::ARM_GIC, 960, 0, 0, 959),
        (&models::X86_PIC_IOAPIC, 24, 0, 0, 7),
        (&models::X86_PIC_IOAPIC, 24, 1, 0, 7),
        (&models::X86_PIC_IOAPIC, 24, 2, 0, 23),
        (&models::RISCV_AIA, 96, 0, 1, 96),
        (&models::RISCV_AIA, 1023, 0, 1, 1023),
        (&models::POWER_XICS, 0, 0, 16, 0xf_ffff),
        (&models::POWER_MPIC, 80, 0, 0, 79),
        (&models::POWER_MPIC, 196, 0, 0, 195),
    ];
    for &(model, lines, irqchip, first, last) in table {
        let wired = model.chip(irqchip).unwrap().wired_pins(lines);
        assert_eq!((wired.start, wired.end - 1), (first, last), "{} {irqchip}", model.name);
    }
}

#[test]
fn lines_that_exist_can_be_claimed_and_others_cannot() {
    for (model, lines) in ALL {
        let (_vm, router) = CountingVm::router(model, lines);
        let claim = |n| router.claim_line(Gsi::new(n)).map(|handle| handle.targets());
        let (first, last, beyond) = match model.name {
            "AIA" => (1, 96, 97),
            "XICS" => (16, 0xf_ffff, 1 << 20),
            "MPIC" => (0, 79, 80),
            _ => (0, lines - 1, lines),
        };
        for n in [first, last] {
            let Targets::Lines(pins) = claim(n).unwrap() else { panic!() };
            assert!(!pins.is_empty(), "{}", model.name);
        }
        assert!(matches!(claim(beyond), Err(Error::NoSuchLine { .. })), "{}", model.name);
        if first > 0 {
            assert!(matches!(claim(first - 1), Err(Error::NoSuchLine { .. })), "{}", model.name);
        }
    }
}

#[test]
fn a_claimed_line_of_an_mpic_needs_a_commit_and_of_a_xics_none() {
    let (vm, router) = CountingVm::router(&models::POWER_MPIC, 80);
    let _line = router.claim_line(Gsi::new(7)).unwrap();
    assert_eq!(vm.log().table.len(), 1);
    let (vm, router) = CountingVm::router(&models::POWER_XICS, 0);
    let line = router.claim_line(Gsi::new(0x1234)).unwrap();
    assert_eq!(line.targets(), Targets::Lines(vec![IrqchipPin { irqchip: 0, pin: Pin::new(0x1234) }]));
    assert_eq!(vm.log().calls, 0);
}

#[test]
fn msis_go_where_the_kind_takes_them() {
    for (model, lines) in ALL {
        let (vm, router) = CountingVm::router(model, lines);
        let vector = router.allocate().unwrap();
        let mut transaction = router.transaction();
        let data = match model.msi {
            MsiPath::SourceNumber => vector.gsi().get(),
            _ => 5,
        };
        transaction.set_msi(&vector, msi(data), device(1)).unwrap();
        transaction.commit().unwrap();
        let calls = u64::from(model.table == TableKind::Routed);
        assert_eq!(vm.log().calls, calls, "{}", model.name);
        let Targets::Msi { message, device_id } = vector.targets() else { panic!() };
        assert_eq!((message, device_id), (msi(data), device(1)));
    }
}

#[test]
fn a_power_msi_carries_the_number_that_was_allocated_for_it() {
    let (vm, router) = CountingVm::router(&models::POWER_XICS, 0);
    let vector = router.allocate().unwrap();
    assert_eq!(vector.gsi(), Gsi::new(16), "the lowest source of KVM's XICS");
    let mut transaction = router.transaction();
    let message = |data| MsiMessage { address: 0, data };
    let error = transaction.set_msi(&vector, message(17), device(0)).unwrap_err();
    assert_eq!(error, Error::NotItsOwnSource { gsi: vector.gsi(), number: 17 });
    let pin = IrqchipPin { irqchip: 0, pin: Pin::new(17) };
    let error = transaction.add_line(&vector, pin).unwrap_err();
    assert_eq!(error, Error::NotItsOwnSource { gsi: vector.gsi(), number: 17 });
    transaction.set_msi(&vector, message(16), device(0)).unwrap();
    assert!(!transaction.commit().unwrap().installed);
    drop(vector);
    assert!(!router.flush().unwrap().installed);
    assert_eq!((vm.log().calls, router.usage().owned, router.usage().withdrawn), (0, 0, 0));
}

#[test]
fn thousands_of_sources_per_bridge_are_allocated_where_there_is_no_table() {
    let (_vm, router) = CountingVm::router(&models::POWER_XICS, 0);
    assert_eq!(router.limit(), 1 << 20);
    let ports: Vec<_> =
        (0..4).map(|n| router.reserve_range(0x1000 * (n + 1)..0x1000 * (n + 2)).unwrap()).collect();
    let handle = ports[3].claim(Gsi::new(0x4abc)).unwrap();
    assert_eq!(handle.gsi().get(), 0x4abc);
    let more = router.allocate_many(8000).unwrap();
    assert_eq!(more[0].gsi().get(), 16);
    assert_eq!(more.last().unwrap().gsi().get(), 0x5000 + 8000 - (0x1000 - 16) - 1);
}

#[test]
fn sparse_24_bit_numbers_are_mapped_to_gsis_of_a_table() {
    // A flat space of 24 bits on a table of 4096: the number is looked up, the GSI is the lowest free one.
    let (_vm, router) = CountingVm::router(&models::POWER_MPIC, 80);
    let mut map = ForeignMap::new(NumberSpace::POWER);
    let handles = router.allocate_many(3).unwrap();
    for (number, handle) in [0x00_0100, 0x7f_0001, 0xff_ffff].into_iter().zip(&handles) {
        map.bind(number, handle.gsi()).unwrap();
    }
    assert_eq!(map.gsi(0xff_ffff), Some(Gsi::new(258)), "behind the 256 pins");
    assert_eq!(map.number(Gsi::new(256)), Some(0x100));
}

#[test]
fn a_model_is_data_that_anybody_may_write() {
    const TOY: IrqchipModel = IrqchipModel {
        name: "toy",
        citation: "here",
        table: TableKind::Routed,
        spis: false,
        chips: &[gsi_routing::Chip {
            name: "toy",
            irqchip: 5,
            first_pin: 2,
            pins: 4,
            wired: gsi_routing::Wired::All,
        }],
        lines: &[],
        default_routes: false,
        kernel_users: &[],
        msi: MsiPath::Table,
    };
    let vm = CountingVm::new(8, false);
    let router = Router::new(vm.clone(), &*vm, &vm.ready(0), &TOY).unwrap();
    let handle = router.allocate().unwrap();
    let pin = IrqchipPin { irqchip: 5, pin: Pin::new(2) };
    let mut transaction = router.transaction();
    transaction.add_line(&handle, pin).unwrap();
    transaction.commit().unwrap();
    assert_eq!((handle.gsi(), vm.log().table.len()), (Gsi::new(0), 1));
}

#[test]
fn each_model_says_where_the_kernel_says_so() {
    for (model, _) in ALL {
        assert!(
            model.citation.contains("arch/") || model.citation.contains("Documentation/"),
            "{}",
            model.name
        );
        for chip in model.chips {
            assert!(chip.first_pin < chip.pins);
            assert_eq!(model.chip(chip.irqchip), Some(chip), "irqchip numbers are unique");
        }
    }
}
