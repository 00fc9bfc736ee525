// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the descriptors come from: opened by path, or opened before by somebody who may.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::Error;

/// The files of VFIO, by what they are for.
pub trait VfioFiles: Send + Sync + fmt::Debug {
    /// A new container: `/dev/vfio/vfio`.
    ///
    /// # Errors
    /// [`Error::NoVfio`], [`Error::Permission`], [`Error::Kernel`].
    fn container(&self) -> Result<OwnedFd, Error>;

    /// A group, called `N`, or `noiommu-N`.
    ///
    /// # Errors
    /// As above, and [`Error::InUse`].
    fn group(&self, name: &str) -> Result<OwnedFd, Error>;

    /// A new iommufd: `/dev/iommu`.
    ///
    /// # Errors
    /// As above.
    fn iommufd(&self) -> Result<OwnedFd, Error>;

    /// A device's own file, called `vfioN`.
    ///
    /// # Errors
    /// As above.
    fn device(&self, name: &str) -> Result<OwnedFd, Error>;

    /// Whether there may be an iommufd.
    fn has_iommufd(&self) -> bool;
}

/// The files in `/dev`.
#[derive(Debug, Clone)]
pub struct HostFiles {
    dev: PathBuf,
}

impl Default for HostFiles {
    fn default() -> Self {
        Self { dev: PathBuf::from("/dev") }
    }
}

impl HostFiles {
    /// Files in another directory than `/dev`.
    #[must_use]
    pub fn at(dev: impl Into<PathBuf>) -> Self {
        Self { dev: dev.into() }
    }

    fn open(&self, path: &Path, needs: &'static str) -> Result<OwnedFd, Error> {
        let path = self.dev.join(path);
        OpenOptions::new().read(true).write(true).open(&path).map(OwnedFd::from).map_err(|e| {
            // ENODEV is what a node without a driver behind it says.
            if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) {
                Error::NoVfio { path, needs }
            } else {
                Error::kernel("open", path.display().to_string(), e)
            }
        })
    }
}

impl VfioFiles for HostFiles {
    fn container(&self) -> Result<OwnedFd, Error> {
        self.open(Path::new("vfio/vfio"), "load the module: modprobe vfio")
    }

    fn group(&self, name: &str) -> Result<OwnedFd, Error> {
        let needs = if name.starts_with("noiommu") {
            "give the host's kernel vfio.enable_unsafe_noiommu_mode=1 before the device is bound to its VFIO driver"
        } else {
            "bind the device to its VFIO driver: doorbell vfio bind"
        };
        self.open(&Path::new("vfio").join(name), needs)
    }

    fn iommufd(&self) -> Result<OwnedFd, Error> {
        self.open(Path::new("iommu"), "it takes a kernel with CONFIG_IOMMUFD; iommu=legacy does without")
    }

    fn device(&self, name: &str) -> Result<OwnedFd, Error> {
        self.open(
            &Path::new("vfio/devices").join(name),
            "it takes a kernel with CONFIG_VFIO_DEVICE_CDEV; iommu=legacy does without",
        )
    }

    fn has_iommufd(&self) -> bool {
        self.dev.join("iommu").exists()
    }
}

/// Files that were opened before this process was locked in: each can be taken once.
#[derive(Debug, Default)]
pub struct Preopened {
    files: Mutex<BTreeMap<String, OwnedFd>>,
    /// Whether there was an iommufd: the devices after the first, which has taken it, go into its address space.
    iommufd: bool,
}

impl Preopened {
    /// Files by their paths relative to `/dev`: `vfio/vfio`, `vfio/12`, `iommu`, `vfio/devices/vfio0`.
    #[must_use]
    pub fn new(files: impl IntoIterator<Item = (String, OwnedFd)>) -> Self {
        let files: BTreeMap<_, _> = files.into_iter().collect();
        let iommufd = files.contains_key("iommu");
        Self { files: Mutex::new(files), iommufd }
    }

    fn take(&self, path: &str) -> Result<OwnedFd, Error> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(path).ok_or_else(|| Error::NoVfio {
            path: Path::new("/dev").join(path),
            needs: "it was to be opened beforehand: give it to this process",
        })
    }
}

impl VfioFiles for Preopened {
    fn container(&self) -> Result<OwnedFd, Error> {
        self.take("vfio/vfio")
    }

    fn group(&self, name: &str) -> Result<OwnedFd, Error> {
        self.take(&format!("vfio/{name}"))
    }

    fn iommufd(&self) -> Result<OwnedFd, Error> {
        self.take("iommu")
    }

    fn device(&self, name: &str) -> Result<OwnedFd, Error> {
        self.take(&format!("vfio/devices/{name}"))
    }

    fn has_iommufd(&self) -> bool {
        self.iommufd
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::fs;
    use std::os::fd::AsRawFd;
    use vmm_sys_util::tempdir::TempDir;

    type Open = fn(&dyn VfioFiles) -> Result<OwnedFd, Error>;

    /// Each kind of file, by its path.
    const FILES: [(&str, Open); 5] = [
        ("vfio/vfio", |files| files.container()),
        ("vfio/12", |files| files.group("12")),
        ("vfio/noiommu-0", |files| files.group("noiommu-0")),
        ("iommu", |files| files.iommufd()),
        ("vfio/devices/vfio3", |files| files.device("vfio3")),
    ];

    #[test]
    fn files_are_where_the_kernel_has_them_and_what_is_missing_is_said_with_what_it_needs() {
        let directory = TempDir::new().unwrap();
        let dev = directory.as_path();
        let files = HostFiles::at(dev);
        let mut needs = Vec::new();
        for (path, open) in FILES {
            match open(&files).unwrap_err() {
                Error::NoVfio { path: missing, needs: it } if missing == dev.join(path) => needs.push(it),
                other => panic!("{path}: {other:?}"),
            }
        }
        needs.dedup();
        assert_eq!(needs.len(), FILES.len(), "to each its own: {needs:?}");
        assert!(!files.has_iommufd());
        fs::create_dir_all(dev.join("vfio/devices")).unwrap();
        for (path, open) in FILES {
            fs::write(dev.join(path), path).unwrap();
            let file = fs::File::from(open(&files).unwrap());
            assert_eq!(std::io::read_to_string(file).unwrap(), path);
        }
        assert!(files.has_iommufd());
    }

    #[test]
    fn a_file_that_was_opened_before_is_taken_once() {
        let opened =
            FILES.map(|(path, _)| (path.to_owned(), memfd_create(path, MemfdFlags::CLOEXEC).unwrap()));
        let numbers = opened.each_ref().map(|(_, file)| file.as_raw_fd());
        let files = Preopened::new(opened);
        for ((path, open), number) in FILES.into_iter().zip(numbers) {
            assert_eq!(open(&files).unwrap().as_raw_fd(), number, "{path}");
            let again = open(&files).unwrap_err();
            assert!(matches!(&again, Error::NoVfio { path: it, .. } if *it == Path::new("/dev").join(path)));
        }
        assert!(files.has_iommufd(), "the next device is to go where the first one went");
        assert!(!Preopened::default().has_iommufd());
    }
}
