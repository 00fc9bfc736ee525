// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Both directions over a datagram socket in place of a tap.

use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;

use super::super::counters::{NetCounters, PairCounters};
use super::super::features::{GUEST_CSUM, GUEST_TSO4, MRG_RXBUF};
use super::super::receive::{Received, Receiver};
use super::super::transmit::{Sent, Transmitter};
use crate::Ring;
use crate::testing::{BREAKAGES, Driver, EVENT_IDX, readable, writable};

const DATA: u64 = Driver::DATA;
const HEADER: usize = 12;

struct Rig {
    driver: Driver,
    receiver: Receiver,
    transmitter: Transmitter,
    wire: UnixDatagram,
    tap: UnixDatagram,
    counters: PairCounters,
}

impl Rig {
    fn new(features: u64) -> Self {
        Self::sized(features, 16)
    }

    fn sized(features: u64, size: u16) -> Self {
        let driver = Driver::new(&[size, size], features, 1 << 20);
        let activation = driver.activation(features);
        let mut rings = activation.queues.into_iter().map(|queue| Ring::new(queue, driver.memory.clone()));
        let receiver = Receiver::new(rings.next().unwrap(), features);
        let transmitter = Transmitter::new(rings.next().unwrap());
        let (wire, tap) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        Self { driver, receiver, transmitter, wire, tap, counters: PairCounters::default() }
    }

    fn receive(&mut self) -> Received {
        self.receiver.receive(&self.tap, 100, true, &self.counters).unwrap()
    }

    fn send(&mut self) -> Sent {
        self.transmitter.send(&self.tap, 100, false, true, &self.counters).unwrap()
    }

    fn counts(&self) -> NetCounters {
        NetCounters::sum([&self.counters])
    }

    fn buffer(&mut self, at: u64, length: u32) {
        self.driver.queues[0].add(&[writable(DATA + at, length)]);
    }
}

/// A packet as a tap gives it: a header with the last two bytes left to us, and `length` bytes that tell their places.
fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0xee; HEADER];
    packet.extend((0..length).map(|i| u8::try_from(i * 7 % 251).unwrap()));
    packet
}

/// What the guest is to see of it.
fn seen(mut packet: Vec<u8>, buffers: u16) -> Vec<u8> {
    packet[10..12].copy_from_slice(&buffers.to_le_bytes());
    packet
}

#[test]
fn a_frame_lands_in_the_guests_buffer() {
    for features in [0, MRG_RXBUF] {
        let mut rig = Rig::new(features);
        rig.buffer(0, 2000);
        rig.wire.send(&packet(60)).unwrap();
        assert!(matches!(rig.receive(), Received::NoBuffers));
        assert_eq!(rig.driver.queues[0].used(), Some((0, 72)));
        assert_eq!(rig.driver.read(DATA, 72), seen(packet(60), 1));
        assert_eq!(rig.driver.transport.interrupts(0), 1);
        assert_eq!((rig.counts().received_frames, rig.counts().received_bytes), (1, 60));
    }
}

#[test]
fn a_long_packet_takes_several_buffers_and_they_are_seen_together() {
    let mut rig = Rig::new(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4);
    for i in 0..5 {
        rig.buffer(i * 2000, 1000);
    }
    rig.wire.send(&packet(3500)).unwrap();
    assert!(matches!(rig.receive(), Received::TapIsEmpty));
    let used: Vec<_> = std::iter::from_fn(|| rig.driver.queues[0].used()).collect();
    assert_eq!(used, [(0, 1000), (1, 1000), (2, 1000), (3, 512)]);
    let parts = [(0, 1000), (2000, 1000), (4000, 1000), (6000, 512)];
    let got: Vec<u8> = parts.iter().flat_map(|&(at, length)| rig.driver.read(DATA + at, length)).collect();
    assert_eq!(got, seen(packet(3500), 4));
    assert_eq!(rig.driver.transport.interrupts(0), 1, "one for all of them");
    // The fifth waits for the next frame.
    rig.wire.send(&packet(60)).unwrap();
    rig.receive();
    assert_eq!(rig.driver.queues[0].used(), Some((4, 72)));
}

