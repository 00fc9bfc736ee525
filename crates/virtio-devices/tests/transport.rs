// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtio over PCI, driven as a guest drives it, on the model of the kernel.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::driver::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, Driver, DriverQueue, EVENT_IDX, FAILED, FEATURES_OK, INDIRECT_DESC,
    NEEDS_RESET, NEXT, REGISTERS, VERSION_1, WRITE,
};
use common::echo::{ALL, Echo, Echoed, FEATURE, TYPE, round_trip};
use common::{MEMORY, Machine, REGION, wait_for};
use irqchip::Errno;
use irqchip::fake::{Call, Fault};
use pci::{BarIndex, PciFunction};
use virtio_devices::ActivateError;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn the_function_is_a_modern_virtio_device_with_all_its_structures() {
    let machine = Machine::new();
    let driver = Driver::new(&machine, Echo::new(3), true);
    assert_eq!(driver.config_u32(0), (0x1040 + TYPE) << 16 | 0x1af4);
    let [revision] = driver.config(8);
    assert!(revision >= 1);
    assert_eq!(driver.config::<2>(0x2c), 0x1af4u16.to_le_bytes());
    let structures = [
        (driver.common, 56, 4),
        (driver.notify, 3 * driver.multiplier, 2),
        (driver.isr, 1, 1),
        (driver.device, 0, 4),
    ];
    for (structure, least, align) in structures {
        assert!(structure.capability > 0, "there is a capability for it");
        assert!(structure.length >= least);
        assert_eq!(structure.offset % align, 0);
        assert_eq!(structure.bar, 0);
        assert!(structure.offset + structure.length <= 0x4000);
    }
    assert!(driver.multiplier >= 2, "each queue has an address of its own");
    assert_eq!(driver.queue_count(), 3);
    for (queue, size, off) in [(0u16, 64, 0), (2, 64, 2), (3, 0, 0), (0xffff, 0, 0)] {
        driver.select(queue);
        assert_eq!(u16::from_le_bytes(driver.read(driver.common, 0x18)), size, "size of queue {queue}");
        assert_eq!(
            u16::from_le_bytes(driver.read(driver.common, 0x1e)),
            off,
            "notify offset of queue {queue}"
        );
    }
    assert_eq!(driver.offered(), FEATURE | VERSION_1 | EVENT_IDX | INDIRECT_DESC);
}

#[test]
fn each_queue_is_notified_without_an_exit_and_interrupts_on_its_own_vector() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(3), true);
    for features in [ALL, FEATURE] {
        let mut queues = driver.probe(features);
        let state = driver.function.state();
        assert!(state.notified_in_kernel && state.is_running());
        assert_eq!(state.queues, [64; 3]);
        let before = state.interrupts;
        for (index, queue) in queues.iter_mut().enumerate() {
            let before = machine.raised(index as u32 + 1);
            round_trip(&mut driver, queue, b"how are you?");
            wait_for("the interrupt", || (machine.raised(index as u32 + 1) > before).then_some(()));
            assert_eq!(queue.exits, 0);
        }
        assert_eq!(machine.raised(0), 0, "the configuration has not changed");
        driver.reset();
        let state = driver.function.state();
        assert!(state.interrupts - before >= 3);
        assert_eq!((state.is_running(), state.queues), (false, vec![0; 3]));
    }
}

#[test]
fn what_is_there_before_the_driver_is_ready_is_served_when_it_is() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(1), true);
    let features = driver.negotiate(ALL | VERSION_1);
    let mut queue = driver.queue(0, features);
    let page = driver.pages(4096);
    queue.add(&[(page, 8, false), (page + 8, 8, true)]).unwrap();
    queue.notify();
    driver.driver_ok();
    assert_eq!(queue.wait_used().1, 8);
}

