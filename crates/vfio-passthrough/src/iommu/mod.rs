// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What stands between a device and memory: an IOMMU, by one of the kernel's two interfaces to it, or nothing.

mod container;
mod files;
mod iommufd;

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

pub use container::Container;
pub use files::{HostFiles, Preopened, VfioFiles};
pub use iommufd::Iommufd;

use crate::Error;
use crate::device::RawDevice;
use crate::host::HostDevice;
use crate::sys::Mapping;

/// Which interface to the IOMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IommuKind {
    /// Containers and groups: `/dev/vfio/vfio`, `/dev/vfio/N`.
    Legacy,
    /// `/dev/iommu` and a character device for each device.
    Iommufd,
    /// None: the device gets no translation and must do no DMA.
    NoIommu,
}

/// What a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum IommuChoice {
    /// iommufd where the host has it, else legacy; never none.
    #[default]
    Auto,
    /// That one or an error.
    Only(IommuKind),
}

impl fmt::Display for IommuKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::Iommufd => "iommufd",
            Self::NoIommu => "noiommu",
        })
    }
}

impl FromStr for IommuChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "legacy" => Self::Only(IommuKind::Legacy),
            "iommufd" => Self::Only(IommuKind::Iommufd),
            "noiommu" => Self::Only(IommuKind::NoIommu),
            _ => return Err(format!("'{text}' is none of auto, legacy, iommufd, noiommu")),
        })
    }
}

/// A device that has been opened, and what keeps it attached: to be dropped after it.
pub type Opened = (Box<dyn RawDevice>, Box<dyn Any + Send + Sync>);

/// The open file of a group, for as long as it is held.
pub type GroupFile = Arc<dyn AsFd + Send + Sync>;

/// An I/O address space: what the devices attached to it see when they access memory.
///
/// The kernel is one implementation by each of its interfaces; the feature `fake` has another, which fails on demand.
pub trait Iommu: Send + Sync + fmt::Debug {
    /// Which interface.
    fn kind(&self) -> IommuKind;

    /// Opens a device and attaches it.
    ///
    /// # Errors
    /// Any of [`Error`]'s that speak of groups, nodes and permissions. Nothing stays open then.
    fn open(&self, device: &HostDevice) -> Result<Opened, Error>;

    /// The ranges of addresses that are translated, each with its last address, given what is attached now. `None`: not known.
    ///
    /// # Errors
    /// The kernel's.
    fn ranges(&self) -> io::Result<Option<Vec<(u64, u64)>>>;

    /// Lets attached devices access `memory` from address `iova` on.
    ///
    /// # Errors
    /// The kernel's: `ENOMEM` when the limit of locked memory is reached, `EEXIST` when something is mapped there, `EINVAL` or `EADDRINUSE` for a
    /// reserved range, `EFAULT` for memory that cannot be pinned.
    fn map(&self, iova: u64, memory: &DmaMemory) -> io::Result<()>;

    /// Ends a mapping, by exactly what it was made of.
    ///
    /// # Errors
    /// The kernel's.
    fn unmap(&self, iova: u64, bytes: u64) -> io::Result<()>;

    /// The files of the groups that are attached, by number: what a user of groups shows to be let reset a bus. An interface without groups has none.
    fn groups(&self) -> Vec<(u32, GroupFile)>;
}

/// Memory that devices can be let at: a region of the guest's, or registers of another device. Keeps it mapped in this process.
#[derive(Debug, Clone)]
pub struct DmaMemory {
    host: u64,
    bytes: u64,
    writable: bool,
    _owner: Owner,
}

