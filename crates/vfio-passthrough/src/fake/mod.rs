// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VFIO made of memory: devices and an IOMMU that keep the kernel's rules, remember what was asked of them, and fail on demand.
//!
//! What it enforces is what Linux 6.12 enforces (`drivers/vfio/pci/vfio_pci_intrs.c`, `drivers/vfio/platform/vfio_platform_irq.c`,
//! `drivers/vfio/vfio_iommu_type1.c`): one kind of interrupt at a time for a PCI device, no unmasking of what is not enabled, no vectors beyond those
//! allocated unless they can be added, no mapping over another; no reset of a bus
//! unless all of it is VFIO's, and the caller's (`drivers/vfio/pci/vfio_pci_core.c`).

mod bus;
mod device;
mod iommu;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use bus::FakeBus;
pub use device::{FakeDevice, FakeIrq, FakeRegion};
pub use iommu::FakeIommu;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// Opening and attaching a device.
    Open,
    /// Asking for the IOMMU's ranges.
    Ranges,
    /// `VFIO_IOMMU_MAP_DMA` and the like.
    MapDma,
    /// `VFIO_IOMMU_UNMAP_DMA` and the like.
    UnmapDma,
    /// `VFIO_DEVICE_GET_INFO`.
    Info,
    /// `VFIO_DEVICE_GET_REGION_INFO`.
    Region,
    /// `VFIO_DEVICE_GET_IRQ_INFO`.
    Irq,
    /// `pread`.
    Read,
    /// `pwrite`.
    Write,
    /// `mmap`.
    Map,
    /// `VFIO_DEVICE_SET_IRQS`.
    SetIrqs,
    /// `VFIO_DEVICE_RESET`.
    Reset,
    /// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
    HotResetInfo,
    /// `VFIO_DEVICE_PCI_HOT_RESET`.
    HotReset,
    /// What the hypervisor is asked for: a memory slot.
    Slot,
}

impl Call {
    /// All kinds.
    pub const ALL: [Self; 15] = [
        Self::Open,
        Self::Ranges,
        Self::MapDma,
        Self::UnmapDma,
        Self::Info,
        Self::Region,
        Self::Irq,
        Self::Read,
        Self::Write,
        Self::Map,
        Self::SetIrqs,
        Self::Reset,
        Self::HotResetInfo,
        Self::HotReset,
        Self::Slot,
    ];
}

/// Which calls there were, and which are to fail. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<Call, u64>,
    fault: Option<(Call, u64, i32)>,
    struck: bool,
}

impl Faults {
    /// The `nth` call of this kind from now on, the first being 1, fails with `errno`; it does nothing then.
    pub fn fail(&self, call: Call, nth: u64, errno: i32) {
        let mut inner = self.lock();
        let so_far = inner.counts.get(&call).copied().unwrap_or(0);
        inner.fault = Some((call, so_far + nth, errno));
        inner.struck = false;
    }

    /// Nothing fails any more. Returns whether something has.
    pub fn clear(&self) -> bool {
        let mut inner = self.lock();
        inner.fault = None;
        std::mem::take(&mut inner.struck)
    }

    /// How many calls of this kind there were.
    #[must_use]
    pub fn count(&self, call: Call) -> u64 {
        self.lock().counts.get(&call).copied().unwrap_or(0)
    }

    /// Counts a call, and fails if it is to.
    ///
    /// # Errors
    /// What was asked for.
    pub fn check(&self, call: Call) -> io::Result<()> {
        let mut inner = self.lock();
        let count = inner.counts.entry(call).or_default();
        *count += 1;
        let count = *count;
        match inner.fault {
            Some((kind, nth, errno)) if kind == call && nth == count => {
                inner.struck = true;
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
