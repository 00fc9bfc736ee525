// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Returns from `KVM_RUN` up to the guest's power-off, counted by the kernel: each one is a `kvm_userspace_exit` event. A
//! `kvm_mmio` event of the same thread before it tells the address. The VMM runs at nearly its own speed and does not notice.
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
use trace::Exit;

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
    let mut counts = Vec::new();
    for run in 0..options.runs {
        let instance = Instance::new(&options.tracing)?;
        Vmm::start(&options.command)?.wait(options.common.timeout())?;
        let exits = trace::exits(&instance.events()?)?;
        if run == 0 {
            print(&name, &exits);
        }
        counts.push(exits.len());
    }
    let spread = Spread::of(&counts).ok_or("--runs 0 measures nothing")?;
    println!("    in {} boots: {spread}", counts.len());
    figure(&name, "run-returns", spread.median);
    Ok(())
}

fn print(name: &str, exits: &[Exit]) {
    println!("{name}: {} returns from KVM_RUN up to power-off", exits.len());
    let mut by_kind = BTreeMap::<String, u64>::new();
    for exit in exits {
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
        this.write("events/kvm/kvm_mmio/enable", "1")?;
        this.write("events/kvm/kvm_userspace_exit/enable", "1")?;
        Ok(this)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.0.join(file), text)
            .map_err(|e| format!("cannot set {file} of tracefs to {text}: {e}").into())
    }

    /// What was traced, provided that nothing was lost.
    fn events(&self) -> Result<String> {
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
