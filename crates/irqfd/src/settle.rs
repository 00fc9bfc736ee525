// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From what the guest wants of a device's vectors to what the kernel is told, in the order that loses nothing.
//!
//! The guest's wishes (messages, masks) are recorded first and always; then [`settle`](Vectors::settle) brings routes and irqfds in line with
//! them. What cannot be brought in line, because a call failed, stays on a list and is tried again with the next call. Until then
//! the vector holds its signals: late, but neither lost nor sent to an address that the guest has already taken back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gsi_routing::{Budget, GsiHandle, Transaction};
use irq_types::{DeviceId, MsiMessage};

use crate::edge::{disarm, wired_to};
use crate::vector::{Obstacle, VectorCore, VectorState};
use crate::wiring::Irqfd;
use crate::{Error, Wiring};

/// One vector as the guest's side sees it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) core: Arc<VectorCore>,
    /// The vector's mask bit.
    masked: bool,
    message: Option<MsiMessage>,
    gsi: Option<Arc<GsiHandle>>,
    /// The route that the kernel has for `gsi`.
    installed: Option<(MsiMessage, DeviceId)>,
    irqfd: Option<Irqfd>,
    /// Why it is not as it should be.
    failure: Option<Error>,
}

impl Slot {
    fn new() -> Self {
        Self {
            core: Arc::new(VectorCore::new()),
            masked: true,
            message: None,
            gsi: None,
            installed: None,
            irqfd: None,
            failure: None,
        }
    }

