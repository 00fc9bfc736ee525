// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI host bridge of the machine, and what is plugged into it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use event_manager::SubscriberId;
use gsi_routing::GsiHandle;
use irq_types::{Bdf, TriggerMode};
use irqchip::IoeventBinder;
use irqfd::{LevelTrigger, MsiVector, ResampleSubscriber, VectorGroup};
use pci::{
    BusEvent, HostBridge, HostConfig, HostNode, IntxPin, IntxTarget, IoWindow, MsiReceiver, PciFunction,
    PortConfig, PortInterrupts, RootPort,
};
use vgic::{GicLayout, GicPhandles, INTERRUPT_PARENT_ADDRESS_CELLS};
use virtio_devices::{PciWiring, VirtioPciFunction};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_fdt::FdtWriter;
use vm_memory::GuestMemoryMmap;

use crate::bus::Bus;
use crate::devices::Pluggable;
use crate::error::{Error, Result};
use crate::layout;
use crate::lines::Lines;
use crate::virtio::Named;

/// How many BARs that the guest puts where they cannot be are reported.
const MOST_REFUSALS: u64 = 10;

/// The host bridge with its devices.
pub(crate) struct PciHost {
    bridge: Arc<HostBridge>,
    /// INTA to INTD as slot 0 sees them.
    lines: [Arc<GsiHandle>; 4],
    connections: Connections,
    virtio: Mutex<Vec<Virtio>>,
    slots: Vec<Slot>,
    next_device: u8,
    removed: Arc<OnceLock<Removed>>,
}

/// Takes what the guest has released: the slot, by its port, and what was in it. Called by the vCPU that did so.
pub(crate) type Removed = Box<dyn Fn(Bdf, Vec<Arc<dyn PciFunction>>) + Send + Sync>;

/// Where a device is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the root bus, for good.
    Root(Bdf),
    /// In the slot of the port that is there.
    Slot(Bdf),
}

/// A root port, for a device that comes or goes while the guest runs.
pub(crate) struct Slot {
    pub(crate) name: String,
    /// Where the port is.
    pub(crate) port: Bdf,
    /// Its own vectors and its end of its line: it tells the guest of what comes and goes.
    pub(crate) vectors: Arc<VectorGroup>,
    pub(crate) trigger: LevelTrigger,
}

/// A virtio device.
pub(crate) struct Virtio {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) function: Arc<VirtioPciFunction>,
    /// Its end of its line.
    pub(crate) trigger: LevelTrigger,
    /// What it was asked for as, if it is one that may come and go.
    pub(crate) wanted: Option<Pluggable>,
    /// What the event loop runs for it.
    pub(crate) subscribers: Vec<SubscriberId>,
}

/// What functions are connected to.
pub(crate) struct Connections {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) ioevents: Arc<dyn IoeventBinder>,
    /// Whether the guest's interrupt controller takes messages.
    pub(crate) messages: bool,
}

/// The bridge's windows on the machine's MMIO bus.
struct Window(Arc<HostBridge>);

impl DeviceMmio for Window {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.0.read(base.0 + offset, data);
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.0.write(base.0 + offset, data);
    }
}

fn failed(what: &str) -> Error {
    Error::failure(format!("PCI: cannot {what}"))
}

/// What the event loop runs for a level line: it rises again after the guest's EOI while its device holds it.
fn resampler(name: &str, trigger: &LevelTrigger) -> ResampleSubscriber {
    let name = name.to_owned();
    ResampleSubscriber::new(trigger.resampler(), move |trouble| {
        tracing::error!("the interrupt line of the {name}: {trouble:?}");
    })
}

impl Virtio {
    /// What the event loop has to run for it.
    pub(crate) fn resampler(&self) -> ResampleSubscriber {
        resampler(&self.name, &self.trigger)
    }
}

impl Place {
    /// Where the guest finds what is in this place; where it is plugged in, while the guest has not numbered its bus.
    pub(crate) fn of<F>(self, function: &Arc<F>, bridge: Option<&Arc<HostBridge>>) -> String {
        let own = Arc::as_ptr(function).cast::<()>();
        let found = bridge.and_then(|bridge| {
            let functions = bridge.functions();
            functions
                .iter()
                .find(|(_, function)| Arc::as_ptr(function).cast::<()>() == own)
                .map(|(bdf, _)| *bdf)
        });
        match (self, found) {
            (_, Some(bdf)) => bdf.to_string(),
            (Self::Root(bdf), None) => bdf.to_string(),
            (Self::Slot(port), None) => format!("port {port}"),
        }
    }
}