#[test]
fn indirect_descriptors_and_buffers_across_two_regions_of_memory() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(1), true);
    let mut queues = driver.probe(ALL);
    let queue = &mut queues[0];
    let border = MEMORY + REGION;
    let data: Vec<u8> = (0..=255).cycle().take(6000).collect();
    driver.memory.write_slice(&data, GuestAddress(border - 3000)).unwrap();
    let table = driver.pages(4096);
    let back = driver.pages(8192);
    // An empty buffer in between is odd, but nowhere forbidden.
    let buffers =
        [(border - 3000, 6000, false), (7, 0, false), (back, 5000, true), (back + 5000, 1000, true)];
    queue.add_indirect(table, &buffers).unwrap();
    queue.kick(1);
    assert_eq!(queue.wait_used().1, 6000);
    let mut got = vec![0; 6000];
    driver.memory.read_slice(&mut got, GuestAddress(back)).unwrap();
    assert_eq!(got, data);
}

#[test]
fn notifications_follow_the_bar() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(2), true);
    assert_eq!(machine.vm.live().ioevents, 0, "nobody listens before the driver is ready");
    let mut queues = driver.probe(ALL);
    assert_eq!(machine.vm.live().ioevents, 2);
    // The guest moves the BAR, or takes it away, while the device runs.
    for base in [REGISTERS + 0x10_0000, REGISTERS] {
        driver.set_config(4, &0u16.to_le_bytes());
        assert_eq!(machine.vm.live().ioevents, 0, "a BAR that does not decode has no doorbells");
        driver.place(base);
        assert_eq!(machine.vm.live().ioevents, 2);
        for queue in &mut queues {
            queue.moved_to(base);
            round_trip(&mut driver, queue, b"still there?");
            assert_eq!(queue.exits, 0);
        }
    }
}

#[test]
fn a_kernel_that_takes_no_notifications_costs_exits_and_nothing_else() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(2), true);
    machine.vm.inject(Fault::next(Call::AssignIoevent, Errno::ENOSPC).persistent());
    let mut queues = driver.probe(ALL);
    let state = driver.function.state();
    assert!(!state.notified_in_kernel);
    assert!(state.notification_trouble.is_some());
    for queue in &mut queues {
        // The first may be served without: it may be there before the device first looks.
        for _ in 0..2 {
            round_trip(&mut driver, queue, b"the long way");
        }
        assert!(queue.exits > 0);
    }
    driver.reset();
    assert!(driver.function.state().notification_trouble.is_none(), "nobody is notified");
    // One that it does not take is one too many to say so.
    machine.vm.clear_faults();
    machine.vm.inject(Fault::next(Call::AssignIoevent, Errno::ENOSPC));
    let mut queues = driver.probe(ALL);
    let state = driver.function.state();
    assert_eq!((state.notified_in_kernel, state.notification_trouble.is_some()), (false, true));
    for (queue, exits) in queues.iter_mut().zip([true, false]) {
        round_trip(&mut driver, queue, b"either way");
        assert_eq!(queue.exits > 0, exits);
    }
    // Elsewhere it may take them.
    driver.place(REGISTERS + 0x10_0000);
    let state = driver.function.state();
    assert_eq!((state.notified_in_kernel, state.notification_trouble.is_some()), (true, false));
}

#[test]
fn a_queue_is_as_short_as_the_driver_wants() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(1), true);
    for size in [1, 2, 4, 64] {
        let features = driver.negotiate(ALL | VERSION_1);
        let mut queue = driver.queue_of(0, features, Some(size));
        driver.driver_ok();
        assert_eq!(driver.function.state().queues, [size]);
        let page = driver.pages(4096);
        for round in 0..10 {
            queue.add_indirect(page, &[(page + 64, 8, false), (page + 128, 8, true)]).unwrap();
            queue.kick(1);
            assert_eq!(queue.wait_used().1, 8, "chain {round} of a queue of {size}");
        }
    }
}

