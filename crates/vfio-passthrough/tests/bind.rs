// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is written to sysfs to give a device to VFIO and back. Files stand in for the kernel's attributes; nothing changes hands.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::fs;

use common::FakeSysfs;
use vfio_passthrough::Error;

const NAME: &str = "0000:03:00.0";

#[test]
fn a_device_that_vfio_does_not_take_is_given_back() {
    let sysfs = FakeSysfs::new();
    let device = sysfs.add(NAME, Some("nvme"));
    let drivers = device.path().join("../../drivers");
    let attribute = |path: &str| fs::read_to_string(drivers.join(path)).unwrap_or_default();
    let written = || {
        let name_of_driver = fs::read_to_string(device.path().join("driver_override")).unwrap_or_default();
        (name_of_driver, attribute("nvme/unbind"), attribute("../drivers_probe"))
    };
    fs::create_dir_all(drivers.join("nvme")).unwrap();

    // Without the module nothing is touched.
    assert!(matches!(sysfs.sysfs().bind(&device), Err(Error::NoVfio { .. })));
    assert_eq!(written(), Default::default());

    fs::create_dir_all(drivers.join("vfio-pci")).unwrap();
    assert!(matches!(sysfs.sysfs().bind(&device), Err(Error::NotBound { .. })));
    let given_back = ("\n".to_owned(), NAME.to_owned(), NAME.to_owned());
    assert_eq!(written(), given_back, "to any driver that wants it");

    // Where the kernel refuses a step, that is what is said, and VFIO's name does not stay behind.
    fs::remove_file(drivers.join("nvme/unbind")).unwrap();
    fs::create_dir(drivers.join("nvme/unbind")).unwrap();
    let error = sysfs.sysfs().bind(&device).unwrap_err();
    assert!(error.to_string().contains("driver/unbind"), "{error}");
    assert_eq!(written().0, "\n");
}

#[test]
fn a_device_goes_back_to_whoever_wants_it() {
    let sysfs = FakeSysfs::new();
    let device = sysfs.add(NAME, Some("vfio-pci"));
    let drivers = device.path().join("../../drivers");
    fs::create_dir_all(drivers.join("vfio-pci")).unwrap();
    // VFIO's already: nothing to do.
    assert_eq!(sysfs.sysfs().bind(&device).unwrap().as_deref(), Some("vfio-pci"));
    assert!(!device.path().join("driver_override").exists());
    sysfs.sysfs().unbind(&device).unwrap();
    assert_eq!(fs::read_to_string(device.path().join("driver_override")).unwrap(), "\n");
    assert_eq!(fs::read_to_string(drivers.join("vfio-pci/unbind")).unwrap(), NAME);
    assert_eq!(fs::read_to_string(drivers.join("../drivers_probe")).unwrap(), NAME);
    // One without a driver has nobody to be taken from.
    let device = sysfs.add("0000:03:00.1", None);
    assert_eq!(sysfs.sysfs().unbind(&device).unwrap(), None);
}
