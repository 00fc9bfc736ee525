// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::BorrowedFd;

use irq_types::Gsi;

use crate::{Error, VmId};

/// Letting eventfds raise interrupts.
pub trait IrqfdBinder: Send + Sync {
    /// Which VM's interrupts.
    fn vm_id(&self) -> VmId;

    /// From now on a signal of `event` raises `gsi`. A counter that is not zero when this is called fires at once.
    ///
    /// Without `resample` the GSI is pulsed: meant for edge interrupts. (On arm64 a level SPI is raised by it and stays up, since nothing
    /// lowers it: `kvm_arch_set_irq_inatomic` in Linux 6.12, `arch/arm64/kvm/vgic/vgic-irqfd.c`.) With it, the GSI's line stays up until the guest's EOI; then the kernel lowers
    /// it and signals `resample`, and a device that still wants attention signals `event` again. The kernel takes
    /// references of its own: the caller may close its descriptors, but then deassigns by closing the last one.
    ///
    /// # Errors
    /// On KVM: `EAGAIN` before the vGIC is initialised, `EBUSY` if `event` is on an irqfd already, `EBADF`, `EINVAL` if a descriptor
    /// is no eventfd or resampling is not supported, `ENOMEM`.
    fn assign_irqfd(
        &self,
        event: BorrowedFd<'_>,
        gsi: Gsi,
        resample: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error>;

    /// Undoes [`assign_irqfd`](Self::assign_irqfd) of the same eventfd and GSI. When this returns, no more interrupts come of it, and
    /// the counter is zero: what was in it has fired. Deassigning what is not assigned is no error and leaves the counter alone.
    ///
    /// # Errors
    /// On KVM: `EBADF`, `EINVAL` if `event` is no eventfd.
    fn deassign_irqfd(&self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), Error>;
}
