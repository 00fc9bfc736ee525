// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::testing::{
    BREAKAGES, Driver, EVENT_IDX, assert_descriptors_below, open_descriptors, readable, writable,
};

/// Where lists are, and where memory is that is given back.
const LIST: u64 = Driver::DATA;
const PAGES: u64 = Driver::DATA + 0x1_0000;
const SIZE: usize = 1 << 20;

fn start(balloon: &mut Balloon, features: u64) -> Driver {
    let driver = Driver::start(balloon, features, SIZE).unwrap();
    driver.write(PAGES, &[7; 0x4_0000]);
    driver
}

fn numbers(driver: &mut Driver, queue: usize, numbers: impl IntoIterator<Item = u64>) {
    let bytes: Vec<u8> =
        numbers.into_iter().flat_map(|number| u32::try_from(number).unwrap().to_le_bytes()).collect();
    driver.write(LIST, &bytes);
    driver.queues[queue].add(&[readable(LIST, u32::try_from(bytes.len()).unwrap())]);
    assert_eq!(driver.queues[queue].wait_used().1, 0);
}

fn is(driver: &Driver, from: u64, pages: usize, byte: u8) -> bool {
    driver.read(from, pages * 4096).iter().all(|&is| is == byte)
}

#[test]
fn pages_in_the_balloon_are_given_back_and_others_are_not() {
    for features in [0, EVENT_IDX] {
        let mut balloon = Balloon::new(BalloonOptions::default()).unwrap();
        let handle = balloon.handle();
        let mut driver = start(&mut balloon, features);
        // A host page of 64 KiB has 16 of them: in whatever order they come.
        numbers(&mut driver, 0, (PAGES / PAGE..PAGES / PAGE + 16).rev());
        assert!(is(&driver, PAGES, 16, 0));
        assert!(is(&driver, PAGES + 0x1_0000, 48, 7));
        assert_eq!(handle.discarded(), 0x1_0000);
        driver.write(PAGES, &[9; 0x1_0000]);
        numbers(&mut driver, 1, (PAGES / PAGE..).take(16));
        assert!(is(&driver, PAGES, 16, 9), "taking back changes nothing");
    }
}

#[test]
fn pages_that_are_not_the_guests_are_left_alone() {
    let mut balloon = Balloon::new(BalloonOptions::default()).unwrap();
    let handle = balloon.handle();
    let mut driver = start(&mut balloon, 0);
    let end = (Driver::DATA + SIZE as u64) / PAGE;
    numbers(&mut driver, 0, [end, end + 1, 0xffff_ffff, 0x8000_0000]);
    assert_eq!((handle.discarded(), handle.failure()), (0, None));
    driver.queues[0].add(&[]);
    driver.queues[0].raw_descriptor(3, LIST, 7, 0, 0);
    driver.queues[0].raw_available(3);
    driver.queues[0].kick();
    driver.queues[0].wait_used();
    assert_eq!(driver.transport.needs_reset(), None);
}

#[test]
fn why_the_host_first_did_not_take_memory_back_is_kept() {
    let balloon = Balloon::new(BalloonOptions::default()).unwrap();
    let handle = balloon.handle();
    for result in [Ok(4096), Err(io::Error::other("the first")), Err(io::Error::other("another")), Ok(8192)] {
        balloon.shared.count_discarded(result);
    }
    assert_eq!((handle.discarded(), handle.failure().as_deref()), (12_288, Some("the first")));
}

#[test]
fn what_the_guest_reports_is_given_back_unless_it_must_keep_a_pattern() {
    // As the specification numbers the queues, and as Linux does, which counts those that there are.
    for (queue, without) in [(4, 0), (3, 0), (4, STATS), (2, STATS)] {
        let mut balloon = Balloon::new(BalloonOptions::default()).unwrap();
        let mut driver = Driver::new(balloon.queue_sizes(), 0, SIZE);
        driver.write(PAGES, &[7; 0x4_0000]);
        let mut activation = driver.activation(balloon.features() & !without);
        let others = if without == STATS { 2 } else { 3 };
        activation.queues.retain(|active| active.index < others || usize::from(active.index) == queue);
        balloon.activate(activation).unwrap();
        driver.queues[queue].add(&[writable(PAGES, 0x1_0000), writable(PAGES + 0x2_0000, 0x1_0000)]);
        assert_eq!(driver.queues[queue].wait_used().1, 0);
        assert!(is(&driver, PAGES, 16, 0) && is(&driver, PAGES + 0x2_0000, 16, 0));
        assert!(is(&driver, PAGES + 0x1_0000, 16, 7));
        balloon.write_config(12, &0xaaaa_aaaa_u32.to_le_bytes());
        driver.queues[queue].add(&[writable(PAGES + 0x1_0000, 0x1_0000)]);
        driver.queues[queue].wait_used();
        assert!(is(&driver, PAGES + 0x1_0000, 16, 7));
    }
}

