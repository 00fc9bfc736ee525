// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest at the queues of the devices that talk: network, console, sockets, balloon.

use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use irqfd::Doorbell;
use virtio_devices::fuzzing::{self, Body};
use virtio_devices::{
    ActivateError, Activation, ActiveQueue, Balloon, BalloonOptions, Console, GuestCid, QueueInterrupt,
    Transport, VirtioDevice, Vsock,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::Bytes;

/// Remembers whether the device has given up.
#[derive(Default)]
struct Listener {
    needs_reset: AtomicBool,
}

impl Transport for Listener {
    fn interrupt_queue(&self, _: u16) -> Result<(), irqfd::Error> {
        Ok(())
    }

    fn queue_eventfd(&self, _: u16) -> Result<BorrowedFd<'_>, ActivateError> {
        Err(ActivateError::MissingQueue(0))
    }

    fn config_changed(&self) {}

    fn needs_reset(&self, _: &dyn std::fmt::Display) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }
}

const SIZE: u16 = 16;
/// Where a queue's parts are, from the queue's own base on.
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const QUEUE_BYTES: u64 = 0x1000;
/// From here on there are buffers, up to the canary.
const BUFFERS: u64 = 0x8000;
/// Memory that no buffer is in: what is there must stay.
const CANARY: u64 = 0x1_f000;
const MEMORY: u64 = 0x2_0000;

struct Guest {
    memory: GuestMemoryMmap,
    transport: Arc<Listener>,
    notify: Vec<Doorbell>,
    available: Vec<u16>,
    /// A buffer over the canary was made.
    touched: bool,
}

