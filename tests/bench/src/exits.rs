// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Returns from `KVM_RUN` up to the guest's power-off, counted by the kernel: each one is a `kvm_userspace_exit` event. A
//! `kvm_mmio` event of the same thread before it tells the address. The VMM runs at nearly its own speed and does not notice. The
//! same trace parts the boot into the VMM's start, the guest's run and the VMM's end.
//!
//! The events go to a tracing instance of their own, limited to this process's children, so that neither other VMs nor somebody
//! else's tracing matter.

mod trace;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::numbers::Spread;
use crate::vmm::Vmm;
use crate::{Common, Result, figure};
use trace::{Boot, Phases};

/// Options of `measure exits`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// How many boots
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Where tracefs is mounted
    #[arg(long, default_value = "/sys/kernel/tracing")]
    tracing: PathBuf,
    /// The command line, whose guest must power itself off
    #[arg(last = true, required = true, value_name = "VMM ARGS...")]
    command: Vec<String>,
}

pub(crate) fn measure(options: &Options) -> Result<()> {
    let name = options.common.name(0, &options.command);
    let mut boots = Vec::new();
    for _ in 0..options.runs {
        let instance = Instance::new(&options.tracing)?;
        Vmm::start(&options.command)?.wait(options.common.timeout())?;
        boots.push(trace::boot(&instance.text()?)?);
    }
    if let Some(first) = boots.first() {
        print(&name, first);
    }
    let nothing = "--runs 0 measures nothing";
    let returns =
        Spread::of(&boots.iter().map(|boot| boot.exits.len()).collect::<Vec<_>>()).ok_or(nothing)?;
    println!("    in {} boots: {returns}", boots.len());
    figure(&name, "run-returns", returns.median);
    let phase = |f: fn(&Phases) -> u64| {
        Spread::of(&boots.iter().map(|boot| f(&boot.phases)).collect::<Vec<_>>()).ok_or(nothing)
    };
    let phases = [("start", phase(|p| p.start)?), ("guest", phase(|p| p.guest)?), ("end", phase(|p| p.end)?)];
    for (key, spread) in phases {
        println!("    {key}: {spread} us");
        figure(&name, &format!("phase-{key}-us"), spread.median);
    }
    Ok(())
}

fn print(name: &str, boot: &Boot) {
    println!("{name}: {} returns from KVM_RUN up to power-off", boot.exits.len());
    let mut by_kind = BTreeMap::<String, u64>::new();
    for exit in &boot.exits {
        *by_kind.entry(exit.to_string()).or_default() += 1;
    }
    let mut rows: Vec<_> = by_kind.into_iter().collect();
    rows.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    for (kind, count) in rows {
        println!("    {count:>6}  {kind}");
    }
}

/// A tracing instance (`Documentation/trace/ftrace.rst`, "Instances"), removed when it is done with.
struct Instance(PathBuf);

impl Instance {
    fn new(tracing: &Path) -> Result<Self> {
        let path = tracing.join("instances").join(format!("doorbell-measure-{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| {
            format!(
                "cannot trace in {} ({e}): tracefs has to be mounted there, and this needs root",
                tracing.display()
            )
        })?;
        let this = Self(path);
        this.write("buffer_size_kb", "4096")?;
        // This thread's children and theirs, not what else runs on the host.
        this.write("options/event-fork", "1")?;
        this.write("set_event_pid", &std::process::id().to_string())?;
        for event in trace::EVENTS {
            this.write(&format!("events/{event}/enable"), "1")?;
        }
        Ok(this)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.0.join(file), text)
            .map_err(|e| format!("cannot set {file} of tracefs to {text}: {e}").into())
    }

    /// What was traced, provided that nothing was lost.
    fn text(&self) -> Result<String> {
        self.write("tracing_on", "0")?;
        for entry in fs::read_dir(self.0.join("per_cpu"))? {
            let stats = fs::read_to_string(entry?.path().join("stats"))?;
            for line in stats.lines() {
                if let Some((what @ ("overrun" | "dropped events"), lost)) = line.split_once(": ")
                    && lost.trim() != "0"
                {
                    return Err(format!("the trace is incomplete: {what} {lost}").into());
                }
            }
        }
        Ok(fs::read_to_string(self.0.join("trace"))?)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
