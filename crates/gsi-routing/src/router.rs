// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use irq_types::{DeviceId, Gsi, Intid, IrqchipPin, MsiMessage, Spi};
use irqchip::{Capabilities, Capability, IrqchipReady, MsiDelivery, MsiInjector, Route, RoutingSink, VmId};

use crate::allocator::{Allocated, Allocator};
use crate::rules::Rules;
use crate::{
    Budget, Counters, Entry, Error, GsiHandle, IrqchipModel, MsiPolicy, ReservedRange, Snapshot, Table,
    TableKind, Target, Targets, Transaction, Usage, V2mFrame,
};

/// A VM's routing table: who has which GSI, what each fires, and the one way to change it. Clones are the same router.
///
/// Changes are staged in a [`Transaction`] and reach the kernel in one call, or not at all. Between two commits the kernel has exactly
/// what [`snapshot`](Self::snapshot) says. One lock orders allocations and commits; snapshots and counters never wait for the
/// kernel.
#[derive(Clone)]
pub struct Router {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    sink: Arc<dyn RoutingSink>,
    ready: IrqchipReady,
    pub(crate) rules: Rules,
    state: Mutex<State>,
    /// What `state` has of general interest, behind a lock that is never held for long.
    published: Mutex<Published>,
}

struct State {
    allocator: Allocator,
    /// Whether default routes of lines without an owner stay in the table.
    keep_defaults: bool,
    /// Lines without an owner and without a default route, since another GSI fired one of their pins when their owner left.
    bare: BTreeSet<Gsi>,
}

#[derive(Clone, Default)]
struct Published {
    snapshot: Arc<Snapshot>,
    counters: Counters,
}

/// What a commit came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The generation of the table now.
    pub generation: u64,
    /// Whether the kernel was called.
    pub installed: bool,
    /// How many entries the table has.
    pub entries: usize,
}

