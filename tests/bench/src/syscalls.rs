// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls before the first `KVM_RUN`: what a VMM does before its guest's first instruction, all threads and processes
//! together. And how often `KVM_RUN` returns, for hosts whose tracepoints cannot be used; under strace everything is slower, which
//! can change that number a little, and the order of threads.

mod strace;

use std::fs;
use std::path::PathBuf;

use clap::Args;

use crate::numbers::Spread;
use crate::vmm::Vmm;
use crate::{Common, Result, figure};
use strace::Counts;

/// Options of `measure syscalls`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// How many boots; threads that start together do not always come in the same order
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// strace, with arguments of its own if it needs any, split at blanks
    #[arg(long, default_value = "strace")]
    strace: String,
    /// Also print the calls before the first KVM_RUN, of the first boot
    #[arg(long)]
    list: bool,
    /// The command line, whose guest must power itself off
    #[arg(last = true, required = true, value_name = "VMM ARGS...")]
    command: Vec<String>,
}

pub(crate) fn measure(options: &Options) -> Result<()> {
    let name = options.common.name(0, &options.command);
    let mut all = Vec::new();
    for run in 0..options.runs {
        let log = boot(options)?;
        let counts = strace::count(&log)?;
        if run == 0 {
            print(&name, &counts);
            if options.list {
                strace::before_first_run(&log).for_each(|line| println!("    {line}"));
            }
        }
        all.push(counts);
    }
    let spread = |f: fn(&Counts) -> u64| {
        Spread::of(&all.iter().map(f).collect::<Vec<_>>()).ok_or("--runs 0 measures nothing")
    };
    let before = spread(Counts::before)?;
    let ioctls = spread(|counts| counts.named("ioctl"))?;
    let returns = spread(|counts| counts.returns)?;
    println!("    in {} boots: {before}; ioctls {ioctls}; returns from KVM_RUN {returns}", all.len());
    figure(&name, "syscalls-before-run", before.median);
    figure(&name, "ioctls-before-run", ioctls.median);
    figure(&name, "run-returns-strace", returns.median);
    Ok(())
}

fn print(name: &str, counts: &Counts) {
    println!("{name}: {} system calls before the first KVM_RUN", counts.before());
    let mut rows: Vec<_> = counts.by_name.iter().collect();
    rows.sort_by_key(|&(_, &count)| std::cmp::Reverse(count));
    let words: Vec<_> = rows.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("    {}", words.join(", "));
}

/// Boots once under strace, and returns its log.
fn boot(options: &Options) -> Result<String> {
    let file = Scratch(std::env::temp_dir().join(format!("measure-strace.{}", std::process::id())));
    let mut command: Vec<String> = options.strace.split_whitespace().map(str::to_owned).collect();
    command.extend(["-f", "-o"].map(str::to_owned));
    command.push(file.0.to_str().ok_or("the temporary directory's name is not UTF-8")?.to_owned());
    command.extend(options.command.iter().cloned());
    Vmm::start(&command)?.wait(options.common.timeout())?;
    // Guests may write what is not UTF-8, and strace shows what is written.
    let log = fs::read(&file.0).map_err(|e| format!("cannot read what strace wrote: {e}"))?;
    Ok(String::from_utf8_lossy(&log).into_owned())
}

/// A file that is removed when it is done with.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
