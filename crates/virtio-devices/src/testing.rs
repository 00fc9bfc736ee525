// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other side of a device, for tests: a driver with rings in guest memory, and a transport that remembers what it was told.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use irqfd::Doorbell;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::lock::lock;
use crate::worker::listen;
use crate::{
    ActivateError, Activation, ActiveQueue, EventHandler, Events, Interest, QueueInterrupt, Transport,
    VirtioDevice,
};

/// Long enough for anything that happens at all, on the slowest of machines.
const PATIENCE: Duration = Duration::from_secs(30);

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// `VIRTIO_F_RING_EVENT_IDX`.
pub(crate) const EVENT_IDX: u64 = 1 << 29;

#[derive(Default)]
struct Heard {
    interrupts: BTreeMap<u16, u64>,
    config_changes: u64,
    needs_reset: Option<String>,
}

/// Remembers what a device tells its driver.
pub(crate) struct FakeTransport {
    heard: Mutex<Heard>,
    changed: Condvar,
    eventfds: Vec<Doorbell>,
}

impl FakeTransport {
    pub(crate) fn new(queues: usize) -> Arc<Self> {
        Arc::new(Self {
            heard: Mutex::default(),
            changed: Condvar::new(),
            eventfds: (0..queues).map(|_| Doorbell::new().unwrap()).collect(),
        })
    }

    fn hear(&self, what: impl FnOnce(&mut Heard)) {
        what(&mut lock(&self.heard));
        self.changed.notify_all();
    }

    /// Waits until `done` says something of what was heard.
    fn wait<T>(&self, for_what: &str, mut done: impl FnMut(&Heard) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = lock(&self.heard);
        loop {
            if let Some(value) = done(&heard) {
                return value;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {for_what}; needs reset: {:?}", heard.needs_reset);
            // Rings change without anybody saying so when the driver has asked not to be told.
            heard = self.changed.wait_timeout(heard, left.min(Duration::from_millis(20))).unwrap().0;
        }
    }

    /// Waits until `value` has not changed for a while: as good as one can know that nothing goes on.
    pub(crate) fn wait_quiet<T: PartialEq>(&self, value: impl Fn() -> T) {
        let mut last = value();
        let mut rounds = 0;
        while rounds < 10 {
            std::thread::sleep(Duration::from_millis(10));
            let now = value();
            rounds = if now == last { rounds + 1 } else { 0 };
            last = now;
        }
    }

    pub(crate) fn interrupts(&self, queue: u16) -> u64 {
        lock(&self.heard).interrupts.get(&queue).copied().unwrap_or(0)
    }

    pub(crate) fn config_changes(&self) -> u64 {
        lock(&self.heard).config_changes
    }

    pub(crate) fn wait_config_change(&self, more_than: u64) {
        self.wait("a change of the configuration", |heard| (heard.config_changes > more_than).then_some(()));
    }

    pub(crate) fn needs_reset(&self) -> Option<String> {
        lock(&self.heard).needs_reset.clone()
    }

    pub(crate) fn wait_needs_reset(&self) -> String {
        self.wait("the device to need a reset", |heard| heard.needs_reset.clone())
    }
}

impl Transport for FakeTransport {
    fn interrupt_queue(&self, index: u16) -> Result<(), irqfd::Error> {
        self.hear(|heard| *heard.interrupts.entry(index).or_default() += 1);
        Ok(())
    }

    fn queue_eventfd(&self, index: u16) -> Result<BorrowedFd<'_>, ActivateError> {
        Ok(self.eventfds[usize::from(index)].as_fd())
    }

    fn config_changed(&self) {
        self.hear(|heard| heard.config_changes += 1);
    }

    fn needs_reset(&self, why: &dyn Display) {
        self.hear(|heard| {
            heard.needs_reset.get_or_insert(why.to_string());
        });
    }
}

/// A buffer that a driver adds: where, how long, and whether the device writes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) writable: bool,
}

pub(crate) fn readable(address: u64, length: u32) -> Buffer {
    Buffer { address, length, writable: false }
}

pub(crate) fn writable(address: u64, length: u32) -> Buffer {
    Buffer { address, length, writable: true }
}

