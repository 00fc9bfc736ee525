// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that come and go while the guest runs: into slots of PCI root ports, and out of them when the guest lets them go.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use event_manager::{MutEventSubscriber, RemoteEndpoint, SubscriberOps};
use irq_types::Bdf;
use pci::{BusError, PciFunction};

use crate::balloon;
use crate::devices::{Addition, Pluggable};
use crate::error::{Error, Result};
use crate::irq::collect;
use crate::machine::Parts;
use crate::outcome::Verdict;
use crate::pci_host::{PciHost, Place, Virtio};
use crate::vfio_config::Vfio;
use crate::vfio_pci::{Assigned, Subscriber, check_name, reset_with_bus};
use crate::virtio::{self, Other, name_is_taken};

/// The event loop as other threads reach it.
pub(crate) type Loop = RemoteEndpoint<Box<dyn MutEventSubscriber>>;

/// What changes a running machine's devices.
pub(crate) struct HotPlug {
    parts: Weak<Parts>,
    events: Loop,
    verdict: Verdict,
    /// Threads that close what the guest has released.
    closing: Mutex<Vec<JoinHandle<()>>>,
}

/// The event loop has come to its end.
struct Ended;

impl From<event_manager::Error> for Ended {
    fn from(_: event_manager::Error) -> Self {
        Self
    }
}

/// The first slot that nothing is in.
fn free_slot(pci: &PciHost, devices: &[Assigned]) -> Result<Place> {
    let virtio = pci.virtio();
    let taken = |place| {
        devices.iter().any(|assigned| assigned.place == place)
            || virtio.iter().any(|virtio| virtio.place == place)
    };
    let places = pci.slots().iter().map(|slot| Place::Slot(slot.port));
    places.into_iter().find(|place| !taken(*place)).ok_or_else(|| {
        Error::host(format!("all {} PCI slots of the guest are taken", pci.slots().len()))
            .hint("remove a device, or start the guest with a larger --pci-slots")
    })
}

impl HotPlug {
    /// For a machine whose event loop is `events`.
    pub(crate) fn new(parts: &Arc<Parts>, events: Loop, verdict: Verdict) -> Arc<Self> {
        let this =
            Arc::new(Self { parts: Arc::downgrade(parts), events, verdict, closing: Mutex::default() });
        if let Some(pci) = &parts.pci {
            let weak = Arc::downgrade(&this);
            pci.on_removed(Box::new(move |port, functions| {
                if let Some(this) = weak.upgrade() {
                    this.released(port, functions);
                }
            }));
        }
        this
    }

    fn parts(&self) -> Result<Arc<Parts>> {
        self.parts.upgrade().ok_or_else(|| Error::failure("the machine has come to its end"))
    }

    /// Puts a device into the first slot that is free. The guest is told, and finds it by itself. Returns what the device is called.
    pub(crate) fn add(&self, wanted: Addition) -> Result<String> {
        let parts = self.parts()?;
        let no_slot = || Error::host("the guest has no PCI slot to put a device into");
        let pci = parts
            .pci
            .as_ref()
            .filter(|pci| !pci.slots().is_empty())
            .ok_or_else(|| no_slot().hint("start it with --pci-slots N"))?;
        // Whoever adds something holds this, so that no slot and no name is given twice.
        let mut devices = parts.vfio.lock();
        match wanted {
            Addition::Vfio(wanted) => self.add_vfio(wanted, &parts, pci, &mut devices),
            Addition::Virtio(wanted) => self.add_virtio(wanted, &parts, pci, &devices),
        }
    }

    fn add_vfio(
        &self,
        wanted: Vfio,
        parts: &Parts,
        pci: &PciHost,
        devices: &mut Vec<Assigned>,
    ) -> Result<String> {
        if parts.balloon.is_some() {
            return Err(balloon::excludes_devices());
        }
        let name = wanted.name().to_owned();
        check_name(devices, &name)?;
        if pci.virtio().iter().any(|virtio| virtio.name == name) {
            return Err(name_is_taken(&name));
        }
        let place = free_slot(pci, devices)?;
        let mut assigned = Assigned::open(wanted, &parts.passthrough, &parts.lines, pci, place)?;
        // What the guest has already must not be disturbed.
        reset_with_bus(&[&assigned]);
        let subscribers = assigned.subscribers(&self.verdict, pci.bridge())?;
        assigned.subscribers = self.subscribe(subscribers)?;
        if let Err(e) = assigned.plug(pci.bridge()) {
            self.close(assigned);
            return Err(e);
        }
        // They were alone until now, or the newcomer would not reach them.
        devices.iter().for_each(|other| other.function.show_to_peers());
        devices.push(assigned);
        Ok(name)
    }

    fn add_virtio(
        &self,
        wanted: Pluggable,
        parts: &Parts,
        pci: &PciHost,
        devices: &[Assigned],
    ) -> Result<String> {
        let place = free_slot(pci, devices)?;
        let named = {
            let present = pci.virtio();
            let vfio = devices.iter().map(|assigned| Other { name: assigned.wanted.name(), wanted: None });
            let virtio =
                present.iter().map(|virtio| Other { name: &virtio.name, wanted: virtio.wanted.as_ref() });
            virtio::open_one(wanted, parts.config.cpus, &virtio.chain(vfio).collect::<Vec<_>>())?
        };
        let mut virtio = pci.connect(named, place, &parts.lines)?;
        let name = virtio.name.clone();
        virtio.subscribers = self.subscribe(vec![Box::new(virtio.resampler())])?;
        if let Err(e) = pci.plug(&virtio) {
            self.close_virtio(virtio);
            return Err(e);
        }
        pci.virtio().push(virtio);
        Ok(name)
    }