#[test]
fn a_driver_can_be_bound_and_unbound_any_number_of_times() {
    let machine = Machine::new();
    let before = machine.vm.live();
    let shared = Arc::new(Echoed::default());
    let mut driver = Driver::new(&machine, Echo::sharing(2, shared.clone()), true);
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    for round in 1..=50 {
        let mut queues = driver.probe(ALL);
        for queue in &mut queues {
            round_trip(&mut driver, queue, format!("round {round}").as_bytes());
        }
        driver.reset();
        driver.disable_msix();
        assert_eq!(shared.activations.load(Ordering::SeqCst), round);
        assert_eq!(machine.vm.live().ioevents, 0);
        assert_eq!(Arc::strong_count(&shared.alive), 1, "the workers have ended");
    }
    let now = std::fs::read_dir("/proc/self/fd").unwrap().count();
    // The eventfds of three vectors stay with their vectors. Other tests of this process may have some open as well, and close them.
    assert!(now <= descriptors + 3 + 64, "{now} descriptors, {descriptors} before");
    drop(driver);
    assert_eq!(machine.vm.live(), before, "everything is given back");
}

#[test]
fn dropping_a_running_function_gives_everything_back() {
    let machine = Machine::new();
    let before = machine.vm.live();
    let mut driver = Driver::new(&machine, Echo::new(2), true);
    let queues = driver.probe(ALL);
    assert_eq!(machine.vm.live().irqfds, before.irqfds + 3);
    drop(queues);
    drop(driver);
    wait_for("routes to be withdrawn", || {
        machine.wiring.router().flush().unwrap();
        (machine.vm.live() == before).then_some(())
    });
}

#[test]
fn a_conventional_reset_is_complete() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(1), true);
    let _queues = driver.probe(ALL);
    driver.function.reset();
    driver.function.placed(&[]);
    assert_eq!(driver.status(), 0);
    assert_eq!(machine.vm.live().ioevents, 0);
    assert!(driver.function.decoded().is_empty());
    // And usable again.
    driver.place(REGISTERS);
    let mut queues = driver.probe(ALL);
    round_trip(&mut driver, &mut queues[0], b"after the reset");
    // Without messages now, and though the guest before had forbidden the line.
    driver.set_config(4, &0x0406u16.to_le_bytes());
    driver.function.reset();
    driver.place(REGISTERS);
    let features = driver.negotiate(ALL | VERSION_1);
    let mut queue = driver.queue(0, features);
    driver.driver_ok();
    round_trip(&mut driver, &mut queue, b"by the line");
    wait_for("the line", || machine.line_is_high().then_some(()));
    // A reset by the driver takes it down, though nobody has read the ISR.
    driver.reset();
    assert_eq!(driver.isr(), 0);
    let taken = machine.vm.guest().take().unwrap();
    machine.vm.guest().eoi(taken);
    machine.resampler.run().unwrap();
    assert!(!machine.line_is_high());
}

#[test]
fn features_are_agreed_on_or_not() {
    let machine = Machine::new();
    let shared = Arc::new(Echoed::default());
    let mut driver = Driver::new(&machine, Echo::sharing(1, shared.clone()), true);
    let table = [
        (VERSION_1, true),
        (VERSION_1 | FEATURE | EVENT_IDX, true),
        (FEATURE, false),
        (VERSION_1 | 1 << 33, false),
        (VERSION_1 | 1 << 5, false),
        (0, false),
    ];
    for (features, agreed) in table {
        driver.reset();
        driver.set_status(ACKNOWLEDGE | DRIVER);
        driver.accept(features);
        driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(driver.status() & FEATURES_OK != 0, agreed, "{features:#x}");
        let _queue = driver.queue(0, features);
        let before = shared.activations.load(Ordering::SeqCst);
        driver.driver_ok();
        assert_eq!(driver.status() & DRIVER_OK != 0, agreed, "{features:#x}");
        assert_eq!(shared.activations.load(Ordering::SeqCst) - before, u64::from(agreed));
        if agreed {
            assert_eq!(shared.features.load(Ordering::SeqCst), features);
            assert_eq!(*shared.queues.lock().unwrap(), [0]);
        }
    }
    driver.set_status(FAILED);
    assert_ne!(driver.status() & FAILED, 0);
}

