// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's memory as its devices see it.

use std::fmt::Write;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::Error;
use crate::device::Device;
use crate::host::HostDevice;
use crate::iommu::{Container, DmaMemory, GroupFile, Iommu, IommuChoice, IommuKind, Iommufd, VfioFiles};
use crate::sys::Mapping;

/// All I/O address spaces of one guest: one for each interface that its devices use, each made when the first device wants it.
#[derive(Debug)]
pub struct DmaSpaces {
    files: Arc<dyn VfioFiles>,
    memory: GuestMemoryMmap,
    spaces: Mutex<Vec<Arc<DmaSpace>>>,
}

impl DmaSpaces {
    /// For a guest with this memory, on the files of VFIO that `files` has.
    #[must_use]
    pub fn new(files: Arc<dyn VfioFiles>, memory: GuestMemoryMmap) -> Self {
        Self { files, memory, spaces: Mutex::default() }
    }

    /// Opens a device: attached, and with the guest's memory mapped for it unless it has no IOMMU.
    ///
    /// # Errors
    /// Any; nothing stays behind.
    pub fn open(&self, device: &HostDevice, choice: IommuChoice) -> Result<Arc<Device>, Error> {
        device.check_bound()?;
        let kind = match choice {
            IommuChoice::Only(kind) => kind,
            IommuChoice::Auto if device.cdev().is_some() && self.files.has_iommufd() => IommuKind::Iommufd,
            IommuChoice::Auto => IommuKind::Legacy,
        };
        let space = self.space(kind)?;
        space.open(device)
    }

    fn space(&self, kind: IommuKind) -> Result<Arc<DmaSpace>, Error> {
        let mut spaces = lock(&self.spaces);
        if let Some(space) = spaces.iter().find(|space| space.iommu.kind() == kind) {
            return Ok(Arc::clone(space));
        }
        let files = Arc::clone(&self.files);
        let iommu: Box<dyn Iommu> = match kind {
            IommuKind::Legacy => Box::new(Container::new(files)?),
            IommuKind::NoIommu => Box::new(Container::without_iommu(files)?),
            IommuKind::Iommufd => Box::new(Iommufd::new(files)?),
        };
        let space = DmaSpace::new(iommu, self.memory.clone());
        spaces.push(Arc::clone(&space));
        Ok(space)
    }
}

/// One I/O address space, in which a guest's physical addresses mean what they mean to its CPUs.
///
/// The guest's memory is mapped when the first device is opened, once however many follow, and unmapped when the last is closed.
#[derive(Debug)]
pub struct DmaSpace {
    iommu: Box<dyn Iommu>,
    memory: GuestMemoryMmap,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The names of the devices that are open.
    devices: Vec<String>,
    /// In the order in which it was mapped. Without a device it is what could not be unmapped.
    mapped: Vec<(u64, DmaMemory)>,
}

/// A device's share of a space. Dropped after the device is closed and before it is detached.
struct Member {
    space: Arc<DmaSpace>,
    name: String,
    /// Dropped last.
    attachment: Option<Box<dyn std::any::Any + Send + Sync>>,
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.space.state();
        if let Some(own) = state.devices.iter().position(|name| *name == self.name) {
            state.devices.swap_remove(own);
        }
        if state.devices.is_empty() {
            self.space.unmap_all(&mut state);
        }
        // Still under the lock: a device that comes now finds either the old container with all mappings or an empty one with none.
        drop(self.attachment.take());
        self.space.forget_with_the_container(&mut state);
    }
}

impl DmaSpace {
    /// A space on `iommu` for a guest with this memory.
    #[must_use]
    pub fn new(iommu: Box<dyn Iommu>, memory: GuestMemoryMmap) -> Arc<Self> {
        Arc::new(Self { iommu, memory, state: Mutex::default() })
    }

    /// Which interface it uses.
    #[must_use]
    pub fn kind(&self) -> IommuKind {
        self.iommu.kind()
    }

    /// Opens a device in it.
    ///
    /// # Errors
    /// Any of those that speak of DMA, groups, nodes and permissions; nothing stays behind.
    pub fn open(self: &Arc<Self>, device: &HostDevice) -> Result<Arc<Device>, Error> {
        // Held all the way, so that no device is ever open without the mappings.
        let mut state = self.state();
        let (raw, attachment) = self.iommu.open(device)?;
        if let Err(e) = self.check_ranges(device).and_then(|()| self.map_all(device, &mut state)) {
            // The device is closed before the memory is taken from it; what the failing step had mapped it has unmapped.
            drop(raw);
            drop(attachment);
            self.forget_with_the_container(&mut state);
            return Err(e);
        }
        state.devices.push(device.name().to_owned());
        drop(state);
        let name = device.name().to_owned();
        let member = Member { space: Arc::clone(self), name, attachment: Some(attachment) };
        Device::in_space(device, Arc::clone(self), raw, Box::new(member))
    }

