// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks, driven as a guest drives them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};

use common::disk::{
    DISCARD, Directory, Disk, GET_ID, IN, IOERR, OK, OUT, ROOM, UNSUPP, WRITE_ZEROES, contents, has_direct,
    pattern,
};
use common::driver::{Buffer, Driver, EVENT_IDX, NEEDS_RESET, VERSION_1};
use common::{MEMORY, Machine, REGION, wait_for};
use virtio_devices::{Block, BlockOptions};
use vm_memory::{Bytes, GuestAddress};

const RO: u64 = 1 << 5;
const DISK_FLUSH: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;

/// The same disk with io_uring, with plain system calls, and past the page cache.
fn ways(directory: &Directory, name: &str, sectors: u64) -> Vec<(&'static str, BlockOptions)> {
    let mut ways = Vec::new();
    for (way, blocking, direct) in [
        ("io_uring", false, false),
        ("system calls", true, false),
        ("direct", false, true),
        ("direct calls", true, true),
    ] {
        let path = directory.raw(&format!("{name}-{blocking}-{direct}.img"), sectors);
        let options = BlockOptions { blocking, direct, ..BlockOptions::new(path) };
        if direct && !has_direct(way, &options.path) {
            continue;
        }
        ways.push((way, options));
    }
    ways
}

#[test]
fn reads_bring_what_is_in_the_image_and_writes_get_there() {
    let directory = Directory::new();
    for (way, options) in ways(&directory, "plain", 4096) {
        let mut disk = Disk::new(&options);
        assert_eq!(disk.capacity(), 4096, "{way}");
        for (sector, sectors) in [(0, 8), (8, 1024), (4088, 8), (0, 4096)] {
            let got = disk.read(sector, sectors as usize * 512).unwrap();
            assert!(got == pattern(sector, sectors), "{way}: {sectors} sectors at {sector}");
        }
        let new = pattern(77_777, 64);
        assert_eq!(disk.write(1000, &new), OK, "{way}");
        assert!(disk.read(1000, new.len()).unwrap() == new, "{way}");
        assert_eq!(disk.flush(), OK);
        let mut expected = pattern(0, 4096);
        expected[512_000..512_000 + new.len()].copy_from_slice(&new);
        assert!(contents(&options.path) == expected, "{way}: exactly the 64 sectors");
    }
}

#[test]
fn data_in_many_buffers_of_any_shape_goes_where_it_belongs() {
    let directory = Directory::new();
    for (way, options) in ways(&directory, "shapes", 1024) {
        let mut disk = Disk::new(&options);
        // Buffers of odd lengths at odd addresses, one across the border of two regions, in no order.
        let border = MEMORY + REGION;
        let data = disk.data;
        let shapes = [
            (border - 1001, 2002, true),
            (data + 3, 1, true),
            (data + 0x3000, 4096, true),
            (data + 0x2001, 12_333, true),
        ];
        let total: u32 = shapes.iter().map(|(_, length, _)| length).sum();
        assert_eq!(total % 512, 0);
        let (status, written) = disk.request(IN, 24, &shapes);
        assert_eq!((status, written), (OK, total + 1), "{way}");
        let mut got = Vec::new();
        for (address, length, _) in shapes {
            let mut part = vec![0; length as usize];
            disk.driver.memory.read_slice(&mut part, GuestAddress(address)).unwrap();
            got.extend(part);
        }
        // The third and the fourth overlap: what is read later wins there, so compare the others.
        let expected = pattern(24, u64::from(total) / 512);
        assert!(got[..2003] == expected[..2003], "{way}");
        assert!(got[2003 + 4096..] == expected[2003 + 4096..], "{way}");
        // And out again, elsewhere, without the overlap.
        let shapes = [(border - 1001, 2002, false), (data + 3, 1, false), (data + 0x2001, 12_333, false)];
        let spare = disk.data + 0x8000;
        let fill = [(spare, 4096, false)];
        let (status, _) = disk.request(OUT, 512, &[&shapes[..], &fill[..]].concat());
        assert_eq!(status, OK, "{way}");
        let image = contents(&options.path);
        assert!(image[512 * 512..512 * 512 + 2003] == expected[..2003], "{way}");
    }
}

