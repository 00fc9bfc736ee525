// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory.

use std::fs::{self, File};
use std::io;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::config::{Backing, Config};
use crate::error::{Error, Result};
use crate::layout::RAM_BASE;
use crate::size::Size;
use crate::sys;

/// The kernel encodes a huge page's size in a memfd's flags as its logarithm, from this bit on (`MFD_HUGE_SHIFT`).
const MFD_HUGE_SHIFT: u32 = 26;

/// Makes the guest's memory: one region at [`RAM_BASE`].
///
/// Nothing is touched but what `--prefault` asks for: the host finds pages as the guest uses them.
///
/// # Errors
/// If the host has not that much address space, memory or huge pages.
pub fn create(config: &Config) -> Result<GuestMemoryMmap> {
    let size = usize::try_from(config.memory.0).map_err(|_| too_much(config.memory))?;
    let file = match (config.backing, config.hugepages) {
        (_, Some(_)) | (Backing::Memfd, None) => true,
        (Backing::Anonymous, None) => false,
        (Backing::Auto, None) => shared_memory_has_huge_pages(),
    };
    let (flags, file) = if file {
        (libc::MAP_SHARED, Some(memfd(config.memory, config.hugepages)?))
    } else {
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
    };
    // The host's pages are promised when they are used, as every VMM does; `--prefault` asks now. Huge pages are few, and one that is
    // missing when it is used is a SIGBUS: they are set aside here, or there are not enough.
    let reserve = if config.hugepages.is_some() { 0 } else { libc::MAP_NORESERVE };
    let mut builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags | reserve);
    if let Some(file) = file {
        builder = builder.with_file_offset(FileOffset::new(file, 0));
    }
    let mapping = builder.build().map_err(|e| match config.hugepages {
        Some(page) => too_few_huge_pages(config.memory, page).because(e),
        None => too_much(config.memory).because(e),
    })?;
    let region =
        GuestRegionMmap::new(mapping, GuestAddress(RAM_BASE)).ok_or_else(|| too_much(config.memory))?;
    let memory = GuestMemoryMmap::from_regions(vec![region])
        .map_err(|e| Error::failure("cannot lay out the guest's memory").because(e))?;
    if config.hugepages.is_none() {
        sys::advise_huge_pages(&memory);
    }
    if config.prefault {
        sys::populate(&memory).map_err(|e| {
            Error::host(format!("cannot prefault {} of guest memory", config.memory))
                .because(e)
                .hint("give less --memory, leave --prefault out, or reserve more huge pages")
        })?;
    }
    Ok(memory)
}

/// Whether a memfd would get transparent huge pages when it asks for them.
///
/// Most hosts say no (`shmem_enabled` is "never" unless somebody changes it), and then a memfd costs the guest a stage-2 fault for
/// each 4 KiB it touches, where anonymous memory costs one for 2 MiB.
fn shared_memory_has_huge_pages() -> bool {
    fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").is_ok_and(|modes| {
        ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|mode| modes.contains(mode))
    })
}

/// A file in memory of `size` bytes that can neither shrink nor grow under the guest.
fn memfd(size: Size, hugepages: Option<Size>) -> Result<File> {
    let failed = |what: &str, e: io::Error| match (hugepages, e.raw_os_error()) {
        // What memfd_create says to a size that no huge page has (`hugetlb_file_setup` in the kernel's `fs/hugetlbfs/inode.c`).
        (Some(page), Some(libc::ENODEV)) => Error::host(format!("this host has no huge pages of {page}"))
            .because(e)
            .hint("give --hugepages a size that /sys/kernel/mm/hugepages has"),
        (Some(page), _) => too_few_huge_pages(size, page).because(e),
        (None, _) => {
            Error::host(format!("cannot {what} {size} of guest memory")).because(e).hint("give less --memory")
        }
    };
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if let Some(page) = hugepages {
        flags |=
            MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(page.0.trailing_zeros() << MFD_HUGE_SHIFT);
    }
    let file = File::from(memfd_create("doorbell-guest", flags).map_err(|e| failed("create", e.into()))?);
    file.set_len(size.0).map_err(|e| failed("size", e))?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(|e| failed("seal", e.into()))?;
    Ok(file)
}

fn too_few_huge_pages(size: Size, page: Size) -> Error {
    Error::host(format!("this host has not enough free huge pages of {page} for {size} of guest memory"))
        .hint(format!(
            "reserve pages: echo {} > /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
            size.0 / page.0,
            page.0 >> 10
        ))
}

fn too_much(size: Size) -> Error {
    Error::host(format!("this host has no room for {size} of guest memory")).hint("give less --memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use vm_memory::{Bytes, GuestMemoryBackend};

    fn config(memory: u64, backing: Backing) -> Config {
        Settings {
            kernel: Some("k".into()),
            memory: Some(Size(memory)),
            backing: Some(backing),
            ..Settings::default()
        }
        .into_config()
        .unwrap()
    }

    #[test]
    fn memory_of_either_backing_is_one_region_at_the_base_of_ram() {
        for backing in [Backing::Auto, Backing::Memfd, Backing::Anonymous] {
            let memory = create(&config(64 << 20, backing)).unwrap();
            assert_eq!(memory.num_regions(), 1);
            let last = GuestAddress(RAM_BASE + (64 << 20) - 8);
            memory.write_obj(0x1234_5678_9abc_def0_u64, last).unwrap();
            assert_eq!(memory.read_obj::<u64>(last).unwrap(), 0x1234_5678_9abc_def0);
            assert!(memory.read_obj::<u8>(GuestAddress(RAM_BASE + (64 << 20))).is_err());
        }
    }

    #[test]
    fn more_than_the_host_can_map_is_an_error_of_the_host() {
        let error = create(&config(1 << 50, Backing::Memfd)).unwrap_err();
        assert_eq!(error.status(), crate::status::Status::Host);
        assert!(error.one_line().contains("1P"), "{}", error.one_line());
    }
}
