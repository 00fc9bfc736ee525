// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a machine is to be like: from the command line, from a TOML file, checked as far as that is possible without
//! looking at the host.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::size::Size;

/// The smallest memory that Linux on arm64 can be expected to unpack itself in.
const MIN_MEMORY: Size = Size(16 << 20);
/// GICv3 in KVM serves that many vCPUs at most (`VGIC_V3_MAX_CPUS`).
const MAX_CPUS: u32 = 512;
/// `COMMAND_LINE_SIZE` of arm64 is 2048, terminating zero included.
pub const MAX_CMDLINE: usize = 2047;

/// Which GIC the guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Gic {
    /// GICv3 where the host can, else GICv2.
    #[default]
    Auto,
    /// GICv2 or an error.
    V2,
    /// GICv3 or an error.
    V3,
}

/// What takes the guest's message-signalled interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Msi {
    /// An ITS with a GICv3, a v2m frame with a GICv2.
    #[default]
    Auto,
    /// An ITS or an error.
    Its,
    /// A GICv2m frame or an error.
    V2m,
    /// Nothing.
    None,
}

/// What to do when the guest resets itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnReset {
    /// Start it again.
    #[default]
    Restart,
    /// End with exit status 4.
    Exit,
}

/// What the guest's memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// A memfd where the host backs shared memory with huge pages, anonymous memory where it does not.
    #[default]
    Auto,
    /// A memfd: other processes can be handed the memory.
    Memfd,
    /// Anonymous private memory, which the host backs with transparent huge pages where it has them.
    Anonymous,
}

/// How much is said on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing but the last error.
    Off,
    /// What failed.
    Error,
    /// … and what looks wrong.
    #[default]
    Warn,
    /// … and what was chosen.
    Info,
    /// … and every step.
    Debug,
    /// … and every access to a device.
    Trace,
}

/// A machine, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The kernel: an arm64 Image, gzip-compressed or not.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// How many vCPUs.
    pub cpus: u32,
    /// How many bytes of memory.
    pub memory: Size,
    /// What the memory is made of.
    pub backing: Backing,
    /// The size of the huge pages to take the memory from, if any.
    pub hugepages: Option<Size>,
    /// Whether all memory is touched before the guest starts.
    pub prefault: bool,
    /// Which GIC.
    pub gic: Gic,
    /// Which MSI receiver.
    pub msi: Msi,
    /// What a guest's reset does.
    pub on_reset: OnReset,
    /// Where to write the device tree to.
    pub dump_fdt: Option<PathBuf>,
    /// How much to say.
    pub log: LogLevel,
    /// Whether to end with a report on standard error.
    pub report: bool,
}

/// The TOML file, and equally what the command line gave: nothing is required yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// See [`Config::kernel`].
    pub kernel: Option<PathBuf>,
    /// See [`Config::initrd`].
    pub initrd: Option<PathBuf>,
    /// See [`Config::cmdline`].
    pub cmdline: Option<String>,
    /// See [`Config::cpus`].
    pub cpus: Option<u32>,
    /// See [`Config::memory`].
    pub memory: Option<Size>,
    /// See [`Config::backing`].
    pub backing: Option<Backing>,
    /// See [`Config::hugepages`].
    pub hugepages: Option<Size>,
    /// See [`Config::prefault`].
    pub prefault: Option<bool>,
    /// See [`Config::gic`].
    pub gic: Option<Gic>,
    /// See [`Config::msi`].
    pub msi: Option<Msi>,
    /// See [`Config::on_reset`].
    pub on_reset: Option<OnReset>,
    /// See [`Config::dump_fdt`].
    pub dump_fdt: Option<PathBuf>,
    /// See [`Config::log`].
    pub log: Option<LogLevel>,
    /// See [`Config::report`].
    pub report: Option<bool>,
}

