// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_INFO_NORESIZE, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
};

use super::{Call, FakeBus, Faults};
use crate::device::RawDevice;
use crate::hot_reset::{HotReset, HotResetInfo};
use crate::info::{DeviceInfo, IrqInfo, RegionInfo};
use crate::irq_set::{IrqAction, IrqSet};
use crate::sys::Mapping;

/// Where region `n` begins in the device's file, as in the kernel's.
const REGION_SHIFT: u32 = 40;

/// A region of a fake device.
#[derive(Debug, Clone, Default)]
pub struct FakeRegion {
    /// What is in it at the start; its length is the region's size.
    pub contents: Vec<u8>,
    /// Whether it can be mapped.
    pub mappable: bool,
    /// If only parts can be mapped: those.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// An interrupt index of a fake device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FakeIrq {
    /// How many vectors.
    pub count: u32,
    /// Whether it masks itself when it fires.
    pub level: bool,
    /// Whether vectors can be added while others are in use.
    pub can_grow: bool,
}

/// A device that is made of memory. Clones are the same device.
#[derive(Debug, Clone)]
pub struct FakeDevice {
    faults: Faults,
    flags: u32,
    regions: Arc<Vec<(RegionInfo, Option<File>)>>,
    irqs: Arc<Mutex<Vec<Irq>>>,
    /// How many vectors the host has left, of all indexes.
    vectors: u32,
    resets: Arc<Mutex<Resets>>,
    /// What it is reset along with, and which place it has there.
    bus: Option<(FakeBus, u8)>,
}

#[derive(Debug, Default)]
struct Resets {
    own: u64,
    by_bus: u64,
    /// Resets while something triggered something.
    disturbed: u64,
    /// What was set up when it was closed.
    left_behind: usize,
}

#[derive(Debug, Default)]
struct Irq {
    info: FakeIrq,
    /// How many vectors are allocated; 0 while the index is disabled.
    allocated: u32,
    triggers: Vec<Option<OwnedFd>>,
    unmask: Option<OwnedFd>,
    masked: bool,
    /// A level device asks for attention.
    asserted: bool,
}

