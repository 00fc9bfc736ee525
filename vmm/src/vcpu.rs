// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vCPUs: made, set up for booting Linux, run in threads of their own, stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use irq_types::Ppi;
use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT, KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE, KVM_MP_STATE_STOPPED, KVM_REG_ARM_CORE, KVM_REG_ARM64,
    KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_device_attr, kvm_regs, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::pause::{Counter, Pause};
use crate::sys::SharedPages;

/// Optional parts of a CPU, each of which the guest gets when the host has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Performance monitor.
    pub pmu: bool,
    /// Scalable vectors.
    pub sve: bool,
    /// Pointer authentication, address and generic keys.
    pub pauth: bool,
}

impl Features {
    /// What the host has for a VM.
    #[must_use]
    pub fn probe(vm: &VmFd) -> Self {
        Self {
            pmu: vm.check_extension(Cap::ArmPmuV3),
            sve: vm.check_extension(Cap::ArmSve),
            // KVM takes both kinds of keys or neither (`Documentation/virt/kvm/api.rst`, section 4.82).
            pauth: vm.check_extension(Cap::ArmPtrAuthAddress) && vm.check_extension(Cap::ArmPtrAuthGeneric),
        }
    }
}

impl Features {
    /// Their names, for people.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        [(self.pmu, "PMU"), (self.sve, "SVE"), (self.pauth, "pointer authentication")]
            .into_iter()
            .filter_map(|(has, name)| has.then_some(name))
            .collect()
    }
}

/// A vCPU that does not run yet.
#[derive(Debug)]
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
}

/// Why a vCPU does not run any more.
#[derive(Debug)]
pub enum Ending {
    /// PSCI SYSTEM_OFF.
    PowerOff,
    /// PSCI SYSTEM_RESET or SYSTEM_RESET2.
    Reset,
    /// Something that cannot be handled.
    Failed(Error),
    /// We were asked to stop.
    Stopped,
}

fn core_register(offset: usize) -> u64 {
    // Core registers are numbered in units of 32 bits (`Documentation/virt/kvm/api.rst`, section 4.68).
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | (offset / 4) as u64
}

fn pc_register() -> u64 {
    core_register(std::mem::offset_of!(kvm_regs, regs) + std::mem::offset_of!(user_pt_regs, pc))
}

fn x0_register() -> u64 {
    core_register(std::mem::offset_of!(kvm_regs, regs) + std::mem::offset_of!(user_pt_regs, regs))
}

/// `MPIDR_EL1` is system register op0 3, op1 0, CRn 0, CRm 0, op2 5.
const MPIDR_EL1: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | (3 << 14) | 5;

/// `KVM_REG_ARM_TIMER_CNT` of the kernel's `arch/arm64/include/uapi/asm/kvm.h`: op0 3, op1 3, CRn 14, CRm 3, op2 2.
const TIMER_CNT: u64 = KVM_REG_ARM64
    | KVM_REG_SIZE_U64
    | KVM_REG_ARM64_SYSREG as u64
    | (3 << 14)
    | (3 << 11)
    | (14 << 7)
    | (3 << 3)
    | 2;

