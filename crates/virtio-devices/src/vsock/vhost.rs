// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sockets carried by the host's kernel: vhost-vsock. Programs of the host use `AF_VSOCK`, as those of the guest do.

use std::io;
use std::ops::ControlFlow;

use ::vhost::VhostBackend;
use ::vhost::vhost_kern::vsock::Vsock as Backend;
use ::vhost::vsock::VhostVsock as _;
use irqfd::Doorbell;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::{GuestCid, QUEUE_SIZES, RECEIVE, TRANSMIT, VsockError, read_config};
use crate::vhost::{LateMemory, Watch, failed, host_error, set_up};
use crate::{ActivateError, Activation, EventHandler, Events, VirtioDevice, Worker};

/// `VIRTIO_VSOCK_F_STREAM` and `VIRTIO_VSOCK_F_SEQPACKET`: what a guest can be offered, where the kernel knows it.
const DEVICE_FEATURES: u64 = 1 << 0 | 1 << 1;

/// Sockets between host and guest, carried by the host's kernel.
///
/// A reset of the device ends all connections, also to the programs of the host.
pub struct VhostVsock {
    cid: GuestCid,
    features: u64,
    /// Open from the start, so that the address is ours from the start. None after a reset when it could not be opened again, until the
    /// next activation.
    backend: Option<(Backend<LateMemory>, LateMemory)>,
    worker: Option<Worker>,
}

impl VhostVsock {
    /// For a guest with the address `cid`, which no other guest of this host may have.
    ///
    /// # Errors
    /// [`VsockError::Vhost`]; [`VsockError::CidTaken`].
    pub fn new(cid: GuestCid) -> Result<Self, VsockError> {
        let (backend, memory) = open(cid).map_err(|source| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => VsockError::CidTaken(cid.get()),
            _ => VsockError::Vhost { source },
        })?;
        let features = backend.get_features().map_err(|e| VsockError::Vhost { source: host_error(e) })?;
        Ok(Self { cid, features: features & DEVICE_FEATURES, backend: Some((backend, memory)), worker: None })
    }
}

/// There is no other queue to listen to: the event queue has nothing to report.
enum Nobody {}

impl EventHandler for Nobody {
    fn ready(&mut self, _: u64, _: &Events) -> ControlFlow<()> {
        match *self {}
    }
}

fn open(cid: GuestCid) -> io::Result<(Backend<LateMemory>, LateMemory)> {
    let memory = LateMemory::default();
    let backend = Backend::new(memory.clone()).map_err(host_error)?;
    backend.set_guest_cid(u64::from(cid.get())).map_err(host_error)?;
    backend.set_owner().map_err(host_error)?;
    Ok((backend, memory))
}

impl VirtioDevice for VhostVsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(self.cid, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, transport } = activation;
        let cid = self.cid;
        if self.backend.is_none() {
            let opened = open(cid).map_err(|source| ActivateError::Backend {
                action: format!("open /dev/vhost-vsock again for the guest with CID {}", cid.get()),
                source: source.into(),
            })?;
            self.backend = Some(opened);
        }
        let Some((backend, late)) = &self.backend else { return Ok(()) };
        let find = |index| {
            queues.iter().find(|queue| queue.index == index).ok_or(ActivateError::MissingQueue(index))
        };
        let broken = Doorbell::new()?;
        set_up(backend, late, &memory, features, &[find(RECEIVE)?, find(TRANSMIT)?], &broken)?;
        let name = format!("vsock-{}", cid.get());
        let (watch, events) = Watch::new(broken, transport, None::<(Doorbell, Nobody)>)
            .map_err(|source| ActivateError::Worker { name: name.clone(), source })?;
        let worker = Worker::spawn(&name, events, watch)?;
        backend.start().map_err(|e| failed("start vhost-vsock", e))?;
        self.worker = Some(worker);
        Ok(())
    }

    fn reset(&mut self) {
        let Some((backend, _)) = &self.backend else { return };
        // It is refused for a device that nobody owns, and this is ours.
        let _ = backend.stop();
        if self.worker.take().is_some() {
            // The kernel ends connections when the device is closed, and not before.
            self.backend = None;
            self.backend = open(self.cid).ok();
        }
    }
}

impl Drop for VhostVsock {
    fn drop(&mut self) {
        if let Some((backend, _)) = &self.backend {
            let _ = backend.stop();
        }
    }
}
