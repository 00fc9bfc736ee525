// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device: VIRTIO 1.3, section 5.2.

mod engine;
mod geometry;
mod image;
mod locks;
mod operation;
mod prompt;
mod qcow2;
mod shared;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::device::read_image;
use crate::worker::Worker;
use crate::{ActivateError, Activation, Ring, RingError, Transport, VirtioDevice};
use engine::Queue;
pub use engine::host_has_io_uring;
use geometry::{Geometry, SECTOR, WRITEBACK};
use image::Image;
use operation::SERIAL;
use qcow2::Qcow2Disk;
pub use shared::BlockCounters;
use shared::Shared;

/// The virtio device ID.
const BLOCK: u32 = 2;
/// Entries of a queue.
const QUEUE_SIZE: u16 = 256;
/// Queues of a disk. Each has a thread while the guest uses it.
const MAX_QUEUES: u16 = 64;

/// What a disk image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BlockFormat {
    /// Whatever its name and its content agree on: qcow2 if both say so, raw if neither does.
    #[default]
    Auto,
    /// The disk's bytes as they are: a file or a block device.
    Raw,
    /// qcow2, with its backing files.
    Qcow2,
}

/// What a disk is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockOptions {
    /// A file or block device of the host's.
    pub path: PathBuf,
    /// What is in it.
    pub format: BlockFormat,
    /// The guest cannot write. The image may be shared with others that cannot.
    pub readonly: bool,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// How many queues, 1 to 64: one a vCPU is best.
    pub queues: u16,
    /// What the guest reads as the serial number: up to 20 bytes.
    pub serial: String,
    /// One request after the other, with system calls of their own, also where the host has io_uring: to compare.
    pub blocking: bool,
}

impl BlockOptions {
    /// A disk to read and write, through the page cache, with one queue.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: BlockFormat::Auto,
            readonly: false,
            direct: false,
            queues: 1,
            serial: String::new(),
            blocking: false,
        }
    }
}

