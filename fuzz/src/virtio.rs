// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest at virtio: the registers of the transport, and the rings of a disk.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use irqchip::fake::Call;
use irqfd::{Doorbell, LevelLine, Wiring};
use pci::{BarIndex, IntxPin, PciFunction};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_devices::{
    ActivateError, Activation, ActiveQueue, Block, BlockOptions, PciWiring, QueueInterrupt, Ring, Transport,
    VirtioDevice, VirtioPciFunction,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::{Bytes, Line, fail_next, vm};

/// Guest memory: two regions next to each other.
const REGION: usize = 0x1_0000;
const MEMORY: u64 = 2 * REGION as u64;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), REGION), (GuestAddress(REGION as u64), REGION)]).unwrap()
}

/// A device that only looks whether it is treated as the trait promises.
#[derive(Default)]
struct Witness {
    active: Arc<AtomicBool>,
    activations: Arc<AtomicU64>,
    config: Arc<Mutex<[u8; 8]>>,
}

const OFFERED: u64 = 0b111;

impl VirtioDevice for Witness {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 8, 1]
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config.lock().unwrap();
        for (to, from) in data.iter_mut().zip(config.iter().skip(offset as usize)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (to, from) in self.config.lock().unwrap().iter_mut().skip(offset as usize).zip(data) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(!self.active.swap(true, Ordering::SeqCst), "activated twice without a reset");
        let Activation { memory, features, queues, transport } = activation;
        assert_eq!(features & 0x00ff_ffff & !OFFERED, 0);
        assert_ne!(features & 1 << 32, 0, "no legacy drivers");
        assert!(queues.is_sorted_by_key(|queue| queue.index));
        for queue in &queues {
            assert!(queue.queue.is_valid(&memory), "rings in memory");
            assert!(queue.queue.size() <= self.queue_sizes()[usize::from(queue.index)]);
            let _ = queue.interrupt.signal();
        }
        transport.config_changed();
        let refuses = self.activations.fetch_add(1, Ordering::SeqCst) % 4 == 3;
        if refuses { Err(ActivateError::MissingQueue(0)) } else { Ok(()) }
    }

    fn reset(&mut self) {
        self.active.store(false, Ordering::SeqCst);
    }
}

/// Any reads and writes of registers and configuration space, with the device and the kernel taking part: the device is started and reset as promised, ioeventfds
/// are there only for a running device whose BAR decodes, and nothing stays behind.
pub fn virtio_pci(bytes: &[u8]) {
    let (vm, router) = vm(None);
    let before = vm.live();
    {
        let wiring = PciWiring {
            memory: memory(),
            ioevents: Arc::clone(&vm) as _,
            msix: Some(Wiring::new(Arc::clone(&vm) as _, router.clone()).unwrap()),
            device_id_base: 0,
            intx: Some((IntxPin::A, Arc::new(Line::default()) as Arc<dyn LevelLine>)),
        };
        let witness = Witness::default();
        let active = Arc::clone(&witness.active);
        let function = VirtioPciFunction::new(Box::new(witness), wiring).unwrap();
        let mut bytes = Bytes::new(bytes);
        let mut placed = false;
        while bytes.left() {
            let action = bytes.byte();
            let size = [1, 2, 4, 8][usize::from(action >> 6)];
            match action % 16 {
                // The common configuration, in its own widths more often than not.
                0..6 => {
                    let offset = u64::from(bytes.byte() % 0x44);
                    function.write_bar(BAR0, offset, &bytes.word().to_le_bytes().repeat(2)[..size]);
                }
                6 => function.write_bar(BAR0, 0x14, &[bytes.byte()]),
                7 => {
                    let at = [0x0000, 0x1000, 0x2000, 0x3000][bytes.index(4)] + u64::from(bytes.byte());
                    let mut data = bytes.word().to_le_bytes().repeat(2);
                    function.read_bar(BAR0, at, &mut data[..size]);
                    function.write_bar(BAR0, at, &data[..size]);
                }
                8 => {
                    let offset = u64::from(bytes.byte());
                    function.write_bar(BAR2, offset, &bytes.word().to_le_bytes());
                }
                9 | 10 => {
                    let size = size.min(4) as u16;
                    let offset = u16::from(bytes.byte()) / size * size;
                    function.write_config(offset, &bytes.word().to_le_bytes()[..usize::from(size)]);
                    let mut data = [0; 4];
                    function.read_config(offset, &mut data[..usize::from(size)]);
                    placed = !function.decoded().is_empty();
                    function.placed(&function.decoded());
                }
                // A negotiation as it should be, so that the bytes need not find it.
                11 => {
                    for (offset, data) in
                        [(0x14, &[0u8][..]), (0x14, &[3]), (0x08, &[1, 0, 0, 0]), (0x0c, &[1, 0, 0, 0])]
                    {
                        function.write_bar(BAR0, offset, data);
                    }
                    function.write_bar(BAR0, 0x14, &[11]);
                }
                // A queue somewhere in memory.
                12 => {
                    let queue = bytes.byte() % 4;
                    function.write_bar(BAR0, 0x16, &[queue, 0]);
                    for (offset, page) in [(0x20, 1u32), (0x28, 2), (0x30, 3)] {
                        function.write_bar(
                            BAR0,
                            offset,
                            &((u32::from(queue) * 4 + page) << 12).to_le_bytes(),
                        );
                    }
                    function.write_bar(BAR0, 0x1c, &[1, 0]);
                    function.write_bar(BAR0, 0x14, &[15]);
                }
                13 => {
                    // A BAR in a good place.
                    for (offset, value) in [(0x10, 0u32), (0x14, 0x10), (0x18, 0x1000_0000), (4, 6)] {
                        function
                            .write_config(offset, &value.to_le_bytes()[..if offset == 4 { 2 } else { 4 }]);
                    }
                    placed = true;
                    function.placed(&function.decoded());
                }
                14 => fail_next(
                    &vm,
                    [Call::AssignIoevent, Call::AssignIrqfd, Call::SetRoutes][bytes.index(3)],
                    &mut bytes,
                ),
                _ if action & 0xf0 == 0 => {
                    function.reset();
                    placed = false;
                    function.placed(&[]);
                }
                _ => function.transport().needs_reset(&"it was asked to"),
            }
            let state = function.state();
            assert_eq!(
                state.needs_reset || state.status & 4 != 0,
                state.needs_reset || active.load(Ordering::SeqCst)
            );
            let ioevents = vm.live().ioevents - before.ioevents;
            assert!(
                ioevents == 0 || active.load(Ordering::SeqCst) && placed,
                "{ioevents} ioeventfds of a device at rest"
            );
        }
    }
    vm.clear_faults();
    router.flush().unwrap();
    assert_eq!(vm.live(), before, "something stays behind");
}

