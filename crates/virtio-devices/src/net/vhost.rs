// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames moved by the host's kernel: vhost-net, one device a queue pair.

use std::io;

use ::vhost::VhostBackend;
use ::vhost::net::VhostNet;
use ::vhost::vhost_kern::net::Net as Backend;
use irqfd::Doorbell;
use vm_memory::GuestMemoryMmap;

use super::features::MRG_RXBUF;
use super::tap::Tap;
use crate::vhost::{LateMemory, failed, forget, host_error, set_up};
use crate::{ActivateError, ActiveQueue};

/// An open vhost-net device for each queue pair.
pub(super) struct VhostPairs {
    pairs: Vec<(Backend<LateMemory>, LateMemory)>,
}

impl VhostPairs {
    /// Opens as many as there are pairs. They belong to this process from now on.
    pub(super) fn open(pairs: usize) -> io::Result<Self> {
        let open = || {
            let memory = LateMemory::default();
            let backend = Backend::new(memory.clone()).map_err(host_error)?;
            backend.set_owner().map_err(host_error)?;
            Ok((backend, memory))
        };
        Ok(Self { pairs: (0..pairs).map(|_| open()).collect::<io::Result<_>>()? })
    }

    /// Of the features that concern the queues, those that the kernel knows. The others are the tap's.
    pub(super) fn features(&self) -> u64 {
        self.pairs
            .iter()
            .map(|(backend, _)| backend.get_features().unwrap_or(0))
            .fold(MRG_RXBUF, |all, features| all & features)
    }

    /// Has the kernel move frames between queue pair `index` and the tap's.
    pub(super) fn start(
        &self,
        index: usize,
        tap: &Tap,
        memory: &GuestMemoryMmap,
        features: u64,
        queues: [&ActiveQueue; 2],
        broken: &Doorbell,
    ) -> Result<(), ActivateError> {
        let Some(((backend, late), tap)) = self.pairs.get(index).zip(tap.queue(index)) else { return Ok(()) };
        set_up(backend, late, memory, features, &queues, broken)?;
        for queue in 0..queues.len() {
            backend
                .set_backend(queue, Some(tap))
                .map_err(|e| failed(&format!("give vhost the tap for queue pair {index}"), e))?;
        }
        Ok(())
    }

    /// Stops all pairs: the kernel touches nothing of the guest's when this returns (`vhost_net_stop_vq`, `vhost_net_flush_vq`, Linux 6.12,
    /// `drivers/vhost/net.c`).
    pub(super) fn stop(&self) {
        for (backend, late) in &self.pairs {
            for queue in 0..2 {
                // It is refused for a device that nobody owns, and these are ours.
                let _ = backend.set_backend(queue, None);
            }
            forget(late);
        }
    }
}
