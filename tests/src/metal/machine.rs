// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VM with the bare-metal guest in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gsi_routing::{GsiHandle, Router, models};
use irq_types::{Intid, Spi};
use irqfd::Wiring;
use kvm_ioctls::Kvm;
use kvm_irqchip::KvmVm;
use vgic::{GicLayout, GicRequest, GicVersion, HostGic, InitializedVgic, Vgic};
use vm_memory::GuestMemoryMmap;

use super::cpu::{Cpu, WATCHDOG};
use super::mailbox::{self, Addresses};
use super::{Command, Kind, Mailbox, Returns, Serving, Slots, vcpu};
use crate::contract::kvm_memory::Memory;

/// The second GiB of the guest-physical addresses is what the guest's translation table has as memory.
const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 16 << 20;
const MAILBOX: u64 = RAM + (2 << 20);
const HEAP: u64 = RAM + (4 << 20);
const HEAP_END: u64 = RAM + (12 << 20);
const UNUSED: u64 = HEAP_END;
/// The first GiB has the registers.
const GIC_WINDOW: std::ops::Range<u64> = 0x0800_0000..0x0900_0000;

/// How long to wait before looking again.
const LOOK_AGAIN: Duration = Duration::from_micros(50);
/// How long something takes before it is worth noting what has been counted so far, which is some thousand reads.
const NOTE_AFTER: Duration = Duration::from_secs(1);

/// A machine whose guest is up, with its GIC (and its ITS, if there is one) switched on. Its CPUs wait for commands.
///
/// Fields are dropped in this order: the CPUs stop first, and the memory goes last.
#[derive(Debug)]
pub struct Machine {
    cpus: Vec<Cpu>,
    wiring: Wiring,
    gic: InitializedVgic,
    vm: Arc<KvmVm>,
    mailbox: Mailbox,
    memory: Memory,
}

