// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel and the initial RAM disk: what the files are, and whether they can be what the user meant.
//!
//! Everything here looks at files only, before the host is asked for anything. Follows Linux's
//! `Documentation/arch/arm64/booting.rst`.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::{Error, Result};
use crate::size::Size;

/// The header's length, and so the shortest file that can be an Image.
const HEADER_LEN: usize = 64;
/// Up to this many bytes of a compressed initial RAM disk are checked before the guest starts; more are checked beside it.
const CHECK_AT_ONCE: u64 = 128 << 10;

/// A kernel whose header makes sense.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    image: Source,
    header: Header,
}

#[derive(Debug)]
enum Source {
    File(File),
    Unpacked(Cursor<Vec<u8>>),
}

/// What `Documentation/arch/arm64/booting.rst`, section 4, puts at the start of an Image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    text_offset: u64,
    image_size: u64,
}

impl Kernel {
    /// Opens and checks a kernel. A gzip-compressed one is unpacked to memory, up to `limit` bytes.
    ///
    /// # Errors
    /// One that says what the file is instead.
    pub fn open(path: &Path, limit: Size) -> Result<Self> {
        let (mut file, len) = open("kernel", path)?;
        let bad = |what: &str| {
            Error::usage(format!("the kernel {} {what}", path.display()))
                .hint("give --kernel an arm64 Image, as it lies in arch/arm64/boot")
        };
        let mut start = vec![0; 4096];
        let got = read_up_to(&mut file, &mut start).map_err(|e| bad("cannot be read").because(e))?;
        start.truncate(got);
        let (image, len) = if start.starts_with(&[0x1f, 0x8b]) {
            rewind(&mut file).map_err(|e| bad("cannot be read").because(e))?;
            let mut unpacked = Vec::new();
            MultiGzDecoder::new(&mut file)
                .take(limit.0.saturating_add(1))
                .read_to_end(&mut unpacked)
                .map_err(|e| bad("is damaged or truncated: it does not unpack").because(e))?;
            if unpacked.len() as u64 > limit.0 {
                return Err(bad(&format!("unpacks to more than the guest's {limit} of memory"))
                    .hint("give more --memory"));
            }
            start = unpacked.get(..unpacked.len().min(4096)).unwrap_or_default().to_vec();
            let len = unpacked.len() as u64;
            (Source::Unpacked(Cursor::new(unpacked)), len)
        } else {
            (Source::File(file), len)
        };
        let header = Header::parse(&start, len).map_err(|what| bad(&what))?;
        Ok(Self { path: path.to_owned(), image, header })
    }

    /// Where the kernel lies relative to a 2 MiB boundary.
    #[must_use]
    pub fn text_offset(&self) -> u64 {
        self.header.text_offset
    }

    /// How much memory it takes from there on, what it clears for itself included.
    #[must_use]
    pub fn image_size(&self) -> u64 {
        self.header.image_size
    }

    /// The file it came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it into guest memory: the 2 MiB boundary is at `base`. Returns its first instruction's address.
    ///
    /// # Errors
    /// If it does not fit or the file cannot be read any more.
    #[cfg(target_arch = "aarch64")]
    pub fn load(
        &mut self,
        memory: &vm_memory::GuestMemoryMmap,
        base: vm_memory::GuestAddress,
    ) -> Result<u64> {
        use linux_loader::loader::{KernelLoader, pe::PE};

        let loaded = match &mut self.image {
            Source::File(file) => PE::load(memory, Some(base), file, None),
            Source::Unpacked(bytes) => PE::load(memory, Some(base), bytes, None),
        };
        // Unpacked bytes have served their purpose, and the host pays for them as long as the guest lives.
        self.image = Source::Unpacked(Cursor::new(Vec::new()));
        match loaded {
            Ok(result) => Ok(result.kernel_load.0),
            Err(e) => Err(Error::usage(format!("cannot load the kernel {}", self.path.display())).because(e)),
        }
    }
}

/// Looks at the first bytes of a file of `len` bytes as [`Kernel::open`] does. Returns the offset and the size in memory that its header
/// states.
///
/// # Errors
/// What is wrong with it, as the end of the sentence "the kernel FILE …".
pub fn check_header(start: &[u8], len: u64) -> std::result::Result<(u64, u64), String> {
    Header::parse(start, len).map(|header| (header.text_offset, header.image_size))
}

