// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Platform and AMBA devices: registers and lines without a bus, described by the device tree.

mod node;
mod overlay;
mod tree;

use std::fmt;
use std::sync::Arc;

use gsi_routing::GsiHandle;
use irq_types::TriggerMode;
use irqfd::{EdgeState, EdgeTrigger, LevelState, Resampler, Wiring};

pub use node::{Dropped, FixedClock, GuestNode};
pub use overlay::{Overlay, OverlayError};
pub use tree::{HostNode, HostTree};

use crate::Error;
use crate::device::{Device, Refused};
use crate::info::{DeviceKind, RegionInfo};
use crate::irq_set::IrqSet;
use crate::level::{LevelInterrupt, ResamplePath};
use crate::slots::{GuestSlots, Slot, SlotMemory};

/// More regions or interrupts than any device of a device tree has.
const MAX_PARTS: u32 = 256;

/// A platform or AMBA device that is being, or has been, given to a guest.
///
/// Made in three steps: [`open`](Self::open) finds out what it has; [`place`](Self::place) puts its registers into the guest's address space;
/// [`connect`](Self::connect) connects each interrupt to a line. Dropping it undoes them in reverse.
pub struct PlatformDevice {
    // Dropped in this order.
    interrupts: Vec<Interrupt>,
    regions: Vec<Region>,
    device: Arc<Device>,
}

/// Registers of a platform device.
#[derive(Debug)]
struct Region {
    info: RegionInfo,
    base: Option<u64>,
    slot: Option<DebugSlot>,
}

