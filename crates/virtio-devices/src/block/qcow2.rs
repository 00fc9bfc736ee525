// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! qcow2 images, through the crate imago; and the chain of backing files, which is followed here, so that it has an end and every
//! file in it is locked. The format is described in QEMU's `docs/interop/qcow2.rst`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use imago::file::File as Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};
use vm_memory::VolatileSlice;

use super::engine::Executor;
use super::image::Image;
use super::{BlockError, BlockFormat};
use crate::sys::storage::{IoVec, Step, read_some};

/// Images of a chain. More than anybody has, and few enough for the recursion in imago.
const MAX_CHAIN: usize = 64;

/// A qcow2 image with all that is behind it.
pub(crate) struct Qcow2Disk {
    /// Discarding changes the mapping under who reads: it wants the image for itself.
    access: RwLock<FormatAccess<Storage>>,
    size: u64,
}

impl Qcow2Disk {
    /// Opens the chain that begins with `image`.
    pub(super) fn open(image: Image, writable: bool, direct: bool) -> Result<Self, BlockError> {
        // From the top to the bottom, by headers alone; then open from the bottom up.
        let mut chain = vec![(image, BlockFormat::Qcow2)];
        while let Some((top, BlockFormat::Qcow2)) = chain.last() {
            let Some(backing) = Backing::of(top)? else { break };
            let on =
                |source: BlockError| BlockError::Backing { path: top.path.clone(), source: Box::new(source) };
            if chain.len() == MAX_CHAIN {
                return Err(BlockError::ChainTooLong { path: top.path.clone(), most: MAX_CHAIN });
            }
            let metadata = std::fs::metadata(&backing.path).map_err(|source| {
                on(BlockError::File { action: "open", path: backing.path.clone(), source })
            })?;
            let identity = std::os::unix::fs::MetadataExt::dev(&metadata);
            let identity = (identity, std::os::unix::fs::MetadataExt::ino(&metadata));
            if chain.iter().any(|(other, _)| other.identity == identity) {
                return Err(BlockError::Loop { path: top.path.clone(), backing: backing.path });
            }
            let next = Image::open(&backing.path, false, direct).map_err(on)?;
            let format = next.format(backing.format).map_err(on)?;
            chain.push((next, format));
        }
        let mut below: Option<Arc<FormatAccess<Storage>>> = None;
        while let Some((image, format)) = chain.pop() {
            let write = writable && chain.is_empty();
            let path = image.path.clone();
            let access = open_one(image, format, write, direct, below.take())
                .map_err(|source| BlockError::Qcow2 { path, source })?;
            if chain.is_empty() {
                let size = access.size();
                return Ok(Self { access: RwLock::new(access), size });
            }
            below = Some(Arc::new(access));
        }
        // The chain begins with `image`, so the loop has returned.
        Err(BlockError::ChainTooLong { path: PathBuf::new(), most: 0 })
    }