impl Header {
    /// Reads the header from the first bytes of a file of `len` bytes; the error completes "the kernel FILE …".
    fn parse(start: &[u8], len: u64) -> std::result::Result<Self, String> {
        if let Some(what) = known_stranger(start) {
            return Err(what);
        }
        let word = |at: usize| -> Option<u64> {
            start.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
        };
        if start.len() < HEADER_LEN {
            return Err(format!("is truncated: it has {len} bytes, not even a header"));
        }
        let (Some(text_offset), Some(image_size), Some(flags)) = (word(8), word(16), word(24)) else {
            return Err("is truncated".to_owned());
        };
        if start.get(56..60) != Some(b"ARM\x64") {
            return Err("is no arm64 Image".to_owned());
        }
        if flags & 1 != 0 {
            return Err("is big-endian, which is not supported".to_owned());
        }
        // Before Linux 3.17 the size was 0 and the offset 0x80000 (booting.rst, section 4).
        let header = if image_size == 0 {
            Self { text_offset: 0x8_0000, image_size: len }
        } else {
            Self { text_offset, image_size: image_size.max(len) }
        };
        if let Some(needed) = pe_file_size(start).filter(|&needed| needed > len) {
            return Err(format!("is truncated: it has {len} bytes of {needed}"));
        }
        Ok(header)
    }
}

/// What a file is that is certainly no arm64 Image.
fn known_stranger(start: &[u8]) -> Option<String> {
    let half = |at: usize| start.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    if start.starts_with(b"\x7fELF") {
        let machine = match half(18) {
            Some(183) => "arm64",
            Some(62) => "x86-64",
            Some(40) => "32-bit Arm",
            Some(243) => "RISC-V",
            _ => "some",
        };
        return Some(format!("is an ELF file for {machine}, not an arm64 Image"));
    }
    if start.get(0x202..0x206) == Some(b"HdrS") {
        return Some("is a bzImage for x86, not an arm64 Image".to_owned());
    }
    if start.get(4..8) == Some(b"zimg") {
        return Some("is a compressed EFI application (vmlinuz.efi), not an Image".to_owned());
    }
    if start.get(0x24..0x28) == Some(&[0x18, 0x28, 0x6f, 0x01]) {
        return Some("is a zImage for 32-bit Arm, not an arm64 Image".to_owned());
    }
    if start.get(56..60) == Some(b"RSC\x05") {
        return Some("is an Image for RISC-V, not for arm64".to_owned());
    }
    None
}

/// How long the file has to be by its PE header, which an Image with an EFI stub has (PE format, sections "COFF File Header"
/// and "Section Table").
fn pe_file_size(start: &[u8]) -> Option<u64> {
    let half = |at: usize| start.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    let word = |at: usize| start.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    if !start.starts_with(b"MZ") {
        return None;
    }
    let pe = usize::try_from(word(0x3c)?).ok()?;
    if start.get(pe..pe.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let sections = usize::from(half(pe + 6)?);
    let table = pe + 24 + usize::from(half(pe + 20)?);
    (0..sections)
        .map(|n| {
            let size = u64::from(word(table + 40 * n + 16)?);
            let offset = u64::from(word(table + 40 * n + 20)?);
            Some(offset + size)
        })
        .collect::<Option<Vec<_>>>()?
        .into_iter()
        .max()
}

/// An initial RAM disk.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    file: File,
    len: u64,
    unchecked: bool,
}

/// Beginnings of what Linux takes for an initial RAM disk (`lib/decompress.c`, `init/initramfs.c`) or an old-style disk image.
const INITRD_MAGIC: [&[u8]; 9] = [
    b"070701",
    b"070702",
    &[0x1f, 0x8b],
    &[0x28, 0xb5, 0x2f, 0xfd],
    &[0xfd, b'7', b'z', b'X', b'Z'],
    &[0x02, 0x21, 0x4c, 0x18],
    &[0x5d, 0x00, 0x00],
    b"BZh",
    &[0x89, b'L', b'Z', b'O'],
];

