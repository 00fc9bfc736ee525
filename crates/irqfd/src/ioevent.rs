// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use irqchip::{IoAddress, IoeventBinder, IoeventSpec};

use crate::Error;
use crate::eventfd::Eventfd;

/// An eventfd for guests' writes to signal, wherever these are at the moment: the notification of a virtio queue, whose register moves with its BAR.
///
/// It exists before there is an address, and stays the same when the address changes. Clones are the same doorbell.
#[derive(Debug, Clone)]
pub struct Doorbell(Arc<Eventfd>);

impl Doorbell {
    /// A doorbell that nothing leads to yet.
    ///
    /// # Errors
    /// [`Error::Eventfd`] when the process has no descriptor left.
    pub fn new() -> Result<Self, Error> {
        Eventfd::new().map(|event| Self(Arc::new(event)))
    }

    /// From now on, and until what is returned is dropped, a write that fits `spec` rings it. There may be several.
    ///
    /// # Errors
    /// As [`IoEvent::new`] and [`IoEvent::with_datamatch`].
    pub fn at(&self, binder: Arc<dyn IoeventBinder>, spec: IoeventSpec) -> Result<IoEvent, Error> {
        IoEvent::bind(binder, self.0.clone(), spec)
    }

    /// Rings it by hand: for a write that came as an exit after all.
    ///
    /// # Errors
    /// [`Error::Eventfd`].
    pub fn ring(&self) -> Result<(), Error> {
        self.0.signal()
    }

    /// How often it was rung since the last call, 0 if not. Does not block.
    ///
    /// # Errors
    /// [`Error::Eventfd`].
    pub fn take(&self) -> Result<u64, Error> {
        self.0.take()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A doorbell in the other direction: an eventfd that a guest's write signals, without an exit to userspace (`KVM_IOEVENTFD`).
///
/// The write goes nowhere else while this exists. Dropping it gives the address back to whoever handles exits.
pub struct IoEvent {
    binder: Arc<dyn IoeventBinder>,
    event: Arc<Eventfd>,
    spec: IoeventSpec,
}

impl IoEvent {
    /// Any write of `length` bytes (1, 2, 4, 8, or 0 for any length) at `address` signals.
    ///
    /// # Errors
    /// [`Error::IoeventSpec`] for what could never ring; [`Error::Eventfd`]; [`Error::Kernel`] if the kernel refuses, `EEXIST` when
    /// another ioeventfd takes the same writes.
    pub fn new(binder: Arc<dyn IoeventBinder>, address: IoAddress, length: u32) -> Result<Self, Error> {
        Self::bind(binder, Arc::new(Eventfd::new()?), IoeventSpec { address, length, datamatch: None })
    }

    /// Only a write of `value` signals; others are exits as ever.
    ///
    /// # Errors
    /// As [`new`](Self::new); a length of 0 or a value that is wider than the write could never ring.
    pub fn with_datamatch(
        binder: Arc<dyn IoeventBinder>,
        address: IoAddress,
        length: u32,
        value: u64,
    ) -> Result<Self, Error> {
        let spec = IoeventSpec { address, length, datamatch: Some(value) };
        Self::bind(binder, Arc::new(Eventfd::new()?), spec)
    }

    /// A second doorbell that signals the same eventfd: a queue's notify register that is reachable through two windows, or in two
    /// widths.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`with_datamatch`](Self::with_datamatch).
    pub fn also_at(&self, spec: IoeventSpec) -> Result<Self, Error> {
        Self::bind(self.binder.clone(), self.event.clone(), spec)
    }

    fn bind(binder: Arc<dyn IoeventBinder>, event: Arc<Eventfd>, spec: IoeventSpec) -> Result<Self, Error> {
        check(spec)?;
        binder.assign_ioevent(event.as_fd(), spec)?;
        Ok(Self { binder, event, spec })
    }

    /// Which writes signal.
    #[must_use]
    pub fn spec(&self) -> IoeventSpec {
        self.spec
    }

    /// How many signals came since the last call, 0 if none. Does not block.
    ///
    /// # Errors
    /// [`Error::Eventfd`].
    pub fn take(&self) -> Result<u64, Error> {
        self.event.take()
    }
}

/// What the kernel refuses, and what it accepts although it never rings (Linux 6.12, `virt/kvm/eventfd.c`, `kvm_assign_ioeventfd`,
/// `ioeventfd_in_range`).
fn check(spec: IoeventSpec) -> Result<(), Error> {
    let refuse = |reason| Err(Error::IoeventSpec { spec, reason });
    if matches!(spec.address, IoAddress::Pio(_)) && spec.length == 8 {
        return refuse("writes to ports have 1, 2 or 4 bytes");
    }
    let end = match spec.address {
        IoAddress::Mmio(address) => address.checked_add(u64::from(spec.length)),
        IoAddress::Pio(port) => Some(u64::from(port) + u64::from(spec.length)).filter(|&end| end <= 0x1_0000),
    };
    match (spec.length, spec.datamatch) {
        (0 | 1 | 2 | 4 | 8, None) | (8, Some(_)) => {}
        (0, Some(_)) => return refuse("a write of any length cannot be compared with a value"),
        (length @ (1 | 2 | 4), Some(value)) => {
            if value >> (8 * length) != 0 {
                return refuse("the value is wider than the write");
            }
        }
        _ => return refuse("writes have 1, 2, 4 or 8 bytes, or 0 for any length"),
    }
    if end.is_none() {
        return refuse("the write would wrap around the address space");
    }
    Ok(())
}

impl AsFd for IoEvent {
    /// The eventfd, for the event loop, a vhost back end or an io thread.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for IoEvent {
    fn drop(&mut self) {
        // The kernel has no reason to refuse; once more if it does, since nobody else will.
        let deassign = || self.binder.deassign_ioevent(self.event.as_fd(), self.spec);
        let _ = deassign().or_else(|_| deassign());
    }
}

impl fmt::Debug for IoEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoEvent").field("spec", &self.spec).field("eventfd", &self.event.number()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_never_ring_is_refused() {
        let mmio = IoAddress::Mmio(0x1000);
        // (address, length, datamatch, allowed)
        let table = [
            (mmio, 0, None, true),
            (mmio, 1, None, true),
            (mmio, 8, Some(u64::MAX), true),
            (mmio, 4, Some(0xffff_ffff), true),
            (mmio, 4, Some(0x1_0000_0000), false),
            (mmio, 2, Some(0x1_0000), false),
            (mmio, 1, Some(0x100), false),
            (mmio, 1, Some(0xff), true),
            (mmio, 0, Some(0), false),
            (mmio, 3, None, false),
            (mmio, 16, None, false),
            (IoAddress::Mmio(u64::MAX - 3), 4, None, false),
            (IoAddress::Mmio(u64::MAX - 4), 4, None, true),
            (IoAddress::Pio(0xfffc), 4, Some(0xffff_ffff), true),
            (IoAddress::Pio(0xfff8), 8, None, false),
            (IoAddress::Pio(0xfff8), 8, Some(0), false),
            (IoAddress::Pio(0), 0, None, true),
            (IoAddress::Pio(0xffff), 1, None, true),
            (IoAddress::Pio(0xffff), 2, None, false),
        ];
        for (address, length, datamatch, allowed) in table {
            let spec = IoeventSpec { address, length, datamatch };
            assert_eq!(check(spec).is_ok(), allowed, "{spec}");
        }
    }
}