/// A virtqueue as the driver has it.
pub(crate) struct DriverQueue {
    memory: GuestMemoryMmap,
    transport: Arc<FakeTransport>,
    pub(crate) notify: Doorbell,
    index: u16,
    size: u16,
    base: u64,
    features: u64,
    next_descriptor: u16,
    available: u16,
    seen: u16,
}

impl DriverQueue {
    /// Where a queue's parts are, from its base on.
    pub(crate) const AVAILABLE: u64 = 0x8000;
    const USED: u64 = 0xa000;
    /// How much memory a queue takes.
    pub(crate) const BYTES: u64 = 0x1_0000;

    fn new(
        memory: &GuestMemoryMmap,
        transport: &Arc<FakeTransport>,
        index: u16,
        size: u16,
        base: u64,
        features: u64,
    ) -> Self {
        let zeros = vec![0; usize::try_from(Self::BYTES).unwrap()];
        memory.write_slice(&zeros, GuestAddress(base)).unwrap();
        Self {
            memory: memory.clone(),
            transport: Arc::clone(transport),
            notify: Doorbell::new().unwrap(),
            index,
            size,
            base,
            features,
            next_descriptor: 0,
            available: 0,
            seen: 0,
        }
    }

    /// What the device gets of it.
    fn active(&self) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        let split = |address: u64| {
            (Some(u32::try_from(address & 0xffff_ffff).unwrap()), Some(u32::try_from(address >> 32).unwrap()))
        };
        let (low, high) = split(self.base);
        queue.set_desc_table_address(low, high);
        let (low, high) = split(self.base + Self::AVAILABLE);
        queue.set_avail_ring_address(low, high);
        let (low, high) = split(self.base + Self::USED);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(self.features & EVENT_IDX != 0);
        queue.set_ready(true);
        ActiveQueue {
            index: self.index,
            queue,
            notify: self.notify.clone(),
            interrupt: QueueInterrupt::new(Arc::clone(&self.transport) as Arc<dyn Transport>, self.index),
        }
    }

    /// Writes a descriptor as it is.
    pub(crate) fn raw_descriptor(&self, at: u16, address: u64, length: u32, flags: u16, next: u16) {
        let base = self.base + u64::from(at) * 16;
        self.memory.write_obj(address, GuestAddress(base)).unwrap();
        self.memory.write_obj(length, GuestAddress(base + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(base + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(base + 14)).unwrap();
    }

    /// Makes the chain from `head` on available.
    pub(crate) fn raw_available(&mut self, head: u16) {
        let slot = self.base + Self::AVAILABLE + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        fence(Ordering::SeqCst);
        let index = GuestAddress(self.base + Self::AVAILABLE + 2);
        self.memory.store(self.available, index, Ordering::Release).unwrap();
    }

    /// Adds a chain, and says so if the device wants to know. Descriptors are used in turn: the caller sees to it that not more than the
    /// queue's size are in use. Returns the chain's head.
    pub(crate) fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let before = self.available;
        let head = self.add_quietly(buffers);
        if self.wants_kick(before) {
            self.kick();
        }
        head
    }

    /// Whether the device wants to be told of what was made available since `before` (section 2.7.10).
    fn wants_kick(&self, before: u16) -> bool {
        fence(Ordering::SeqCst);
        let used = self.base + Self::USED;
        if self.features & EVENT_IDX == 0 {
            let flags: u16 = self.memory.load(GuestAddress(used), Ordering::Relaxed).unwrap();
            return flags & 1 == 0;
        }
        let event = GuestAddress(used + 4 + 8 * u64::from(self.size));
        let event: u16 = self.memory.load(event, Ordering::Relaxed).unwrap();
        self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before)
    }

    /// Adds a chain without a word.
    pub(crate) fn add_quietly(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (i, buffer) in buffers.iter().enumerate() {
            let at = self.next_descriptor;
            let next = (at + 1) % self.size;
            let more = if i + 1 < buffers.len() { NEXT } else { 0 };
            let flags = more | if buffer.writable { WRITE } else { 0 };
            self.raw_descriptor(at, buffer.address, buffer.length, flags, next);
            self.next_descriptor = next;
        }
        self.raw_available(head);
        head
    }

    /// Where the first buffer of the chain from `head` on is.
    pub(crate) fn address(&self, head: u16) -> u64 {
        self.memory.read_obj(GuestAddress(self.base + u64::from(head) * 16)).unwrap()
    }

    /// Notifies the device, whatever it wants.
    pub(crate) fn kick(&self) {
        self.notify.ring().unwrap();
    }

    /// The next used chain, if there is one: head, and bytes written.
    pub(crate) fn used(&mut self) -> Option<(u16, u32)> {
        let index: u16 =
            self.memory.load(GuestAddress(self.base + Self::USED + 2), Ordering::Acquire).unwrap();
        if index == self.seen {
            return None;
        }
        let slot = self.base + Self::USED + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        if self.features & EVENT_IDX != 0 {
            // Interrupt for the next one.
            self.want_interrupt_at(self.seen);
        }
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let written: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        Some((u16::try_from(head).unwrap(), written))
    }

    /// Wants to be interrupted for the chain that is used when the used index is this.
    pub(crate) fn want_interrupt_at(&self, used: u16) {
        let event = self.base + Self::AVAILABLE + 4 + 2 * u64::from(self.size);
        self.memory.write_obj(used, GuestAddress(event)).unwrap();
    }

    /// How many chains were used altogether.
    pub(crate) fn peek_used(&self) -> u16 {
        self.memory.load(GuestAddress(self.base + Self::USED + 2), Ordering::Acquire).unwrap()
    }

    /// Looks how many chains were used altogether, from another thread.
    pub(crate) fn spy(&self) -> impl Fn() -> u16 + Send + use<> {
        let (memory, index) = (self.memory.clone(), GuestAddress(self.base + Self::USED + 2));
        move || memory.load(index, Ordering::Acquire).unwrap()
    }

    /// Waits for the next used chain.
    pub(crate) fn wait_used(&mut self) -> (u16, u32) {
        let transport = Arc::clone(&self.transport);
        transport.wait("a used buffer", |_| self.used())
    }
}