impl PciHost {
    /// A bridge without devices, for a guest with `memory` bytes and `bits` bits of guest-physical address.
    pub(crate) fn new(memory: u64, bits: u32, lines: &Lines, connections: Connections) -> Result<Self> {
        let config = HostConfig {
            segment: 0,
            ecam: layout::PCI_ECAM.start,
            buses: 256,
            memory32: layout::PCI_MEMORY_32,
            memory64: layout::pci_memory_64(memory, bits),
            io: Some(IoWindow {
                base: layout::PCI_IO.start,
                size: layout::PCI_IO.end - layout::PCI_IO.start,
            }),
        };
        let bridge = HostBridge::new(config).map_err(|e| failed("lay out the host bridge").because(e))?;
        // A guest can bring about as many as it likes, and must not be able to fill its host's log.
        let refusals = AtomicU64::new(0);
        let removed = Arc::new(OnceLock::<Removed>::new());
        let on_removed = Arc::clone(&removed);
        let bridge = Arc::new(bridge.with_observer(move |event| {
            let refusal = match event {
                BusEvent::Refused(refusal) => refusal,
                BusEvent::Removed { port, functions } => {
                    if let Some(removed) = on_removed.get() {
                        removed(port, functions);
                    }
                    return;
                }
                event => {
                    tracing::debug!("PCI: {event:?}");
                    return;
                }
            };
            let count = refusals.fetch_add(1, Ordering::Relaxed) + 1;
            if count <= MOST_REFUSALS {
                let last = if count == MOST_REFUSALS { "; further ones are not reported" } else { "" };
                tracing::warn!("PCI: {refusal}{last}");
            }
        }));
        let spis = layout::pci_spis().map_err(|e| failed("have interrupt lines").because(e))?;
        let [a, b, c, d] = spis.map(|spi| lines.claim("PCI", spi));
        Ok(Self {
            bridge,
            lines: [a?, b?, c?, d?],
            connections,
            virtio: Mutex::default(),
            slots: Vec::new(),
            next_device: 1,
            removed,
        })
    }

    /// Who takes what the guest releases. Once, before the guest runs.
    pub(crate) fn on_removed(&self, removed: Removed) {
        let _ = self.removed.set(removed);
    }

    /// Adds a root port with an empty slot, for a device that comes or goes while the guest runs. Returns where the port is.
    pub(crate) fn add_slot(&mut self, lines: &Lines) -> Result<Bdf> {
        let number = self.slots.len() + 1;
        let name = format!("slot {number}");
        let failed = || failed(&format!("make {name}"));
        let bdf = self.next_slot(&name)?;
        let trigger = self.level(&name, bdf, RootPort::PIN, lines)?;
        let line = trigger.line();
        let group = Arc::new(VectorGroup::new(lines.wiring().clone(), bdf.device_id(0), 1));
        let vector = group.vector(0).map_err(|e| failed().because(e))?;
        // What goes wrong is tried again with the next event, and shows in the vector's state.
        let interrupts = PortInterrupts {
            sink: Arc::clone(&group) as _,
            message: Box::new(move || drop(vector.trigger())),
            line: Box::new(move |high| drop(line.set_level(high))),
        };
        let config = PortConfig { slot: u16::try_from(number).ok(), ..PortConfig::default() };
        let port = RootPort::new(&config, interrupts).map_err(|e| failed().because(e))?;
        self.bridge.add_port(bdf, Arc::new(port)).map_err(|e| failed().because(e))?;
        self.slots.push(Slot { name, port: bdf, vectors: group, trigger });
        Ok(bdf)
    }

    /// The slots that devices can be put into while the guest runs, in order.
    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Plugs virtio devices in, in order.
    pub(crate) fn add_virtio(&mut self, devices: Vec<Named>, lines: &Lines) -> Result<()> {
        for named in devices {
            let place = if named.wanted.as_ref().is_some_and(Pluggable::wants_slot) {
                Place::Slot(self.add_slot(lines)?)
            } else {
                Place::Root(self.next_slot(&named.name)?)
            };
            let virtio = self.connect(named, place, lines)?;
            self.plug(&virtio)?;
            self.virtio().push(virtio);
        }
        Ok(())
    }

    /// Makes a virtio device a function for a place, without putting it there yet.
    pub(crate) fn connect(&self, named: Named, place: Place, lines: &Lines) -> Result<Virtio> {
        let Named { name, device, wanted } = named;
        // The pin of a device behind a port, where it is device 0, is the same pin of the port.
        let (Place::Root(bdf) | Place::Slot(bdf)) = place;
        let trigger = self.level(&name, bdf, IntxPin::A, lines)?;
        let to = &self.connections;
        let wiring = PciWiring {
            memory: to.memory.clone(),
            ioevents: Arc::clone(&to.ioevents),
            msix: to.messages.then(|| lines.wiring().clone()),
            device_id_base: 0,
            intx: Some((IntxPin::A, trigger.line())),
        };
        let function = VirtioPciFunction::new(device, wiring)
            .map_err(|e| failed(&format!("connect the {name}")).because(e))?;
        Ok(Virtio { name, place, function: Arc::new(function), trigger, wanted, subscribers: Vec::new() })
    }

