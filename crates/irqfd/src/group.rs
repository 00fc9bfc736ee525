// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use gsi_routing::Budget;
use irq_types::{DeviceId, MsiMessage};

use crate::lock::lock;
use crate::settle::Vectors;
use crate::{Error, InterruptVector, VectorState, Wiring};

/// The message-signalled interrupts of one device, MSI or MSI-X: the side of the guest, whose writes to the capability or the table come
/// here in any order.
///
/// # What a call does
///
/// A wish of the guest cannot fail: it has written its table, and the table has taken the write. So each call records the wish first, then brings the
/// kernel in line with it, in the order disarm → commit → arm. If that fails, the error says why; the vector holds its signals until a later
/// call on the group, any call, succeeds in it. [`VectorState::obstacle`] keeps the reason.
///
/// # What it costs
///
/// - Programming a masked vector: nothing.
/// - The first unmask installs the routes of *all* vectors that are programmed by then, in one commit; each unmask after that arms one irqfd. A
///   guest that programs 2048 vectors and unmasks them one by one costs 2048 calls of `KVM_IRQFD` and one or two of `KVM_SET_GSI_ROUTING`.
/// - Masking and unmasking after that: an atomic operation, if the device is in this process; if somebody else has the vector's
///   [eventfd](InterruptVector::eventfd), one `KVM_IRQFD` each.
/// - A new message for an unmasked vector, or a new device ID: disarm, commit, arm. A commit alone would change the target of an armed irqfd too, but not
///   that of one whose interrupts a GICv4 injects directly: Linux 6.12 sets the forwarding up when the irqfd is armed, and has no
///   `kvm_arch_update_irqfd_routing` for arm64 (`arch/arm64/kvm/arm.c`).
///
/// GSIs are spent on vectors that are unmasked, and on others only as far as they are plenty; where they run out, vectors that are masked give theirs up.
///
/// A new group is enabled, not masked as a function, and each of its vectors is masked and unprogrammed. Dropping it disarms all irqfds, then withdraws
/// the routes.
#[derive(Debug)]
pub struct VectorGroup {
    vectors: Arc<Mutex<Vectors>>,
}

impl VectorGroup {
    /// `count` vectors of the device that `sender` names. No descriptor, no GSI and no call to the kernel yet.
    #[must_use]
    pub fn new(wiring: Wiring, sender: DeviceId, count: usize) -> Self {
        Self { vectors: Arc::new(Mutex::new(Vectors::new(wiring, sender, count, None))) }
    }

    /// The same, with GSIs promised to it by the wiring's router. What the promise does not cover is allocated like any other.
    #[must_use]
    pub fn with_budget(wiring: Wiring, sender: DeviceId, count: usize, budget: Budget) -> Self {
        Self { vectors: Arc::new(Mutex::new(Vectors::new(wiring, sender, count, Some(budget)))) }
    }

    /// How many vectors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.vectors).len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whose messages they are.
    #[must_use]
    pub fn device_id(&self) -> DeviceId {
        lock(&self.vectors).sender()
    }

    /// The device's end of a vector.
    ///
    /// # Errors
    /// [`Error::NoSuchVector`].
    pub fn vector(&self, index: usize) -> Result<InterruptVector, Error> {
        let core = lock(&self.vectors).slot(index)?.core.clone();
        Ok(InterruptVector::new(core, index, Arc::downgrade(&self.vectors)))
    }

    /// The guest writes a vector's message. It reaches the kernel when the vector is unmasked, or now if it is.
    ///
    /// # Errors
    /// [`Error::NoSuchVector`]; if the vector is unmasked, as [`unmask`](Self::unmask).
    pub fn program(&self, index: usize, message: MsiMessage) -> Result<(), Error> {
        self.update(|changes| changes.program(index, message))
    }

    /// The guest clears a vector's mask bit. What was held arrives now, once.
    ///
    /// # Errors
    /// [`Error::NoSuchVector`]. [`Error::Eventfd`], [`Error::Routing`] or [`Error::Kernel`] if the vector cannot deliver yet: it is unmasked, holds its
    /// signals, and the next call on the group tries again. An unmasked vector without a message is no error.
    pub fn unmask(&self, index: usize) -> Result<(), Error> {
        self.update(|changes| changes.unmask(index))
    }

