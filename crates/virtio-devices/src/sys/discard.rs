// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Giving pages of the guest's memory back to the host.

use std::io;

use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

/// The size of the host's pages, a power of two.
pub(crate) fn host_page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Gives back the host pages that lie wholly in the `length` bytes from `address` on: they read zero from now on, and cost nothing until they
/// are written to. What of it is not in `memory` is left alone. Returns how many bytes were given back.
///
/// # Errors
/// The host's.
pub(crate) fn discard(memory: &GuestMemoryMmap, address: GuestAddress, length: u64) -> io::Result<u64> {
    let page = host_page_size();
    let end = address.0.saturating_add(length);
    let mut given = 0;
    for region in memory.iter() {
        let start = region.start_addr();
        let (from, to) = (address.0.max(start.0), end.min(start.0.saturating_add(region.len())));
        if from >= to {
            continue;
        }
        // Regions are mapped at page boundaries of the host, whatever their addresses in the guest.
        let from = (from - start.0).next_multiple_of(page);
        let to = (to - start.0) / page * page;
        if from >= to {
            continue;
        }
        let length = to - from;
        match region.file_offset() {
            // A shared file keeps its pages whatever is mapped: they have to be taken out of it.
            Some(file) if region.flags() & libc::MAP_SHARED != 0 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file.file(), flags, file.start() + from, length)?;
            }
            _ => {
                let host = region.get_host_address(MemoryRegionAddress(from)).map_err(io::Error::other)?;
                let length = usize::try_from(length).map_err(io::Error::other)?;
                // SAFETY: `from` and `length` lie in the region, which is mapped as long as `memory` is borrowed, and begin and end at
                // page boundaries. The mapping stays; its contents change to zeros, which guest memory may do at any time for all who
                // have it: it is accessed as volatile only.
                let result = unsafe { libc::madvise(host.cast(), length, libc::MADV_DONTNEED) };
                if result != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        given += length;
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{MemfdFlags, memfd_create};
    use vm_memory::{Bytes, FileOffset, GuestRegionMmap, mmap::MmapRegionBuilder};

    use super::*;

    fn check(memory: &GuestMemoryMmap, base: u64) {
        let page = host_page_size();
        let bytes = usize::try_from(8 * page).unwrap();
        memory.write_slice(&vec![7; bytes], GuestAddress(base)).unwrap();
        // From the middle of page 1 to the middle of page 4: pages 2 and 3 lie in it.
        let given = discard(memory, GuestAddress(base + page + page / 2), 3 * page).unwrap();
        assert_eq!(given, 2 * page);
        let mut seen = vec![0; bytes];
        memory.read_slice(&mut seen, GuestAddress(base)).unwrap();
        for (i, part) in seen.chunks(usize::try_from(page).unwrap()).enumerate() {
            let expected = if i == 2 || i == 3 { 0 } else { 7 };
            assert!(part.iter().all(|&byte| byte == expected), "page {i}");
        }
        assert_eq!(discard(memory, GuestAddress(base), page - 1).unwrap(), 0);
        assert_eq!(discard(memory, GuestAddress(base + 8 * page), 1 << 40).unwrap(), 0, "beyond the memory");
        assert_eq!(discard(memory, GuestAddress(u64::MAX - 10), 100).unwrap(), 0);
        assert_eq!(discard(memory, GuestAddress(0), base).unwrap(), 0, "before it");
        assert_eq!(discard(memory, GuestAddress(base + 7 * page), 1 << 40).unwrap(), page, "over its end");
    }

    #[test]
    fn whole_pages_of_anonymous_memory_read_zero_and_no_others() {
        let bytes = usize::try_from(8 * host_page_size()).unwrap();
        let base = 0x4000_0000;
        check(&GuestMemoryMmap::from_ranges(&[(GuestAddress(base), bytes)]).unwrap(), base);
    }

    #[test]
    fn pages_of_a_shared_file_are_taken_out_of_it() {
        let page = host_page_size();
        let file = File::from(memfd_create("discard", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(9 * page).unwrap();
        let look = file.try_clone().unwrap();
        let mapping = MmapRegionBuilder::new(usize::try_from(8 * page).unwrap())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            // Not at the file's beginning.
            .with_file_offset(FileOffset::new(file, page))
            .build()
            .unwrap();
        let base = 0x4000_0000;
        let region = GuestRegionMmap::new(mapping, GuestAddress(base)).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&look.metadata().unwrap()) * 512;
        check(&memory, base);
        // Looking at a hole fills it with a page of zeros. The last was not looked at.
        assert_eq!(blocks(), 7 * page);
        assert_eq!(discard(&memory, GuestAddress(base), 7 * page).unwrap(), 7 * page);
        assert_eq!(blocks(), 0);
    }
}
