// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a transport and a device need of each other.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use irqfd::Doorbell;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

/// A virtio device without its transport: VIRTIO 1.3, section 5.
///
/// The transport calls it under a lock, from whichever vCPU's thread the driver runs on. The work on the queues is done by the device's own
/// threads, between [`activate`](Self::activate) and [`reset`](Self::reset), and only then are there any.
///
/// Dropping the device does what a reset does.
pub trait VirtioDevice: Send {
    /// The virtio device ID (section 5): 1 for a network card, 2 for a block device.
    fn device_type(&self) -> u32;

    /// How many entries each virtqueue may have, in order of the queues: powers of two, up to 32768. It does not change.
    fn queue_sizes(&self) -> &[u16];

    /// The feature bits of the device type (0 to 23 and 50 to 127 in the specification, of which 64 fit here). The transport adds its own, of
    /// the range that is reserved to it.
    fn features(&self) -> u64;

    /// The driver reads the device's configuration space. What lies beyond its end reads zero: `data` is zeroed already.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes to it. Fields that are read-only to the driver, and what lies beyond the end, ignore it.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver has set DRIVER_OK: the queues are its own to work on from now on. Called once between two resets.
    ///
    /// # Errors
    /// If the device cannot work. The transport says DEVICE_NEEDS_RESET to the driver, keeps the error for who asks, and calls
    /// [`reset`](Self::reset) before it tries again.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Back to the state before [`activate`](Self::activate): threads have ended, and nothing touches the guest's memory, the queues or the
    /// interrupts any more when this returns. Any number of times, activated or not.
    fn reset(&mut self);
}

/// What a device works with from DRIVER_OK to the next reset.
pub struct Activation {
    /// The guest's memory. Clones share it.
    pub memory: GuestMemoryMmap,
    /// The feature bits that driver and device agree on, those of the transport included: all of them were offered.
    pub features: u64,
    /// The queues that the driver has enabled, in ascending order of index. There may be gaps.
    pub queues: Vec<ActiveQueue>,
    /// To tell the driver of the device as a whole.
    pub transport: Arc<dyn Transport>,
}

/// A virtqueue that the driver has enabled.
pub struct ActiveQueue {
    /// Which of the device's queues.
    pub index: u16,
    /// Its rings, inside the guest's memory when it was enabled, ready, with VIRTIO_F_EVENT_IDX applied.
    pub queue: Queue,
    /// The driver's notification. Mostly the kernel rings it without an exit.
    pub notify: Doorbell,
    /// The device's notification.
    pub interrupt: QueueInterrupt,
}

/// What a device says to its driver, on any transport.
///
/// Calls come from any thread, and still may while the device is being reset: they take no lock of the transport that a
/// [`VirtioDevice`] is called under.
pub trait Transport: Send + Sync {
    /// Buffers of queue `index` are used: interrupts the driver.
    ///
    /// # Errors
    /// When the signal could not be passed on.
    fn interrupt_queue(&self, index: u16) -> Result<(), irqfd::Error>;

    /// An eventfd that does what [`interrupt_queue`](Self::interrupt_queue) does, for vhost.
    ///
    /// # Errors
    /// [`ActivateError::Interrupt`] when the process has no descriptor left, [`ActivateError::Worker`] if interrupts have to be passed on by
    /// hand, and there is no thread for it.
    fn queue_eventfd(&self, index: u16) -> Result<BorrowedFd<'_>, ActivateError>;

    /// The configuration space has changed by the device's own doing: interrupts the driver, and makes a driver that is reading it read
    /// again.
    fn config_changed(&self);

    /// The driver has done what the device cannot go on from (section 2.1.2, DEVICE_NEEDS_RESET). `why` is kept for who asks.
    fn needs_reset(&self, why: &dyn std::fmt::Display);
}

/// The interrupt of one queue. Clones are the same interrupt.
#[derive(Clone)]
pub struct QueueInterrupt {
    transport: Arc<dyn Transport>,
    index: u16,
}

impl QueueInterrupt {
    /// The interrupt of queue `index` on a transport.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, index: u16) -> Self {
        Self { transport, index }
    }

    /// Interrupts the driver. Whether the driver wants it is the queue's to know.
    ///
    /// # Errors
    /// As [`Transport::interrupt_queue`].
    pub fn signal(&self) -> Result<(), irqfd::Error> {
        self.transport.interrupt_queue(self.index)
    }

    /// An eventfd that does the same, for vhost. With MSI-X, the kernel takes it from there.
    ///
    /// # Errors
    /// As [`Transport::queue_eventfd`].
    pub fn eventfd(&self) -> Result<BorrowedFd<'_>, ActivateError> {
        self.transport.queue_eventfd(self.index)
    }
}

/// Reads from registers that are laid out in memory, as [`VirtioDevice::read_config`] does: what lies beyond their end is left as it is, zero.
pub(crate) fn read_image(image: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).ok().and_then(|offset| image.get(offset..)).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(from) {
        *to = *from;
    }
}

impl AsFd for ActiveQueue {
    /// The driver's notification.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }
}

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivateError {
    /// The driver has left out a queue that the device cannot do without.
    #[error("the driver has not enabled queue {0}")]
    MissingQueue(u16),
    /// No thread, or no descriptors for one.
    #[error("cannot start the worker {name}")]
    Worker {
        /// Which.
        name: String,
        /// The host's answer.
        source: std::io::Error,
    },
    /// An interrupt or a notification could not be connected.
    #[error("cannot connect an interrupt or a notification")]
    Interrupt(#[from] irqfd::Error),
    /// What is behind the device failed: an image, a tap, vhost.
    #[error("cannot {action}")]
    Backend {
        /// What was being done, with its operands.
        action: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
