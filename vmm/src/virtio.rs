// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtio devices that the configuration asks for, each on its way to become a PCI function.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::pipe::{PipeFlags, pipe_with};
use virtio_devices::{
    Balloon, BalloonHandle, BalloonOptions, Block, BlockFormat, BlockOptions, Console, GuestCid, MacAddress,
    Net, NetOptions, Rng, Tap, Vhost, VhostVsock, VirtioDevice, Vsock, VsockError,
};

use crate::balloon;
use crate::config::Config;
use crate::devices::{self, Choice, Disk, DiskFormat, Pluggable};
use crate::error::{Error, Result};

/// The most queues that a device gets by itself: one a vCPU up to here.
const MOST_QUEUES: u32 = 16;

/// A device, and what users know it by.
pub(crate) struct Named {
    /// "disk 0", "net tap0" and the like.
    pub(crate) name: String,
    pub(crate) device: Box<dyn VirtioDevice>,
    /// What it was asked for as, if it is one that may come and go.
    pub(crate) wanted: Option<Pluggable>,
}

/// What a device is not to be mixed up with.
pub(crate) struct Other<'a> {
    pub(crate) name: &'a str,
    pub(crate) wanted: Option<&'a Pluggable>,
}

/// All devices, and what they need of the machine beyond a slot.
pub(crate) struct Opened {
    pub(crate) devices: Vec<Named>,
    /// Where the guest's input goes, if a virtio console takes it.
    pub(crate) keyboard: Option<OwnedFd>,
    /// A hand on the balloon, if there is one.
    pub(crate) balloon: Option<BalloonHandle>,
}

/// Opens everything that the devices need of the host. Nothing is started.
pub(crate) fn open(config: &Config) -> Result<Opened> {
    let devices = &config.devices;
    let mut opened: Vec<Named> = Vec::new();
    for wanted in devices.pluggable() {
        let vfio = config.vfio.iter().map(|vfio| Other { name: vfio.name(), wanted: None });
        let others: Vec<Other<'_>> = opened
            .iter()
            .map(|named| Other { name: &named.name, wanted: named.wanted.as_ref() })
            .chain(vfio)
            .collect();
        let named = open_one(wanted, config.cpus, &others)?;
        opened.push(named);
    }
    let mut add = |name: &str, device: Box<dyn VirtioDevice>| {
        opened.push(Named { name: name.to_owned(), device, wanted: None });
    };
    if devices.rng {
        add("rng", Box::new(Rng::new()));
    }
    if let Some(wanted) = &devices.vsock {
        add("vsock", vsock(wanted)?);
    }
    let mut balloon = None;
    if devices.balloon {
        if !config.vfio.is_empty() || !config.platform.is_empty() {
            return Err(balloon::excludes_devices());
        }
        let mut options = BalloonOptions::default();
        options.target = config.balloon_target;
        options.deflate_on_oom = true;
        options.free_page_reporting = true;
        let device = Balloon::new(options).map_err(|e| Error::host("cannot make the balloon").because(e))?;
        balloon = Some(device.handle());
        add("balloon", Box::new(device));
    }
    let mut keyboard = None;
    if devices.console {
        let (device, input) = console().map_err(|e| Error::host("cannot make the console").because(e))?;
        add("console", Box::new(device));
        keyboard = Some(input);
    }
    Ok(Opened { devices: opened, keyboard, balloon })
}

/// Names are what users tell devices apart by.
pub(crate) fn name_is_taken(name: &str) -> Error {
    Error::usage(format!("the guest has a device called {name} already"))
        .hint("give each device once, and a name of its own with id=NAME")
}

/// Names that are nobody's to give.
const OWN: [&str; 4] = ["rng", "vsock", "balloon", "console"];