/// A driver that polls finds none of a frame's buffers, or all.
#[test]
fn a_driver_that_polls_never_sees_a_part_of_a_frame() {
    let mut rig = Rig::new(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4);
    let looking = std::sync::atomic::AtomicBool::new(true);
    let spy = rig.driver.queues[0].spy();
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut parts = 0;
            while looking.load(std::sync::atomic::Ordering::Relaxed) {
                parts += u32::from(!spy().is_multiple_of(4));
            }
            parts
        });
        for _ in 0..3000 {
            for i in 0..4 {
                rig.buffer(i * 2000, 1000);
            }
            rig.wire.send(&packet(3500)).unwrap();
            rig.receive();
            for _ in 0..4 {
                rig.driver.queues[0].used().unwrap();
            }
        }
        looking.store(false, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(looker.join().unwrap(), 0);
    });
}

#[test]
fn room_is_kept_for_a_long_packet_after_a_long_one_until_many_short_ones_have_come() {
    let mut rig = Rig::new(MRG_RXBUF);
    for i in 0..16 {
        rig.buffer(i * 1000, 1000);
    }
    let mut after = |length: usize| {
        if length > 0 {
            rig.wire.send(&packet(length)).unwrap();
        }
        assert!(matches!(rig.receive(), Received::TapIsEmpty));
        while let Some((head, written)) = rig.driver.queues[0].used() {
            assert!(written > 0);
            rig.buffer(rig.driver.queues[0].address(head) - DATA, 1000);
        }
        rig.receive();
        rig.receiver.waiting()
    };
    // Of 1000 bytes each, three for 2048 bytes, and all of them for the longest.
    assert_eq!(after(0), 3);
    assert_eq!(after(2036), 3);
    assert_eq!(after(2037), 16);
    for _ in 0..63 {
        assert_eq!(after(60), 16);
    }
    for _ in 0..13 {
        after(60);
    }
    assert_eq!(after(60), 3, "those that were there are used up, and no more than needed are taken");
}

/// A queue with chains of many descriptors.
#[test]
fn buffers_in_more_pieces_than_the_host_takes_at_a_time_are_taken_by_and_by() {
    for (pieces, fits) in [(512, true), (513, false)] {
        let mut rig = Rig::sized(MRG_RXBUF, 2048);
        rig.driver.queues[0].add(&vec![writable(DATA, 4); pieces]);
        assert_eq!(rig.receiver.receive(&rig.tap, 9, true, &rig.counters).is_ok(), fits, "{pieces}");
    }
    let mut rig = Rig::sized(MRG_RXBUF, 2048);
    let pieces = |chain: u64| (0..250).map(|i| writable(DATA + chain * 1000 + i * 4, 4)).collect::<Vec<_>>();
    // A long one first, so that as much room is kept as there is.
    for length in [4000, 2500] {
        for chain in 0..6 {
            rig.driver.queues[0].add(&pieces(chain));
        }
        rig.wire.send(&packet(length)).unwrap();
        let end = rig.receive();
        assert!(matches!(end, Received::TapIsEmpty), "{end:?}");
        let mut got = Vec::new();
        let mut buffers = 0;
        while let Some((head, written)) = rig.driver.queues[0].used() {
            got.extend(rig.driver.read(rig.driver.queues[0].address(head), written as usize));
            buffers += 1;
        }
        assert_eq!(got, seen(packet(length), buffers));
    }
}

#[test]
fn frames_and_buffers_of_the_shortest_and_of_the_same_length_pass() {
    // (features, buffers, packet, what is used of the buffers)
    let table: [(u64, &[u32], usize, &[u32]); 4] = [
        (0, &[1000], 988, &[1000]),
        (MRG_RXBUF, &[1000], 988, &[1000]),
        (MRG_RXBUF, &[12, 1000], 60, &[12, 60]),
        (0, &[1000], 0, &[12]),
    ];
    for (features, buffers, length, used) in table {
        let mut rig = Rig::new(features);
        for (i, &room) in (0..).zip(buffers) {
            rig.buffer(i * 2000, room);
        }
        // What is no frame at all leaves the buffers where they are.
        rig.wire.send(&[0; HEADER - 1]).unwrap();
        rig.wire.send(&packet(length)).unwrap();
        rig.receive();
        let got: Vec<_> =
            std::iter::from_fn(|| rig.driver.queues[0].used()).map(|(_, written)| written).collect();
        assert_eq!(got, used, "{buffers:?} {length}");
        assert_eq!((rig.counts().received_dropped, rig.counts().received_frames), (1, 1));
        assert_eq!(rig.receiver.last_count(), 2);
    }
}