/// Why an image cannot be a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// A call on the file failed.
    #[error("cannot {action} disk image {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// Something that cannot hold a disk.
    #[error("{} is {what}, no disk image", path.display())]
    NoImage {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Somebody else has the image open: another guest, or a tool of QEMU's.
    #[error("disk image {} is in use by somebody else", path.display())]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// A disk consists of whole sectors, of at least one.
    #[error("disk image {} has {size} bytes: a disk has a multiple of {unit}, and more than none", path.display())]
    Size {
        /// Which.
        path: PathBuf,
        /// In bytes.
        size: u64,
        /// In bytes.
        unit: u64,
    },
    /// The file system has no direct I/O.
    #[error("disk image {} cannot be used past the page cache: its file system has no direct I/O", path.display())]
    NoDirect {
        /// Which.
        path: PathBuf,
    },
    /// A file with the content of a qcow2 image and the name of something else: its last guest may have written that.
    #[error("disk image {} looks like qcow2, but is not named so: say which format it has", path.display())]
    LooksLikeQcow2 {
        /// Which.
        path: PathBuf,
    },
    /// The other way round.
    #[error("disk image {} is named like qcow2, but is not: say which format it has", path.display())]
    NotQcow2 {
        /// Which.
        path: PathBuf,
    },
    /// A header that cannot be.
    #[error("qcow2 image {}: {problem}", path.display())]
    BadQcow2 {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The image cannot be opened as qcow2: damaged, or of a kind that is not supported.
    #[error("cannot use qcow2 image {}", path.display())]
    Qcow2 {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file behind an image cannot be used.
    #[error("cannot use the backing file of disk image {}", path.display())]
    Backing {
        /// The image.
        path: PathBuf,
        /// What is wrong with the file behind it.
        source: Box<BlockError>,
    },
    /// Backing files that lead back to where they came from.
    #[error("the backing file {} of disk image {} is in front of it as well", backing.display(), path.display())]
    Loop {
        /// The image that closes the loop.
        path: PathBuf,
        /// Its backing file.
        backing: PathBuf,
    },
    /// More backing files than anybody has.
    #[error("disk image {} is the last of a chain of {most}, and has a backing file", path.display())]
    ChainTooLong {
        /// The image.
        path: PathBuf,
        /// How many there may be.
        most: usize,
    },
    /// More than the guest can be told.
    #[error("serial number '{serial}' has more than {SERIAL} bytes")]
    Serial {
        /// As given.
        serial: String,
    },
    /// No queue, or too many.
    #[error("a disk cannot have {queues} queues: 1 to {MAX_QUEUES}")]
    Queues {
        /// As given.
        queues: u16,
    },
}

/// Where a disk's bytes are.
#[derive(Clone)]
enum Disk {
    Raw(Arc<File>),
    Qcow2(Arc<Qcow2Disk>),
}

/// A disk.
pub struct Block {
    disk: Disk,
    geometry: Arc<Geometry>,
    sizes: Vec<u16>,
    shared: Arc<Shared>,
    blocking: bool,
    /// Whether the driver may choose between write-back and write-through with [`WRITEBACK`], once that is known: at DRIVER_OK.
    may_choose: Option<bool>,
    /// It has done so.
    has_chosen: bool,
    workers: Vec<Worker>,
}

impl Block {
    /// Opens and locks an image.
    ///
    /// # Errors
    /// What is wrong with the image or the options: one line for the user, with its cause.
    pub fn open(options: &BlockOptions) -> Result<Self, BlockError> {
        let BlockOptions { path, format, readonly, direct, queues, serial, blocking } = options;
        if !(1..=MAX_QUEUES).contains(queues) {
            return Err(BlockError::Queues { queues: *queues });
        }
        let mut id = [0; SERIAL];
        id.get_mut(..serial.len())
            .ok_or_else(|| BlockError::Serial { serial: serial.clone() })?
            .copy_from_slice(serial.as_bytes());
        let image = Image::open(path, !readonly, *direct)?;
        let physical = image.physical;
        let (disk, size, align) = match image.format(*format)? {
            BlockFormat::Qcow2 => {
                let disk = Qcow2Disk::open(image, !readonly, *direct)?;
                let size = disk.size();
                if size == 0 || !size.is_multiple_of(SECTOR) {
                    return Err(BlockError::Size { path: path.clone(), size, unit: SECTOR });
                }
                // imago aligns by itself.
                (Disk::Qcow2(Arc::new(disk)), size, 1)
            }
            BlockFormat::Raw | BlockFormat::Auto => {
                image.check_size()?;
                (Disk::Raw(Arc::new(image.file)), image.size, image.align)
            }
        };
        let block = u32::try_from(align).unwrap_or(0).max(512);
        let geometry = Geometry {
            sectors: size / SECTOR,
            block,
            physical: physical.max(block),
            align,
            readonly: *readonly,
            serial: id,
            queues: *queues,
        };
        let shared =
            Shared { writeback: AtomicBool::new(true), counters: Arc::default(), rings: AtomicU32::new(0) };
        Ok(Self {
            disk,
            geometry: Arc::new(geometry),
            sizes: vec![QUEUE_SIZE; usize::from(*queues)],
            shared: Arc::new(shared),
            blocking: *blocking,
            may_choose: None,
            has_chosen: false,
            workers: Vec::new(),
        })
    }

    /// Serves what a driver has put into a queue, now, in the caller's thread: for who brings threads of its own, and for fuzzing. The queue's state stays
    /// with the caller, in `ring`.
    ///
    /// # Errors
    /// How the driver has broken the queue.
    pub fn serve(&self, ring: Ring, transport: Arc<dyn Transport>) -> Result<Ring, RingError> {
        let queue =
            Queue { ring, geometry: Arc::clone(&self.geometry), shared: Arc::clone(&self.shared), transport };
        match &self.disk {
            Disk::Raw(file) => engine::serve_now(queue, &**file),
            Disk::Qcow2(disk) => engine::serve_now(queue, &**disk),
        }
    }

    /// The disk's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.geometry.sectors * SECTOR
    }

    /// What it has done.
    #[must_use]
    pub fn counters(&self) -> Arc<BlockCounters> {
        Arc::clone(&self.shared.counters)
    }

    /// How many of its queues are served with io_uring.
    #[must_use]
    pub fn rings(&self) -> u32 {
        self.shared.rings.load(Ordering::Relaxed)
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_CONFIG_WCE
            | 1 << VIRTIO_BLK_F_MQ;
        features |= match self.geometry.readonly {
            true => 1 << VIRTIO_BLK_F_RO,
            false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        };
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_image(&self.geometry.config(self.shared.writeback.load(Ordering::Relaxed)), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Section 5.2.5: the driver writes it only if the feature is negotiated. It is, or is not, before DRIVER_OK (section 3.1.1, step 7).
        if let (WRITEBACK, [writeback]) = (offset, data)
            && self.may_choose != Some(false)
        {
            self.shared.writeback.store(*writeback != 0, Ordering::Relaxed);
            self.has_chosen = true;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, transport } = activation;
        if queues.is_empty() {
            return Err(ActivateError::MissingQueue(0));
        }
        // Sections 5.2.5.2 and 5.2.6.2: a driver that cannot flush is served with write-through, until it chooses otherwise.
        let may_choose = features & 1 << VIRTIO_BLK_F_CONFIG_WCE != 0;
        self.may_choose = Some(may_choose);
        if !(may_choose && self.has_chosen) {
            let writeback = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
            self.shared.writeback.store(writeback, Ordering::Relaxed);
        }
        for active in queues {
            let name = format!("virtio-blk-{}", active.index);
            let queue = Queue {
                ring: Ring::new(active, memory.clone()),
                geometry: Arc::clone(&self.geometry),
                shared: Arc::clone(&self.shared),
                transport: Arc::clone(&transport),
            };
            let (disk, blocking) = (self.disk.clone(), self.blocking);
            self.workers.push(Worker::spawn_with(&name, move |stop| match disk {
                Disk::Raw(file) => engine::serve_file(queue, &file, blocking, stop),
                Disk::Qcow2(disk) => engine::serve_blocking(queue, disk, stop),
            })?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.workers.clear();
        self.shared.writeback.store(true, Ordering::Relaxed);
        self.shared.rings.store(0, Ordering::Relaxed);
        self.may_choose = None;
        self.has_chosen = false;
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}
