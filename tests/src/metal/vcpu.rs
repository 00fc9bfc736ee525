// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vCPU in its thread: it runs until the guest asks for a command, and then waits for one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_regs, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

/// Where the guest asks for commands, and where it reports that it cannot go on.
const COMMAND: u64 = 0x0a00_0000;
const FAILURE: u64 = COMMAND + 8;

/// What a vCPU thread and the tests know of each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// How often `KVM_RUN` came back.
    pub(super) returns: AtomicU64,
    /// The thread is to end.
    pub(super) end: AtomicBool,
    /// Why it has ended by itself.
    pub(super) ended: Mutex<Option<String>>,
    /// The thread's number, which tracepoints know it by.
    pub(super) tid: AtomicU64,
}

fn register(offset: usize) -> u64 {
    // In units of 32 bits (Linux 6.12, `Documentation/virt/kvm/api.rst`, section 4.68).
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | (offset / 4) as u64
}

/// Makes a vCPU. All but the first are off until the guest turns them on.
pub(super) fn create(vm: &VmFd, index: u32) -> VcpuFd {
    let vcpu = vm.create_vcpu(index.into()).unwrap();
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).unwrap();
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    if index != 0 {
        init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    vcpu.vcpu_init(&init).unwrap();
    vcpu
}

/// Where the first vCPU starts, and with what in x0.
pub(super) fn set_start(vcpu: &VcpuFd, pc: u64, x0: u64) {
    let pt_regs = std::mem::offset_of!(kvm_regs, regs);
    let at = |offset| register(pt_regs + offset);
    vcpu.set_one_reg(at(std::mem::offset_of!(user_pt_regs, pc)), &pc.to_le_bytes()).unwrap();
    vcpu.set_one_reg(at(std::mem::offset_of!(user_pt_regs, regs)), &x0.to_le_bytes()).unwrap();
}

/// The life of a vCPU thread. `idle` is told each time the guest asks for a command; whatever comes through `commands` is the answer.
pub(super) fn run(mut vcpu: VcpuFd, shared: &Arc<Shared>, idle: &Sender<()>, commands: &Receiver<u64>) {
    shared.tid.store(this_thread(), Ordering::SeqCst);
    let end = loop {
        let exit = vcpu.run();
        shared.returns.fetch_add(1, Ordering::SeqCst);
        match exit {
            Ok(VcpuExit::MmioRead(COMMAND, data)) => {
                // Whoever is gone does not listen any more.
                let _ = idle.send(());
                match commands.recv() {
                    Ok(command) => data.copy_from_slice(&command.to_le_bytes()),
                    Err(_) => return,
                }
            }
            Ok(VcpuExit::MmioWrite(FAILURE, data)) => {
                break format!("the guest cannot go on, because of {data:02x?}");
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => break "powered off".to_owned(),
            Ok(VcpuExit::Intr) => {}
            Ok(other) => break format!("it left for {other:?}"),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(e) => break format!("it cannot run: {e}"),
        }
        if shared.end.load(Ordering::SeqCst) {
            return;
        }
    };
    *shared.ended.lock().unwrap() = Some(end);
}

/// The kernel's number of the calling thread.
fn this_thread() -> u64 {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_str().unwrap().parse().unwrap()
}
