// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver: finds the structures through the capabilities, negotiates, sets up queues, and works with them.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use irq_types::Bdf;
use irqchip::IoAddress;
use irqchip::fake::FakeVm;
use pci::{BarIndex, PciFunction};
use virtio_devices::{VirtioDevice, VirtioPciFunction};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BDF, MEMORY, Machine, REGION, message, wait_for};

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;

pub const ACKNOWLEDGE: u8 = 1;
pub const DRIVER: u8 = 2;
pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const NEEDS_RESET: u8 = 0x40;
pub const FAILED: u8 = 0x80;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Where the guest puts the BARs.
pub const REGISTERS: u64 = 0x10_0000_0000;
const MSIX: u64 = 0x1000_0000;

/// Where a structure is: BAR and offset.
#[derive(Debug, Clone, Copy)]
pub struct Structure {
    pub bar: u8,
    pub offset: u32,
    pub length: u32,
    /// Offset of the capability.
    pub capability: u16,
}

pub struct Driver {
    pub function: Arc<VirtioPciFunction>,
    pub vm: Arc<FakeVm>,
    pub memory: GuestMemoryMmap,
    pub base: u64,
    pub common: Structure,
    pub notify: Structure,
    pub multiplier: u32,
    pub isr: Structure,
    pub device: Structure,
    pub access: Structure,
    msix_capability: Option<u16>,
    next_page: u64,
}

impl Driver {
    /// A function for `device` on a bus, with its BARs placed and decoding.
    pub fn new(machine: &Machine, device: impl VirtioDevice + 'static, msix: bool) -> Self {
        let function = Arc::new(VirtioPciFunction::new(Box::new(device), machine.pci(msix)).unwrap());
        function.set_bdf(Bdf::from_requester_id(BDF));
        let nothing = Structure { bar: 0, offset: 0, length: 0, capability: 0 };
        let mut driver = Self {
            function,
            vm: machine.vm.clone(),
            memory: machine.memory.clone(),
            base: 0,
            common: nothing,
            notify: nothing,
            multiplier: 0,
            isr: nothing,
            device: nothing,
            access: nothing,
            msix_capability: None,
            next_page: MEMORY,
        };
        driver.find_structures();
        driver.place(REGISTERS);
        driver
    }

