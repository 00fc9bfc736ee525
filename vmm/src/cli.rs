// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

// What clap shows as help comes from the comments here, and square brackets there mean what may be left out.
#![allow(rustdoc::broken_intra_doc_links, reason = "they are no links")]

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};

use crate::config::{Backing, Config, Gic, LogFormat, LogLevel, Msi, OnReset, Settings};
use crate::error::{Error, Result};
use crate::size::Size;
use crate::status::Status;

/// Run arm64 Linux guests on KVM; interrupts go from device to guest without userspace on the way.
#[derive(Debug, Parser)]
#[command(name = "doorbell", version, disable_help_subcommand = true, after_help = HELP.to_owned() + Status::HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const HELP: &str = "\
Example:
  doorbell doctor
  doorbell run --kernel Image --initrd initrd.cpio.gz --cmdline 'console=ttyS0'

";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest, its serial console on standard input and output, until it powers off.
    Run(Box<RunArgs>),
    /// Look at the host's devices, give them to VFIO, and take them back.
    #[command(subcommand, after_help = VFIO_HELP)]
    Vfio(VfioCommand),
    /// Look at the host: what a guest needs of it, what is there, what is missing, and what to type.
    #[command(after_help = DOCTOR_HELP)]
    Doctor {
        /// For programs: one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// List the machines that run with --control NAME.
    #[command(after_help = PS_HELP)]
    Ps {
        /// For programs: one JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Something with a guest that runs.
    #[command(flatten)]
    Vm(VmCommand),
    /// List, add, remove devices of a guest that runs.
    #[command(subcommand, after_help = DEVICE_HELP)]
    Device(DeviceCommand),
    /// Look at every interrupt of a guest that runs, and find out why one does not arrive.
    #[command(subcommand, after_help = IRQ_HELP)]
    Irq(IrqCommand),
}

const PS_HELP: &str = "\
Example:
  doorbell run --kernel Image --control web &
  doorbell ps
  doorbell ps --json | jq -r '.[].name'

Machines whose control socket is somewhere else have no name, and are not listed.";

/// What to do with a guest that runs.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Hold all vCPUs of a guest still. The guest's clock stands still with them.
    #[command(after_help = "Example:\n  doorbell pause web\n  doorbell pause /run/web/control.sock")]
    Pause {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
    },
    /// Let a guest go on.
    #[command(after_help = "Example:\n  doorbell resume web")]
    Resume {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
    },
    /// Press a guest's power button: it powers itself off, or is ended when its --patience has run out.
    #[command(after_help = "Example:\n  doorbell shutdown web")]
    Shutdown {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
    },
    /// Ask a guest to give memory back to the host, or show how much it has given. It needs a --balloon.
    #[command(after_help = BALLOON_HELP)]
    Balloon {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
        /// How much the guest is to give back in all, e.g. 512M; 0: it may have all of it. Without it the balloon is shown.
        size: Option<Size>,
        /// For programs: one JSON object.
        #[arg(long, conflicts_with = "size")]
        json: bool,
    },
    /// End a guest at once, as if its power failed.
    #[command(after_help = "Example:\n  doorbell kill web")]
    Kill {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
    },
}

const BALLOON_HELP: &str = "\
Example:
  doorbell run --kernel Image --memory 1G --balloon --control web &
  doorbell balloon web 512M
  doorbell balloon web
  doorbell balloon web --json | jq .actual
  doorbell balloon web 0

TARGET is what the guest is asked to give back of its MEMORY, ACTUAL what it has given back by now. FREE and AVAILABLE are what the guest says that it has left; a dash
where its driver does not say. It gives back what it can, and takes memory out of the balloon again before it kills a program of its own for want of memory.";

const DEVICE_HELP: &str = "\
Example:
  doorbell run --kernel Image --control web --pci-slots 2 &
  doorbell device add web 0000:00:08.0
  doorbell device add web --disk path=data.img
  doorbell device list web
  doorbell device remove web 0000:00:08.0
  doorbell device remove web disk-0";

