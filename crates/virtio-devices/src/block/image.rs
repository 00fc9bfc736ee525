// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Image files: what they are, whether they can be used, and by whom.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::geometry::SECTOR;
use super::locks::{self, Locked};
use super::{BlockError, BlockFormat};
use crate::sys::storage::{MAX_ALIGN, read_blocks, read_some};

/// The first bytes of a qcow2 image.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// A file that is open, locked, and of a size that a disk can have.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// In bytes.
    pub(super) size: u64,
    /// What direct I/O wants addresses, lengths and offsets to be multiples of; 1 without it.
    pub(super) align: usize,
    /// What the file system writes without reading first.
    pub(super) physical: u32,
    /// Device and inode: the same for the same file under another name.
    pub(super) identity: (u64, u64),
}

impl Image {
    /// Opens and locks a file or block device.
    pub(super) fn open(path: &Path, writable: bool, direct: bool) -> Result<Self, BlockError> {
        let failed =
            |action| move |source: io::Error| BlockError::File { action, path: path.to_owned(), source };
        // Before it is opened: opening a FIFO waits for the other end.
        let kind = std::fs::metadata(path).map_err(failed("open"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() { "a directory" } else { "neither a file nor a block device" };
            return Err(BlockError::NoImage { path: path.to_owned(), what });
        }
        let mut options = OpenOptions::new();
        options.read(true).write(writable);
        if direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let file = options.open(path).map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) if direct => BlockError::NoDirect { path: path.to_owned() },
            _ => failed(if writable { "open for writing" } else { "open" })(source),
        })?;
        if locks::lock(&file, writable).map_err(failed("lock"))? == Locked::InUse {
            return Err(BlockError::InUse { path: path.to_owned() });
        }
        let metadata = file.metadata().map_err(failed("examine"))?;
        let size = size(&file, &metadata).map_err(failed("find out the size of"))?;
        let align = if direct { probe_alignment(path, &file, size)? } else { 1 };
        let physical = u32::try_from(metadata.blksize()).unwrap_or(0).clamp(512, 4096);
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { path: path.to_owned(), file, size, align, physical, identity })
    }

    /// Checks that a disk can be so large, where the file is the disk.
    pub(super) fn check_size(&self) -> Result<(), BlockError> {
        let Self { path, size, align, .. } = self;
        let unit = (*align as u64).max(SECTOR);
        if *size == 0 || !size.is_multiple_of(unit) {
            return Err(BlockError::Size { path: path.clone(), size: *size, unit });
        }
        Ok(())
    }

    /// What the image is, if `wanted` leaves that open.
    ///
    /// A guest can write whatever it likes to its raw disk, and so make it look like a qcow2 image that names any file of the host's as its backing file. So what an
    /// image looks like decides nothing by itself: its name has to agree, or the user has to say.
    pub(super) fn format(&self, wanted: BlockFormat) -> Result<BlockFormat, BlockError> {
        if wanted != BlockFormat::Auto {
            return Ok(wanted);
        }
        let start = read_some(&self.file, 0, QCOW2_MAGIC.len()).map_err(|source| BlockError::File {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        let looks = start == QCOW2_MAGIC;
        let extension = self.path.extension().unwrap_or_default();
        let named = extension.eq_ignore_ascii_case("qcow2") || extension.eq_ignore_ascii_case("qcow");
        match (looks, named) {
            (true, true) => Ok(BlockFormat::Qcow2),
            (false, false) => Ok(BlockFormat::Raw),
            (true, false) => Err(BlockError::LooksLikeQcow2 { path: self.path.clone() }),
            (false, true) => Err(BlockError::NotQcow2 { path: self.path.clone() }),
        }
    }
}

/// A file's length, or a block device's size.
fn size(file: &File, metadata: &std::fs::Metadata) -> io::Result<u64> {
    if metadata.file_type().is_file() {
        return Ok(metadata.len());
    }
    io::Seek::seek(&mut &*file, io::SeekFrom::End(0))
}

/// Finds out by trying: what the kernel says (`STATX_DIOALIGN`) it says since Linux 6.1, and not for every file system.
fn probe_alignment(path: &Path, file: &File, size: u64) -> Result<usize, BlockError> {
    if size < SECTOR {
        return Ok(1);
    }
    for align in [512, 1024, 2048, MAX_ALIGN] {
        match read_blocks(file, 0, align, align) {
            Ok(_) => return Ok(align),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            Err(source) => return Err(BlockError::File { action: "read", path: path.to_owned(), source }),
        }
    }
    Err(BlockError::NoDirect { path: path.to_owned() })
}
