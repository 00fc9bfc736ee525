// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How virtio over PCI interrupts, driven as a guest drives it, on the model of the kernel.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::sync::Arc;

use common::driver::{Driver, VERSION_1};
use common::echo::{ALL, Echo, Echoed, FEATURE, round_trip};
use common::{Machine, wait_for};
use pci::{BarIndex, PciFunction};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn without_msi_the_line_is_raised_and_reading_the_isr_lowers_it() {
    for msix in [true, false] {
        // With the capability there, but not enabled: pci=nomsi; and without it.
        let machine = Machine::new();
        let mut driver = Driver::new(&machine, Echo::new(2), msix);
        let features = driver.negotiate(ALL | VERSION_1);
        let mut queues = [driver.queue(0, features), driver.queue(1, features)];
        driver.driver_ok();
        for queue in &mut queues {
            let before = machine.raised_line();
            round_trip(&mut driver, queue, b"knock");
            wait_for("the line", || (machine.raised_line() > before).then_some(()));
            assert_ne!(driver.config::<2>(6)[0] & 8, 0, "interrupt status");
            let taken = machine.vm.guest().take().unwrap();
            assert_eq!(taken, machine.intx());
            // A handler reads the ISR, and ends the interrupt.
            wait_for("the reason", || (driver.isr() == 1).then_some(()));
            assert_eq!(driver.isr(), 0, "reading clears it");
            machine.vm.guest().eoi(taken);
            machine.resampler.run().unwrap();
            assert!(!machine.line_is_high(), "nothing more to say");
            assert_eq!(driver.config::<2>(6)[0] & 8, 0);
        }
        if msix {
            assert_eq!(machine.raised(1) + machine.raised(2), 0);
        }
    }
}

#[test]
fn a_line_that_is_not_served_stays_up_and_a_disabled_one_stays_down() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(1), true);
    let features = driver.negotiate(ALL | VERSION_1);
    let mut queues = [driver.queue(0, features)];
    driver.driver_ok();
    round_trip(&mut driver, &mut queues[0], b"hello?");
    wait_for("the line", || machine.line_is_high().then_some(()));
    // An EOI without a look at the device: it comes again.
    let taken = machine.vm.guest().take().unwrap();
    machine.vm.guest().eoi(taken);
    machine.resampler.run().unwrap();
    assert!(machine.line_is_high());
    let taken = machine.vm.guest().take().unwrap();
    // Interrupt Disable takes the pin down, and leaves the reason.
    driver.set_config(4, &0x0406u16.to_le_bytes());
    machine.vm.guest().eoi(taken);
    machine.resampler.run().unwrap();
    assert!(!machine.line_is_high());
    driver.set_config(4, &0x0006u16.to_le_bytes());
    assert!(machine.line_is_high());
    // A function with MSI-X on does not use its pin.
    let taken = machine.vm.guest().take().unwrap();
    driver.enable_msix(2);
    machine.vm.guest().eoi(taken);
    machine.resampler.run().unwrap();
    assert!(!machine.line_is_high());
    driver.disable_msix();
    assert!(machine.line_is_high());
    assert_eq!(driver.isr(), 1);
}

#[test]
fn an_interrupt_of_vhost_reaches_the_guest_through_the_vector_or_the_line() {
    for msix in [true, false] {
        let machine = Machine::new();
        let shared = Arc::new(Echoed { idle: true, ..Echoed::default() });
        let mut driver = Driver::new(&machine, Echo::sharing(2, shared.clone()), true);
        if msix {
            driver.probe(ALL);
        } else {
            let features = driver.negotiate(ALL | VERSION_1);
            let _ = [driver.queue(0, features), driver.queue(1, features)];
            driver.driver_ok();
        }
        let transport = shared.transport.lock().unwrap().clone().unwrap();
        for queue in 0..2u16 {
            let before = (machine.raised(u32::from(queue) + 1), machine.raised_line());
            let fd = transport.queue_eventfd(queue).unwrap();
            rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
            wait_for("the interrupt", || {
                let now = (machine.raised(u32::from(queue) + 1), machine.raised_line());
                (if msix { now.0 > before.0 } else { now.1 > before.1 }).then_some(())
            });
            if !msix {
                wait_for("the reason", || (driver.isr() == 1).then_some(()));
                let taken = machine.vm.guest().take().unwrap();
                machine.vm.guest().eoi(taken);
                machine.resampler.run().unwrap();
            }
        }
        drop(transport);
        // What the kernel passes on, nobody here counts; what is passed on by hand is passed on once.
        assert_eq!(driver.function.state().interrupts, if msix { 0 } else { 2 });
        driver.reset();
    }
}