/// What to do with a running guest's devices.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Show the devices on a guest's PCI bus.
    #[command(after_help = "Example:\n  doorbell device list web")]
    List {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
        /// For programs: one JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Put a device into a free slot of a guest's, and say what it is called: a PCI device of the host's, a disk or a network interface.
    #[command(after_help = DEVICE_ADD_HELP)]
    Add {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
        /// A PCI device of the host's, as for `doorbell run --vfio`.
        #[arg(required_unless_present_any = ["disk", "net"], conflicts_with_all = ["disk", "net"])]
        device: Option<String>,
        /// A disk, as for `doorbell run --disk`.
        #[arg(long, value_name = "path=FILE,...", conflicts_with = "net")]
        disk: Option<String>,
        /// A network interface, as for `doorbell run --net`.
        #[arg(long, value_name = "tap=NAME,...")]
        net: Option<String>,
    },
    /// Ask a guest to release a device, and wait until it has. The host has it then.
    #[command(
        after_help = "Example:\n  doorbell device remove web 0000:00:08.0\n  doorbell device remove web disk-1"
    )]
    Remove {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
        /// The device's name; a blank in it may be written as '-'.
        name: String,
        /// How many seconds to wait. Linux takes some seven.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u32,
    },
}

const DEVICE_ADD_HELP: &str = "\
Example:
  doorbell device add web 0000:00:08.0,iommu=legacy,id=gpu
  doorbell device add web --disk path=data.img,serial=data
  doorbell device add web --net tap=tap1,id=uplink
  doorbell device remove web uplink

Devices have the names that id=NAME gives them; else the host's devices have their addresses, disks are 'disk 0' and so on, networks 'net tap0'.";

const IRQ_HELP: &str = "\
Example:
  doorbell run --kernel Image --disk path=debian.img --control web &
  doorbell irq list web
  doorbell irq watch web
  doorbell irq explain web disk-0:1

An interrupt is called by its device and a number: 'serial', 'disk-0:1' for a vector, 'disk-0:intx' for a line.";

/// What to look at.
#[derive(Debug, Subcommand)]
pub enum IrqCommand {
    /// Show all interrupts: where each leads, who masks it, how often it fired.
    #[command(after_help = IRQ_LIST_HELP)]
    List {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
        /// Vectors that nobody has made use of, too.
        #[arg(long)]
        all: bool,
        /// For programs: one JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Show all there is to know of one interrupt.
    #[command(
        after_help = "Example:\n  doorbell irq show web serial\n  doorbell irq show web 0000:00:08.0:3 --json"
    )]
    Show {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
        /// The interrupt, as `doorbell irq list` calls it.
        line: String,
        /// For programs: one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Watch interrupts and their rates, until Ctrl-C or the guest's end.
    #[command(after_help = IRQ_WATCH_HELP)]
    Watch {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
        /// Only those whose name begins so.
        lines: Vec<String>,
        /// Vectors that nobody has made use of, too.
        #[arg(long)]
        all: bool,
        /// Seconds between two looks.
        #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
        every: u32,
        /// End after so many looks.
        #[arg(long, value_name = "N")]
        count: Option<u32>,
    },
    /// Walk an interrupt's way, and stop at the first thing that is wrong, with what to do.
    #[command(after_help = IRQ_EXPLAIN_HELP)]
    Explain {
        /// The machine: what its --control says, a name or the path of a socket.
        vm: PathBuf,
        /// The interrupt, as `doorbell irq list` calls it.
        line: String,
        /// For programs: one JSON object.
        #[arg(long)]
        json: bool,
    },
}

const IRQ_LIST_HELP: &str = "\
Example:
  doorbell irq list web
  doorbell irq list web --json | jq -r '.[] | select(.pending) | .line'

Two rows an interrupt. FIRED is how often the device has signalled: a star says that it is the host's count, from its /proc/interrupts, since such a device's
signals do not pass through this program. DELIVERED is how often that went on to the guest's interrupt controller, RESAMPLED how often the guest ended a level interrupt
and its device was looked at again. LAST is when a count was last seen to have changed, by whoever looked.";

