// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What devices have in common whose queues the host's kernel works on (vhost): the driver's doorbell leads to it, and its signal to the guest,
//! with no userspace on the way.

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use ::vhost::{Error, VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use irqfd::Doorbell;
use virtio_queue::QueueT;
use vm_memory::{
    Address, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};

use crate::lock::lock;
use crate::sys::vhost::event_fd;
use crate::{ActivateError, ActiveQueue, EventHandler, Events, Interest, Transport};

/// Whether the host's kernel is to work on a device's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vhost {
    /// If it can, and lets us.
    #[default]
    Auto,
    /// It must.
    On,
    /// It must not.
    Off,
}

/// Guest memory that is not known yet when a vhost device is opened, and may be another after a reset.
#[derive(Clone, Default)]
pub(crate) struct LateMemory(Arc<Mutex<Arc<GuestMemoryMmap>>>);

impl LateMemory {
    fn set(&self, memory: GuestMemoryMmap) {
        *lock(&self.0) = Arc::new(memory);
    }
}

impl GuestAddressSpace for LateMemory {
    type M = GuestMemoryMmap;
    type T = Arc<GuestMemoryMmap>;

    fn memory(&self) -> Arc<GuestMemoryMmap> {
        Arc::clone(&lock(&self.0))
    }
}

/// Tells the kernel all about `queues`, of which it is to work on the first as its number 0, and so on. It does not begin yet.
///
/// The backend is stopped, and owned by this process; `memory` is what it was opened with.
pub(crate) fn set_up(
    backend: &impl VhostBackend,
    late: &LateMemory,
    memory: &GuestMemoryMmap,
    features: u64,
    queues: &[&ActiveQueue],
    broken: &Doorbell,
) -> Result<(), ActivateError> {
    late.set(memory.clone());
    let known = backend.get_features().map_err(|e| failed("ask vhost for its features", e))?;
    backend.set_features(features & known).map_err(|e| failed("set vhost's features", e))?;
    let regions: Vec<_> = memory
        .iter()
        .map(|region| {
            let host = region.get_host_address(MemoryRegionAddress(0)).unwrap_or(std::ptr::null_mut());
            // Its file, if it has one, is for vhost-user only.
            VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: host as u64,
                ..Default::default()
            }
        })
        .collect();
    backend.set_mem_table(&regions).map_err(|e| failed("give vhost the guest's memory", e))?;
    for (index, active) in queues.iter().enumerate() {
        let queue = &active.queue;
        let config = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: queue.desc_table(),
            used_ring_addr: queue.used_ring(),
            avail_ring_addr: queue.avail_ring(),
            log_addr: None,
        };
        let descriptor = |source| ActivateError::Worker { name: "vhost".to_owned(), source };
        let kick = event_fd(std::os::fd::AsFd::as_fd(&active.notify)).map_err(descriptor)?;
        let call = event_fd(active.interrupt.eventfd()?).map_err(descriptor)?;
        let error = event_fd(std::os::fd::AsFd::as_fd(broken)).map_err(descriptor)?;
        let set = || {
            backend.set_vring_num(index, queue.size())?;
            backend.set_vring_base(index, queue.next_avail())?;
            backend.set_vring_addr(index, &config)?;
            backend.set_vring_call(index, &call)?;
            backend.set_vring_err(index, &error)?;
            backend.set_vring_kick(index, &kick)
        };
        set().map_err(|e| failed(&format!("give vhost queue {}", active.index), e))?;
    }
    Ok(())
}

/// The kernel has been stopped: nothing of the guest's memory is held for it any more.
pub(crate) fn forget(late: &LateMemory) {
    late.set(GuestMemoryMmap::default());
}

pub(crate) fn failed(action: &str, error: Error) -> ActivateError {
    ActivateError::Backend { action: action.to_owned(), source: Box::new(host_error(error)) }
}

/// The host's answer, without the wrapping around it.
pub(crate) fn host_error(error: Error) -> io::Error {
    match error {
        Error::VhostOpen(error) | Error::IoctlError(error) | Error::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// What there is to do about a device that the kernel does not let us open, after "cannot open /dev/vhost-...: ".
pub(crate) fn open_hint(error: &io::Error, module: &str) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("this host has none; load the module {module}, or go without vhost")
        }
        io::ErrorKind::PermissionDenied => {
            "no permission; mostly the group kvm has it, or go without vhost".to_owned()
        }
        _ => "the host does not let it be opened; go without vhost".to_owned(),
    }
}

/// Listens to what is left for userspace: that the kernel has found a queue to be broken, and another queue, perhaps, that is not its own.
pub(crate) struct Watch<H> {
    broken: Doorbell,
    transport: Arc<dyn Transport>,
    other: Option<H>,
}

const BROKEN: u64 = 0;
const OTHER: u64 = 1;

impl<H: EventHandler> Watch<H> {
    /// Listens to `broken`; and `other`, a doorbell and who answers it.
    pub(crate) fn new(
        broken: Doorbell,
        transport: Arc<dyn Transport>,
        other: Option<(Doorbell, H)>,
    ) -> io::Result<(Self, Events)> {
        let events = Events::new()?;
        events.add(&broken, BROKEN, Interest::Read)?;
        let other = match other {
            None => None,
            Some((doorbell, handler)) => {
                events.add(&doorbell, OTHER, Interest::Read)?;
                Some(handler)
            }
        };
        Ok((Self { broken, transport, other }, events))
    }
}

impl<H: EventHandler> EventHandler for Watch<H> {
    fn ready(&mut self, token: u64, events: &Events) -> ControlFlow<()> {
        match (token, &mut self.other) {
            (OTHER, Some(other)) => other.ready(token, events),
            (BROKEN, _) => {
                let _ = self.broken.take();
                self.transport.needs_reset(&"the host's kernel (vhost) has found a queue to be broken");
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}