    pub fn config<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0xee; N];
        self.function.read_config(offset, &mut data);
        data
    }

    pub fn config_u32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.config(offset))
    }

    pub fn set_config(&self, offset: u16, data: &[u8]) {
        self.function.write_config(offset, data);
        let decoded = self.function.decoded();
        self.function.placed(&decoded);
    }

    fn find_structures(&mut self) {
        let [mut at] = self.config::<1>(0x34);
        while at != 0 {
            let offset = u16::from(at);
            let [id, next] = self.config::<2>(offset);
            if id == 0x11 {
                self.msix_capability = Some(offset);
            }
            if id == 9 {
                let [length, kind] = self.config::<2>(offset + 2);
                assert!(length >= 16);
                let [bar] = self.config::<1>(offset + 4);
                let found = Structure {
                    bar,
                    offset: self.config_u32(offset + 8),
                    length: self.config_u32(offset + 12),
                    capability: offset,
                };
                match kind {
                    1 => self.common = found,
                    2 => {
                        self.notify = found;
                        self.multiplier = self.config_u32(offset + 16);
                    }
                    3 => self.isr = found,
                    4 => self.device = found,
                    5 => self.access = found,
                    other => panic!("virtio capability of type {other}"),
                }
            }
            at = next;
        }
    }

    /// The guest gives the BARs addresses, and lets them decode.
    pub fn place(&mut self, registers: u64) {
        self.set_config(4, &0u16.to_le_bytes());
        self.set_config(0x10, &(registers as u32).to_le_bytes());
        self.set_config(0x14, &((registers >> 32) as u32).to_le_bytes());
        self.set_config(0x18, &(MSIX as u32).to_le_bytes());
        self.set_config(4, &0x0006u16.to_le_bytes());
        self.base = registers;
    }

    fn bar(structure: Structure) -> BarIndex {
        BarIndex::new(structure.bar).unwrap()
    }

    pub fn read<const N: usize>(&self, structure: Structure, at: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.function.read_bar(Self::bar(structure), u64::from(structure.offset) + at, &mut data);
        data
    }

    pub fn write(&self, structure: Structure, at: u64, data: &[u8]) {
        self.function.write_bar(Self::bar(structure), u64::from(structure.offset) + at, data);
    }

    pub fn status(&self) -> u8 {
        let [status] = self.read(self.common, 0x14);
        status
    }

    pub fn set_status(&self, status: u8) {
        self.write(self.common, 0x14, &[status]);
    }

    pub fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.write(self.common, 0, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.read(self.common, 4)))
        };
        half(1) << 32 | half(0)
    }

    pub fn accept(&self, features: u64) {
        for select in [0u32, 1] {
            self.write(self.common, 8, &select.to_le_bytes());
            self.write(self.common, 12, &((features >> (32 * select)) as u32).to_le_bytes());
        }
    }

    pub fn isr(&self) -> u8 {
        let [isr] = self.read(self.isr, 0);
        isr
    }

    /// Resets, and waits until it is.
    pub fn reset(&mut self) {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.next_page = MEMORY;
    }

    /// Everything up to FEATURES_OK, with as many of `wanted` as are offered.
    pub fn negotiate(&mut self, wanted: u64) -> u64 {
        self.reset();
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        let features = self.offered() & wanted;
        self.accept(features);
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_ne!(self.status() & FEATURES_OK, 0, "the device takes a subset of what it offers");
        features
    }

    pub fn queue_count(&self) -> u16 {
        u16::from_le_bytes(self.read(self.common, 0x12))
    }

    /// Enables MSI-X, and programs vectors `0..count` with events of their own.
    pub fn enable_msix(&self, count: u16) {
        let at = self.msix_capability.unwrap();
        let control = u16::from_le_bytes(self.config(at + 2));
        // As Linux does: enabled and masked as a function, then the entries, then unmasked.
        self.set_config(at + 2, &(control | 0xc000).to_le_bytes());
        let bar = BarIndex::new(2).unwrap();
        for vector in 0..count {
            let entry = u64::from(vector) * 16;
            let message = message(u32::from(vector));
            self.function.write_bar(bar, entry, &(message.address as u32).to_le_bytes());
            self.function.write_bar(bar, entry + 4, &((message.address >> 32) as u32).to_le_bytes());
            self.function.write_bar(bar, entry + 8, &message.data.to_le_bytes());
            self.function.write_bar(bar, entry + 12, &0u32.to_le_bytes());
        }
        self.set_config(at + 2, &(control & !0x4000 | 0x8000).to_le_bytes());
    }

    pub fn disable_msix(&self) {
        let at = self.msix_capability.unwrap();
        self.set_config(at + 2, &0u16.to_le_bytes());
    }

    pub fn map_config_vector(&self, vector: u16) -> u16 {
        self.write(self.common, 0x10, &vector.to_le_bytes());
        u16::from_le_bytes(self.read(self.common, 0x10))
    }

    pub fn map_queue_vector(&self, queue: u16, vector: u16) -> u16 {
        self.select(queue);
        self.write(self.common, 0x1a, &vector.to_le_bytes());
        u16::from_le_bytes(self.read(self.common, 0x1a))
    }

    pub fn select(&self, queue: u16) {
        self.write(self.common, 0x16, &queue.to_le_bytes());
    }

    /// Guest memory that nobody else uses, in whole pages, zeroed.
    pub fn pages(&mut self, bytes: usize) -> u64 {
        let address = self.next_page;
        self.next_page += bytes.next_multiple_of(4096) as u64;
        assert!(self.next_page <= MEMORY + 2 * REGION);
        self.memory.write_slice(&vec![0; bytes.next_multiple_of(4096)], GuestAddress(address)).unwrap();
        address
    }

    /// Gives the last `bytes` of pages back.
    pub fn rewind(&mut self, bytes: u64) {
        self.next_page -= bytes;
    }

    /// Sets up and enables queue `index`.
    pub fn queue(&mut self, index: u16, features: u64) -> DriverQueue {
        self.queue_of(index, features, None)
    }

    pub fn queue_of(&mut self, index: u16, features: u64, size: Option<u16>) -> DriverQueue {
        self.select(index);
        let most = u16::from_le_bytes(self.read(self.common, 0x18));
        let size = size.unwrap_or(most);
        self.write(self.common, 0x18, &size.to_le_bytes());
        let entries = usize::from(size);
        let descriptors = self.pages(entries * 16);
        let available = self.pages(entries * 2 + 6);
        let used = self.pages(entries * 8 + 6);
        for (at, address) in [(0x20, descriptors), (0x28, available), (0x30, used)] {
            self.write(self.common, at, &(address as u32).to_le_bytes());
            self.write(self.common, at + 4, &((address >> 32) as u32).to_le_bytes());
        }
        let off = u16::from_le_bytes(self.read(self.common, 0x1e));
        let notify_at = u64::from(self.notify.offset) + u64::from(off) * u64::from(self.multiplier);
        self.write(self.common, 0x1c, &1u16.to_le_bytes());
        DriverQueue {
            function: self.function.clone(),
            vm: self.vm.clone(),
            memory: self.memory.clone(),
            index,
            size,
            descriptors,
            available,
            used,
            notify_bar: Self::bar(self.notify),
            notify_at,
            features,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); entries],
            next: 0,
            seen: 0,
            exits: 0,
            base: self.base,
        }
    }

    pub fn driver_ok(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// The whole of a probe: features, MSI-X with a vector a queue and one for the configuration, all queues, DRIVER_OK.
    pub fn probe(&mut self, wanted: u64) -> Vec<DriverQueue> {
        let features = self.negotiate(wanted | VERSION_1);
        let count = self.queue_count();
        if self.msix_capability.is_some() {
            self.enable_msix(count + 1);
            assert_eq!(self.map_config_vector(0), 0);
        }
        let queues = (0..count)
            .map(|index| {
                if self.msix_capability.is_some() {
                    assert_eq!(self.map_queue_vector(index, index + 1), index + 1);
                }
                self.queue(index, features)
            })
            .collect();
        self.driver_ok();
        queues
    }

    pub fn wait_needs_reset(&self) {
        wait_for("DEVICE_NEEDS_RESET", || (self.status() & NEEDS_RESET != 0).then_some(()));
    }
}