impl FakeDevice {
    /// A device with these regions and interrupts. `flags` are `VFIO_DEVICE_FLAGS_*`.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(faults: Faults, flags: u32, regions: Vec<FakeRegion>, irqs: &[FakeIrq]) -> io::Result<Self> {
        let regions = (0_u64..)
            .zip(regions)
            .map(|(index, region)| {
                let size = region.contents.len() as u64;
                let file = if size == 0 {
                    None
                } else {
                    let file = File::from(memfd_create("fake-vfio", MemfdFlags::CLOEXEC)?);
                    file.write_all_at(&region.contents, 0)?;
                    file.set_len(size.next_multiple_of(64 << 10))?;
                    Some(file)
                };
                let access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
                let flags = match (size, region.mappable) {
                    (0, _) => 0,
                    (_, true) => access | VFIO_REGION_INFO_FLAG_MMAP,
                    (_, false) => access,
                };
                let info = RegionInfo {
                    size,
                    offset: index << REGION_SHIFT,
                    flags,
                    sparse: region.sparse,
                    msix_mappable: true,
                };
                Ok((info, file))
            })
            .collect::<io::Result<Vec<_>>>()?;
        let irqs = irqs.iter().map(|&info| Irq { info, ..Irq::default() }).collect();
        Ok(Self {
            faults,
            flags: flags | VFIO_DEVICE_FLAGS_RESET,
            regions: Arc::new(regions),
            irqs: Arc::new(Mutex::new(irqs)),
            vectors: u32::MAX,
            resets: Arc::default(),
            bus: None,
        })
    }

    /// The same on a host that has only so many vectors left.
    #[must_use]
    pub fn with_vectors(self, vectors: u32) -> Self {
        Self { vectors, ..self }
    }

    /// The same without a reset of its own.
    #[must_use]
    pub fn without_reset(self) -> Self {
        Self { flags: self.flags & !VFIO_DEVICE_FLAGS_RESET, ..self }
    }

    /// The same on a bus, as device and function `devfn`, which are in the IOMMU group `group`. VFIO's driver has it.
    #[must_use]
    pub fn on_bus(self, bus: &FakeBus, devfn: u8, group: u32) -> Self {
        bus.add(devfn, group, Some(self.clone()));
        Self { bus: Some((bus.clone(), devfn)), ..self }
    }

    pub(super) fn bus(&self) -> Option<(&FakeBus, u8)> {
        self.bus.as_ref().map(|(bus, devfn)| (bus, *devfn))
    }

    fn is_pci(&self) -> bool {
        self.flags & VFIO_DEVICE_FLAGS_PCI != 0
    }

    fn irqs(&self) -> MutexGuard<'_, Vec<Irq>> {
        self.irqs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in a region now.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn contents(&self, region: usize, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self.regions.get(region) {
            Some((_, Some(file))) => file.read_exact_at(&mut bytes, offset).map(|()| bytes),
            _ => Err(einval()),
        }
    }

    /// The device sends a message. Returns whether anybody hears it.
    ///
    /// # Errors
    /// If the eventfd cannot be written.
    pub fn send(&self, index: usize, vector: usize) -> io::Result<bool> {
        let irqs = self.irqs();
        let trigger = irqs.get(index).and_then(|irq| irq.triggers.get(vector)).and_then(Option::as_ref);
        trigger.map_or(Ok(false), |event| signal(event).map(|()| true))
    }

    /// A level device raises or lowers its line. It fires if it is raised, enabled and not masked, and is masked then.
    ///
    /// # Errors
    /// If the eventfd cannot be written.
    pub fn set_level(&self, index: usize, high: bool) -> io::Result<()> {
        let mut irqs = self.irqs();
        let irq = irqs.get_mut(index).ok_or_else(einval)?;
        irq.asserted = high;
        irq.fire()
    }

    /// What the kernel does by itself: unmasks what somebody has signalled to be unmasked. Returns how many were.
    ///
    /// # Errors
    /// If an eventfd cannot be written.
    pub fn process(&self) -> io::Result<u32> {
        let mut unmasked = 0;
        for irq in self.irqs().iter_mut() {
            let signalled =
                irq.unmask.as_ref().is_some_and(|event| rustix::io::read(event, &mut [0; 8]).is_ok());
            if signalled {
                irq.masked = false;
                unmasked += 1;
                irq.fire()?;
            }
        }
        Ok(unmasked)
    }

    /// How many vectors of an index are allocated, and which of them have a trigger.
    #[must_use]
    pub fn enabled(&self, index: usize) -> (u32, Vec<usize>) {
        let irqs = self.irqs();
        irqs.get(index).map_or((0, Vec::new()), |irq| {
            let with = irq.triggers.iter().enumerate().filter(|(_, event)| event.is_some());
            (irq.allocated, with.map(|(vector, _)| vector).collect())
        })
    }

    /// Whether a level interrupt is masked.
    #[must_use]
    pub fn is_masked(&self, index: usize) -> bool {
        self.irqs().get(index).is_some_and(|irq| irq.masked)
    }

    /// Whether an unmask eventfd is set.
    #[must_use]
    pub fn has_unmask(&self, index: usize) -> bool {
        self.irqs().get(index).is_some_and(|irq| irq.unmask.is_some())
    }

    /// Whether nothing triggers anything.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.irqs().iter().all(|irq| irq.allocated == 0 && irq.unmask.is_none())
    }

    /// How often it was reset.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.lock_resets().own
    }

    /// How often it was reset with its bus.
    #[must_use]
    pub fn bus_resets(&self) -> u64 {
        self.lock_resets().by_bus
    }

    /// How often it was reset, in whichever way, while it could interrupt.
    #[must_use]
    pub fn disturbed(&self) -> u64 {
        self.lock_resets().disturbed
    }

    /// How many interrupts were still set up when it was closed, which only the kernel has taken apart.
    #[must_use]
    pub fn left_behind(&self) -> usize {
        self.lock_resets().left_behind
    }

    fn lock_resets(&self) -> MutexGuard<'_, Resets> {
        self.resets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_reset(&self, count: impl FnOnce(&mut Resets)) {
        // Being told of errors, or of the host's wishes, does not stop at a reset.
        let noisy = self.irqs().iter().take(3).any(|irq| irq.allocated > 0);
        let mut resets = self.lock_resets();
        count(&mut resets);
        resets.disturbed += u64::from(noisy);
    }

    /// A reset of its bus reaches it.
    pub(super) fn bus_reset(&self) {
        self.note_reset(|resets| resets.by_bus += 1);
    }

    /// What closing the last descriptor does.
    pub(crate) fn close(&self) {
        let mut irqs = self.irqs();
        let left = irqs.iter().filter(|irq| irq.allocated > 0 || irq.unmask.is_some()).count();
        self.lock_resets().left_behind += left;
        for irq in irqs.iter_mut() {
            *irq = Irq { info: irq.info, ..Irq::default() };
        }
    }

    fn place(&self, offset: u64, len: usize) -> io::Result<(&File, u64)> {
        let index = usize::try_from(offset >> REGION_SHIFT).map_err(|_| einval())?;
        let at = offset & ((1 << REGION_SHIFT) - 1);
        match self.regions.get(index) {
            Some((info, Some(file))) if at.saturating_add(len as u64) <= info.size => Ok((file, at)),
            _ => Err(einval()),
        }
    }

    fn trigger(&self, irqs: &mut [Irq], set: &IrqSet<'_>) -> io::Result<u32> {
        let index = set.index() as usize;
        let Some(fds) = set.fds() else {
            let irq = irqs.get_mut(index).ok_or_else(einval)?;
            if set.end() == 0 {
                *irq = Irq { info: irq.info, asserted: irq.asserted, ..Irq::default() };
                return Ok(0);
            }
            let range = set.start() as usize..set.end() as usize;
            for event in irq.triggers.get(range).ok_or_else(einval)?.iter().flatten() {
                signal(event)?;
            }
            return Ok(0);
        };
        // INTx, MSI and MSI-X exclude each other; errors and requests do not.
        if self.is_pci()
            && index < 3
            && irqs.iter().take(3).enumerate().any(|(i, irq)| i != index && irq.allocated > 0)
        {
            return Err(einval());
        }
        let irq = irqs.get_mut(index).ok_or_else(einval)?;
        if set.end() > irq.info.count {
            return Err(einval());
        }
        if irq.allocated == 0 {
            if set.end() > self.vectors {
                return Ok(self.vectors);
            }
            irq.allocated = set.end();
        } else if set.end() > irq.allocated && !irq.info.can_grow {
            return Err(einval());
        }
        for (vector, fd) in (set.start() as usize..).zip(fds) {
            let event = fd.map(|fd| fd.try_clone_to_owned()).transpose()?;
            if irq.triggers.len() <= vector {
                irq.triggers.resize_with(vector + 1, || None);
            }
            if let Some(slot) = irq.triggers.get_mut(vector) {
                *slot = event;
            }
        }
        irq.allocated = irq.allocated.max(set.end());
        irq.fire()?;
        Ok(0)
    }
}