#[test]
fn a_packet_waits_half_way_for_more_buffers_and_loses_nothing() {
    let mut rig = Rig::new(MRG_RXBUF);
    rig.buffer(0, 1000);
    rig.wire.send(&packet(3500)).unwrap();
    rig.wire.send(&packet(60)).unwrap();
    assert!(matches!(rig.receive(), Received::NoBuffers));
    assert_eq!(rig.driver.queues[0].used(), None, "nothing is seen of it yet");
    rig.buffer(2000, 2000);
    assert!(matches!(rig.receive(), Received::NoBuffers));
    assert_eq!(rig.driver.queues[0].used(), None);
    rig.buffer(4000, 2000);
    rig.buffer(6000, 2000);
    rig.receive();
    let used: Vec<_> = std::iter::from_fn(|| rig.driver.queues[0].used()).collect();
    assert_eq!(used, [(0, 1000), (1, 2000), (2, 512), (3, 72)]);
    let mut got = rig.driver.read(DATA, 1000);
    got.extend(rig.driver.read(DATA + 2000, 2000));
    got.extend(rig.driver.read(DATA + 4000, 512));
    assert_eq!(got, seen(packet(3500), 3));
    assert_eq!(rig.driver.read(DATA + 6000, 72), seen(packet(60), 1));
    assert!(rig.counts().received_waited > 0);
}

#[test]
fn a_packet_that_a_single_buffer_cannot_hold_is_dropped_and_the_buffer_kept() {
    let mut rig = Rig::new(0);
    rig.buffer(0, 1000);
    rig.wire.send(&packet(1500)).unwrap();
    assert!(matches!(rig.receive(), Received::TapIsEmpty));
    assert_eq!(rig.driver.queues[0].used(), None);
    assert_eq!(rig.counts().received_dropped, 1);
    rig.wire.send(&packet(100)).unwrap();
    rig.receive();
    assert_eq!(rig.driver.queues[0].used(), Some((0, 112)));
    assert_eq!(rig.driver.read(DATA, 112), seen(packet(100), 1));
}

#[test]
fn a_budget_bounds_a_flood() {
    let mut rig = Rig::new(0);
    for i in 0..10 {
        rig.buffer(i * 2000, 2000);
        rig.driver.queues[1].add(&[readable(DATA, 100)]);
        rig.wire.send(&packet(60)).unwrap();
    }
    assert!(matches!(rig.receiver.receive(&rig.tap, 4, true, &rig.counters), Ok(Received::More)));
    assert_eq!(rig.counts().received_frames, 4);
    assert_eq!(rig.transmitter.send(&rig.tap, 4, false, true, &rig.counters), Ok(Sent::More));
    assert_eq!(rig.counts().sent_frames, 4);
}

#[test]
fn frames_leave_as_the_guest_has_put_them_together() {
    let mut rig = Rig::new(0);
    let frame = packet(300);
    rig.driver.write(DATA, &frame[..12]);
    rig.driver.write(DATA + 5000, &frame[12..200]);
    rig.driver.write(DATA + 9000, &frame[200..]);
    rig.driver.queues[1].add(&[readable(DATA, 12), readable(DATA + 5000, 188), readable(DATA + 9000, 112)]);
    assert_eq!(rig.send(), Sent::QueueIsEmpty);
    let mut got = vec![0; 1000];
    let length = rig.wire.recv(&mut got).unwrap();
    assert_eq!(&got[..length], frame);
    assert_eq!(rig.driver.queues[1].used(), Some((0, 0)));
    assert_eq!((rig.counts().sent_frames, rig.counts().sent_bytes), (1, 300));
}

