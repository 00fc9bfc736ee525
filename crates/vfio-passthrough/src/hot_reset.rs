// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The payloads of `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO` and `VFIO_DEVICE_PCI_HOT_RESET`: what a reset of a device's bus or slot reaches, and the request for one
//! (`struct vfio_pci_hot_reset_info` and `struct vfio_pci_hot_reset` of the kernel's `include/uapi/linux/vfio.h`).

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_DEVID_OWNED, VFIO_PCI_HOT_RESET_FLAG_DEV_ID, VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED,
};

/// Bytes before the devices, or the descriptors: argsz, flags, count.
pub(crate) const HEADER: usize = 12;
/// Bytes of `struct vfio_pci_dependent_device`.
pub(crate) const DEVICE: usize = 8;
/// `VFIO_PCI_DEVID_NOT_OWNED`, which the header writes as -1.
const NOT_OWNED: u32 = u32::MAX;

/// What a reset of a device's bus or slot reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotResetInfo {
    /// `VFIO_PCI_HOT_RESET_FLAG_*`.
    pub flags: u32,
    /// The device itself and all others on its bus or in its slot, what is behind bridges there included.
    pub devices: Vec<AffectedDevice>,
}

/// A device that is reset along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AffectedDevice {
    /// PCI domain.
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    /// Device and function.
    pub devfn: u8,
    /// Whose it is.
    pub owner: ResetOwner,
}

/// Whose a device is that a reset reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetOwner {
    /// Whoever has this group (legacy interface).
    Group(u32),
    /// It is bound to the same iommufd as the device that is asked, under this ID.
    Device(u32),
    /// It is not open, and its group belongs to the same iommufd.
    Owned,
    /// Somebody else's, or not VFIO's.
    NotOwned,
}

impl HotResetInfo {
    /// Whether devices are named by what they are to an iommufd, instead of by their groups.
    #[must_use]
    pub const fn by_device(&self) -> bool {
        self.flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0
    }

    /// Whether the kernel says that all of them are the asking iommufd's.
    #[must_use]
    pub const fn all_owned(&self) -> bool {
        self.flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED != 0
    }

    /// Decodes what the kernel wrote.
    ///
    /// # Errors
    /// What is wrong with it: too short for the devices that it counts.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let word = |at: usize| {
            bytes.get(at..at.checked_add(4)?).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes)
        };
        let short = || format!("a list of devices that are reset together has only {} bytes", bytes.len());
        let flags = word(4).ok_or_else(short)?;
        let count = word(8).ok_or_else(short)? as usize;
        let devices = bytes.get(HEADER..).and_then(|bytes| bytes.get(..count.checked_mul(DEVICE)?));
        let devices = devices.ok_or_else(short)?.chunks_exact(DEVICE).map(|device| {
            let (mut id, mut segment) = ([0; 4], [0; 2]);
            let (owner, place) = device.split_at(4);
            id.copy_from_slice(owner);
            let (domain, place) = place.split_at(2);
            segment.copy_from_slice(domain);
            let id = u32::from_ne_bytes(id);
            let owner = match id {
                _ if flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID == 0 => ResetOwner::Group(id),
                VFIO_PCI_DEVID_OWNED => ResetOwner::Owned,
                NOT_OWNED => ResetOwner::NotOwned,
                id => ResetOwner::Device(id),
            };
            let (bus, devfn) = (place.first().copied(), place.last().copied());
            AffectedDevice {
                segment: u16::from_ne_bytes(segment),
                bus: bus.unwrap_or_default(),
                devfn: devfn.unwrap_or_default(),
                owner,
            }
        });
        Ok(Self { flags, devices: devices.collect() })
    }
}

impl AffectedDevice {
    /// Its name in sysfs.
    #[must_use]
    pub fn name(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for AffectedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, bus, devfn, .. } = self;
        write!(f, "{segment:04x}:{bus:02x}:{:02x}.{}", devfn >> 3, devfn & 7)
    }
}