impl Initrd {
    /// Opens and checks an initial RAM disk.
    ///
    /// # Errors
    /// If it cannot be one, or is short and damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let (mut file, len) = open("initrd", path)?;
        let bad = |what: String| {
            Error::usage(format!("the initrd {} {what}", path.display()))
                .hint("give --initrd a cpio archive, compressed or not, or leave it out")
        };
        let mut start = vec![0; 4096];
        let got = read_up_to(&mut file, &mut start).map_err(|e| bad("cannot be read".into()).because(e))?;
        start.truncate(got);
        if let Some(what) = known_stranger(&start) {
            return Err(bad(what.replace(", not an arm64 Image", "")));
        }
        if start.get(56..60) == Some(b"ARM\x64") {
            return Err(bad("is a kernel".to_owned()));
        }
        let cpio = start.starts_with(b"0707");
        if !cpio && !INITRD_MAGIC.iter().any(|magic| start.starts_with(magic)) && !is_disk_image(&start) {
            return Err(bad("is neither a cpio archive nor compressed in a way Linux knows".to_owned()));
        }
        rewind(&mut file).map_err(|e| bad("cannot be read".into()).because(e))?;
        let mut this = Self { path: path.to_owned(), file, len, unchecked: start.starts_with(&[0x1f, 0x8b]) };
        if cpio {
            this.check_cpio_end().map_err(|e| bad("is truncated".into()).because(e))?;
        }
        if this.unchecked && len <= CHECK_AT_ONCE {
            this.check_compression()?;
            this.unchecked = false;
        }
        Ok(this)
    }

    /// Its length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty one is refused when it is opened")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The file, at its start.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// The file it came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is left to check while the guest already runs: unpacking takes longer than a guest should wait.
    #[must_use]
    pub fn unchecked(&self) -> Option<PathBuf> {
        self.unchecked.then(|| self.path.clone())
    }

    /// A cpio archive ends with an entry of this name; padding may follow.
    fn check_cpio_end(&mut self) -> io::Result<()> {
        const TRAILER: &[u8] = b"TRAILER!!!";
        let tail = self.len.min(4096);
        self.file.seek(SeekFrom::Start(self.len - tail))?;
        let mut end = Vec::new();
        (&self.file).take(tail).read_to_end(&mut end)?;
        self.file.rewind()?;
        // Another archive, compressed or not, may follow the first: then the end says nothing about this one.
        let plain_end = end.windows(TRAILER.len()).any(|w| w == TRAILER);
        let zeros = end.iter().rev().take_while(|&&b| b == 0).count();
        if plain_end || zeros == 0 && self.has_second_part()? {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its last entry is missing"))
    }

    /// Whether a further archive follows the first (microcode and modules are put in front that way): seen from a trailer anywhere.
    fn has_second_part(&mut self) -> io::Result<bool> {
        const TRAILER: &[u8] = b"TRAILER!!!";
        let mut found = false;
        let mut keep = Vec::new();
        let mut block = vec![0; 64 << 10];
        loop {
            let got = self.file.read(&mut block)?;
            if got == 0 || found {
                break;
            }
            keep.extend_from_slice(block.get(..got).unwrap_or_default());
            found = keep.windows(TRAILER.len()).any(|w| w == TRAILER);
            keep.drain(..keep.len().saturating_sub(TRAILER.len()));
        }
        self.file.rewind()?;
        Ok(found)
    }

    fn check_compression(&mut self) -> Result<()> {
        let result = check_gzip(&self.path, &mut self.file);
        self.file.rewind().map_err(|e| Error::usage("cannot read the initrd again").because(e))?;
        result
    }
}

/// Unpacks a compressed initial RAM disk to nowhere, to see whether it is whole.
///
/// # Errors
/// If it is not.
pub fn check_initrd(path: &Path) -> Result<()> {
    let (mut file, _) = open("initrd", path)?;
    check_gzip(path, &mut file)
}

fn check_gzip(path: &Path, file: &mut File) -> Result<()> {
    // Only the first member: what follows it may be another archive, padding, or compressed otherwise.
    io::copy(&mut flate2::read::GzDecoder::new(file), &mut io::sink()).map(drop).map_err(|e| {
        Error::usage(format!("the initrd {} is damaged or truncated: it does not unpack", path.display()))
            .because(e)
            .hint("copy or build it again")
    })
}

/// Old-style RAM disks are file-system images: ext2's magic, or others' at places of their own.
fn is_disk_image(start: &[u8]) -> bool {
    start.get(0x438..0x43a) == Some(&[0x53, 0xef])
        || start.starts_with(b"hsqs")
        || start.starts_with(&[0x45, 0x3d, 0xcd, 0x28])
        || start.get(1024..1028) == Some(&[0xe2, 0xe1, 0xf5, 0xe0])
}

/// Opens a regular file that is not empty.
fn open(role: &str, path: &Path) -> Result<(File, u64)> {
    let bad = |what: &str| {
        Error::usage(format!("the {role} {} {what}", path.display())).hint(format!("check --{role}"))
    };
    let file = File::open(path).map_err(|e| bad("cannot be opened").because(e))?;
    let metadata = file.metadata().map_err(|e| bad("cannot be looked at").because(e))?;
    if !metadata.is_file() {
        return Err(bad("is no regular file"));
    }
    if metadata.len() == 0 {
        return Err(bad("is empty"));
    }
    Ok((file, metadata.len()))
}

fn rewind(file: &mut File) -> io::Result<()> {
    file.rewind()
}

/// Fills `buffer` as far as the file goes.
fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests;