#[test]
fn targets_are_told_and_what_has_come_of_them_is_heard() {
    let options = BalloonOptions { target: 64 << 20, ..BalloonOptions::default() };
    let mut balloon = Balloon::new(options).unwrap();
    let handle = balloon.handle();
    let driver = start(&mut balloon, 0);
    let mut config = [0xff; 16];
    balloon.read_config(0, &mut config);
    assert_eq!(config, [0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    handle.set_target(1 << 20);
    assert_eq!(driver.transport.config_changes(), 1);
    handle.set_target(1 << 20);
    assert_eq!(driver.transport.config_changes(), 1, "nothing has changed");
    balloon.read_config(0, &mut config[..4]);
    assert_eq!(config[..4], 256_u32.to_le_bytes());
    balloon.write_config(4, &256_u32.to_le_bytes());
    assert_eq!((handle.actual(), handle.target()), (1 << 20, 1 << 20));
    // The target is not the driver's to write.
    balloon.write_config(0, &[0xff; 4]);
    balloon.write_config(14, &[0xff; 100]);
    balloon.write_config(u64::MAX, &[0xff]);
    assert_eq!((handle.actual(), handle.target()), (1 << 20, 1 << 20));
    balloon.reset();
    assert_eq!(handle.actual(), 0);
    // A driver that is not there any more is not told, and finds it when it comes.
    handle.set_target(u64::MAX);
    let later = start(&mut balloon, 0);
    drop(balloon);
    handle.set_target(0);
    assert_eq!((driver.transport.config_changes(), later.transport.config_changes()), (1, 0));
}

#[test]
fn a_balloon_offers_what_it_was_made_for() {
    // Statistics anyway; deflation when memory is short; reports, with which the host has to know of a pattern.
    for (deflate_on_oom, free_page_reporting, features) in [
        (false, false, 0b00_0010),
        (true, false, 0b00_0110),
        (false, true, 0b11_0010),
        (true, true, 0b11_0110),
    ] {
        let options = BalloonOptions { target: 0, deflate_on_oom, free_page_reporting };
        let balloon = Balloon::new(options).unwrap();
        assert_eq!((balloon.device_type(), balloon.features()), (5, features));
    }
}

#[test]
fn queues_of_what_was_not_agreed_on_are_left_alone() {
    let mut balloon = Balloon::new(BalloonOptions::default()).unwrap();
    let features = balloon.features() & !(PAGE_REPORTING | STATS);
    let mut driver = Driver::start_with(&mut balloon, features, SIZE).unwrap();
    driver.write(PAGES, &[7; 0x4_0000]);
    driver.queues[4].add(&[writable(PAGES, 0x1_0000)]);
    driver.queues[2].add(&[readable(PAGES, 10)]);
    // Those would have been heard of by now.
    for _ in 0..2 {
        numbers(&mut driver, 0, [PAGES / PAGE + 16]);
        numbers(&mut driver, 1, [PAGES / PAGE + 16]);
    }
    assert_eq!((driver.queues[4].peek_used(), driver.queues[2].peek_used()), (0, 0));
    assert!(is(&driver, PAGES, 16, 7) && balloon.handle().stats().is_none());
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let mut balloon = Balloon::new(BalloonOptions::default()).unwrap();
    let handle = balloon.handle();
    let mut driver = start(&mut balloon, 0);
    // Asked before there is a buffer to ask with.
    handle.request_stats();
    let free = |driver: &mut Driver, value: u64| {
        let mut bytes = vec![4, 0];
        bytes.extend(value.to_le_bytes());
        driver.write(LIST, &bytes);
        driver.queues[2].add(&[readable(LIST, 10)]);
    };
    for value in 1..5 {
        assert_eq!(handle.times_heard(), value - 1);
        free(&mut driver, value);
        if value > 1 {
            handle.request_stats();
        }
        assert_eq!(driver.queues[2].wait_used().1, 0);
        // The buffer goes back after it was read, except when the request is quicker.
        driver.transport.wait_quiet(|| handle.stats());
        assert_eq!(handle.stats().unwrap().free, Some(value));
    }
}

#[test]
fn a_balloon_can_be_reset_and_used_again_and_leaks_nothing() {
    let mut balloon = Balloon::new(BalloonOptions::default()).unwrap();
    let mut first = None;
    for _ in 0..50 {
        let mut driver = start(&mut balloon, 0);
        numbers(&mut driver, 0, [PAGES / PAGE]);
        balloon.reset();
        balloon.reset();
        drop(driver);
        first.get_or_insert_with(open_descriptors);
    }
    assert_descriptors_below(first.unwrap() + 40);
}

#[test]
fn hostile_queues_need_a_reset_and_no_more() {
    let mut balloon = Balloon::new(BalloonOptions::default()).unwrap();
    for (what, breakage) in BREAKAGES {
        for queue in [0, 1, 2, 4] {
            let mut driver = start(&mut balloon, 0);
            breakage(&mut driver.queues[queue], LIST);
            driver.queues[queue].kick();
            assert!(!driver.transport.wait_needs_reset().is_empty(), "{what}");
            balloon.reset();
        }
    }
    let mut driver = start(&mut balloon, 0);
    driver.queues[0].add(&[readable(PAGES, 0x4_0000); 4]);
    driver.queues[0].wait_used();
    driver.queues[0].add(&[readable(PAGES, 0x4_0000); 5]);
    assert!(driver.transport.wait_needs_reset().contains("more page numbers"));
}