#[test]
fn who_stays_for_more_frames_interrupts_when_it_leaves_or_there_are_many() {
    let mut rig = Rig::new(0);
    rig.driver.write(DATA, &packet(60));
    let mut send = |frames: usize| {
        for _ in 0..frames {
            rig.driver.queues[1].add(&[readable(DATA, 72)]);
        }
        let sent = rig.transmitter.send(&rig.tap, 100, true, true, &rig.counters).unwrap();
        // Without an interrupt, a driver that looks finds what it has sent.
        let used = std::iter::from_fn(|| rig.driver.queues[1].used()).count();
        assert_eq!(used, frames);
        (sent, rig.driver.transport.interrupts(1))
    };
    assert_eq!(send(1), (Sent::QueueIsEmptyYet, 0));
    assert_eq!(send(2), (Sent::QueueIsEmptyYet, 0));
    assert_eq!(send(0), (Sent::QueueIsEmpty, 1));
    // A quarter of the queue is many.
    assert_eq!(send(3), (Sent::QueueIsEmptyYet, 1));
    assert_eq!(send(1), (Sent::QueueIsEmptyYet, 2));
    // There is nothing that has not been said.
    assert_eq!(send(0), (Sent::QueueIsEmpty, 2));
}

#[test]
fn a_tap_that_is_full_keeps_the_frame_for_later() {
    let mut rig = Rig::new(0);
    rig.driver.write(DATA, &packet(1000));
    let mut added = 0;
    while rig.send() != Sent::TapIsFull {
        for _ in 0..8 {
            rig.driver.queues[1].add(&[readable(DATA, 1012)]);
            added += 1;
        }
        while rig.driver.queues[1].used().is_some() {}
        assert!(added < 10_000, "a datagram socket fills up");
    }
    let mut got = vec![0; 2000];
    let mut taken = 0;
    loop {
        while rig.wire.recv(&mut got).is_ok() {
            taken += 1;
        }
        if rig.send() == Sent::QueueIsEmpty && taken == added {
            break;
        }
    }
    assert_eq!(rig.counts().sent_dropped, 0);
}

#[test]
fn frames_that_are_none_are_dropped() {
    let mut rig = Rig::new(0);
    rig.driver.queues[1].add(&[readable(DATA, 11)]);
    rig.driver.queues[1].add(&[readable(DATA, 256 << 10)]);
    rig.driver.queues[1].add(&[]);
    rig.driver.queues[1].raw_descriptor(2, 0, 0, 0, 0);
    rig.driver.queues[1].raw_available(2);
    assert_eq!(rig.send(), Sent::QueueIsEmpty);
    assert!(rig.wire.recv(&mut [0; 10]).is_err());
    assert!(rig.counts().sent_dropped >= 3);
}

#[test]
fn what_the_tap_refuses_is_lost_and_does_not_wait() {
    let mut rig = Rig::new(0);
    rig.wire = UnixDatagram::unbound().unwrap();
    rig.driver.queues[1].add(&[readable(DATA, 72)]);
    assert_eq!(rig.send(), Sent::QueueIsEmpty);
    assert_eq!(rig.driver.queues[1].used(), Some((0, 0)));
    assert_eq!((rig.counts().sent_frames, rig.counts().sent_dropped), (0, 1));
}

#[test]
fn without_a_link_frames_are_lost_both_ways() {
    let mut rig = Rig::new(MRG_RXBUF);
    rig.buffer(0, 2000);
    rig.driver.queues[1].add(&[readable(DATA, 100)]);
    rig.wire.send(&packet(60)).unwrap();
    assert!(matches!(rig.receiver.receive(&rig.tap, 9, false, &rig.counters), Ok(Received::TapIsEmpty)));
    assert_eq!(rig.transmitter.send(&rig.tap, 9, false, false, &rig.counters), Ok(Sent::QueueIsEmpty));
    assert_eq!(rig.driver.queues[0].used(), None);
    assert_eq!(rig.driver.queues[1].used(), Some((0, 0)), "the driver gets its buffer back");
    assert!(rig.wire.recv(&mut [0; 10]).is_err());
    assert_eq!((rig.counts().received_dropped, rig.counts().sent_dropped), (1, 1));
    assert_eq!(rig.receiver.last_count(), 1);
}

