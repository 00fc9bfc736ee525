// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use irqfd::Doorbell;
use rustix::fs::{OFlags, fcntl_getfl};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::testing::{
    BREAKAGES, Driver, EVENT_IDX, assert_descriptors_below, open_descriptors, readable, writable,
};

const DATA: u64 = Driver::DATA;

/// A console, what it reads from, and what it writes to.
fn console() -> (Console, UnixStream, UnixStream) {
    let (keys, input) = UnixStream::pair().unwrap();
    let (screen, output) = UnixStream::pair().unwrap();
    let console = Console::new(Some(input.into()), output.into(), Some((80, 25))).unwrap();
    (console, keys, screen)
}

#[test]
fn what_is_typed_arrives_when_the_guest_has_room() {
    for features in [0, EVENT_IDX] {
        let (mut console, mut keys, _screen) = console();
        let mut driver = Driver::start(&mut console, features, 1 << 16).unwrap();
        keys.write_all(b"hello, guest").unwrap();
        let head = driver.queues[0].add(&[writable(DATA, 5), writable(DATA + 100, 2)]);
        assert_eq!(driver.queues[0].wait_used(), (head, 7));
        assert_eq!((driver.read(DATA, 5), driver.read(DATA + 100, 2)), (b"hello".into(), b", ".into()));
        driver.queues[0].add(&[writable(DATA, 100)]);
        assert_eq!(driver.queues[0].wait_used().1, 5);
        assert_eq!(driver.read(DATA, 5), b"guest");
        // With room first and keys later as well: what the guest says is heard after that it has room.
        driver.queues[0].add(&[writable(DATA, 100)]);
        driver.queues[1].add(&[readable(DATA, 1)]);
        driver.queues[1].wait_used();
        keys.write_all(b"!").unwrap();
        assert_eq!(driver.queues[0].wait_used().1, 1);
    }
}

#[test]
fn a_megabyte_of_output_is_whole_though_the_reader_is_slow() {
    let (mut console, _keys, mut screen) = console();
    let mut driver = Driver::start(&mut console, EVENT_IDX, 1 << 20).unwrap();
    let bytes: Vec<u8> = (0..1 << 20_u32).map(|i| (i * 7 % 251) as u8).collect();
    driver.write(DATA, &bytes);
    for i in 0..8 {
        let at = DATA + i * 0x2_0000;
        driver.queues[1].add(&[readable(at, 0x1_0001), readable(at + 0x1_0001, 0xffff)]);
    }
    // It takes what the socket has room for, and waits; nothing is buffered in between.
    driver.transport.wait_quiet(|| driver.queues[1].peek_used());
    assert!(driver.queues[1].peek_used() < 8);
    let mut got = vec![0; bytes.len()];
    screen.read_exact(&mut got).unwrap();
    assert!(got == bytes);
    for _ in 0..8 {
        assert_eq!(driver.queues[1].wait_used().1, 0);
    }
}

#[test]
fn a_reader_that_is_gone_does_not_stop_the_guest() {
    let (mut console, keys, screen) = console();
    let mut driver = Driver::start(&mut console, 0, 1 << 16).unwrap();
    drop((keys, screen));
    for _ in 0..300 {
        driver.queues[1].add(&[readable(DATA, 1000)]);
        driver.queues[1].wait_used();
    }
    driver.queues[0].add(&[writable(DATA, 100)]);
    assert_eq!(driver.transport.needs_reset(), None);
}

#[test]
fn after_a_failed_write_output_goes_nowhere() {
    // An eventfd takes eight bytes and nothing else.
    let counter = Doorbell::new().unwrap();
    let output = counter.as_fd().try_clone_to_owned().unwrap();
    let mut console = Console::new(None, output, None).unwrap();
    let mut driver = Driver::start(&mut console, 0, 1 << 16).unwrap();
    driver.write(DATA, &1_u64.to_ne_bytes());
    for (length, counted) in [(8, 1), (8, 1), (4, 0), (8, 0)] {
        driver.queues[1].add(&[readable(DATA, length)]);
        assert_eq!(driver.queues[1].wait_used().1, 0);
        assert_eq!(counter.take().unwrap(), counted);
    }
}

