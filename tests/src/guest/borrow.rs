// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors of a program that runs, for a test that does to its devices what the program itself never would.
#![allow(unsafe_code, reason = "VFIO's ioctl has no wrapper for a descriptor that is somebody else's")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use vfio_passthrough::IrqSet;

use super::Running;

/// `VFIO_DEVICE_SET_IRQS` (the kernel's `include/uapi/linux/vfio.h`): `_IO(';', 110)`.
const SET_IRQS: u64 = 0x3b6e;

impl Running {
    /// The program's descriptor with this number, as a debugger gets it. Takes root.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn descriptor(&self, number: RawFd) -> OwnedFd {
        let pid = Pid::from_raw(self.pid().try_into().unwrap()).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap()
    }

    /// The program's descriptor of a VFIO device. The first one, if it has several.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn vfio_device(&self) -> OwnedFd {
        let entries = fs::read_dir(self.proc("fd")).unwrap().flatten();
        let mut devices = entries.filter(|entry| {
            let link = fs::read_link(entry.path()).unwrap_or_default();
            let link = link.to_string_lossy();
            // Of a group of the legacy interface, or by its own name.
            link.contains("[vfio-device]") || link.starts_with("/dev/vfio/devices/")
        });
        let device = devices.next().unwrap_or_else(|| panic!("no VFIO device is open"));
        self.descriptor(device.file_name().to_string_lossy().parse().unwrap())
    }
}

/// `VFIO_DEVICE_SET_IRQS` on such a device.
///
/// # Errors
/// What the kernel says.
pub fn set_irqs(device: BorrowedFd<'_>, set: &IrqSet<'_>) -> io::Result<()> {
    let mut payload = set.encode();
    // SAFETY: the payload says its own size, and is read only; the descriptors in it are those of `set`, which are open.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), SET_IRQS as _, payload.as_mut_ptr()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
