// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Message-signalled interrupts where there is no ITS: vector → irqfd → the SPI that the message to the GICv2m frame names, to a bare-metal guest that
//! counts them.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use doorbell_tests::metal::{Kind, Machine, exactly_once};
use irq_types::DeviceId;
use irqfd::{MsiVector, VectorGroup};
use vgic::{GicRequest, MsiChoice};

fn machine(test: &str, vcpus: u32) -> Option<Machine> {
    let request = GicRequest { msi: MsiChoice::V2m, vcpus, v2m_spis: 128, ..GicRequest::default() };
    Machine::start(test, request, |host| host.v2 || host.v3, "a GIC")
}

/// A device whose vector n is the frame's SPI n, configured as edge; masked.
fn group(machine: &Machine, count: u32) -> VectorGroup {
    let frame = machine.gic().v2m_frame().unwrap();
    let group = VectorGroup::new(machine.wiring().clone(), DeviceId::new(0x108), count as usize);
    for (n, spi) in (0..count).zip(frame.spis().iter()) {
        machine.wire(spi.intid(), Kind::Edge, n % machine.gic().config().vcpus());
        group.program(n as usize, frame.message(spi).unwrap()).unwrap();
    }
    group
}

#[test]
fn of_100_000_messages_each_arrives_exactly_once_and_none_through_userspace() {
    let test = "of_100_000_messages_each_arrives_exactly_once_and_none_through_userspace";
    let Some(machine) = machine(test, 2) else { return };
    let group = group(&machine, 100);
    group.update(|changes| (0..100).try_for_each(|n| changes.unmask(n))).unwrap();
    let vectors: Vec<_> = (0..100).map(|n| group.vector(n).unwrap()).collect();
    let frame = machine.gic().v2m_frame().unwrap();
    let intids: Vec<_> = frame.spis().iter().take(100).map(|spi| spi.intid()).collect();
    exactly_once(&machine, test, &intids, |n| vectors[n].trigger().unwrap());
}

#[test]
fn signals_to_a_masked_vector_arrive_as_one_when_it_is_unmasked() {
    let test = "signals_to_a_masked_vector_arrive_as_one_when_it_is_unmasked";
    let Some(machine) = machine(test, 1) else { return };
    let group = group(&machine, 1);
    let vector = group.vector(0).unwrap();
    let intid = machine.gic().v2m_frame().unwrap().spis().first().intid();
    for round in 1..=20 {
        group.mask(0).unwrap();
        (0..100).for_each(|_| vector.trigger().unwrap());
        drop(machine.serve());
        assert_eq!(machine.mailbox().count(intid), round - 1);
        let serving = machine.serve();
        group.unmask(0).unwrap();
        machine.until("what was held", || machine.mailbox().count(intid) >= round);
        drop(serving);
        assert_eq!(machine.mailbox().count(intid), round);
    }
}