/// All locks guard values that are whole between any two statements, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Router {
    /// Takes over the routing table of the VM whose irqchip has just been initialised.
    ///
    /// The initialisation has left the model's default routes in the kernel; they are this router's first table. The VM is asked once how
    /// many entries its table may have and whether MSIs need device IDs: an ITS, if the VM is to have one, must exist by now.
    ///
    /// # Errors
    /// If `ready` is another VM's token, the VM cannot be asked, or has no table of the size that the model needs.
    pub fn new(
        sink: Arc<dyn RoutingSink>,
        capabilities: &dyn Capabilities,
        ready: &IrqchipReady,
        model: &'static IrqchipModel,
    ) -> Result<Self, Error> {
        Self::build(sink, capabilities, ready, model, None)
    }

    /// As [`new`](Self::new), for a VM whose VMM emulates a GICv2m frame: an MSI to the frame becomes a route to the SPI that it names.
    /// The frame's SPIs cannot be claimed as lines.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::FrameBeyondLines`] if the VM has not all of the frame's SPIs.
    pub fn with_v2m(
        sink: Arc<dyn RoutingSink>,
        capabilities: &dyn Capabilities,
        ready: &IrqchipReady,
        model: &'static IrqchipModel,
        frame: V2mFrame,
    ) -> Result<Self, Error> {
        let end = u64::from(frame.first.get()) + u64::from(frame.count);
        if !model.spis || end > u64::from(ready.lines()) {
            return Err(Error::FrameBeyondLines {
                first: frame.first,
                count: frame.count,
                lines: ready.lines(),
            });
        }
        Self::build(sink, capabilities, ready, model, Some(frame))
    }

    fn build(
        sink: Arc<dyn RoutingSink>,
        capabilities: &dyn Capabilities,
        ready: &IrqchipReady,
        model: &'static IrqchipModel,
        v2m: Option<V2mFrame>,
    ) -> Result<Self, Error> {
        if sink.vm_id() != ready.vm_id() {
            return Err(Error::OtherVm);
        }
        let ask = |capability| capabilities.capability(capability).map_err(Error::Probe);
        let identity_limit = || model.chips.iter().map(|chip| chip.pins).max().unwrap_or(0);
        let limit = match model.table {
            TableKind::Routed => ask(Capability::IrqRouting)?,
            TableKind::Identity => identity_limit(),
        };
        let msi = MsiPolicy { needs_device_id: ask(Capability::MsiDeviceId)? != 0, v2m };
        let rules = Rules { model, lines: ready.lines(), limit, msi };
        let table = Table::new(rules.default_entries());
        let line_gsis = model.line_gsis(rules.lines);
        let needed = line_gsis.end.max(u32::try_from(table.entries().len()).unwrap_or(u32::MAX)).max(1);
        if limit < needed {
            return Err(Error::NoTable { model: model.name, needed, limit });
        }
        let first = match model.table {
            TableKind::Routed => 0,
            TableKind::Identity => model.chips.iter().map(|chip| chip.first_pin).min().unwrap_or(0),
        };
        let allocator = Allocator::new(first, limit, line_gsis, table.entries().len());
        let published =
            Published { snapshot: Arc::new(Snapshot::new(0, table)), counters: Counters::default() };
        Ok(Self {
            shared: Arc::new(Shared {
                sink,
                ready: ready.clone(),
                rules,
                state: Mutex::new(State { allocator, keep_defaults: true, bare: BTreeSet::new() }),
                published: Mutex::new(published),
            }),
        })
    }

    /// Which VM's table this is.
    #[must_use]
    pub fn vm_id(&self) -> VmId {
        self.shared.ready.vm_id()
    }

    /// The token that the table was taken over with, for those who arm irqfds.
    #[must_use]
    pub fn ready(&self) -> &IrqchipReady {
        &self.shared.ready
    }

    /// The kind of irqchip.
    #[must_use]
    pub fn model(&self) -> &'static IrqchipModel {
        self.shared.rules.model
    }

    /// How many entries the table may have, and the number that each GSI lies below.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.shared.rules.limit
    }

    /// Whether the kernel is told who sends an MSI.
    #[must_use]
    pub fn msi_policy(&self) -> MsiPolicy {
        self.shared.rules.msi
    }

    /// Injects an MSI from userspace, with or without the sender as this VM wants it. One to a [`V2mFrame`] is no MSI to the kernel: see
    /// [`MsiPolicy::v2m_spi`].
    ///
    /// # Errors
    /// Those of [`MsiInjector::signal_msi`].
    pub fn signal_msi(
        &self,
        injector: &dyn MsiInjector,
        message: MsiMessage,
        sender: DeviceId,
    ) -> Result<MsiDelivery, irqchip::Error> {
        self.msi_policy().signal(injector, message, sender)
    }

    /// The table as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        lock(&self.shared.published).snapshot.clone()
    }

    /// What has been done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        lock(&self.shared.published).counters
    }

    /// Where the GSIs are. Waits for a commit under way.
    #[must_use]
    pub fn usage(&self) -> Usage {
        lock(&self.shared.state).allocator.usage()
    }

    /// Starts a transaction. Nothing happens before its commit.
    pub fn transaction(&self) -> Transaction {
        Transaction::new(self.clone())
    }

    /// The lowest free GSI that stands for no line, without a route yet.
    ///
    /// Costs no call to the kernel, unless all that is left are GSIs whose owners are gone and whose routes are not: then those are
    /// committed away first.
    ///
    /// # Errors
    /// [`Error::Exhausted`] if there is none, and those of a commit.
    pub fn allocate(&self) -> Result<GsiHandle, Error> {
        self.allocate_with(Allocator::allocate)
    }

    /// `count` GSIs, or none.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    pub fn allocate_many(&self, count: usize) -> Result<Vec<GsiHandle>, Error> {
        let budget = self.reserve_budget(count)?;
        (0..count).map(|_| budget.allocate()).collect()
    }

    pub(crate) fn allocate_with(
        &self,
        mut allocate: impl FnMut(&mut Allocator) -> Result<Allocated, Error>,
    ) -> Result<GsiHandle, Error> {
        let mut state = lock(&self.shared.state);
        let mut allocated = allocate(&mut state.allocator)?;
        if allocated == Allocated::PurgeFirst {
            self.shared.commit(&mut state, BTreeMap::new())?;
            allocated = allocate(&mut state.allocator)?;
        }
        match allocated {
            Allocated::Gsi(gsi, serial) => Ok(GsiHandle::new(self.clone(), gsi, serial)),
            Allocated::PurgeFirst => Err(Error::Exhausted {
                wanted: 1,
                available: 0,
                limit: self.limit(),
                promised: state.allocator.promised(),
            }),
        }
    }

    /// Promises `size` GSIs, and room in the table for as many routes, to a device that is about to be accepted.
    ///
    /// # Errors
    /// [`Error::Exhausted`] if there are not that many.
    pub fn reserve_budget(&self, size: usize) -> Result<Budget, Error> {
        let id = lock(&self.shared.state).allocator.promise(size)?;
        Ok(Budget::new(self.clone(), id))
    }

    /// Sets the GSIs of `range` aside: nobody is given one but by [`ReservedRange::claim`].
    ///
    /// # Errors
    /// [`Error::RangeNotFree`] if it is empty, or one of them is in use, stands for a line or lies beyond the limit;
    /// [`Error::Exhausted`] if a budget counts on them; those of a commit.
    pub fn reserve_range(&self, range: Range<u32>) -> Result<ReservedRange, Error> {
        let mut state = lock(&self.shared.state);
        if state.allocator.withdrawn().any(|gsi| range.contains(&gsi.get())) {
            self.shared.commit(&mut state, BTreeMap::new())?;
        }
        state.allocator.reserve(range.clone())?;
        Ok(ReservedRange::new(self.clone(), range))
    }

    /// The GSI that stands for an SPI, routed there.
    ///
    /// # Errors
    /// [`Error::NoSpis`] without a GIC; those of [`claim_line`](Self::claim_line).
    pub fn claim_spi(&self, spi: Spi) -> Result<GsiHandle, Error> {
        let mut transaction = self.transaction();
        let handle = transaction.claim_spi(spi)?;
        transaction.commit()?;
        Ok(handle)
    }

    /// As [`claim_spi`](Self::claim_spi), for a number that may be any interrupt of a GIC.
    ///
    /// # Errors
    /// [`Error::NotRoutable`] for anything but an SPI.
    pub fn claim_intid(&self, intid: Intid) -> Result<GsiHandle, Error> {
        match intid {
            Intid::Spi(spi) => self.claim_spi(spi),
            other => Err(Error::NotRoutable(other)),
        }
    }

    /// A GSI that stands for a line, routed to what it stands for. Costs no call to the kernel while the default route is still there.
    ///
    /// # Errors
    /// [`Error::NoSuchLine`] and [`Error::Taken`], and those of a commit.
    pub fn claim_line(&self, gsi: Gsi) -> Result<GsiHandle, Error> {
        let mut transaction = self.transaction();
        let handle = transaction.claim_line(gsi)?;
        transaction.commit()?;
        Ok(handle)
    }

    /// A GSI with a route that sends `message` from `sender`, committed.
    ///
    /// # Errors
    /// Those of [`allocate`](Self::allocate), [`Transaction::set_msi`] and [`Transaction::commit`]. The GSI is free again then.
    pub fn add_msi(&self, message: MsiMessage, sender: DeviceId) -> Result<GsiHandle, Error> {
        let mut transaction = self.transaction();
        let handle = transaction.add_msi(message, sender)?;
        transaction.commit()?;
        Ok(handle)
    }

    /// From now on lines that nobody owns have no route, but for those that the kernel itself fires. Takes effect with the next
    /// commit.
    ///
    /// A GIC's default table has an entry for each SPI, up to 960, which each commit copies again. A VMM that claims the lines it uses
    /// has no need of the others. Claiming a line later puts its route back.
    pub fn release_default_routes(&self) {
        let mut state = lock(&self.shared.state);
        if !std::mem::replace(&mut state.keep_defaults, false) {
            return;
        }
        for gsi in self.shared.rules.model.line_gsis(self.shared.rules.lines).map(Gsi::new) {
            if !state.bare.contains(&gsi) && !self.shared.rules.model.kernel_fires(gsi) {
                state.allocator.drop_default(gsi, self.shared.default_pins(gsi).count());
            }
        }
    }

    /// Commits what is withdrawn: routes whose handles are gone, and default routes that were released. None there, no call.
    ///
    /// # Errors
    /// [`Error::Commit`].
    pub fn flush(&self) -> Result<Commit, Error> {
        self.shared.commit(&mut lock(&self.shared.state), BTreeMap::new())
    }

    /// Hands the table to the kernel again, changed or not.
    ///
    /// # Errors
    /// [`Error::Commit`].
    pub fn reinstall(&self) -> Result<(), Error> {
        let _order = lock(&self.shared.state);
        self.shared.install(&self.snapshot().table().clone(), 0)
    }
}