#[test]
fn a_device_that_cannot_start_says_so_and_may_be_tried_again() {
    let machine = Machine::new();
    let shared = Arc::new(Echoed::default());
    let mut driver = Driver::new(&machine, Echo::sharing(1, shared.clone()), true);
    let error = io::Error::other("the cable is cut");
    *shared.fail.lock().unwrap() =
        Some(ActivateError::Backend { action: "use the tap".to_owned(), source: error.into() });
    driver.probe(ALL);
    assert_ne!(driver.status() & NEEDS_RESET, 0);
    assert_eq!(machine.raised(0), 1, "a configuration change tells the driver");
    assert_eq!(driver.function.state().trouble.unwrap(), "cannot use the tap: the cable is cut");
    assert_eq!(machine.vm.live().ioevents, 0);
    assert!(shared.transport.lock().unwrap().is_none(), "the device was told to let go");
    let mut queues = driver.probe(ALL);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
    round_trip(&mut driver, &mut queues[0], b"mended");
}

#[test]
fn rings_outside_of_memory_do_not_start() {
    let machine = Machine::new();
    // Which of the addresses, and what it is set to.
    let table = [
        (0x20u64, 0u64),
        (0x20, MEMORY + 2 * REGION - 16),
        (0x28, 0),
        (0x28, MEMORY + 2 * REGION),
        (0x30, u64::MAX - 3),
        (0x20, u64::MAX - 15),
        (0x28, u64::MAX - 1),
    ];
    for (register, address) in table {
        let shared = Arc::new(Echoed::default());
        let mut driver = Driver::new(&machine, Echo::sharing(1, shared.clone()), true);
        driver.negotiate(VERSION_1);
        driver.select(0);
        for (at, good) in [(0x20, MEMORY), (0x28, MEMORY + 0x1000), (0x30, MEMORY + 0x2000)] {
            let value = if at == register { address } else { good };
            driver.write(driver.common, at, &(value as u32).to_le_bytes());
            driver.write(driver.common, at + 4, &((value >> 32) as u32).to_le_bytes());
        }
        driver.write(driver.common, 0x1c, &1u16.to_le_bytes());
        driver.driver_ok();
        assert_ne!(driver.status() & NEEDS_RESET, 0, "{register:#x} = {address:#x}");
        assert_eq!(shared.activations.load(Ordering::SeqCst), 0);
    }
}

/// Breaks a queue in some way.
type Break = fn(&mut Driver, &mut DriverQueue);

#[test]
fn a_broken_ring_needs_a_reset_and_a_reset_mends_it() {
    let table: [(&str, Break); 13] = [
        ("a buffer outside of memory", |_, queue| {
            queue.add(&[(0x1000, 16, false)]).unwrap();
        }),
        ("a buffer that ends outside of memory", |_, queue| {
            queue.add(&[(MEMORY + 2 * REGION - 8, 16, true)]).unwrap();
        }),
        ("a buffer that wraps around", |_, queue| {
            queue.add(&[(u64::MAX - 7, 16, true)]).unwrap();
        }),
        ("a loop", |_, queue| {
            queue.descriptor(0, MEMORY, 16, NEXT, 1);
            queue.descriptor(1, MEMORY, 16, NEXT, 0);
            queue.expose(0);
        }),
        ("a loop of empty buffers", |driver, queue| {
            let table = driver.pages(4096);
            for entry in 0..4 {
                queue.write_descriptor(table + entry * 16, MEMORY, 0, NEXT, (entry as u16 + 1) % 4);
            }
            queue.descriptor(0, table, 64, 4, 0);
            queue.expose(0);
        }),
        ("a next descriptor that is not there", |_, queue| {
            queue.descriptor(0, MEMORY, 16, NEXT, 64);
            queue.expose(0);
        }),
        ("a head that is not there", |_, queue| queue.expose(0xffff)),
        ("readable after writable", |_, queue| {
            queue.add(&[(MEMORY, 16, true), (MEMORY, 16, false)]).unwrap();
        }),
        ("more available than the queue has", |_, queue| queue.set_available_index(65)),
        ("an indirect table in an indirect table", |driver, queue| {
            let table = driver.pages(4096);
            queue.add_indirect(table, &[(MEMORY, 16, false)]).unwrap();
            queue.write_descriptor(table, table, 16, 4, 0);
        }),
        ("an indirect table of no whole descriptors", |_, queue| {
            queue.descriptor(0, MEMORY, 17, 4, 0);
            queue.expose(0);
        }),
        ("an indirect table that is continued", |_, queue| {
            queue.descriptor(0, MEMORY, 16, 4 | NEXT, 1);
            queue.expose(0);
        }),
        ("four gigabytes and more", |driver, queue| {
            let table = driver.pages(0x1_0000);
            let most = (2 * REGION) as u32;
            queue.add_indirect(table, &vec![(MEMORY, most, true); 257]).unwrap();
        }),
    ];
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(1), true);
    for (what, break_it) in table {
        let before = machine.raised(0);
        let mut queues = driver.probe(ALL);
        break_it(&mut driver, &mut queues[0]);
        queues[0].notify();
        wait_for(what, || (driver.status() & NEEDS_RESET != 0).then_some(()));
        wait_for(what, || (machine.raised(0) > before).then_some(()));
        assert!(driver.function.state().trouble.is_some());
        assert!(!driver.function.state().is_running());
        let mut queues = driver.probe(ALL);
        round_trip(&mut driver, &mut queues[0], what.as_bytes());
    }
    assert_eq!(WRITE, 2);
}

