// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory that the guest and the tests share: `struct mailbox` of `resources/metal/metal.h`.

use std::fmt;
use std::sync::atomic::Ordering;

use irq_types::Intid;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// `MAGIC`.
const MAGIC: u64 = 0x4c45_4d2d_4c4c_4542;
/// `CPUS`: the most that there is room for.
pub(super) const CPUS: u32 = 8;
/// `WIRE_SLOTS`: the places of wires in each table.
const WIRE_SLOTS: u64 = 1024;
/// `SLOTS`: the places in all. LPIs follow the wires.
const SLOTS: u64 = 2048;

// Offsets in bytes, in the order of the structure.
const SIZE: u64 = 8;
const GIC: u64 = 16;
const HEAP: u64 = 56;
const EXCEPTION: u64 = 72;
const CPU: u64 = 128;
const CPU_SIZE: u64 = 128;
const CPU_RESULT: u64 = 48;
const CPU_STOP: u64 = 56;
const CPU_CAUSELESS: u64 = 64;
const CPU_SPECIAL: u64 = 80;
const KIND: u64 = CPU + CPUS as u64 * CPU_SIZE;
const SENT: u64 = KIND + 8 * SLOTS;
const SEEN: u64 = SENT + 8 * SLOTS;
const DEVICE: u64 = SEEN + 8 * SLOTS;
const LOWERED: u64 = DEVICE + 32 * WIRE_SLOTS;
const COUNT: u64 = LOWERED + 8 * WIRE_SLOTS;
/// The whole of it.
pub(super) const END: u64 = COUNT + 8 * SLOTS * CPUS as u64;

/// How the guest deals with a wire's interrupt (`enum kind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Configured as edge. It is counted.
    Edge,
    /// Configured as level. One item is taken from each device on the line.
    Level,
    /// The same, and the guest waits for [`Mailbox::set_lowered`] before the EOI: a device whose wire really falls when the guest has dealt with it.
    Lowered,
}

impl Kind {
    pub(super) const fn code(self) -> u64 {
        match self {
            Self::Edge => 0,
            Self::Level => 1,
            Self::Lowered => 2,
        }
    }
}

/// Where everything is that the guest has to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) gic_version: u64,
    pub(super) distributor: u64,
    pub(super) cpu_interface: u64,
    pub(super) redistributors: u64,
    pub(super) its: u64,
    pub(super) heap: u64,
    pub(super) heap_end: u64,
}

/// The mailbox. All that is in it may be read and written at any time, by the guest too: each access is atomic.
#[derive(Debug, Clone)]
pub struct Mailbox {
    memory: GuestMemoryMmap,
    base: u64,
}

fn slot(intid: Intid) -> u64 {
    match intid {
        Intid::Lpi(lpi) => WIRE_SLOTS + u64::from(lpi.get() - 8192),
        wire => u64::from(wire.get()),
    }
}

impl Mailbox {
    pub(super) fn new(memory: GuestMemoryMmap, base: u64, addresses: Addresses) -> Self {
        let this = Self { memory, base };
        let Addresses { gic_version, distributor, cpu_interface, redistributors, its, heap, heap_end } =
            addresses;
        for (n, value) in
            (0..).zip([gic_version, distributor, cpu_interface, redistributors, its, heap, heap_end])
        {
            this.write(GIC + 8 * n, value);
        }
        assert_eq!(this.read(HEAP), heap);
        this.write(0, MAGIC);
        this
    }

    fn read(&self, offset: u64) -> u64 {
        self.memory.load(GuestAddress(self.base + offset), Ordering::SeqCst).unwrap()
    }

    fn write(&self, offset: u64, value: u64) {
        self.memory.store(value, GuestAddress(self.base + offset), Ordering::SeqCst).unwrap();
    }

    /// The size that the guest believes the mailbox has, once it is up.
    pub(super) fn size(&self) -> u64 {
        self.read(SIZE)
    }