impl Shared {
    /// The pins of the route that the kernel has made for `gsi`.
    fn default_pins(&self, gsi: Gsi) -> impl Iterator<Item = IrqchipPin> {
        let model = self.rules.model;
        model.line_pins(gsi, self.rules.lines).filter(|_| model.default_routes)
    }

    /// What `gsi` fires while nobody owns it.
    fn unowned(&self, state: &State, gsi: Gsi) -> Targets {
        let kept = state.keep_defaults || self.rules.model.kernel_fires(gsi);
        let pins: Vec<_> = self.default_pins(gsi).filter(|_| kept && !state.bare.contains(&gsi)).collect();
        if pins.is_empty() { Targets::Nothing } else { Targets::Lines(pins) }
    }

    pub(crate) fn lock_allocator<R>(&self, f: impl FnOnce(&mut Allocator) -> R) -> R {
        f(&mut lock(&self.state).allocator)
    }

    pub(crate) fn table(&self) -> Arc<Snapshot> {
        lock(&self.published).snapshot.clone()
    }

    /// Makes somebody the owner of a line's GSI.
    pub(crate) fn own_line(&self, gsi: Gsi) -> Result<u64, Error> {
        let mut state = lock(&self.state);
        if self.rules.model.table == TableKind::Identity {
            return state.allocator.claim_free(gsi);
        }
        let defaults = self.unowned(&state, gsi).len();
        let entries = self.table().of(gsi).len();
        let serial = state.allocator.claim_line(gsi, defaults, entries)?;
        state.bare.remove(&gsi);
        Ok(serial)
    }