/// A driver that has brought a device to DRIVER_OK.
pub(crate) struct Driver {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) transport: Arc<FakeTransport>,
    pub(crate) queues: Vec<DriverQueue>,
}

impl Driver {
    /// Guest memory for `queues` queues, and from [`DATA`](Self::DATA) on `data` bytes for other things.
    pub(crate) fn new(queues: &[u16], features: u64, data: usize) -> Self {
        assert!(u64::try_from(queues.len()).unwrap() * DriverQueue::BYTES <= Self::DATA);
        let bytes = usize::try_from(Self::DATA).unwrap() + data;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap();
        let transport = FakeTransport::new(queues.len());
        let queues = (0_u16..)
            .zip(queues)
            .map(|(index, &size)| {
                assert!(size <= 0x800, "its table has room for so many");
                let base = u64::from(index) * DriverQueue::BYTES;
                DriverQueue::new(&memory, &transport, index, size, base, features)
            })
            .collect();
        Self { memory, transport, queues }
    }

    /// Where tests have room.
    pub(crate) const DATA: u64 = 0x10_0000;

    /// What a transport would hand to the device at DRIVER_OK.
    pub(crate) fn activation(&self, features: u64) -> Activation {
        Activation {
            memory: self.memory.clone(),
            features,
            queues: self.queues.iter().map(DriverQueue::active).collect(),
            transport: Arc::clone(&self.transport) as Arc<dyn Transport>,
        }
    }

    /// A driver for all queues of `device`, which is activated with all its features and `more`.
    pub(crate) fn start(
        device: &mut dyn VirtioDevice,
        more: u64,
        data: usize,
    ) -> Result<Self, ActivateError> {
        let features = device.features() | more;
        Self::start_with(device, features, data)
    }