    /// Puts it into its place.
    pub(crate) fn plug(&self, virtio: &Virtio) -> Result<()> {
        let function = Arc::clone(&virtio.function) as Arc<dyn PciFunction>;
        match virtio.place {
            Place::Root(bdf) => self.bridge.add(bdf, function),
            Place::Slot(port) => self.bridge.plug(port, vec![(0, function)]),
        }
        .map_err(|e| failed(&format!("plug the {} in", virtio.name)).because(e))
    }

    /// The next free device number on bus 0.
    pub(crate) fn next_slot(&mut self, name: &str) -> Result<Bdf> {
        let bdf = Bdf::new(0, self.next_device, 0).map_err(|e| {
            Error::usage(format!("no PCI slot is left for the {name}")).because(e).hint("give fewer devices")
        })?;
        self.next_device += 1;
        Ok(bdf)
    }

    /// A function's end of the line that its pin is on.
    fn level(&self, name: &str, bdf: Bdf, pin: IntxPin, lines: &Lines) -> Result<LevelTrigger> {
        let line = self
            .lines
            .get(HostBridge::line(bdf, pin))
            .ok_or_else(|| failed(&format!("find the interrupt line of the {name}")))?;
        lines.level(name, line)
    }

    /// The line that the pin of a function is on.
    pub(crate) fn line(&self, bdf: Bdf, pin: IntxPin) -> Option<Arc<GsiHandle>> {
        self.lines.get(HostBridge::line(bdf, pin)).cloned()
    }

    /// The virtio devices, in order. Who needs the host's devices as well locks those first.
    pub(crate) fn virtio(&self) -> MutexGuard<'_, Vec<Virtio>> {
        self.virtio.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bridge, for those who plug something in themselves.
    pub(crate) fn bridge(&self) -> &Arc<HostBridge> {
        &self.bridge
    }

    /// Gives every BAR an address and puts the windows on the machine's bus. Once, after all devices are in.
    pub(crate) fn attach(&self, bus: &mut Bus) -> Result<()> {
        for unassigned in self.bridge.assign() {
            // The guest may find another arrangement.
            tracing::warn!("PCI: {unassigned}");
        }
        for region in self.bridge.regions() {
            bus.attach(&region, Arc::new(Window(Arc::clone(&self.bridge))))
                .map_err(|e| failed("put the bridge on the bus").because(e))?;
        }
        Ok(())
    }

    /// What the event loop has to run for the slots' ports.
    pub(crate) fn resamplers(&self) -> impl Iterator<Item = ResampleSubscriber> {
        self.slots.iter().map(|slot| resampler(&slot.name, &slot.trigger))
    }

    /// What a machine would have to be given to have those devices that this one has now, of those that may come and go.
    pub(crate) fn wanted(&self) -> Vec<Pluggable> {
        let kept = |virtio: &Virtio| {
            let in_slot = matches!(virtio.place, Place::Slot(_));
            virtio.wanted.as_ref().map(|wanted| wanted.kept(&virtio.name, in_slot))
        };
        self.virtio().iter().filter_map(kept).collect()
    }

    /// One line for each virtio device, for the report.
    pub(crate) fn report(&self) -> Vec<String> {
        self.virtio()
            .iter()
            .map(|Virtio { name, place, function, .. }| {
                let at = place.of(function, Some(&self.bridge));
                let state = function.state();
                let routed = state.vectors.iter().filter(|vector| vector.gsi.is_some()).count();
                let notified = if state.notified_in_kernel { ", notified in the kernel" } else { "" };
                let trouble = state.trouble.map(|why| format!("; in trouble: {why}")).unwrap_or_default();
                // vhost signals eventfds that it was given: nobody counts here.
                let interrupts = if state.vectors.iter().any(|vector| vector.eventfd_shared) {
                    "interrupts by the host's kernel".to_owned()
                } else {
                    format!("{} interrupts passed on", state.interrupts)
                };
                format!(
                    "{name} at {at}: {interrupts}, {routed} of {} vectors routed{notified}{trouble}",
                    state.vectors.len()
                )
            })
            .collect()
    }

    /// The bridge's node.
    pub(crate) fn write_fdt(
        &self,
        fdt: &mut FdtWriter,
        gic: &GicLayout,
        phandles: &GicPhandles,
    ) -> std::result::Result<(), vm_fdt::Error> {
        let messages = match phandles.msi.first() {
            Some(&phandle) if gic.v2m_frame().is_some() => MsiReceiver::Frame { phandle },
            Some(&phandle) => MsiReceiver::Its { phandle },
            None => MsiReceiver::None,
        };
        let lines = layout::pci_spis().ok().map(|spis| IntxTarget {
            controller: phandles.gic,
            // Two: a constant of the binding's.
            address_cells: INTERRUPT_PARENT_ADDRESS_CELLS as usize,
            lines: spis.map(|spi| spi.fdt_cells(TriggerMode::Level).to_vec()),
        });
        self.bridge.write_fdt(&HostNode { messages, lines }, fdt)
    }
}