const IRQ_WATCH_HELP: &str = "\
Example:
  doorbell irq watch web
  doorbell irq watch web disk-0 net-tap0 --every 5
  doorbell irq watch web --count 10 | tee irqs.txt

P is '!' while a signal waits. EOI counts the ends of level interrupts that this program has seen. On a terminal the view is redrawn; elsewhere rows are appended.";

const IRQ_EXPLAIN_HELP: &str = "\
Example:
  doorbell irq explain web disk-0:1
  doorbell irq explain web serial --json | jq -r .verdict

The guest is held still for a moment, since the kernel shows the registers of its interrupt controller only then. What the kernel has in debugfs is looked at
where it is mounted and may be read (as root).";

const DOCTOR_HELP: &str = "\
Example:
  doorbell doctor
  doorbell doctor --json | jq '.rows[] | select(.state == \"missing\")'

Each row is 'ok', 'missing', or a 'note'; '->' is what to do. The exit status is 0 if a guest can run here, else 3.";

const VFIO_HELP: &str = "\
Example:
  doorbell vfio list
  doorbell vfio bind 0000:00:08.0
  doorbell run --kernel Image --vfio 0000:00:08.0
  doorbell vfio unbind 0000:00:08.0";

/// What to do with the host's devices.
#[derive(Debug, Subcommand)]
pub enum VfioCommand {
    /// Show the host's PCI devices: which can be passed through, and what stands in the way of the others.
    #[command(after_help = "Example:\n  doorbell vfio list")]
    List,
    /// Give devices to VFIO: a PCI address, or the name of a platform device.
    #[command(after_help = "Example:\n  doorbell vfio bind 0000:00:08.0\n  doorbell vfio bind 9010000.pl031")]
    Bind {
        /// Which.
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<String>,
    },
    /// Give devices back to the host's own drivers.
    #[command(after_help = "Example:\n  doorbell vfio unbind 0000:00:08.0")]
    Unbind {
        /// Which.
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<String>,
    },
}

const RUN_HELP: &str = "\
Example:
  doorbell run --kernel Image --initrd initrd.cpio.gz --cmdline 'console=ttyS0' --cpus 2 --memory 512M
  doorbell run --kernel Image --cmdline 'console=ttyS0 root=/dev/vda' --disk path=debian.img --net tap=tap0 --rng

The configuration file has the same names as keys: kernel, initrd, cmdline, cpus, memory, backing, hugepages, prefault,
gic, msi, on-reset, patience, dump-fdt, log, log-format, metrics, report, pci-slots, control, rng, balloon, console; [[disk]], [[net]], [[vfio]], [[platform]] and [vsock] are tables with the options' own
keys. What the command line says wins; disks and networks of the file come first. A comma in a value is written twice: path=a,,b.img.

