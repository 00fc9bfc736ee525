// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's teaching device edu in a bare-metal guest: a device that interrupts whenever it is told to, by its line or by messages, and reads and
//! writes memory. What Linux would take thousands of instructions and some exits for, the guest's handler takes three register accesses.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;

use doorbell_tests::metal::{Command, EventLoop, Kind, Machine};
use doorbell_tests::{bind_or_skip, host_or_skip, test_name};
use irq_types::{Bdf, DeviceId, EventId, Intid, Lpi, MsiMessage, Spi};
use pci::{IntxPin, PciFunction};
use vfio_passthrough::host::Sysfs;
use vfio_passthrough::iommu::{HostFiles, IommuChoice};
use vfio_passthrough::pci::{InterruptMode, PciEvent, PciOptions, VfioPciFunction};
use vfio_passthrough::{DmaSpaces, ResamplePath};
use vgic::{GicRequest, MsiChoice};
use vm_memory::{Bytes, GuestAddress};

const EDU: &str = "0000:00:09.0";
/// Where the guest has its registers; and which function it is on a bus that nobody looks at.
const REGISTERS: u64 = 0x1000_0000;
const REQUESTER: u16 = 0x48;
const LINE: u32 = 5;

/// Registers (QEMU, `docs/specs/edu.rst`): identification, what is raised; source, destination, length and command of DMA.
const IDENTIFICATION: u64 = 0;
const STATUS: u64 = 0x24;
const DMA: u64 = 0x80;
const DMA_COMMAND: u64 = 0x98;
/// Where its own 4 KiB of memory are, for its DMA.
const BUFFER: u64 = 0x4_0000;
const DMA_RUN: u64 = 1;
const DMA_TO_MEMORY: u64 = 2;
const DMA_INTERRUPTS: u64 = 4;

/// A machine with the device, as a VMM puts it there. The device goes first.
struct Rig {
    edu: Arc<VfioPciFunction>,
    machine: Machine,
}

impl Rig {
    fn new(machine: Machine, resample: ResamplePath) -> Self {
        let sysfs = Sysfs::new();
        let spaces = DmaSpaces::new(Arc::new(HostFiles::default()), machine.memory().clone());
        let device = spaces.open(&sysfs.pci_device(EDU).unwrap(), IommuChoice::Auto).unwrap();
        let spi = Spi::new(LINE).unwrap();
        machine.wire(spi.intid(), Kind::Level, 0);
        let options = PciOptions {
            wiring: machine.wiring().clone(),
            line: Some((IntxPin::A, machine.line(spi))),
            resample,
            slots: Arc::new(machine.slots()),
            on_root_bus: true,
            dma: true,
            device_id_base: 0,
            events: Arc::new(|event| {
                if let PciEvent::Trouble(trouble) = event {
                    eprintln!("trouble: {trouble}");
                }
            }),
        };
        let edu = VfioPciFunction::new(device, options).unwrap();
        edu.set_bdf(Bdf::from_requester_id(REQUESTER));
        let this = Self { edu, machine };
        this.set_config(0x10, &u32::try_from(REGISTERS).unwrap().to_le_bytes());
        // Memory, bus master.
        this.set_config(4, &[6, 0]);
        assert_eq!(this.read(IDENTIFICATION), 0x0100_00ed);
        this
    }

    fn set_config(&self, at: u16, bytes: &[u8]) {
        self.edu.write_config(at, bytes);
        // What a bus does after each write.
        self.edu.placed(&self.edu.decoded());
    }

    fn config(&self, at: u16) -> u8 {
        let mut byte = [0];
        self.edu.read_config(at, &mut byte);
        byte[0]
    }

    fn read(&self, register: u64) -> u64 {
        self.machine.call(0, Command::Read(REGISTERS + register))
    }

    fn write(&self, register: u64, value: u64) {
        self.machine.call(0, Command::Write(REGISTERS + register, value));
    }

    /// Where its MSI capability is.
    fn msi(&self) -> u16 {
        let mut at = self.config(0x34).into();
        while self.config(at) != 5 {
            at = self.config(at + 1).into();
            assert_ne!(at, 0, "it has no MSI capability");
        }
        at
    }

    /// Enables MSI with this message, as a driver does.
    fn enable_msi(&self, message: MsiMessage) {
        let at = self.msi();
        assert_ne!(self.config(at + 2) & 0x80, 0, "64-bit addresses");
        self.set_config(at + 4, &u32::try_from(message.address & 0xffff_ffff).unwrap().to_le_bytes());
        self.set_config(at + 8, &u32::try_from(message.address >> 32).unwrap().to_le_bytes());
        self.set_config(at + 12, &u16::try_from(message.data).unwrap().to_le_bytes());
        self.set_config(at + 2, &[self.config(at + 2) | 1]);
    }

    /// Has the device interrupt `rounds * (1 + again)` times, ten times over: each arrives exactly once, and the vCPU returns to userspace once for each of the
    /// ten commands, to ask for the next.
    fn raise(&self, test: &str, intid: Intid, rounds: u64, again: u64) {
        let before = self.machine.mailbox().count(intid);
        let returns = self.machine.returns();
        for _ in 0..10 {
            self.machine.call(0, Command::Raise { intid, registers: REGISTERS, rounds, again });
        }
        let (own, kernel) = (returns.own(), returns.kernel());
        let total = 10 * rounds * (1 + again);
        println!("{test}: {total} interrupts, KVM_RUN returned {own} times; kvm_userspace_exit: {kernel:?}");
        assert_eq!(own, 10, "a return for each command, and none for interrupts");
        assert_eq!(kernel, Some(own), "the kernel counts what we count");
        // Whatever came twice, or is still pending, comes now.
        drop(self.machine.serve());
        assert_eq!(self.machine.mailbox().count(intid) - before, total);
        assert_eq!((self.machine.mailbox().causeless(), self.machine.mailbox().special()), (0, 0));
        assert_eq!(self.read(STATUS), 0, "nothing is left to say");
    }
}

