// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network card (VIRTIO 1.3, section 5.1): Ethernet frames between a tap of the host and the guest.
//!
//! One thread a queue pair moves frames with one `readv` or `writev` each, straight from and into the guest's buffers; unfinished checksums and
//! packets longer than the MTU pass as they are, and whoever is last finishes them, if anybody has to. The kernel filters by address before a
//! frame is queued.

mod config;
mod control;
mod control_queue;
mod counters;
mod features;
mod filter;
mod mac;
mod pair;
mod receive;
mod shared;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;
mod vhost;

use std::collections::BTreeMap;
use std::sync::Arc;

use irqfd::Doorbell;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use self::config::NetConfig;
use self::control::ControlState;
use self::control_queue::ControlQueue;
pub use self::counters::NetCounters;
use self::features::TapOffloads;
use self::filter::TapFilter;
pub use self::mac::{MacAddress, MacError};
use self::pair::Pair;
use self::receive::Receiver;
pub use self::shared::NetHandle;
use self::shared::Shared;
pub use self::tap::{MAX_TAP_QUEUES, Tap, TapError};
use self::transmit::Transmitter;
use self::vhost::VhostPairs;
use crate::device::read_image;
use crate::vhost::{Vhost, Watch, open_hint};
use crate::{ActivateError, Activation, ActiveQueue, Ring, VirtioDevice, Worker};

/// Entries of a queue that frames pass through, unless [`NetOptions`] say otherwise.
const QUEUE_SIZE: u16 = 256;

/// Entries of the control queue: a driver waits for each command's answer.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// What a network card is like.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetOptions {
    /// Its address. By default one that is [derived](MacAddress::derived_from) from the tap's name: the same at each start.
    pub mac: Option<MacAddress>,
    /// How many entries a queue has: a power of two up to 32768. More of them take longer bursts.
    pub queue_size: u16,
    /// Whether the host's kernel is to move the frames.
    pub vhost: Vhost,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self { mac: None, queue_size: QUEUE_SIZE, vhost: Vhost::Auto }
    }
}

/// Why there is no network card.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// A queue size that VIRTIO does not have.
    #[error("a queue of {0} entries: it is a power of two, up to 32768")]
    QueueSize(u16),
    /// The host's kernel is to move the frames, and cannot, or must not for us.
    #[error("cannot open /dev/vhost-net: {}", open_hint(source, "vhost_net"))]
    Vhost {
        /// The host's answer.
        source: std::io::Error,
    },
    /// The process has no descriptor left.
    #[error("cannot make the card's eventfds")]
    Eventfd(#[from] irqfd::Error),
}

/// The network card.
pub struct Net {
    tap: Arc<Tap>,
    mac: MacAddress,
    shared: Arc<Shared>,
    queue_sizes: Vec<u16>,
    vhost: Option<VhostPairs>,
    workers: Vec<Worker>,
}

