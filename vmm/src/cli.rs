// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Backing, Config, Gic, LogLevel, Msi, OnReset, Settings};
use crate::error::{Error, Result};
use crate::size::Size;
use crate::status::Status;

/// Run arm64 Linux guests on KVM; interrupts go from device to guest without userspace on the way.
#[derive(Debug, Parser)]
#[command(name = "doorbell", version, disable_help_subcommand = true, after_help = Status::HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest, its serial console on standard input and output, until it powers off.
    Run(RunArgs),
}

const RUN_HELP: &str = "\
Example:
  doorbell run --kernel Image --initrd initrd.cpio.gz --cmdline 'console=ttyS0' --cpus 2 --memory 512M

The configuration file has the same names as keys: kernel, initrd, cmdline, cpus, memory, backing, hugepages, prefault,
gic, msi, on-reset, dump-fdt, log, report. What the command line says wins.

Ctrl-a x leaves the guest, Ctrl-a Ctrl-a sends Ctrl-a to it.";

/// The options of `doorbell run`.
#[derive(Debug, Default, Args)]
#[command(after_help = RUN_HELP)]
pub struct RunArgs {
    /// Kernel: an arm64 Image, may be gzip-compressed.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line [default: console=ttyS0].
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Number of vCPUs [default: 1].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpus: Option<String>,
    /// Memory, e.g. 512M or 6G [default: 512M].
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory: Option<String>,
    /// What the memory is made of [default: auto].
    #[arg(long, value_enum, value_name = "KIND")]
    pub backing: Option<Backing>,
    /// Take the memory from the host's huge pages of this size, e.g. 2M.
    #[arg(long, value_name = "SIZE")]
    pub hugepages: Option<String>,
    /// Touch all memory before the guest starts.
    #[arg(long)]
    pub prefault: bool,
    /// Interrupt controller [default: auto].
    #[arg(long, value_enum, value_name = "auto|v2|v3")]
    pub gic: Option<Gic>,
    /// Receiver of message-signalled interrupts [default: auto].
    #[arg(long, value_enum, value_name = "auto|its|v2m|none")]
    pub msi: Option<Msi>,
    /// What to do when the guest resets itself [default: restart].
    #[arg(long, value_enum, value_name = "restart|exit")]
    pub on_reset: Option<OnReset>,
    /// Read settings from a TOML file.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Write the guest's device tree to this file.
    #[arg(long, value_name = "FILE")]
    pub dump_fdt: Option<PathBuf>,
    /// How much to say on standard error [default: warn].
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub log: Option<LogLevel>,
    /// End with a report of the host, the machine and its interrupts on standard error.
    #[arg(long)]
    pub report: bool,
}

impl RunArgs {
    /// The machine that the command line and its configuration file describe.
    ///
    /// # Errors
    /// If either is wrong.
    pub fn config(self) -> Result<Config> {
        let size = |name: &str, text: Option<String>| -> Result<Option<Size>> {
            text.map(|text| text.parse().map_err(|e: String| Error::usage(format!("--{name}: {e}"))))
                .transpose()
        };
        let cpus = self.cpus.map(|text| {
            text.parse::<u32>().map_err(|_| {
                Error::usage(format!("--cpus: '{text}' is no number of vCPUs"))
                    .hint("give a whole number, e.g. 2")
            })
        });
        let given = Settings {
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline: self.cmdline,
            cpus: cpus.transpose()?,
            memory: size("memory", self.memory)?,
            backing: self.backing,
            hugepages: size("hugepages", self.hugepages)?,
            prefault: self.prefault.then_some(true),
            gic: self.gic,
            msi: self.msi,
            on_reset: self.on_reset,
            dump_fdt: self.dump_fdt,
            log: self.log,
            report: self.report.then_some(true),
        };
        match self.config {
            Some(path) => given.or(Settings::from_file(&path)?).into_config(),
            None => given.into_config(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(line: &str) -> Result<Config> {
        let words = std::iter::once("doorbell").chain(line.split_whitespace());
        let Command::Run(args) = Cli::try_parse_from(words).unwrap().command;
        args.config()
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_contract_is_kept() {
        let config = run("run --kernel k --initrd i --cmdline quiet --cpus 2 --memory 1G --gic v3 --msi its --on-reset exit \
                          --dump-fdt f --log debug")
        .unwrap();
        assert_eq!((config.cpus, config.memory, config.gic), (2, Size(1 << 30), Gic::V3));
        assert_eq!((config.msi, config.on_reset, config.log), (Msi::Its, OnReset::Exit, LogLevel::Debug));
    }

    #[test]
    fn wrong_numbers_are_one_line() {
        for (line, word) in [
            ("run --kernel k --cpus 0", "--cpus"),
            ("run --kernel k --cpus -1", "--cpus"),
            ("run --kernel k --cpus many", "--cpus"),
            ("run --kernel k --memory 1.5G", "--memory"),
            ("run --kernel k --memory -1", "--memory"),
            ("run --kernel k --config /nonexistent.toml", "/nonexistent.toml"),
            ("run", "--kernel"),
        ] {
            let text = run(line).unwrap_err().one_line();
            assert!(text.contains(word), "{line}: {text}");
        }
    }
}
