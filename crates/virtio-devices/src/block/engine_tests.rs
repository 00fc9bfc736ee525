// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicBool, AtomicU32};

use rustix::fs::{MemfdFlags, memfd_create};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_GET_ID;

use super::*;
use crate::block::{Block, BlockOptions};
use crate::testing::{Driver, DriverQueue, readable, writable};
use crate::{ActivateError, VirtioDevice};

/// An image that nobody may ask for anything.
struct Untouched;

impl Executor for Untouched {
    fn execute(&self, _: Step<'_>) -> io::Result<usize> {
        panic!("nothing is wanted of the image");
    }
}

/// An image of nothing.
struct Empty;

impl Executor for Empty {
    fn execute(&self, step: Step<'_>) -> io::Result<usize> {
        let Step::Read { to, .. } = step else { panic!("only reads") };
        Ok(to.iter().map(|part| part.slice().len()).sum())
    }
}

/// What serves the driver's only queue, of a disk with this serial number.
fn queue(driver: &Driver, serial: [u8; 20]) -> Queue {
    let mut activation = driver.activation(0);
    let ring = Ring::new(activation.queues.remove(0), activation.memory);
    let (sectors, block, physical, align, queues) = (1 << 20, 512, 512, 1, 1);
    let geometry = Geometry { sectors, block, physical, align, readonly: false, serial, queues };
    let shared =
        Shared { writeback: AtomicBool::new(true), counters: Arc::default(), rings: AtomicU32::new(0) };
    let transport = activation.transport;
    Queue { ring, geometry: Arc::new(geometry), shared: Arc::new(shared), transport }
}

/// A reset waits for what a queue's thread does before it looks for the stop: that has an end, however fast the driver is.
#[test]
fn no_more_is_served_at_a_time_than_the_queue_has_entries() {
    let mut driver = Driver::new(&[4], 0, 0x1000);
    driver.write(Driver::DATA, &VIRTIO_BLK_T_GET_ID.to_le_bytes());
    // The serial number goes to where the driver says how many requests are available, and makes them five while four are served.
    let five = [0, 0, 5, 0];
    let mut serial = [0; 20];
    serial[..4].copy_from_slice(&five);
    let header = readable(Driver::DATA, 16);
    let (number, status) = (writable(DriverQueue::AVAILABLE, 4), writable(Driver::DATA + 0x100, 1));
    let head = driver.queues[0].add_quietly(&[header, number, status]);
    for _ in 0..3 {
        driver.queues[0].raw_available(head);
    }
    let queue = queue(&driver, serial);
    let ring = serve_now(queue, &Untouched).unwrap();
    assert_eq!(driver.queues[0].peek_used(), 4);
    assert_eq!(ring.notify().take().unwrap(), 1, "it comes back by itself");
    assert_eq!(driver.transport.interrupts(0), 1, "the driver need not wait for that");
}

#[test]
fn what_an_image_has_no_way_to_do_is_told_from_what_fails() {
    for (error, expected) in [
        (io::Error::from_raw_os_error(libc::ENOSPC), libc::ENOSPC),
        (io::Error::from_raw_os_error(libc::EOPNOTSUPP), libc::EOPNOTSUPP),
        (io::ErrorKind::Unsupported.into(), libc::EOPNOTSUPP),
        (io::Error::other("a damaged table"), libc::EIO),
    ] {
        assert_eq!(errno(error), expected);
    }
}

/// It can go on with them, while the others are served.
#[test]
fn a_driver_hears_of_large_requests_one_by_one_and_of_small_ones_together() {
    for (length, interrupts) in [(512, 1), (32 << 10, 1), (48 << 10, 2), (128 << 10, 4)] {
        let mut driver = Driver::new(&[4], 0, 0x10_0000);
        let (header, data) = (readable(Driver::DATA, 16), writable(Driver::DATA + 0x1000, length));
        let head = driver.queues[0].add_quietly(&[header, data, writable(Driver::DATA + 0x100, 1)]);
        for _ in 0..3 {
            driver.queues[0].raw_available(head);
        }
        serve_now(queue(&driver, [0; 20]), &Empty).unwrap();
        assert_eq!(driver.queues[0].peek_used(), 4);
        assert_eq!(driver.transport.interrupts(0), interrupts, "requests of {length} bytes");
    }
}

/// Sections 5.2.3 and 5.2.5.2: one that chooses its cache can flush, one that cannot be written is not asked to forget.
#[test]
fn a_disk_offers_what_can_be_done_with_it() {
    use std::os::fd::AsRawFd;
    let image = File::from(memfd_create("image", MemfdFlags::CLOEXEC).unwrap());
    image.set_len(3 << 20).unwrap();
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    let (seg_max, ro, blk_size, flush, topology) = (1 << 2, 1 << 5, 1 << 6, 1 << 9, 1 << 10);
    let (config_wce, mq, discard, write_zeroes) = (1 << 11, 1 << 12, 1 << 13, 1 << 14);
    let always = seg_max | blk_size | flush | topology | config_wce | mq;
    for (readonly, features) in [(false, always | discard | write_zeroes), (true, always | ro)] {
        let block = Block::open(&BlockOptions { readonly, ..BlockOptions::new(&path) }).unwrap();
        assert_eq!((block.features(), block.size()), (features, 3 << 20), "read-only: {readonly}");
    }
}

#[test]
fn a_disk_says_how_many_of_its_queues_are_served_with_io_uring() {
    use std::os::fd::AsRawFd;
    let image = File::from(memfd_create("image", MemfdFlags::CLOEXEC).unwrap());
    image.set_len(1 << 20).unwrap();
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    for blocking in [false, true] {
        let options = BlockOptions { queues: 2, blocking, ..BlockOptions::new(&path) };
        let mut block = Block::open(&options).unwrap();
        for _ in 0..2 {
            assert_eq!(block.rings(), 0);
            let mut driver = Driver::start(&mut block, 0, 0x1000).unwrap();
            for queue in &mut driver.queues {
                queue.add(&[readable(Driver::DATA, 16), writable(Driver::DATA + 0x100, 1)]);
                queue.wait_used();
            }
            assert_eq!(block.rings(), if blocking || !host_has_io_uring() { 0 } else { 2 });
            let none = crate::Activation { queues: Vec::new(), ..driver.activation(0) };
            block.reset();
            assert!(matches!(block.activate(none), Err(ActivateError::MissingQueue(0))));
        }
    }
}
