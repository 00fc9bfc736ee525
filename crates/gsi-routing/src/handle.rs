// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;
use std::ops::Range;

use irq_types::Gsi;

use crate::{Error, Router, Targets};

/// A GSI that is yours, and with it the say over what it fires.
///
/// Dropping it gives the GSI up, without a call to the kernel and therefore without a way to fail: a route it has stays in the kernel's table
/// until the next commit of anybody takes it out, and only then is the number given to somebody else. A route that no irqfd leads to is
/// harmless, so disarm the irqfd first. To have the route gone now, [`Transaction::clear`](crate::Transaction::clear) it and commit, or
/// drop the handle and [`flush`](Router::flush).
pub struct GsiHandle {
    router: Router,
    gsi: Gsi,
    serial: u64,
}

impl GsiHandle {
    pub(crate) fn new(router: Router, gsi: Gsi, serial: u64) -> Self {
        Self { router, gsi, serial }
    }

    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// The number, for whoever arms an irqfd on it. It does not change.
    #[must_use]
    pub fn gsi(&self) -> Gsi {
        self.gsi
    }

    /// Where it is from.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// What it fires now: what was last committed, not what is staged.
    #[must_use]
    pub fn targets(&self) -> Targets {
        self.router.snapshot().table().targets(self.gsi)
    }
}

impl Drop for GsiHandle {
    fn drop(&mut self) {
        self.router.shared().release(self.gsi, self.serial);
    }
}

impl fmt::Debug for GsiHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GsiHandle({})", self.gsi)
    }
}

/// A number of GSIs promised to somebody, with room in the table for a route of each.
///
/// What is allocated on it goes back to it when dropped, so that a device that masks and unmasks its vectors always gets them again. When
/// the budget is dropped, what was allocated stays with its owners, and the rest is anybody's.
pub struct Budget {
    router: Router,
    id: u64,
}

impl Budget {
    pub(crate) fn new(router: Router, id: u64) -> Self {
        Self { router, id }
    }

    /// One of the promised GSIs.
    ///
    /// # Errors
    /// [`Error::Exhausted`] if all have been taken; those of a commit, as for [`Router::allocate`].
    pub fn allocate(&self) -> Result<GsiHandle, Error> {
        self.router.allocate_with(|allocator| allocator.allocate_promised(self.id))
    }

    /// How many have not been taken.
    #[must_use]
    pub fn left(&self) -> usize {
        self.router.shared().lock_allocator(|allocator| allocator.left(self.id))
    }

    /// Promises `more` GSIs on top.
    ///
    /// # Errors
    /// [`Error::Exhausted`] if there are not that many.
    pub fn grow(&self, more: usize) -> Result<(), Error> {
        self.router.shared().lock_allocator(|allocator| allocator.promise_more(self.id, more))
    }

    /// Gives back up to `less` of those that have not been taken. Returns how many that were.
    pub fn shrink(&self, less: usize) -> usize {
        self.router.shared().lock_allocator(|allocator| allocator.promise_less(self.id, less))
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.router.shared().lock_allocator(|allocator| allocator.end_promise(self.id));
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Budget({} left)", self.left())
    }
}

/// GSIs set aside, to be claimed by number. Dropping it makes those that nobody claimed free.
pub struct ReservedRange {
    router: Router,
    range: Range<u32>,
}

impl ReservedRange {
    pub(crate) fn new(router: Router, range: Range<u32>) -> Self {
        Self { router, range }
    }

    /// Which GSIs.
    #[must_use]
    pub fn range(&self) -> Range<u32> {
        self.range.clone()
    }

    /// This GSI.
    ///
    /// # Errors
    /// [`Error::Taken`] if it is claimed already or not of this range; [`Error::Exhausted`] if the table has no room for its route; those
    /// of a commit.
    pub fn claim(&self, gsi: Gsi) -> Result<GsiHandle, Error> {
        if !self.range.contains(&gsi.get()) {
            return Err(Error::Taken { gsi });
        }
        self.router.allocate_with(|allocator| allocator.claim_reserved(gsi))
    }
}

impl Drop for ReservedRange {
    fn drop(&mut self) {
        self.router.shared().lock_allocator(|allocator| allocator.unreserve(self.range.start));
    }
}

impl fmt::Debug for ReservedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReservedRange({:?})", self.range)
    }
}
