// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that come and go while the guest runs: into slots of PCI root ports, and out of them when the guest lets them go.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use event_manager::{MutEventSubscriber, RemoteEndpoint, SubscriberOps};
use irq_types::Bdf;
use pci::{BusError, PciFunction};

use crate::balloon;
use crate::error::{Error, Result};
use crate::machine::Parts;
use crate::outcome::Verdict;
use crate::vfio_config::Vfio;
use crate::vfio_pci::{Assigned, Place, Subscriber, check_name, reset_with_bus};

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

    /// Puts a device of the host's into the first slot that is free. The guest is told, and finds it by itself.
    pub(crate) fn add(&self, wanted: Vfio) -> Result<()> {
        let parts = self.parts()?;
        let no_slot = || Error::host("the guest has no PCI slot to put a device into");
        let pci = parts
            .pci
            .as_ref()
            .filter(|pci| !pci.slots().is_empty())
            .ok_or_else(|| no_slot().hint("start it with --pci-slots N"))?;
        if parts.balloon.is_some() {
            return Err(balloon::excludes_devices());
        }
        let mut devices = parts.vfio.lock();
        check_name(&devices, wanted.name())?;
        let taken = |slot: &&Bdf| devices.iter().any(|assigned| assigned.place == Place::Slot(**slot));
        let slot = *pci.slots().iter().find(|slot| !taken(slot)).ok_or_else(|| {
            Error::host(format!("all {} PCI slots of the guest are taken", pci.slots().len()))
                .hint("remove a device, or start the guest with a larger --pci-slots")
        })?;
        let mut assigned = Assigned::open(wanted, &parts.passthrough, &parts.lines, pci, Place::Slot(slot))?;
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
        Ok(())
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

    /// Asks the guest to release the device called `name`. It is gone when the guest has done so.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let parts = self.parts()?;
        let devices = parts.vfio.lock();
        let Some(assigned) = devices.iter().find(|assigned| assigned.wanted.name() == name) else {
            let names: Vec<&str> = devices.iter().map(|assigned| assigned.wanted.name()).collect();
            let hint = if names.is_empty() {
                "it has none of the host's".to_owned()
            } else {
                format!("it has {}", names.join(", "))
            };
            return Err(Error::usage(format!("the guest has no device called {name}")).hint(hint));
        };
        let (Place::Slot(port), Some(pci)) = (assigned.place, &parts.pci) else {
            return Err(Error::host(format!("{name} is in no slot, so it stays as long as the guest runs"))
                .hint("start the guest with slot=on for the device"));
        };
        drop(devices);
        pci.bridge().request_removal(port).map_err(|e| {
            let failed = Error::host(format!("the guest cannot be asked to release {name}")).because(e);
            match e {
                BusError::Busy(_) => {
                    failed.hint("wait, and look whether the guest has a driver for PCIe hot-plug")
                }
                _ => failed,
            }
        })
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
                this.close(devices.remove(index));
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
        let ids = std::mem::take(&mut assigned.subscribers);
        let _ = self.events.call_blocking(
            move |ops: &mut dyn SubscriberOps<Subscriber = Box<dyn MutEventSubscriber>>| {
                ids.into_iter().for_each(|id| drop(ops.remove_subscriber(id)));
                Ok::<_, Ended>(())
            },
        );
        let name = assigned.wanted.name().to_owned();
        drop(assigned);
        tracing::info!("{name} is the host's again");
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