    fn subscribe(&self, subscribers: Vec<Subscriber>) -> Result<Vec<event_manager::SubscriberId>> {
        if subscribers.is_empty() {
            return Ok(Vec::new());
        }
        self.events
            .call_blocking(move |ops: &mut dyn SubscriberOps<Subscriber = Box<dyn MutEventSubscriber>>| {
                Ok(subscribers.into_iter().map(|subscriber| ops.add_subscriber(subscriber)).collect())
            })
            .map_err(|Ended| Error::failure("the machine has come to its end"))
    }

    /// Asks the guest to release the device called `name`, blanks in which may be dashes. It is gone when the guest has done so. Returns its name.
    pub(crate) fn remove(&self, name: &str) -> Result<String> {
        let parts = self.parts()?;
        let mut devices: Vec<(String, Place)> = {
            let vfio = parts.vfio.lock();
            vfio.iter().map(|assigned| (assigned.wanted.name().to_owned(), assigned.place)).collect()
        };
        if let Some(pci) = &parts.pci {
            devices.extend(pci.virtio().iter().map(|virtio| (virtio.name.clone(), virtio.place)));
        }
        let exactly = devices.iter().find(|(own, _)| own == name);
        let found = exactly.or_else(|| devices.iter().find(|(own, _)| collect::name(own, "") == name));
        let Some((name, place)) = found.cloned() else {
            let names: Vec<&str> = devices.iter().map(|(name, _)| name.as_str()).collect();
            let hint = if names.is_empty() {
                "it has none on its PCI bus".to_owned()
            } else {
                format!("it has {}", names.join(", "))
            };
            return Err(Error::usage(format!("the guest has no device called {name}")).hint(hint));
        };
        let (Place::Slot(port), Some(pci)) = (place, &parts.pci) else {
            return Err(Error::host(format!("{name} is in no slot, so it stays as long as the guest runs"))
                .hint("start the guest with slot=on for the device"));
        };
        pci.bridge().request_removal(port).map_err(|e| {
            let failed = Error::host(format!("the guest cannot be asked to release {name}")).because(e);
            match e {
                BusError::Busy(_) => {
                    failed.hint("wait, and look whether the guest has a driver for PCIe hot-plug")
                }
                _ => failed,
            }
        })?;
        Ok(name)
    }

    /// The guest has released what was in a slot. Its vCPU does not wait for the device to be closed.
    fn released(self: &Arc<Self>, port: Bdf, functions: Vec<Arc<dyn PciFunction>>) {
        let this = Arc::clone(self);
        let close = move || {
            // The bus has let go of it already; what is dropped here is a share in it.
            drop(functions);
            let Ok(parts) = this.parts() else { return };
            // Held until the device is closed: while it is listed, it is here.
            let mut devices = parts.vfio.lock();
            if let Some(index) = devices.iter().position(|assigned| assigned.place == Place::Slot(port)) {
                return this.close(devices.remove(index));
            }
            let Some(pci) = &parts.pci else { return };
            let released = {
                let mut virtio = pci.virtio();
                let index = virtio.iter().position(|virtio| virtio.place == Place::Slot(port));
                index.map(|index| virtio.remove(index))
            };
            if let Some(virtio) = released {
                this.close_virtio(virtio);
            }
        };
        match thread::Builder::new().name("unplug".into()).spawn(close) {
            Ok(thread) => {
                let mut closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
                // Those that are done need not be waited for at the end.
                closing.retain(|thread| !thread.is_finished());
                closing.push(thread);
            }
            Err(e) => tracing::error!("the device at port {port} stays open: {e}"),
        }
    }

    /// Closes a device that is not on the bus any more.
    fn close(&self, mut assigned: Assigned) {
        self.unsubscribe(std::mem::take(&mut assigned.subscribers));
        let name = assigned.wanted.name().to_owned();
        drop(assigned);
        tracing::info!("{name} is the host's again");
    }

    /// The same for a virtio device.
    fn close_virtio(&self, mut virtio: Virtio) {
        self.unsubscribe(std::mem::take(&mut virtio.subscribers));
        let name = virtio.name.clone();
        // With it go the device's threads, and what it has open.
        drop(virtio);
        tracing::info!("{name} is closed");
    }

    fn unsubscribe(&self, ids: Vec<event_manager::SubscriberId>) {
        let _ = self.events.call_blocking(
            move |ops: &mut dyn SubscriberOps<Subscriber = Box<dyn MutEventSubscriber>>| {
                ids.into_iter().for_each(|id| drop(ops.remove_subscriber(id)));
                Ok::<_, Ended>(())
            },
        );
    }

    /// Waits until all that was released is closed. After the event loop's end.
    pub(crate) fn finish(&self) {
        let threads = std::mem::take(&mut *self.closing.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}
