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
}

impl Preopened {
    /// Files by their paths relative to `/dev`: `vfio/vfio`, `vfio/12`, `iommu`, `vfio/devices/vfio0`.
    #[must_use]
    pub fn new(files: impl IntoIterator<Item = (String, OwnedFd)>) -> Self {
        Self { files: Mutex::new(files.into_iter().collect()) }
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
        self.files.lock().unwrap_or_else(PoisonError::into_inner).contains_key("iommu")
    }
}
