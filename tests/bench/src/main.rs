// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `measure`: what a VMM costs, seen from outside, so that any VMM's command line can be given.
//!
//! Four measurements, each of one or more boots of a guest: how long from starting the VMM to its end ([`time`]), what it
//! keeps resident beside the guest's memory ([`memory`]), which system calls it makes before the guest's first instruction
//! ([`syscalls`]), and how often the guest comes back to it ([`exits`]). `docs/BENCHMARKS.md` says what each counts.
//!
//! Besides what is for people, each prints lines `figure: NAME KEY VALUE`, from which tables are made.

mod exits;
mod memory;
mod numbers;
mod syscalls;
mod time;
mod vmm;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Whatever went wrong, as text; the sources are in it.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
#[command(name = "measure", about = "Measures what a VMM costs; see docs/BENCHMARKS.md")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Wall-clock time from exec to the VMM's end, of one VMM or of several in turn
    Time(time::Options),
    /// Resident memory beside the guest's own, once the guest says that it is up
    Memory(memory::Options),
    /// System calls before the first KVM_RUN, and what KVM_RUN returned, by strace
    Syscalls(syscalls::Options),
    /// Returns from KVM_RUN up to power-off, by reason and address, by the kernel's tracepoints (root)
    Exits(exits::Options),
}

/// What the measurements have in common.
#[derive(Args, Clone)]
struct Common {
    /// What to call it in the figures; by default the program's file name. `time` takes one for each VMM, in order
    #[arg(long)]
    name: Vec<String>,
    /// Seconds after which a boot has failed
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

impl Common {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    fn name(&self, index: usize, command: &[String]) -> String {
        let program = command.first().map_or("", |program| program.rsplit('/').next().unwrap_or(program));
        self.name.get(index).map_or_else(|| program.to_owned(), Clone::clone)
    }
}

fn figure(name: &str, key: &str, value: impl std::fmt::Display) {
    println!("figure: {name} {key} {value}");
}

fn main() -> ExitCode {
    let result = match Cli::parse().what {
        What::Time(options) => time::measure(&options),
        What::Memory(options) => memory::measure(&options),
        What::Syscalls(options) => syscalls::measure(&options),
        What::Exits(options) => exits::measure(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("measure: {e}");
            ExitCode::FAILURE
        }
    }
}