impl Vcpu {
    /// Makes vCPU `index`. All but the first are off until the guest turns them on through PSCI.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(vm: &VmFd, index: u32, target: &kvm_vcpu_init, features: Features) -> Result<Self> {
        let failed = |what: &str, e: kvm_ioctls::Error| {
            Error::host(format!("cannot {what} vCPU {index}"))
                .because(e)
                .hint("give fewer --cpus, or look into the host's log")
        };
        let fd = vm.create_vcpu(u64::from(index)).map_err(|e| failed("create", e))?;
        let mut init = *target;
        let wanted = [
            (KVM_ARM_VCPU_PSCI_0_2, true),
            (KVM_ARM_VCPU_POWER_OFF, index != 0),
            (KVM_ARM_VCPU_PMU_V3, features.pmu),
            (KVM_ARM_VCPU_SVE, features.sve),
            (KVM_ARM_VCPU_PTRAUTH_ADDRESS, features.pauth),
            (KVM_ARM_VCPU_PTRAUTH_GENERIC, features.pauth),
        ];
        if let Some(word) = init.features.first_mut() {
            *word |= wanted.iter().filter(|(_, on)| *on).fold(0, |bits, (bit, _)| bits | 1 << bit);
        }
        fd.vcpu_init(&init).map_err(|e| failed("initialise", e))?;
        if features.sve {
            // Until then the vector length could still be chosen; the default is all the host has.
            let sve = libc::c_int::try_from(KVM_ARM_VCPU_SVE).unwrap_or_default();
            fd.vcpu_finalize(&sve).map_err(|e| failed("finalise the vectors of", e))?;
        }
        Ok(Self { index, fd })
    }

    /// Its affinity register: what the device tree calls it, and PSCI.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mpidr(&self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.fd.get_one_reg(MPIDR_EL1, &mut bytes).map_err(|e| {
            Error::failure(format!("cannot read MPIDR_EL1 of vCPU {}", self.index)).because(e)
        })?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Connects the performance monitor to its interrupt. After the GIC is initialised, which this needs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn init_pmu(&self, ppi: Ppi) -> Result<()> {
        let failed = |e| {
            Error::failure(format!("cannot set up the performance monitor of vCPU {}", self.index)).because(e)
        };
        let intid = ppi.intid().get();
        let attr = |attr, addr| kvm_device_attr { flags: 0, group: KVM_ARM_VCPU_PMU_V3_CTRL, attr, addr };
        self.fd
            .set_device_attr(&attr(u64::from(KVM_ARM_VCPU_PMU_V3_IRQ), &raw const intid as u64))
            .map_err(failed)?;
        self.fd.set_device_attr(&attr(u64::from(KVM_ARM_VCPU_PMU_V3_INIT), 0)).map_err(failed)
    }

    /// Puts the registers as `Documentation/arch/arm64/booting.rst` wants them: PC at the kernel, X0 at the device tree. X1 to X3
    /// are zero and interrupts masked since the vCPU was initialised.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_boot_registers(&self, entry: u64, fdt: u64) -> Result<()> {
        for (register, value) in [(pc_register(), entry), (x0_register(), fdt)] {
            self.fd.set_one_reg(register, &value.to_le_bytes()).map_err(|e| {
                Error::failure(format!("cannot set the boot registers of vCPU {}", self.index)).because(e)
            })?;
        }
        Ok(())
    }

    /// Runs it in a thread of its own. When it ends by itself, `ended` is told.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn spawn(
        self,
        bus: Arc<Bus>,
        returns: Arc<AtomicU64>,
        pause: Arc<Pause>,
        ended: impl FnOnce(Ending) + Send + 'static,
    ) -> Result<RunningVcpu> {
        let index = self.index;
        let failed = |what: &str| Error::host(format!("cannot {what} vCPU {index}"));
        let pages =
            Arc::new(SharedPages::new(&self.fd).map_err(|e| failed("map the shared pages of").because(e))?);
        let stop = Arc::new(AtomicBool::new(false));
        let off = Arc::new(AtomicBool::new(false));
        let requests =
            Requests { pages: Arc::clone(&pages), stop: Arc::clone(&stop), pause, off: Arc::clone(&off) };
        // Before it runs, so that nobody overlooks it.
        requests.pause.enter();
        let not_started = Arc::clone(&requests.pause);
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            // The loop needs little, and what is reserved counts against the process's limit for each vCPU.
            .stack_size(128 << 10)
            .spawn(move || {
                // Once for all that the thread says: none of it is on the way of an interrupt.
                let _span = tracing::info_span!("vcpu", index).entered();
                let ending = run(self.fd, index, &bus, &returns, &requests);
                requests.pause.leave();
                ended(ending);
            })
            .map_err(|e| {
                not_started.leave();
                failed("start a thread for").because(e)
            })?;
        Ok(RunningVcpu { pages, stop, off, thread: Some(thread) })
    }
}

/// What may be wanted of a vCPU's thread between two runs.
struct Requests {
    pages: Arc<SharedPages>,
    stop: Arc<AtomicBool>,
    pause: Arc<Pause>,
    /// Whether the guest had it off when it was last paused.
    off: Arc<AtomicBool>,
}

impl Requests {
    /// The vCPU has left the guest for them. Whoever asks for something after this makes it leave again; what was asked for before is seen now.
    fn heard(&self) {
        self.pages.set_immediate_exit(false);
    }
}

/// The virtual counter as the kernel's interface has it: setting it through one vCPU sets the VM's offset (`arch/arm64/kvm/arch_timer.c`).
struct VirtualCounter<'a>(&'a VcpuFd);