    /// The guest sets a vector's mask bit. When this returns, no signal reaches the guest any more; those that come are held.
    ///
    /// # Errors
    /// [`Error::NoSuchVector`]. [`Error::Kernel`] if somebody else has the eventfd and the irqfd could not be disarmed: the next call on the
    /// group tries again.
    pub fn mask(&self, index: usize) -> Result<(), Error> {
        self.update(|changes| changes.mask(index))
    }

    /// The guest sets or clears the mask of the whole function (MSI-X). The vectors' own mask bits stay as they are.
    ///
    /// # Errors
    /// As [`mask`](Self::mask) and [`unmask`](Self::unmask), the first one that occurred.
    pub fn set_function_mask(&self, masked: bool) -> Result<(), Error> {
        self.update(|changes| {
            changes.set_function_mask(masked);
            Ok(())
        })
    }

    /// The guest enables or disables the capability. While it is disabled, all routes and GSIs are given back; messages, mask bits and what is
    /// pending stay.
    ///
    /// # Errors
    /// As [`mask`](Self::mask) and [`unmask`](Self::unmask), the first one that occurred.
    pub fn set_enabled(&self, enabled: bool) -> Result<(), Error> {
        self.update(|changes| {
            changes.set_enabled(enabled);
            Ok(())
        })
    }

    /// The guest allows the device's first `count` vectors (MSI's multiple message enable). Those beyond hold their signals. A new group, and one that
    /// was [reset](Self::reset), allows all.
    ///
    /// # Errors
    /// As [`mask`](Self::mask) and [`unmask`](Self::unmask), the first one that occurred.
    pub fn set_allowed(&self, count: usize) -> Result<(), Error> {
        self.update(|changes| {
            changes.set_allowed(count);
            Ok(())
        })
    }

    /// The device has got another number: the guest has renumbered its bus. The routes carry the new one from now on.
    ///
    /// # Errors
    /// As [`unmask`](Self::unmask), the first one that occurred.
    pub fn set_device_id(&self, sender: DeviceId) -> Result<(), Error> {
        self.update(|changes| {
            changes.set_device_id(sender);
            Ok(())
        })
    }

