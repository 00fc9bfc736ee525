// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a device to its driver: MSI-X vectors, or the INTx pin with the ISR register; and DEVICE_NEEDS_RESET.

use std::fmt::Display;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use irqfd::{Doorbell, InterruptVector, LevelLine, MsiVector, VectorGroup};
use pci::{VectorChange, VectorSink};

use super::registers::NO_VECTOR;
use crate::lock::lock;
use crate::worker::{Events, Interest, Worker};
use crate::{ActivateError, Transport};

/// The ISR register's bits: section 4.1.4.5.
const QUEUE: u8 = 1;
const CONFIG: u8 = 2;

/// How interrupts leave the function. Calls come from the device's threads, under no lock of the function.
pub(super) struct Signals {
    /// All of the function's vectors; empty without MSI-X.
    vectors: Vec<InterruptVector>,
    /// The capability's enable bit.
    msix: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    pin: Mutex<Pin>,
    generation: AtomicU8,
    needs_reset: AtomicBool,
    running: AtomicBool,
    trouble: Mutex<Option<String>>,
    interrupts: AtomicU64,
    /// Eventfds of queues whose interrupts are passed on by hand, since they have no vector.
    forwarded: Vec<OnceLock<Doorbell>>,
    forwarder: Mutex<Option<Forwarder>>,
    /// For the forwarder.
    me: Weak<Self>,
}

/// The INTx pin.
struct Pin {
    line: Option<Arc<dyn LevelLine>>,
    isr: u8,
    /// The command register's Interrupt Disable bit.
    disabled: bool,
    /// MSI-X is on: the pin is not to be used (PCI Express 6.0, section 7.7.2.2).
    msix: bool,
}

/// A thread that is only there when INTx serves a device in the kernel.
struct Forwarder {
    events: Arc<Events>,
    _worker: Worker,
}