    /// How many devices are open in it.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.state().devices.len()
    }

    /// Whether a device of that name is open in it.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.state().devices.iter().any(|device| device == name)
    }

    /// The files of the groups that are in it, by number.
    pub(crate) fn groups(&self) -> Vec<(u32, GroupFile)> {
        self.iommu.groups()
    }

    /// Maps the guest's memory unless that was done for another device.
    fn map_all(&self, device: &HostDevice, state: &mut State) -> Result<(), Error> {
        if !state.devices.is_empty() || self.kind() == IommuKind::NoIommu {
            return Ok(());
        }
        let memory = DmaMemory::of_guest(&self.memory).map_err(|e| self.cannot_map(device, e))?;
        for (iova, memory) in memory {
            if state.mapped.iter().any(|(mapped, _)| *mapped == iova) {
                continue;
            }
            if let Err(e) = self.iommu.map(iova, &memory) {
                self.unmap_all(state);
                return Err(self.cannot_map(device, e));
            }
            state.mapped.push((iova, memory));
        }
        Ok(())
    }

    fn unmap_all(&self, state: &mut State) {
        // If it fails, the space's end does it; meanwhile the pages stay pinned, and so nobody else's.
        let mut left = Vec::new();
        while let Some((iova, memory)) = state.mapped.pop() {
            if self.iommu.unmap(iova, memory.bytes()).is_err() {
                left.push((iova, memory));
            }
        }
        left.reverse();
        state.mapped = left;
    }

    /// A container has no mappings any more when its last group has left it.
    fn forget_with_the_container(&self, state: &mut State) {
        if state.devices.is_empty() && self.kind() == IommuKind::Legacy {
            state.mapped.clear();
        }
    }

    fn cannot_map(&self, device: &HostDevice, source: io::Error) -> Error {
        let needed = self.memory.iter().map(GuestMemoryRegion::len).sum();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        match (source.raw_os_error(), limit) {
            (Some(libc::ENOMEM), Some(limit)) => Error::MemoryLock { needed, limit, source },
            _ => Error::kernel("map the guest's memory for", device.name(), source),
        }
    }

    /// Guest memory must not lie where the IOMMU keeps addresses for itself. Attaching a device can only narrow what is left.
    fn check_ranges(&self, device: &HostDevice) -> Result<(), Error> {
        let ranges = self
            .iommu
            .ranges()
            .map_err(|e| Error::kernel("ask for the reserved addresses of", device.name(), e))?;
        let Some(ranges) = ranges else { return Ok(()) };
        for region in self.memory.iter() {
            let (start, last) = (region.start_addr().0, region.last_addr().0);
            if !covered(&ranges, start, last) {
                return Err(Error::Reserved {
                    name: device.name().to_owned(),
                    memory: (start, last.saturating_add(1)),
                    allowed: list(&ranges),
                });
            }
        }
        Ok(())
    }

    /// Lets the space's devices reach a part of a device at the address that the guest has given it. Many IOMMU drivers refuse registers:
    /// devices then reach memory but not each other, which few ever do.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map_peer(self: &Arc<Self>, address: u64, mapping: &Arc<Mapping>) -> io::Result<PeerMapping> {
        let memory = DmaMemory::of_device(Arc::clone(mapping));
        self.iommu.map(address, &memory)?;
        Ok(PeerMapping { space: Arc::clone(self), address, memory })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// A part of a device that its peers reach. Dropping it ends that.
#[derive(Debug)]
pub struct PeerMapping {
    space: Arc<DmaSpace>,
    address: u64,
    memory: DmaMemory,
}

impl Drop for PeerMapping {
    fn drop(&mut self) {
        let _ = self.space.iommu.unmap(self.address, self.memory.bytes());
    }
}

/// Whether the ranges, in any order and possibly touching, cover `start..=last`.
fn covered(ranges: &[(u64, u64)], start: u64, last: u64) -> bool {
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable();
    let mut next = start;
    for (first, end) in ranges {
        if first > next {
            return false;
        }
        if end >= last {
            return true;
        }
        if end >= next {
            next = end + 1;
        }
    }
    false
}

fn list(ranges: &[(u64, u64)]) -> String {
    let mut text = String::new();
    for (start, last) in ranges.iter().take(8) {
        let _ = write!(text, "{}{start:#x}..={last:#x}", if text.is_empty() { "" } else { ", " });
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The state is whole whenever the lock is let go.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_covered_by_ranges_that_touch_and_not_by_a_hole() {
        let smmu = [(0x0810_0000, u64::MAX), (0, 0x07ff_ffff)];
        assert!(covered(&smmu, 0x4000_0000, 0x7fff_ffff));
        assert!(covered(&smmu, 0, 0x07ff_ffff));
        assert!(!covered(&smmu, 0x0700_0000, 0x0800_0000));
        assert!(!covered(&smmu, 0x0800_0000, 0x0900_0000));
        assert!(covered(&[(0, 99), (100, 200), (50, 120)], 10, 150));
        assert!(covered(&[(0, 9), (10, 10), (11, 20)], 5, 15), "a range of one address");
        assert!(!covered(&[(0, 9), (11, 20)], 5, 15), "a hole of one");
        assert!(!covered(&[], 0, 0));
        assert!(!covered(&[(0, 9)], 5, 10));
    }
}