impl Irq {
    fn fire(&mut self) -> io::Result<()> {
        if self.info.level
            && self.asserted
            && !self.masked
            && let Some(Some(event)) = self.triggers.first()
        {
            self.masked = true;
            signal(event)?;
        }
        Ok(())
    }
}

/// Without taking the count.
fn is_signalled(event: &OwnedFd) -> bool {
    let mut events = [PollFd::new(event, PollFlags::IN)];
    poll(&mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

fn signal(event: &OwnedFd) -> io::Result<()> {
    rustix::io::write(event, &1_u64.to_ne_bytes()).map(drop).map_err(Into::into)
}

pub(super) fn einval() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

impl RawDevice for FakeDevice {
    fn info(&self) -> io::Result<DeviceInfo> {
        self.faults.check(Call::Info)?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(DeviceInfo {
            flags: self.flags,
            regions: count(self.regions.len()),
            irqs: count(self.irqs().len()),
        })
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.faults.check(Call::Region)?;
        self.regions.get(index as usize).map(|(info, _)| info.clone()).ok_or_else(einval)
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        self.faults.check(Call::Irq)?;
        let info = self.irqs().get(index as usize).map(|irq| irq.info).ok_or_else(einval)?;
        let level = if info.level { VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED } else { 0 };
        let fixed = if info.can_grow { 0 } else { VFIO_IRQ_INFO_NORESIZE };
        Ok(IrqInfo { count: info.count, flags: VFIO_IRQ_INFO_EVENTFD | level | fixed })
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.faults.check(Call::Read)?;
        let (file, at) = self.place(offset, data.len())?;
        file.read_exact_at(data, at)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.faults.check(Call::Write)?;
        let (file, at) = self.place(offset, data.len())?;
        file.write_all_at(data, at)
    }

    fn map(&self, offset: u64, len: usize, writable: bool) -> io::Result<Mapping> {
        self.faults.check(Call::Map)?;
        let index = usize::try_from(offset >> REGION_SHIFT).map_err(|_| einval())?;
        match self.regions.get(index) {
            Some((info, Some(file))) if info.mappable() => {
                Mapping::new(file.as_fd(), offset & ((1 << REGION_SHIFT) - 1), len, writable)
            }
            _ => Err(einval()),
        }
    }

    fn set_irqs(&self, set: &IrqSet<'_>) -> io::Result<u32> {
        self.faults.check(Call::SetIrqs)?;
        let mut irqs = self.irqs();
        if set.action() == IrqAction::Trigger {
            return self.trigger(&mut irqs, set);
        }
        let pci = self.is_pci();
        let irq = irqs.get_mut(set.index() as usize).ok_or_else(einval)?;
        // For PCI only INTx can be masked, and only while it is in use.
        if !irq.info.level || pci && irq.allocated == 0 {
            return Err(einval());
        }
        match (set.action(), set.fds()) {
            (IrqAction::Unmask, Some([fd])) => {
                irq.unmask = fd.map(|fd| fd.try_clone_to_owned()).transpose()?;
                // One that was signalled before is seen now, and its count stays (Linux 6.12, `vfio_virqfd_enable`).
                if irq.unmask.as_ref().is_some_and(is_signalled) {
                    irq.masked = false;
                    irq.fire()?;
                }
            }
            (IrqAction::Unmask, None) => {
                irq.masked = false;
                irq.fire()?;
            }
            (IrqAction::Mask, None) => irq.masked = true,
            _ => return Err(einval()),
        }
        Ok(0)
    }

    fn reset(&self) -> io::Result<()> {
        self.faults.check(Call::Reset)?;
        if self.flags & VFIO_DEVICE_FLAGS_RESET == 0 {
            return Err(einval());
        }
        self.note_reset(|resets| resets.own += 1);
        Ok(())
    }

    fn hot_reset_info(&self) -> io::Result<HotResetInfo> {
        self.faults.check(Call::HotResetInfo)?;
        match &self.bus {
            Some((bus, devfn)) => bus.info(*devfn),
            // A root bus.
            None => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    fn hot_reset(&self, request: &HotReset<'_>) -> io::Result<()> {
        self.faults.check(Call::HotReset)?;
        match &self.bus {
            Some((bus, devfn)) => bus.reset(*devfn, request),
            None => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }
}
