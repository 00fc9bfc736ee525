// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicBool, AtomicU32};

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_GET_ID;

use super::*;
use crate::testing::{Driver, DriverQueue, readable, writable};

/// An image that nobody may ask for anything.
struct Untouched;

impl Executor for Untouched {
    fn execute(&self, _: Step<'_>) -> io::Result<usize> {
        panic!("nothing is wanted of the image");
    }
}

/// What serves the driver's only queue, of a small disk with this serial number.
fn queue(driver: &Driver, serial: [u8; 20]) -> Queue {
    let mut activation = driver.activation(0);
    let ring = Ring::new(activation.queues.remove(0), activation.memory);
    let (sectors, block, physical, align, queues) = (8, 512, 512, 1, 1);
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
