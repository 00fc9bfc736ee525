// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtqueue, and what can be wrong with one: VIRTIO 1.3, section 2.7.

use super::NOWHERE;
use super::pages::Pages;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A queue in a page of its own.
#[derive(Debug)]
pub struct Ring<'a> {
    pages: &'a Pages,
    page: usize,
    available: u16,
}

impl<'a> Ring<'a> {
    /// How many entries it has.
    pub const SIZE: u16 = 16;
    /// Where its parts are in the page; from [`DATA`](Self::DATA) on there is room.
    const AVAILABLE: u64 = 0x100;
    const USED: u64 = 0x200;
    const TABLE: u64 = 0x400;
    const DATA: u64 = 0x800;

    pub(super) fn new(pages: &'a Pages, page: usize) -> Self {
        Self { pages, page, available: 0 }
    }

    /// Descriptor table, available ring and used ring of the queue in a page.
    pub(super) fn parts(pages: &Pages, page: usize) -> [u64; 3] {
        [0, Self::AVAILABLE, Self::USED].map(|offset| pages.address(page, offset))
    }

    fn at(&self, offset: u64) -> u64 {
        self.pages.address(self.page, offset)
    }

    fn write_descriptor(&self, offset: u64, address: u64, length: u32, flags: u16, next: u16) {
        self.pages.write(self.page, offset, address);
        self.pages.write(self.page, offset + 8, length);
        self.pages.write(self.page, offset + 12, flags);
        self.pages.write(self.page, offset + 14, next);
    }

    fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.write_descriptor(u64::from(index) * 16, address, length, flags, next);
    }

    /// Entry `index` of an indirect table at [`TABLE`](Self::TABLE).
    fn indirect(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.write_descriptor(Self::TABLE + u64::from(index) * 16, address, length, flags, next);
    }

    /// Makes the chain from `head` on available.
    fn offer(&mut self, head: u16) {
        let slot = Self::AVAILABLE + 4 + 2 * u64::from(self.available % Self::SIZE);
        self.pages.write(self.page, slot, head);
        self.set_available(self.available.wrapping_add(1));
    }

    fn set_available(&mut self, index: u16) {
        self.available = index;
        self.pages.write(self.page, Self::AVAILABLE + 2, index);
    }
}

/// Something that breaks a queue.
#[derive(Debug)]
pub struct Breakage {
    /// What it is.
    pub name: &'static str,
    /// Does it. The device is notified afterwards.
    pub act: fn(&mut Ring<'_>),
}

const fn breakage(name: &'static str, act: fn(&mut Ring<'_>)) -> Breakage {
    Breakage { name, act }
}

/// What breaks any queue, whatever the device and whichever way its data goes.
pub const BREAKAGES: [Breakage; 14] = [
    breakage("a buffer out of memory", |ring| {
        ring.descriptor(0, NOWHERE, 64, 0, 0);
        ring.offer(0);
    }),
    breakage("a buffer that wraps around the address space", |ring| {
        ring.descriptor(0, u64::MAX - 8, 64, 0, 0);
        ring.offer(0);
    }),
    breakage("a buffer that begins in memory and is far too long", |ring| {
        ring.descriptor(0, ring.at(Ring::DATA), u32::MAX, 0, 0);
        ring.offer(0);
    }),
    breakage("a loop", |ring| {
        for (index, next) in [(0, 1), (1, 2), (2, 0)] {
            ring.descriptor(index, ring.at(Ring::DATA), 1, NEXT, next);
        }
        ring.offer(0);
    }),
    breakage("a descriptor that follows itself", |ring| {
        ring.descriptor(3, ring.at(Ring::DATA), 1, NEXT, 3);
        ring.offer(3);
    }),
    breakage("a head beyond the table", |ring| ring.offer(Ring::SIZE)),
    breakage("a next beyond the table", |ring| {
        ring.descriptor(0, ring.at(Ring::DATA), 1, NEXT, 0xfffe);
        ring.offer(0);
    }),
    breakage("more available than the queue has", |ring| ring.set_available(Ring::SIZE + 1)),
    breakage("an available index that goes back", |ring| ring.set_available(0xfff0)),
    breakage("a readable buffer after a writable one", |ring| {
        ring.descriptor(0, ring.at(Ring::DATA), 64, NEXT | WRITE, 1);
        ring.descriptor(1, ring.at(Ring::DATA), 64, 0, 0);
        ring.offer(0);
    }),
    breakage("an indirect table out of memory", |ring| {
        ring.descriptor(0, NOWHERE, 64, INDIRECT, 0);
        ring.offer(0);
    }),
    breakage("an indirect table of no whole number of descriptors", |ring| {
        ring.descriptor(0, ring.at(Ring::TABLE), 17, INDIRECT, 0);
        ring.offer(0);
    }),
    breakage("an indirect table inside another", |ring| {
        ring.indirect(0, ring.at(Ring::TABLE), 16, INDIRECT, 0);
        ring.descriptor(0, ring.at(Ring::TABLE), 16, INDIRECT, 0);
        ring.offer(0);
    }),
    breakage("a loop inside an indirect table", |ring| {
        ring.indirect(0, ring.at(Ring::DATA), 1, NEXT, 1);
        ring.indirect(1, ring.at(Ring::DATA), 1, NEXT, 0);
        ring.descriptor(0, ring.at(Ring::TABLE), 32, INDIRECT, 0);
        ring.offer(0);
    }),
];
