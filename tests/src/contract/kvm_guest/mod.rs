// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest of a few instructions: enough to take and end an interrupt, and to write somewhere. It tells the test what it does by
//! accesses that nobody in the kernel answers.

#[cfg(target_arch = "aarch64")]
mod arm64;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(super) use arm64::Guest;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::Guest;

use irqchip::Errno;
use kvm_ioctls::{VcpuExit, VcpuFd};

/// What a guest does that userspace sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// A store to where no memory is.
    Mmio { address: u64, value: u64 },
    /// An `out`. Only x86 has ports.
    Port { port: u16, value: u32 },
}

/// Runs a vCPU until it gives a sign, which is complete afterwards: registers may be changed.
fn run(vcpu: &mut VcpuFd) -> Result<Sign, Errno> {
    let sign = loop {
        match vcpu.run() {
            Ok(VcpuExit::MmioWrite(address, data)) => {
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                break Sign::Mmio { address, value: u64::from_le_bytes(value) };
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                let mut value = [0; 4];
                value[..data.len()].copy_from_slice(data);
                break Sign::Port { port, value: u32::from_le_bytes(value) };
            }
            Ok(other) => panic!("the guest did what it should not: {other:?}"),
            Err(e) if e.errno() == Errno::EINTR.get() => {}
            Err(e) => return Err(Errno::new(e.errno())),
        }
    };
    // The access is finished by the next KVM_RUN, which is told to come back at once.
    vcpu.set_kvm_immediate_exit(1);
    let finished = vcpu.run().map(|exit| format!("{exit:?}"));
    vcpu.set_kvm_immediate_exit(0);
    assert_eq!(finished.map_err(|e| e.errno()), Err(Errno::EINTR.get()));
    Ok(sign)
}
