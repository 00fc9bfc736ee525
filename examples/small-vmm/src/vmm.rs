// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The whole VMM: one vCPU, memory, a GIC, and a serial port with a level interrupt that finds its way back.

use std::fs::{self, File};
use std::io::Stdout;
use std::mem::offset_of;
use std::sync::{Arc, Mutex, PoisonError};
use std::{convert::Infallible, io, thread};

use gsi_routing::{Router, models};
use irq_types::Spi;
use irqfd::{LevelLine, LevelTrigger, Resample, Wiring};
use kvm_bindings::{
    KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, KVM_SYSTEM_EVENT_SHUTDOWN,
    kvm_regs, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{Kvm, VcpuExit};
use kvm_irqchip::KvmVm;
use linux_loader::loader::{KernelLoader, pe::PE};
use rustix::event::{PollFd, PollFlags, poll};
use vgic::{GicLayout, GicRequest, MsiChoice, Vgic};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vm_superio::{Serial, Trigger, serial::NoEvents};

use crate::{fdt::device_tree, sys};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

const GIC: std::ops::Range<u64> = 0x0800_0000..0x0900_0000;
pub(crate) const UART: u64 = 0x0900_0000;
pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const RAM_SIZE: usize = 256 << 20;
/// Where a kernel of up to 96 MiB, the initial RAM disk and the device tree fit (Linux, `Documentation/arch/arm64/booting.rst`).
const FDT: u64 = RAM + (100 << 20);
pub(crate) const INITRD: u64 = RAM + (104 << 20);

/// A 16550 on a level-triggered line. Only output: what it has to say is "the transmitter is empty".
struct Uart {
    model: Mutex<Serial<Follow, NoEvents, Stdout>>,
    line: Arc<dyn LevelLine>,
}

/// The line follows the port's state, so the model's edges mean nothing.
struct Follow;

impl Trigger for Follow {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Uart {
    /// An access of the guest's, and then the line is where the port's state wants it.
    fn access(&self, access: impl FnOnce(&mut Serial<Follow, NoEvents, Stdout>)) {
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        access(&mut model);
        let _ = self.line.set_level(is_high(&model));
    }
}

/// Transmitter empty, identified as the reason (bit 1 of IIR) and enabled (bit 1 of IER).
fn is_high(model: &Serial<Follow, NoEvents, Stdout>) -> bool {
    let state = model.state();
    state.interrupt_enable & state.interrupt_identification & 1 << 1 != 0
}

impl Resample for Uart {
    /// The guest has ended the interrupt; the kernel has lowered the line. Does it have to go up again?
    fn resampled(&self) -> bool {
        is_high(&self.model.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs a guest until it powers off. Returns what is to be said then.
pub(crate) fn run(args: Vec<String>) -> Result<String, Error> {
    let [kernel, initrd, rest @ ..] = args.as_slice() else {
        return Err("usage: small-vmm KERNEL INITRD [COMMAND LINE]".into());
    };
    let cmdline = rest.first().map_or("console=ttyS0", String::as_str);

    // Memory, and the interrupt controller that this host can have.
    let kvm = Kvm::new()?;
    let vm = Arc::new(KvmVm::new(Arc::new(kvm.create_vm()?)));
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), RAM_SIZE)])?;
    let memory = sys::give(vm.fd(), memory)?;
    let config = GicRequest { msi: MsiChoice::None, ..GicRequest::default() }.resolve_on(&*vm)?;
    let layout = GicLayout::solve(&config, &[GIC])?;

    // The order is in the types: create, addresses, vCPUs, initialise. Only then can there be a router, and only then an irqfd.
    let gic = Vgic::create(&*vm, config)?.set_addresses(layout)?;
    let mut vcpu = vm.fd().create_vcpu(0)?;
    let mut init = kvm_vcpu_init::default();
    vm.fd().get_preferred_target(&mut init)?;
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    vcpu.vcpu_init(&init)?;
    let gic = gic.vcpus_final(1)?.init()?;
    let router = Router::new(Arc::clone(&vm) as _, &*vm, gic.ready(), &models::ARM_GIC)?;
    let wiring = Wiring::new(Arc::clone(&vm) as _, router.clone())?;

    // The serial port's line, there and back. The device tree's flag comes from the same type.
    let spi = Spi::new(1)?;
    let trigger = LevelTrigger::new()?;
    let model = Mutex::new(Serial::with_events(Follow, NoEvents, io::stdout()));
    let uart = Arc::new(Uart { model, line: trigger.line() });
    trigger.wire(&wiring, &Arc::new(router.claim_spi(spi)?))?;
    let resampler = trigger.resampler_for(Arc::clone(&uart) as _);
    thread::spawn(move || {
        loop {
            let mut fds = [PollFd::new(&resampler, PollFlags::IN)];
            if poll(&mut fds, None).is_ok() && resampler.run().is_err() {
                return;
            }
        }
    });

    // What is in memory when the guest starts.
    let entry = PE::load(memory, Some(GuestAddress(RAM)), &mut File::open(kernel)?, None)?.kernel_load;
    let initrd = fs::read(initrd)?;
    memory.write_slice(&initrd, GuestAddress(INITRD))?;
    let tree = device_tree(gic.layout(), spi, cmdline, INITRD + initrd.len() as u64)?;
    memory.write_slice(&tree, GuestAddress(FDT))?;
    let x0 = offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, regs);
    let pc = offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, pc);
    for (offset, value) in [(x0, FDT), (pc, entry.0)] {
        let register = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | (offset / 4) as u64;
        vcpu.set_one_reg(register, &value.to_le_bytes())?;
    }

    loop {
        match vcpu.run()? {
            VcpuExit::MmioRead(address, data) => {
                data.fill(0);
                if let (Some(offset), Some(value)) = (register_of_uart(address), data.first_mut()) {
                    uart.access(|model| *value = model.read(offset));
                }
            }
            VcpuExit::MmioWrite(address, data) => {
                if let (Some(offset), Some(&value)) = (register_of_uart(address), data.first()) {
                    uart.access(|model| drop(model.write(offset, value)));
                }
            }
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => {
                let state = trigger.state()?;
                return Ok(format!(
                    "the serial line went up {} times, and {} EOIs came back",
                    state.raised + state.raised_again,
                    state.resampled
                ));
            }
            other => return Err(format!("the guest ended with {other:?}").into()),
        }
    }
}

fn register_of_uart(address: u64) -> Option<u8> {
    u8::try_from(address.checked_sub(UART)?).ok().filter(|&offset| offset < 8)
}
