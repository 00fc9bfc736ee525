// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a machine is to be like: from the command line, from a TOML file, checked as far as that is possible without
//! looking at the host.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::devices::{Devices, Disk, Net, Pluggable, Vsock};
use crate::error::{Error, Result};
use crate::size::Size;
use crate::vfio_config::{Platform, Vfio};

/// The smallest memory that Linux on arm64 can be expected to unpack itself in.
const MIN_MEMORY: Size = Size(16 << 20);
/// GICv3 in KVM serves that many vCPUs at most (`VGIC_V3_MAX_CPUS`).
const MAX_CPUS: u32 = 512;
/// Each slot is a bridge on the root bus, which has room for 31 devices, and wants a share of the memory windows.
const MAX_PCI_SLOTS: u8 = 16;
/// What systemd gives a service to stop, and so most guests have.
const PATIENCE: u32 = 90;
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

/// How it is written what is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for a person.
    #[default]
    Text,
    /// A JSON object a line, with the time.
    Json,
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
    /// How many seconds a guest has that was asked to power itself off; 0: it is not asked.
    pub patience: u32,
    /// Where to write the device tree to.
    pub dump_fdt: Option<PathBuf>,
    /// How much to say.
    pub log: LogLevel,
    /// In which form.
    pub log_format: LogFormat,
    /// Where to write the counters of the run to at its end.
    pub metrics: Option<PathBuf>,
    /// Whether to end with a report on standard error.
    pub report: bool,
    /// What devices there are beyond those that every machine has.
    pub devices: Devices,
    /// Bytes that the balloon is asked for from the start: a guest that resets itself keeps what it was asked for.
    pub balloon_target: u64,
    /// Platform devices of the host's.
    pub platform: Vec<Platform>,
    /// PCI devices of the host's.
    pub vfio: Vec<Vfio>,
    /// How many PCI slots there are for devices that come and go, those included that have one from the start.
    pub pci_slots: u8,
    /// Where the machine is controlled: the path of a socket, or a name.
    pub control: Option<PathBuf>,
}

