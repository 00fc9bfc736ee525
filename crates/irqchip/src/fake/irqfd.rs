// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds that raise interrupts, and those that hear of the EOI (Linux 6.12, `virt/kvm/eventfd.c`).

use std::os::fd::{AsFd, BorrowedFd};

use irq_types::{Gsi, IrqchipPin};

use super::state::{Answer, State};
use super::sys::{self, Event};
use crate::{Errno, RouteTarget};

/// Who drives a line: KVM keeps the level that each source wants and x86's chips take the OR of them. The vGIC knows one wire only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// `KVM_USERSPACE_IRQ_SOURCE_ID`.
    User,
    /// `KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID`.
    Resample,
}

/// `struct kvm_kernel_irqfd`.
#[derive(Debug)]
pub(super) struct Irqfd {
    event: Event,
    gsi: Gsi,
    resample: Option<Event>,
    /// What the counter held when it was armed. Arming fires once for it and leaves it in the counter, where the next signal takes it
    /// along.
    residue: u64,
}

impl State {
    /// `kvm_irqfd_assign`.
    pub(super) fn assign_irqfd(
        &mut self,
        event: BorrowedFd<'_>,
        gsi: Gsi,
        resample: Option<BorrowedFd<'_>>,
    ) -> Answer {
        if self.host.x86 {
            // `kvm_arch_irqfd_allowed`
            if !self.has_irqchip() {
                return Err(Errno::EINVAL);
            }
        } else if !self.initialised() {
            // `kvm_arch_intc_initialized`
            return Err(Errno::EAGAIN);
        }
        let event = Event::hold(event)?;
        let resample = resample.map(Event::hold).transpose()?;
        if self.irqfds.iter().any(|irqfd| irqfd.event.is(event.id())) {
            return Err(Errno::EBUSY);
        }
        // A counter that is not zero is picked up by a work item, which leaves it alone: nobody reads it until the next wake-up.
        let residue = sys::drain(&event).map_err(|_| Errno::EINVAL)?;
        self.irqfds.push(Irqfd { event, gsi, resample, residue });
        if residue > 0 {
            let index = self.irqfds.len() - 1;
            let _full = sys::add(&self.irqfds[index].event, residue);
            self.inject_by_work(index);
        }
        Ok(())
    }

    /// `kvm_irqfd_deassign` and `irqfd_shutdown`: every irqfd of this eventfd and GSI, of which there may be none. Unhooking from the
    /// eventfd reads its counter (`eventfd_ctx_remove_wait_queue`).
    pub(super) fn deassign_irqfd(&mut self, event: BorrowedFd<'_>, gsi: Gsi) -> Answer {
        let id = sys::identity(event)?;
        while let Some(at) = self.irqfds.iter().position(|irqfd| irqfd.event.is(id) && irqfd.gsi == gsi) {
            let irqfd = self.irqfds.remove(at);
            let _unreadable = sys::drain(&irqfd.event);
            // `irqfd_resampler_shutdown`: the last of a GSI's resamplers takes the line down with it.
            if irqfd.resample.is_some() && !self.irqfds.iter().any(|other| other.resamples(gsi)) {
                self.set_gsi(gsi, Source::Resample, false);
            }
        }
        Ok(())
    }

    /// What the kernel would have done by now: every bound eventfd that was signalled raises its interrupt.
    pub(super) fn process(&mut self) {
        let events: Vec<BorrowedFd<'_>> = self.irqfds.iter().map(|irqfd| irqfd.event.as_fd()).collect();
        if events.is_empty() {
            return;
        }
        for index in sys::ready(&events).unwrap_or_default() {
            let irqfd = &mut self.irqfds[index];
            let count = sys::drain(&irqfd.event).unwrap_or(0);
            if count == irqfd.residue {
                // Nobody has signalled it since it was armed.
                let _full = sys::add(&irqfd.event, count);
                continue;
            }
            irqfd.residue = 0;
            self.wake(index);
        }
    }

    /// `irqfd_wakeup`: with a single route the interrupt is raised on the spot where that is possible, else by a work item.
    fn wake(&mut self, index: usize) {
        match *self.table.targets(self.irqfds[index].gsi) {
            // On arm64 the spot raises the wire and is done (`kvm_arch_set_irq_inatomic`). Nothing lowers it again, not even for an
            // irqfd without resampling: a level SPI stays up.
            [target @ RouteTarget::Line(_)] if !self.host.x86 => self.fire(target, Source::User, true),
            [target @ RouteTarget::Msi { .. }] => self.fire(target, Source::User, true),
            _ => self.inject_by_work(index),
        }
    }

    /// `irqfd_inject`: a pulse, or for a resampling irqfd a raised line.
    fn inject_by_work(&mut self, index: usize) {
        let gsi = self.irqfds[index].gsi;
        if self.irqfds[index].resample.is_some() {
            self.set_gsi(gsi, Source::Resample, true);
        } else {
            self.set_gsi(gsi, Source::User, true);
            self.set_gsi(gsi, Source::User, false);
        }
    }

    /// `kvm_notify_acked_irq` and `irqfd_resampler_ack`: the line goes down once, then everybody on the GSI hears of it.
    pub(super) fn notify_acked(&mut self, pin: IrqchipPin) {
        let Some(gsi) = self.table.gsi_of(pin) else { return };
        if !self.irqfds.iter().any(|irqfd| irqfd.resamples(gsi)) {
            return;
        }
        self.set_gsi(gsi, Source::Resample, false);
        for irqfd in self.irqfds.iter().filter(|irqfd| irqfd.resamples(gsi)) {
            if let Some(resample) = &irqfd.resample {
                let _full = sys::add(resample, 1);
            }
        }
    }
}

impl Irqfd {
    fn resamples(&self, gsi: Gsi) -> bool {
        self.gsi == gsi && self.resample.is_some()
    }

    pub(super) fn is_resampling(&self) -> bool {
        self.resample.is_some()
    }
}
