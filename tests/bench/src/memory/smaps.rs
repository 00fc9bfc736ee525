// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/proc/PID/smaps` (`Documentation/filesystems/proc.rst`), as far as it is needed.

use crate::Result;

/// One mapping. Sizes are in KiB, as the kernel prints them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Mapping {
    start: u64,
    end: u64,
    pub(super) permissions: String,
    inode: u64,
    name: String,
    pub(super) size: u64,
    pub(super) rss: u64,
    pub(super) pss: u64,
    /// What only this process has: clean or dirty.
    pub(super) private: u64,
}

impl Mapping {
    /// Its name, or what it is when it has none.
    pub(super) fn label(&self) -> &str {
        if self.name.is_empty() { "(anonymous)" } else { &self.name }
    }

    /// The file on disk behind it.
    pub(super) fn file(&self) -> Option<&str> {
        let on_disk = self.inode != 0 && self.name.starts_with('/') && !self.name.ends_with(" (deleted)");
        (on_disk && !self.name.starts_with("/dev/")).then_some(self.name.as_str())
    }

    fn belongs_with(&self, next: &Self) -> bool {
        self.end == next.start && self.name == next.name && self.inode == next.inode && next.writable()
    }

    fn writable(&self) -> bool {
        self.permissions.starts_with("rw")
    }
}

pub(super) fn parse(text: &str) -> Result<Vec<Mapping>> {
    let mut mappings = Vec::<Mapping>::new();
    for line in text.lines() {
        if let Some(mapping) = header(line) {
            mappings.push(mapping);
            continue;
        }
        let (Some(mapping), Some((key, value))) = (mappings.last_mut(), line.split_once(':')) else {
            return Err(format!("not a line of smaps: {line:?}").into());
        };
        let kib = || value.trim().strip_suffix(" kB").and_then(|number| number.parse::<u64>().ok());
        let bad = || format!("not a line of smaps: {line:?}");
        match key {
            "Size" => mapping.size = kib().ok_or_else(bad)?,
            "Rss" => mapping.rss = kib().ok_or_else(bad)?,
            "Pss" => mapping.pss = kib().ok_or_else(bad)?,
            "Private_Clean" | "Private_Dirty" => mapping.private += kib().ok_or_else(bad)?,
            _ => {}
        }
    }
    Ok(mappings)
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE NAME`, the name optional and with blanks in it.
fn header(line: &str) -> Option<Mapping> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut fields = rest.splitn(5, ' ');
    let permissions = fields.next()?.to_owned();
    let (_offset, _device) = (fields.next()?, fields.next()?);
    let inode = fields.next()?.parse().ok()?;
    let name = fields.next().unwrap_or_default().trim().to_owned();
    Some(Mapping { start: hex(start)?, end: hex(end)?, permissions, inode, name, ..Mapping::default() })
}

/// Which of `mappings` are the memory of a guest that has `guest` KiB: those whose name contains `named`; without that, runs of
/// adjoining writable mappings of one thing that are together at least that large. (The kernel splits a mapping where advice
/// differs. What is reserved but not accessible, like a heap's room to grow, is not writable.)
pub(super) fn guest_memory(mappings: &[Mapping], guest: u64, named: Option<&str>) -> Vec<bool> {
    if let Some(named) = named {
        return mappings.iter().map(|m| m.name.contains(named)).collect();
    }
    mappings
        .chunk_by(Mapping::belongs_with)
        .flat_map(|run| {
            let size: u64 = run.iter().map(|m| m.size).sum();
            let is_guest = size >= guest && run.iter().all(Mapping::writable);
            std::iter::repeat_n(is_guest, run.len())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shortened from a real one: the program, the heap, a stack with its guard, an allocator's arena, guest memory in two
    /// parts, a vCPU's page.
    const SMAPS: &str = "\
00400000-0058d000 r-xp 00000000 00:1b 12                                 /tmp/the bin/doorbell
Size:               1588 kB
Rss:                 512 kB
Pss:                 256 kB
Shared_Clean:        512 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
THPeligible:           0
VmFlags: rd ex mr mw me
02be9000-02c0b000 rw-p 00000000 00:00 0                                  [heap]
Size:                136 kB
Rss:                 100 kB
Pss:                 100 kB
Private_Clean:         4 kB
Private_Dirty:        96 kB
ffff70000000-ffff70021000 rw-p 00000000 00:00 0
Size:                132 kB
Rss:                   8 kB
Pss:                   8 kB
ffff70021000-ffff74000000 ---p 00000000 00:00 0
Size:              65404 kB
Rss:                   0 kB
ffff74000000-ffff78000000 ---p 00000000 00:00 0
Size:              65536 kB
Rss:                   0 kB
ffff7dc00000-ffff81c00000 rw-p 00000000 00:00 0
Size:              65536 kB
Rss:               30000 kB
Pss:               30000 kB
ffff81c00000-ffff85c00000 rw-p 00000000 00:00 0
Size:              65536 kB
Rss:                2048 kB
Pss:                2048 kB
ffff85dc6000-ffff85dc8000 rw-s 00000000 00:0f 1057                       anon_inode:kvm-vcpu:0
Size:                  8 kB
Rss:                   8 kB
Pss:                   8 kB
";

    #[test]
    fn every_mapping_is_read_with_its_sizes() {
        let mappings = parse(SMAPS).unwrap();
        let seen: Vec<_> = mappings.iter().map(|m| (m.label(), m.size, m.rss, m.pss, m.private)).collect();
        assert_eq!(
            seen,
            [
                ("/tmp/the bin/doorbell", 1588, 512, 256, 0),
                ("[heap]", 136, 100, 100, 100),
                ("(anonymous)", 132, 8, 8, 0),
                ("(anonymous)", 65404, 0, 0, 0),
                ("(anonymous)", 65536, 0, 0, 0),
                ("(anonymous)", 65536, 30000, 30000, 0),
                ("(anonymous)", 65536, 2048, 2048, 0),
                ("anon_inode:kvm-vcpu:0", 8, 8, 8, 0),
            ]
        );
        let files: Vec<_> = mappings.iter().filter_map(Mapping::file).collect();
        assert_eq!(files, ["/tmp/the bin/doorbell"]);
    }

    #[test]
    fn guest_memory_may_be_in_parts_and_reservations_are_not_it() {
        let mappings = parse(SMAPS).unwrap();
        let guest = guest_memory(&mappings, 128 << 10, None);
        assert_eq!(guest, [false, false, false, false, false, true, true, false]);
        assert!(!guest_memory(&mappings, 256 << 10, None).contains(&true));
    }

    #[test]
    fn a_named_mapping_is_guest_memory_whatever_its_size() {
        let mappings = parse(SMAPS).unwrap();
        let guest = guest_memory(&mappings, 128 << 10, Some("kvm-vcpu"));
        assert_eq!(guest.iter().filter(|&&is| is).count(), 1);
        assert_eq!(guest.last(), Some(&true));
    }

    #[test]
    fn what_is_not_smaps_is_refused() {
        for text in ["nonsense", "Rss: 4 kB", "00400000-0058d000 r-xp 00000000 00:1b 12 /x\nRss: many kB"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn our_own_mappings_can_be_read() {
        let mappings = parse(&std::fs::read_to_string("/proc/self/smaps").unwrap()).unwrap();
        assert!(mappings.iter().any(|m| m.label() == "[stack]" && m.rss > 0));
    }
}