impl Net {
    /// A card whose cable leads to `tap`, with as many queue pairs as that has.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(tap: Tap, options: NetOptions) -> Result<Self, NetError> {
        let NetOptions { mac, queue_size, vhost } = options;
        if !queue_size.is_power_of_two() || queue_size > 32768 {
            return Err(NetError::QueueSize(queue_size));
        }
        let mac = mac.unwrap_or_else(|| MacAddress::derived_from(tap.name().as_bytes()));
        let mut queue_sizes = vec![queue_size; 2 * tap.queue_pairs()];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        // To open it is to have the kernel start a thread: not if it must not.
        let opened = (vhost != Vhost::Off).then(|| VhostPairs::open(tap.queue_pairs()));
        let vhost = match opened {
            Some(Err(source)) if vhost == Vhost::On => return Err(NetError::Vhost { source }),
            opened => opened.and_then(Result::ok),
        };
        let shared = Arc::new(Shared::new(mac, tap.queue_pairs())?);
        Ok(Self { tap: Arc::new(tap), mac, shared, queue_sizes, vhost, workers: Vec::new() })
    }

    /// Whether the host's kernel moves the frames.
    #[must_use]
    pub fn uses_vhost(&self) -> bool {
        self.vhost.is_some()
    }

    /// To look at it, and to pull its cable, later and from elsewhere.
    #[must_use]
    pub fn handle(&self) -> NetHandle {
        NetHandle(Arc::clone(&self.shared))
    }

    fn max_pairs(&self) -> u16 {
        // A tap has at most MAX_TAP_QUEUES.
        u16::try_from(self.tap.queue_pairs()).unwrap_or(MAX_TAP_QUEUES)
    }

    /// The tap as a driver finds it that has set nothing yet.
    fn restore_tap(&self, features: u64) -> std::io::Result<()> {
        self.tap.set_offloads(TapOffloads::from_guest(features))?;
        self.tap.set_filter(&TapFilter::Everything)?;
        self.tap.set_active_queues(1)
    }

    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, transport } = activation;
        let tap = Arc::clone(&self.tap);
        let tap_failed = |source: std::io::Error| ActivateError::Backend {
            action: format!("prepare the tap {}", tap.name()),
            source: source.into(),
        };
        self.restore_tap(features).map_err(tap_failed)?;
        if self.vhost.is_some() {
            // It refuses a queue that takes no part (`vhost_poll_start`, Linux 6.12, drivers/vhost/vhost.c). They rest again below.
            self.tap.set_active_queues(self.tap.queue_pairs()).map_err(tap_failed)?;
        }
        let broken = Doorbell::new()?;
        self.shared.set_transport(Some(Arc::clone(&transport)));
        let mut queues: BTreeMap<u16, ActiveQueue> =
            queues.into_iter().map(|queue| (queue.index, queue)).collect();
        // Without VIRTIO_NET_F_MQ, a card of any number of pairs has one, and the control queue comes right behind (section 5.1.2).
        let pairs = if features & features::MQ == 0 { 1 } else { self.max_pairs() };
        let mut control = queues.remove(&(2 * pairs)).map(|queue| {
            let ring = Ring::new(queue, memory.clone());
            let state = ControlState::new(features, pairs, self.mac);
            ControlQueue::new(ring, state, Arc::clone(&self.tap), Arc::clone(&self.shared))
        });
        for index in 0..pairs {
            let (receive, transmit) = (2 * index, 2 * index + 1);
            let (receiver, transmitter) = match (queues.remove(&receive), queues.remove(&transmit)) {
                (Some(receiver), Some(transmitter)) => (receiver, transmitter),
                // A driver may use fewer than there are, but not none.
                (None, _) if index == 0 => return Err(ActivateError::MissingQueue(receive)),
                (_, None) if index == 0 => return Err(ActivateError::MissingQueue(transmit)),
                _ => continue,
            };
            if let Some(vhost) = &self.vhost {
                vhost.start(
                    usize::from(index),
                    &self.tap,
                    &memory,
                    features,
                    [&receiver, &transmitter],
                    &broken,
                )?;
                continue;
            }
            let mut pair = Pair::new(
                usize::from(index),
                Arc::clone(&self.tap),
                Arc::clone(&self.shared),
                Arc::clone(&transport),
                Receiver::new(Ring::new(receiver, memory.clone()), features),
                Transmitter::new(Ring::new(transmitter, memory.clone())),
                control.take(),
            );
            let events = pair.events()?;
            self.workers.push(Worker::spawn(&pair.name(), events, pair)?);
        }
        if self.vhost.is_some() {
            self.tap.set_active_queues(1).map_err(tap_failed)?;
            let name = format!("net-{}", self.tap.name());
            let control = control
                .map(|control| (control.ring().notify().clone(), control.alone(Arc::clone(&transport))));
            let (watch, events) = Watch::new(broken, transport, control)
                .map_err(|source| ActivateError::Worker { name: name.clone(), source })?;
            self.workers.push(Worker::spawn(&name, events, watch)?);
        }
        Ok(())
    }
}

/// A queue pair and the control queue over something that keeps frames apart, as a thread would work on them.
#[cfg(feature = "fuzzing")]
pub(crate) fn imitated(
    tap: std::os::fd::OwnedFd,
    activation: Activation,
) -> Result<(crate::Events, impl crate::EventHandler), ActivateError> {
    let Activation { memory, features, queues, transport } = activation;
    let mut rings = queues.into_iter().map(|queue| Ring::new(queue, memory.clone()));
    let mut next = |index| rings.next().ok_or(ActivateError::MissingQueue(index));
    let (receiver, transmitter) = (Receiver::new(next(0)?, features), Transmitter::new(next(1)?));
    let tap = Arc::new(Tap::imitated(tap));
    let mac = MacAddress::derived_from(b"imitated");
    let shared = Arc::new(Shared::new(mac, 1)?);
    let state = ControlState::new(features, 1, mac);
    let control = ControlQueue::new(next(2)?, state, Arc::clone(&tap), Arc::clone(&shared));
    let mut pair = Pair::new(0, tap, shared, transport, receiver, transmitter, Some(control));
    let events = pair.events()?;
    Ok((events, pair))
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let when = |condition, feature| if condition { feature } else { 0 };
        features::MAC
            | features::STATUS
            | self.vhost.as_ref().map_or(features::MRG_RXBUF, VhostPairs::features)
            | features::CTRL_VQ
            | features::CTRL_RX
            | features::CTRL_RX_EXTRA
            | features::CTRL_MAC_ADDR
            | when(self.tap.mtu().is_some(), features::MTU)
            | when(self.max_pairs() > 1, features::MQ)
            | self.tap.offloads().features()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = NetConfig {
            mac: self.shared.mac(),
            link_up: self.shared.link_is_up(),
            queue_pairs: self.max_pairs(),
            mtu: self.tap.mtu().unwrap_or_default(),
        };
        read_image(&config.bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.start(activation).inspect_err(|_| self.reset())
    }

    fn reset(&mut self) {
        self.workers.clear();
        if let Some(vhost) = &self.vhost {
            vhost.stop();
        }
        self.shared.set_transport(None);
        self.shared.set_mac(self.mac);
        // Nobody reads: an interface that is gone by now does not matter.
        let _ = self.restore_tap(0);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.reset();
    }
}
