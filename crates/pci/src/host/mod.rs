// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host bridge: one segment of PCI, and who answers in it.

mod assign;
mod map;
mod topology;
mod windows;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use irq_types::Bdf;
use thiserror::Error;

pub use self::assign::Unassigned;
use self::map::Map;
use self::topology::{Place, Port, Record, Topology, Touched};
pub use self::windows::{HostConfig, IoWindow, Region, WindowError};
use crate::config::header::{EXTENDED, HEADER_TYPE, MULTIFUNCTION};
use crate::lock::lock;
use crate::port::ButtonError;
use crate::{BarIndex, DecodedBar, IntxPin, PciFunction, RootPort, Space};

/// Why a BAR that decodes does not reach its function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Reason {
    /// Not all of it lies in one of the host bridge's windows.
    #[error("it is not inside any window of the host bridge")]
    OutsideWindows,
    /// The port above does not pass its addresses on.
    #[error("port {port} does not forward its addresses")]
    NotForwarded {
        /// The port.
        port: Bdf,
    },
    /// Another one has some of its addresses, and had them before.
    #[error("BAR {} of {function} has addresses of it", bar.get())]
    Overlaps {
        /// The other function.
        function: Bdf,
        /// Its BAR.
        bar: BarIndex,
    },
}

/// A BAR that decodes and does not reach its function.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "BAR {} of {bdf} at {:#x}, {:#x} bytes, is not reached: {reason}",
    bar.bar.get(),
    bar.base,
    bar.size
)]
pub struct Refusal {
    /// The function.
    pub bdf: Bdf,
    /// The BAR, and where the guest has put it.
    pub bar: DecodedBar,
    /// Why.
    pub reason: Reason,
}

/// Something that a guest's access has brought about, and that the VMM may want to know.
///
/// A guest can cause any number of them: whoever logs them limits how many.
#[derive(Clone)]
#[non_exhaustive]
pub enum BusEvent {
    /// A BAR does not reach its function.
    Refused(Refusal),
    /// The guest has turned the power of a slot on or off. Without power, the device is reset and cannot be reached, and is still in the slot.
    SlotPower {
        /// The slot's port.
        port: Bdf,
        /// What it is now.
        on: bool,
    },
    /// The guest has released the device, as it was [asked](HostBridge::request_removal) to. Nothing reaches the functions any more.
    Removed {
        /// The port that is free again.
        port: Bdf,
        /// What was behind it.
        functions: Vec<Arc<dyn PciFunction>>,
    },
}

impl std::fmt::Debug for BusEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(refusal) => f.debug_tuple("Refused").field(refusal).finish(),
            Self::SlotPower { port, on } => {
                f.debug_struct("SlotPower").field("port", port).field("on", on).finish()
            }
            Self::Removed { port, functions } => {
                let count = functions.len();
                f.debug_struct("Removed").field("port", port).field("functions", &count).finish()
            }
        }
    }
}

/// Why something cannot be put on the bus or taken off it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BusError {
    /// The root bus is bus 0; other buses are behind ports.
    #[error("{0} is not on the root bus, which is bus 0")]
    NotOnRootBus(Bdf),
    /// There is a function already.
    #[error("there is a function at {0} already")]
    Taken(Bdf),
    /// No port is there.
    #[error("there is no root port at {0}")]
    NoPort(Bdf),
    /// The port has a device already.
    #[error("there is a device behind port {0} already")]
    Occupied(Bdf),
    /// The port has no device.
    #[error("there is no device behind port {0}")]
    Empty(Bdf),
    /// The device behind has no function 0, without which no guest looks for others; or one function twice.
    #[error("a device behind port {0} has a function 0, and each of its functions once")]
    Functions(Bdf),
    /// Only ports with a slot change while the guest runs.
    #[error("port {0} has no slot: what is behind it stays while the guest runs")]
    NoSlot(Bdf),
    /// The guest has not dealt with the last request yet.
    #[error("the guest has not dealt with the last change at the slot of port {0} yet")]
    Busy(Bdf),
}

/// What [`HostBridge::with_observer`] takes.
type Observer = Box<dyn Fn(BusEvent) + Send + Sync>;

