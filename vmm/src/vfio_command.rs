// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `doorbell vfio`: the host's devices, seen from the side of somebody who wants to pass one through.

use std::io::{self, Write};
use std::path::Path;

use vfio_passthrough::host::{HostDevice, PciDescription, Sysfs, name_devices};

use crate::cli::VfioCommand;
use crate::error::Result;
use crate::status::Status;
use crate::vfio::Explain;

/// Where distributions put the list of PCI devices' names.
const NAMES: [&str; 2] = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"];

/// Does it. Returns the exit status.
///
/// # Errors
/// If it cannot be done; the error has the exit status. Devices before the one that failed stay as they were made.
pub fn vfio_command(command: &VfioCommand) -> Result<u8> {
    let sysfs = Sysfs::new();
    match command {
        VfioCommand::List => {
            let mut devices = sysfs.pci_devices();
            let _ = NAMES.iter().any(|file| name_devices(&mut devices, Path::new(file)));
            // Whoever does not read it any more has seen enough.
            let _ = io::stdout().write_all(list(&devices).as_bytes());
        }
        VfioCommand::Bind { devices } => {
            for (option, device) in find(&sysfs, "bind", devices)? {
                let before = sysfs.bind(&device).explain(&option)?;
                say(&device, before.as_deref());
            }
        }
        VfioCommand::Unbind { devices } => {
            for (option, device) in find(&sysfs, "unbind", devices)? {
                let before = device.driver();
                sysfs.unbind(&device).explain(&option)?;
                say(&device, before.as_deref());
            }
        }
    }
    Ok(Status::PowerOff.code())
}

/// All of them, before the first is touched.
fn find(sysfs: &Sysfs, verb: &str, names: &[String]) -> Result<Vec<(String, HostDevice)>> {
    names
        .iter()
        .map(|name| {
            let option = format!("vfio {verb} {name}");
            // Only a PCI address has colons before a dot.
            let device = if name.split('.').next().is_some_and(|start| start.contains(':')) {
                sysfs.pci_device(name)
            } else {
                sysfs.platform_device(name)
            };
            Ok((option.clone(), device.explain(&option)?))
        })
        .collect()
}

fn say(device: &HostDevice, before: Option<&str>) {
    let none = "no driver";
    let _ = writeln!(
        io::stdout(),
        "{device}: {} -> {}",
        before.unwrap_or(none),
        device.driver().as_deref().unwrap_or(none)
    );
}

/// One line a device, and one more for what stands in its way.
fn list(devices: &[PciDescription]) -> String {
    let mut text = String::new();
    for device in devices {
        let (vendor, id) = device.ids;
        let group = device.group.map_or_else(|| "no group".to_owned(), |group| format!("group {group}"));
        let others = match device.others.as_slice() {
            [] => String::new(),
            others => {
                let names: Vec<&str> = others.iter().map(|(name, _)| name.as_str()).collect();
                format!(" with {}", names.join(" "))
            }
        };
        text.push_str(&format!(
            "{}  {vendor:04x}:{id:04x}  {:06x}  {}  {group}{others}  {}{}\n",
            device.device,
            device.class,
            device.driver.as_deref().unwrap_or("no driver"),
            device.interrupts,
            device.name.as_ref().map(|name| format!("  {name}")).unwrap_or_default(),
        ));
        match device.obstacle() {
            None => text.push_str(&format!("    ready: --vfio {}\n", device.device)),
            Some(obstacle) => text.push_str(&format!("    {obstacle}\n")),
        }
    }
    if text.is_empty() {
        text.push_str("this host has no PCI devices\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn refused(command: &VfioCommand) -> Error {
        vfio_command(command).unwrap_err()
    }

    #[test]
    fn names_of_nothing_are_refused_before_anything_is_touched() {
        for (name, word) in [
            ("0000:00:99.0", "PCI"),
            ("ffff:ff:1f.7", "ffff:ff:1f.7"),
            ("no.such-device", "no.such-device"),
            ("../etc", "platform"),
        ] {
            let error = refused(&VfioCommand::Bind { devices: vec![name.to_owned()] });
            assert_eq!(error.status(), Status::Usage, "{name}");
            assert!(error.one_line().contains(word), "{}", error.one_line());
            refused(&VfioCommand::Unbind { devices: vec![name.to_owned()] });
        }
    }

    #[test]
    fn an_empty_host_is_said_to_be_one() {
        assert_eq!(list(&[]), "this host has no PCI devices\n");
    }
}