impl Guest {
    fn new(queues: u16) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 0x1_0000),
            (GuestAddress(0x1_0000), (MEMORY - 0x1_0000) as usize),
        ])
        .unwrap();
        memory.write_slice(&[0xc5; 0x1000], GuestAddress(CANARY)).unwrap();
        Self {
            memory,
            transport: Arc::default(),
            notify: (0..queues).map(|_| Doorbell::new().unwrap()).collect(),
            available: vec![0; usize::from(queues)],
            touched: false,
        }
    }

    fn activation(&self, features: u64) -> Activation {
        let transport = Arc::clone(&self.transport) as Arc<dyn Transport>;
        let queue = |(index, notify): (u16, &Doorbell)| {
            let mut queue = Queue::new(SIZE).unwrap();
            let base = (u64::from(index) * QUEUE_BYTES) as u32;
            queue.set_desc_table_address(Some(base), Some(0));
            queue.set_avail_ring_address(Some(base + AVAILABLE as u32), Some(0));
            queue.set_used_ring_address(Some(base + USED as u32), Some(0));
            queue.set_event_idx(features & 1 << 29 != 0);
            queue.set_ready(true);
            let interrupt = QueueInterrupt::new(Arc::clone(&transport), index);
            ActiveQueue { index, queue, notify: notify.clone(), interrupt }
        };
        let queues = (0..).zip(&self.notify).map(queue).collect();
        Activation { memory: self.memory.clone(), features, queues, transport: Arc::clone(&transport) }
    }

    /// One thing that a guest may do to its rings and buffers. Mostly it makes some sense.
    fn act(&mut self, bytes: &mut Bytes<'_>) {
        let queue = bytes.index(self.notify.len());
        let base = queue as u64 * QUEUE_BYTES;
        match bytes.byte() % 4 {
            0 | 1 => {
                let place = bytes.byte();
                let wild = place & 0x70 == 0x70;
                let room = CANARY - BUFFERS;
                let (address, length) = if wild {
                    (u64::from(bytes.word()) << 32 | u64::from(bytes.word()), bytes.word())
                } else {
                    let at = u64::from(bytes.word()) % room;
                    (BUFFERS + at, (bytes.word() % 0x1000).min((room - at) as u32))
                };
                self.touched |= wild && address.saturating_add(length.into()) > CANARY && address < MEMORY;
                let mut descriptor = address.to_le_bytes().to_vec();
                descriptor.extend(length.to_le_bytes());
                descriptor.extend(u16::from(bytes.byte() % 8).to_le_bytes());
                descriptor.extend(u16::from(bytes.byte() % 18).to_le_bytes());
                let at = base + u64::from(place % SIZE as u8) * 16;
                self.memory.write_slice(&descriptor, GuestAddress(at)).unwrap();
            }
            2 => {
                let data: Vec<u8> = (0..bytes.byte() % 64).map(|_| bytes.byte()).collect();
                let at = BUFFERS + u64::from(bytes.word()) % (CANARY - BUFFERS - 64);
                self.memory.write_slice(&data, GuestAddress(at)).unwrap();
            }
            _ => {
                let head = u16::from(bytes.byte() % 17);
                self.offer(queue, head);
            }
        }
    }

    /// A chain of one buffer that is as it should be: `data` for the device to read, or `length` bytes for it to write.
    fn offer_whole(&mut self, queue: usize, slot: u16, data: &[u8], length: u32) {
        let at = BUFFERS + u64::from(slot) * 0x800;
        self.memory.write_slice(data, GuestAddress(at)).unwrap();
        let (length, flags) = if data.is_empty() { (length, 2_u16) } else { (data.len() as u32, 0) };
        let mut descriptor = at.to_le_bytes().to_vec();
        descriptor.extend(length.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend([0, 0]);
        let place = queue as u64 * QUEUE_BYTES + u64::from(slot) * 16;
        self.memory.write_slice(&descriptor, GuestAddress(place)).unwrap();
        self.offer(queue, slot);
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let base = queue as u64 * QUEUE_BYTES + AVAILABLE;
        let available = &mut self.available[queue];
        let slot = base + 4 + u64::from(*available % SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        *available = available.wrapping_add(1);
        self.memory.write_obj(*available, GuestAddress(base + 2)).unwrap();
        self.notify[queue].ring().unwrap();
    }

    /// The promises: a chain is used at most once, and only buffers are written.
    fn check(&self) {
        for (queue, &available) in self.available.iter().enumerate() {
            let at = queue as u64 * QUEUE_BYTES + USED + 2;
            // Unless the guest has made the ring itself a buffer.
            if !self.touched {
                let used: u16 = self.memory.read_obj(GuestAddress(at)).unwrap();
                assert!(available.wrapping_sub(used) <= 0x8000, "used {used} of {available}");
            }
        }
        let mut canary = [0; 0x1000];
        self.memory.read_slice(&mut canary, GuestAddress(CANARY)).unwrap();
        assert!(self.touched || canary == [0xc5; 0x1000], "written where there was no buffer");
    }
}

/// Lets guest and host act in turn, and the device after each, until the bytes end or the device has given up.
fn drive(
    bytes: &mut Bytes<'_>,
    guest: &mut Guest,
    (events, mut handler): Body,
    mut host: impl FnMut(u8, &mut Guest, &mut Bytes<'_>),
) {
    while bytes.left() {
        match bytes.byte() % 8 {
            action @ 0..3 => host(action, guest, bytes),
            _ => guest.act(bytes),
        }
        for token in (0..5).chain(16..25) {
            let gone = match token {
                // As after each round of a thread's.
                24 => handler.settled(&events).is_break(),
                _ => handler.ready(token, &events).is_break(),
            };
            if gone {
                assert!(guest.transport.needs_reset.load(Ordering::SeqCst), "it ends, and does not say why");
                guest.check();
                return;
            }
        }
        guest.check();
    }
}

const EVENT_IDX: u64 = 1 << 29;

/// Frames both ways and commands: whatever the rings hold.
pub fn virtio_net(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let features = u64::from(bytes.word()) | u64::from(bytes.byte()) << 48;
    let mut guest = Guest::new(3);
    let (wire, tap) = UnixDatagram::pair().unwrap();
    wire.set_nonblocking(true).unwrap();
    tap.set_nonblocking(true).unwrap();
    let body = fuzzing::net(tap.into(), guest.activation(features)).unwrap();
    drive(&mut bytes, &mut guest, body, |action, guest, bytes| match action {
        0 => {
            let _ = wire.send(&vec![7; usize::from(bytes.byte()) * 32]);
        }
        1 => guest.offer_whole(0, u16::from(bytes.byte() % 16), &[], 12 + u32::from(bytes.byte()) * 4),
        _ => {
            let frame: Vec<u8> = (0..bytes.byte()).map(|_| bytes.byte()).collect();
            guest.offer_whole(1, u16::from(bytes.byte() % 16), &frame, 100);
            while wire.recv(&mut [0; 16]).is_ok() {}
        }
    });
}

/// Keys and output: whatever the rings hold.
pub fn virtio_console(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let features = u64::from(bytes.byte() & 1) * EVENT_IDX;
    let mut guest = Guest::new(2);
    let (mut keys, input) = UnixStream::pair().unwrap();
    let (mut screen, output) = UnixStream::pair().unwrap();
    keys.set_nonblocking(true).unwrap();
    screen.set_nonblocking(true).unwrap();
    let console = Console::new(Some(input.into()), output.into(), None).unwrap();
    let body = fuzzing::console(&console, guest.activation(features)).unwrap();
    drive(&mut bytes, &mut guest, body, |action, guest, bytes| match action {
        0 => {
            let _ = keys.write(&vec![b'k'; usize::from(bytes.byte())]);
        }
        1 => guest.offer_whole(0, u16::from(bytes.byte() % 16), &[], 1 + u32::from(bytes.byte())),
        _ => {
            guest.offer_whole(1, u16::from(bytes.byte() % 16), b"output", 0);
            let _ = screen.read(&mut [0; 100]);
        }
    });
}

/// Packets of any kind, and host programs that come, talk and go: whatever the rings hold.
pub fn virtio_vsock(bytes: &[u8]) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut bytes = Bytes::new(bytes);
    let features = u64::from(bytes.byte() & 1) * EVENT_IDX;
    let mut guest = Guest::new(3);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("fuzz-vsock-{}-{number}", std::process::id()));
    let vsock = Vsock::new(GuestCid::new(3).unwrap(), &path).unwrap();
    let body = fuzzing::vsock(&vsock, guest.activation(features)).unwrap();
    let mut programs: Vec<UnixStream> = Vec::new();
    drive(&mut bytes, &mut guest, body, |action, guest, bytes| match action {
        0 => match bytes.byte() % 4 {
            0 if programs.len() < 8 => {
                let mut program = UnixStream::connect(&path).unwrap();
                program.set_nonblocking(true).unwrap();
                let _ = program.write(b"CONNECT 1\n");
                programs.push(program);
            }
            1 if !programs.is_empty() => drop(programs.remove(0)),
            _ => {
                for program in &mut programs {
                    let _ = program.write(b"data");
                    let _ = program.read(&mut [0; 64]);
                }
            }
        },
        1 => guest.offer_whole(0, u16::from(bytes.byte() % 16), &[], 45 + u32::from(bytes.byte())),
        _ => {
            // A packet on a connection that there may be, or may not.
            let mut packet = 3_u64.to_le_bytes().to_vec();
            packet.extend(2_u64.to_le_bytes());
            packet.extend(u32::from(bytes.byte() % 3).to_le_bytes());
            packet.extend(((1_u32 << 30) + u32::from(bytes.byte() % 4)).to_le_bytes());
            let length = bytes.byte() % 16;
            packet.extend(u32::from(length).to_le_bytes());
            packet.extend([1, 0, bytes.byte() % 9, 0]);
            for _ in 0..3 {
                packet.extend((bytes.word() >> (bytes.byte() % 32)).to_le_bytes());
            }
            packet.extend(vec![0x5a; usize::from(length)]);
            guest.offer_whole(1, u16::from(bytes.byte() % 16), &packet, 0);
        }
    });
    drop(vsock);
    assert!(!path.exists(), "the socket goes with the device");
}

