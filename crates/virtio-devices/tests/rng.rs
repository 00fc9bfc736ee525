// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entropy device, driven as a guest drives it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use common::driver::{Driver, EVENT_IDX};
use common::{Machine, wait_for};
use virtio_devices::Rng;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_guest_gets_as_much_as_it_has_room_for_up_to_a_page() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Rng::new(), true);
    for _ in 0..3 {
        let mut queues = driver.probe(EVENT_IDX);
        let page = driver.pages(1 << 20);
        // (room, given): none, some, a lot; in one buffer or several.
        let table: [(&[u32], u32); 5] =
            [(&[64], 64), (&[1], 1), (&[10, 0, 20], 30), (&[1 << 20], 4096), (&[4000, 4000], 4096)];
        for (rooms, given) in table {
            driver.memory.write_slice(&[0; 9000], GuestAddress(page)).unwrap();
            let mut at = page;
            let mut buffers = Vec::new();
            for &room in rooms {
                buffers.push((at, room, true));
                at += u64::from(room);
            }
            queues[0].want_interrupt(1);
            let before = machine.raised(1);
            queues[0].add(&buffers).unwrap();
            queues[0].kick(1);
            assert_eq!(queues[0].wait_used().1, given, "{rooms:?}");
            wait_for("the interrupt", || (machine.raised(1) > before).then_some(()));
            let mut bytes = vec![0; 9000];
            driver.memory.read_slice(&mut bytes, GuestAddress(page)).unwrap();
            let (random, rest) = bytes.split_at(given as usize);
            assert!(rest.iter().all(|&byte| byte == 0), "no more than it says");
            // 64 zeroes in a row come once in 2^512.
            assert!(random.chunks_exact(64).all(|chunk| chunk.iter().any(|&byte| byte != 0)));
        }
        // A buffer to read from is no room.
        queues[0].add(&[(page, 64, false)]).unwrap();
        queues[0].kick(1);
        assert_eq!(queues[0].wait_used().1, 0);
    }
}

#[test]
fn a_broken_ring_needs_a_reset() {
    let machine = Machine::new();
    let mut driver = Driver::new(&machine, Rng::new(), true);
    let mut queues = driver.probe(EVENT_IDX);
    queues[0].add(&[(0, 64, true)]).unwrap();
    queues[0].notify();
    driver.wait_needs_reset();
    let mut queues = driver.probe(EVENT_IDX);
    let page = driver.pages(4096);
    queues[0].add(&[(page, 64, true)]).unwrap();
    queues[0].notify();
    assert_eq!(queues[0].wait_used().1, 64);
}