/// A buffer: address, length, whether the device writes it.
pub type Buffer = (u64, u32, bool);

pub struct DriverQueue {
    function: Arc<VirtioPciFunction>,
    vm: Arc<FakeVm>,
    pub memory: GuestMemoryMmap,
    pub index: u16,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    notify_bar: BarIndex,
    notify_at: u64,
    features: u64,
    free: Vec<u16>,
    chains: Vec<Vec<u16>>,
    next: u16,
    seen: u16,
    /// Notifications that the kernel did not take.
    pub exits: u64,
    base: u64,
}

impl DriverQueue {
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// The BAR was moved.
    pub fn moved_to(&mut self, base: u64) {
        self.base = base;
    }

    pub fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.write_descriptor(self.descriptors + u64::from(index) * 16, address, length, flags, next);
    }

    pub fn write_descriptor(&self, at: u64, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(address.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Adds a chain of direct descriptors; `None` if there is no room.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if self.free.len() < buffers.len() {
            return None;
        }
        let chain = self.free.split_off(self.free.len() - buffers.len());
        for (position, &(address, length, write)) in buffers.iter().enumerate() {
            let next = chain.get(position + 1).copied();
            let flags = if write { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            self.descriptor(chain[position], address, length, flags, next.unwrap_or(0));
        }
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        self.expose(head);
        Some(head)
    }

    /// Adds a chain through an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Option<u16> {
        let head = self.free.pop()?;
        for (position, &(address, length, write)) in (0u16..).zip(buffers) {
            let last = usize::from(position) + 1 == buffers.len();
            let flags = if write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.write_descriptor(table + u64::from(position) * 16, address, length, flags, position + 1);
        }
        self.descriptor(head, table, buffers.len() as u32 * 16, INDIRECT, 0);
        self.chains[usize::from(head)] = vec![head];
        self.expose(head);
        Some(head)
    }

    /// Makes the chain from `head` on available, whatever is there.
    pub fn expose(&mut self, head: u16) {
        let slot = self.available + 4 + u64::from(self.next % self.size) * 2;
        self.memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        self.next = self.next.wrapping_add(1);
        self.memory.store(self.next.to_le(), GuestAddress(self.available + 2), Ordering::Release).unwrap();
    }

    /// Sets the available index to anything.
    pub fn set_available_index(&mut self, index: u16) {
        self.next = index;
        self.memory.store(index.to_le(), GuestAddress(self.available + 2), Ordering::Release).unwrap();
    }

    fn load(&self, at: u64) -> u16 {
        u16::from_le(self.memory.load(GuestAddress(at), Ordering::Acquire).unwrap())
    }

    /// Notifies, whether or not the device wants it.
    pub fn notify(&mut self) {
        let address = IoAddress::Mmio(self.base + self.notify_at);
        if !self.vm.guest().write(address, u64::from(self.index), 2) {
            self.exits += 1;
            self.function.write_bar(self.notify_bar, self.notify_at, &self.index.to_le_bytes());
        }
    }

    /// Notifies if the device wants it, for `added` new chains.
    pub fn kick(&mut self, added: u16) -> bool {
        fence(Ordering::SeqCst);
        let wanted = if self.has(EVENT_IDX) {
            let event = self.load(self.used + 4 + u64::from(self.size) * 8);
            self.next.wrapping_sub(event).wrapping_sub(1) < added
        } else {
            self.load(self.used) & 1 == 0
        };
        if wanted {
            self.notify();
        }
        wanted
    }

    /// Asks for an interrupt for the `n`-th next chain (1 is the next), or, without EVENT_IDX, for any.
    pub fn want_interrupt(&self, n: u16) {
        if self.has(EVENT_IDX) {
            let event = self.seen.wrapping_add(n - 1).to_le();
            let at = self.available + 4 + u64::from(self.size) * 2;
            self.memory.store(event, GuestAddress(at), Ordering::Release).unwrap();
        }
    }

    /// Sets the available ring's flags.
    pub fn set_available_flags(&self, flags: u16) {
        self.memory.store(flags.to_le(), GuestAddress(self.available), Ordering::Release).unwrap();
    }

    /// The next chain that the device has used: head, bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.load(self.used + 2) == self.seen {
            return None;
        }
        let at = self.used + 4 + u64::from(self.seen % self.size) * 8;
        let entry: [u8; 8] = self.memory.read_obj(GuestAddress(at)).unwrap();
        let [h0, h1, h2, h3, l0, l1, l2, l3] = entry;
        let head = u16::try_from(u32::from_le_bytes([h0, h1, h2, h3])).unwrap();
        self.seen = self.seen.wrapping_add(1);
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        self.free.extend(chain);
        Some((head, u32::from_le_bytes([l0, l1, l2, l3])))
    }

    pub fn wait_used(&mut self) -> (u16, u32) {
        wait_for("a used buffer", || self.take_used())
    }
}