    /// The owner of `gsi` is gone.
    pub(crate) fn release(&self, gsi: Gsi, serial: u64) {
        let mut state = lock(&self.state);
        let snapshot = self.table();
        let fired_by_others = |pin| {
            let target = Target::Line(pin);
            snapshot.iter().any(|entry| entry.target == target && entry.gsi != gsi)
        };
        if self.default_pins(gsi).any(fired_by_others) {
            state.bare.insert(gsi);
        }
        let unowned = self.unowned(&state, gsi);
        let stale = snapshot.table().targets(gsi) != unowned;
        state.allocator.release(gsi, serial, unowned.len(), stale);
    }

    /// Commits the changes of those who still own their GSIs.
    pub(crate) fn commit_staged(&self, staged: &BTreeMap<Gsi, (u64, Targets)>) -> Result<Commit, Error> {
        let mut state = lock(&self.state);
        let changes = staged
            .iter()
            .filter(|&(&gsi, &(serial, _))| state.allocator.serial(gsi) == Some(serial))
            .map(|(&gsi, (_, targets))| (gsi, targets.clone()))
            .collect();
        self.commit(&mut state, changes)
    }

    /// The one place where the table changes. `changes` are of owned GSIs; what is withdrawn goes along.
    fn commit(&self, state: &mut State, mut changes: BTreeMap<Gsi, Targets>) -> Result<Commit, Error> {
        let snapshot = self.table();
        let old = snapshot.table();
        let owned: Vec<(Gsi, usize)> = changes.iter().map(|(&gsi, targets)| (gsi, targets.len())).collect();
        for gsi in state.allocator.withdrawn() {
            changes.insert(gsi, self.unowned(state, gsi));
        }
        // From here on only what differs counts, so that changing nothing costs next to nothing.
        changes.retain(|&gsi, targets| old.targets(gsi) != *targets);
        if changes.is_empty() {
            state.allocator.purged();
            lock(&self.published).counters.skipped += 1;
            let (generation, entries) = (snapshot.generation(), old.entries().len());
            return Ok(Commit { generation, installed: false, entries });
        }
        let table = old.with(&changes);
        self.check(state, &owned, &changes, &table).inspect_err(|_| {
            lock(&self.published).counters.refused += 1;
        })?;

        let routed = self.rules.model.table == TableKind::Routed;
        let installed = routed && self.kernel_would_notice(old, &table, &changes);
        if installed {
            self.install(&table, changes.len())?;
        }
        // The kernel has it. From here on nothing can fail.
        for (gsi, entries) in owned {
            state.allocator.set_entries(gsi, entries);
        }
        state.allocator.purged();
        let mut published = lock(&self.published);
        if !installed {
            published.counters.skipped += 1;
        }
        let entries = table.entries().len();
        let generation = snapshot.generation() + 1;
        published.snapshot = Arc::new(Snapshot::new(generation, table));
        Ok(Commit { generation, installed, entries })
    }