fn start(test: &str, msi: MsiChoice) -> Option<Machine> {
    let request = GicRequest { msi, ..GicRequest::default() };
    Machine::start(test, request, |host| host.v2 || host.v3, "a GIC")
}

fn line() -> Intid {
    Spi::new(LINE).unwrap().intid()
}

#[test]
fn of_100_000_interrupts_of_a_line_each_arrives_once_and_none_is_stuck_or_passes_userspace() {
    let test = test_name!();
    let host = host_or_skip!();
    let _edu = bind_or_skip!(&host, EDU);
    let Some(machine) = start(test, MsiChoice::default()) else { return };
    let rig = Rig::new(machine, ResamplePath::Kernel);
    // Half of them by a line that rises; half by one that is high again, or still, when the end of the interrupt has it unmasked.
    rig.raise(test, line(), 5_000, 1);
    let state = rig.edu.interrupts();
    assert_eq!(state.mode, InterruptMode::Intx);
    assert!(!state.line.as_ref().unwrap().high, "{state:?}");
}

#[test]
fn the_way_back_through_the_event_loop_loses_nothing_either() {
    let test = test_name!();
    let host = host_or_skip!();
    let _edu = bind_or_skip!(&host, EDU);
    let Some(machine) = start(test, MsiChoice::default()) else { return };
    let rig = Rig::new(machine, ResamplePath::EventLoop);
    let events = EventLoop::of(rig.edu.resampler());
    rig.raise(test, line(), 250, 1);
    drop(events);
}

/// From the line to messages and back, in the middle of it all.
#[test]
fn messages_arrive_once_each_and_the_line_works_before_and_after() {
    let test = test_name!();
    let host = host_or_skip!();
    let _edu = bind_or_skip!(&host, EDU);
    let Some(machine) = start(test, MsiChoice::default()) else { return };
    let rig = Rig::new(machine, ResamplePath::Kernel);
    let lpi = Lpi::new(8192).unwrap();
    let (intid, message) = match (rig.machine.gic().layout().its_doorbell(0), rig.machine.gic().v2m_frame()) {
        (Some(address), _) => {
            let sender = DeviceId::new(REQUESTER.into());
            rig.machine.call(0, Command::MapDevice(sender, 4));
            rig.machine.call(0, Command::MapEvent(sender, EventId::new(3), lpi, 0));
            (lpi.intid(), MsiMessage { address, data: 3 })
        }
        (None, Some(frame)) => {
            let spi = frame.spis().first();
            rig.machine.wire(spi.intid(), Kind::Edge, 0);
            (spi.intid(), frame.message(spi).unwrap())
        }
        (None, None) => panic!("this machine takes no messages"),
    };
    for round in 1..=3 {
        rig.raise(test, line(), 20, 1);
        rig.enable_msi(message);
        assert_eq!(rig.edu.interrupts().mode, InterruptMode::Msi, "round {round}");
        rig.raise(test, intid, 1_000, 1);
        let at = rig.msi();
        rig.set_config(at + 2, &[rig.config(at + 2) & !1]);
        assert_eq!(rig.edu.interrupts().mode, InterruptMode::Intx);
    }
}

#[test]
fn the_device_reads_and_writes_the_guests_memory_and_says_when_it_has() {
    let test = test_name!();
    let host = host_or_skip!();
    let _edu = bind_or_skip!(&host, EDU);
    let Some(machine) = start(test, MsiChoice::default()) else { return };
    let rig = Rig::new(machine, ResamplePath::Kernel);
    let memory = rig.machine.memory().clone();
    let unused = rig.machine.unused();
    let dma = |source: u64, destination: u64, direction: u64| {
        let done = rig.machine.mailbox().count(line());
        for (register, value) in (0..).zip([source, destination, 4096]) {
            rig.write(DMA + 8 * register, value);
        }
        rig.write(DMA_COMMAND, DMA_RUN | direction | DMA_INTERRUPTS);
        let serving = rig.machine.serve();
        rig.machine.until("the transfer to end", || rig.machine.mailbox().count(line()) > done);
        drop(serving);
        assert_eq!(rig.machine.mailbox().count(line()), done + 1);
        assert_eq!(rig.read(STATUS), 0);
    };
    // The guest knows now whom the line is from.
    rig.machine.call(0, Command::Raise { intid: line(), registers: REGISTERS, rounds: 0, again: 0 });
    let there: Vec<u8> = (0..4096_u32).map(|n| n.wrapping_mul(167).to_le_bytes()[0] ^ 0x5a).collect();
    for round in 0..4_u64 {
        let (from, to) = (unused + 0x2000 * round, unused + 0x10_0000 + 0x3000 * round);
        memory.write_slice(&there, GuestAddress(from)).unwrap();
        memory.write_slice(&[0; 4096], GuestAddress(to)).unwrap();
        dma(from, BUFFER, 0);
        dma(BUFFER, to, DMA_TO_MEMORY);
        let mut back = vec![0; 4096];
        memory.read_slice(&mut back, GuestAddress(to)).unwrap();
        assert_eq!(back, there, "round {round}");
    }
}