SIGTERM presses the guest's power button, if the guest has a driver for it; a second SIGTERM, or another signal, ends it at once.

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
    /// Seconds that the guest has to power itself off when SIGTERM asks for it; 0: it is ended at once [default: 90].
    #[arg(long, value_name = "SECONDS")]
    pub patience: Option<u32>,
    /// Read settings from a TOML file.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Write the guest's device tree to this file.
    #[arg(long, value_name = "FILE")]
    pub dump_fdt: Option<PathBuf>,
    /// How much to say on standard error [default: warn].
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub log: Option<LogLevel>,
    /// How to say it [default: text].
    #[arg(long, value_enum, value_name = "text|json")]
    pub log_format: Option<LogFormat>,
    /// Write the run's counters and histograms to this file at its end, as JSON.
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// A disk: path=FILE[,format=raw|qcow2][,readonly=on][,direct=on][,queues=N][,serial=TEXT][,id=NAME][,slot=on]. May be repeated.
    #[arg(long, value_name = "path=FILE,...")]
    pub disk: Vec<String>,
    /// A network interface: tap=NAME[,mac=ADDRESS][,queues=N][,vhost=auto|on|off][,id=NAME][,slot=on]. May be repeated.
    #[arg(long, value_name = "tap=NAME,...")]
    pub net: Vec<String>,
    /// A PCI device of the host's that is bound to VFIO: ADDRESS[,iommu=auto|legacy|iommufd|noiommu][,resample=kernel|loop]
    /// [,id=NAME][,on-event=report|stop|unplug][,slot=on]. May be repeated.
    #[arg(long, value_name = "ADDRESS,...")]
    pub vfio: Vec<String>,
    /// A platform device of the host's that is bound to VFIO: NAME[,iommu=auto|legacy|iommufd|noiommu][,resample=kernel|loop]
    /// [,overlay=FILE.dtbo]. May be repeated.
    #[arg(long, value_name = "NAME,...")]
    pub platform: Vec<String>,
    /// How many PCI slots there are for devices that come and go while the guest runs (`doorbell device add`) [default: as many as
    /// ask for one with slot=on].
    #[arg(long, value_name = "N")]
    pub pci_slots: Option<u8>,
    /// Where the machine is controlled while it runs: a name for `doorbell ps`, or the path of a socket.
    #[arg(long, value_name = "NAME|PATH")]
    pub control: Option<PathBuf>,
    /// Sockets between guest and host: cid=N[,socket=PATH][,vhost=auto|on|off]. Through a Unix socket, or without one through the host's kernel.
    #[arg(long, value_name = "cid=N,...")]
    pub vsock: Option<String>,
    /// Entropy from the host.
    #[arg(long)]
    pub rng: bool,
    /// A balloon, by which the guest gives memory back.
    #[arg(long)]
    pub balloon: bool,
    /// A virtio console (console=hvc0) on standard input and output in place of the serial port.
    #[arg(long)]
    pub console: bool,
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
            patience: self.patience,
            dump_fdt: self.dump_fdt,
            log: self.log,
            log_format: self.log_format,
            metrics: self.metrics,
            report: self.report.then_some(true),
            disk: devices("disk", self.disk)?,
            net: devices("net", self.net)?,
            vfio: devices("vfio", self.vfio)?,
            platform: devices("platform", self.platform)?,
            pci_slots: self.pci_slots,
            control: self.control,
            vsock: devices("vsock", self.vsock)?.pop(),
            rng: self.rng.then_some(true),
            balloon: self.balloon.then_some(true),
            console: self.console.then_some(true),
        };
        match self.config {
            Some(path) => given.or(Settings::from_file(&path)?).into_config(),
            None => given.into_config(),
        }
    }
}

/// The devices that the option `name` describes, each time it is given.
fn devices<T: FromStr<Err = String>>(name: &str, texts: impl IntoIterator<Item = String>) -> Result<Vec<T>> {
    let parse = |text: String| text.parse().map_err(|e| Error::usage(format!("--{name} {text}: {e}")));
    texts.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(line: &str) -> Result<Config> {
        let words = std::iter::once("doorbell").chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => args.config(),
            _ => panic!("{line}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Calls `look` with each command and its words, the program's own included.
    fn each(command: &clap::Command, words: &str, look: &mut impl FnMut(&clap::Command, &str)) {
        look(command, words);
        for subcommand in command.get_subcommands() {
            each(subcommand, &format!("{words} {}", subcommand.get_name()), look);
        }
    }

    #[test]
    fn each_command_has_an_example_in_its_help() {
        each(&Cli::command(), "doorbell", &mut |command, words| {
            let help = command.clone().render_long_help().to_string();
            let example = help.split_once("Example:").map_or("", |(_, rest)| rest);
            assert!(example.trim_start().starts_with("doorbell "), "{words} --help: {help}");
            assert!(example.contains(words), "{words} --help has an example of something else");
        });
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
            ("run --kernel k --disk d.img", "--disk d.img: 'd.img' is no KEY=VALUE"),
            ("run --kernel k --net mac=1", "tap"),
            ("run --kernel k --vsock cid=3,colour=red", "colour"),
            ("run --kernel k --config /nonexistent.toml", "/nonexistent.toml"),
            ("run", "--kernel"),
        ] {
            let text = run(line).unwrap_err().one_line();
            assert!(text.contains(word), "{line}: {text}");
        }
    }
}