impl Counter for VirtualCounter<'_> {
    fn read(&self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.0.get_one_reg(TIMER_CNT, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    fn write(&self, value: u64) {
        if let Err(e) = self.0.set_one_reg(TIMER_CNT, &value.to_le_bytes()) {
            tracing::warn!("the guest's clock has gone on during the pause: {e}");
        }
    }
}

/// The life of a vCPU thread.
fn run(mut fd: VcpuFd, index: u32, bus: &Bus, returns: &AtomicU64, requests: &Requests) -> Ending {
    loop {
        let exit = fd.run();
        returns.fetch_add(1, Ordering::Relaxed);
        match exit {
            Ok(VcpuExit::MmioRead(address, data)) => bus.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.write(address, data),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => return Ending::PowerOff,
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Ending::Reset,
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                return Ending::Failed(Error::guest("the guest reports that it has crashed"));
            }
            Ok(VcpuExit::SystemEvent(kind, _)) => {
                return Ending::Failed(unhandled(index, &fd, &format!("system event {kind}")));
            }
            Ok(VcpuExit::Intr) => requests.heard(),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return Ending::Failed(unhandled(
                    index,
                    &fd,
                    &format!("entry failure {reason:#x} on host CPU {cpu}"),
                ));
            }
            Ok(other) => {
                let what = format!("{other:?}");
                return Ending::Failed(unhandled(index, &fd, &what));
            }
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => requests.heard(),
            // A load or store that the CPU did not describe to the kernel (`api.rst`, KVM_EXIT_ARM_NISV).
            Err(e) if e.errno() == libc::ENOSYS => {
                return Ending::Failed(unhandled(
                    index,
                    &fd,
                    "an access to a device by an instruction that cannot be emulated",
                ));
            }
            Err(e) => {
                return Ending::Failed(Error::failure(format!("vCPU {index} cannot run")).because(e));
            }
        }
        if requests.pause.is_asked() {
            let off = fd.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_STOPPED);
            requests.off.store(off, Ordering::SeqCst);
            requests.pause.hold(&VirtualCounter(&fd));
        }
        if requests.stop.load(Ordering::SeqCst) {
            return Ending::Stopped;
        }
    }
}

fn unhandled(index: u32, fd: &VcpuFd, what: &str) -> Error {
    let mut pc = [0; 8];
    let place = match fd.get_one_reg(pc_register(), &mut pc) {
        Ok(_) => format!("at PC {:#x}", u64::from_le_bytes(pc)),
        Err(_) => "at an unknown PC".to_owned(),
    };
    Error::guest(format!("vCPU {index} stopped {place}: {what}"))
        .hint("the guest's last console output may tell why")
}

/// A vCPU in its thread. Dropping it stops it.
#[derive(Debug)]
pub struct RunningVcpu {
    pages: Arc<SharedPages>,
    stop: Arc<AtomicBool>,
    off: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The signal that interrupts `KVM_RUN`.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Prepares the process for kicking vCPUs: the signal needs a handler, or it would end the process.
///
/// # Errors
/// If the handler cannot be set.
pub fn register_kick() -> Result<()> {
    register_signal_handler(kick_signal(), nothing)
        .map_err(|e| Error::failure("cannot set the signal handler that stops vCPUs").because(e))
}

impl RunningVcpu {
    /// Asks the vCPU to stop, without waiting for it: all of a VM's are asked before the first is waited for.
    pub fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// The pages that it shares with the kernel.
    pub(crate) fn pages(&self) -> &Arc<SharedPages> {
        &self.pages
    }

    /// Whether the guest had the vCPU on when the machine was last paused.
    #[must_use]
    pub fn was_on(&self) -> bool {
        !self.off.load(Ordering::SeqCst)
    }

    /// Makes the vCPU leave the guest and look what is wanted of it.
    pub fn kick(&self) {
        // The flag catches a vCPU on its way into the guest, the signal one that is there.
        self.pages.set_immediate_exit(true);
        if let Some(thread) = self.thread.as_ref().filter(|thread| !thread.is_finished()) {
            // It fails only for a thread that is gone, which is what we want.
            let _ = thread.kill(kick_signal());
        }
    }
}

impl Drop for RunningVcpu {
    fn drop(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            // A vCPU thread that panicked has said so; its VM ends all the same.
            let _ = thread.join();
        }
    }
}
