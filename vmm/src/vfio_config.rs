// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which devices of the host a machine gets: `--platform 9010000.pl031,iommu=noiommu`, `[[platform]]` tables in the TOML file.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use vfio_passthrough::ResamplePath;
use vfio_passthrough::iommu::{IommuChoice, IommuKind};

use crate::devices::table;

/// A platform or AMBA device of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Platform {
    /// Its name in sysfs.
    pub device: String,
    /// What stands between it and memory.
    #[serde(default)]
    pub iommu: Iommu,
    /// How the end of its level interrupts reaches the host.
    #[serde(default)]
    pub resample: Resample,
    /// A compiled device-tree overlay with what the host's node does not say in a way that the guest could understand.
    pub overlay: Option<PathBuf>,
}

/// A PCI device of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vfio {
    /// Its address: `0000:00:08.0`.
    pub device: String,
    /// What stands between it and memory.
    #[serde(default)]
    pub iommu: Iommu,
    /// How the end of its line's interrupts reaches the host.
    #[serde(default)]
    pub resample: Resample,
    /// What it is called in messages and reports; its address where this is not given.
    pub id: Option<String>,
    /// What to do when it fails, or the host wants it back.
    #[serde(default)]
    pub on_event: OnEvent,
    /// Whether it is in a slot, which it can leave while the guest runs. Implied by [`OnEvent::Unplug`].
    #[serde(default)]
    pub slot: bool,
}

impl Vfio {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        self.id.as_deref().unwrap_or(&self.device)
    }

    /// Whether it is to be in a slot.
    #[must_use]
    pub fn wants_slot(&self) -> bool {
        self.slot || self.on_event == OnEvent::Unplug
    }
}

/// What to do when a device fails, or the host wants it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnEvent {
    /// Say so.
    #[default]
    Report,
    /// End the guest, with exit status 3.
    Stop,
    /// Ask the guest to release it.
    Unplug,
}

/// What stands between a device and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Iommu {
    /// The host's IOMMU, by the newest interface that it has.
    #[default]
    Auto,
    /// By containers and groups.
    Legacy,
    /// By an iommufd.
    Iommufd,
    /// Nothing: the device must do no DMA.
    NoIommu,
}

/// How the end of a level interrupt reaches the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resample {
    /// From KVM to VFIO.
    #[default]
    Kernel,
    /// Through this program's event loop.
    Loop,
}

impl From<Iommu> for IommuChoice {
    fn from(iommu: Iommu) -> Self {
        match iommu {
            Iommu::Auto => Self::Auto,
            Iommu::Legacy => Self::Only(IommuKind::Legacy),
            Iommu::Iommufd => Self::Only(IommuKind::Iommufd),
            Iommu::NoIommu => Self::Only(IommuKind::NoIommu),
        }
    }
}

impl From<Resample> for ResamplePath {
    fn from(resample: Resample) -> Self {
        match resample {
            Resample::Kernel => Self::Kernel,
            Resample::Loop => Self::EventLoop,
        }
    }
}

impl FromStr for Vfio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        table(&named(text), &["device", "iommu", "resample", "id", "on-event"])
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        table(&named(text), &["device", "iommu", "resample", "overlay"])
    }
}

/// The device comes first and needs no key.
fn named(text: &str) -> String {
    if text.split(',').next().is_some_and(|first| first.contains('=')) {
        text.to_owned()
    } else {
        format!("device={text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_device_is_read_from_the_command_line_as_from_the_file() {
        let device: Platform = "9010000.pl031,iommu=noiommu,resample=loop,overlay=rtc.dtbo".parse().unwrap();
        let file: Platform = toml::from_str(
            "device = \"9010000.pl031\"\niommu = \"noiommu\"\nresample = \"loop\"\noverlay = \"rtc.dtbo\"",
        )
        .unwrap();
        assert_eq!(device, file);
        assert_eq!("device=a.b".parse::<Platform>().unwrap(), "a.b".parse().unwrap());
        assert_eq!("a.b".parse::<Platform>().unwrap().iommu, Iommu::Auto);
    }

    #[test]
    fn a_pci_device_is_read_from_the_command_line_as_from_the_file() {
        let device: Vfio = "0000:00:08.0,iommu=legacy,id=disk,on-event=stop".parse().unwrap();
        let file: Vfio = toml::from_str(
            "device = \"0000:00:08.0\"\niommu = \"legacy\"\nid = \"disk\"\non-event = \"stop\"",
        )
        .unwrap();
        assert_eq!(device, file);
        assert_eq!((device.on_event, device.resample), (OnEvent::Stop, Resample::Kernel));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, word) in [
            ("a.b,iommu=none", "none"),
            ("a.b,colour=red", "colour"),
            ("a.b,c.d", "KEY=VALUE"),
            ("a.b,device=c.d", "twice"),
            ("iommu=auto", "device"),
        ] {
            let error = text.parse::<Platform>().unwrap_err();
            assert!(error.contains(word), "{text:?} gave {error:?}");
        }
    }
}