    /// `ESR_EL1`, `ELR_EL1` and `FAR_EL1` of an exception that the guest had no use for.
    pub(super) fn exception(&self) -> [u64; 3] {
        [0, 8, 16].map(|n| self.read(EXCEPTION + n))
    }

    pub(super) fn set_arguments(&self, cpu: u32, arguments: &[u64]) {
        assert!(arguments.len() <= 6);
        for (n, argument) in (0..).zip(arguments) {
            self.write(cpu_at(cpu) + 8 * n, *argument);
        }
    }

    pub(super) fn result(&self, cpu: u32) -> u64 {
        self.read(cpu_at(cpu) + CPU_RESULT)
    }

    pub(super) fn set_stop(&self, cpu: u32, stop: bool) {
        self.write(cpu_at(cpu) + CPU_STOP, stop.into());
    }

    /// How often a CPU was interrupted by a level-triggered line on which no device had anything to say.
    #[must_use]
    pub fn causeless(&self) -> u64 {
        (0..CPUS).map(|cpu| self.read(cpu_at(cpu) + CPU_CAUSELESS)).sum()
    }

    /// How often a CPU acknowledged one of the INTIDs 1020 to 1022, which our guest never should.
    #[must_use]
    pub fn special(&self) -> u64 {
        (0..CPUS).map(|cpu| self.read(cpu_at(cpu) + CPU_SPECIAL)).sum()
    }

    /// How often a CPU has taken the interrupt.
    #[must_use]
    pub fn count_on(&self, cpu: u32, intid: Intid) -> u64 {
        self.read(COUNT + 8 * (SLOTS * u64::from(cpu) + slot(intid)))
    }

    /// How often all CPUs together have taken the interrupt.
    #[must_use]
    pub fn count(&self, intid: Intid) -> u64 {
        (0..CPUS).map(|cpu| self.count_on(cpu, intid)).sum()
    }

    /// Says what the next signal of an interrupt is about.
    pub fn set_sent(&self, intid: Intid, what: u64) {
        self.write(SENT + 8 * slot(intid), what);
    }

    /// What the handler that ran last knew to have been sent.
    #[must_use]
    pub fn seen(&self, intid: Intid) -> u64 {
        self.read(SEEN + 8 * slot(intid))
    }

    /// The device `n` (0 or 1) on a line has had `items` to say in all.
    pub fn post(&self, intid: Intid, n: u32, items: u64) {
        self.write(device_at(intid, n), items);
    }

    /// How many of a device's items the guest has taken.
    #[must_use]
    pub fn handled(&self, intid: Intid, n: u32) -> u64 {
        self.read(device_at(intid, n) + 8)
    }

    /// Whether a device has something to say.
    #[must_use]
    pub fn has_items(&self, intid: Intid, n: u32) -> bool {
        self.read(device_at(intid, n)) != self.handled(intid, n)
    }

    /// The wire of a line of kind [`Kind::Lowered`] has been lowered after the guest had taken `handled` items.
    pub fn set_lowered(&self, intid: Intid, handled: u64) {
        self.write(LOWERED + 8 * slot(intid), handled);
    }
}

fn cpu_at(cpu: u32) -> u64 {
    assert!(cpu < CPUS);
    CPU + CPU_SIZE * u64::from(cpu)
}

fn device_at(intid: Intid, n: u32) -> u64 {
    assert!(n < 2 && !matches!(intid, Intid::Lpi(_)));
    DEVICE + 32 * slot(intid) + 16 * u64::from(n)
}

impl fmt::Display for Mailbox {
    /// Whatever has been counted, for a person who asks where an interrupt is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for n in 0..SLOTS {
            let counts: Vec<u64> =
                (0..CPUS).map(|cpu| self.read(COUNT + 8 * (SLOTS * u64::from(cpu) + n))).collect();
            if counts.iter().any(|&count| count != 0) {
                let intid = if n < WIRE_SLOTS { n } else { n - WIRE_SLOTS + 8192 };
                writeln!(f, "INTID {intid}: taken by CPU {counts:?}")?;
            }
        }
        write!(f, "{} causeless, {} special", self.causeless(), self.special())
    }
}
