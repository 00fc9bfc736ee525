// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio device as a PCI function.

use std::fmt;
use std::sync::{Arc, Mutex};

use irq_types::Bdf;
use irqchip::{IoAddress, IoeventBinder, IoeventSpec};
use irqfd::{Doorbell, IoEvent, LevelLine, VectorGroup, Wiring};
use pci::{BarIndex, DecodedBar, Endpoint, IntxPin, PciFunction};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::layout::{self, COMMON, DEVICE, ISR, NOTIFY, NOTIFY_STEP, REGISTERS_SIZE, ROOM};
use super::registers::{CommonConfig, DRIVER_OK, Effect, Live, QueueSetup};
use super::signals::{Signals, VectorTap};
use crate::lock::lock;
use crate::{Activation, ActiveQueue, QueueInterrupt, Transport, VirtioDevice};

/// The transport's own features. The rest of its range (24 to 49) is not offered.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// The feature bits that belong to device types: section 2.2.
const DEVICE_FEATURES: u64 = 0xfffc_0000_00ff_ffff;

/// Why a virtio device cannot be a PCI function.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// A device ID beyond what PCI device IDs are set aside for.
    #[error("virtio device type {0} has no PCI device ID")]
    DeviceType(u32),
    /// More queues than there are notification addresses.
    #[error("{0} queues: at most 1024 fit")]
    TooManyQueues(usize),
    /// Capabilities or BARs do not fit together.
    #[error("cannot lay out the function")]
    Layout(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A vector could not be had.
    #[error("cannot connect the interrupts")]
    Interrupt(#[from] irqfd::Error),
}

impl PciError {
    pub(super) fn layout(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Layout(Box::new(source))
    }
}

/// What a function is connected to.
#[derive(Clone)]
pub struct PciWiring {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// Where notifications become ioeventfds.
    pub ioevents: Arc<dyn IoeventBinder>,
    /// MSI-X: irqfds and routes. `None` where the guest's interrupt controller takes no messages; the function has no MSI-X capability then.
    pub msix: Option<Wiring>,
    /// What is added to a requester ID to make the device ID that the ITS sees (`msi-map` of the device tree).
    pub device_id_base: u32,
    /// INTx: the pin, and the line it is on.
    pub intx: Option<(IntxPin, Arc<dyn LevelLine>)>,
}

/// A virtio device on PCI: VIRTIO 1.3, section 4.1, without the legacy interface.
///
/// One vector for each queue, in order, and one for changes of the configuration are there to be mapped; each queue has a notification address of its
/// own, which the kernel turns into an eventfd while the device is in use and its BAR decodes. Where the kernel will not, the write comes
/// as an exit, and rings all the same.
///
/// Dropping it resets the device, and takes ioeventfds, irqfds and routes back.
pub struct VirtioPciFunction {
    endpoint: Endpoint,
    /// Where the PCI configuration access capability is.
    access: u16,
    registers_bar: BarIndex,
    signals: Arc<Signals>,
    group: Option<Arc<VectorGroup>>,
    wiring: PciWiring,
    state: Mutex<State>,
}

/// What the function's lock holds. Device threads never want it.
struct State {
    device: Box<dyn VirtioDevice>,
    common: CommonConfig,
    /// Where the BAR with the notification addresses is, if it decodes.
    base: Option<u64>,
    /// The notifications of a running device.
    bells: Vec<(u16, Doorbell)>,
    /// Their ioeventfds.
    ioevents: Vec<IoEvent>,
    /// Why the kernel does not take the notifications, if it does not.
    exits: Option<irqfd::Error>,
}

impl VirtioPciFunction {
    /// Makes a function of `device`. It is on no bus yet, and nothing is asked of the kernel.
    ///
    /// # Errors
    /// If the device has a type or a number of queues that PCI has no room for.
    pub fn new(device: Box<dyn VirtioDevice>, wiring: PciWiring) -> Result<Self, PciError> {
        let queues = device.queue_sizes().len();
        if queues > layout::MAX_QUEUES {
            return Err(PciError::TooManyQueues(queues));
        }
        let pin = wiring.intx.as_ref().map(|(pin, _)| *pin);
        let layout::Layout { mut config, access } = layout::build(device.device_type(), pin)?;
        // At most 1025, by the check above.
        let count = u16::try_from(queues + 1).map_err(|_| PciError::TooManyQueues(queues))?;
        let group = wiring.msix.as_ref().map(|msix| {
            let sender = Bdf::from_requester_id(0).device_id(wiring.device_id_base);
            Arc::new(VectorGroup::new(msix.clone(), sender, usize::from(count)))
        });
        let line = wiring.intx.as_ref().map(|(_, line)| Arc::clone(line));
        let signals = Signals::new(group.as_deref(), line, queues)?;
        let endpoint = match &group {
            None => Endpoint::new(config),
            Some(group) => {
                let msix = layout::msix(&mut config, count)?;
                let tap = VectorTap { group: Arc::clone(group), signals: Arc::clone(&signals) };
                Endpoint::new(config).with_msix(msix, Arc::new(tap)).map_err(PciError::layout)?
            }
        };
        let vectors = group.as_ref().map_or(0, |_| count);
        let offered = device.features() & DEVICE_FEATURES | TRANSPORT_FEATURES;
        let common = CommonConfig::new(offered, vectors, device.queue_sizes());
        let state =
            State { device, common, base: None, bells: Vec::new(), ioevents: Vec::new(), exits: None };
        Ok(Self {
            endpoint,
            access,
            registers_bar: layout::registers_bar()?,
            signals,
            group,
            wiring,
            state: Mutex::new(state),
        })
    }

    /// To tell the driver of the device as a whole: a resized disk, a link that is down.
    #[must_use]
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.signals) as _
    }

    /// How it is doing.
    #[must_use]
    pub fn state(&self) -> VirtioPciState {
        let state = lock(&self.state);
        let vectors = self.group.as_ref().map_or_else(Vec::new, |group| {
            (0..group.len()).filter_map(|index| group.state(index).ok()).collect()
        });
        VirtioPciState {
            device_type: state.device.device_type(),
            status: state.common.status(),
            needs_reset: self.signals.is_reset_needed(),
            features: state.common.features(),
            queues: state
                .common
                .queues()
                .iter()
                .map(|queue| if queue.enabled { queue.size } else { 0 })
                .collect(),
            notified_in_kernel: !state.ioevents.is_empty() && state.ioevents.len() == state.bells.len(),
            notification_trouble: state.exits.clone(),
            trouble: self.signals.trouble(),
            interrupts: self.signals.interrupts(),
            vectors,
        }
    }

    /// The driver has set DRIVER_OK.
    fn activate(&self, state: &mut State) {
        self.signals.start();
        if let Err(why) = self.try_activate(state) {
            self.stop_device(state);
            self.signals.needs_reset(&Chained(&*why));
        }
    }

    fn try_activate(&self, state: &mut State) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let transport = self.transport();
        let features = state.common.features();
        let mut queues = Vec::new();
        let mut bells = Vec::new();
        for (index, setup) in (0u16..).zip(state.common.queues()).filter(|(_, setup)| setup.enabled) {
            let queue = self
                .queue(setup, features)
                .ok_or_else(|| format!("the rings of queue {index} are not in the guest's memory"))?;
            let notify = Doorbell::new()?;
            bells.push((index, notify.clone()));
            let interrupt = QueueInterrupt::new(Arc::clone(&transport), index);
            queues.push(ActiveQueue { index, queue, notify, interrupt });
        }
        let memory = self.wiring.memory.clone();
        state.device.activate(Activation { memory, features, queues, transport })?;
        state.bells = bells;
        self.bind(state);
        // What the driver has put in before DRIVER_OK it may have notified too, before there was a doorbell.
        for (_, bell) in &state.bells {
            bell.ring()?;
        }
        Ok(())
    }

    /// The rings as the driver has placed them, if they are in memory.
    fn queue(&self, setup: &QueueSetup, features: u64) -> Option<Queue> {
        let halves = |address: u64| {
            let bytes = address.to_le_bytes();
            let [a, b, c, d, e, f, g, h] = bytes;
            (Some(u32::from_le_bytes([a, b, c, d])), Some(u32::from_le_bytes([e, f, g, h])))
        };
        let mut queue = Queue::new(setup.max).ok()?;
        queue.set_size(setup.size);
        let (low, high) = halves(setup.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(setup.available);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(setup.used);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        queue.set_ready(true);
        let bytes = |entries: u64, each: u64| entries * each;
        let size = u64::from(setup.size);
        // virtio-queue checks the ranges, but not that they do not wrap around.
        let ends = [
            setup.descriptors.checked_add(bytes(size, 16)),
            setup.available.checked_add(bytes(size, 2) + 6),
            setup.used.checked_add(bytes(size, 8) + 6),
        ];
        (ends.iter().all(Option::is_some) && setup.available != 0 && queue.is_valid(&self.wiring.memory))
            .then_some(queue)
    }

    /// Lets the kernel take the notifications, if the device runs and the BAR decodes.
    fn bind(&self, state: &mut State) {
        state.ioevents.clear();
        state.exits = None;
        let Some(base) = state.base else { return };
        for (index, bell) in &state.bells {
            let address = base + u64::from(NOTIFY) + u64::from(*index) * u64::from(NOTIFY_STEP);
            // Any width: the value only repeats the queue's number. On x86, this is also the kind that the kernel finds without decoding the
            // instruction (KVM_FAST_MMIO_BUS).
            let spec = IoeventSpec { address: IoAddress::Mmio(address), length: 0, datamatch: None };
            match bell.at(Arc::clone(&self.wiring.ioevents), spec) {
                Ok(ioevent) => state.ioevents.push(ioevent),
                Err(e) => {
                    state.exits.get_or_insert(e);
                }
            }
        }
    }

    /// Takes the device's threads and notifications back.
    fn stop_device(&self, state: &mut State) {
        state.ioevents.clear();
        state.exits = None;
        state.bells.clear();
        state.device.reset();
    }

    /// A reset by the driver: VIRTIO 1.3, section 2.4.
    fn reset_device(&self, state: &mut State) {
        self.stop_device(state);
        state.common.reset();
        self.signals.reset();
    }

    fn read_registers(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((structure, at)) = locate(offset, data.len()) else { return };
        match structure {
            COMMON => {
                let live = Live {
                    generation: self.signals.generation(),
                    needs_reset: self.signals.is_reset_needed(),
                };
                lock(&self.state).common.read(at, data, live);
            }
            ISR => {
                if let (0, Some(first)) = (at, data.first_mut()) {
                    *first = self.signals.take_isr();
                }
            }
            DEVICE => lock(&self.state).device.read_config(at, data),
            _ => {}
        }
    }

    fn write_registers(&self, offset: u64, data: &[u8]) {
        let Some((structure, at)) = locate(offset, data.len()) else { return };
        let mut state = lock(&self.state);
        match structure {
            COMMON => match state.common.write(at, data) {
                Effect::Nothing => {}
                Effect::Reset => self.reset_device(&mut state),
                Effect::Activate => self.activate(&mut state),
                Effect::Vectors => {
                    let queues = state.common.queues().iter().map(|queue| queue.vector);
                    self.signals.map(state.common.config_vector(), queues);
                }
            },
            DEVICE => state.device.write_config(at, data),
            NOTIFY => {
                let index = at / u64::from(NOTIFY_STEP);
                if let Some((_, bell)) = state.bells.iter().find(|(queue, _)| u64::from(*queue) == index) {
                    // An eventfd that is open takes the signal.
                    let _ = bell.ring();
                }
            }
            _ => {}
        }
    }

    /// What the PCI configuration access capability points at, if it is something: (offset in the BAR, length). Section 4.1.4.9.1.
    fn window(&self) -> Option<(u64, usize)> {
        let field = |at: u8| {
            let mut bytes = [0; 4];
            self.endpoint.read(self.access + u16::from(at), &mut bytes);
            u32::from_le_bytes(bytes)
        };
        let [bar, ..] = field(layout::CAP_BAR).to_le_bytes();
        let (offset, length) = (field(layout::CAP_OFFSET), field(layout::CAP_LENGTH));
        let fits = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        let inside = u64::from(offset) + u64::from(length) <= REGISTERS_SIZE;
        (bar == self.registers_bar.get() && fits && inside).then_some((u64::from(offset), length as usize))
    }

    /// Where in configuration space the window is.
    fn window_at(&self) -> u16 {
        self.access + u16::from(layout::CAP_DATA)
    }

    /// Whether `offset` is in the window.
    fn is_window(&self, offset: u16) -> bool {
        (self.window_at()..self.window_at() + 4).contains(&offset)
    }
}