/// Page numbers, statistics and reports: whatever the rings hold. A guest may give back any page of its own, those with its rings and the canary
/// included: so what is held here is that nothing else is reached, and nothing panics.
pub fn virtio_balloon(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let mut guest = Guest::new(5);
    guest.touched = true;
    let balloon = Balloon::new(BalloonOptions::default()).unwrap();
    let handle = balloon.handle();
    let features = balloon.features() | (u64::from(bytes.byte() & 1) * EVENT_IDX);
    let body = fuzzing::balloon(&balloon, guest.activation(features)).unwrap();
    drive(&mut bytes, &mut guest, body, |action, guest, bytes| match action {
        0 => handle.request_stats(),
        1 => {
            // One that there is, and one that there is not.
            let page = 8 + u32::from(bytes.byte() % 8);
            let numbers = [page.to_le_bytes(), (bytes.word() | 0x100).to_le_bytes()].concat();
            guest.offer_whole(0, u16::from(bytes.byte() % 16), &numbers, 0);
        }
        _ => {
            let entry: Vec<u8> = (0..10).map(|_| bytes.byte()).collect();
            guest.offer_whole(2, u16::from(bytes.byte() % 16), &entry, 0);
        }
    });
    assert_eq!(handle.failure(), None, "the host was asked for something that it cannot do");
}