impl Signals {
    pub(super) fn new(
        group: Option<&VectorGroup>,
        line: Option<Arc<dyn LevelLine>>,
        queues: usize,
    ) -> Result<Arc<Self>, irqfd::Error> {
        let count = group.map_or(0, VectorGroup::len);
        let vectors = match group {
            Some(group) => (0..count).map(|index| group.vector(index)).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        Ok(Arc::new_cyclic(|me| Self {
            vectors,
            msix: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            pin: Mutex::new(Pin { line, isr: 0, disabled: false, msix: false }),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            running: AtomicBool::new(false),
            trouble: Mutex::new(None),
            interrupts: AtomicU64::new(0),
            forwarded: (0..queues).map(|_| OnceLock::new()).collect(),
            forwarder: Mutex::new(None),
            me: me.clone(),
        }))
    }

    /// The driver has mapped interrupts to vectors.
    pub(super) fn map(&self, config: u16, queues: impl Iterator<Item = u16>) {
        self.config_vector.store(config, Ordering::Release);
        for (mapped, vector) in self.queue_vectors.iter().zip(queues) {
            mapped.store(vector, Ordering::Release);
        }
    }

    /// The driver has set DRIVER_OK: what happens to the device is worth an interrupt.
    pub(super) fn start(&self) {
        self.running.store(true, Ordering::SeqCst);
    }

    /// As after a reset of the device. Nobody of the device signals any more.
    pub(super) fn reset(&self) {
        self.running.store(false, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
        self.map(NO_VECTOR, self.queue_vectors.iter().map(|_| NO_VECTOR));
        *lock(&self.forwarder) = None;
        for bell in self.forwarded.iter().filter_map(OnceLock::get) {
            // A signal of the driver before; taking from an open eventfd does not fail.
            let _ = bell.take();
        }
        self.take_isr();
    }

    /// Reading the ISR register: returns what is pending, and takes the pin low.
    pub(super) fn take_isr(&self) -> u8 {
        let mut pin = lock(&self.pin);
        let isr = std::mem::take(&mut pin.isr);
        let _ = pin.drive();
        isr
    }

    /// Whether the ISR register is non-zero: the Interrupt Status bit of the PCI status register.
    pub(super) fn is_intx_pending(&self) -> bool {
        lock(&self.pin).isr != 0
    }

    /// The driver has written the command register's Interrupt Disable bit.
    pub(super) fn set_intx_disabled(&self, disabled: bool) {
        let mut pin = lock(&self.pin);
        if pin.disabled != disabled {
            pin.disabled = disabled;
            let _ = pin.drive();
        }
    }

    /// The driver has written the MSI-X capability's enable bit.
    fn set_msix(&self, enabled: bool) {
        self.msix.store(enabled, Ordering::Release);
        let mut pin = lock(&self.pin);
        pin.msix = enabled;
        let _ = pin.drive();
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// Why the device last needed a reset.
    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    /// Interrupts that were passed on in this process. What vhost signals is counted by nobody.
    pub(super) fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    fn interrupt(&self, vector: u16, isr: u8) -> Result<(), irqfd::Error> {
        if self.msix.load(Ordering::Acquire) {
            // Without a vector the driver has chosen to poll: section 4.1.5.1.2.
            let Some(vector) = self.vectors.get(usize::from(vector)) else { return Ok(()) };
            self.interrupts.fetch_add(1, Ordering::Relaxed);
            return vector.trigger();
        }
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        let mut pin = lock(&self.pin);
        pin.isr |= isr;
        pin.drive()
    }

    fn queue_vector(&self, index: u16) -> u16 {
        self.queue_vectors.get(usize::from(index)).map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Makes the forwarder listen to `bell`, and the forwarder first if it is the first one.
    fn forward(&self, index: u16, bell: &Doorbell) -> Result<(), ActivateError> {
        let failed = |source| ActivateError::Worker { name: "virtio-intx".to_owned(), source };
        let mut forwarder = lock(&self.forwarder);
        let events = match &*forwarder {
            Some(running) => Arc::clone(&running.events),
            None => {
                let events = Arc::new(Events::new().map_err(failed)?);
                let me = self.me.clone();
                let worker = Worker::spawn("virtio-intx", Arc::clone(&events), move |token, _: &Events| {
                    forward_one(&me, token)
                })?;
                *forwarder = Some(Forwarder { events: Arc::clone(&events), _worker: worker });
                events
            }
        };
        match events.add(bell, u64::from(index), Interest::Read) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(failed(e)),
            _ => Ok(()),
        }
    }
}

/// A queue's eventfd was signalled by somebody who cannot set the ISR register.
fn forward_one(signals: &Weak<Signals>, token: u64) -> ControlFlow<()> {
    let Some(signals) = signals.upgrade() else { return ControlFlow::Break(()) };
    let Ok(index) = u16::try_from(token) else { return ControlFlow::Continue(()) };
    let bell = signals.forwarded.get(usize::from(index)).and_then(OnceLock::get);
    if bell.is_some_and(|bell| bell.take().is_ok_and(|rung| rung > 0)) {
        let _ = signals.interrupt_queue(index);
    }
    ControlFlow::Continue(())
}

impl Pin {
    fn drive(&self) -> Result<(), irqfd::Error> {
        match &self.line {
            Some(line) => line.set_level(self.isr != 0 && !self.disabled && !self.msix),
            None => Ok(()),
        }
    }
}

impl Transport for Signals {
    fn interrupt_queue(&self, index: u16) -> Result<(), irqfd::Error> {
        self.interrupt(self.queue_vector(index), QUEUE)
    }

    fn queue_eventfd(&self, index: u16) -> Result<BorrowedFd<'_>, ActivateError> {
        if self.msix.load(Ordering::Acquire)
            && let Some(vector) = self.vectors.get(usize::from(self.queue_vector(index)))
        {
            return Ok(vector.eventfd()?);
        }
        let slot = self.forwarded.get(usize::from(index)).ok_or(irqfd::Error::Gone)?;
        let bell = match slot.get() {
            Some(bell) => bell,
            None => {
                let made = Doorbell::new()?;
                slot.get_or_init(|| made)
            }
        };
        self.forward(index, bell)?;
        Ok(bell.as_fd())
    }

    fn config_changed(&self) {
        // Before the interrupt: a driver that reads after it must see another generation.
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.running.load(Ordering::SeqCst) {
            let _ = self.interrupt(self.config_vector.load(Ordering::Acquire), CONFIG);
        }
    }

    fn needs_reset(&self, why: &dyn Display) {
        *lock(&self.trouble) = Some(why.to_string());
        self.needs_reset.store(true, Ordering::SeqCst);
        // Section 2.1.2: a device that is in use says so with a configuration change.
        if self.running.load(Ordering::SeqCst) {
            let _ = self.interrupt(self.config_vector.load(Ordering::Acquire), CONFIG);
        }
    }
}

/// Where the MSI-X capability's changes go: to the vectors, and to whoever has to know whether MSI-X is on.
pub(super) struct VectorTap {
    pub(super) group: Arc<VectorGroup>,
    pub(super) signals: Arc<Signals>,
}

impl VectorSink for VectorTap {
    fn apply(&self, changes: &[VectorChange]) {
        // Vectors that hold their signals while they are not enabled lose nothing; so the order does not matter.
        VectorSink::apply(&*self.group, changes);
        for change in changes {
            match change {
                VectorChange::Enable(enabled) => self.signals.set_msix(*enabled),
                VectorChange::Reset => self.signals.set_msix(false),
                _ => {}
            }
        }
    }

    fn pending_word(&self, word: usize) -> u64 {
        VectorSink::pending_word(&*self.group, word)
    }
}
