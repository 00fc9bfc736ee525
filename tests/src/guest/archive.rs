// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A second archive behind the guest's initial RAM disk, with the test's own script and data in it.
//!
//! Linux unpacks one archive after the other (`Documentation/driver-api/early-userspace/buffer-format.rst`), so the files appear beside those of
//! the first one.

/// Appends a "newc" cpio archive of `files` to `disk`. An uncompressed archive has to begin at a multiple of four bytes.
pub(super) fn append(disk: &mut Vec<u8>, files: &[(String, Vec<u8>)]) {
    pad(disk);
    for (name, contents) in files {
        entry(disk, name, 0o100_755, contents);
    }
    entry(disk, "TRAILER!!!", 0, &[]);
    pad(disk);
}

fn entry(disk: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
    let size = u32::try_from(contents.len()).unwrap();
    let name_size = u32::try_from(name.len() + 1).unwrap();
    // Inode, mode, owner, group, links, time, size, device twice, special device twice, length of the name, checksum.
    let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    disk.extend_from_slice(b"070701");
    for field in fields {
        disk.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    disk.extend_from_slice(name.as_bytes());
    disk.push(0);
    pad(disk);
    disk.extend_from_slice(contents);
    pad(disk);
}

fn pad(disk: &mut Vec<u8>) {
    disk.resize(disk.len().next_multiple_of(4), 0);
}
