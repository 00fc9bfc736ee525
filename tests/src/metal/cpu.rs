// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One of the guest's CPUs as a test sees it: something that carries out commands, or serves interrupts.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use irq_types::{DeviceId, EventId, Intid, Lpi, Sgi};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::vcpu::{self, Shared};
use super::{Kind, Mailbox};

/// Nothing that a test waits for takes this long. It is there to end a test that would hang, with a word of why.
pub(super) const WATCHDOG: Duration = Duration::from_secs(120);
/// How long to wait before ringing again at a vCPU that may have missed it.
const RING_AGAIN: Duration = Duration::from_millis(1);

/// What the guest can be asked to do (`enum command`). CPUs are numbers from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Switches on this CPU's part of the GIC; CPU 0's also the distributor.
    StartGic,
    /// Turns on another CPU.
    CpuOn(u32),
    /// Configures a wire, routes it to a CPU, enables it.
    Wire(Intid, Kind, u32),
    /// Enables or disables a wire.
    Enable(Intid, bool),
    /// Sends a CPU `count` SGIs from `first` on, `rounds` times; the next round when all of one have been counted.
    Sgis {
        /// To whom.
        cpu: u32,
        /// The first of them.
        first: Sgi,
        /// How many.
        count: u32,
        /// How often.
        rounds: u64,
    },
    /// Switches on the ITS with a collection for each of that many CPUs.
    StartIts(u32),
    /// Gives a device a table of 2^bits events.
    MapDevice(DeviceId, u32),
    /// Makes a device's event an LPI of a CPU.
    MapEvent(DeviceId, EventId, Lpi, u32),
    /// Forgets a device's event.
    Discard(DeviceId, EventId),
    /// Moves an event to another CPU.
    Move(DeviceId, EventId, u32),
    /// Enables or disables the LPI of an event.
    EnableLpi(DeviceId, EventId, Lpi, bool),
    /// Takes interrupts until told to stop; see [`Machine::serve`](super::Machine::serve).
    Serve,
    /// Switches the machine off.
    PowerOff,
    /// Has an edu device that is passed through interrupt this CPU: in each round once from here and `again` times from the handler, before it ends the
    /// interrupt; the next round when all of one have been counted.
    Raise {
        /// What its interrupt is here.
        intid: Intid,
        /// Where its registers are.
        registers: u64,
        /// How often from here.
        rounds: u64,
        /// How often from the handler after each of these.
        again: u64,
    },
    /// Writes 64 bits to a register.
    Write(u64, u64),
    /// Reads 32 bits of a register.
    Read(u64),
}

impl Command {
    fn encode(self) -> (u64, Vec<u64>) {
        let (code, arguments): (u64, &[u64]) = match self {
            Self::StartGic => (1, &[]),
            Self::CpuOn(cpu) => (2, &[cpu.into()]),
            Self::Wire(intid, kind, cpu) => (3, &[intid.get().into(), kind.code(), cpu.into()]),
            Self::Enable(intid, enabled) => (4, &[intid.get().into(), enabled.into()]),
            Self::Serve => (5, &[]),
            Self::Sgis { cpu, first, count, rounds } => {
                (6, &[cpu.into(), first.get().into(), count.into(), rounds])
            }
            Self::StartIts(cpus) => (7, &[cpus.into()]),
            Self::MapDevice(device, bits) => (8, &[device.get().into(), bits.into()]),
            Self::MapEvent(device, event, lpi, cpu) => {
                (9, &[device.get().into(), event.get().into(), lpi.get().into(), cpu.into()])
            }
            Self::Discard(device, event) => (10, &[device.get().into(), event.get().into()]),
            Self::Move(device, event, cpu) => (11, &[device.get().into(), event.get().into(), cpu.into()]),
            Self::EnableLpi(device, event, lpi, enabled) => {
                (12, &[device.get().into(), event.get().into(), lpi.get().into(), enabled.into()])
            }
            Self::PowerOff => (13, &[]),
            Self::Raise { intid, registers, rounds, again } => {
                (14, &[intid.get().into(), registers, rounds, again])
            }
            Self::Write(address, value) => (15, &[address, value]),
            Self::Read(address) => (16, &[address]),
        };
        (code, arguments.to_vec())
    }
}

