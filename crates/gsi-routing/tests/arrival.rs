// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A route is there for interrupts to arrive: what a GSI of this router raises in the guest.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::fd::AsFd;

use common::{arm, device, msi, x86};
use irq_types::{EventId, Lpi, Spi, TriggerMode};
use irqchip::IrqfdBinder;
use irqchip::fake::{Interrupt, eventfd, signal};

#[test]
fn an_msi_arrives_with_its_senders_identity() {
    let (vm, router) = arm(64);
    let lpi = |n| Lpi::new(n).unwrap();
    // The same event of two devices is two interrupts.
    vm.guest().map_event(device(1), EventId::new(0), lpi(8192)).unwrap();
    vm.guest().map_event(device(2), EventId::new(0), lpi(8193)).unwrap();
    let vector = router.add_msi(msi(0), device(2)).unwrap();
    let event = eventfd().unwrap();
    vm.assign_irqfd(event.as_fd(), vector.gsi(), None).unwrap();
    signal(&event).unwrap();
    assert_eq!(vm.guest().take_all(10), [Interrupt::Intid(lpi(8193).intid())]);

    // The bus is renumbered: the route follows.
    let mut transaction = router.transaction();
    transaction.renumber_devices(|_| device(1)).unwrap();
    transaction.commit().unwrap();
    signal(&event).unwrap();
    assert_eq!(vm.guest().take_all(10), [Interrupt::Intid(lpi(8192).intid())]);
}

#[test]
fn a_claimed_line_arrives_before_and_after_the_defaults_are_released() {
    let (vm, router) = arm(64);
    let spi = Spi::new(4).unwrap();
    vm.guest().configure_spi(spi, TriggerMode::Edge).unwrap();
    let line = router.claim_spi(spi).unwrap();
    let event = eventfd().unwrap();
    vm.assign_irqfd(event.as_fd(), line.gsi(), None).unwrap();
    for release in [false, true] {
        if release {
            router.release_default_routes();
            router.flush().unwrap();
        }
        signal(&event).unwrap();
        assert_eq!(vm.guest().take_all(10), [Interrupt::Intid(spi.intid())]);
    }
}

#[test]
fn a_withdrawn_route_reaches_nobody_elses_interrupt() {
    let (vm, router) = arm(64);
    let lpi = |n| Lpi::new(n).unwrap();
    vm.guest().map_event(device(1), EventId::new(0), lpi(8192)).unwrap();
    vm.guest().map_event(device(2), EventId::new(0), lpi(8193)).unwrap();
    let gone = router.add_msi(msi(0), device(1)).unwrap().gsi();
    let vector = router.add_msi(msi(0), device(2)).unwrap();
    assert_ne!(vector.gsi(), gone);
    let event = eventfd().unwrap();
    vm.assign_irqfd(event.as_fd(), vector.gsi(), None).unwrap();
    signal(&event).unwrap();
    assert_eq!(vm.guest().take_all(10), [Interrupt::Intid(lpi(8193).intid())]);
}

#[test]
fn an_x86_line_arrives_at_the_ioapic() {
    let (vm, router) = x86();
    vm.guest().configure_ioapic_pin(5, TriggerMode::Edge).unwrap();
    let line = router.claim_line(irq_types::Gsi::new(5)).unwrap();
    let event = eventfd().unwrap();
    vm.assign_irqfd(event.as_fd(), line.gsi(), None).unwrap();
    signal(&event).unwrap();
    assert_eq!(vm.guest().take_all(10), [Interrupt::IoapicPin(5)]);
}