#[test]
fn many_requests_at_once_on_several_queues_all_come_back_right() {
    let directory = Directory::new();
    for (way, mut options) in ways(&directory, "many", 8192) {
        options.queues = 4;
        let machine = Machine::new();
        let block = Block::open(&options).unwrap();
        let counters = block.counters();
        let mut driver = Driver::new(&machine, block, true);
        let mut queues = driver.probe(0xff_ffff | EVENT_IDX);
        assert_eq!(queues.len(), 4);
        let mut in_flight: Vec<BTreeMap<u16, (u64, u64)>> = vec![BTreeMap::new(); 4];
        for round in 0..3u64 {
            for (number, queue) in queues.iter_mut().enumerate() {
                let base = driver.pages(80 * 8192);
                for slot in 0..80u64 {
                    let at = base + slot * 8192;
                    let sector = (round * 1009 + number as u64 * 2003 + slot * 97) % 8184 / 8 * 8;
                    let mut header = vec![0; 8];
                    header.extend(sector.to_le_bytes());
                    driver.memory.write_slice(&header, GuestAddress(at + 4096)).unwrap();
                    let buffers = [(at + 4096, 16, false), (at, 4096, true), (at + 4200, 1, true)];
                    let head = queue.add(&buffers).unwrap();
                    assert!(in_flight[number].insert(head, (at, sector)).is_none());
                }
                queue.want_interrupt(80);
                queue.kick(80);
            }
            for (number, queue) in queues.iter_mut().enumerate() {
                for _ in 0..80 {
                    let (head, written) = queue.wait_used();
                    assert_eq!(written, 4097, "{way}");
                    let (at, sector) = in_flight[number].remove(&head).unwrap();
                    let mut data = vec![0; 4096];
                    driver.memory.read_slice(&mut data, GuestAddress(at)).unwrap();
                    assert!(data == pattern(sector, 8), "{way}: sector {sector}");
                }
            }
            for number in 0..4u32 {
                wait_for("the interrupt for the last", || (machine.raised(number + 1) > round).then_some(()));
            }
            driver_pages_again(&mut driver);
        }
        assert_eq!(counters.reads.load(std::sync::atomic::Ordering::Relaxed), 960);
        assert_eq!(counters.bytes_read.load(std::sync::atomic::Ordering::Relaxed), 960 * 4096);
    }
}

/// Rounds take turns with the same memory: behind what the queues have.
fn driver_pages_again(driver: &mut Driver) {
    driver.rewind(4 * 80 * 8192);
}

#[test]
fn requests_that_cannot_be_are_answered_with_an_error_and_the_disk_goes_on() {
    let directory = Directory::new();
    for (way, options) in ways(&directory, "errors", 2048) {
        let mut disk = Disk::new(&options);
        let before = contents(&options.path);
        let data = disk.data;
        let table = [
            ("beyond the end", IN, 2048, 512, true, IOERR),
            ("across the end", IN, 2040, 8192, true, IOERR),
            ("across the end", OUT, 2040, 8192, false, IOERR),
            ("a sector that wraps around", OUT, u64::MAX / 512 + 1, 4096, false, IOERR),
            ("a sector that wraps around with its length", IN, u64::MAX, 4096, true, IOERR),
            ("no whole sector", IN, 0, 511, true, IOERR),
            ("no whole sector", OUT, 0, 4097, false, IOERR),
            ("nothing to read", IN, 0, 0, true, OK),
            ("nothing to write", OUT, 0, 0, false, OK),
            ("an unknown request", 3, 0, 512, true, UNSUPP),
            ("an unknown request", 0x8000_0000, 0, 0, true, UNSUPP),
            ("a SCSI command", 2, 0, 512, true, UNSUPP),
            ("half a range", DISCARD, 0, 8, false, IOERR),
            ("17 ranges", WRITE_ZEROES, 0, 17 * 16, false, IOERR),
            ("no range", DISCARD, 0, 0, false, OK),
        ];
        disk.put(&[0; 1024]);
        for (what, kind, sector, length, writable, expected) in table {
            let buffers = [(data, length, writable)];
            let (status, _) = disk.request(kind, sector, if length == 0 { &[] } else { &buffers });
            assert_eq!(status, expected, "{way}: {what}");
        }
        assert_eq!(disk.driver.status() & NEEDS_RESET, 0);
        assert!(contents(&options.path) == before, "{way}: nothing was written");
        assert!(disk.read(0, 4096).unwrap() == pattern(0, 8), "{way}");
    }
}