/// A host bridge with ECAM (PCI Express base specification 6.0, section 7.2.2): the functions on its root bus and behind its ports, reached through
/// configuration space and through the BARs that the guest has placed in its windows.
///
/// All methods may be called from any thread. An access looks up who answers, lets go of the bus, and calls the function; so accesses do not
/// wait for each other, and a function may take its time.
pub struct HostBridge {
    config: HostConfig,
    regions: Vec<(Region, Range<u64>)>,
    topology: Mutex<Topology>,
    map: RwLock<Map>,
    observer: Option<Observer>,
}

impl HostBridge {
    /// A host bridge with nothing on its root bus.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn new(config: HostConfig) -> Result<Self, WindowError> {
        config.check()?;
        let regions = config.regions();
        Ok(Self { config, regions, topology: Mutex::default(), map: RwLock::default(), observer: None })
    }

    /// Tells `observer` of [events](BusEvent), on the thread of the access that caused them and with no lock held.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Fn(BusEvent) + Send + Sync + 'static) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Where it is.
    #[must_use]
    pub const fn config(&self) -> &HostConfig {
        &self.config
    }

    /// The guest-physical addresses whose accesses belong to [`read`](Self::read) and [`write`](Self::write).
    #[must_use]
    pub fn regions(&self) -> Vec<Range<u64>> {
        self.regions.iter().map(|(_, range)| range.clone()).collect()
    }

    /// Which of the four interrupt lines of the host bridge, 0 to 3, this pin of the device at `bdf` on the root bus is; for a device behind a port,
    /// `bdf` is the port's.
    ///
    /// It is what `interrupt-map` in the device tree says. Behind a port there is device 0 alone, whose pins are the port's without a turn.
    #[must_use]
    pub const fn line(bdf: Bdf, pin: IntxPin) -> usize {
        pin.swizzled(bdf.device()).index()
    }

    // What is on it.

    /// Puts a function on the root bus.
    ///
    /// Before the guest runs: no guest looks for something new there.
    ///
    /// # Errors
    /// [`BusError::NotOnRootBus`], [`BusError::Taken`].
    pub fn add(&self, bdf: Bdf, function: Arc<dyn PciFunction>) -> Result<(), BusError> {
        self.change(|topology| {
            if bdf.bus() != 0 {
                return Err(BusError::NotOnRootBus(bdf));
            }
            if topology.functions.contains_key(&Place::Root(bdf)) {
                return Err(BusError::Taken(bdf));
            }
            topology.functions.insert(Place::Root(bdf), Record::new(function));
            Ok(())
        })
    }

    /// Puts a root port on the root bus, before the guest runs.
    ///
    /// # Errors
    /// [`BusError::NotOnRootBus`], [`BusError::Taken`].
    pub fn add_port(&self, bdf: Bdf, port: Arc<RootPort>) -> Result<(), BusError> {
        self.add(bdf, port.clone())?;
        self.change(|topology| {
            topology.ports.insert(bdf, Port::new(port));
            Ok(())
        })
    }

    /// Plugs a device in behind a port: its functions with their numbers, 0 to 7 as a rule and up to 255 if it has ARI. While the guest runs, it is told, and finds
    /// the device by itself.
    ///
    /// # Errors
    /// [`BusError::NoPort`], [`BusError::Occupied`], [`BusError::Functions`]; [`BusError::NoSlot`] if the guest runs.
    pub fn plug(&self, port: Bdf, functions: Vec<(u8, Arc<dyn PciFunction>)>) -> Result<(), BusError> {
        self.change(|topology| {
            let entry = topology.ports.get(&port).ok_or(BusError::NoPort(port))?.port.clone();
            if topology.live && !entry.has_slot() {
                return Err(BusError::NoSlot(port));
            }
            if topology.behind(port).next().is_some() {
                return Err(BusError::Occupied(port));
            }
            let mut numbers: Vec<u8> = functions.iter().map(|(number, _)| *number).collect();
            numbers.sort_unstable();
            if numbers.first() != Some(&0) || numbers.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(BusError::Functions(port));
            }
            for (number, function) in functions {
                topology.functions.insert(Place::Behind(port, number), Record::new(function));
            }
            entry.insert(topology.live);
            Ok(())
        })
    }

    /// Asks the guest to release the device behind a port, as if somebody pressed the slot's attention button. When it has, the device is taken out, and
    /// [`BusEvent::Removed`] says so: with Linux, some 7 seconds later.
    ///
    /// # Errors
    /// [`BusError::NoPort`], [`BusError::NoSlot`], [`BusError::Empty`]; [`BusError::Busy`] while the guest has not dealt with the last request, or
    /// with the device's arrival: asking twice would take the request back. A guest without a hot-plug driver never does.
    pub fn request_removal(&self, port: Bdf) -> Result<(), BusError> {
        self.change(|topology| {
            let entry = topology.ports.get(&port).ok_or(BusError::NoPort(port))?;
            entry.port.press_button().map_err(|error| match error {
                ButtonError::NoSlot => BusError::NoSlot(port),
                ButtonError::Empty => BusError::Empty(port),
                ButtonError::Busy => BusError::Busy(port),
            })
        })
    }

    /// Takes the device behind a port out, whatever the guest is doing with it. When this returns, nothing reaches its functions any more, but accesses
    /// that were under way.
    ///
    /// It is for devices that are broken or gone. Guests hear of it, but not each driver survives it: Linux 6.12 waits for a virtio device to say that it is
    /// reset (`vp_reset` in `drivers/virtio/virtio_pci_modern.c`), which one that is gone never does.
    ///
    /// # Errors
    /// [`BusError::NoPort`], [`BusError::Empty`]; [`BusError::NoSlot`] if the guest runs.
    pub fn remove(&self, port: Bdf) -> Result<Vec<Arc<dyn PciFunction>>, BusError> {
        self.change(|topology| {
            let entry = topology.ports.get(&port).ok_or(BusError::NoPort(port))?.port.clone();
            if topology.live && !entry.has_slot() {
                return Err(BusError::NoSlot(port));
            }
            let records = topology.take_behind(port);
            if records.is_empty() {
                return Err(BusError::Empty(port));
            }
            entry.extract();
            Ok(records.into_iter().map(Record::retire).collect())
        })
    }

    /// The functions that the guest can reach, and where.
    #[must_use]
    pub fn functions(&self) -> Vec<(Bdf, Arc<dyn PciFunction>)> {
        let topology = lock(&self.topology);
        let reached = topology.functions.values();
        reached.filter_map(|record| Some((record.bdf()?, record.function().clone()))).collect()
    }

    /// The BARs that reach their functions, and where they are.
    #[must_use]
    pub fn placed(&self) -> Vec<(Bdf, DecodedBar)> {
        let topology = lock(&self.topology);
        let reached = topology.functions.values().filter_map(|record| Some((record.bdf()?, record.placed())));
        reached.flat_map(|(bdf, bars)| bars.iter().map(move |bar| (bdf, *bar))).collect()
    }

    /// The BARs that decode now and do not reach their functions.
    #[must_use]
    pub fn refused(&self) -> Vec<Refusal> {
        lock(&self.topology).refused.clone()
    }

    /// A reset of the whole machine: every function, and everything behind ports. What was [assigned](Self::assign) is gone with it.
    pub fn reset(&self) {
        let result = self.change(|topology| {
            // Ports pass it on to what is behind them.
            for (place, record) in &topology.functions {
                if matches!(place, Place::Root(_)) {
                    record.function().reset();
                }
            }
            Ok(())
        });
        debug_assert!(result.is_ok(), "nothing in it fails");
    }

    // What the guest does.

    /// A load from one of the [regions](Self::regions). Where nobody answers, all bits are ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.translate(address) {
            Some(Target::Config(bdf, offset)) => self.read_config(bdf, offset, data),
            Some(Target::Bar(space, at)) => {
                let found = self.find(space, at, data.len());
                match found {
                    Some((function, bar, offset)) => function.read_bar(bar, offset, data),
                    None => data.fill(0xff),
                }
            }
            None => data.fill(0xff),
        }
    }

    /// A store to one of the [regions](Self::regions). Where nobody answers, it is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.translate(address) {
            Some(Target::Config(bdf, offset)) => self.write_config(bdf, offset, data),
            Some(Target::Bar(space, at)) => {
                if let Some((function, bar, offset)) = self.find(space, at, data.len()) {
                    function.write_bar(bar, offset, data);
                }
            }
            None => {}
        }
    }

    /// A read of configuration space. It is split where it crosses a multiple of 4; what lies beyond offset 4095 reads as ones.
    pub fn read_config(&self, bdf: Bdf, offset: u16, data: &mut [u8]) {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let target = map.functions.get(&bdf).cloned();
        drop(map);
        data.fill(0xff);
        let Some(target) = target else { return };
        for (at, piece) in Pieces::of(offset, data.len()) {
            if let Some(data) = data.get_mut(piece) {
                target.function.read_config(at, data);
                let byte = HEADER_TYPE.checked_sub(at).and_then(|i| data.get_mut(usize::from(i)));
                if let Some(byte) = byte.filter(|_| target.multifunction) {
                    *byte |= MULTIFUNCTION;
                }
            }
        }
    }

    /// A write to configuration space, split as a [read](Self::read_config) is.
    pub fn write_config(&self, bdf: Bdf, offset: u16, data: &[u8]) {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let target = map.functions.get(&bdf).map(|target| target.function.clone());
        drop(map);
        let Some(function) = target else { return };
        for (at, piece) in Pieces::of(offset, data.len()) {
            if let Some(data) = data.get(piece) {
                function.write_config(at, data);
                let mut events = Vec::new();
                let mut topology = lock(&self.topology);
                self.settle(&mut topology, Touched::Registers(bdf), &mut events);
                drop(topology);
                self.observe(events);
            }
        }
    }

    /// Who has all these addresses. The map is not locked any more when this returns.
    fn find(&self, space: Space, at: u64, length: usize) -> Option<(Arc<dyn PciFunction>, BarIndex, u64)> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let (placed, offset) = map.ranges(space).find(at, length)?;
        Some((placed.function.clone(), placed.bar, offset))
    }

    #[allow(clippy::cast_possible_truncation, reason = "20 bits of ECAM are a bus, 12 of them an offset")]
    fn translate(&self, address: u64) -> Option<Target> {
        let (region, range) =
            self.config.regions().into_iter().find(|(_, range)| range.contains(&address))?;
        let offset = address - range.start;
        Some(match region {
            Region::Ecam => {
                Target::Config(Bdf::from_requester_id((offset >> 12) as u16), (offset & 0xfff) as u16)
            }
            Region::Memory32 | Region::Memory64 => Target::Bar(Space::Memory, address),
            Region::Io => Target::Bar(Space::Io, offset),
        })
    }

    // How it changes.

    /// Changes what is on the bus, and brings everything in line with that.
    fn change<T>(&self, f: impl FnOnce(&mut Topology) -> Result<T, BusError>) -> Result<T, BusError> {
        let mut events = Vec::new();
        let mut topology = lock(&self.topology);
        let result = f(&mut topology);
        self.settle(&mut topology, Touched::All, &mut events);
        drop(topology);
        self.observe(events);
        result
    }

    /// With the topology locked until the functions are told, so that they hear of changes in the order in which they happen. Accesses go on meanwhile.
    fn settle(&self, topology: &mut Topology, touched: Touched, events: &mut Vec<BusEvent>) {
        let change = topology.settle(touched, &self.config, events);
        if change.moves() {
            let map = topology.map();
            *self.map.write().unwrap_or_else(PoisonError::into_inner) = map;
            change.notify();
        }
    }

    fn observe(&self, events: Vec<BusEvent>) {
        if let Some(observer) = &self.observer {
            events.into_iter().for_each(observer);
        }
    }
}

impl std::fmt::Debug for HostBridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostBridge").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Where an address leads.
enum Target {
    Config(Bdf, u16),
    Bar(Space, u64),
}

/// An access to configuration space cut into pieces of 1, 2 or 4 bytes that do not cross a multiple of 4, and do not leave the function.
struct Pieces {
    offset: u16,
    done: usize,
    length: usize,
}

impl Pieces {
    fn of(offset: u16, length: usize) -> Self {
        let room = usize::from(EXTENDED.saturating_sub(offset));
        Self { offset, done: 0, length: length.min(room) }
    }
}

impl Iterator for Pieces {
    type Item = (u16, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.length - self.done;
        let at = self.offset;
        let size =
            [4, 2, 1].into_iter().find(|&size| at.is_multiple_of(size) && usize::from(size) <= left)?;
        let piece = self.done..self.done + usize::from(size);
        self.offset += size;
        self.done = piece.end;
        Some((at, piece))
    }
}