/// One request to `VFIO_DEVICE_PCI_HOT_RESET`.
///
/// With the legacy interface, whoever asks shows the files of all groups that the reset reaches. With an iommufd there is nothing to show: the kernel looks whom
/// the devices are bound to (Linux 6.12, `vfio_pci_ioctl_pci_hot_reset`: "zero-length array is only for cdev opened devices").
#[derive(Debug, Clone, Default)]
pub struct HotReset<'a> {
    groups: Vec<BorrowedFd<'a>>,
}

impl<'a> HotReset<'a> {
    /// By somebody who has these groups.
    #[must_use]
    pub const fn of_groups(groups: Vec<BorrowedFd<'a>>) -> Self {
        Self { groups }
    }

    /// By the iommufd that the device is bound to.
    #[must_use]
    pub const fn of_iommufd() -> Self {
        Self { groups: Vec::new() }
    }

    /// The files of groups that are shown.
    #[must_use]
    pub fn groups(&self) -> &[BorrowedFd<'a>] {
        &self.groups
    }

    /// The bytes that the kernel reads.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let size = HEADER + 4 * self.groups.len();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(size);
        for word in [number(size), 0, number(self.groups.len())] {
            bytes.extend(word.to_ne_bytes());
        }
        for group in &self.groups {
            bytes.extend(group.as_raw_fd().to_ne_bytes());
        }
        bytes
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn requests_are_what_the_kernel_reads_byte_by_byte() {
        assert_eq!(HotReset::of_iommufd().encode(), [12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let files = [0, 1].map(|_| std::fs::File::open("/dev/null").unwrap());
        let fds = files.each_ref().map(|file| file.as_raw_fd().to_le_bytes());
        let mut expected = vec![20, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        expected.extend(fds.concat());
        assert_eq!(HotReset::of_groups(files.iter().map(AsFd::as_fd).collect()).encode(), expected);
    }

    #[test]
    fn devices_are_named_by_their_groups_or_by_what_they_are_to_the_iommufd() {
        let device = |owner, segment, bus, devfn| AffectedDevice { segment, bus, devfn, owner };
        #[rustfmt::skip]
        let by_group = [
            28, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0,
            17, 0, 0, 0, 0x00, 0x01, 0x65, 0x00, // group 17, 0100:65:00.0
            0, 0, 0, 0, 0x00, 0x00, 0x02, 0xfb, // group 0, 0000:02:1f.3
        ];
        let info = HotResetInfo::decode(&by_group).unwrap();
        assert_eq!((info.by_device(), info.all_owned()), (false, false));
        assert_eq!(
            info.devices,
            [device(ResetOwner::Group(17), 0x100, 0x65, 0), device(ResetOwner::Group(0), 0, 2, 0xfb)]
        );
        let names: Vec<_> = info.devices.iter().map(AffectedDevice::name).collect();
        assert_eq!(names, ["0100:65:00.0", "0000:02:1f.3"]);

        #[rustfmt::skip]
        let by_device = [
            44, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0,
            5, 0, 0, 0, 0, 0, 1, 0, // bound to the same iommufd as device 5
            0, 0, 0, 0, 0, 0, 1, 1, // not open, its group is the iommufd's
            0xff, 0xff, 0xff, 0xff, 0, 0, 1, 2,
            0xaa, 0xaa, 0xaa, 0xaa, // what was in the buffer
        ];
        let info = HotResetInfo::decode(&by_device).unwrap();
        assert_eq!((info.by_device(), info.all_owned()), (true, false));
        assert_eq!(
            info.devices,
            [
                device(ResetOwner::Device(5), 0, 1, 0),
                device(ResetOwner::Owned, 0, 1, 1),
                device(ResetOwner::NotOwned, 0, 1, 2)
            ]
        );
        assert!(HotResetInfo::decode(&[12, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]).unwrap().all_owned());
    }

    #[test]
    fn lists_that_are_shorter_than_they_say_are_errors() {
        for bytes in [&[20_u8, 0, 0, 0][..], &[20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]] {
            assert!(HotResetInfo::decode(bytes).is_err(), "{bytes:?}");
        }
        let endless = [12, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert!(HotResetInfo::decode(&endless).is_err());
    }
}
