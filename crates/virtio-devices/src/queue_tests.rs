// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's side of a queue, against a driver's.

use super::*;
use crate::testing::{Buffer, Driver, EVENT_IDX, readable, writable};

const DATA: u64 = Driver::DATA;
const SIZE: u16 = 8;

/// A queue of 8 whose device has used `used` chains before, and the driver's side of it.
fn ring(features: u64, used: u16) -> (Ring, Driver) {
    let driver = Driver::new(&[SIZE], features, 0x1000);
    let mut activation = driver.activation(features);
    let mut active = activation.queues.remove(0);
    active.queue.set_next_used(used);
    (Ring::new(active, activation.memory), driver)
}

#[test]
fn a_driver_that_wants_interrupts_is_interrupted_for_what_was_pushed_and_for_nothing_else() {
    for features in [0, EVENT_IDX] {
        let (mut ring, mut driver) = ring(features, 0);
        let mut chain = Chain::new();
        for round in 0..3 {
            assert_eq!(ring.wants_interrupt(), Ok(false), "nothing was pushed yet");
            let head = driver.queues[0].add_quietly(&[writable(DATA, 1)]);
            assert!(ring.pop(&mut chain).unwrap());
            ring.push(head, 1).unwrap();
            // With EVENT_IDX, it has asked for the first only.
            assert_eq!(ring.wants_interrupt(), Ok(features == 0 || round == 0), "{features:#x}, {round}");
        }
    }
}

/// The same room takes chain after chain.
#[test]
fn a_chain_is_what_its_descriptors_say_and_nothing_of_the_one_before() {
    let (mut ring, mut driver) = ring(0, 0);
    let mut chain = Chain::new();
    let table: [&[Buffer]; 5] = [
        &[readable(DATA, 16), readable(DATA + 0x100, 3), writable(DATA + 0x200, 512), writable(DATA, 1)],
        &[writable(DATA + 7, 9)],
        &[readable(DATA + 0x300, 4)],
        // Empty ones are no buffers.
        &[readable(DATA, 0), readable(DATA, 5), writable(DATA, 0)],
        &[readable(DATA, 1), writable(DATA, 2)],
    ];
    for buffers in table {
        let head = driver.queues[0].add_quietly(buffers);
        assert!(ring.pop(&mut chain).unwrap());
        let side = |wanted| -> Vec<Segment> {
            let of_side = buffers.iter().filter(|buffer| buffer.writable == wanted && buffer.length > 0);
            of_side.map(|b| Segment { address: GuestAddress(b.address), length: b.length }).collect()
        };
        let bytes = |segments: &[Segment]| segments.iter().map(|segment| segment.length).sum::<u32>();
        assert_eq!(
            (chain.head(), chain.readable(), chain.writable()),
            (head, &side(false)[..], &side(true)[..])
        );
        assert_eq!((chain.readable_len(), chain.writable_len()), (bytes(&side(false)), bytes(&side(true))));
        ring.push(head, chain.writable_len()).unwrap();
        assert_eq!(driver.queues[0].used(), Some((head, bytes(&side(true)))));
        assert!(!ring.pop(&mut chain).unwrap());
    }
    // What was given back is there again.
    let heads = [(); 2].map(|()| driver.queues[0].add_quietly(&[readable(DATA, 1)]));
    assert!(ring.pop(&mut chain).unwrap());
    ring.unpop();
    for head in heads {
        assert!(ring.pop(&mut chain).unwrap());
        assert_eq!(chain.head(), head);
    }
}

#[test]
fn chains_that_are_pushed_together_are_all_there_and_one_that_there_is_not_is_none() {
    let (mut ring, mut driver) = ring(0, 0);
    for turn in 0..10_u16 {
        let chains = [0, 1, 2].map(|n| ((turn + n) % SIZE, u32::from(turn * 100 + n)));
        ring.push_together(&chains).unwrap();
        for chain in chains {
            assert_eq!(driver.queues[0].used(), Some(chain));
        }
    }
    ring.push_together(&[]).unwrap();
    let absent = RingError::NoSuchDescriptor { index: SIZE, size: SIZE };
    assert_eq!(ring.push_together(&[(0, 1), (SIZE, 1), (1, 1)]), Err(absent.clone()));
    assert_eq!(ring.push(SIZE, 1), Err(absent));
    assert_eq!(driver.queues[0].used(), None);
}

/// Section 2.7.10.1: an interrupt for the used index that the driver waits for, wherever it wraps.
#[test]
fn an_interrupt_is_wanted_if_the_event_is_in_what_was_pushed() {
    for (before, pushed) in [(0_u16, 1_u16), (5, 3), (0xfffe, 4), (0x7fff, 2), (7, 0)] {
        for distance in -2..=i32::from(pushed) + 1 {
            let event = before.wrapping_add_signed(distance as i16);
            let (mut ring, driver) = ring(EVENT_IDX, before);
            driver.queues[0].want_interrupt_at(event);
            for _ in 0..pushed {
                ring.push(0, 0).unwrap();
            }
            let wanted = (0..i32::from(pushed)).contains(&distance);
            assert_eq!(ring.wants_interrupt(), Ok(wanted), "{pushed} from {before:#x} on, event {event:#x}");
            assert_eq!(ring.wants_interrupt(), Ok(false), "nothing was pushed since");
        }
    }
}

/// An indirect table is its own: its entries lead to each other, and nowhere else.
#[test]
fn an_indirect_table_ends_where_its_length_says() {
    const TABLE: u64 = DATA + 0x800;
    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;
    let many = u32::from(u16::MAX) + 1;
    // How long it is, where its first entry leads, and what comes of it.
    let table = [
        (16, None, Ok(1)),
        (32, None, Ok(1)),
        (32, Some(1), Ok(2)),
        (16, Some(1), Err(RingError::TooLong(0))),
        (32, Some(2), Err(RingError::NoSuchDescriptor { index: 2, size: 2 })),
        (32, Some(0), Err(RingError::TooLong(0))),
        (0, None, Err(RingError::Indirect(0))),
        (8, None, Err(RingError::Indirect(0))),
        (24, None, Err(RingError::Indirect(0))),
        (many * 16, None, Err(RingError::Indirect(0))),
    ];
    for (length, next, expected) in table {
        let (mut ring, mut driver) = ring(0, 0);
        let entry = |at: u64, flags: u16, next: u16| {
            let bytes = [
                &(DATA + at).to_le_bytes()[..],
                &4_u32.to_le_bytes(),
                &flags.to_le_bytes(),
                &next.to_le_bytes(),
            ];
            driver.write(TABLE + 16 * at, &bytes.concat());
        };
        entry(0, if next.is_some() { NEXT } else { 0 }, next.unwrap_or(0));
        entry(1, 0, 0);
        entry(2, 0, 0);
        driver.queues[0].raw_descriptor(0, TABLE, length, INDIRECT, 0);
        driver.queues[0].raw_available(0);
        let mut chain = Chain::new();
        let got = ring.pop(&mut chain).map(|_| chain.readable().len());
        assert_eq!(got, expected, "{length} bytes, next {next:?}");
    }
}