    fn disarm(&mut self) -> Result<(), Error> {
        disarm(&mut self.irqfd)?;
        self.core.armed.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Gives the GSI back. Not while armed: the route would go while the irqfd may still use it.
    fn give_up_route(&mut self) -> Result<(), Error> {
        self.disarm()?;
        self.installed = None;
        self.gsi = None;
        Ok(())
    }

    fn arm(&mut self, wiring: &Wiring) -> Result<(), Error> {
        let core = self.core.clone();
        let event = core.make_event()?;
        if self.irqfd.is_none()
            && let Some(gsi) = &self.gsi
        {
            self.irqfd = Some(wiring.arm(wiring.ready(), event.clone(), None, gsi.clone())?);
            core.armed.store(true, Ordering::SeqCst);
        }
        core.let_pass(event)
    }
}

/// All vectors of a device.
#[derive(Debug)]
pub(crate) struct Vectors {
    wiring: Wiring,
    sender: DeviceId,
    budget: Option<Budget>,
    enabled: bool,
    function_masked: bool,
    /// How many vectors, from the first one on, may reach the guest.
    allowed: usize,
    slots: Vec<Slot>,
    /// Those to be looked at by the next [`settle`](Self::settle).
    unsettled: BTreeSet<usize>,
    /// Those whose message is not (or no longer) what the kernel has a route for.
    unrouted: BTreeSet<usize>,
}

impl Vectors {
    pub(crate) fn new(wiring: Wiring, sender: DeviceId, count: usize, budget: Option<Budget>) -> Self {
        Self {
            wiring,
            sender,
            budget,
            enabled: true,
            function_masked: false,
            allowed: usize::MAX,
            slots: (0..count).map(|_| Slot::new()).collect(),
            unsettled: BTreeSet::new(),
            unrouted: BTreeSet::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn slot(&self, index: usize) -> Result<&Slot, Error> {
        self.slots.get(index).ok_or(Error::NoSuchVector { index, count: self.slots.len() })
    }

    fn slot_mut(&mut self, index: usize) -> Result<&mut Slot, Error> {
        let count = self.slots.len();
        self.slots.get_mut(index).ok_or(Error::NoSuchVector { index, count })
    }

    pub(crate) fn sender(&self) -> DeviceId {
        self.sender
    }

    // What the guest wants. None of these talks to the kernel.

    pub(crate) fn program(&mut self, index: usize, message: MsiMessage) -> Result<(), Error> {
        let sender = self.sender;
        let slot = self.slot_mut(index)?;
        slot.message = Some(message);
        if slot.installed == Some((message, sender)) {
            self.unrouted.remove(&index);
        } else {
            self.unrouted.insert(index);
        }
        self.unsettled.insert(index);
        Ok(())
    }

    pub(crate) fn set_masked(&mut self, index: usize, masked: bool) -> Result<(), Error> {
        self.slot_mut(index)?.masked = masked;
        self.unsettled.insert(index);
        Ok(())
    }

    pub(crate) fn set_function_masked(&mut self, masked: bool) {
        if std::mem::replace(&mut self.function_masked, masked) != masked {
            self.unsettle_all();
        }
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        if std::mem::replace(&mut self.enabled, enabled) != enabled {
            self.unsettle_all();
        }
    }

    pub(crate) fn set_allowed(&mut self, allowed: usize) {
        if std::mem::replace(&mut self.allowed, allowed) != allowed {
            self.unsettle_all();
        }
    }

    pub(crate) fn set_sender(&mut self, sender: DeviceId) {
        if std::mem::replace(&mut self.sender, sender) != sender {
            let programmed = (0..).zip(&self.slots).filter(|(_, slot)| slot.message.is_some());
            self.unrouted = programmed
                .filter(|(_, slot)| slot.installed != slot.message.map(|message| (message, sender)))
                .map(|(index, _)| index)
                .collect();
            self.unsettle_all();
        }
    }

    fn unsettle_all(&mut self) {
        self.unsettled.extend(0..self.slots.len());
    }

    pub(crate) fn grow(&mut self, count: usize) {
        while self.slots.len() < count {
            self.slots.push(Slot::new());
        }
    }

    // What the kernel is told.

    /// Whether signals of a slot are to reach the guest.
    fn is_live(&self, index: usize, slot: &Slot) -> bool {
        self.enabled
            && !self.function_masked
            && index < self.allowed
            && !slot.masked
            && slot.message.is_some()
    }

    /// Brings the kernel in line with the guest's wishes: disarm → commit → arm. One commit at most. What failed is noted with its vector
    /// and stays unsettled.
    pub(crate) fn settle(&mut self) {
        let (live, quiet): (Vec<usize>, Vec<usize>) =
            std::mem::take(&mut self.unsettled).into_iter().partition(|&i| self.is_live(i, &self.slots[i]));
        for index in quiet {
            let result = self.quieten(index);
            self.note(index, result);
        }
        let routed = self.route(live);
        for index in routed {
            let result = self.slots[index].arm(&self.wiring);
            self.note(index, result);
        }
    }

    fn note(&mut self, index: usize, result: Result<(), Error>) {
        self.slots[index].failure = result.err();
        if self.slots[index].failure.is_some() {
            self.slots[index].core.hold();
            self.unsettled.insert(index);
        }
    }

    /// Makes a vector hold its signals. Its route stays, and as long as only this process signals it, so does its irqfd: then masking and
    /// unmasking cost no ioctl. Where somebody else has the eventfd, disarming is what stops the signals.
    fn quieten(&mut self, index: usize) -> Result<(), Error> {
        let enabled = self.enabled;
        let slot = &mut self.slots[index];
        slot.core.hold();
        // Without a message there is a route only if a reset could not take it away.
        if !enabled || slot.message.is_none() {
            let had_route = slot.gsi.is_some();
            slot.give_up_route()?;
            if had_route && slot.message.is_some() {
                self.unrouted.insert(index);
            }
        } else if slot.core.gate.is_bypassed() {
            slot.disarm()?;
        }
        Ok(())
    }

    /// Sees to it that the vectors `live` have their routes, with one commit if any is missing, and those of all vectors that the
    /// guest has programmed so far along with it. Returns the vectors that now have theirs.
    fn route(&mut self, live: Vec<usize>) -> Vec<usize> {
        let (missing, mut routed): (Vec<usize>, Vec<usize>) =
            live.into_iter().partition(|index| self.unrouted.contains(index));
        if missing.is_empty() {
            return routed;
        }
        let mut batch = Batch::new(self.wiring.router().transaction());
        for &index in &missing {
            if let Err(error) = self.stage(index, &mut batch, Need::Now) {
                self.note(index, Err(error));
            }
        }
        if batch.staged.is_empty() {
            return routed;
        }
        let asked = batch.staged.len();
        self.stage_the_rest(&missing, &mut batch);
        match batch.transaction.commit() {
            Ok(_) => {
                routed.extend_from_slice(&batch.staged[..asked]);
                for index in batch.staged {
                    let slot = &mut self.slots[index];
                    slot.installed = slot.message.map(|message| (message, self.sender));
                    self.unrouted.remove(&index);
                }
            }
            Err(error) => {
                // What the batch has allocated goes back. A vector that was armed has been disarmed and holds its signals: its old
                // message is no longer the guest's.
                for index in batch.allocated {
                    self.slots[index].gsi = None;
                }
                for &index in &batch.staged[..asked] {
                    self.note(index, Err(error.clone().into()));
                }
            }
        }
        routed
    }

    /// Routes for the vectors that are programmed and not unmasked yet: the guest will want them next, and a commit costs the same for
    /// one as for all. They take no more than half of the GSIs that are left, so that nobody goes short of what they may never use.
    fn stage_the_rest(&mut self, asked: &[usize], batch: &mut Batch) {
        let mut allowance = None;
        let rest: Vec<usize> =
            self.unrouted.iter().copied().filter(|index| asked.binary_search(index).is_err()).collect();
        for index in rest {
            if self.slots[index].gsi.is_none() {
                let left = allowance.get_or_insert_with(|| self.spare_gsis());
                if *left == 0 {
                    continue;
                }
                *left -= 1;
            }
            // If it cannot be had now, the vector's own unmask will say why.
            let _ = self.stage(index, batch, Need::Later);
        }
    }

    /// How many GSIs may be spent on vectors that do not need theirs yet.
    fn spare_gsis(&self) -> usize {
        let usage = self.wiring.router().usage();
        let room = (usage.limit as usize).saturating_sub(usage.entries);
        let free = (usage.free + usage.withdrawn).min(room).saturating_sub(usage.promised);
        self.budget.as_ref().map_or(0, Budget::left) + free / 2
    }

    /// Stages the route of one vector, disarmed and with a GSI.
    fn stage(&mut self, index: usize, batch: &mut Batch, need: Need) -> Result<(), Error> {
        // Held before it is disarmed: what is signalled from here on is one interrupt when it is armed again, not two.
        self.slots[index].core.hold();
        self.slots[index].disarm()?;
        let Some(message) = self.slots[index].message else { return Ok(()) };
        let (gsi, new) = match self.slots[index].gsi.clone() {
            Some(gsi) => (gsi, false),
            None => (Arc::new(self.allocate(need)?), true),
        };
        batch.transaction.set_msi(&gsi, message, self.sender)?;
        self.slots[index].gsi = Some(gsi);
        if new {
            batch.allocated.push(index);
        }
        batch.staged.push(index);
        Ok(())
    }

    fn allocate(&mut self, need: Need) -> Result<GsiHandle, Error> {
        loop {
            let allocated = match &self.budget {
                Some(budget) if budget.left() > 0 => budget.allocate(),
                _ => self.wiring.router().allocate(),
            };
            match allocated {
                Err(gsi_routing::Error::Exhausted { .. }) if need == Need::Now && self.evict() => {}
                other => return Ok(other?),
            }
        }
    }

    /// Takes the route of a vector that holds its signals anyway. Whether there was one.
    fn evict(&mut self) -> bool {
        for index in (0..self.slots.len()).rev() {
            let idle = !self.is_live(index, &self.slots[index]) && self.slots[index].installed.is_some();
            if idle && self.slots[index].give_up_route().is_ok() {
                if self.slots[index].message.is_some() {
                    self.unrouted.insert(index);
                }
                return true;
            }
        }
        false
    }

    /// The first failure among `asked`.
    pub(crate) fn outcome(&self, asked: impl IntoIterator<Item = usize>) -> Result<(), Error> {
        for index in asked {
            if let Some(failure) = self.slots.get(index).and_then(|slot| slot.failure.clone()) {
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Lets somebody else signal a vector's eventfd.
    pub(crate) fn share_eventfd(&mut self, index: usize, core: &Arc<VectorCore>) -> Result<(), Error> {
        let live = self.slots.get(index).is_some_and(|slot| self.is_live(index, slot));
        let slot =
            self.slots.get_mut(index).filter(|slot| Arc::ptr_eq(&slot.core, core)).ok_or(Error::Gone)?;
        let event = core.make_event()?;
        if !live || slot.failure.is_some() {
            // In this process the gate held the signals; from now on only disarming does.
            disarm(&mut slot.irqfd)?;
            core.armed.store(false, Ordering::SeqCst);
        }
        if core.gate.bypass() {
            event.signal().inspect_err(|_| core.gate.hold_one())?;
        }
        Ok(())
    }

    /// Drops the vectors from `count` on. One that cannot be disarmed, and those before it, stay; it holds its signals until the next call.
    pub(crate) fn shrink(&mut self, count: usize) -> Result<(), Error> {
        while self.slots.len() > count {
            let index = self.slots.len() - 1;
            let slot = &mut self.slots[index];
            slot.core.hold();
            if let Err(error) = slot.give_up_route() {
                self.note(index, Err(error.clone()));
                return Err(error);
            }
            self.slots.pop();
            self.unsettled.remove(&index);
            self.unrouted.remove(&index);
        }
        Ok(())
    }

    /// As after a reset of the device: all masked, nothing programmed, nothing pending.
    pub(crate) fn reset(&mut self) -> Result<(), Error> {
        self.function_masked = false;
        self.allowed = usize::MAX;
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            slot.masked = true;
            slot.message = None;
            slot.core.hold();
            let given_up = slot.give_up_route();
            // Also where that failed: what was held before the reset is not to come after it.
            let cleared = slot.core.clear_pending();
            self.unsettled.remove(&index);
            self.unrouted.remove(&index);
            self.note(index, given_up.and(cleared));
        }
        self.outcome(0..self.slots.len())
    }

    /// Takes withdrawn routes out of the kernel's table.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        self.wiring.router().flush()?;
        Ok(())
    }

    pub(crate) fn state(&self, index: usize) -> Result<VectorState, Error> {
        let slot = self.slot(index)?;
        Ok(VectorState {
            index,
            eventfd: slot.core.event().map(|event| event.number()),
            eventfd_shared: slot.core.gate.is_bypassed(),
            message: slot.message,
            gsi: slot.gsi.as_ref().map(|gsi| gsi.gsi()),
            route: slot.installed,
            armed: wired_to(slot.irqfd.as_ref()).is_some(),
            masked: slot.masked,
            pending: slot.core.pending()?,
            obstacle: self.obstacle(index, slot),
            counts: slot.core.counts(),
        })
    }

    fn obstacle(&self, index: usize, slot: &Slot) -> Option<Obstacle> {
        if !self.enabled {
            Some(Obstacle::Disabled)
        } else if self.function_masked {
            Some(Obstacle::FunctionMasked)
        } else if index >= self.allowed {
            Some(Obstacle::NotAllowed)
        } else if slot.masked {
            Some(Obstacle::Masked)
        } else if slot.message.is_none() {
            Some(Obstacle::NotProgrammed)
        } else {
            slot.failure.clone().map(Obstacle::Failed)
        }
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        for slot in self.slots.iter_mut().rev() {
            slot.core.hold();
            slot.irqfd = None;
            slot.gsi = None;
        }
        // If the kernel refuses now, the next commit of anybody takes the routes out.
        let _ = self.flush();
    }
}

/// Whether a vector cannot deliver without its GSI, or only might want it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Now,
    Later,
}

/// Routes on their way into the kernel.
struct Batch {
    transaction: Transaction,
    /// Those whose route is staged, the ones that were asked for first.
    staged: Vec<usize>,
    /// Those that got a GSI for it.
    allocated: Vec<usize>,
}

impl Batch {
    fn new(transaction: Transaction) -> Self {
        Self { transaction, staged: Vec::new(), allocated: Vec::new() }
    }
}
