// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Giving a device to VFIO's driver, and back.

use std::fs;
use std::path::Path;

use super::{HostDevice, Sysfs};
use crate::Error;

impl Sysfs {
    /// Gives a device to VFIO's driver for its bus. Returns the driver that had it.
    ///
    /// If VFIO's driver does not take it, the one that had it gets it back.
    ///
    /// # Errors
    /// [`Error::NoVfio`] if the driver is not there; [`Error::Permission`]; [`Error::Kernel`]; [`Error::NotBound`] if it would not take it.
    pub fn bind(&self, device: &HostDevice) -> Result<Option<String>, Error> {
        let before = device.driver();
        if device.check_bound().is_ok() {
            return Ok(before);
        }
        let driver = self.bus(device.bus()).join("drivers").join(device.bus().vfio_driver());
        if !driver.exists() {
            return Err(Error::NoVfio {
                path: driver,
                needs: "load the module that provides it: modprobe vfio-pci, vfio-platform or vfio-amba",
            });
        }
        let bound = self.rebind(device, device.bus().vfio_driver()).and_then(|()| device.check_bound());
        if bound.is_err() {
            // As it was before. If that fails too, the first failure says more.
            let _ = self.rebind(device, "");
        }
        bound.map(|()| before)
    }

    /// Gives a device back to whichever driver of the host wants it. Returns that driver.
    ///
    /// # Errors
    /// [`Error::Permission`]; [`Error::Kernel`].
    pub fn unbind(&self, device: &HostDevice) -> Result<Option<String>, Error> {
        self.rebind(device, "")?;
        Ok(device.driver())
    }

    /// Leaves the device to the driver of that name, or to any if it is empty.
    fn rebind(&self, device: &HostDevice, driver: &str) -> Result<(), Error> {
        let put = |action, path: &Path, text: &str| {
            fs::write(path, text).map_err(|e| Error::kernel(action, path.display().to_string(), e))
        };
        // A line feed clears it, an empty write would not reach the attribute.
        put("write to", &device.path().join("driver_override"), &format!("{driver}\n"))?;
        if device.driver().is_some() {
            put("write to", &device.path().join("driver/unbind"), device.name())?;
        }
        let probe = self.bus(device.bus()).join("drivers_probe");
        match fs::write(&probe, device.name()) {
            Ok(()) => Ok(()),
            // What the kernel answers where no driver takes it (`bus_rescan_devices_helper`): for unbind that is an outcome.
            Err(e) if driver.is_empty() && e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            Err(e) => Err(Error::kernel("write to", probe.display().to_string(), e)),
        }
    }
}