#[derive(Debug, Clone)]
enum Owner {
    Guest(#[expect(dead_code, reason = "held, not read")] GuestMemoryMmap),
    Device(#[expect(dead_code, reason = "held, not read")] Arc<Mapping>),
}

impl DmaMemory {
    /// All regions of the guest's memory, with their guest-physical addresses.
    ///
    /// # Errors
    /// If one is not mapped in this process.
    pub fn of_guest(memory: &GuestMemoryMmap) -> io::Result<Vec<(u64, Self)>> {
        memory
            .iter()
            .map(|region| {
                let host = region.get_host_address(MemoryRegionAddress(0)).map_err(io::Error::other)? as u64;
                // A clone shares the regions.
                let owner = Owner::Guest(memory.clone());
                Ok((region.start_addr().0, Self { host, bytes: region.len(), writable: true, _owner: owner }))
            })
            .collect()
    }

    /// A mapped part of a device, for its peers.
    #[must_use]
    pub fn of_device(mapping: Arc<Mapping>) -> Self {
        Self {
            host: mapping.address().as_ptr() as u64,
            bytes: mapping.len() as u64,
            writable: mapping.is_writable(),
            _owner: Owner::Device(mapping),
        }
    }

    /// Where it is in this process.
    #[must_use]
    pub const fn host(&self) -> u64 {
        self.host
    }

    /// How many bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether devices may write to it.
    #[must_use]
    pub const fn writable(&self) -> bool {
        self.writable
    }
}

/// Which devices of a device's group are in the hands of drivers of the host, whose DMA the IOMMU cannot tell from the guest's.
fn of_the_host(device: &HostDevice) -> Option<String> {
    let others: Vec<String> = device
        .group_members()
        .into_iter()
        .filter_map(|(name, driver)| Some((name, driver?)))
        // VFIO lets these two be, since they do no DMA of their own.
        .filter(|(_, driver)| !driver.contains("vfio") && driver != "pcieport" && driver != "pci-stub")
        .map(|(name, driver)| format!("{name} has driver {driver}"))
        .collect();
    (!others.is_empty()).then(|| others.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Sysfs;
    use std::fs;
    use std::os::unix::fs::symlink;
    use vm_memory::GuestAddress;
    use vmm_sys_util::tempdir::TempDir;

    #[test]
    fn guest_memory_is_what_this_process_has_mapped_and_devices_may_write_to_it() {
        let ranges = [(GuestAddress(0x4000_0000), 0x2000), (GuestAddress(0x8000_0000), 0x1000)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        let all = DmaMemory::of_guest(&memory).unwrap();
        let found = all.iter().map(|(at, part)| (*at, part.host(), part.bytes(), part.writable()));
        let host = |at| memory.get_host_address(GuestAddress(at)).unwrap() as u64;
        let there = [0x4000_0000, 0x8000_0000].map(host);
        let expected = [(0x4000_0000, there[0], 0x2000, true), (0x8000_0000, there[1], 0x1000, true)];
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_interface_is_called_what_it_says_of_itself() {
        for kind in [IommuKind::Legacy, IommuKind::Iommufd, IommuKind::NoIommu] {
            assert_eq!(kind.to_string().parse(), Ok(IommuChoice::Only(kind)));
        }
        assert_eq!("auto".parse(), Ok(IommuChoice::Auto));
        for wrong in ["", "none", "Legacy"] {
            assert!(wrong.parse::<IommuChoice>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn those_of_a_group_that_do_dma_for_the_host_are_named() {
        let directory = TempDir::new().unwrap();
        let root = directory.as_path();
        let devices = root.join("bus/pci/devices");
        let group = root.join("group/devices");
        fs::create_dir_all(&group).unwrap();
        let add = |name: &str, driver: Option<&str>| {
            let device = devices.join(name);
            fs::create_dir_all(&device).unwrap();
            symlink(root.join("group"), device.join("iommu_group")).unwrap();
            symlink(&device, group.join(name)).unwrap();
            if let Some(driver) = driver {
                symlink(root.join("bus/pci/drivers").join(driver), device.join("driver")).unwrap();
            }
        };
        add("0000:01:00.0", Some("nvme"));
        add("0000:01:00.1", None);
        add("0000:01:00.2", Some("vfio-pci"));
        add("0000:01:00.3", Some("mlx5_vfio_pci"));
        add("0000:01:00.4", Some("pcieport"));
        add("0000:01:00.5", Some("pci-stub"));
        let device = Sysfs::at(root).pci_device("0000:01:00.0").unwrap();
        assert_eq!(of_the_host(&device), None, "itself does not count");
        add("0000:01:00.6", Some("e1000e"));
        add("0000:01:00.7", Some("ahci"));
        let others = "0000:01:00.6 has driver e1000e, 0000:01:00.7 has driver ahci";
        assert_eq!(of_the_host(&device).as_deref(), Some(others));
    }
}
