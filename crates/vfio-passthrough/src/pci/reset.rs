// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resets of a whole bus, for functions that have no reset of their own.

use std::os::fd::AsFd;

use crate::Error;
use crate::device::Device;
use crate::host::HostDevice;
use crate::hot_reset::{AffectedDevice, HotReset, HotResetInfo, ResetOwner};
use crate::iommu::GroupFile;

/// A reset that may be done: all that it reaches is to be reset, or is used by nobody and in the same hands.
pub(crate) struct BusReset {
    info: HotResetInfo,
    names: Vec<String>,
    groups: Vec<(u32, GroupFile)>,
}

/// Why a device keeps its bus from being reset.
enum Obstacle {
    /// A host driver has it, or none: the kernel resets only what is VFIO's.
    NotVfio(Option<String>),
    /// It is VFIO's, and in other hands; or in ours by the other interface.
    Foreign,
    /// The guest is using it.
    InUse,
}

impl BusReset {
    /// The reset of the bus of `device`, where the devices called `together` are all that may be disturbed. `None` if the bus cannot be reset.
    ///
    /// # Errors
    /// [`Error::BusInTheWay`] names the devices that keep it from being reset; [`Error::Kernel`].
    pub(crate) fn plan(device: &Device, together: &[&str]) -> Result<Option<Self>, Error> {
        let Some(info) = device.hot_reset_info()? else { return Ok(None) };
        let groups = device.home().map(|(_, space)| space.groups()).unwrap_or_default();
        let names: Vec<String> = info.devices.iter().map(AffectedDevice::name).collect();
        let (mut others, mut todo) = (Vec::new(), Vec::new());
        for (affected, name) in info.devices.iter().zip(&names) {
            let Some(obstacle) = obstacle(device, affected, name, together, &groups) else { continue };
            let (what, hint) = match obstacle {
                Obstacle::NotVfio(driver) => (
                    driver.map_or("has no driver".to_owned(), |driver| format!("has driver {driver}")),
                    format!("give it to VFIO: doorbell vfio bind {name}"),
                ),
                Obstacle::Foreign => (
                    "is another's".to_owned(),
                    format!(
                        "give it to this guest too, through the same interface: --vfio {name}; or end who has it"
                    ),
                ),
                Obstacle::InUse => (
                    "is in use by this guest".to_owned(),
                    format!("it is reset together with {name} when the guest resets itself"),
                ),
            };
            others.push(format!("{name} {what}"));
            todo.push(hint);
        }
        if others.is_empty() {
            return Ok(Some(Self { info, names, groups }));
        }
        Err(Error::BusInTheWay {
            name: device.name().to_owned(),
            others: others.join(", "),
            hint: todo.join("; "),
        })
    }

    /// Whether it reaches the device of that name.
    pub(crate) fn reaches(&self, name: &str) -> bool {
        self.names.iter().any(|reached| reached == name)
    }

    /// Does it, asked of `device`, which it was planned for. Returns the names of those that have been reset.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub(crate) fn carry_out(self, device: &Device) -> Result<Vec<String>, Error> {
        let shown = |&&(number, _): &&(u32, GroupFile)| {
            self.info.devices.iter().any(|affected| affected.owner == ResetOwner::Group(number))
        };
        let request = if self.info.by_device() {
            HotReset::of_iommufd()
        } else {
            HotReset::of_groups(self.groups.iter().filter(shown).map(|(_, file)| file.as_fd()).collect())
        };
        device.hot_reset(&request)?;
        Ok(self.names)
    }
}

fn obstacle(
    device: &Device,
    affected: &AffectedDevice,
    name: &str,
    together: &[&str],
    groups: &[(u32, GroupFile)],
) -> Option<Obstacle> {
    // What the kernel checks in `vfio_pci_dev_set_resettable`, and answers with EINVAL alone.
    let found = device.home().and_then(|(own, _)| own.neighbour(name));
    let driver = found.as_ref().map(HostDevice::driver);
    if let Some(driver) = driver.filter(|driver| !driver.as_ref().is_some_and(|name| name.contains("vfio"))) {
        return Some(Obstacle::NotVfio(driver));
    }
    let ours = match affected.owner {
        ResetOwner::Group(number) => groups.iter().any(|(ours, _)| *ours == number),
        ResetOwner::Device(_) | ResetOwner::Owned => true,
        ResetOwner::NotOwned => false,
    };
    if !ours {
        return Some(Obstacle::Foreign);
    }
    let open = matches!(affected.owner, ResetOwner::Device(_))
        || device.home().is_some_and(|(_, space)| space.has(name));
    (open && !together.contains(&name)).then_some(Obstacle::InUse)
}