#[test]
fn a_change_of_the_configuration_interrupts_and_changes_the_generation() {
    let machine = Machine::new();
    let shared = Arc::new(Echoed::default());
    *shared.config.lock().unwrap() = vec![1, 2, 3];
    let mut driver = Driver::new(&machine, Echo::sharing(1, shared.clone()), true);
    assert_eq!(driver.read::<4>(driver.device, 0), [1, 2, 3, 0], "beyond the end is zero");
    driver.write(driver.device, 1, &[7]);
    assert_eq!(driver.read::<4>(driver.device, 0), [1, 7, 3, 0]);
    // To the end of its page, and not across.
    *shared.config.lock().unwrap() = vec![7; 0x1000];
    assert_eq!(driver.read::<4>(driver.device, 0xffc), [7; 4]);
    assert_eq!(driver.read::<4>(driver.device, 0xffe), [0; 4]);
    driver.probe(ALL);
    let [generation] = driver.read::<1>(driver.common, 0x15);
    shared.config.lock().unwrap()[0] = 9;
    driver.function.transport().config_changed();
    assert_eq!(machine.raised(0), 1);
    assert_ne!(driver.read::<1>(driver.common, 0x15), [generation]);
    // On the line, with its own bit.
    driver.reset();
    driver.disable_msix();
    let features = driver.negotiate(ALL | VERSION_1);
    let _queue = driver.queue(0, features);
    driver.driver_ok();
    driver.function.transport().config_changed();
    assert_eq!(driver.isr(), 2);
    assert_eq!(machine.raised(0), 1);
}

/// Section 2.1.2: a device notifies its driver after DRIVER_OK, and not before.
#[test]
fn a_device_that_nobody_drives_does_not_interrupt() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(1), true);
    for round in 1..=2 {
        let features = driver.negotiate(ALL | VERSION_1);
        driver.enable_msix(2);
        driver.map_config_vector(0);
        driver.function.transport().config_changed();
        driver.function.transport().needs_reset(&"nobody is listening");
        assert_eq!(machine.raised(0), round - 1);
        driver.reset();
        driver.negotiate(ALL | VERSION_1);
        driver.map_config_vector(0);
        let _queue = driver.queue(0, features);
        driver.driver_ok();
        driver.function.transport().config_changed();
        assert_eq!(machine.raised(0), round);
        driver.reset();
    }
    // What another driver had mapped is not mapped any more.
    driver.negotiate(ALL | VERSION_1);
    driver.driver_ok();
    driver.function.transport().config_changed();
    assert_eq!(machine.raised(0), 2);
}

#[test]
fn what_a_masked_vector_holds_back_is_pending() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(1), true);
    let mut queues = driver.probe(ALL);
    let bar = BarIndex::new(2).unwrap();
    let pending = |driver: &Driver| {
        let mut word = [0xee; 8];
        driver.function.read_bar(bar, 0x1000, &mut word);
        u64::from_le_bytes(word)
    };
    driver.function.write_bar(bar, 16 + 12, &1u32.to_le_bytes());
    round_trip(&mut driver, &mut queues[0], b"hold it");
    wait_for("the pending bit", || (pending(&driver) == 2).then_some(()));
    assert_eq!(machine.raised(1), 0);
    driver.function.write_bar(bar, 16 + 12, &0u32.to_le_bytes());
    wait_for("the interrupt", || (machine.raised(1) == 1).then_some(()));
    assert_eq!(pending(&driver), 0);
}

#[test]
fn an_unmapped_vector_is_polled_and_one_that_there_is_not_cannot_be_mapped() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(1), true);
    let features = driver.negotiate(ALL | VERSION_1);
    driver.enable_msix(2);
    assert_eq!(driver.map_queue_vector(0, 2), 0xffff, "there are two vectors: 0 and 1");
    assert_eq!(driver.map_config_vector(0xffff), 0xffff);
    let mut queue = driver.queue(0, features);
    driver.driver_ok();
    round_trip(&mut driver, &mut queue, b"quietly");
    driver.function.transport().config_changed();
    assert_eq!(machine.raised(0) + machine.raised(1) + machine.raised_line(), 0);
    // Two interrupts may share a vector.
    assert_eq!(driver.map_queue_vector(0, 1), 1);
    assert_eq!(driver.map_config_vector(1), 1);
    round_trip(&mut driver, &mut queue, b"aloud");
    wait_for("the interrupt", || (machine.raised(1) > 0).then_some(()));
}

#[test]
fn interrupts_that_the_driver_does_not_want_are_not_sent() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(1), true);
    // EVENT_IDX: only for the third chain.
    let mut queues = driver.probe(ALL);
    let page = driver.pages(4096);
    let one = [(page, 8, false), (page + 8, 8, true)];
    queues[0].want_interrupt(3);
    for n in 1..=3u64 {
        assert_eq!(machine.raised(1), 0, "before chain {n}");
        queues[0].add(&one).unwrap();
        queues[0].kick(1);
        wait_for("the chain to be used", || {
            let used: u16 = driver.memory.read_obj(GuestAddress(queues[0].used + 2)).unwrap();
            (u64::from(used) == n).then_some(())
        });
    }
    wait_for("the interrupt", || (machine.raised(1) == 1).then_some(()));
    // Without: not at all.
    let mut queues = driver.probe(FEATURE);
    queues[0].set_available_flags(1);
    for _ in 0..3 {
        queues[0].add(&one).unwrap();
        queues[0].kick(1);
        queues[0].wait_used();
    }
    driver.reset();
    assert_eq!(machine.raised(1), 1);
}
