// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtio devices that the configuration asks for, each on its way to become a PCI function.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use virtio_devices::{
    Balloon, BalloonHandle, BalloonOptions, Block, BlockFormat, BlockOptions, Console, GuestCid, MacAddress,
    Net, NetOptions, Rng, Tap, Vhost, VhostVsock, VirtioDevice, Vsock, VsockError,
};

use crate::balloon;
use crate::config::Config;
use crate::devices::{self, Choice, Disk, DiskFormat};
use crate::error::{Error, Result};

/// The most queues that a device gets by itself: one a vCPU up to here.
const MOST_QUEUES: u32 = 16;

/// A device, and what users know it by.
pub(crate) struct Named {
    /// "disk 0", "net tap0" and the like.
    pub(crate) name: String,
    pub(crate) device: Box<dyn VirtioDevice>,
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
    let mut add = |name: String, device: Box<dyn VirtioDevice>| opened.push(Named { name, device });
    let mut paths = BTreeMap::new();
    for (index, wanted) in devices.disks.iter().enumerate() {
        // A lock would say so too, but not of whom.
        if let Some(first) = paths.insert(&wanted.path, index).filter(|_| !wanted.readonly) {
            return Err(Error::usage(format!(
                "disks {first} and {index} are the same image {}",
                wanted.path.display()
            ))
            .hint("give each --disk an image of its own, or both readonly=on"));
        }
        add(format!("disk {index}"), Box::new(disk(wanted, config.cpus)?));
    }
    let mut addresses: BTreeMap<MacAddress, &str> = BTreeMap::new();
    for wanted in &devices.nets {
        let mac = mac(wanted)?;
        if let Some(first) = addresses.insert(mac, &wanted.tap) {
            return Err(Error::usage(format!(
                "the networks {first} and {} have the same address {mac}",
                wanted.tap
            ))
            .hint("give each --net a tap and a mac of its own"));
        }
        add(format!("net {}", wanted.tap), Box::new(net(wanted, mac)?));
    }
    if devices.rng {
        add("rng".into(), Box::new(Rng::new()));
    }
    if let Some(wanted) = &devices.vsock {
        add("vsock".into(), vsock(wanted)?);
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
        add("balloon".into(), Box::new(device));
    }
    let mut keyboard = None;
    if devices.console {
        let (device, input) = console().map_err(|e| Error::host("cannot make the console").because(e))?;
        add("console".into(), Box::new(device));
        keyboard = Some(input);
    }
    Ok(Opened { devices: opened, keyboard, balloon })
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