impl Machine {
    /// A machine, or a line that says why `test` cannot have one here. `needed` is what KVM must offer, and `what` how that is called.
    ///
    /// # Panics
    /// If the machine does not come up: that is a failed test.
    #[must_use]
    pub fn start(
        test: &str,
        request: GicRequest,
        needed: impl Fn(HostGic) -> bool,
        what: &str,
    ) -> Option<Self> {
        let skip = |reason: String| {
            println!("SKIP {test}: {reason}");
            None
        };
        let Ok(image) = std::env::var("DOORBELL_METAL") else {
            return skip("DOORBELL_METAL does not name the guest's image".to_owned());
        };
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(e) => return skip(format!("/dev/kvm: {e}")),
        };
        let vm = Arc::new(KvmVm::new(Arc::new(kvm.create_vm().unwrap())));
        let host = HostGic::probe(&*vm).unwrap();
        if !needed(host) {
            return skip(format!("this needs {what}; KVM here offers {host}"));
        }
        Some(Self::build(vm, request, &std::fs::read(image).unwrap()))
    }

    /// As a VMM does it, in the order that KVM wants.
    fn build(vm: Arc<KvmVm>, request: GicRequest, image: &[u8]) -> Self {
        let config = request.resolve_on(&*vm).unwrap();
        assert!(config.vcpus() <= mailbox::CPUS);
        let memory = Memory::attach(vm.fd(), RAM, RAM_SIZE);
        memory.write(RAM, image);
        let layout = GicLayout::solve(&config, &[GIC_WINDOW]).unwrap();
        let addresses = Addresses {
            gic_version: if config.version() == GicVersion::V2 { 2 } else { 3 },
            distributor: layout.distributor().base,
            cpu_interface: layout.cpu_interface().map_or(0, |region| region.base),
            redistributors: layout.redistributor_regions().first().map_or(0, |region| region.mmio().base),
            its: layout.its_frames().first().map_or(0, |region| region.base),
            heap: HEAP,
            heap_end: HEAP_END,
        };
        let gic = Vgic::create(&*vm, config).unwrap().set_addresses(layout).unwrap();
        let vcpus: Vec<_> = (0..config.vcpus()).map(|index| vcpu::create(vm.fd(), index)).collect();
        let gic = gic.vcpus_final(config.vcpus()).unwrap().init().unwrap();
        let wiring = Wiring::new(Arc::clone(&vm) as _, router(&vm, &gic)).unwrap();

        let mailbox = Mailbox::new(memory.map().clone(), MAILBOX, addresses);
        vcpu::set_start(&vcpus[0], RAM, MAILBOX);
        let cpus = (0..).zip(vcpus).map(|(n, vcpu)| Cpu::start(n, vcpu, mailbox.clone())).collect();
        let machine = Self { cpus, wiring, gic, vm, mailbox, memory };
        machine.bring_up(addresses.its != 0);
        machine
    }

    fn bring_up(&self, its: bool) {
        self.cpus[0].wait_until_idle("to start", || {});
        assert_eq!(self.mailbox.size(), mailbox::END, "the guest has another idea of the mailbox");
        for (n, cpu) in (0..).zip(&self.cpus) {
            if n != 0 {
                assert_eq!(self.call(0, Command::CpuOn(n)), 0, "PSCI's answer to CPU_ON");
                cpu.wait_until_idle("to be turned on", || {});
            }
            self.call(n, Command::StartGic);
        }
        if its {
            self.call(0, Command::StartIts(u32::try_from(self.cpus.len()).unwrap()));
        }
    }

    /// The memory that the guest and the test share.
    #[must_use]
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// All of the guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.memory.map()
    }

    /// Where in it nobody keeps anything.
    #[must_use]
    pub fn unused(&self) -> u64 {
        UNUSED
    }

    /// What triggers and vectors are wired to.
    #[must_use]
    pub fn wiring(&self) -> &Wiring {
        &self.wiring
    }

    /// The GIC.
    #[must_use]
    pub fn gic(&self) -> &InitializedVgic {
        &self.gic
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &Arc<KvmVm> {
        &self.vm
    }

    /// What makes registers of devices memory of the guest.
    #[must_use]
    pub fn slots(&self) -> Slots {
        Slots::new(&self.vm)
    }

    /// Claims the GSI of an SPI.
    ///
    /// # Panics
    /// If it is taken.
    #[must_use]
    pub fn line(&self, spi: Spi) -> Arc<GsiHandle> {
        Arc::new(self.wiring.router().claim_spi(spi).unwrap())
    }

    /// Has an idle CPU carry out a command, and returns what it answers.
    ///
    /// # Panics
    /// If the guest fails or hangs.
    pub fn call(&self, cpu: u32, command: Command) -> u64 {
        self.cpus[cpu as usize].call(command)
    }

    /// The guest configures a wire, has it interrupt `cpu`, and enables it. Private wires are set up by the CPU itself.
    pub fn wire(&self, intid: Intid, kind: Kind, cpu: u32) {
        let by = if matches!(intid, Intid::Spi(_)) { 0 } else { cpu };
        self.call(by, Command::Wire(intid, kind, cpu));
    }

    /// One CPU takes interrupts until the guard is dropped.
    #[must_use]
    pub fn serve_on(&self, cpu: u32) -> Serving<'_> {
        self.cpus[cpu as usize].serve()
    }

    /// All CPUs take interrupts until the guards are dropped.
    #[must_use]
    pub fn serve(&self) -> Vec<Serving<'_>> {
        self.cpus.iter().map(Cpu::serve).collect()
    }

    /// Brings the guest back, which takes whatever is still pending. Then the counts are final.
    ///
    /// # Panics
    /// If an interrupt came that there was no reason for.
    pub fn finish(&self, serving: impl Sized) {
        drop(serving);
        assert_eq!((self.mailbox.causeless(), self.mailbox.special()), (0, 0), "interrupts without reason");
    }

    /// Waits for something that the guest or another thread is about to do.
    ///
    /// # Panics
    /// If a CPU stops, or nothing comes for so long that nothing will.
    pub fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let mut deadline = Instant::now() + NOTE_AFTER;
        let mut before = None;
        while !condition() {
            // Not a busy wait: the host may have no more CPUs than the guest.
            std::thread::sleep(LOOK_AGAIN);
            if let Some(why) = self.cpus.iter().find_map(Cpu::ended) {
                panic!("while waiting for {what}: {why}");
            }
            if Instant::now() > deadline {
                // As long as interrupts arrive it is slow, not stuck: others may want the same CPUs.
                let now = self.mailbox.to_string();
                assert!(before.as_ref() != Some(&now), "waited in vain for {what}; so far:\n{now}");
                (before, deadline) = (Some(now), Instant::now() + WATCHDOG);
            }
        }
    }

    /// Starts counting how often the vCPUs return to userspace.
    #[must_use]
    pub fn returns(&self) -> Returns<'_> {
        Returns::new(&self.cpus)
    }

    /// The guest switches itself off.
    ///
    /// # Panics
    /// If it does not.
    pub fn power_off(self) {
        self.cpus[0].begin_power_off();
        assert_eq!(self.cpus[0].wait_until_ended(), "powered off");
    }
}

/// The VM's routing table, which knows of the frame that takes MSIs if there is one.
fn router(vm: &Arc<KvmVm>, gic: &InitializedVgic) -> Router {
    let (sink, ready, model) = (Arc::clone(vm) as _, gic.ready(), &models::ARM_GIC);
    match gic.v2m_frame() {
        None => Router::new(sink, &**vm, ready, model),
        Some(frame) => {
            let (setspi, spis) = (frame.doorbell(), frame.spis());
            let frame = gsi_routing::V2mFrame { setspi, first: spis.first(), count: spis.count() };
            Router::with_v2m(sink, &**vm, ready, model, frame)
        }
    }
    .unwrap()
}