impl Config {
    /// Whether any device wants a PCI bus. Without one the guest has nothing to look for there.
    #[must_use]
    pub fn wants_pci(&self) -> bool {
        self.devices.any() || !self.vfio.is_empty() || self.pci_slots > 0
    }
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
    /// See [`Config::patience`].
    pub patience: Option<u32>,
    /// See [`Config::dump_fdt`].
    pub dump_fdt: Option<PathBuf>,
    /// See [`Config::log`].
    pub log: Option<LogLevel>,
    /// See [`Config::log_format`].
    pub log_format: Option<LogFormat>,
    /// See [`Config::metrics`].
    pub metrics: Option<PathBuf>,
    /// See [`Config::report`].
    pub report: Option<bool>,
    /// See [`Devices::disks`]. Those of the command line come after those of the file.
    #[serde(default)]
    pub disk: Vec<Disk>,
    /// See [`Devices::nets`]. Likewise.
    #[serde(default)]
    pub net: Vec<Net>,
    /// See [`Config::platform`]. Likewise.
    #[serde(default)]
    pub platform: Vec<Platform>,
    /// See [`Config::vfio`]. Likewise.
    #[serde(default)]
    pub vfio: Vec<Vfio>,
    /// See [`Config::pci_slots`].
    pub pci_slots: Option<u8>,
    /// See [`Config::control`].
    pub control: Option<PathBuf>,
    /// See [`Devices::vsock`].
    pub vsock: Option<Vsock>,
    /// See [`Devices::rng`].
    pub rng: Option<bool>,
    /// See [`Devices::balloon`].
    pub balloon: Option<bool>,
    /// See [`Devices::console`].
    pub console: Option<bool>,
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
        let own = [&mut settings.kernel, &mut settings.initrd, &mut settings.dump_fdt, &mut settings.metrics]
            .into_iter()
            .flatten();
        let sockets = settings.vsock.iter_mut().filter_map(|vsock| vsock.socket.as_mut());
        // A name is none.
        let control =
            settings.control.iter_mut().filter(|path| path.parent().is_some_and(|p| p != Path::new("")));
        for file in
            own.chain(settings.disk.iter_mut().map(|disk| &mut disk.path)).chain(sockets).chain(control)
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
            patience: self.patience.or(file.patience),
            dump_fdt: self.dump_fdt.or(file.dump_fdt),
            log: self.log.or(file.log),
            log_format: self.log_format.or(file.log_format),
            metrics: self.metrics.or(file.metrics),
            report: self.report.or(file.report),
            disk: file.disk.into_iter().chain(self.disk).collect(),
            net: file.net.into_iter().chain(self.net).collect(),
            platform: file.platform.into_iter().chain(self.platform).collect(),
            vfio: file.vfio.into_iter().chain(self.vfio).collect(),
            pci_slots: self.pci_slots.or(file.pci_slots),
            control: self.control.or(file.control),
            vsock: self.vsock.or(file.vsock),
            rng: self.rng.or(file.rng),
            balloon: self.balloon.or(file.balloon),
            console: self.console.or(file.console),
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
        let devices = Devices {
            disks: self.disk,
            nets: self.net,
            vsock: self.vsock,
            rng: self.rng.unwrap_or_default(),
            balloon: self.balloon.unwrap_or_default(),
            console: self.console.unwrap_or_default(),
        };
        let in_slots = self.vfio.iter().filter(|vfio| vfio.wants_slot()).count()
            + devices.pluggable().filter(Pluggable::wants_slot).count();
        let most = usize::from(MAX_PCI_SLOTS);
        let pci_slots = self.pci_slots.map_or(0, usize::from).max(in_slots);
        if pci_slots > most {
            return Err(Error::usage(format!("{pci_slots} PCI slots cannot be had"))
                .hint(format!("give --pci-slots at most {most}")));
        }
        let pci_slots = u8::try_from(pci_slots).unwrap_or(MAX_PCI_SLOTS);
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
            patience: self.patience.unwrap_or(PATIENCE),
            dump_fdt: self.dump_fdt,
            log: self.log.unwrap_or_default(),
            log_format: self.log_format.unwrap_or_default(),
            metrics: self.metrics,
            report: self.report.unwrap_or_default(),
            balloon_target: 0,
            platform: self.platform,
            pci_slots,
            control: self.control,
            vfio: self.vfio,
            devices,
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
            patience = 7
            pci-slots = 3
            control = "web"
            dump-fdt = "out.dtb"
            log = "debug"
            log-format = "json"
            metrics = "run.json"
            report = true
            rng = true
            balloon = true
            console = true
            [[disk]]
            path = "a.img"
            [[disk]]
            path = "b.qcow2"
            readonly = true
            [[net]]
            tap = "tap0"
            [[platform]]
            device = "9010000.pl031"
            iommu = "noiommu"
            [[vfio]]
            device = "0000:00:08.0"
            [vsock]
            cid = 3
            socket = "v.sock"
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
                patience: 7,
                balloon_target: 0,
                platform: vec!["9010000.pl031,iommu=noiommu".parse().unwrap()],
                vfio: vec!["0000:00:08.0".parse().unwrap()],
                pci_slots: 3,
                control: Some("web".into()),
                dump_fdt: Some("out.dtb".into()),
                log: LogLevel::Debug,
                log_format: LogFormat::Json,
                metrics: Some("run.json".into()),
                report: true,
                devices: Devices {
                    disks: vec!["path=a.img".parse().unwrap(), "path=b.qcow2,readonly=on".parse().unwrap()],
                    nets: vec!["tap=tap0".parse().unwrap()],
                    vsock: Some("cid=3,socket=v.sock".parse().unwrap()),
                    rng: true,
                    balloon: true,
                    console: true,
                },
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
    fn there_are_slots_for_all_that_asks_for_one() {
        let slots = |settings: Settings| settings.into_config().map(|config| config.pci_slots);
        let disk = || vec!["path=a,slot=on".parse().unwrap(), "path=b".parse().unwrap()];
        let net = || vec!["tap=a,slot=on".parse().unwrap()];
        assert_eq!(slots(Settings { disk: disk(), net: net(), ..settings() }).unwrap(), 2);
        assert_eq!(slots(Settings { disk: disk(), pci_slots: Some(5), ..settings() }).unwrap(), 5);
        let many = std::iter::repeat_with(disk).take(17).flatten().collect();
        let line = slots(Settings { disk: many, ..settings() }).unwrap_err().one_line();
        assert!(line.contains("17 PCI slots"), "{line}");
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
