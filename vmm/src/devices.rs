// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What devices a machine is to have: `--disk path=FILE,readonly=on` on the command line, `[[disk]]` tables in the TOML file.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::vfio_config::Vfio;

/// A disk of the guest's: a file or block device of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Disk {
    /// The image, raw or qcow2.
    pub path: PathBuf,
    /// What the image is; found out from its first bytes where this is not given.
    #[serde(default)]
    pub format: DiskFormat,
    /// Whether the guest may not write.
    #[serde(default)]
    pub readonly: bool,
    /// Whether the host's page cache is passed by (`O_DIRECT`).
    #[serde(default)]
    pub direct: bool,
    /// How many queues; one for each vCPU where this is not given.
    pub queues: Option<u16>,
    /// What the guest reads as the disk's serial number: up to 20 bytes.
    pub serial: Option<String>,
    /// What it is called in messages and requests; "disk N" where this is not given.
    pub id: Option<String>,
    /// Whether it is in a slot, which it can leave while the guest runs.
    #[serde(default)]
    pub slot: bool,
}

/// What an image file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Look at the file.
    #[default]
    Auto,
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's format, version 2 or 3.
    Qcow2,
}

/// A network interface of the guest's, on a TAP interface of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Net {
    /// The TAP interface's name. It has to be there: a name that is mistyped must not become a network that leads nowhere.
    pub tap: String,
    /// The guest's address, `02:…`; made up from the interface's name where this is not given.
    pub mac: Option<String>,
    /// How many pairs of queues.
    pub queues: Option<u16>,
    /// Whether the host's kernel moves the packets.
    #[serde(default)]
    pub vhost: Choice,
    /// What it is called in messages and requests; "net TAP" where this is not given.
    pub id: Option<String>,
    /// Whether it is in a slot, which it can leave while the guest runs.
    #[serde(default)]
    pub slot: bool,
}

/// Whether something that not every host has is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Where the host has it.
    #[default]
    Auto,
    /// Or it is an error.
    On,
    /// Not.
    Off,
}

/// Sockets between guest and host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vsock {
    /// The guest's context ID, 3 or more.
    pub cid: u32,
    /// The Unix socket that stands for the guest; without one the host's kernel carries the bytes, for programs that know `AF_VSOCK`.
    pub socket: Option<PathBuf>,
    /// Whether the host's kernel carries the bytes (`/dev/vhost-vsock`).
    #[serde(default)]
    pub vhost: Choice,
}

/// A virtio device that may come and go while the guest runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pluggable {
    /// A disk.
    Disk(Disk),
    /// A network interface.
    Net(Net),
}

/// What a guest that runs can be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addition {
    /// A PCI device of the host's.
    Vfio(Vfio),
    /// A virtio device.
    Virtio(Pluggable),
}

impl Pluggable {
    /// What it was asked to be called, if it was.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Disk(Disk { id, .. }) | Self::Net(Net { id, .. }) => id.as_deref(),
        }
    }

    /// Whether it is to be in a slot.
    #[must_use]
    pub fn wants_slot(&self) -> bool {
        match self {
            Self::Disk(Disk { slot, .. }) | Self::Net(Net { slot, .. }) => *slot,
        }
    }

    /// What it is on the host's side: a file or an interface.
    #[must_use]
    pub fn host(&self) -> String {
        match self {
            Self::Disk(disk) => disk.path.display().to_string(),
            Self::Net(net) => net.tap.clone(),
        }
    }

    /// The same for a machine that starts again: under the name that it has now.
    #[must_use]
    pub fn kept(&self, name: &str, in_slot: bool) -> Self {
        let mut kept = self.clone();
        match &mut kept {
            Self::Disk(Disk { id, slot, .. }) | Self::Net(Net { id, slot, .. }) => {
                *id = Some(name.to_owned());
                *slot = in_slot;
            }
        }
        kept
    }
}

/// All devices of a machine beyond those that each one has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// Disks.
    pub disks: Vec<Disk>,
    /// Network interfaces.
    pub nets: Vec<Net>,
    /// Sockets to the host; a guest has one context ID, so at most one.
    pub vsock: Option<Vsock>,
    /// Entropy from the host.
    pub rng: bool,
    /// A balloon, by which the guest gives memory back.
    pub balloon: bool,
    /// A virtio console on standard input and output in place of the serial port.
    pub console: bool,
}

