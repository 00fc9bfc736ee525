// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The newer interface: an iommufd has I/O address spaces, and each device its own file (Linux 6.6 and later).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use iommufd_bindings::iommufd::{
    iommu_ioas_map, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITABLE,
};
use iommufd_ioctls::{IommuFd, IommufdError, IommufdIoas};

use super::{DmaMemory, GroupFile, Iommu, IommuKind, Opened, VfioFiles, of_the_host};
use crate::device::KernelDevice;
use crate::host::{HostBus, HostDevice};
use crate::{Error, sys};

/// An I/O address space of an iommufd.
pub struct Iommufd {
    files: Arc<dyn VfioFiles>,
    space: Arc<Space>,
}

struct Space {
    ioas: IommufdIoas,
    iommufd: Arc<IommuFd>,
    /// The same open file, for the calls that iommufd-ioctls does not have.
    fd: OwnedFd,
}

impl Iommufd {
    /// A new address space of a new iommufd.
    ///
    /// # Errors
    /// [`Error::NoVfio`], [`Error::Permission`], [`Error::Kernel`].
    pub fn new(files: Arc<dyn VfioFiles>) -> Result<Self, Error> {
        let fd = files.iommufd()?;
        let file: File =
            sys::duplicate(fd.as_fd()).map_err(|e| Error::kernel("duplicate", "the iommufd", e))?;
        let iommufd = Arc::new(IommuFd::new_from_fd(file));
        let ioas = IommufdIoas::new(Arc::clone(&iommufd))
            .map_err(|e| Error::kernel("make", "an I/O address space", errno(e)))?;
        Ok(Self { files, space: Arc::new(Space { ioas, iommufd, fd }) })
    }
}

/// The kernel's own answer out of an error of iommufd-ioctls.
fn errno(error: IommufdError) -> io::Error {
    match error {
        IommufdError::IommuIoasAlloc(e)
        | IommufdError::IommuIoasMap(e)
        | IommufdError::IommuIoasUnmap(e)
        | IommufdError::IommuDestroy(e) => io::Error::from_raw_os_error(e.errno()),
        other => io::Error::other(other),
    }
}

impl Iommu for Iommufd {
    fn kind(&self) -> IommuKind {
        IommuKind::Iommufd
    }

    fn open(&self, device: &HostDevice) -> Result<Opened, Error> {
        device.check_bound()?;
        if device.iommu_group().is_none() || device.is_noiommu() {
            return Err(Error::NoIommu { name: device.name().to_owned() });
        }
        let cdev = device.cdev().ok_or_else(|| Error::NoVfio {
            path: "/dev/vfio/devices".into(),
            needs: "it takes a kernel with CONFIG_VFIO_DEVICE_CDEV; iommu=legacy does without",
        })?;
        let fd = self.files.device(&cdev)?;
        sys::bind_iommufd(fd.as_fd(), self.space.fd.as_fd()).map_err(|e| {
            let others = of_the_host(device);
            match (device.bus(), e.raw_os_error()) {
                // A device that is open already (Linux 6.12, `vfio_df_open`): its file can be opened again, but not bound.
                (HostBus::Pci, Some(libc::EINVAL)) => {
                    Error::InUse { object: device.name().to_owned(), source: e }
                }
                // Linux 6.12, `iommu_device_claim_dma_owner`: the group's DMA is somebody else's.
                (_, Some(libc::EPERM)) if others.is_some() => Error::GroupNotViable {
                    name: device.name().to_owned(),
                    group: device.iommu_group().unwrap_or_default(),
                    others: others.unwrap_or_default(),
                },
                (_, Some(libc::EPERM)) => Error::UnsafeInterrupts {
                    name: device.name().to_owned(),
                    parameter: "iommufd.allow_unsafe_interrupts",
                    source: e,
                },
                (HostBus::Platform | HostBus::Amba, Some(libc::EINVAL)) => {
                    Error::NoReset { name: device.name().to_owned(), source: e }
                }
                _ => Error::kernel("bind to the iommufd", device.name(), e),
            }
        })?;
        sys::attach_ioas(fd.as_fd(), self.space.ioas.id())
            .map_err(|e| Error::kernel("attach to the guest's memory", device.name(), e))?;
        // Closing the device detaches it. The space lives on at least until then.
        Ok((Box::new(KernelDevice::new(fd)), Box::new(Arc::clone(&self.space))))
    }

    fn ranges(&self) -> io::Result<Option<Vec<(u64, u64)>>> {
        sys::ioas_ranges(self.space.fd.as_fd(), self.space.ioas.id()).map(Some)
    }

    fn map(&self, iova: u64, memory: &DmaMemory) -> io::Result<()> {
        let map = iommu_ioas_map {
            #[expect(clippy::cast_possible_truncation, reason = "40")]
            size: size_of::<iommu_ioas_map>() as u32,
            flags: FIXED | READABLE | if memory.writable() { WRITABLE } else { 0 },
            ioas_id: self.space.ioas.id(),
            user_va: memory.host(),
            length: memory.bytes(),
            iova,
            ..Default::default()
        };
        self.space.iommufd.map_iommu_ioas(&map).map_err(errno)
    }

    fn unmap(&self, iova: u64, bytes: u64) -> io::Result<()> {
        self.space.ioas.unmap(iova, bytes).map_err(errno)
    }

    fn groups(&self) -> Vec<(u32, GroupFile)> {
        Vec::new()
    }
}

impl std::fmt::Debug for Iommufd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Iommufd").field("ioas", &self.space.ioas.id()).finish_non_exhaustive()
    }
}