const BAR0: BarIndex = match BarIndex::new(0) {
    Ok(bar) => bar,
    Err(_) => BarIndex::ROM,
};
const BAR2: BarIndex = match BarIndex::new(2) {
    Ok(bar) => bar,
    Err(_) => BarIndex::ROM,
};

#[derive(Default)]
struct Deaf;

impl Transport for Deaf {
    fn interrupt_queue(&self, _: u16) -> Result<(), irqfd::Error> {
        Ok(())
    }

    fn queue_eventfd(&self, _: u16) -> Result<BorrowedFd<'_>, ActivateError> {
        Err(ActivateError::MissingQueue(0))
    }

    fn config_changed(&self) {}

    fn needs_reset(&self, _: &dyn std::fmt::Display) {}
}

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Memory that no buffer is in: what is there must stay.
const CANARY: u64 = MEMORY - 0x1000;
const SIZE: u16 = 16;
const IMAGE: u64 = 64 << 10;

/// Any descriptors, tables and rings, and any requests in them: each chain is used at most once, the image keeps its size, and only buffers are
/// written.
pub fn virtio_block(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let mode = bytes.byte();
    let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, IMAGE).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let options = BlockOptions { readonly: mode & 1 != 0, serial: "fuzz".into(), ..BlockOptions::new(&path) };
    let block = Block::open(&options).unwrap();
    let memory = memory();
    memory.write_slice(&[0xc5; 0x1000], GuestAddress(CANARY)).unwrap();

    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_event_idx(mode & 2 != 0);
    queue.set_ready(true);
    let transport: Arc<dyn Transport> = Arc::new(Deaf);
    let interrupt = QueueInterrupt::new(Arc::clone(&transport), 0);
    let active = ActiveQueue { index: 0, queue, notify: Doorbell::new().unwrap(), interrupt };
    let mut ring = Ring::new(active, memory.clone());
    let mut available = 0u16;
    let mut touched = false;
    while bytes.left() {
        match bytes.byte() % 8 {
            // A descriptor, in the table or in a table elsewhere: with an address below the canary, or with any.
            0..4 => {
                let place = bytes.byte();
                let table = if place & 0x80 == 0 { DESCRIPTORS } else { 0x8000 };
                let wild = place & 0x60 == 0x60;
                let address = if wild {
                    u64::from(bytes.word()) << 32 | u64::from(bytes.word())
                } else {
                    u64::from(bytes.word()) % CANARY
                };
                let length = if wild { bytes.word() } else { bytes.word() % 0x2000 };
                let length = if wild { length } else { length.min((CANARY - address) as u32) };
                touched |= wild && address.saturating_add(length.into()) > CANARY && address < MEMORY;
                let [flags, next] = [bytes.byte(), bytes.byte()];
                let mut descriptor = address.to_le_bytes().to_vec();
                descriptor.extend(length.to_le_bytes());
                descriptor.extend(u16::from(flags % 8).to_le_bytes());
                descriptor.extend(u16::from(next % 20).to_le_bytes());
                let at = table + u64::from(place % SIZE as u8) * 16;
                memory.write_slice(&descriptor, GuestAddress(at)).unwrap();
            }
            // A header.
            4 | 5 => {
                let mut header = u32::from(bytes.byte() % 16).to_le_bytes().to_vec();
                header.extend([0; 4]);
                header.extend(u64::from(bytes.word() % 200).to_le_bytes());
                let at = u64::from(bytes.byte()) * 0x100;
                memory.write_slice(&header, GuestAddress(at)).unwrap();
            }
            6 => {
                let head = u16::from(bytes.byte() % 18);
                let slot = AVAILABLE + 4 + u64::from(available % SIZE) * 2;
                memory.write_obj(head, GuestAddress(slot)).unwrap();
                available = available.wrapping_add(1);
                memory.write_obj(available, GuestAddress(AVAILABLE + 2)).unwrap();
            }
            _ => match block.serve(ring, Arc::clone(&transport)) {
                Ok(back) => ring = back,
                Err(_) => return end(&file, &memory, touched),
            },
        }
    }
    let _ = block.serve(ring, transport);
    end(&file, &memory, touched);
}

fn end(file: &impl std::os::fd::AsFd, memory: &GuestMemoryMmap, touched: bool) {
    assert_eq!(rustix::fs::fstat(file).unwrap().st_size as u64, IMAGE, "the image has kept its size");
    let mut canary = [0; 0x1000];
    memory.read_slice(&mut canary, GuestAddress(CANARY)).unwrap();
    assert!(touched || canary == [0xc5; 0x1000], "written where there was no buffer");
}