impl Settings {
    /// Reads a TOML file. Paths in it are relative to the directory the file is in.
    ///
    /// # Errors
    /// If it cannot be read, is no TOML, or has unknown keys or values of the wrong type; with the line.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|e| {
            Error::usage(format!("cannot read the configuration {}", path.display()))
                .because(e)
                .hint("check --config")
        })?;
        let mut settings = Self::from_toml(&text).map_err(|message| {
            Error::usage(format!("{}:{message}", path.display())).hint("`doorbell run --help` lists the keys")
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        for file in [&mut settings.kernel, &mut settings.initrd, &mut settings.dump_fdt].into_iter().flatten()
        {
            *file = base.join(&*file);
        }
        Ok(settings)
    }

    /// Reads TOML text.
    ///
    /// # Errors
    /// `LINE: what is wrong`.
    pub fn from_toml(text: &str) -> std::result::Result<Self, String> {
        toml::from_str(text).map_err(|e| {
            let offset = e.span().map_or(0, |span| span.start).min(text.len());
            let line =
                text.as_bytes().get(..offset).unwrap_or_default().iter().filter(|&&b| b == b'\n').count() + 1;
            format!("{line}: {}", e.message())
        })
    }

    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            kernel: self.kernel.or(file.kernel),
            initrd: self.initrd.or(file.initrd),
            cmdline: self.cmdline.or(file.cmdline),
            cpus: self.cpus.or(file.cpus),
            memory: self.memory.or(file.memory),
            backing: self.backing.or(file.backing),
            hugepages: self.hugepages.or(file.hugepages),
            prefault: self.prefault.or(file.prefault),
            gic: self.gic.or(file.gic),
            msi: self.msi.or(file.msi),
            on_reset: self.on_reset.or(file.on_reset),
            dump_fdt: self.dump_fdt.or(file.dump_fdt),
            log: self.log.or(file.log),
            report: self.report.or(file.report),
        }
    }

    /// The machine that these settings describe.
    ///
    /// # Errors
    /// If something required is missing or a value is out of any host's range.
    pub fn into_config(self) -> Result<Config> {
        let kernel =
            self.kernel.ok_or_else(|| Error::usage("no kernel given").hint("name one with --kernel FILE"))?;
        let cpus = self.cpus.unwrap_or(1);
        if cpus == 0 || cpus > MAX_CPUS {
            return Err(Error::usage(format!("{cpus} vCPUs cannot be had"))
                .hint(format!("give --cpus a number from 1 to {MAX_CPUS} (8 with a GICv2)")));
        }
        let memory = self.memory.unwrap_or(Size(512 << 20));
        if memory < MIN_MEMORY {
            return Err(Error::usage(format!("{memory} of memory is too little for a Linux guest"))
                .hint(format!("give --memory at least {MIN_MEMORY}")));
        }
        let granule = self.hugepages.unwrap_or(Size(2 << 20));
        if !granule.0.is_power_of_two() || granule.0 < 4096 {
            return Err(Error::usage(format!("{granule} is no size of huge pages"))
                .hint("see /sys/kernel/mm/hugepages for this host's sizes, e.g. 2M"));
        }
        if !memory.0.is_multiple_of(granule.0) {
            return Err(Error::usage(format!("{memory} of memory is no multiple of {granule}"))
                .hint(format!("round --memory to a multiple of {granule}")));
        }
        let cmdline = self.cmdline.unwrap_or_else(|| "console=ttyS0".to_owned());
        if cmdline.len() > MAX_CMDLINE {
            return Err(Error::usage(format!("the kernel command line has {} bytes", cmdline.len()))
                .hint(format!("an arm64 kernel takes {MAX_CMDLINE}: shorten --cmdline")));
        }
        if cmdline.contains('\0') || !cmdline.is_ascii() {
            return Err(Error::usage("the kernel command line has characters other than ASCII")
                .hint("write --cmdline in plain ASCII"));
        }
        Ok(Config {
            kernel,
            initrd: self.initrd,
            cmdline,
            cpus,
            memory,
            backing: self.backing.unwrap_or_default(),
            hugepages: self.hugepages,
            prefault: self.prefault.unwrap_or_default(),
            gic: self.gic.unwrap_or_default(),
            msi: self.msi.unwrap_or_default(),
            on_reset: self.on_reset.unwrap_or_default(),
            dump_fdt: self.dump_fdt,
            log: self.log.unwrap_or_default(),
            report: self.report.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings { kernel: Some("Image".into()), ..Settings::default() }
    }

    #[test]
    fn every_key_of_the_file_is_understood() {
        let text = r#"
            kernel = "Image"
            initrd = "initrd.gz"
            cmdline = "quiet"
            cpus = 4
            memory = "1G"
            backing = "anonymous"
            hugepages = "2M"
            prefault = true
            gic = "v3"
            msi = "its"
            on-reset = "exit"
            dump-fdt = "out.dtb"
            log = "debug"
            report = true
        "#;
        let config = Settings::from_toml(text).unwrap().into_config().unwrap();
        assert_eq!(
            config,
            Config {
                kernel: "Image".into(),
                initrd: Some("initrd.gz".into()),
                cmdline: "quiet".into(),
                cpus: 4,
                memory: Size(1 << 30),
                backing: Backing::Anonymous,
                hugepages: Some(Size(2 << 20)),
                prefault: true,
                gic: Gic::V3,
                msi: Msi::Its,
                on_reset: OnReset::Exit,
                dump_fdt: Some("out.dtb".into()),
                log: LogLevel::Debug,
                report: true,
            }
        );
    }

    #[test]
    fn errors_in_the_file_name_their_line() {
        for (text, line, word) in [
            ("kernel = \"a\"\nkernle = \"b\"\n", "2:", "kernle"),
            ("\n\ncpus = \"four\"\n", "3:", "four"),
            ("cpus = -1", "1:", "-1"),
            ("memory = \"lots\"", "1:", "lots"),
            ("gic = \"v4\"", "1:", "v4"),
            ("kernel = ", "1:", ""),
        ] {
            let error = Settings::from_toml(text).unwrap_err();
            assert!(error.starts_with(line) && error.contains(word), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = Settings { cpus: Some(2), memory: Some(Size(1 << 30)), ..settings() };
        let merged = Settings { cpus: Some(3), ..Settings::default() }.or(file);
        assert_eq!((merged.cpus, merged.memory), (Some(3), Some(Size(1 << 30))));
    }

    #[test]
    fn values_out_of_any_hosts_range_are_refused_with_what_to_do() {
        let cases = [
            (Settings { kernel: None, ..settings() }, "--kernel"),
            (Settings { cpus: Some(0), ..settings() }, "--cpus"),
            (Settings { cpus: Some(513), ..settings() }, "--cpus"),
            (Settings { memory: Some(Size(0)), ..settings() }, "--memory"),
            (Settings { memory: Some(Size(1 << 20)), ..settings() }, "--memory"),
            (Settings { memory: Some(Size((512 << 20) + 4096)), ..settings() }, "--memory"),
            (Settings { hugepages: Some(Size(3 << 20)), ..settings() }, "hugepages"),
            (Settings { cmdline: Some("x".repeat(MAX_CMDLINE + 1)), ..settings() }, "--cmdline"),
            (Settings { cmdline: Some("ü".into()), ..settings() }, "--cmdline"),
        ];
        for (settings, word) in cases {
            let line = settings.clone().into_config().unwrap_err().one_line();
            assert!(line.contains(word), "{settings:?} gave {line:?}");
        }
        assert!(Settings { cpus: Some(512), ..settings() }.into_config().is_ok());
        assert!(Settings { cmdline: Some("x".repeat(MAX_CMDLINE)), ..settings() }.into_config().is_ok());
    }
}
