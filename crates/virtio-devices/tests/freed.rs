// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a disk holds is let go with it. On its own, so that no other test's child has the process's descriptors for a moment.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use common::disk::{Directory, Disk};
use virtio_devices::{Block, BlockOptions};

/// The kernel takes an io_uring apart some time after its descriptor is closed, and with it what is registered there: an image would stay locked.
#[test]
fn an_image_is_free_as_soon_as_its_disk_is_gone() {
    let directory = Directory::new();
    let options = BlockOptions::new(directory.raw("disk.img", 64));
    for _ in 0..20 {
        drop(Block::open(&options).unwrap());
        let mut disk = Disk::new(&options);
        disk.read(0, 512).unwrap();
    }
}
