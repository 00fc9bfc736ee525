// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory of this process, with the addresses that devices know it by.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use rustix::param::page_size;
use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory};

/// Pages that are zero at first, each with a physical address of its own. Nothing moves them: there is neither swap in the tests' guests nor anybody
/// who is short of memory.
#[derive(Debug)]
pub(super) struct Pages {
    memory: MmapRegion,
    physical: Vec<u64>,
}

impl Pages {
    pub(super) fn new(count: usize) -> Self {
        let memory = MmapRegion::new(count * page_size()).unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let physical = (0..count)
            .map(|page| {
                // It exists from the first write on.
                memory.as_volatile_slice().store(0_u8, page * page_size(), Ordering::Relaxed).unwrap();
                let virtual_page = (memory.as_ptr() as u64) / page_size() as u64 + page as u64;
                let mut entry = [0; 8];
                pagemap.read_exact_at(&mut entry, virtual_page * 8).unwrap();
                let entry = u64::from_le_bytes(entry);
                // Documentation/admin-guide/mm/pagemap.rst: bit 63 says that the page is there, bits 0 to 54 where.
                assert!(entry >> 63 == 1, "page {page} is not there");
                let number = entry & ((1 << 55) - 1);
                assert!(number != 0, "the kernel does not tell where pages are");
                number * page_size() as u64
            })
            .collect();
        Self { memory, physical }
    }

    /// Where byte `offset` of a page is, for a device.
    pub(super) fn address(&self, page: usize, offset: u64) -> u64 {
        self.physical[page] + offset
    }

    /// Writes a number, in one access.
    pub(super) fn write<T: AtomicAccess>(&self, page: usize, offset: u64, value: T) {
        let at = page * page_size() + usize::try_from(offset).unwrap();
        self.memory.as_volatile_slice().store(value, at, Ordering::Release).unwrap();
    }
}
