// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver of a block device, and images for it.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use virtio_devices::{Block, BlockError, BlockOptions};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempdir::TempDir;

use super::driver::{Buffer, Driver, DriverQueue};
use super::{Machine, wait_for};

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

/// A status that no device writes.
const UNTOUCHED: u8 = 0xee;

/// A directory that goes away.
pub struct Directory(TempDir);

impl Directory {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.as_path().join(name)
    }

    /// A raw image whose bytes tell where they are.
    pub fn raw(&self, name: &str, sectors: u64) -> PathBuf {
        let path = self.path(name);
        let file = std::fs::File::create(&path).unwrap();
        let data = pattern(0, sectors);
        file.write_all_at(&data, 0).unwrap();
        path
    }
}

/// What is in sectors `first..first + count` of an image of [`Directory::raw`].
pub fn pattern(first: u64, count: u64) -> Vec<u8> {
    (first..first + count)
        .flat_map(|sector| (0..64u64).flat_map(move |word| (sector << 16 | word).to_le_bytes()))
        .collect()
}

pub fn contents(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// Runs qemu-img; `None` where there is none. It waits for locks, see [`open`].
pub fn qemu_img(test: &str, arguments: &[&str]) -> Option<()> {
    wait_for("the image to be free", || {
        let Ok(output) = Command::new("qemu-img").args(arguments).output() else {
            println!("SKIP {test}: there is no qemu-img on this machine");
            return Some(None);
        };
        let trouble = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || trouble.contains("lock"), "qemu-img {arguments:?}: {trouble}");
        output.status.success().then_some(Some(()))
    })
}

/// Whether the file system of `path` has direct I/O; otherwise says that `test` is skipped.
pub fn has_direct(test: &str, path: &Path) -> bool {
    let direct = OpenOptions::new().read(true).custom_flags(DIRECT).open(path).is_ok();
    if !direct {
        println!("SKIP {test}: no direct I/O in {}", path.display());
    }
    direct
}

/// `O_DIRECT`, which is of another value on arm64 and x86.
const DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits() as i32;

/// Opens an image that nobody uses any more. Processes that other tests are just starting may still have its descriptors, and with them its locks, until they are
/// what they are to be.
pub fn open(options: &BlockOptions) -> Block {
    wait_for("the image to be free", || match Block::open(options) {
        Err(BlockError::InUse { .. }) => None,
        result => Some(result.unwrap()),
    })
}

/// A disk with its driver.
pub struct Disk {
    pub machine: Machine,
    pub driver: Driver,
    pub queues: Vec<DriverQueue>,
    /// Header, status, and an indirect table, for one request at a time.
    page: u64,
    /// Data.
    pub data: u64,
}

/// Bytes of [`Disk::data`].
pub const ROOM: usize = 4 << 20;

impl Disk {
    pub fn new(options: &BlockOptions) -> Self {
        Self::with_features(options, !(1 << 30))
    }

    pub fn with_features(options: &BlockOptions, features: u64) -> Self {
        Self::of(open(options), features)
    }

    pub fn of(block: Block, features: u64) -> Self {
        let machine = Machine::new();
        let mut driver = Driver::new(&machine, block, true);
        let queues = driver
            .probe(features & 0xff_ffff | features & super::driver::EVENT_IDX | super::driver::INDIRECT_DESC);
        let page = driver.pages(0x1_0000);
        let data = driver.pages(ROOM);
        Self { machine, driver, queues, page, data }
    }

    /// Binds the driver again.
    pub fn again(&mut self, features: u64) {
        self.queues = self.driver.probe(features);
        self.page = self.driver.pages(0x1_0000);
        self.data = self.driver.pages(ROOM);
    }

    pub fn capacity(&self) -> u64 {
        u64::from_le_bytes(self.driver.read(self.driver.device, 0))
    }

    pub fn header(&self, kind: u32, sector: u64) -> Buffer {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.driver.memory.write_slice(&header, GuestAddress(self.page)).unwrap();
        (self.page, 16, false)
    }

    pub fn status_buffer(&self) -> Buffer {
        let at = self.page + 0x100;
        self.driver.memory.write_obj(UNTOUCHED, GuestAddress(at)).unwrap();
        (at, 1, true)
    }

    pub fn status(&self) -> u8 {
        self.driver.memory.read_obj(GuestAddress(self.page + 0x100)).unwrap()
    }

    pub fn put(&self, data: &[u8]) {
        self.driver.memory.write_slice(data, GuestAddress(self.data)).unwrap();
    }

    pub fn get(&self, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.driver.memory.read_slice(&mut data, GuestAddress(self.data)).unwrap();
        data
    }

    /// One request with these data buffers. Returns its status, and how many bytes the device says it has written.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let mut buffers = vec![self.header(kind, sector)];
        buffers.extend(data);
        buffers.push(self.status_buffer());
        let table = self.page + 0x1000;
        let queue = &mut self.queues[0];
        queue.add_indirect(table, &buffers).unwrap();
        queue.want_interrupt(1);
        queue.kick(1);
        let (_, written) = queue.wait_used();
        (self.status(), written)
    }

    pub fn read(&mut self, sector: u64, length: usize) -> Result<Vec<u8>, u8> {
        self.put(&vec![0xcc; length]);
        match self.request(IN, sector, &[(self.data, length as u32, true)]) {
            (OK, written) => {
                assert_eq!(written as usize, length + 1);
                Ok(self.get(length))
            }
            (status, _) => Err(status),
        }
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.put(data);
        let (status, written) = self.request(OUT, sector, &[(self.data, data.len() as u32, false)]);
        assert_eq!(written, 1);
        status
    }

    pub fn flush(&mut self) -> u8 {
        self.request(FLUSH, 0, &[]).0
    }

    /// Discards or zeroes ranges: (sector, sectors, flags).
    pub fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let mut list = Vec::new();
        for (sector, sectors, flags) in ranges {
            list.extend(sector.to_le_bytes());
            list.extend(sectors.to_le_bytes());
            list.extend(flags.to_le_bytes());
        }
        self.put(&list);
        self.request(kind, 0, &[(self.data, list.len() as u32, false)]).0
    }
}