impl Devices {
    /// Those that may come and go.
    pub fn pluggable(&self) -> impl Iterator<Item = Pluggable> {
        let disks = self.disks.iter().cloned().map(Pluggable::Disk);
        disks.chain(self.nets.iter().cloned().map(Pluggable::Net))
    }

    /// Whether there is any that wants a PCI bus.
    #[must_use]
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// Reads `key=value,key=value` as what the TOML file's table with these keys would be. A comma inside a value is written twice.
///
/// `on` and `off` are TOML's `true` and `false`; `texts` are the keys whose values are never numbers or truths, whatever they look like.
pub(crate) fn table<T: DeserializeOwned>(text: &str, texts: &[&str]) -> Result<T, String> {
    let mut table = toml::Table::new();
    let parts = text.replace(",,", "\0");
    for part in parts.split(',').filter(|part| !part.is_empty()) {
        let part = part.replace('\0', ",");
        let (key, value) = part.split_once('=').ok_or_else(|| format!("'{part}' is no KEY=VALUE"))?;
        let value = match value {
            _ if texts.contains(&key) => toml::Value::String(value.to_owned()),
            "on" | "true" => toml::Value::Boolean(true),
            "off" | "false" => toml::Value::Boolean(false),
            _ => value.parse().map_or_else(|_| toml::Value::String(value.to_owned()), toml::Value::Integer),
        };
        if table.insert(key.to_owned(), value).is_some() {
            return Err(format!("'{key}' is given twice"));
        }
    }
    table.try_into().map_err(|e: toml::de::Error| e.message().trim_end().to_owned())
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        table(text, &["path", "serial", "format", "id"])
    }
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        table(text, &["tap", "mac", "vhost", "id"])
    }
}

impl FromStr for Vsock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        table(text, &["socket", "vhost"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_read_from_the_command_line_as_from_the_file() {
        let disk: Disk = "path=/a b,,c.img,readonly=on,direct=off,queues=4,serial=17".parse().unwrap();
        let file: Disk = toml::from_str(
            "path = \"/a b,c.img\"\nreadonly = true\ndirect = false\nqueues = 4\nserial = \"17\"",
        )
        .unwrap();
        assert_eq!(disk, file);
        assert_eq!(
            (disk.readonly, disk.queues, disk.serial.as_deref(), disk.format),
            (true, Some(4), Some("17"), DiskFormat::Auto)
        );
    }

    #[test]
    fn nets_and_sockets_have_their_defaults() {
        let net: Net = "tap=tap0".parse().unwrap();
        assert_eq!((net.tap.as_str(), net.mac, net.vhost), ("tap0", None, Choice::Auto));
        let net: Net = "tap=7,vhost=off".parse().unwrap();
        assert_eq!((net.tap.as_str(), net.vhost), ("7", Choice::Off));
        let net: Net = "tap=tap0,id=7,slot=on".parse().unwrap();
        assert_eq!((net.id.as_deref(), net.slot), (Some("7"), true));
        let vsock: Vsock = "cid=3,socket=/run/v".parse().unwrap();
        assert_eq!((vsock.cid, vsock.socket), (3, Some("/run/v".into())));
    }

    #[test]
    fn a_machine_that_starts_again_finds_its_devices_by_their_names() {
        let disk = Pluggable::Disk("path=a,serial=s".parse().unwrap());
        assert_eq!((disk.id(), disk.wants_slot(), disk.host().as_str()), (None, false, "a"));
        let kept = disk.kept("disk 3", true);
        assert_eq!(kept, Pluggable::Disk("path=a,serial=s,id=disk 3,slot=on".parse().unwrap()));
        assert_eq!(kept.kept("disk 3", false).id(), Some("disk 3"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, word) in [
            ("", "path"),
            ("/disk.img", "KEY=VALUE"),
            ("path=a,path=b", "twice"),
            ("path=a,colour=red", "colour"),
            ("path=a,readonly=maybe", "maybe"),
            ("path=a,queues=many", "many"),
            ("path=a,queues=-1", "-1"),
            ("path=a,queues=70000", "70000"),
            ("path=a,format=vmdk", "vmdk"),
        ] {
            let error = text.parse::<Disk>().unwrap_err();
            assert!(error.contains(word), "{text:?} gave {error:?}");
        }
        assert!("tap=a,vhost=perhaps".parse::<Net>().unwrap_err().contains("perhaps"));
        assert!("cid=x".parse::<Vsock>().unwrap_err().contains('x'));
    }
}
