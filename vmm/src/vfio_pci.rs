// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI devices of the host's in the guest: `--vfio 0000:00:08.0`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, Events, MutEventSubscriber, SubscriberId};
use irqfd::ResampleSubscriber;
use pci::{HostBridge, IntxPin, PciFunction};
use vfio_passthrough::ResamplePath;
use vfio_passthrough::iommu::IommuKind;
use vfio_passthrough::pci::{
    InterruptMode, InterruptState, Notice, Notifier, PciEvent, PciOptions, VfioPciFunction,
};
use vmm_sys_util::epoll::EventSet;

use crate::error::{Error, Result};
use crate::lines::Lines;
use crate::outcome::{Outcome, Verdict};
use crate::pci_host::{PciHost, Place};
use crate::vfio::{Explain, Passthrough};
use crate::vfio_config::{OnEvent, Vfio};
use crate::virtio::name_is_taken;

/// All PCI devices of the host's that a machine has now.
#[derive(Debug, Default)]
pub(crate) struct VfioDevices {
    devices: Mutex<Vec<Assigned>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Assigned {
    pub(crate) wanted: Vfio,
    pub(crate) place: Place,
    pub(crate) function: Arc<VfioPciFunction>,
    /// What the event loop runs for it.
    pub(crate) subscribers: Vec<SubscriberId>,
    /// What went wrong last.
    trouble: Arc<Mutex<Option<String>>>,
}

/// What the event loop runs.
pub(crate) type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// How often what goes wrong with one device is said. A guest must not be able to fill its host's log.
const SAID: u64 = 10;

impl VfioDevices {
    /// Opens the devices and plugs them in, in order.
    pub(crate) fn build(
        wanted: &[Vfio],
        host: &Passthrough,
        lines: &Lines,
        pci: &mut PciHost,
    ) -> Result<Self> {
        let this = Self::default();
        for wanted in wanted {
            let name = wanted.name();
            let place = if wanted.wants_slot() {
                Place::Slot(pci.add_slot(lines)?)
            } else {
                Place::Root(pci.next_slot(name)?)
            };
            let mut devices = this.lock();
            check_name(&devices, name)?;
            let assigned = Assigned::open(wanted.clone(), host, lines, pci, place)?;
            assigned.plug(pci.bridge())?;
            devices.push(assigned);
        }
        // Not before all are there: a bus is reset once, for all that are on it.
        reset_with_bus(&this.lock().iter().collect::<Vec<_>>());
        Ok(this)
    }

    /// The devices. Whoever adds or removes one holds this until it is done.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<Assigned>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a machine would have to be given to have the devices that this one has now.
    pub(crate) fn wanted(&self) -> Vec<Vfio> {
        let slot = |assigned: &Assigned| matches!(assigned.place, Place::Slot(_));
        self.lock().iter().map(|assigned| Vfio { slot: slot(assigned), ..assigned.wanted.clone() }).collect()
    }

    /// One line for each, for the report.
    pub(crate) fn report(&self, bridge: Option<&Arc<HostBridge>>) -> Vec<String> {
        self.lock()
            .iter()
            .map(|assigned| {
                let state = assigned.function.interrupts();
                let mapped: u64 = assigned.function.mapped().iter().map(|(_, _, bytes)| bytes).sum();
                let hidden = assigned.function.hidden_from_peers();
                let hidden: Vec<String> = hidden.iter().map(|bar| bar.get().to_string()).collect();
                format!(
                    "{} at {}: {}; {mapped} bytes of BARs without exits{}",
                    assigned.wanted.name(),
                    assigned.at(bridge),
                    in_words(&state),
                    match hidden.as_slice() {
                        [] => String::new(),
                        hidden => format!("; other devices do not reach BAR {}", hidden.join(", ")),
                    }
                )
            })
            .collect()
    }
}

/// Resets devices that have no reset of their own with their bus, where only they are on it.
pub(crate) fn reset_with_bus(devices: &[&Assigned]) {
    let functions: Vec<&VfioPciFunction> = devices.iter().map(|assigned| &*assigned.function).collect();
    for together in VfioPciFunction::reset_with_bus(&functions) {
        tracing::info!("reset with their bus: {}", together.join(", "));
    }
}

/// How a device interrupts; or how it did, if its driver is gone by now.
fn in_words(state: &InterruptState) -> String {
    let InterruptState { mode, used, vectors, allocated, most, .. } = *state;
    let name = |mode| match mode {
        InterruptMode::Off => "no interrupts",
        InterruptMode::Intx => "INTx",
        InterruptMode::Msi => "MSI",
        InterruptMode::Msix => "MSI-X",
    };
    match most {
        _ if used > 0 => format!("{}, {used} of {vectors} vectors in use, {allocated} allocated", name(mode)),
        Some((before, most)) => {
            format!("{} now, {} before with up to {most} vectors", name(mode), name(before))
        }
        None => name(mode).to_owned(),
    }
}

/// Whether the name is free among these.
pub(crate) fn check_name(devices: &[Assigned], name: &str) -> Result<()> {
    if devices.iter().any(|assigned| assigned.wanted.name() == name) {
        return Err(name_is_taken(name));
    }
    Ok(())
}

impl Assigned {
    /// Opens a device for a place, without putting it there yet.
    pub(crate) fn open(
        wanted: Vfio,
        host: &Passthrough,
        lines: &Lines,
        pci: &PciHost,
        place: Place,
    ) -> Result<Self> {
        let option = format!("--vfio {}", wanted.device);
        let found = host.sysfs.pci_device(&wanted.device).explain(&option)?;
        let device = host.spaces.open(&found, wanted.iommu.into()).explain(&option)?;
        let kind = device.iommu();
        let (said, hidden) = (AtomicU64::new(0), AtomicU64::new(0));
        let name = wanted.name().to_owned();
        let said_of = name.clone();
        let trouble: Arc<Mutex<Option<String>>> = Arc::default();
        let last = Arc::clone(&trouble);
        let events = move |event| {
            let trouble = match event {
                PciEvent::HiddenFromPeers { bar, source } => {
                    let hint = if kind == IommuKind::Iommufd { "; iommu=legacy may let them" } else { "" };
                    // Few devices ever talk to each other.
                    return if hidden.fetch_add(1, Ordering::Relaxed) < SAID {
                        tracing::info!(
                            "{said_of}: other devices cannot reach its BAR {}: {source}{hint}",
                            bar.get()
                        );
                    };
                }
                PciEvent::Trouble(trouble) => trouble,
                _ => return,
            };
            let trouble = crate::vfio::explain(&said_of, trouble).one_line();
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble.clone());
            match said.fetch_add(1, Ordering::Relaxed) {
                n if n < SAID => tracing::warn!("{trouble}"),
                SAID => tracing::warn!("{said_of}: further trouble is not said"),
                _ => {}
            }
        };
        let resample: ResamplePath = wanted.resample.into();
        // The pin of a device behind a port, where it is device 0, is the same pin of the port.
        let (Place::Root(bdf) | Place::Slot(bdf)) = place;
        let options = PciOptions {
            wiring: lines.wiring().clone(),
            line: pci.line(bdf, IntxPin::A).map(|line| (IntxPin::A, line)),
            resample,
            slots: Arc::clone(&host.slots),
            on_root_bus: matches!(place, Place::Root(_)),
            dma: kind != IommuKind::NoIommu,
            device_id_base: 0,
            events: Arc::new(events),
        };
        if kind == IommuKind::NoIommu {
            tracing::warn!("{name}: no IOMMU stands between it and the host's memory, so it gets no DMA");
        }
        let function = VfioPciFunction::new(device, options).explain(&option)?;
        tracing::info!("{name}: {} at {bdf}, by {kind}", found.name());
        Ok(Self { wanted, place, function, subscribers: Vec::new(), trouble })
    }