    /// What can only be said of the table as a whole: that it fits, and that no pin is fired by two GSIs.
    fn check(
        &self,
        state: &State,
        owned: &[(Gsi, usize)],
        changes: &BTreeMap<Gsi, Targets>,
        table: &Table,
    ) -> Result<(), Error> {
        let entries = state.allocator.entries_with(owned.iter().copied());
        let promised = state.allocator.promised();
        if entries + promised > self.rules.limit as usize {
            return Err(Error::TooManyEntries { entries, promised, limit: self.rules.limit });
        }
        if changes.values().any(|targets| matches!(targets, Targets::Lines(_))) {
            let mut firing = BTreeMap::new();
            for entry in table.entries() {
                if let Target::Line(pin) = entry.target
                    && let Some(other) = firing.insert(pin, entry.gsi)
                {
                    let changed = if changes.contains_key(&entry.gsi) { entry.gsi } else { other };
                    let other = if changed == other { entry.gsi } else { other };
                    return Err(Error::PinTaken { gsi: changed, pin, other });
                }
            }
        }
        Ok(())
    }

    /// Whether the two tables, which differ in `changes`, differ in what the kernel is told.
    fn kernel_would_notice(&self, old: &Table, new: &Table, changes: &BTreeMap<Gsi, Targets>) -> bool {
        let told = |entry: &Entry| self.rules.msi.route_target(entry.target);
        changes.keys().any(|&gsi| !old.of(gsi).iter().map(told).eq(new.of(gsi).iter().map(told)))
    }

    fn install(&self, table: &Table, changed: usize) -> Result<(), Error> {
        let routes: Vec<Route> = table
            .entries()
            .iter()
            .map(|entry| Route { gsi: entry.gsi, target: self.rules.msi.route_target(entry.target) })
            .collect();
        let result = self.sink.set_routes(&routes);
        let mut published = lock(&self.published);
        published.counters.entries_copied += routes.len() as u64;
        match result {
            Ok(()) => {
                published.counters.commits += 1;
                Ok(())
            }
            Err(source) => {
                published.counters.failures += 1;
                Err(Error::Commit { changed, source })
            }
        }
    }
}

impl Router {
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("vm", &self.vm_id())
            .field("model", &self.model().name)
            .field("generation", &self.snapshot().generation())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
