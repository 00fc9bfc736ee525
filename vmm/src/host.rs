// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the machine asks of the host: KVM, a VM that is wide enough, an interrupt controller.

use kvm_ioctls::{Kvm, VmFd};
use vgic::{GicRequest, MsiChoice, VersionChoice};

use crate::config::{Config, Gic, Msi};
use crate::error::{Error, Result};
use crate::layout;

/// Opens /dev/kvm, and sees that it is one.
pub(crate) fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|e| {
        let error = Error::host("cannot open /dev/kvm").because(e);
        match e.errno() {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => error.hint(
                "the host's kernel has no KVM or was not started at EL2: look for 'kvm' in its log (dmesg)",
            ),
            libc::EACCES | libc::EPERM => error.hint(
                "add yourself to the group that owns it (usually: usermod -aG kvm USER) or run as root",
            ),
            _ => error,
        }
    })?;
    // The only version there has been since 2007 (`Documentation/virt/kvm/api.rst`, section 4.1).
    match kvm.get_api_version() {
        12 => Ok(kvm),
        other => Err(Error::host(format!("/dev/kvm speaks version {other} of the KVM API, not 12"))
            .hint("use a Linux kernel's KVM")),
    }
}

/// Guest-physical addresses of 40 bits are what a VM has by default, and have room for PCI's 64-bit window.
const COMMON_BITS: u32 = 40;

/// Makes a VM whose guest-physical addresses reach the end of memory, and for PCI as far as is common. Returns also how many bits they have.
pub(crate) fn create_vm(kvm: &Kvm, config: &Config) -> Result<(VmFd, u32)> {
    let end = layout::RAM_BASE + config.memory.0;
    let needed = 64 - (end - 1).leading_zeros();
    // 0 on kernels that cannot be asked: there 40 bits are what a VM has (`api.rst`, section 4.2).
    let limit = u32::try_from(kvm.get_host_ipa_limit()).ok().filter(|&bits| bits > 0);
    let available = limit.unwrap_or(COMMON_BITS);
    if needed > available {
        return Err(Error::host(format!(
            "{} of memory needs {needed} bits of guest-physical address, and this host has {available}",
            config.memory
        ))
        .hint("give less --memory"));
    }
    let wanted = if config.wants_pci() { needed.max(COMMON_BITS) } else { needed };
    // The fewer bits, the fewer levels the host's tables may have; 32 is the least that KVM takes.
    let bits = wanted.min(available).max(32);
    let vm = match limit {
        Some(_) => kvm.create_vm_with_ipa_size(bits),
        None => kvm.create_vm(),
    };
    Ok((vm.map_err(|e| Error::host("cannot create a VM").because(e))?, bits))
}

pub(crate) fn gic_request(config: &Config) -> GicRequest {
    GicRequest {
        version: match config.gic {
            Gic::Auto => VersionChoice::Auto,
            Gic::V2 => VersionChoice::V2,
            Gic::V3 => VersionChoice::V3,
        },
        msi: match config.msi {
            Msi::Auto => MsiChoice::Auto,
            Msi::Its => MsiChoice::Its,
            Msi::V2m => MsiChoice::V2m,
            Msi::None => MsiChoice::None,
        },
        vcpus: config.cpus,
        spis: layout::SPIS,
        ..GicRequest::default()
    }
}