/// Which structure of the BAR an access is in, and where in it. Accesses across a boundary are in none.
fn locate(offset: u64, length: usize) -> Option<(u32, u64)> {
    let structure = u32::try_from(offset).ok()? & !(ROOM - 1);
    let at = offset - u64::from(structure);
    (at + length as u64 <= u64::from(ROOM)).then_some((structure, at))
}

impl PciFunction for VirtioPciFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        if self.is_window(offset) {
            data.fill(0);
            // Reading the window reads as many bytes as the driver has said, whatever the width of the access.
            if let Some((at, length)) = self.window() {
                let mut bytes = [0; 4];
                if let Some(bytes) = bytes.get_mut(..length) {
                    self.read_registers(at, bytes);
                }
                let skip = usize::from(offset - self.window_at());
                for (to, from) in data.iter_mut().zip(bytes.iter().skip(skip)) {
                    *to = *from;
                }
            }
            return;
        }
        self.endpoint.with_config(|config| config.set_intx_status(self.signals.is_intx_pending()));
        self.endpoint.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        if self.is_window(offset) {
            if let Some((at, length)) = self.window()
                && offset == self.window_at()
                && let Some(data) = data.get(..length)
            {
                self.write_registers(at, data);
            }
            return;
        }
        self.endpoint.write(offset, data);
        let disabled = self.endpoint.with_config(|config| config.intx_disabled());
        self.signals.set_intx_disabled(disabled);
    }

    fn decoded(&self) -> Vec<DecodedBar> {
        self.endpoint.decoded()
    }

    fn placed(&self, bars: &[DecodedBar]) {
        let base = bars.iter().find(|placed| placed.bar == self.registers_bar).map(|placed| placed.base);
        let mut state = lock(&self.state);
        if state.base != base {
            state.base = base;
            self.bind(&mut state);
        }
    }

    fn read_bar(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        if bar == self.registers_bar {
            self.read_registers(offset, data);
        } else if !self.endpoint.read_msix(bar, offset, data) {
            data.fill(0);
        }
    }

    fn write_bar(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        if bar == self.registers_bar {
            self.write_registers(offset, data);
        } else {
            self.endpoint.write_msix(bar, offset, data);
        }
    }

    fn set_bdf(&self, bdf: Bdf) {
        if let Some(group) = &self.group {
            // What could not be routed anew stays in the vectors' states, and is tried again with the next change.
            let _ = group.set_device_id(bdf.device_id(self.wiring.device_id_base));
        }
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        self.reset_device(&mut state);
        drop(state);
        self.endpoint.reset();
        self.signals.set_intx_disabled(false);
    }
}

