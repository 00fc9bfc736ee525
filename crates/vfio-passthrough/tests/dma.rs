// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's memory as its devices see it, and by which interface.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use common::*;
use vfio_passthrough::fake::Call;
use vfio_passthrough::iommu::{IommuChoice, IommuKind, VfioFiles};
use vfio_passthrough::{DmaSpaces, Error};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// A container forgets its mappings with its last group, an address space of iommufd's does not.
#[test]
fn guest_memory_is_mapped_once_for_two_devices_and_unmapped_after_the_last() {
    [IommuKind::Legacy, IommuKind::Iommufd].into_iter().for_each(mapped_once_and_unmapped);
}

#[test]
fn memory_is_not_mapped_where_there_is_no_iommu() {
    let rig = Rig::by(IommuKind::NoIommu);
    rig.iommu.add(PCI_NAME, Nvme::default().device(&rig));
    let _open = rig.space.open(&rig.pci_name()).unwrap();
    assert_eq!((rig.iommu.mapped(), rig.iommu.attached()), (vec![], 1));
    assert!(rig.space.has(PCI_NAME) && !rig.space.has(PLATFORM_NAME));
    assert_eq!((rig.space.kind(), rig.space.devices()), (IommuKind::NoIommu, 1));
}

fn mapped_once_and_unmapped(kind: IommuKind) {
    let rig = Rig::by(kind);
    rig.iommu.add(PCI_NAME, Nvme::default().device(&rig));
    rig.iommu.add(PLATFORM_NAME, pl031(&rig));
    let first = rig.space.open(&rig.pci_name()).unwrap();
    let memory = [(0x4000_0000, 4 << 20), (0x8000_0000, 2 << 20)];
    assert_eq!(rig.iommu.mapped(), memory);
    let second = rig.space.open(&rig.platform_name()).unwrap();
    assert_eq!((rig.iommu.mapped().as_slice(), rig.iommu.attached()), (memory.as_slice(), 2));
    drop(first);
    assert_eq!(rig.iommu.mapped(), memory);
    drop(second);
    assert_eq!((rig.iommu.mapped(), rig.iommu.attached()), (vec![], 0));
    // A step that fails leaves nothing.
    rig.faults.fail(Call::MapDma, 2, libc::EIO);
    assert!(rig.space.open(&rig.pci_name()).is_err());
    assert_eq!((rig.iommu.mapped(), rig.iommu.attached()), (vec![], 0));
    // And again: what a device that is unplugged and plugged needs.
    let again = rig.space.open(&rig.pci_name()).unwrap();
    assert_eq!(rig.iommu.mapped(), memory);
    drop(again);
}

#[test]
fn guest_memory_in_the_msi_window_is_refused_with_the_ranges() {
    let rig = Rig::new();
    rig.iommu.add(PCI_NAME, Nvme::default().device(&rig));
    rig.iommu.set_ranges(vec![(0, 0x7fff_ffff), (0x8010_0000, u64::MAX)]);
    let error = rig.space.open(&rig.pci_name()).unwrap_err();
    assert!(matches!(&error, Error::Reserved { memory: (0x8000_0000, 0x8020_0000), .. }), "{error:?}");
    assert!(error.to_string().contains("0x8010000"), "{error}");
    assert_eq!((rig.iommu.mapped(), rig.iommu.attached()), (vec![], 0));
}

#[test]
fn a_lock_limit_that_is_too_low_is_said_with_what_is_needed() {
    let rig = Rig::new();
    rig.iommu.add(PCI_NAME, Nvme::default().device(&rig));
    rig.faults.fail(Call::MapDma, 2, libc::ENOMEM);
    let error = rig.space.open(&rig.pci_name()).unwrap_err();
    // Where the limit is "unlimited" the kernel's answer stands for itself.
    match &error {
        Error::MemoryLock { needed, .. } => {
            assert_eq!(*needed, 6 << 20);
            assert!(error.hint().unwrap().contains("ulimit -l"));
        }
        Error::Kernel { .. } => {}
        other => panic!("{other:?}"),
    }
    assert_eq!((rig.iommu.mapped(), rig.iommu.attached()), (vec![], 0));
}

/// Has no files, and notes which it was asked for.
#[derive(Debug)]
struct Asked {
    has_iommufd: bool,
    names: Mutex<Vec<String>>,
}

impl Asked {
    fn refuse(&self, name: &str) -> Result<OwnedFd, Error> {
        self.names.lock().unwrap().push(name.to_owned());
        Err(Error::NoVfio { path: name.into(), needs: "" })
    }
}

impl VfioFiles for Asked {
    fn container(&self) -> Result<OwnedFd, Error> {
        self.refuse("vfio/vfio")
    }

    fn group(&self, name: &str) -> Result<OwnedFd, Error> {
        self.refuse(name)
    }

    fn iommufd(&self) -> Result<OwnedFd, Error> {
        self.refuse("iommu")
    }

    fn device(&self, name: &str) -> Result<OwnedFd, Error> {
        self.refuse(name)
    }

    fn has_iommufd(&self) -> bool {
        self.has_iommufd
    }
}

#[test]
fn the_newer_interface_is_for_those_who_ask_for_it_or_have_all_that_it_takes() {
    let sysfs = FakeSysfs::new();
    let device = sysfs.add(PCI_NAME, Some("vfio-pci"));
    let (auto, only) = (IommuChoice::Auto, IommuChoice::Only);
    // (the device has a file of its own, the host has an iommufd, what is asked for, which file is wanted then)
    for (cdev, has_iommufd, choice, wanted) in [
        (false, false, auto, "vfio/vfio"),
        (false, true, auto, "vfio/vfio"),
        (true, false, auto, "vfio/vfio"),
        (true, true, auto, "iommu"),
        (true, true, only(IommuKind::Legacy), "vfio/vfio"),
        (true, true, only(IommuKind::NoIommu), "vfio/vfio"),
        (false, false, only(IommuKind::Iommufd), "iommu"),
    ] {
        let file = device.path().join("vfio-dev/vfio0");
        if cdev {
            std::fs::create_dir_all(&file).unwrap();
        }
        let asked = Arc::new(Asked { has_iommufd, names: Mutex::default() });
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let spaces = DmaSpaces::new(Arc::clone(&asked) as _, memory);
        assert!(matches!(spaces.open(&device, choice), Err(Error::NoVfio { .. })));
        assert_eq!(*asked.names.lock().unwrap(), [wanted], "{cdev} {has_iommufd} {choice:?}");
        if cdev {
            std::fs::remove_dir(&file).unwrap();
        }
    }
    let asked = Arc::new(Asked { has_iommufd: true, names: Mutex::default() });
    let spaces = DmaSpaces::new(Arc::clone(&asked) as _, GuestMemoryMmap::new());
    let unbound = sysfs.add(PCI_NAME, Some("nvme"));
    assert!(matches!(spaces.open(&unbound, auto), Err(Error::NotBound { .. })));
    assert!(asked.names.lock().unwrap().is_empty(), "nobody is asked for what is the host's");
}