    /// Puts it into its place.
    pub(crate) fn plug(&self, bridge: &HostBridge) -> Result<()> {
        let function = Arc::clone(&self.function) as Arc<dyn PciFunction>;
        match self.place {
            Place::Root(bdf) => bridge.add(bdf, function),
            Place::Slot(port) => bridge.plug(port, vec![(0, function)]),
        }
        .map_err(|e| Error::failure(format!("{} cannot be plugged in", self.wanted.name())).because(e))
    }

    /// Where the guest finds it.
    pub(crate) fn at(&self, bridge: Option<&Arc<HostBridge>>) -> String {
        self.place.of(&self.function, bridge)
    }

    /// What went wrong with it last; it may have been put right since.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the event loop has to run for it.
    pub(crate) fn subscribers(&self, verdict: &Verdict, bridge: &Arc<HostBridge>) -> Result<Vec<Subscriber>> {
        let Self { wanted, function, place, .. } = self;
        let name = wanted.name().to_owned();
        let mut subscribers: Vec<Subscriber> = Vec::new();
        for notice in [Notice::Error, Notice::Release] {
            if let Some(notifier) = function.notifier(notice).explain(&format!("--vfio {name}"))? {
                subscribers.push(Box::new(HostEvents {
                    name: name.clone(),
                    notifier,
                    policy: wanted.on_event,
                    verdict: verdict.clone(),
                    bridge: Arc::clone(bridge),
                    place: *place,
                    heard: false,
                }));
            }
        }
        if let Some(resampler) = function.resampler() {
            subscribers.push(Box::new(ResampleSubscriber::new(resampler, move |trouble| {
                tracing::error!("the interrupt line of {name}: {trouble:?}");
            })));
        }
        Ok(subscribers)
    }
}

/// What the host says of a device: it has failed, or is wanted back.
struct HostEvents {
    name: String,
    notifier: Notifier,
    policy: OnEvent,
    verdict: Verdict,
    bridge: Arc<HostBridge>,
    place: Place,
    heard: bool,
}

impl MutEventSubscriber for HostEvents {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        let Some(event) = self.notifier.take() else { return };
        // The host asks for its device again and again.
        if std::mem::replace(&mut self.heard, true) {
            return;
        }
        let name = &self.name;
        let what = match event {
            PciEvent::DeviceError => "has reported an error that it cannot correct",
            _ => "is wanted back by the host",
        };
        match (self.policy, self.place) {
            (OnEvent::Stop, _) => {
                self.verdict.set(Outcome::Failed(Error::host(format!("{name} {what}"))));
            }
            (OnEvent::Unplug, Place::Slot(port)) => {
                tracing::warn!("{name} {what}: asking the guest to release it");
                if let Err(e) = self.bridge.request_removal(port) {
                    // The next time that the host asks.
                    self.heard = false;
                    tracing::warn!("{name}: {e}");
                }
            }
            _ => tracing::error!("{name} {what}"),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(e) = ops.add(Events::new(&FdOf(&self.notifier), EventSet::IN)) {
            tracing::error!("{}: cannot wait for the host's events: {e}", self.name);
        }
    }
}

/// The event loop takes numbers.
struct FdOf<'a>(&'a Notifier);

impl std::os::fd::AsRawFd for FdOf<'_> {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        use std::os::fd::AsFd;
        self.0.as_fd().as_raw_fd()
    }
}