impl Drop for VirtioPciFunction {
    fn drop(&mut self) {
        // Before anything that the device's threads use goes.
        let mut state = lock(&self.state);
        self.reset_device(&mut state);
    }
}

impl fmt::Debug for VirtioPciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPciFunction").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// Where a virtio device on PCI is.
#[derive(Debug, Clone)]
pub struct VirtioPciState {
    /// The virtio device ID.
    pub device_type: u32,
    /// The status register: section 2.1.
    pub status: u8,
    /// Whether the driver is told to reset it.
    pub needs_reset: bool,
    /// What driver and device have agreed on.
    pub features: u64,
    /// Entries of each queue, 0 for one that is not enabled.
    pub queues: Vec<u16>,
    /// Whether all notifications go without an exit.
    pub notified_in_kernel: bool,
    /// Why they do not, if the kernel refused.
    pub notification_trouble: Option<irqfd::Error>,
    /// Why it last needed a reset.
    pub trouble: Option<String>,
    /// Interrupts that this process has passed on.
    pub interrupts: u64,
    /// The MSI-X vectors: that of the configuration is wherever the driver mapped it.
    pub vectors: Vec<irqfd::VectorState>,
}

impl VirtioPciState {
    /// Whether a driver drives it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status & DRIVER_OK != 0 && !self.needs_reset
    }
}

/// An error with its causes, in one line.
struct Chained<'a>(&'a (dyn std::error::Error + Send + Sync + 'static));

impl fmt::Display for Chained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