    /// Any number of changes with one commit: a restored device, or a table that the guest has written while the function was masked.
    ///
    /// # Errors
    /// What `f` returns; or the first failure among the vectors that it has changed, as the single calls have it. Changes made before an
    /// error of `f` stay.
    pub fn update(&self, f: impl FnOnce(&mut Changes<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let mut vectors = lock(&self.vectors);
        let mut changes = Changes { vectors: &mut vectors, asked: BTreeSet::new(), disabled: false };
        let wished = f(&mut changes);
        let (asked, disabled) = (changes.asked, changes.disabled);
        vectors.settle();
        wished?;
        vectors.outcome(asked)?;
        if disabled { vectors.flush() } else { Ok(()) }
    }

    /// Tries again what has failed, without changing anything.
    ///
    /// # Errors
    /// The first failure that is left.
    pub fn retry(&self) -> Result<(), Error> {
        let mut vectors = lock(&self.vectors);
        vectors.settle();
        vectors.outcome(0..vectors.len())
    }

    /// As after a reset of the device: all vectors masked and unprogrammed, nothing pending, all routes gone. Eventfds stay the same.
    ///
    /// # Errors
    /// [`Error::Kernel`] if one could not be disarmed; the next call on the group tries again.
    pub fn reset(&self) -> Result<(), Error> {
        let mut vectors = lock(&self.vectors);
        vectors.reset()?;
        vectors.flush()
    }

    /// Grows or shrinks the group to `count` vectors. New ones are masked and unprogrammed; the handles of removed ones lead nowhere.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a vector to be removed could not be disarmed: it is still there, and all before it. It holds its signals until the
    /// next call on the group.
    pub fn resize(&self, count: usize) -> Result<(), Error> {
        let mut vectors = lock(&self.vectors);
        if count >= vectors.len() {
            vectors.grow(count);
            return Ok(());
        }
        vectors.shrink(count)?;
        vectors.flush()
    }

    /// 64 bits of the pending bit array, from vector 64 × `word` on, as MSI-X lays it out (PCI Express base specification, section 7.7.2.7).
    /// Bits of vectors that do not exist are zero.
    ///
    /// # Errors
    /// [`Error::Eventfd`] when an eventfd cannot be polled.
    pub fn pending_word(&self, word: usize) -> Result<u64, Error> {
        let vectors = lock(&self.vectors);
        let first = word.saturating_mul(64).min(vectors.len());
        let mut bits = 0;
        for index in first..vectors.len().min(first.saturating_add(64)) {
            if vectors.slot(index)?.core.pending()? {
                bits |= 1 << (index - first);
            }
        }
        Ok(bits)
    }

    /// Forgets that a vector is pending: the device's reason to interrupt is gone, or its state was restored.
    ///
    /// # Errors
    /// [`Error::NoSuchVector`], [`Error::Eventfd`].
    pub fn clear_pending(&self, index: usize) -> Result<(), Error> {
        lock(&self.vectors).slot(index)?.core.clear_pending()
    }

    /// Where a vector is, and why it delivers nothing if it does not.
    ///
    /// # Errors
    /// [`Error::NoSuchVector`], [`Error::Eventfd`].
    pub fn state(&self, index: usize) -> Result<VectorState, Error> {
        lock(&self.vectors).state(index)
    }
}

/// Changes that are brought to the kernel together; see [`VectorGroup::update`].
#[derive(Debug)]
pub struct Changes<'a> {
    vectors: &'a mut Vectors,
    asked: BTreeSet<usize>,
    disabled: bool,
}

impl Changes<'_> {
    /// As [`VectorGroup::program`].
    ///
    /// # Errors
    /// [`Error::NoSuchVector`].
    pub fn program(&mut self, index: usize, message: MsiMessage) -> Result<(), Error> {
        self.vectors.program(index, message)?;
        self.asked.insert(index);
        Ok(())
    }

    /// As [`VectorGroup::mask`].
    ///
    /// # Errors
    /// [`Error::NoSuchVector`].
    pub fn mask(&mut self, index: usize) -> Result<(), Error> {
        self.vectors.set_masked(index, true)?;
        self.asked.insert(index);
        Ok(())
    }

    /// As [`VectorGroup::unmask`].
    ///
    /// # Errors
    /// [`Error::NoSuchVector`].
    pub fn unmask(&mut self, index: usize) -> Result<(), Error> {
        self.vectors.set_masked(index, false)?;
        self.asked.insert(index);
        Ok(())
    }

    /// As [`VectorGroup::set_function_mask`].
    pub fn set_function_mask(&mut self, masked: bool) {
        self.vectors.set_function_masked(masked);
        self.asked.extend(0..self.vectors.len());
    }

    /// As [`VectorGroup::set_enabled`].
    pub fn set_enabled(&mut self, enabled: bool) {
        self.vectors.set_enabled(enabled);
        self.asked.extend(0..self.vectors.len());
        self.disabled |= !enabled;
    }

    /// As [`VectorGroup::set_allowed`].
    pub fn set_allowed(&mut self, count: usize) {
        self.vectors.set_allowed(count);
        self.asked.extend(0..self.vectors.len());
    }

    /// As [`VectorGroup::reset`]. A vector that cannot be disarmed holds its signals, and is tried again.
    pub fn reset(&mut self) {
        // Noted with the vector, and so part of the update's outcome.
        let _ = self.vectors.reset();
        self.asked.extend(0..self.vectors.len());
        self.disabled = true;
    }

    /// As [`VectorGroup::set_device_id`].
    pub fn set_device_id(&mut self, sender: DeviceId) {
        self.vectors.set_sender(sender);
        self.asked.extend(0..self.vectors.len());
    }
}
