// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An open VFIO device.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;
use crate::dma::DmaSpace;
use crate::host::HostDevice;
use crate::hot_reset::{HotReset, HotResetInfo};
use crate::info::{DeviceInfo, DeviceKind, IrqInfo, RegionInfo};
use crate::iommu::IommuKind;
use crate::irq_set::IrqSet;
use crate::sys::{self, Mapping};

/// The calls that VFIO has for a device. The kernel is one implementation; the feature `fake` has another, which fails on demand.
///
/// Errors are the kernel's own: [`Device`] adds which device and what was being done.
pub trait RawDevice: Send + Sync + fmt::Debug {
    /// `VFIO_DEVICE_GET_INFO`.
    ///
    /// # Errors
    /// The kernel's.
    fn info(&self) -> io::Result<DeviceInfo>;

    /// `VFIO_DEVICE_GET_REGION_INFO`.
    ///
    /// # Errors
    /// `EINVAL` for an index that the device does not have.
    fn region(&self, index: u32) -> io::Result<RegionInfo>;

    /// `VFIO_DEVICE_GET_IRQ_INFO`.
    ///
    /// # Errors
    /// `EINVAL` for an index that the device does not have.
    fn irq(&self, index: u32) -> io::Result<IrqInfo>;

    /// Reads all of `data` at `offset` of the device's file.
    ///
    /// # Errors
    /// The kernel's; or it read less.
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset` of the device's file.
    ///
    /// # Errors
    /// The kernel's; or it wrote less.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Maps a part of the device's file.
    ///
    /// # Errors
    /// The kernel's.
    fn map(&self, offset: u64, len: usize, writable: bool) -> io::Result<Mapping>;

    /// `VFIO_DEVICE_SET_IRQS`. Returns 0, or, if it would have allocated more vectors than the host has and so has done nothing, how many
    /// there are.
    ///
    /// # Errors
    /// The kernel's.
    fn set_irqs(&self, set: &IrqSet<'_>) -> io::Result<u32>;

    /// `VFIO_DEVICE_RESET`.
    ///
    /// # Errors
    /// `ENOTTY` and others where the device has no reset.
    fn reset(&self) -> io::Result<()>;

    /// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
    ///
    /// # Errors
    /// `ENODEV` for a PCI device whose bus cannot be reset, as a root bus cannot; `ENOTTY` for a device without such a bus.
    fn hot_reset_info(&self) -> io::Result<HotResetInfo>;

    /// `VFIO_DEVICE_PCI_HOT_RESET`.
    ///
    /// # Errors
    /// `EINVAL` if not all that is reset belongs to whoever asks; `ENODEV` and `ENOTTY` as above.
    fn hot_reset(&self, request: &HotReset<'_>) -> io::Result<()>;
}

/// The kernel's.
#[derive(Debug)]
pub(crate) struct KernelDevice(File);

impl KernelDevice {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }
}

impl RawDevice for KernelDevice {
    fn info(&self) -> io::Result<DeviceInfo> {
        sys::device_info(self.0.as_fd())
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        sys::region_info(self.0.as_fd(), index)
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        sys::irq_info(self.0.as_fd(), index)
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(data, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn map(&self, offset: u64, len: usize, writable: bool) -> io::Result<Mapping> {
        Mapping::new(self.0.as_fd(), offset, len, writable)
    }

    fn set_irqs(&self, set: &IrqSet<'_>) -> io::Result<u32> {
        sys::set_irqs(self.0.as_fd(), set)
    }

    fn reset(&self) -> io::Result<()> {
        sys::reset(self.0.as_fd())
    }

    fn hot_reset_info(&self) -> io::Result<HotResetInfo> {
        sys::hot_reset_info(self.0.as_fd())
    }

    fn hot_reset(&self, request: &HotReset<'_>) -> io::Result<()> {
        sys::hot_reset(self.0.as_fd(), request)
    }
}

/// A device that is open and attached to the guest's DMA space. Dropping it closes it: the kernel takes its interrupts and
/// mappings back, ends its DMA, and resets it where it can.
pub struct Device {
    // Dropped in this order: the device is closed before the memory it may reach by DMA is taken from it.
    raw: Box<dyn RawDevice>,
    name: String,
    info: DeviceInfo,
    iommu: IommuKind,
    failed_reads: AtomicU64,
    failed_writes: AtomicU64,
    /// Which device of the host's, and the address space that it is in with others.
    home: Option<(HostDevice, Arc<DmaSpace>)>,
    /// Keeps it attached.
    _attachment: Box<dyn Any + Send + Sync>,
}

/// How many accesses to a device's registers, forwarded for the guest, the kernel has refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refused {
    /// Loads, which read as ones.
    pub reads: u64,
    /// Stores, which are lost.
    pub writes: u64,
}

impl Device {
    /// A device called `name`, behind what `iommu` says. `attachment` is dropped after it is closed.
    ///
    /// # Errors
    /// [`Error::Kernel`] if it does not say what it is.
    pub fn new(
        name: impl Into<String>,
        iommu: IommuKind,
        raw: Box<dyn RawDevice>,
        attachment: Box<dyn Any + Send + Sync>,
    ) -> Result<Arc<Self>, Error> {
        Self::build(name.into(), iommu, raw, attachment, None)
    }

    /// The same for one that is in an address space.
    pub(crate) fn in_space(
        device: &HostDevice,
        space: Arc<DmaSpace>,
        raw: Box<dyn RawDevice>,
        attachment: Box<dyn Any + Send + Sync>,
    ) -> Result<Arc<Self>, Error> {
        let home = Some((device.clone(), Arc::clone(&space)));
        Self::build(device.name().to_owned(), space.kind(), raw, attachment, home)
    }

    fn build(
        name: String,
        iommu: IommuKind,
        raw: Box<dyn RawDevice>,
        attachment: Box<dyn Any + Send + Sync>,
        home: Option<(HostDevice, Arc<DmaSpace>)>,
    ) -> Result<Arc<Self>, Error> {
        let info = raw.info().map_err(|e| Error::kernel("look at", &name, e))?;
        Ok(Arc::new(Self {
            raw,
            name,
            info,
            iommu,
            failed_reads: AtomicU64::new(0),
            failed_writes: AtomicU64::new(0),
            home,
            _attachment: attachment,
        }))
    }

    /// The address space that it shares with other devices, if there are others in it now.
    pub(crate) fn shared_space(&self) -> Option<&Arc<DmaSpace>> {
        let (_, space) = self.home.as_ref()?;
        // Without an IOMMU there is nothing to share.
        (self.iommu != IommuKind::NoIommu && space.devices() > 1).then_some(space)
    }

    /// Which device of the host's it is, and its address space, if it was opened in one.
    pub(crate) fn home(&self) -> Option<(&HostDevice, &Arc<DmaSpace>)> {
        self.home.as_ref().map(|(device, space)| (device, space))
    }

    /// Its name in sysfs.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    #[must_use]
    pub const fn info(&self) -> DeviceInfo {
        self.info
    }

    /// What stands between it and memory.
    #[must_use]
    pub const fn iommu(&self) -> IommuKind {
        self.iommu
    }

    /// One of its regions.
    ///
    /// # Errors
    /// [`Error::Kernel`]; `EINVAL` for an index that it does not have.
    pub fn region(&self, index: u32) -> Result<RegionInfo, Error> {
        self.raw
            .region(index)
            .map_err(|e| Error::kernel("look at", format!("region {index} of {}", self.name), e))
    }

    /// One of its interrupt indexes.
    ///
    /// # Errors
    /// [`Error::Kernel`]; `EINVAL` for an index that it does not have.
    pub fn irq(&self, index: u32) -> Result<IrqInfo, Error> {
        self.raw
            .irq(index)
            .map_err(|e| Error::kernel("look at", format!("interrupt {index} of {}", self.name), e))
    }

    /// Reads from a region, for the guest: what the kernel refuses reads as ones, as on a bus where nobody answers, and is counted.
    pub fn load(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) {
        if self.read(region, offset, data).is_err() {
            data.fill(0xff);
            self.failed_reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes to a region, for the guest: what the kernel refuses is lost, and counted.
    pub fn store(&self, region: &RegionInfo, offset: u64, data: &[u8]) {
        if self.write(region, offset, data).is_err() {
            self.failed_writes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads from a region.
    ///
    /// # Errors
    /// The kernel's, or the access is not within the region.
    pub fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.raw.read(within(region, offset, data.len())?, data)
    }

    /// Writes to a region.
    ///
    /// # Errors
    /// The kernel's, or the access is not within the region.
    pub fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        self.raw.write(within(region, offset, data.len())?, data)
    }

    /// Accesses by the guest that the kernel refused.
    #[must_use]
    pub fn refused(&self) -> Refused {
        Refused {
            reads: self.failed_reads.load(Ordering::Relaxed),
            writes: self.failed_writes.load(Ordering::Relaxed),
        }
    }

    /// Maps a part of a region.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn map(&self, region: &RegionInfo, offset: u64, len: u64) -> Result<Mapping, Error> {
        let failed = |e| {
            Error::kernel("map", format!("{len:#x} bytes at {offset:#x} of a region of {}", self.name), e)
        };
        let len = usize::try_from(len).map_err(|_| failed(io::Error::from_raw_os_error(libc::EOVERFLOW)))?;
        let at = within(region, offset, len).map_err(failed)?;
        self.raw.map(at, len, region.writable()).map_err(failed)
    }

    /// `VFIO_DEVICE_SET_IRQS`. `action` says what it is for, as in "cannot ... of 9010000.pl031".
    ///
    /// # Errors
    /// [`Error::SharedInterrupt`] where the host cannot have the line for itself, [`Error::TooFewVectors`], else [`Error::Kernel`].
    pub fn set_irqs(&self, action: &'static str, set: &IrqSet<'_>) -> Result<(), Error> {
        let name = || self.name.clone();
        let available = self.raw.set_irqs(set).map_err(|e| {
            let index = set.index();
            match e.raw_os_error() {
                // A platform device's interrupts are requested when it is opened, and a failure is told now (Linux 6.12,
                // `vfio_platform_set_irqs_ioctl`); nothing else about these requests is invalid.
                Some(libc::EINVAL) if self.info.kind() != Some(DeviceKind::Pci) => {
                    Error::KeptInterrupt { name: name(), index, source: e }
                }
                Some(libc::EBUSY) => Error::SharedInterrupt { name: name(), index, source: e },
                _ => Error::kernel(action, format!("interrupt {index} of {}", self.name), e),
            }
        })?;
        match available {
            0 => Ok(()),
            available => Err(Error::TooFewVectors { name: name(), wanted: set.end() as usize, available }),
        }
    }

    /// Resets it.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn reset(&self) -> Result<(), Error> {
        self.raw.reset().map_err(|e| Error::kernel("reset", &self.name, e))
    }

    /// What is reset with its bus; `None` if the bus cannot be reset.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn hot_reset_info(&self) -> Result<Option<HotResetInfo>, Error> {
        match self.raw.hot_reset_info() {
            Ok(info) => Ok(Some(info)),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOTTY)) => Ok(None),
            Err(e) => Err(Error::kernel("find out what is reset with", &self.name, e)),
        }
    }

    /// Resets it and all others on its bus. Whoever calls this has made sure that they are all to be reset.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn hot_reset(&self, request: &HotReset<'_>) -> Result<(), Error> {
        self.raw.hot_reset(request).map_err(|e| Error::kernel("reset the bus of", &self.name, e))
    }
}

/// Where an access to a region is in the device's file.
fn within(region: &RegionInfo, offset: u64, len: usize) -> io::Result<u64> {
    let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
    match (end, region.offset.checked_add(offset)) {
        (Some(end), Some(at)) if end <= region.size => Ok(at),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.name).field("info", &self.info).finish_non_exhaustive()
    }
}
