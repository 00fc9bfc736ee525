// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_bindings::bindings::vfio::{VFIO_PCI_HOT_RESET_FLAG_DEV_ID, VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED};

use super::device::einval;
use super::{FakeDevice, FakeIommu};
use crate::hot_reset::{HotReset, HotResetInfo};
use crate::iommu::{Iommu, IommuKind};

/// A bus behind a bridge: what is on it is reset together. Clones are the same bus.
#[derive(Debug, Clone)]
pub struct FakeBus {
    number: u8,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    devices: BTreeMap<u8, Place>,
    resets: u64,
}

/// A device on it.
#[derive(Debug)]
struct Place {
    group: u32,
    /// `None`: it is not VFIO's.
    device: Option<FakeDevice>,
    /// By whom it is open, and which number it has there.
    user: Option<(FakeIommu, u32)>,
}

impl FakeBus {
    /// An empty bus of that number.
    #[must_use]
    pub fn new(number: u8) -> Self {
        Self { number, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device on it that belongs to a driver of the host, or to none.
    pub fn add_of_the_host(&self, devfn: u8, group: u32) {
        self.add(devfn, group, None);
    }

    pub(super) fn add(&self, devfn: u8, group: u32, device: Option<FakeDevice>) {
        self.state().devices.insert(devfn, Place { group, device, user: None });
    }

    /// How often it was reset.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.state().resets
    }

    /// The group of a device.
    pub(super) fn group(&self, devfn: u8) -> Option<u32> {
        self.state().devices.get(&devfn).map(|place| place.group)
    }

    /// Somebody has opened or closed a device.
    pub(super) fn set_user(&self, devfn: u8, user: Option<(FakeIommu, u32)>) {
        if let Some(place) = self.state().devices.get_mut(&devfn) {
            place.user = user;
        }
    }

    /// What the kernel writes (`vfio_pci_ioctl_get_pci_hot_reset_info`, `vfio_pci_fill_devs`), byte by byte, and decoded.
    pub(super) fn info(&self, devfn: u8) -> io::Result<HotResetInfo> {
        let state = self.state();
        let (user, _) = state.user(devfn)?;
        let by_device = user.kind() == IommuKind::Iommufd;
        let mut flags =
            if by_device { VFIO_PCI_HOT_RESET_FLAG_DEV_ID | VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED } else { 0 };
        let mut devices = Vec::new();
        for (devfn, place) in &state.devices {
            let id = match (by_device, &place.device) {
                (false, _) => place.group,
                (true, None) => u32::MAX,
                (true, Some(_)) => state.id(place, user).unwrap_or(u32::MAX),
            };
            if by_device && id == u32::MAX {
                flags &= !VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED;
            }
            devices.extend(id.to_ne_bytes());
            devices.extend([0, 0, self.number, *devfn]);
        }
        let count = u32::try_from(state.devices.len()).unwrap_or(u32::MAX);
        let mut bytes: Vec<u8> =
            [12 + 8 * count, flags, count].iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(devices);
        HotResetInfo::decode(&bytes).map_err(io::Error::other)
    }

    /// What the kernel does (`vfio_pci_ioctl_pci_hot_reset`, `vfio_pci_dev_set_hot_reset`).
    pub(super) fn reset(&self, devfn: u8, request: &HotReset<'_>) -> io::Result<()> {
        let mut state = self.state();
        let (user, _) = state.user(devfn)?;
        let shown = request.groups();
        let by_device = user.kind() == IommuKind::Iommufd;
        if shown.is_empty() != by_device || shown.len() > state.devices.len() {
            return Err(einval());
        }
        let files = user.groups();
        let mut numbers = Vec::new();
        for fd in shown {
            let file = files.iter().find(|(_, file)| file.as_fd().as_raw_fd() == fd.as_raw_fd());
            numbers.push(file.ok_or_else(einval)?.0);
        }
        let owned = |place: &Place| {
            place.device.is_some()
                && if by_device { state.id(place, user).is_some() } else { numbers.contains(&place.group) }
        };
        if !state.devices.values().all(owned) {
            return Err(einval());
        }
        state.resets += 1;
        for device in state.devices.values().filter_map(|place| place.device.as_ref()) {
            device.bus_reset();
        }
        Ok(())
    }
}

impl State {
    /// Who has the device that is asked.
    fn user(&self, devfn: u8) -> io::Result<&(FakeIommu, u32)> {
        self.devices.get(&devfn).and_then(|place| place.user.as_ref()).ok_or_else(einval)
    }

    /// What `vfio_iommufd_get_dev_id` says: the device's number, or 0 if its group is the same user's.
    fn id(&self, place: &Place, user: &FakeIommu) -> Option<u32> {
        match &place.user {
            Some((other, id)) => other.is(user).then_some(*id),
            None => {
                let mut group = self.devices.values().filter(|other| other.group == place.group);
                group.any(|other| other.user.as_ref().is_some_and(|(other, _)| other.is(user))).then_some(0)
            }
        }
    }
}