struct DebugSlot(#[expect(dead_code, reason = "held, not read")] Slot);

impl fmt::Debug for DebugSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

/// One interrupt of a platform device.
#[derive(Debug)]
struct Interrupt {
    mode: TriggerMode,
    connection: Option<Connection>,
}

#[derive(Debug)]
enum Connection {
    Level(LevelInterrupt),
    Edge(EdgeInterrupt),
}

/// Device → eventfd → irqfd; nothing comes back.
#[derive(Debug)]
struct EdgeInterrupt {
    // Dropped after VFIO's end is taken away.
    trigger: EdgeTrigger,
    device: Arc<Device>,
    index: u32,
}

impl Drop for EdgeInterrupt {
    fn drop(&mut self) {
        let _ = self.device.set_irqs("disable", &IrqSet::disable(self.index));
    }
}

impl PlatformDevice {
    /// Looks at what the device has.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what is no platform or AMBA device, [`Error::Description`], [`Error::Kernel`].
    pub fn open(device: Arc<Device>) -> Result<Self, Error> {
        let info = device.info();
        if !matches!(info.kind(), Some(DeviceKind::Platform | DeviceKind::Amba)) {
            return Err(Error::Unsupported {
                name: device.name().to_owned(),
                reason: "it is no platform device".to_owned(),
            });
        }
        if info.regions > MAX_PARTS || info.irqs > MAX_PARTS {
            return Err(Error::Description {
                name: device.name().to_owned(),
                what: format!("{} regions and {} interrupts", info.regions, info.irqs),
            });
        }
        let regions = (0..info.regions)
            .map(|index| Ok(Region { info: device.region(index)?, base: None, slot: None }))
            .collect::<Result<_, Error>>()?;
        let interrupts = (0..info.irqs)
            .map(|index| {
                let irq = device.irq(index)?;
                if irq.count != 1 || !irq.has_eventfd() {
                    return Err(Error::Description {
                        name: device.name().to_owned(),
                        what: format!("interrupt {index} has {} lines, flags {:#x}", irq.count, irq.flags),
                    });
                }
                Ok(Interrupt { mode: irq.mode(), connection: None })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { interrupts, regions, device })
    }

    /// The device itself.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// How many bytes each of its regions has.
    pub fn region_sizes(&self) -> impl Iterator<Item = u64> + '_ {
        self.regions.iter().map(|region| region.info.size)
    }

    /// How each of its interrupts signals: what the device tree must say.
    pub fn interrupt_modes(&self) -> impl Iterator<Item = TriggerMode> + '_ {
        self.interrupts.iter().map(|interrupt| interrupt.mode)
    }

    /// Holds what the device has against what its node in the host's device tree says.
    ///
    /// # Errors
    /// [`Error::NoInterrupt`] if the node has interrupts and VFIO offers none: the guest's driver would wait for ever.
    pub fn check(&self, node: &HostNode) -> Result<(), Error> {
        let has = |property| node.get(property).is_some_and(|value| !value.is_empty());
        if self.interrupts.is_empty() && (has("interrupts") || has("interrupts-extended")) {
            return Err(Error::NoInterrupt { name: self.device.name().to_owned() });
        }
        Ok(())
    }

    /// Puts region `index` at guest-physical address `base`, a multiple of the host's page size. Where the host lets it be mapped, the guest reaches it
    /// without an exit; else, and for regions that are not whole pages, the VMM has to pass accesses on to [`load`](Self::load) and
    /// [`store`](Self::store). Returns whether it is mapped.
    ///
    /// # Errors
    /// [`Error::Kernel`]; it is not placed then.
    pub fn place(&mut self, index: usize, base: u64, slots: &dyn GuestSlots) -> Result<bool, Error> {
        let name = self.device.name();
        let Some(region) = self.regions.get_mut(index) else {
            return Err(Error::Description { name: name.to_owned(), what: format!("no region {index}") });
        };
        let pages =
            region.info.size.is_multiple_of(rustix::param::page_size() as u64) && region.info.size > 0;
        // A read-only slot would turn the guest's stores into exits with nobody to take them: rather trap all of it.
        if !region.info.mappable() || !region.info.readable() || !region.info.writable() || !pages {
            region.base = Some(base);
            return Ok(false);
        }
        let mapping = self.device.map(&region.info, 0, region.info.size)?;
        let slot = slots.insert(base, SlotMemory::new(Arc::new(mapping))).map_err(|e| {
            Error::kernel("map into the guest", format!("region {index} of {name} at {base:#x}"), e)
        })?;
        region.base = Some(base);
        region.slot = Some(DebugSlot(slot));
        Ok(true)
    }

    /// Where each region is in the guest: (base, bytes), in order, of those that are placed.
    #[must_use]
    pub fn placed(&self) -> Vec<(u64, u64)> {
        self.regions.iter().filter_map(|region| Some((region.base?, region.info.size))).collect()
    }

    /// Connects interrupt `index` to the line behind `gsi`.
    ///
    /// # Errors
    /// [`Error::Interrupt`], [`Error::SharedInterrupt`], [`Error::Kernel`]; it is not connected then.
    pub fn connect(
        &mut self,
        index: usize,
        wiring: &Wiring,
        gsi: &Arc<GsiHandle>,
        path: ResamplePath,
    ) -> Result<(), Error> {
        let device = &self.device;
        let (Some(interrupt), Ok(number)) = (self.interrupts.get_mut(index), u32::try_from(index)) else {
            return Err(Error::Description {
                name: device.name().to_owned(),
                what: format!("no interrupt {index}"),
            });
        };
        // One connection at a time: two would each take the other's eventfds away.
        interrupt.connection = None;
        interrupt.connection = Some(match interrupt.mode {
            TriggerMode::Level => {
                Connection::Level(LevelInterrupt::connect(Arc::clone(device), number, wiring, gsi, path)?)
            }
            TriggerMode::Edge => {
                let failed =
                    |source| Error::Interrupt { name: device.name().to_owned(), index: number, source };
                let trigger = EdgeTrigger::new().map_err(failed)?;
                trigger.wire(wiring, gsi).map_err(failed)?;
                let set = IrqSet::trigger(number, 0, &[Some(trigger.eventfd())]);
                device.set_irqs("get a trigger for", &set)?;
                Connection::Edge(EdgeInterrupt { trigger, device: Arc::clone(device), index: number })
            }
        });
        Ok(())
    }

    /// What the event loop has to run: one for each level interrupt whose way back goes through it.
    #[must_use]
    pub fn resamplers(&self) -> Vec<Resampler> {
        self.interrupts
            .iter()
            .filter_map(|interrupt| match &interrupt.connection {
                Some(Connection::Level(level)) => level.resampler(),
                _ => None,
            })
            .collect()
    }

    /// How the lines of the connected level interrupts are doing, with their indexes.
    #[must_use]
    pub fn level_states(&self) -> Vec<(usize, LevelState)> {
        self.interrupts
            .iter()
            .enumerate()
            .filter_map(|(index, interrupt)| match &interrupt.connection {
                Some(Connection::Level(level)) => Some((index, level.state().ok()?)),
                _ => None,
            })
            .collect()
    }

    /// How the lines of the connected edge interrupts are doing, with their indexes.
    #[must_use]
    pub fn edge_states(&self) -> Vec<(usize, EdgeState)> {
        self.interrupts
            .iter()
            .enumerate()
            .filter_map(|(index, interrupt)| match &interrupt.connection {
                Some(Connection::Edge(edge)) => Some((index, edge.trigger.state().ok()?)),
                _ => None,
            })
            .collect()
    }

    /// How many edge interrupts are connected.
    #[must_use]
    pub fn edges(&self) -> usize {
        self.interrupts
            .iter()
            .filter(|interrupt| {
                matches!(&interrupt.connection, Some(Connection::Edge(edge)) if edge.trigger.state().is_ok())
            })
            .count()
    }

    /// A guest's load from a region that is not mapped.
    pub fn load(&self, region: usize, offset: u64, data: &mut [u8]) {
        match self.regions.get(region) {
            Some(region) => self.device.load(&region.info, offset, data),
            None => data.fill(0xff),
        }
    }

    /// A guest's store to a region that is not mapped.
    pub fn store(&self, region: usize, offset: u64, data: &[u8]) {
        if let Some(region) = self.regions.get(region) {
            self.device.store(&region.info, offset, data);
        }
    }

    /// Accesses by the guest that the kernel refused.
    #[must_use]
    pub fn refused(&self) -> Refused {
        self.device.refused()
    }
}

impl fmt::Debug for PlatformDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlatformDevice")
            .field("device", &self.device)
            .field("regions", &self.regions)
            .field("interrupts", &self.interrupts)
            .finish()
    }
}
