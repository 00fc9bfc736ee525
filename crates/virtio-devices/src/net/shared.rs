// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device, its threads, and who asks about it have in common.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use irqfd::Doorbell;

use super::counters::{NetCounters, PairCounters};
use super::mac::MacAddress;
use crate::Transport;
use crate::lock::lock;

/// Shared by the threads of one device.
pub(crate) struct Shared {
    mac: Mutex<MacAddress>,
    link_up: AtomicBool,
    /// What the tap has failed with, once it has.
    failure: Mutex<Option<String>>,
    pairs: Vec<PairCounters>,
    /// Wakes the thread of each queue pair, to look at all of this again.
    wakes: Vec<Doorbell>,
    /// There while the device is active.
    transport: Mutex<Option<Arc<dyn Transport>>>,
}

impl Shared {
    pub(crate) fn new(mac: MacAddress, pairs: usize) -> Result<Self, irqfd::Error> {
        Ok(Self {
            mac: Mutex::new(mac),
            link_up: AtomicBool::new(true),
            failure: Mutex::new(None),
            pairs: (0..pairs).map(|_| PairCounters::default()).collect(),
            wakes: (0..pairs).map(|_| Doorbell::new()).collect::<Result<_, _>>()?,
            transport: Mutex::new(None),
        })
    }

    pub(crate) fn mac(&self) -> MacAddress {
        *lock(&self.mac)
    }

    pub(crate) fn set_mac(&self, mac: MacAddress) {
        *lock(&self.mac) = mac;
    }

    pub(crate) fn link_is_up(&self) -> bool {
        self.link_up.load(Ordering::SeqCst)
    }

    pub(crate) fn set_link(&self, up: bool) {
        if self.link_up.swap(up, Ordering::SeqCst) == up {
            return;
        }
        self.wake_all();
        let transport = lock(&self.transport).clone();
        if let Some(transport) = transport {
            transport.config_changed();
        }
    }

    /// The tap is gone: to the guest, the cable is.
    pub(crate) fn tap_failed(&self, error: &io::Error) {
        lock(&self.failure).get_or_insert_with(|| error.to_string());
        self.set_link(false);
    }

    pub(crate) fn counters(&self, pair: usize) -> Option<&PairCounters> {
        self.pairs.get(pair)
    }

    pub(crate) fn wake(&self, pair: usize) -> Option<&Doorbell> {
        self.wakes.get(pair)
    }

    pub(crate) fn wake_all(&self) {
        for wake in &self.wakes {
            // An eventfd that is open takes a signal.
            let _ = wake.ring();
        }
    }

    pub(crate) fn set_transport(&self, transport: Option<Arc<dyn Transport>>) {
        *lock(&self.transport) = transport;
    }
}

/// A look at a network device, and a hand on its cable, from any thread, for as long as one likes. Clones are of the same device.
#[derive(Clone)]
pub struct NetHandle(pub(crate) Arc<Shared>);

impl NetHandle {
    /// Plugs the cable in, or pulls it out. The driver is told.
    ///
    /// Without a cable, frames are lost both ways. Where vhost moves them, the driver is told all the same, and is what stops them.
    pub fn set_link(&self, up: bool) {
        self.0.set_link(up);
    }

    /// Whether the cable is in. It is at first, and no more when the tap's interface has been removed.
    #[must_use]
    pub fn link_is_up(&self) -> bool {
        self.0.link_is_up()
    }

    /// The address the card has now: the driver may change it, until the next reset.
    #[must_use]
    pub fn mac(&self) -> MacAddress {
        self.0.mac()
    }

    /// What the tap has failed with, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        lock(&self.0.failure).clone()
    }

    /// What has passed through userspace.
    #[must_use]
    pub fn counters(&self) -> NetCounters {
        NetCounters::sum(&self.0.pairs)
    }
}

impl fmt::Debug for NetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetHandle")
            .field("mac", &self.mac())
            .field("link_up", &self.link_is_up())
            .field("failure", &self.failure())
            .field("counters", &self.counters())
            .finish()
    }
}
