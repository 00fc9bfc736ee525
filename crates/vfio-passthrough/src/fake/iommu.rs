// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Call, FakeDevice, Faults};
use crate::Error;
use crate::host::HostDevice;
use crate::iommu::{DmaMemory, GroupFile, Iommu, IommuKind, Opened};
use rustix::fs::{MemfdFlags, memfd_create};

/// An IOMMU that is a list of mappings. Clones are the same IOMMU.
#[derive(Debug, Clone)]
pub struct FakeIommu {
    faults: Faults,
    kind: IommuKind,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    devices: BTreeMap<String, FakeDevice>,
    ranges: Option<Vec<(u64, u64)>>,
    attached: usize,
    mapped: BTreeMap<u64, u64>,
    /// The open groups, each with how many devices of it are.
    groups: BTreeMap<u32, (Arc<OwnedFd>, usize)>,
    /// The number that the next device gets.
    next: u32,
}

/// An attached device. The last one that goes takes the mappings with it where a container's last group does; an address space of iommufd's keeps them.
struct Attached {
    kind: IommuKind,
    state: Arc<Mutex<State>>,
    device: FakeDevice,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.device.close();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((bus, devfn)) = self.device.bus() {
            bus.set_user(devfn, None);
            if let Some(number) = bus.group(devfn)
                && let Some((_, open)) = state.groups.get_mut(&number)
            {
                *open -= 1;
                if *open == 0 {
                    state.groups.remove(&number);
                }
            }
        }
        state.attached -= 1;
        if state.attached == 0 && self.kind == IommuKind::Legacy {
            state.mapped.clear();
        }
    }
}

impl FakeIommu {
    /// An IOMMU in front of no devices yet, without reserved ranges; by the legacy interface.
    #[must_use]
    pub fn new(faults: Faults) -> Self {
        Self { faults, kind: IommuKind::Legacy, state: Arc::default() }
    }

    /// The same by another interface.
    #[must_use]
    pub fn by(self, kind: IommuKind) -> Self {
        Self { kind, ..self }
    }

    /// Whether both are the same IOMMU.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a device behind it.
    pub fn add(&self, name: &str, device: FakeDevice) {
        self.state().devices.insert(name.to_owned(), device);
    }

    /// It translates these ranges only, each given with its last address.
    pub fn set_ranges(&self, ranges: Vec<(u64, u64)>) {
        self.state().ranges = Some(ranges);
    }

    /// What is mapped: (address, bytes).
    #[must_use]
    pub fn mapped(&self) -> Vec<(u64, u64)> {
        self.state().mapped.iter().map(|(&iova, &bytes)| (iova, bytes)).collect()
    }

    /// How many devices are attached.
    #[must_use]
    pub fn attached(&self) -> usize {
        self.state().attached
    }
}

impl Iommu for FakeIommu {
    fn kind(&self) -> IommuKind {
        self.kind
    }

    fn open(&self, device: &HostDevice) -> Result<Opened, Error> {
        let failed = |e| Error::kernel("open", device.name(), e);
        self.faults.check(Call::Open).map_err(failed)?;
        let mut state = self.state();
        let fake = state
            .devices
            .get(device.name())
            .cloned()
            .ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENODEV)))?;
        if let Some((bus, devfn)) = fake.bus() {
            if self.kind == IommuKind::Legacy
                && let Some(number) = bus.group(devfn)
            {
                let file = memfd_create("fake-group", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
                state.groups.entry(number).or_insert((Arc::new(file), 0)).1 += 1;
            }
            state.next += 1;
            bus.set_user(devfn, Some((self.clone(), state.next)));
        }
        state.attached += 1;
        let attached: Box<dyn Any + Send + Sync> =
            Box::new(Attached { kind: self.kind, state: Arc::clone(&self.state), device: fake.clone() });
        Ok((Box::new(fake), attached))
    }

    fn ranges(&self) -> io::Result<Option<Vec<(u64, u64)>>> {
        self.faults.check(Call::Ranges)?;
        Ok(self.state().ranges.clone())
    }

    fn map(&self, iova: u64, memory: &DmaMemory) -> io::Result<()> {
        self.faults.check(Call::MapDma)?;
        let mut state = self.state();
        if state.attached == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let end = iova + memory.bytes();
        if state.mapped.range(..end).next_back().is_some_and(|(&start, &bytes)| start + bytes > iova) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        state.mapped.insert(iova, memory.bytes());
        Ok(())
    }

    fn unmap(&self, iova: u64, bytes: u64) -> io::Result<()> {
        self.faults.check(Call::UnmapDma)?;
        let mut state = self.state();
        if state.mapped.get(&iova) != Some(&bytes) {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        state.mapped.remove(&iova);
        Ok(())
    }

    fn groups(&self) -> Vec<(u32, GroupFile)> {
        self.state()
            .groups
            .iter()
            .map(|(&number, (file, _))| (number, Arc::clone(file) as GroupFile))
            .collect()
    }
}
