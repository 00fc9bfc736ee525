// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a VMM keeps resident beside its guest's memory.
//!
//! Every VMM maps the guest's memory into its own address space, and `/proc/PID/smaps` tells one mapping from another. The
//! guest's is the one that is writable and at least as large as the guest's memory; the rest is the VMM's. All processes of
//! the VMM count.

mod smaps;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::Duration;

use clap::Args;

use crate::vmm::Vmm;
use crate::{Common, Result, figure};
use smaps::Mapping;

/// Options of `measure memory`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// The guest's memory in MiB, by which its mapping is recognised
    #[arg(long, default_value_t = 128)]
    guest_memory: u64,
    /// Where the name of the guest's mapping contains this, that is what recognises it
    #[arg(long)]
    guest_mapping: Option<String>,
    /// What the guest says when it is up
    #[arg(long, default_value = "doorbell-guest: ready")]
    ready: String,
    /// Seconds of idleness after that
    #[arg(long, default_value_t = 5)]
    settle: u64,
    /// The command line, whose guest stays up
    #[arg(last = true, required = true, value_name = "VMM ARGS...")]
    command: Vec<String>,
}

pub(crate) fn measure(options: &Options) -> Result<()> {
    let mut vmm = Vmm::start(&options.command)?;
    vmm.wait_for(&options.ready, options.common.timeout())?;
    let name = options.common.name(0, &options.command);
    let mapping = options.guest_mapping.as_deref();
    // Twice: what booting took, and what stays of it.
    let (rss, _) = report(&format!("{name}, just up"), &look(&vmm)?, options.guest_memory << 10, mapping)?;
    figure(&name, "rss-up-kib", rss);
    thread::sleep(Duration::from_secs(options.settle));
    let idle = look(&vmm)?;
    drop(vmm);
    let what = format!("{name}, idle for {} s", options.settle);
    let (rss, pss) = report(&what, &idle, options.guest_memory << 10, mapping)?;
    let files: BTreeSet<_> = idle.iter().flatten().filter_map(Mapping::file).collect();
    let program: u64 = files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum();
    println!("    {program} bytes of program in {} file(s)", files.len());
    figure(&name, "rss-idle-kib", rss);
    figure(&name, "pss-idle-kib", pss);
    figure(&name, "program-bytes", program);
    figure(&name, "program-files", files.len());
    Ok(())
}

/// The mappings of all processes of the VMM.
fn look(vmm: &Vmm) -> Result<Vec<Vec<Mapping>>> {
    let mut processes = Vec::new();
    for pid in with_descendants(vmm.pid())? {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps"))
            .map_err(|e| format!("cannot read the mappings of process {pid}: {e}"))?;
        processes.push(smaps::parse(&text)?);
    }
    Ok(processes)
}

/// Prints where the memory of `processes` is, whose guest has `guest` KiB; returns RSS and PSS beside the guest's, in KiB.
fn report(name: &str, processes: &[Vec<Mapping>], guest: u64, mapping: Option<&str>) -> Result<(u64, u64)> {
    let mut total = Share::default();
    let mut guests = Share::default();
    let mut found = Vec::new();
    let mut by_name = BTreeMap::<(&str, &str), Share>::new();
    for mappings in processes {
        let is_guest = smaps::guest_memory(mappings, guest, mapping);
        for (m, is_guest) in mappings.iter().zip(is_guest) {
            if is_guest {
                guests.add(m);
                found.push(format!("{} KiB of {}", m.size, m.label()));
            } else {
                total.add(m);
                by_name.entry((m.label(), &m.permissions)).or_default().add(m);
            }
        }
    }
    if found.is_empty() {
        return Err(format!(
            "{name}: no mapping is as large as the guest's memory; give --guest-memory or --guest-mapping"
        )
        .into());
    }
    let mut rows: Vec<_> = by_name.into_iter().filter(|(_, share)| share.rss > 0).collect();
    rows.sort_by_key(|(_, share)| std::cmp::Reverse(share.rss));
    println!(
        "{name}: resident beside the guest's memory, KiB (guest: {}, {} resident)",
        found.join(", "),
        guests.rss
    );
    println!("    {:>8} {:>8} {:>8}  mapping", "RSS", "PSS", "private");
    for ((label, permissions), share) in rows {
        println!("    {:>8} {:>8} {:>8}  {permissions} {label}", share.rss, share.pss, share.private);
    }
    println!(
        "    {:>8} {:>8} {:>8}  in {} process(es)",
        total.rss,
        total.pss,
        total.private,
        processes.len()
    );
    Ok((total.rss, total.pss))
}

/// Sums over mappings, in KiB.
#[derive(Default)]
struct Share {
    rss: u64,
    pss: u64,
    private: u64,
}

impl Share {
    fn add(&mut self, mapping: &Mapping) {
        self.rss += mapping.rss;
        self.pss += mapping.pss;
        self.private += mapping.private;
    }
}

/// A process and all that it started, directly or not.
fn with_descendants(first: u32) -> Result<Vec<u32>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may be gone by now; then it is nobody's.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if let Some(parent) = parent(&stat) {
            parents.insert(pid, parent);
        }
    }
    let mut family = vec![first];
    let mut next = 0;
    while let Some(&pid) = family.get(next) {
        family.extend(parents.iter().filter(|&(_, &parent)| parent == pid).map(|(&pid, _)| pid));
        next += 1;
    }
    Ok(family)
}

/// The fourth field of `/proc/PID/stat`. The second is a name in parentheses that may contain anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent("81 (doorbell) S 77 81 81 0"), Some(77));
        assert_eq!(parent("81 (a) R (b) 5) S 77 81"), Some(77));
        assert_eq!(parent("nonsense"), None);
    }

    #[test]
    fn children_of_children_belong_to_the_family() {
        let mut child =
            std::process::Command::new("/bin/sh").args(["-c", "sleep 100 & wait"]).spawn().unwrap();
        // The shell's own family is what to wait for: other tests of this process have children as well.
        let mut grandchild = Vec::new();
        for _ in 0..1000 {
            grandchild = with_descendants(child.id()).unwrap();
            if grandchild.len() >= 2 {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let family = with_descendants(std::process::id()).unwrap();
        assert!(family.contains(&child.id()), "{family:?}");
        assert!(grandchild.len() == 2 && grandchild.iter().all(|pid| family.contains(pid)), "{grandchild:?}");
        for pid in grandchild.into_iter().rev() {
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        child.wait().unwrap();
    }
}
