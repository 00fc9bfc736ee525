// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host's PCI devices are, for somebody who is to choose one.

use std::fmt;
use std::fs;
use std::path::Path;

use super::{HostBus, HostDevice, Sysfs};
use crate::pci::capability_list;

/// A PCI device of the host, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciDescription {
    /// The device itself.
    pub device: HostDevice,
    /// Vendor and device ID.
    pub ids: (u16, u16),
    /// Class, subclass and programming interface.
    pub class: u32,
    /// What it is called, if the host has a list of names.
    pub name: Option<String>,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group, if it is behind an IOMMU.
    pub group: Option<u32>,
    /// The other devices of the group, with their drivers.
    pub others: Vec<(String, Option<String>)>,
    /// How it can interrupt.
    pub interrupts: PciInterrupts,
}

/// How a PCI device can interrupt, as far as whoever asks may read its configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PciInterrupts {
    /// Whether it has a line.
    pub intx: bool,
    /// How many MSI vectors.
    pub msi: u16,
    /// How many MSI-X vectors.
    pub msix: u16,
}

impl fmt::Display for PciInterrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.intx {
            parts.push("INTx".to_owned());
        }
        if self.msi > 0 {
            parts.push(format!("MSI {}", self.msi));
        }
        if self.msix > 0 {
            parts.push(format!("MSI-X {}", self.msix));
        }
        f.write_str(if parts.is_empty() { "none" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

impl PciInterrupts {
    /// From the bytes of a configuration space, or its first 64.
    #[must_use]
    pub fn from_config(config: &[u8]) -> Self {
        let half = |at: u16| {
            let at = usize::from(at);
            config.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes)
        };
        let mut this = Self { intx: config.get(0x3d).is_some_and(|&pin| pin != 0), ..Self::default() };
        for (id, at) in capability_list(config) {
            match id {
                5 if usize::from(at) + 4 <= config.len() => this.msi = 1 << (half(at + 2) >> 1 & 7).min(5),
                0x11 if usize::from(at) + 4 <= config.len() => this.msix = (half(at + 2) & 0x7ff) + 1,
                _ => {}
            }
        }
        this
    }
}

impl PciDescription {
    /// Why it cannot be passed through as it is, and what to do; `None` if it can.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        if self.class >> 16 == 0x06 {
            return Some("a bridge".to_owned());
        }
        let Some(group) = self.group else {
            return Some(
                "behind no IOMMU: switch it on in the firmware and on the kernel's command line".to_owned(),
            );
        };
        let in_the_way: Vec<&str> = self
            .others
            .iter()
            .filter(|(_, driver)| {
                driver.as_ref().is_some_and(|driver| {
                    !driver.contains("vfio") && driver != "pcieport" && driver != "pci-stub"
                })
            })
            .map(|(name, _)| name.as_str())
            .collect();
        if !in_the_way.is_empty() {
            let names = in_the_way.join(" ");
            return Some(format!("group {group} is shared with {names}: doorbell vfio bind {names}"));
        }
        match &self.driver {
            Some(driver) if driver.contains("vfio") => None,
            _ => Some(format!("doorbell vfio bind {}", self.device.name())),
        }
    }
}

impl Sysfs {
    /// All PCI devices of the host, by address.
    #[must_use]
    pub fn pci_devices(&self) -> Vec<PciDescription> {
        let Ok(entries) = fs::read_dir(self.bus(HostBus::Pci).join("devices")) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.iter().filter_map(|name| self.device(HostBus::Pci, name)).map(describe).collect()
    }
}

fn describe(device: HostDevice) -> PciDescription {
    let number = |name: &str| {
        let text = fs::read_to_string(device.path().join(name)).unwrap_or_default();
        u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap_or(0)
    };
    let id = |name| u16::try_from(number(name)).unwrap_or(0);
    let config = fs::read(device.path().join("config")).unwrap_or_default();
    PciDescription {
        ids: (id("vendor"), id("device")),
        class: number("class"),
        name: None,
        driver: device.driver(),
        group: device.iommu_group().filter(|_| !device.is_noiommu()),
        others: device.group_members(),
        interrupts: PciInterrupts::from_config(&config),
        device,
    }
}

/// Fills in the names from a file in the format of the PCI ID project (`pci.ids`), where the host has one. Returns whether it has.
pub fn name_devices(devices: &mut [PciDescription], file: &Path) -> bool {
    let Ok(text) = fs::read(file) else { return false };
    let text = String::from_utf8_lossy(&text);
    let mut vendor: Option<(u16, &str)> = None;
    for line in text.lines() {
        if line.starts_with("\t\t") || line.starts_with('#') || line.is_empty() {
            continue;
        }
        // Classes follow the vendors.
        if line.starts_with("C ") {
            break;
        }
        let indented = line.strip_prefix('\t');
        let entry = indented.unwrap_or(line).split_once("  ");
        let Some((Ok(id), name)) = entry.map(|(id, name)| (u16::from_str_radix(id, 16), name)) else {
            continue;
        };
        match (indented, vendor) {
            (None, _) => {
                vendor = Some((id, name));
                for device in devices.iter_mut().filter(|device| device.ids.0 == id) {
                    device.name = Some(name.to_owned());
                }
            }
            (Some(_), Some((vendor, maker))) => {
                for device in devices.iter_mut().filter(|device| device.ids == (vendor, id)) {
                    device.name = Some(format!("{maker} {name}"));
                }
            }
            (Some(_), None) => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Sysfs;

    #[test]
    fn interrupts_are_counted_from_the_capabilities() {
        let mut config = vec![0; 256];
        config[6] = 0x10;
        config[0x34] = 0x40;
        config[0x3d] = 1;
        config[0x40..0x44].copy_from_slice(&[0x11, 0x50, 64, 0]);
        config[0x50..0x54].copy_from_slice(&[5, 0, 4, 0]);
        let interrupts = PciInterrupts::from_config(&config);
        assert_eq!(interrupts, PciInterrupts { intx: true, msi: 4, msix: 65 });
        assert_eq!(interrupts.to_string(), "INTx, MSI 4, MSI-X 65");
        // Without privilege one sees the header only.
        assert_eq!(PciInterrupts::from_config(&config[..64]).to_string(), "INTx");
        assert_eq!(PciInterrupts::from_config(&[]).to_string(), "none");
    }

    #[test]
    fn what_stands_in_the_way_is_said_with_what_to_type() {
        let device =
            HostDevice { name: "0000:01:00.0".into(), bus: HostBus::Pci, path: "/nonexistent".into() };
        let good = PciDescription {
            device,
            ids: (1, 2),
            class: 0x01_0802,
            name: None,
            driver: Some("vfio-pci".into()),
            group: Some(7),
            others: vec![("0000:00:01.0".into(), Some("pcieport".into()))],
            interrupts: PciInterrupts::default(),
        };
        assert_eq!(good.obstacle(), None);
        let nvme = PciDescription { driver: Some("nvme".into()), ..good.clone() };
        assert_eq!(nvme.obstacle().unwrap(), "doorbell vfio bind 0000:01:00.0");
        let shared =
            PciDescription { others: vec![("0000:01:00.1".into(), Some("snd".into()))], ..good.clone() };
        assert!(shared.obstacle().unwrap().contains("bind 0000:01:00.1"));
        assert!(PciDescription { group: None, ..good.clone() }.obstacle().unwrap().contains("IOMMU"));
        assert_eq!(PciDescription { class: 0x06_0400, ..good }.obstacle().unwrap(), "a bridge");
        assert_eq!(Sysfs::at("/nonexistent").pci_devices(), []);
    }
}
