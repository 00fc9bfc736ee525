// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use std::io::Write;
use vmm_sys_util::tempdir::TempDir;

/// An Image of `len` bytes that says it needs `image_size`.
fn image(len: usize, image_size: u64) -> Vec<u8> {
    let mut image = vec![0; len.max(HEADER_LEN)];
    image[16..24].copy_from_slice(&image_size.to_le_bytes());
    image[24..32].copy_from_slice(&0b1010_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image.truncate(len);
    image
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn with(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().join("file");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn kernel_error(bytes: &[u8]) -> String {
    let (_dir, path) = with(bytes);
    Kernel::open(&path, Size(64 << 20)).unwrap_err().one_line()
}

fn initrd_error(bytes: &[u8]) -> String {
    let (_dir, path) = with(bytes);
    Initrd::open(&path).unwrap_err().one_line()
}

#[test]
fn an_image_is_opened_plain_and_compressed() {
    let plain = image(8192, 16384);
    for bytes in [plain.clone(), gzip(&plain)] {
        let (_dir, path) = with(&bytes);
        let kernel = Kernel::open(&path, Size(64 << 20)).unwrap();
        assert_eq!((kernel.text_offset(), kernel.image_size()), (0, 16384));
    }
}

#[test]
fn an_image_from_before_linux_3_17_has_the_old_offset_and_the_size_of_its_file() {
    let (_dir, path) = with(&image(8192, 0));
    let kernel = Kernel::open(&path, Size(64 << 20)).unwrap();
    assert_eq!((kernel.text_offset(), kernel.image_size()), (0x8_0000, 8192));
}

#[test]
fn what_is_no_arm64_image_is_named() {
    let mut elf = vec![0; 4096];
    elf[..4].copy_from_slice(b"\x7fELF");
    elf[18] = 62;
    let mut bzimage = vec![0; 4096];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    let mut big_endian = image(8192, 8192);
    big_endian[24] |= 1;
    let mut riscv = image(8192, 8192);
    riscv[56..60].copy_from_slice(b"RSC\x05");
    for (bytes, word) in [
        (Vec::new(), "is empty"),
        (image(40, 8192), "truncated"),
        (vec![0; 4096], "no arm64 Image"),
        (elf, "ELF file for x86-64"),
        (bzimage, "bzImage for x86"),
        (big_endian, "big-endian"),
        (riscv, "RISC-V"),
        (gzip(&image(8192, 8192))[..60].to_vec(), "does not unpack"),
        (gzip(&vec![0; 65 << 20]), "more than the guest's 64M"),
    ] {
        let line = kernel_error(&bytes);
        assert!(line.contains(word) && line.contains("--"), "{word}: {line}");
    }
}

#[test]
fn an_image_shorter_than_its_sections_is_truncated() {
    let mut bytes = image(8192, 16384);
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c..0x40].copy_from_slice(&0x40_u32.to_le_bytes());
    bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
    bytes[0x46] = 1;
    bytes[0x68..0x6c].copy_from_slice(&0x1000_u32.to_le_bytes());
    bytes[0x6c..0x70].copy_from_slice(&0x1000_u32.to_le_bytes());
    let (_dir, path) = with(&bytes);
    assert!(Kernel::open(&path, Size(64 << 20)).is_ok());
    bytes.truncate(8000);
    assert!(kernel_error(&bytes).contains("truncated: it has 8000 bytes of 8192"));
}

#[test]
fn an_initrd_is_a_whole_archive_or_a_whole_compressed_one() {
    let mut cpio = b"070701".to_vec();
    cpio.resize(600, b'x');
    cpio.extend_from_slice(b"TRAILER!!!\0\0");
    cpio.resize(1024, 0);
    for good in [cpio.clone(), gzip(&cpio), [cpio.clone(), gzip(b"more")].concat()] {
        let (_dir, path) = with(&good);
        assert_eq!(Initrd::open(&path).unwrap().len(), good.len() as u64);
    }
    for (bytes, word) in [
        (Vec::new(), "is empty"),
        (cpio[..500].to_vec(), "truncated"),
        (gzip(&cpio)[..20].to_vec(), "does not unpack"),
        (image(8192, 8192), "is a kernel"),
        (b"hello".to_vec(), "neither"),
    ] {
        let line = initrd_error(&bytes);
        assert!(line.contains(word), "{word}: {line}");
    }
}

#[test]
fn files_that_are_not_there_or_not_files_are_named() {
    let missing = Kernel::open(Path::new("/nonexistent/Image"), Size(1)).unwrap_err().one_line();
    assert!(missing.contains("/nonexistent/Image") && missing.contains("--kernel"), "{missing}");
    let directory = Initrd::open(Path::new("/")).unwrap_err().one_line();
    assert!(directory.contains("no regular file") && directory.contains("--initrd"), "{directory}");
}