#[test]
fn with_event_idx_one_interrupt_says_all() {
    let mut rig = Rig::new(EVENT_IDX);
    for round in 1..=3 {
        for i in 0..4 {
            rig.buffer(i * 2000, 2000);
            rig.wire.send(&packet(60)).unwrap();
        }
        rig.receive();
        assert_eq!(rig.driver.transport.interrupts(0), round);
        if round < 3 {
            for _ in 0..4 {
                rig.driver.queues[0].used().unwrap();
            }
        }
    }
    // The driver has not looked at the last ones, and so wants no other.
    rig.buffer(0, 2000);
    rig.wire.send(&packet(60)).unwrap();
    rig.receive();
    assert_eq!(rig.driver.transport.interrupts(0), 3);
}

#[test]
fn broken_queues_are_errors() {
    for (what, breakage) in BREAKAGES {
        for features in [0, MRG_RXBUF] {
            let mut rig = Rig::new(features);
            breakage(&mut rig.driver.queues[0], DATA);
            breakage(&mut rig.driver.queues[1], DATA);
            let error = rig.receiver.receive(&rig.tap, 9, true, &rig.counters);
            assert!(error.is_err(), "receive: {what}: {error:?}");
            let error = rig.transmitter.send(&rig.tap, 9, false, true, &rig.counters);
            assert!(error.is_err(), "transmit: {what}: {error:?}");
        }
    }
}

#[test]
fn receive_buffers_that_cannot_be_are_errors() {
    let wrong = [
        vec![readable(DATA, 100), writable(DATA, 2000)],
        vec![writable(DATA, 11)],
        vec![readable(DATA, 100)],
    ];
    for buffers in wrong {
        let mut rig = Rig::new(MRG_RXBUF);
        rig.driver.queues[0].add(&buffers);
        assert!(rig.receiver.receive(&rig.tap, 9, true, &rig.counters).is_err(), "{buffers:?}");
    }
}

proptest! {
    /// Whatever the lengths of packets and buffers, and in whatever order they come: what the guest can hold arrives, whole and in order.
    #[test]
    fn packets_arrive_whole_and_in_order(
        lengths in prop::collection::vec(1_usize..6000, 1..8),
        rooms in prop::collection::vec(12_u32..4000, 1..24),
        turns in prop::collection::vec(any::<bool>(), 40),
        segmentation: bool,
    ) {
        let features = MRG_RXBUF | if segmentation { GUEST_CSUM | GUEST_TSO4 } else { 0 };
        let mut rig = Rig::new(features);
        let mut packets = lengths.iter();
        let mut rooms = rooms.iter();
        let mut outstanding = std::collections::VecDeque::new();
        let mut at = 0;
        let mut got = Vec::new();
        let mut frame: Vec<u8> = Vec::new();
        let mut left = 0;
        for turn in turns {
            if turn {
                if let Some(&length) = packets.next() {
                    rig.wire.send(&packet(length)).unwrap();
                }
            } else if outstanding.len() < 16 && let Some(&room) = rooms.next() {
                rig.buffer(at, room);
                outstanding.push_back(at);
                at += 4096;
            }
            rig.receive();
            while let Some((_, written)) = rig.driver.queues[0].used() {
                prop_assert!(written > 0);
                let part = rig.driver.read(DATA + outstanding.pop_front().unwrap(), written as usize);
                if left == 0 {
                    left = u16::from_le_bytes([part[10], part[11]]);
                }
                frame.extend(part);
                left -= 1;
                if left == 0 {
                    frame[10..12].fill(0xee);
                    got.push(std::mem::take(&mut frame));
                }
            }
            prop_assert_eq!(left, 0, "the buffers of a frame are seen together");
        }
        let sent: Vec<_> = lengths.iter().map(|&length| packet(length)).collect();
        prop_assert!(got.len() <= sent.len());
        prop_assert_eq!(&got[..], &sent[..got.len()]);
        prop_assert_eq!(rig.counts().received_dropped, 0);
    }
}
