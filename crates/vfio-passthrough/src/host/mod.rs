// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's devices, as sysfs shows them.

mod bind;
mod describe;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

pub use describe::{PciDescription, PciInterrupts, name_devices};

use crate::Error;

/// A bus whose devices VFIO can pass through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostBus {
    /// PCI and PCI Express.
    Pci,
    /// Devices without a bus to find them on, described by firmware.
    Platform,
    /// The same with Arm's PrimeCell identification registers.
    Amba,
}

impl HostBus {
    /// Its directory under `/sys/bus`.
    #[must_use]
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Pci => "pci",
            Self::Platform => "platform",
            Self::Amba => "amba",
        }
    }

    /// The driver that gives its devices to VFIO.
    #[must_use]
    pub const fn vfio_driver(self) -> &'static str {
        match self {
            Self::Pci => "vfio-pci",
            Self::Platform => "vfio-platform",
            Self::Amba => "vfio-amba",
        }
    }
}

/// Where sysfs is.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self { root: PathBuf::from("/sys") }
    }
}

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    name: String,
    bus: HostBus,
    path: PathBuf,
}

impl Sysfs {
    /// The host's own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One that is somewhere else: a test's, or that of another mount namespace.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The platform or AMBA device of that name.
    ///
    /// # Errors
    /// [`Error::Malformed`] for what cannot be a name, [`Error::NotFound`].
    pub fn platform_device(&self, name: &str) -> Result<HostDevice, Error> {
        if !is_name(name) {
            return Err(Error::Malformed { text: name.to_owned(), bus: "platform" });
        }
        [HostBus::Amba, HostBus::Platform]
            .into_iter()
            .find_map(|bus| self.device(bus, name))
            .ok_or_else(|| Error::NotFound { name: name.to_owned(), bus: "platform" })
    }

    /// The PCI device at `DDDD:BB:DD.F`; the domain may be left out when it is 0.
    ///
    /// # Errors
    /// [`Error::Malformed`] for what is no address, [`Error::NotFound`].
    pub fn pci_device(&self, address: &str) -> Result<HostDevice, Error> {
        let malformed = || Error::Malformed { text: address.to_owned(), bus: "PCI" };
        let full = match address.matches(':').count() {
            1 => format!("0000:{address}"),
            _ => address.to_owned(),
        };
        if !is_pci_address(&full) {
            return Err(malformed());
        }
        let full = full.to_ascii_lowercase();
        self.device(HostBus::Pci, &full).ok_or(Error::NotFound { name: full, bus: "PCI" })
    }

    pub(crate) fn device(&self, bus: HostBus, name: &str) -> Option<HostDevice> {
        let path = self.root.join("bus").join(bus.directory()).join("devices").join(name);
        path.exists().then(|| HostDevice { name: name.to_owned(), bus, path })
    }

    pub(crate) fn bus(&self, bus: HostBus) -> PathBuf {
        self.root.join("bus").join(bus.directory())
    }
}

/// One component of a path, of the characters that device names have.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 128
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".,_-:@+".contains(&b))
        && !name.starts_with('.')
}

/// `DDDD:BB:DD.F`, hexadecimal; long domains exist (VMD).
fn is_pci_address(text: &str) -> bool {
    let hex = |part: &str, min: usize, max: usize| {
        (min..=max).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let mut parts = text.splitn(3, ':');
    let (Some(domain), Some(bus), Some((device, function))) =
        (parts.next(), parts.next(), parts.next().and_then(|rest| rest.split_once('.')))
    else {
        return false;
    };
    hex(domain, 4, 8)
        && hex(bus, 2, 2)
        && hex(device, 2, 2)
        && u8::from_str_radix(device, 16).is_ok_and(|d| d < 32)
        && function.len() == 1
        && function.bytes().all(|b| (b'0'..=b'7').contains(&b))
}

impl HostDevice {
    /// Its name: a PCI address, or a platform device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its bus.
    #[must_use]
    pub const fn bus(&self) -> HostBus {
        self.bus
    }

    /// Its directory in sysfs.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The driver that has it.
    #[must_use]
    pub fn driver(&self) -> Option<String> {
        link_name(&self.path.join("driver"))
    }

    /// The number of its IOMMU group. There is one behind an IOMMU, and also for a device in no-IOMMU mode.
    #[must_use]
    pub fn iommu_group(&self) -> Option<u32> {
        link_name(&self.path.join("iommu_group"))?.parse().ok()
    }

    /// Whether its group is one that VFIO made up for want of an IOMMU (`vfio_noiommu_group_alloc`).
    #[must_use]
    pub fn is_noiommu(&self) -> bool {
        fs::read_to_string(self.path.join("iommu_group/name")).is_ok_and(|name| name.trim() == "vfio-noiommu")
    }

    /// The other devices of its group, with their drivers.
    #[must_use]
    pub fn group_members(&self) -> Vec<(String, Option<String>)> {
        let Ok(entries) = fs::read_dir(self.path.join("iommu_group/devices")) else { return Vec::new() };
        let mut members: Vec<_> = entries
            .filter_map(Result::ok)
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                let driver = link_name(&entry.path().join("driver"));
                (name, driver)
            })
            .filter(|(name, _)| *name != self.name)
            .collect();
        members.sort();
        members
    }

    /// Another device on the same kind of bus.
    pub(crate) fn neighbour(&self, name: &str) -> Option<Self> {
        let path = self.path.parent()?.join(name);
        path.exists().then(|| Self { name: name.to_owned(), bus: self.bus, path })
    }

    /// The name of its own character device, where the kernel makes them (`/dev/vfio/devices/`).
    #[must_use]
    pub fn cdev(&self) -> Option<String> {
        fs::read_dir(self.path.join("vfio-dev"))
            .ok()?
            .filter_map(Result::ok)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .find(|name| name.starts_with("vfio"))
    }

    /// Its node in the host's device tree.
    #[must_use]
    pub fn of_node(&self) -> Option<PathBuf> {
        fs::canonicalize(self.path.join("of_node")).ok()
    }

    /// Fails unless a VFIO driver has it.
    ///
    /// # Errors
    /// [`Error::NotBound`].
    pub fn check_bound(&self) -> Result<(), Error> {
        let driver = self.driver();
        match &driver {
            // vfio-pci has relatives for particular devices: mlx5_vfio_pci, hisi_acc_vfio_pci, nvgrace-gpu-vfio-pci ...
            Some(name) if name.contains("vfio") => Ok(()),
            _ => Err(Error::NotBound { name: self.name.clone(), driver }),
        }
    }
}

impl fmt::Display for HostDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_not_looked_for() {
        let sysfs = Sysfs::at("/nonexistent");
        for name in ["", "..", "a/b", "../../etc", "x\n", "é", ".hidden"] {
            assert!(matches!(sysfs.platform_device(name), Err(Error::Malformed { .. })), "{name:?}");
        }
        assert!(matches!(sysfs.platform_device("9010000.pl031"), Err(Error::NotFound { .. })));
        for address in [
            "",
            "8",
            "00:08",
            "0000:00:08",
            "0000:00:08.8",
            "0000:00:20.0",
            "0000:00:8.0",
            "000:00:08.0",
            "0:0:0:0.0",
            "zz:00.0",
            "0000:00:08.0/..",
        ] {
            assert!(matches!(sysfs.pci_device(address), Err(Error::Malformed { .. })), "{address:?}");
        }
        for address in ["0000:00:08.0", "00:08.0", "10000:e1:1f.7", "AB:1F.0"] {
            assert!(matches!(sysfs.pci_device(address), Err(Error::NotFound { .. })), "{address:?}");
        }
    }
}