    /// A driver for all queues of `device`, which is activated with these features.
    pub(crate) fn start_with(
        device: &mut dyn VirtioDevice,
        features: u64,
        data: usize,
    ) -> Result<Self, ActivateError> {
        let driver = Self::new(device.queue_sizes(), features, data);
        device.activate(driver.activation(features))?;
        Ok(driver)
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// Ways to break a queue, by name: each is told the queue and an address of memory, and makes one chain available that no device can trust.
pub(crate) type Breakage = (&'static str, fn(&mut DriverQueue, u64));

/// What hostile drivers do. For a queue whose chains the device reads or writes alike.
pub(crate) const BREAKAGES: [Breakage; 9] = [
    ("a descriptor out of memory", |queue, _| {
        queue.raw_descriptor(0, 0xffff_ffff_0000_0000, 64, WRITE, 0);
        queue.raw_available(0);
    }),
    ("a descriptor that wraps around the address space", |queue, _| {
        queue.raw_descriptor(0, u64::MAX - 8, 64, WRITE, 0);
        queue.raw_available(0);
    }),
    ("a loop", |queue, data| {
        queue.raw_descriptor(0, data, 1, NEXT | WRITE, 1);
        queue.raw_descriptor(1, data, 1, NEXT | WRITE, 0);
        queue.raw_available(0);
    }),
    ("a head beyond the table", |queue, _| queue.raw_available(0xffff)),
    ("a next beyond the table", |queue, data| {
        queue.raw_descriptor(0, data, 1, NEXT | WRITE, 0xfffe);
        queue.raw_available(0);
    }),
    ("an indirect table out of memory", |queue, _| {
        queue.raw_descriptor(0, 0xffff_ffff_0000_0000, 64, INDIRECT, 0);
        queue.raw_available(0);
    }),
    ("an indirect table of no whole number of descriptors", |queue, data| {
        queue.raw_descriptor(0, data, 17, INDIRECT, 0);
        queue.raw_available(0);
    }),
    ("a readable buffer after a writable one", |queue, data| {
        queue.raw_descriptor(0, data, 64, NEXT | WRITE, 1);
        queue.raw_descriptor(1, data, 64, 0, 0);
        queue.raw_available(0);
    }),
    ("more available than the queue has", |queue, _| {
        let index = GuestAddress(queue.base + DriverQueue::AVAILABLE + 2);
        let too_many = queue.available.wrapping_add(queue.size + 1);
        queue.memory.store(too_many, index, Ordering::Release).unwrap();
    }),
];

/// More events than anything in a test has a reason for.
const ENDLESS: usize = 1000;

/// Does what a worker does, until nothing is ready any more; which has to come, and not to be reported for ever.
pub(crate) fn run_until_quiet(handler: &mut dyn EventHandler, events: &Events) {
    /// The token of the beginning.
    const BEGIN: u64 = u64::MAX - 1;

    /// Counts what is handed over, and ends when nothing is.
    struct Course<'h> {
        handler: &'h mut dyn EventHandler,
        begin: Doorbell,
        heard: usize,
        /// How many had been heard when it last settled.
        settled: usize,
    }

    impl EventHandler for Course<'_> {
        fn ready(&mut self, token: u64, events: &Events) -> ControlFlow<()> {
            self.heard += 1;
            match token {
                _ if self.heard == ENDLESS => ControlFlow::Break(()),
                BEGIN => {
                    self.begin.take().unwrap();
                    ControlFlow::Continue(())
                }
                token => self.handler.ready(token, events),
            }
        }

        fn settled(&mut self, events: &Events) -> ControlFlow<(), bool> {
            let more = self.handler.settled(events)?;
            if !more && self.heard == self.settled {
                return ControlFlow::Break(());
            }
            self.settled = self.heard;
            ControlFlow::Continue(true)
        }
    }

    let (stop, begin) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
    events.add(&begin, BEGIN, Interest::Read).unwrap();
    begin.ring().unwrap();
    let mut course = Course { handler, begin, heard: 0, settled: 0 };
    listen(stop.as_fd(), events, &mut course);
    events.remove(&stop).unwrap();
    events.remove(&course.begin).unwrap();
    assert!(course.heard < ENDLESS, "something is reported for ever");
}

/// How many descriptors the process has open.
pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Fails if the process goes on having so many descriptors open. Other tests have some for a while, what leaks is there for good: so a test does
/// something more often than `limit` allows for leaking once each time.
pub(crate) fn assert_descriptors_below(limit: usize) {
    let deadline = Instant::now() + PATIENCE;
    while open_descriptors() >= limit {
        assert!(Instant::now() < deadline, "{} descriptors are open, of {limit}", open_descriptors());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the process has no thread left whose name begins so. One that was joined is still to be seen for a moment.
pub(crate) fn no_thread_named(prefix: &str) -> bool {
    let named = || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .any(|name| name.starts_with(prefix))
    };
    (0..1000).any(|_| {
        let gone = !named();
        if !gone {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        gone
    })
}