/// A CPU and the thread that runs it.
#[derive(Debug)]
pub(super) struct Cpu {
    index: u32,
    mailbox: Mailbox,
    shared: Arc<Shared>,
    commands: Option<Sender<u64>>,
    /// Has a message for each time that the guest asked for a command.
    idle: Mutex<Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Cpu {
    /// Runs a vCPU in a thread of its own.
    pub(super) fn start(index: u32, vcpu: VcpuFd, mailbox: Mailbox) -> Self {
        // Without a handler the signal that brings a vCPU out of the guest would end the process.
        register_signal_handler(SIGRTMIN(), nothing).unwrap();
        let shared = Arc::new(Shared::default());
        let (commands, theirs) = mpsc::channel();
        let (asks, idle) = mpsc::channel();
        let thread = thread::Builder::new().name(format!("vcpu{index}"));
        let other = Arc::clone(&shared);
        let thread = thread.spawn(move || vcpu::run(vcpu, &other, &asks, &theirs)).unwrap();
        Self {
            index,
            mailbox,
            shared,
            commands: Some(commands),
            idle: Mutex::new(idle),
            thread: Some(thread),
        }
    }

    pub(super) fn returns(&self) -> u64 {
        self.shared.returns.load(Ordering::SeqCst)
    }

    pub(super) fn tid(&self) -> u64 {
        self.shared.tid.load(Ordering::SeqCst)
    }

    /// Why the CPU has stopped, if it has.
    pub(super) fn ended(&self) -> Option<String> {
        let why = self.shared.ended.lock().unwrap().clone()?;
        let [esr, elr, far] = self.mailbox.exception();
        Some(format!("vCPU {}: {why} (exception: ESR {esr:#x} ELR {elr:#x} FAR {far:#x})", self.index))
    }

    fn begin(&self, command: Command) {
        let (code, arguments) = command.encode();
        self.mailbox.set_arguments(self.index, &arguments);
        self.commands.as_ref().expect("it is only taken when the CPU is dropped").send(code).unwrap();
    }

    /// Waits until the guest asks for its next command. `meanwhile` is done now and then.
    pub(super) fn wait_until_idle(&self, what: &str, mut meanwhile: impl FnMut()) {
        let deadline = Instant::now() + WATCHDOG;
        let idle = self.idle.lock().unwrap();
        loop {
            match idle.recv_timeout(RING_AGAIN) {
                Ok(()) => return,
                Err(RecvTimeoutError::Timeout) if self.shared.ended.lock().unwrap().is_none() => {}
                Err(_) => {
                    panic!("{what}: {}", self.ended().unwrap_or_else(|| "the thread is gone".to_owned()))
                }
            }
            assert!(Instant::now() < deadline, "vCPU {} hangs: {what}\n{}", self.index, self.mailbox);
            meanwhile();
        }
    }

    /// Has an idle CPU carry out a command.
    pub(super) fn call(&self, command: Command) -> u64 {
        self.begin(command);
        self.wait_until_idle(&format!("{command:?}"), || {});
        self.mailbox.result(self.index)
    }

    /// The guest has switched itself off.
    pub(super) fn wait_until_ended(&self) -> String {
        let deadline = Instant::now() + WATCHDOG;
        loop {
            if let Some(why) = self.shared.ended.lock().unwrap().clone() {
                return why;
            }
            assert!(Instant::now() < deadline, "vCPU {} does not end", self.index);
            thread::sleep(RING_AGAIN);
        }
    }

    pub(super) fn begin_power_off(&self) {
        self.begin(Command::PowerOff);
    }

    pub(super) fn serve(&self) -> Serving<'_> {
        self.begin(Command::Serve);
        Serving { cpu: self }
    }

    /// Brings it out of the guest, if it is there at this moment.
    fn ring(&self) {
        if let Some(thread) = self.thread.as_ref().filter(|thread| !thread.is_finished()) {
            // It fails only for a thread that is gone.
            let _ = thread.kill(SIGRTMIN());
        }
    }
}

/// A CPU that takes interrupts. Dropping it brings the CPU back, when all interrupts that are pending have been taken.
#[derive(Debug)]
pub struct Serving<'a> {
    cpu: &'a Cpu,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let Self { cpu } = self;
        if thread::panicking() {
            // The thread is ended with the machine.
            return;
        }
        cpu.mailbox.set_stop(cpu.index, true);
        // A guest that sleeps, waiting for an interrupt, wakes when it has been out. One that was about to sleep needs another ring.
        cpu.wait_until_idle("to stop serving", || cpu.ring());
        cpu.mailbox.set_stop(cpu.index, false);
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.commands = None;
        self.shared.end.store(true, Ordering::SeqCst);
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            // A signal that comes before the thread is in the guest does nothing.
            self.ring();
            thread::sleep(RING_AGAIN);
        }
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}
