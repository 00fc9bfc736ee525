// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon (VIRTIO 1.3, section 5.5): memory that the guest gives back to the host, when asked to, or, with free page reporting, of its own
//! accord.
//!
//! Pages given back read zero, and the host finds new ones when the guest uses them again. Memory that a device of the host's reaches by DMA
//! (VFIO) must not be given back: such a VM has no balloon.

mod pages;
mod stats;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use irqfd::Doorbell;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use self::pages::PAGE;
pub use self::stats::BalloonStats;
use self::worker::{Inflator, Queues};
use crate::device::read_image;
use crate::lock::lock;
use crate::{ActivateError, Activation, EventHandler, Events, Ring, Transport, VirtioDevice, Worker};

/// `VIRTIO_BALLOON_F_STATS_VQ`
const STATS: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`
const DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_POISON`
const PAGE_POISON: u64 = 1 << 4;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`
const PAGE_REPORTING: u64 = 1 << 5;

/// The thread's name.
const NAME: &str = "balloon";

/// Inflate, deflate, statistics, free page hints, reporting (section 5.5.2).
const QUEUE_SIZES: [u16; 5] = [128; 5];

/// Where the driver writes `actual` and `poison_val` in the configuration space (section 5.5.4).
const ACTUAL_AT: usize = 4;
const POISON_AT: usize = 12;

/// What a balloon is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BalloonOptions {
    /// How many bytes the guest is asked to give back from the start. Counted in pages of 4 KiB.
    pub target: u64,
    /// The guest may take memory back out of the balloon when it would run out of it otherwise.
    pub deflate_on_oom: bool,
    /// The guest reports what it does not use, without being asked, and the host gets it back.
    pub free_page_reporting: bool,
}

impl Default for BalloonOptions {
    /// Nothing is asked for; the guest may help itself before it runs out of memory, and reports what it does not use.
    fn default() -> Self {
        Self { target: 0, deflate_on_oom: true, free_page_reporting: true }
    }
}

/// What the device, its thread and its handles share.
struct Shared {
    /// In pages of 4 KiB, as are the next.
    target: AtomicU32,
    actual: AtomicU32,
    poison: AtomicU32,
    /// Bytes.
    discarded: AtomicU64,
    failure: Mutex<Option<String>>,
    stats: Mutex<Option<BalloonStats>>,
    /// How often the guest has said how its memory is.
    heard: AtomicU64,
    /// Statistics are wanted.
    wake: Doorbell,
    transport: Mutex<Option<Arc<dyn Transport>>>,
}

impl Shared {
    fn poison(&self) -> u32 {
        self.poison.load(Ordering::SeqCst)
    }

    /// Notes what giving back has come to. That the host does not take memory back is no reason to stop the guest.
    fn count_discarded(&self, result: io::Result<u64>) {
        match result {
            Ok(bytes) => {
                self.discarded.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(error) => {
                lock(&self.failure).get_or_insert_with(|| error.to_string());
            }
        }
    }

    fn set_stats(&self, stats: BalloonStats) {
        *lock(&self.stats) = Some(stats);
        self.heard.fetch_add(1, Ordering::Release);
    }
}

/// The balloon.
pub struct Balloon {
    options: BalloonOptions,
    shared: Arc<Shared>,
    worker: Option<Worker>,
}

impl Balloon {
    /// A balloon.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(options: BalloonOptions) -> Result<Self, irqfd::Error> {
        let shared = Arc::new(Shared {
            target: AtomicU32::new(to_pages(options.target)),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            discarded: AtomicU64::new(0),
            failure: Mutex::new(None),
            stats: Mutex::new(None),
            heard: AtomicU64::new(0),
            wake: Doorbell::new()?,
            transport: Mutex::new(None),
        });
        Ok(Self { options, shared, worker: None })
    }

    /// To ask for memory, and to look, later and from elsewhere.
    #[must_use]
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.shared))
    }

    fn config(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let shared = &self.shared;
        // num_pages, actual, free_page_hint_cmd_id (0: stop), poison_val.
        let fields = [
            shared.target.load(Ordering::SeqCst),
            shared.actual.load(Ordering::SeqCst),
            0,
            shared.poison.load(Ordering::SeqCst),
        ];
        for (to, field) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
            *to = field.to_le_bytes();
        }
        bytes
    }
}

fn to_pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE).unwrap_or(u32::MAX)
}

/// A hand on the balloon, from any thread. Clones are of the same balloon.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

impl BalloonHandle {
    /// Asks the guest to give back so many bytes in all, or to take back what is more than that. It does when it can.
    pub fn set_target(&self, bytes: u64) {
        let pages = to_pages(bytes);
        if self.0.target.swap(pages, Ordering::SeqCst) == pages {
            return;
        }
        let transport = lock(&self.0.transport).clone();
        if let Some(transport) = transport {
            transport.config_changed();
        }
    }

    /// How many bytes the guest is asked to give back.
    #[must_use]
    pub fn target(&self) -> u64 {
        u64::from(self.0.target.load(Ordering::SeqCst)) * PAGE
    }

    /// How many bytes it says that it has given back.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::SeqCst)) * PAGE
    }

    /// How many bytes the host has taken back, ever: from the balloon and from reports. It grows when the same page comes again.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.0.discarded.load(Ordering::Relaxed)
    }

    /// Why the host has not taken something back, once that has happened.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        lock(&self.0.failure).clone()
    }

    /// What the guest has last said of its memory. It says so once by itself, and then each time it is [asked](Self::request_stats).
    #[must_use]
    pub fn stats(&self) -> Option<BalloonStats> {
        *lock(&self.0.stats)
    }

    /// How often the guest has said how its memory is, ever: a number that grows when it has answered a [request](Self::request_stats).
    #[must_use]
    pub fn times_heard(&self) -> u64 {
        self.0.heard.load(Ordering::Acquire)
    }

    /// Asks the guest to say how its memory is.
    pub fn request_stats(&self) {
        // An eventfd that is open takes a signal.
        let _ = self.0.wake.ring();
    }
}

impl fmt::Debug for BalloonHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalloonHandle")
            .field("target", &self.target())
            .field("actual", &self.actual())
            .field("discarded", &self.discarded())
            .field("failure", &self.failure())
            .field("stats", &self.stats())
            .finish()
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let when = |condition, feature| if condition { feature } else { 0 };
        STATS
            | when(self.options.deflate_on_oom, DEFLATE_ON_OOM)
            | when(self.options.free_page_reporting, PAGE_REPORTING | PAGE_POISON)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_image(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = self.config();
        let Some(to) = usize::try_from(offset).ok().and_then(|offset| bytes.get_mut(offset..)) else {
            return;
        };
        for (to, from) in to.iter_mut().zip(data) {
            *to = *from;
        }
        let field =
            |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|&b| u32::from_le_bytes(b));
        for (at, value) in [(ACTUAL_AT, &self.shared.actual), (POISON_AT, &self.shared.poison)] {
            if let Some(written) = field(at) {
                value.store(written, Ordering::SeqCst);
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let transport = Arc::clone(&activation.transport);
        let (events, inflator) = self.inflator(activation)?;
        self.worker = Some(Worker::spawn(NAME, events, inflator)?);
        *lock(&self.shared.transport) = Some(transport);
        Ok(())
    }

    fn reset(&mut self) {
        *lock(&self.shared.transport) = None;
        self.worker = None;
        self.shared.actual.store(0, Ordering::SeqCst);
        self.shared.poison.store(0, Ordering::SeqCst);
    }
}

impl Balloon {
    /// What the thread is going to do.
    pub(crate) fn inflator(
        &self,
        activation: Activation,
    ) -> Result<(Events, impl EventHandler + use<>), ActivateError> {
        let Activation { memory, features, queues, transport } = activation;
        let mut rings: BTreeMap<u16, Ring> =
            queues.into_iter().map(|queue| (queue.index, Ring::new(queue, memory.clone()))).collect();
        let inflate = rings.remove(&0).ok_or(ActivateError::MissingQueue(0))?;
        let deflate = rings.remove(&1).ok_or(ActivateError::MissingQueue(1))?;
        let stats = if features & STATS == 0 { None } else { rings.remove(&2) };
        // Linux's driver counts only the queues that there are: without hints, reporting is 3, and 2 if there are no statistics either
        // (`vp_find_vqs`, drivers/virtio/virtio_pci_common.c, up to 6.12 at least). In the specification it is 4. Hints (VIRTIO_BALLOON_F_FREE_PAGE_HINT) are
        // for migration, and not offered: it is the last in either case.
        let reporting = match features & PAGE_REPORTING {
            0 => None,
            _ => rings.pop_last().map(|(_, ring)| ring),
        };
        let queues = Queues { inflate, deflate, stats, reporting };
        let inflator = Inflator::new(queues, Arc::clone(&self.shared), transport);
        let events =
            inflator.events().map_err(|source| ActivateError::Worker { name: NAME.to_owned(), source })?;
        Ok((events, inflator))
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        self.reset();
    }
}