    /// Of the disk, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn with<R>(&self, f: impl FnOnce(&FormatAccess<Storage>) -> R) -> R {
        f(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn make_durable(access: &FormatAccess<Storage>) -> io::Result<()> {
        access.flush()?;
        access.sync()
    }
}

fn open_one(
    image: Image,
    format: BlockFormat,
    write: bool,
    direct: bool,
    below: Option<Arc<FormatAccess<Storage>>>,
) -> io::Result<FormatAccess<Storage>> {
    let options = StorageOpenOptions::new().filename(&image.path).write(write).direct(direct);
    let storage = Storage::from_open_file(image.file, options)?;
    Ok(match format {
        BlockFormat::Qcow2 => FormatAccess::new(
            Qcow2::<Storage, Arc<FormatAccess<Storage>>>::builder(storage)
                .write(write)
                .backing(below)
                .open(DenyImplicitOpenGate::default())?,
        ),
        BlockFormat::Raw | BlockFormat::Auto => {
            FormatAccess::new(Raw::builder(storage).write(write).open(DenyImplicitOpenGate::default())?)
        }
    })
}

/// What an image says of the file behind it.
#[derive(Debug)]
struct Backing {
    path: PathBuf,
    format: BlockFormat,
}

/// Offsets in the header.
const VERSION: usize = 4;
const NAME_OFFSET: usize = 8;
const NAME_LENGTH: usize = 16;
const HEADER_LENGTH: usize = 100;
/// A header of version 3 with its extensions is in the first cluster, and the smallest cluster has 512 bytes. Longer names are cut off by the format.
const MAX_NAME: u32 = 1023;
/// The extension with the backing file's format.
const FORMAT_EXTENSION: u32 = 0xe279_2aca;
/// Extensions are looked for in so many bytes: qemu-img writes them right behind the header.
const LOOKED_AT: usize = 4096;

impl Backing {
    fn of(image: &Image) -> Result<Option<Self>, BlockError> {
        let bad = |problem| BlockError::BadQcow2 { path: image.path.clone(), problem };
        let read = |offset, length| {
            read_some(&image.file, offset, length).map_err(|source| BlockError::File {
                action: "read",
                path: image.path.clone(),
                source,
            })
        };
        let header = read(0, LOOKED_AT)?;
        let u32_at = |at: usize| be32(&header, at).ok_or_else(|| bad("its header is cut off"));
        let offset = u64::from(u32_at(NAME_OFFSET)?) << 32 | u64::from(u32_at(NAME_OFFSET + 4)?);
        if !header.starts_with(b"QFI\xfb") {
            return Err(bad("it is no qcow2 image"));
        }
        if offset == 0 {
            return Ok(None);
        }
        let length = u32_at(NAME_LENGTH)?;
        if length == 0 || length > MAX_NAME {
            return Err(bad("the name of its backing file has an impossible length"));
        }
        let name = read(offset, length as usize)?;
        if name.len() < length as usize {
            return Err(bad("the name of its backing file is cut off"));
        }
        let name = String::from_utf8(name).map_err(|_| bad("the name of its backing file is no text"))?;
        let first_extension = if u32_at(VERSION)? >= 3 { u32_at(HEADER_LENGTH)? as usize } else { 72 };
        let format = match extension(&header, first_extension) {
            None => BlockFormat::Auto,
            Some(b"raw" | b"file" | b"host_device") => BlockFormat::Raw,
            Some(b"qcow2") => BlockFormat::Qcow2,
            Some(_) => return Err(bad("its backing file is of a format other than raw and qcow2")),
        };
        let name = name.strip_prefix("file:").unwrap_or(&name);
        // QEMU takes what is before a colon for a protocol, unless a slash comes first.
        if name.split('/').next().is_some_and(|first| first.contains(':')) {
            return Err(bad("its backing file is no file of this host"));
        }
        let directory = image.path.parent().unwrap_or(Path::new(""));
        Ok(Some(Self { path: directory.join(name), format }))
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// The content of the extension that names the backing file's format.
fn extension(header: &[u8], first: usize) -> Option<&[u8]> {
    let mut at = first;
    loop {
        let kind = be32(header, at)?;
        let length = be32(header, at.checked_add(4)?)? as usize;
        let start = at.checked_add(8)?;
        let end = start.checked_add(length)?;
        match kind {
            0 => return None,
            FORMAT_EXTENSION => return header.get(start..end),
            _ => at = end.checked_next_multiple_of(8)?,
        }
    }
}

fn slices(parts: &[IoVec]) -> Vec<VolatileSlice<'_>> {
    parts.iter().map(IoVec::slice).collect()
}

impl Executor for Qcow2Disk {
    fn execute(&self, step: Step<'_>) -> io::Result<usize> {
        match step {
            Step::Read { to, offset } => {
                let slices = slices(to);
                let (vector, _guard) = IoVectorMut::from_volatile_slice(&slices);
                let length = vector.len();
                self.with(|access| access.readv(vector, offset))?;
                Ok(usize::try_from(length).unwrap_or(usize::MAX))
            }
            Step::Write { from, offset, durable } => {
                let slices = slices(from);
                let (vector, _guard) = IoVector::from_volatile_slice(&slices);
                let length = vector.len();
                self.with(|access| {
                    access.writev(vector, offset)?;
                    if durable { Self::make_durable(access) } else { Ok(()) }
                })?;
                Ok(usize::try_from(length).unwrap_or(usize::MAX))
            }
            Step::Sync => self.with(Self::make_durable).map(|()| 0),
            Step::Punch { offset, length } => {
                let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
                access.discard_to_zero(offset, length).map(|()| 0)
            }
            Step::Zero { offset, length } => {
                self.with(|access| access.write_zeroes(offset, length)).map(|()| 0)
            }
        }
    }
}