/// Opens what a device that may come and go needs of the host, for a guest with so many vCPUs and these devices.
pub(crate) fn open_one(wanted: Pluggable, cpus: u32, others: &[Other<'_>]) -> Result<Named> {
    let taken = |name: &str| OWN.contains(&name) || others.iter().any(|other| other.name == name);
    let name = match (wanted.id(), &wanted) {
        (Some(id), _) => id.to_owned(),
        (None, Pluggable::Net(net)) => format!("net {}", net.tap),
        // As many names as there are others would have to be taken for the last one to be.
        (None, Pluggable::Disk(_)) => {
            (0..=others.len()).map(|n| format!("disk {n}")).find(|name| !taken(name)).unwrap_or_default()
        }
    };
    if taken(&name) {
        return Err(name_is_taken(&name));
    }
    let device: Box<dyn VirtioDevice> = match &wanted {
        Pluggable::Disk(wanted) => {
            check_disk(&name, wanted, others)?;
            Box::new(disk(wanted, cpus)?)
        }
        Pluggable::Net(wanted) => {
            let mac = mac(wanted)?;
            check_mac(&wanted.tap, mac, others)?;
            Box::new(net(wanted, mac)?)
        }
    };
    Ok(Named { name, device, wanted: Some(wanted) })
}

/// The image's own lock would say that it is in use, but not by whom.
fn check_disk(name: &str, wanted: &Disk, others: &[Other<'_>]) -> Result<()> {
    let file = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let own = file(&wanted.path);
    for other in others {
        let Some(Pluggable::Disk(disk)) = other.wanted else { continue };
        if own == file(&disk.path) && !(wanted.readonly && disk.readonly) {
            let path = wanted.path.display();
            return Err(Error::usage(format!("{} and {name} are the same image {path}", other.name))
                .hint("give each --disk an image of its own, or both readonly=on"));
        }
        if let Some(serial) = wanted.serial.as_ref().filter(|serial| disk.serial.as_ref() == Some(serial)) {
            return Err(Error::usage(format!(
                "{} and {name} have the same serial number '{serial}'",
                other.name
            ))
            .hint("the guest tells disks apart by it: give each --disk a serial of its own, or none"));
        }
    }
    Ok(())
}

fn check_mac(tap: &str, mac: MacAddress, others: &[Other<'_>]) -> Result<()> {
    for other in others {
        let Some(Pluggable::Net(first)) = other.wanted else { continue };
        if self::mac(first)? == mac {
            return Err(Error::usage(format!(
                "the networks {} and {tap} have the same address {mac}",
                first.tap
            ))
            .hint("give each --net a tap and a mac of its own"));
        }
    }
    Ok(())
}

/// A console whose output is our standard output, and where its input comes from: not straight from standard input, since keys that are meant
/// for us are taken out on the way.
fn console() -> std::result::Result<(Console, OwnedFd), Box<dyn std::error::Error + Send + Sync>> {
    let (input, keyboard) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    Ok((Console::new(Some(input), output, None)?, keyboard))
}

/// The kernel's sockets are for programs of the host that know `AF_VSOCK`, a Unix socket for all others: who names one wants that.
fn vsock(wanted: &devices::Vsock) -> Result<Box<dyn VirtioDevice>> {
    let failed = || Error::usage("cannot make the socket device");
    let cid = GuestCid::new(wanted.cid.into()).map_err(|e| failed().because(e).hint("check --vsock"))?;
    match (&wanted.socket, wanted.vhost) {
        (Some(path), Choice::Auto | Choice::Off) => {
            let device = Vsock::new(cid, path).map_err(|e| failed().because(e).hint("check --vsock"))?;
            Ok(Box::new(device))
        }
        (None, Choice::Auto | Choice::On) => {
            let device = VhostVsock::new(cid).map_err(|e| {
                let error = match e {
                    VsockError::Vhost { .. } => {
                        Error::host("the host's kernel cannot carry the guest's sockets")
                    }
                    _ => failed(),
                };
                error
                    .because(e)
                    .hint("or name a Unix socket that stands for the guest: --vsock cid=N,socket=PATH")
            })?;
            Ok(Box::new(device))
        }
        (Some(_), Choice::On) => {
            Err(failed().hint("with vhost=on the host's kernel carries the bytes: leave out socket="))
        }
        (None, Choice::Off) => {
            Err(failed().hint("name the Unix socket that stands for the guest: --vsock cid=N,socket=PATH"))
        }
    }
}

fn disk(wanted: &Disk, cpus: u32) -> Result<Block> {
    let queues = wanted.queues.unwrap_or(u16::try_from(cpus.min(MOST_QUEUES)).unwrap_or(1));
    let options = BlockOptions {
        format: match wanted.format {
            DiskFormat::Auto => BlockFormat::Auto,
            DiskFormat::Raw => BlockFormat::Raw,
            DiskFormat::Qcow2 => BlockFormat::Qcow2,
        },
        readonly: wanted.readonly,
        direct: wanted.direct,
        queues,
        serial: wanted.serial.clone().unwrap_or_default(),
        ..BlockOptions::new(&wanted.path)
    };
    // The device's error names the image and says what is wrong with it.
    Block::open(&options).map_err(|e| Error::usage("cannot use the disk").because(e).hint("check --disk"))
}

fn mac(wanted: &devices::Net) -> Result<MacAddress> {
    let Some(text) = &wanted.mac else { return Ok(MacAddress::derived_from(wanted.tap.as_bytes())) };
    text.parse().map_err(|e| {
        Error::usage(format!("'{text}' is no address for the network {}", wanted.tap))
            .because(e)
            .hint("give a unicast address like mac=02:00:00:00:00:01")
    })
}

fn net(wanted: &devices::Net, mac: MacAddress) -> Result<Net> {
    let failed = || Error::usage(format!("cannot use the network {}", wanted.tap));
    let tap =
        Tap::open(&wanted.tap, usize::from(wanted.queues.unwrap_or(1))).map_err(|e| failed().because(e))?;
    let mut options = NetOptions::default();
    options.mac = Some(mac);
    options.vhost = match wanted.vhost {
        Choice::Auto => Vhost::Auto,
        Choice::On => Vhost::On,
        Choice::Off => Vhost::Off,
    };
    Net::new(tap, options).map_err(|e| failed().because(e))
}