#[test]
fn a_file_can_be_typed_and_written() {
    let directory = TempDir::new().unwrap();
    let (input, output) = (directory.as_path().join("input"), directory.as_path().join("output"));
    std::fs::write(&input, b"from a file").unwrap();
    let output_file: OwnedFd = File::create(&output).unwrap().into();
    let mut console = Console::new(Some(File::open(&input).unwrap().into()), output_file, None).unwrap();
    let mut driver = Driver::start(&mut console, 0, 1 << 16).unwrap();
    driver.queues[0].add(&[writable(DATA, 6)]);
    assert_eq!(driver.queues[0].wait_used().1, 6);
    driver.queues[0].add(&[writable(DATA + 6, 100)]);
    assert_eq!(driver.queues[0].wait_used().1, 5);
    assert_eq!(driver.read(DATA, 11), b"from a file");
    // There is no more, which is nothing.
    driver.queues[0].add(&[writable(DATA + 20, 100)]);
    driver.queues[1].add(&[readable(DATA, 11)]);
    driver.queues[1].wait_used();
    assert_eq!(std::fs::read(&output).unwrap(), b"from a file");
    assert_eq!(driver.queues[0].used(), None);
}

#[test]
fn the_size_is_told_and_changes() {
    let (mut console, _keys, mut screen) = console();
    let handle = console.handle();
    // VIRTIO_CONSOLE_F_SIZE, VIRTIO_CONSOLE_F_EMERG_WRITE
    assert_eq!((console.device_type(), console.features()), (3, 1 | 4));
    let unsized_one = Console::new(None, File::options().write(true).open("/dev/null").unwrap().into(), None);
    assert_eq!(unsized_one.unwrap().features(), 4);
    let driver = Driver::start(&mut console, 0, 0).unwrap();
    let mut config = [0xff; 12];
    console.read_config(0, &mut config);
    assert_eq!(config, [80, 0, 25, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    handle.resize(0x102, 0x304);
    assert_eq!(driver.transport.config_changes(), 1);
    handle.resize(0x102, 0x304);
    assert_eq!(driver.transport.config_changes(), 1, "nothing has changed");
    console.read_config(0, &mut config[..4]);
    assert_eq!(config[..4], [2, 1, 4, 3]);
    console.write_config(8, &[b'!', 0, 0, 0]);
    let mut byte = [0];
    screen.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"!");
    // A driver that is not there any more is not told, and finds it when it comes.
    console.reset();
    handle.resize(1, 2);
    let later = Driver::start(&mut console, 0, 0).unwrap();
    drop(console);
    handle.resize(3, 4);
    assert_eq!((driver.transport.config_changes(), later.transport.config_changes()), (1, 0));
}

#[test]
fn descriptors_are_given_back_as_they_were_and_none_is_left() {
    let (keys, input) = UnixStream::pair().unwrap();
    let (_screen, output) = UnixStream::pair().unwrap();
    let look = input.try_clone().unwrap();
    let mut console = Console::new(Some(input.into()), output.into(), None).unwrap();
    assert!(fcntl_getfl(&look).unwrap().contains(OFlags::NONBLOCK));
    let mut first = None;
    for round in 0..50 {
        let mut driver = Driver::start(&mut console, 0, 0x1000).unwrap();
        driver.queues[0].add(&[writable(DATA, 1)]);
        (&keys).write_all(&[round]).unwrap();
        driver.queues[0].wait_used();
        assert_eq!(driver.read(DATA, 1), [round]);
        console.reset();
        drop(driver);
        first.get_or_insert_with(open_descriptors);
    }
    assert_descriptors_below(first.unwrap() + 40);
    drop(console);
    assert!(!fcntl_getfl(&look).unwrap().contains(OFlags::NONBLOCK));
}

#[test]
fn a_terminal_that_is_input_and_output_is_given_back_as_it_was() {
    let (terminal, _far) = UnixStream::pair().unwrap();
    let same = || terminal.try_clone().unwrap().into();
    let blocks = || !fcntl_getfl(&terminal).unwrap().contains(OFlags::NONBLOCK);
    let mut console = Console::new(Some(same()), same(), None).unwrap();
    assert!(!blocks());
    let driver = Driver::start(&mut console, 0, 0x1000).unwrap();
    console.reset();
    assert!(!blocks(), "it is used again");
    drop((console, driver));
    assert!(blocks());
}

#[test]
fn hostile_queues_need_a_reset_and_no_more() {
    let (mut console, mut keys, _screen) = console();
    keys.write_all(b"x").unwrap();
    for (what, breakage) in BREAKAGES {
        for queue in 0..2 {
            let mut driver = Driver::start(&mut console, 0, 1 << 16).unwrap();
            breakage(&mut driver.queues[queue], DATA);
            driver.queues[queue].kick();
            assert!(!driver.transport.wait_needs_reset().is_empty(), "{what}");
            console.reset();
        }
    }
    let mut driver = Driver::start(&mut console, 0, 1 << 16).unwrap();
    driver.queues[0].add(&[writable(DATA, 1)]);
    driver.queues[0].wait_used();
    assert_eq!(driver.read(DATA, 1), b"x");
}