#[test]
fn a_request_without_header_or_status_breaks_the_queue() {
    let directory = Directory::new();
    let machine = Machine::new();
    let options = BlockOptions::new(directory.raw("broken.img", 64));
    let mut driver = Driver::new(&machine, Block::open(&options).unwrap(), true);
    let table: [(&str, &[Buffer]); 3] = [
        ("a header that is too short", &[(MEMORY + REGION, 15, false), (MEMORY, 1, true)]),
        ("no status", &[(MEMORY + REGION, 16, false), (MEMORY, 512, false)]),
        ("no header", &[(MEMORY + REGION, 513, true)]),
    ];
    for (what, buffers) in table {
        let mut queues = driver.probe(0xff_ffff | EVENT_IDX);
        queues[0].add(buffers).unwrap();
        queues[0].kick(1);
        wait_for(what, || (driver.status() & NEEDS_RESET != 0).then_some(()));
    }
    // A header in pieces and a status behind the data are fine.
    let mut queues = driver.probe(0xff_ffff | EVENT_IDX);
    let page = driver.pages(8192);
    let buffers = [(page, 3, false), (page + 3, 13, false), (page + 4096, 513, true)];
    queues[0].add(&buffers).unwrap();
    queues[0].kick(1);
    assert_eq!(queues[0].wait_used().1, 513);
    let mut data = vec![0; 513];
    driver.memory.read_slice(&mut data, GuestAddress(page + 4096)).unwrap();
    assert!(data[..512] == pattern(0, 1) && data[512] == OK);
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    let directory = Directory::new();
    let path = directory.raw("readonly.img", 256);
    let options = BlockOptions { readonly: true, ..BlockOptions::new(&path) };
    let mut disk = Disk::new(&options);
    assert_ne!(disk.driver.offered() & RO, 0);
    assert_eq!(disk.driver.offered() & (1 << 13 | 1 << 14), 0, "neither discard nor write zeroes");
    assert_eq!(disk.write(0, &[0; 512]), IOERR);
    assert_eq!(disk.ranges(DISCARD, &[(0, 8, 0)]), IOERR);
    assert_eq!(disk.ranges(WRITE_ZEROES, &[(0, 8, 0)]), IOERR);
    assert_eq!(disk.flush(), OK);
    assert!(disk.read(0, 256 * 512).unwrap() == pattern(0, 256));
    assert!(contents(&path) == pattern(0, 256));
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes_and_only_they() {
    let directory = Directory::new();
    for (way, options) in ways(&directory, "zeroes", 4096) {
        let mut disk = Disk::new(&options);
        let mut expected = pattern(0, 4096);
        let blocks = || std::fs::metadata(&options.path).unwrap().blocks();
        let before = blocks();
        let mut clear = |from: usize, sectors: usize| expected[from * 512..(from + sectors) * 512].fill(0);
        assert_eq!(disk.ranges(DISCARD, &[(0, 1024, 0)]), OK, "{way}");
        clear(0, 1024);
        assert!(blocks() < before, "{way}: the host gets its storage back");
        assert_eq!(disk.ranges(WRITE_ZEROES, &[(1032, 8, 0), (2048, 512, 1), (0, 0, 0)]), OK, "{way}");
        clear(1032, 8);
        clear(2048, 512);
        assert_eq!(disk.flush(), OK);
        assert!(contents(&options.path) == expected, "{way}");
        for (what, kind, range, status) in [
            ("beyond the end", DISCARD, (4090, 8, 0), IOERR),
            ("a wrap", WRITE_ZEROES, (u64::MAX, 8, 0), IOERR),
            ("more than allowed", DISCARD, (0, 0x0040_0000, 0), IOERR),
            ("unmap in a discard", DISCARD, (0, 8, 1), UNSUPP),
            ("unknown flags", WRITE_ZEROES, (0, 8, 2), UNSUPP),
        ] {
            assert_eq!(disk.ranges(kind, &[range]), status, "{way}: {what}");
        }
        assert!(contents(&options.path) == expected, "{way}");
        assert!(disk.read(0, ROOM / 2).unwrap() == expected[..ROOM / 2], "{way}");
    }
}

#[test]
fn the_guest_reads_the_serial_number_and_the_geometry() {
    let directory = Directory::new();
    let path = directory.raw("serial.img", 2048);
    let options = BlockOptions { serial: "WD-40".to_owned(), queues: 3, ..BlockOptions::new(path) };
    let block = Block::open(&options).unwrap();
    let counters = block.counters();
    let mut disk = Disk::of(block, !(1 << 30));
    let data = disk.data;
    assert_eq!(disk.request(GET_ID, 0, &[(data, 20, true)]), (OK, 21));
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((count(&counters.reads), count(&counters.bytes_read), count(&counters.others)), (0, 0, 1));
    assert_eq!(disk.get(20), b"WD-40\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(disk.request(GET_ID, 0, &[(data, 3, true)]), (OK, 4), "as much as there is room for");
    // Section 5.2.4: offset, width, value.
    let table = [
        (0u64, 8usize, 2048u64, "capacity"),
        (8, 4, 0, "size_max"),
        (12, 4, 254, "seg_max"),
        (20, 4, 512, "blk_size"),
        (25, 1, 0, "alignment_offset"),
        (32, 1, 1, "writeback"),
        (34, 2, 3, "num_queues"),
        (36, 4, 0x3f_ffff, "max_discard_sectors"),
        (40, 4, 16, "max_discard_seg"),
        (48, 4, 0x3f_ffff, "max_write_zeroes_sectors"),
        (52, 4, 16, "max_write_zeroes_seg"),
        (56, 1, 1, "write_zeroes_may_unmap"),
        (57, 1, 0, "unused"),
        (4000, 8, 0, "beyond the end"),
    ];
    for (offset, width, value, what) in table {
        let bytes = disk.driver.read::<8>(disk.driver.device, offset);
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(&bytes[..width]);
        assert_eq!(u64::from_le_bytes(wide), value, "{what}");
    }
    let [exponent] = disk.driver.read::<1>(disk.driver.device, 24);
    let block = std::fs::metadata(&options.path).unwrap().blksize().clamp(512, 4096);
    assert_eq!(512 << exponent, block, "the physical block is the file system's");
}

#[test]
fn the_driver_chooses_between_write_back_and_write_through() {
    let directory = Directory::new();
    let options = BlockOptions::new(directory.raw("cache.img", 256));
    let writeback = |disk: &Disk| disk.driver.read::<1>(disk.driver.device, 32)[0];
    // Not negotiated: the field cannot be written.
    let mut disk = Disk::with_features(&options, DISK_FLUSH);
    assert_eq!(writeback(&disk), 1);
    disk.driver.write(disk.driver.device, 32, &[0]);
    assert_eq!(writeback(&disk), 1);
    // Neither: write-through, as a driver that knows no flush needs it.
    disk.again(0);
    assert_eq!(writeback(&disk), 0);
    assert_eq!(disk.write(0, &[1; 4096]), OK);
    assert_eq!(disk.ranges(WRITE_ZEROES, &[(8, 8, 0)]), OK);
    // Chosen.
    disk.again(DISK_FLUSH | CONFIG_WCE);
    for choice in [0, 1, 0] {
        disk.driver.write(disk.driver.device, 32, &[choice]);
        assert_eq!(writeback(&disk), choice);
        assert_eq!(disk.write(16, &[choice + 2; 4096]), OK);
        assert_eq!(disk.read(16, 4096).unwrap(), [choice + 2; 4096]);
    }
    disk.driver.reset();
    assert_eq!(writeback(&disk), 1);
    // Section 5.2.5.2: what it is at DRIVER_OK, by the features and by what the driver has written before.
    let table = [
        (DISK_FLUSH | CONFIG_WCE, None, 1),
        (DISK_FLUSH | CONFIG_WCE, Some(0), 0),
        (CONFIG_WCE, None, 0),
        (CONFIG_WCE, Some(1), 1),
        (DISK_FLUSH, Some(0), 1),
        (0, Some(1), 0),
        // What another driver has chosen is nothing to this one.
        (DISK_FLUSH | CONFIG_WCE, None, 1),
    ];
    for (features, chosen, expected) in table {
        let features = disk.driver.negotiate(features | VERSION_1);
        if let Some(chosen) = chosen {
            disk.driver.write(disk.driver.device, 32, &[chosen]);
        }
        let _queue = disk.driver.queue(0, features);
        disk.driver.driver_ok();
        assert_eq!(writeback(&disk), expected, "{features:#x} {chosen:?}");
    }
}

#[test]
fn an_image_that_shrinks_gives_errors_and_not_the_end_of_the_machine() {
    let directory = Directory::new();
    for (way, options) in ways(&directory, "shrinks", 2048) {
        let mut disk = Disk::new(&options);
        let file = OpenOptions::new().write(true).open(&options.path).unwrap();
        file.set_len(1024 * 512).unwrap();
        assert!(disk.read(0, 4096).unwrap() == pattern(0, 8), "{way}");
        assert_eq!(disk.read(1024, 4096), Err(IOERR), "{way}");
        assert_eq!(disk.read(1016, 8192), Err(IOERR), "{way}: half of it is there");
        assert_eq!(disk.driver.status() & NEEDS_RESET, 0);
        assert!(disk.read(512, 4096).unwrap() == pattern(512, 8), "{way}");
        // A write makes the file longer again.
        assert_eq!(disk.write(2040, &pattern(5, 8)), OK, "{way}");
        assert!(disk.read(2040, 4096).unwrap() == pattern(5, 8), "{way}");
    }
}

#[test]
fn a_disk_is_bound_again_and_again_also_in_the_middle_of_requests() {
    let directory = Directory::new();
    for (way, options) in ways(&directory, "again", 4096) {
        let mut disk = Disk::new(&options);
        for round in 0..30u64 {
            assert_eq!(disk.write(round * 8, &pattern(9000 + round, 8)), OK, "{way}");
            // A dozen that nobody waits for.
            let data = disk.data;
            let buffers = [disk.header(IN, 0), (data, 1 << 20, true), disk.status_buffer()];
            for _ in 0..12 {
                disk.queues[0].add(&buffers).unwrap();
            }
            disk.queues[0].kick(12);
            disk.driver.reset();
            // The memory is the driver's again: nothing may write to it now.
            disk.put(&[0x5a; 8192]);
            std::thread::sleep(std::time::Duration::from_millis(1));
            assert!(disk.get(8192) == [0x5a; 8192], "{way}");
            disk.again(0xff_ffff | EVENT_IDX);
        }
        for round in 0..30 {
            assert!(disk.read(round * 8, 4096).unwrap() == pattern(9000 + round, 8), "{way}");
        }
    }
}

#[test]
fn one_interrupt_serves_a_batch() {
    let directory = Directory::new();
    let options = BlockOptions::new(directory.raw("batch.img", 4096));
    let mut disk = Disk::new(&options);
    let data = disk.data;
    disk.put(&vec![0; 64 * 4096]);
    let before = disk.machine.raised(1);
    disk.queues[0].want_interrupt(64);
    for slot in 0..64u64 {
        let buffers = [disk.header(IN, 8), (data + slot * 4096, 4096, true), disk.status_buffer()];
        disk.queues[0].add(&buffers).unwrap();
    }
    disk.queues[0].kick(64);
    wait_for("the interrupt", || (disk.machine.raised(1) > before).then_some(()));
    for _ in 0..64 {
        disk.queues[0].wait_used();
    }
    assert_eq!(disk.machine.raised(1), before + 1);
    assert_eq!(disk.queues[0].exits, 0);
    for slot in 0..64 {
        assert!(disk.get(64 * 4096)[slot * 4096..][..4096] == pattern(8, 8));
    }
}

#[test]
fn a_block_size_of_direct_io_is_the_guests_block_size() {
    let directory = Directory::new();
    let options = BlockOptions { direct: true, ..BlockOptions::new(directory.raw("direct.img", 4096)) };
    if !has_direct("a_block_size_of_direct_io_is_the_guests_block_size", &options.path) {
        return;
    }
    let mut disk = Disk::new(&options);
    let block = u32::from_le_bytes(disk.driver.read(disk.driver.device, 20));
    assert!([512, 1024, 2048, 4096].contains(&block));
    if block > 512 {
        assert_eq!(disk.read(1, 512), Err(IOERR), "no whole block");
    }
    // Direct I/O bypasses what a buffered read would have cached: the bytes are the same.
    let file = OpenOptions::new().read(true).open(&options.path).unwrap();
    assert_eq!(disk.write(0, &pattern(31, 8)), OK);
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == pattern(31, 8));
}
