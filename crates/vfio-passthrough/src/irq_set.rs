// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The payload of `VFIO_DEVICE_SET_IRQS`: `struct vfio_irq_set` of the kernel's `include/uapi/linux/vfio.h`.

use std::os::fd::{AsRawFd, BorrowedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
};

/// Bytes before the data: argsz, flags, index, start, count.
const HEADER: usize = 20;

/// One request to `VFIO_DEVICE_SET_IRQS`.
///
/// An *index* is a kind of interrupt (for PCI: INTx, MSI, MSI-X, error, request; for a platform device: one of its lines), a *subindex* one
/// vector of it.
#[derive(Debug, Clone)]
pub struct IrqSet<'a> {
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    fds: Vec<Option<BorrowedFd<'a>>>,
}

/// What a request is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IrqAction {
    /// Mask.
    Mask,
    /// Unmask.
    Unmask,
    /// Trigger: set what is triggered, or fire it.
    Trigger,
}

impl<'a> IrqSet<'a> {
    fn plain(action: u32, index: u32, start: u32, count: u32) -> Self {
        Self { flags: VFIO_IRQ_SET_DATA_NONE | action, index, start, count, fds: Vec::new() }
    }

    fn eventfds(action: u32, index: u32, start: u32, fds: &[Option<BorrowedFd<'a>>]) -> Self {
        Self {
            flags: VFIO_IRQ_SET_DATA_EVENTFD | action,
            index,
            start,
            // The kernel refuses more than the index has, which no slice of this length can be.
            count: u32::try_from(fds.len()).unwrap_or(u32::MAX),
            fds: fds.to_vec(),
        }
    }

    /// Takes all triggers of the index away, and for MSI and MSI-X frees its vectors.
    #[must_use]
    pub fn disable(index: u32) -> Self {
        Self::plain(VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, 0)
    }

    /// Fires the eventfds of these vectors as if the device had.
    #[must_use]
    pub fn fire(index: u32, start: u32, count: u32) -> Self {
        Self::plain(VFIO_IRQ_SET_ACTION_TRIGGER, index, start, count)
    }

    /// Masks the interrupt.
    #[must_use]
    pub fn mask(index: u32) -> Self {
        Self::plain(VFIO_IRQ_SET_ACTION_MASK, index, 0, 1)
    }

    /// Unmasks the interrupt, whoever masked it: the user, or the host when it fired.
    #[must_use]
    pub fn unmask(index: u32) -> Self {
        Self::plain(VFIO_IRQ_SET_ACTION_UNMASK, index, 0, 1)
    }

    /// Signals `fds` when the device interrupts; `None` leaves the vector allocated and without a trigger.
    #[must_use]
    pub fn trigger(index: u32, start: u32, fds: &[Option<BorrowedFd<'a>>]) -> Self {
        Self::eventfds(VFIO_IRQ_SET_ACTION_TRIGGER, index, start, fds)
    }

    /// Unmasks the interrupt whenever `fd` is signalled, in the kernel; `None` ends that.
    #[must_use]
    pub fn unmask_on(index: u32, fd: Option<BorrowedFd<'a>>) -> Self {
        Self::eventfds(VFIO_IRQ_SET_ACTION_UNMASK, index, 0, &[fd])
    }

    /// Which kind of interrupt.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// What it is to do.
    #[must_use]
    pub const fn action(&self) -> IrqAction {
        match self.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK {
            VFIO_IRQ_SET_ACTION_MASK => IrqAction::Mask,
            VFIO_IRQ_SET_ACTION_UNMASK => IrqAction::Unmask,
            _ => IrqAction::Trigger,
        }
    }

    /// The first vector that it speaks of.
    #[must_use]
    pub const fn start(&self) -> u32 {
        self.start
    }

    /// The eventfds, one for each vector; `None` if it carries none.
    #[must_use]
    pub fn fds(&self) -> Option<&[Option<BorrowedFd<'a>>]> {
        (self.flags & VFIO_IRQ_SET_DATA_EVENTFD != 0).then_some(&self.fds)
    }

    /// One more than the last vector that it speaks of.
    #[must_use]
    pub const fn end(&self) -> u32 {
        self.start.saturating_add(self.count)
    }

    /// The bytes that the kernel reads.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let size = HEADER + 4 * self.fds.len();
        let mut bytes = Vec::with_capacity(size);
        let argsz = u32::try_from(size).unwrap_or(u32::MAX);
        for word in [argsz, self.flags, self.index, self.start, self.count] {
            bytes.extend(word.to_ne_bytes());
        }
        for fd in &self.fds {
            bytes.extend(fd.map_or(-1, |fd| fd.as_raw_fd()).to_ne_bytes());
        }
        bytes
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// The numbers are those of `include/uapi/linux/vfio.h`, written out: DATA_NONE 1, DATA_EVENTFD 4, MASK 8, UNMASK 0x10, TRIGGER 0x20.
    #[test]
    fn payloads_are_what_the_kernel_reads_byte_by_byte() {
        let golden: [(&str, IrqSet<'_>, &[u8]); 5] = [
            (
                "disable MSI-X",
                IrqSet::disable(2),
                &[20, 0, 0, 0, 0x21, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                "fire vectors 3 and 4 of MSI",
                IrqSet::fire(1, 3, 2),
                &[20, 0, 0, 0, 0x21, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0],
            ),
            (
                "mask line 5",
                IrqSet::mask(5),
                &[20, 0, 0, 0, 0x09, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
            ),
            (
                "unmask line 5",
                IrqSet::unmask(5),
                &[20, 0, 0, 0, 0x11, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
            ),
            (
                "no unmask eventfd for line 1",
                IrqSet::unmask_on(1, None),
                &[24, 0, 0, 0, 0x14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
            ),
        ];
        for (what, set, bytes) in golden {
            assert_eq!(set.encode(), bytes, "{what}");
        }
    }

    #[test]
    fn descriptors_go_in_by_number_and_unused_vectors_as_minus_one() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let low = file.as_raw_fd().to_le_bytes();
        let mut expected =
            vec![32, 0, 0, 0, 0x24, 0, 0, 0, 2, 0, 0, 0, 0x07, 1, 0, 0, 3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        expected.extend(low);
        expected.extend([0xff; 4]);
        assert_eq!(IrqSet::trigger(2, 0x107, &[None, Some(file.as_fd()), None]).encode(), expected);

        let unmask = IrqSet::unmask_on(0, Some(file.as_fd())).encode();
        assert_eq!(unmask[4..8], [0x14, 0, 0, 0]);
        assert_eq!(unmask[20..24], low);
    }
}