#[test]
fn the_structures_are_reachable_through_configuration_space() {
    let machine = Machine::new();
    let shared = Arc::new(Echoed::default());
    *shared.config.lock().unwrap() = [vec![0; 0x100], vec![5, 6, 7, 8]].concat();
    let driver = Driver::new(&machine, Echo::sharing(3, shared), true);
    let at = driver.access.capability;
    let window = |bar: u8, offset: u32, length: u32| {
        driver.set_config(at + 4, &[bar]);
        driver.set_config(at + 8, &offset.to_le_bytes());
        driver.set_config(at + 12, &length.to_le_bytes());
    };
    window(0, driver.common.offset + 0x12, 2);
    assert_eq!(driver.config::<4>(at + 16), [3, 0, 0, 0], "num_queues");
    window(0, driver.common.offset + 0x14, 1);
    driver.set_config(at + 16, &[ACKNOWLEDGE, 0, 0, 0]);
    assert_eq!(driver.status(), ACKNOWLEDGE);
    // Also far from the beginning.
    window(0, driver.device.offset + 0x100, 4);
    assert_eq!(driver.config::<4>(at + 16), [5, 6, 7, 8]);
    // What points nowhere reads zero, and is not written.
    for (bar, offset, length) in
        [(1, 0x14, 1), (0, 0x14, 3), (0, 0x14, 8), (0, 0x4000, 4), (0, u32::MAX, 1), (0, 0x13, 2)]
    {
        window(bar, driver.common.offset + offset, length);
        driver.set_config(at + 16, &[0; 4]);
        assert_eq!(driver.status(), ACKNOWLEDGE, "{bar} {offset:#x} {length}");
        assert_eq!(driver.config::<4>(at + 16), [0; 4]);
    }
}

#[test]
fn accesses_of_any_shape_anywhere_do_no_harm() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Echo::new(1), true);
    let mut queues = driver.probe(ALL);
    for bar in 0..=6 {
        let bar = BarIndex::new(bar).unwrap();
        for offset in (0..0x4000u64).step_by(0x3fd).chain([0x3fff, 0xfff, 0x1fff, 0x2ffe]) {
            for length in 1..=8usize {
                let mut data = vec![0xa5; length];
                driver.function.read_bar(bar, offset, &mut data);
                if ![0, 2].contains(&bar.get()) {
                    assert_eq!(data, vec![0; length], "there is nothing");
                }
                if offset >= 0x40 {
                    driver.function.write_bar(bar, offset, &data);
                }
            }
        }
    }
    round_trip(&mut driver, &mut queues[0], b"unharmed");
}
