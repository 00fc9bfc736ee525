// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices of the host on their way to a guest.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::Host;

/// A device of the host that VFIO has. Dropping it gives the device back to the driver that had it, which must take it.
#[derive(Debug)]
pub struct Bound<'a> {
    host: &'a Host,
    name: String,
    before: Option<String>,
}

/// The directory of a device, whichever bus it is on.
fn directory(name: &str) -> Option<PathBuf> {
    ["pci", "amba", "platform"]
        .iter()
        .map(|bus| PathBuf::from(format!("/sys/bus/{bus}/devices/{name}")))
        .find(|path| path.exists())
}

/// The driver that has a device.
///
/// # Panics
/// If there is no such device.
#[must_use]
pub fn driver(name: &str) -> Option<String> {
    let link = fs::read_link(directory(name).unwrap_or_else(|| panic!("no device {name}")).join("driver"));
    Some(link.ok()?.file_name()?.to_string_lossy().into_owned())
}

impl<'a> Bound<'a> {
    /// Gives a device to VFIO as a user does. `None` if the host has no such device.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn new(host: &'a Host, name: &str) -> Option<Self> {
        directory(name)?;
        let before = driver(name);
        let this = Self { host, name: name.to_owned(), before };
        this.run("bind");
        assert!(driver(name).is_some_and(|driver| driver.contains("vfio")), "{name} is not VFIO's");
        Some(this)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, verb: &str) {
        let output = Command::new(&self.host.doorbell).args(["vfio", verb, &self.name]).output().unwrap();
        assert!(output.status.success(), "vfio {verb} {}: {output:?}", self.name);
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The next test starts from where it was, if that can be done.
            let _ = Command::new(&self.host.doorbell).args(["vfio", "unbind", &self.name]).status();
            return;
        }
        self.run("unbind");
        assert_eq!(driver(&self.name), self.before, "the host has not got {} back", self.name);
    }
}

/// The device, bound; or the test is skipped.
#[macro_export]
macro_rules! bind_or_skip {
    ($host:expr, $name:expr) => {
        match $crate::guest::Bound::new($host, $name) {
            Some(bound) => bound,
            None => $crate::skip!("this host has no device {}", $name),
        }
    };
}
