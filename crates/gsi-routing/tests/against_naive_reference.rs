// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The router against a reference that is too simple to be wrong: sets and maps, recomputed from scratch each time.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use common::{believed, device, in_kernel, msi};
use gsi_routing::{Budget, Error, GsiHandle, ReservedRange, Router, Target, Targets, models};
use irq_types::{Gsi, IrqchipPin, Pin};
use irqchip::fake::{Call, FakeHost, FakeVm, Fault};
use irqchip::{CreateDevice, DeviceKind, Errno, IrqchipReady, Route, RouteTarget};
use proptest::prelude::*;

/// What may be done. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    Allocate,
    Claim(u32),
    Drop(usize),
    Promise(usize),
    Grow(usize, usize),
    Shrink(usize, usize),
    AllocatePromised(usize),
    EndPromise(usize),
    Reserve(u32, u32),
    ClaimReserved(usize, u32),
    Unreserve(usize),
    Commit(Vec<Change>, Option<Errno>),
    Flush(Option<Errno>),
    ReleaseDefaults,
}

#[derive(Debug, Clone)]
enum Change {
    SetMsi(usize, u32, u32),
    AddLine(usize, u32, u32),
    Clear(usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (any::<usize>(), 0u32..4, 0u32..4).prop_map(|(h, e, d)| Change::SetMsi(h, e, d)),
        2 => (any::<usize>(), 0u32..4, 0u32..40).prop_map(|(h, c, p)| Change::AddLine(h, c, p)),
        // Few enough pins that two GSIs want the same.
        3 => (any::<usize>(), prop::sample::select(vec![0u32, 2]), 0u32..6)
            .prop_map(|(h, c, p)| Change::AddLine(h, c, p)),
        1 => any::<usize>().prop_map(Change::Clear),
    ]
}

fn errno() -> impl Strategy<Value = Option<Errno>> {
    prop::option::weighted(0.2, prop::sample::select(vec![Errno::ENOMEM, Errno::EINVAL]))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Allocate),
        2 => (0u32..50).prop_map(Step::Claim),
        3 => (0u32..6).prop_map(Step::Claim),
        5 => any::<usize>().prop_map(Step::Drop),
        2 => (0usize..6).prop_map(Step::Promise),
        1 => (any::<usize>(), 0usize..6).prop_map(|(b, n)| Step::Grow(b, n)),
        1 => (any::<usize>(), 0usize..6).prop_map(|(b, n)| Step::Shrink(b, n)),
        4 => any::<usize>().prop_map(Step::AllocatePromised),
        1 => any::<usize>().prop_map(Step::EndPromise),
        1 => (20u32..60, 0u32..6).prop_map(|(start, len)| Step::Reserve(start, len)),
        2 => (any::<usize>(), 0u32..6).prop_map(|(r, n)| Step::ClaimReserved(r, n)),
        1 => any::<usize>().prop_map(Step::Unreserve),
        8 => (prop::collection::vec(change(), 0..6), errno()).prop_map(|(c, e)| Step::Commit(c, e)),
        2 => errno().prop_map(Step::Flush),
        1 => Just(Step::ReleaseDefaults),
    ]
}

#[derive(Debug, Clone)]
struct Owned {
    budget: Option<usize>,
    floor: usize,
}

/// The reference.
struct Naive {
    limit: u32,
    /// GSI of each line to its pins.
    lines: BTreeMap<u32, Vec<IrqchipPin>>,
    keep: bool,
    kernel_user: Option<u32>,
    /// Lines whose default route cannot come back, since somebody else fires their pins.
    bare: BTreeSet<u32>,
    table: BTreeMap<u32, Targets>,
    owned: BTreeMap<u32, Owned>,
    withdrawn: BTreeSet<u32>,
    reserved: Vec<Option<Range<u32>>>,
    budgets: Vec<Option<usize>>,
}

impl Naive {
    fn unowned(&self, gsi: u32) -> Targets {
        match self.lines.get(&gsi) {
            Some(_) if self.bare.contains(&gsi) => Targets::Nothing,
            Some(pins) if self.keep || self.kernel_user == Some(gsi) => Targets::Lines(pins.clone()),
            _ => Targets::Nothing,
        }
    }

    fn now(&self, gsi: u32) -> Targets {
        self.table.get(&gsi).cloned().unwrap_or(Targets::Nothing)
    }

    fn entries(&self) -> usize {
        let of = |gsi: u32| match self.owned.get(&gsi) {
            Some(owned) => self.now(gsi).len().max(owned.floor),
            None => self.unowned(gsi).len(),
        };
        (0..self.limit).map(of).sum()
    }

    fn promised(&self) -> usize {
        self.budgets.iter().flatten().sum()
    }

    fn in_range(&self, gsi: u32) -> bool {
        self.reserved.iter().flatten().any(|range| range.contains(&gsi))
    }

    /// Free now, or after a commit.
    fn anybodys(&self, gsi: u32) -> bool {
        !self.lines.contains_key(&gsi) && !self.in_range(gsi) && !self.owned.contains_key(&gsi)
    }

    fn free(&self) -> BTreeSet<u32> {
        (0..self.limit).filter(|gsi| self.anybodys(*gsi) && !self.withdrawn.contains(gsi)).collect()
    }

    fn available(&self) -> usize {
        let numbers = (0..self.limit).filter(|&gsi| self.anybodys(gsi)).count();
        numbers.min(self.limit as usize - self.entries()) - self.promised()
    }

    fn purge(&mut self) {
        for gsi in std::mem::take(&mut self.withdrawn) {
            self.set(gsi, self.unowned(gsi));
        }
    }

    fn set(&mut self, gsi: u32, targets: Targets) {
        if targets.is_empty() {
            self.table.remove(&gsi);
        } else {
            self.table.insert(gsi, targets);
        }
    }

    fn take_lowest(&mut self, budget: Option<usize>) -> u32 {
        if self.free().is_empty() {
            self.purge();
        }
        let gsi = *self.free().first().unwrap();
        self.owned.insert(gsi, Owned { budget, floor: 1 });
        gsi
    }

    fn release(&mut self, gsi: u32) {
        let owned = self.owned.remove(&gsi).unwrap();
        if let Some(left) = owned.budget.and_then(|id| self.budgets[id].as_mut()) {
            *left += 1;
        }
        let pins = self.lines.get(&gsi).cloned().unwrap_or_default();
        let others = self.table.iter().filter(|&(&other, _)| other != gsi);
        let mut fired =
            others.filter_map(|(_, t)| if let Targets::Lines(p) = t { Some(p) } else { None }).flatten();
        if fired.any(|pin| pins.contains(pin)) {
            self.bare.insert(gsi);
        }
        if self.now(gsi) != self.unowned(gsi) {
            self.withdrawn.insert(gsi);
        }
    }

    fn kernel_table(&self) -> Vec<Route> {
        let mut routes = Vec::new();
        for (&gsi, targets) in &self.table {
            let gsi = Gsi::new(gsi);
            match targets {
                Targets::Nothing => {}
                Targets::Lines(pins) => {
                    routes.extend(pins.iter().map(|&pin| Route { gsi, target: RouteTarget::Line(pin) }));
                }
                &Targets::Msi { message, device_id } => routes.push(Route {
                    gsi,
                    target: RouteTarget::Msi {
                        message,
                        device_id: self.kernel_user.is_none().then_some(device_id),
                    },
                }),
            }
        }
        routes.sort_unstable();
        routes
    }
}

struct World {
    vm: Arc<FakeVm>,
    router: Router,
    naive: Naive,
    handles: Vec<GsiHandle>,
    budgets: Vec<Option<Budget>>,
    ranges: Vec<Option<ReservedRange>>,
}

fn pick<T>(items: &[T], n: usize) -> Option<usize> {
    n.checked_rem(items.len())
}

impl World {
    /// arm64 with 32 SPIs or x86, and a table of `limit` entries.
    fn new(x86: bool, limit: u32) -> Self {
        let host = if x86 { FakeHost::x86() } else { FakeHost::arm64_gicv3() };
        let vm = Arc::new(FakeHost { routing_limit: limit, ..host }.vm());
        let pin = |irqchip, n| IrqchipPin { irqchip, pin: Pin::new(n) };
        let (ready, model, lines, kernel_user) = if x86 {
            let ready = IrqchipReady::create_pic_and_ioapic(&*vm).unwrap();
            let pins = |gsi| match gsi {
                0..8 => vec![pin(0, gsi), pin(2, gsi)],
                8..16 => vec![pin(1, gsi - 8), pin(2, gsi)],
                _ => vec![pin(2, gsi)],
            };
            let lines: BTreeMap<_, _> = (0..24).map(|gsi| (gsi, pins(gsi))).collect();
            (ready, &models::X86_PIC_IOAPIC, lines, Some(0))
        } else {
            let gic = vm.create_device(DeviceKind::GicV3).unwrap();
            gic.set_attr(irqchip::arm::NR_IRQS, irqchip::AttrValue::U32(64)).unwrap();
            vm.create_vcpu(0).unwrap();
            vm.create_device(DeviceKind::Its).unwrap();
            let ready = IrqchipReady::init_vgic(&*gic, 32).unwrap();
            (ready, &models::ARM_GIC, (0..32).map(|gsi| (gsi, vec![pin(0, gsi)])).collect(), None)
        };
        let router = Router::new(vm.clone(), &*vm, &ready, model).unwrap();
        let table = lines.iter().map(|(&gsi, pins)| (gsi, Targets::Lines(pins.clone()))).collect();
        let naive = Naive {
            limit,
            lines,
            keep: true,
            kernel_user,
            bare: BTreeSet::new(),
            table,
            owned: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            reserved: Vec::new(),
            budgets: Vec::new(),
        };
        let (handles, budgets, ranges) = (Vec::new(), Vec::new(), Vec::new());
        Self { vm, router, naive, handles, budgets, ranges }
    }

    fn expect(&mut self, got: Result<GsiHandle, Error>, want: Option<u32>) -> Result<(), TestCaseError> {
        match (got, want) {
            (Ok(handle), Some(gsi)) => {
                prop_assert_eq!(handle.gsi().get(), gsi);
                self.handles.push(handle);
            }
            (Err(Error::Exhausted { .. } | Error::Taken { .. } | Error::NoSuchLine { .. }), None) => {}
            (got, want) => prop_assert!(false, "{:?} instead of {:?}", got, want),
        }
        Ok(())
    }

    fn run(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Allocate => {
                let want = (self.naive.available() > 0).then(|| self.naive.take_lowest(None));
                let got = self.router.allocate();
                self.expect(got, want)?;
            }
            Step::Claim(n) => {
                let naive = &mut self.naive;
                let defaults = naive.unowned(n).len();
                let floor = defaults.max(1);
                let now = naive.now(n).len().max(floor);
                let fits = naive.entries() - defaults + now + naive.promised() <= naive.limit as usize;
                let can = naive.lines.contains_key(&n) && !naive.owned.contains_key(&n) && fits;
                // Claiming is taking, then committing: the taking stays undone if the commit is refused.
                let mut transaction = self.router.transaction();
                let got = transaction.claim_line(Gsi::new(n));
                if can {
                    naive.withdrawn.remove(&n);
                    naive.bare.remove(&n);
                    naive.owned.insert(n, Owned { budget: None, floor });
                }
                self.expect(got, can.then_some(n))?;
                if can {
                    let pins = self.naive.lines[&n].clone();
                    self.commit(vec![(n, Targets::Lines(pins))], &mut transaction, None)?;
                }
            }
            Step::Drop(n) => {
                if let Some(n) = pick(&self.handles, n) {
                    let handle = self.handles.swap_remove(n);
                    self.naive.release(handle.gsi().get());
                }
            }
            Step::Promise(size) => {
                let can = self.naive.available() >= size;
                let got = self.router.reserve_budget(size);
                prop_assert_eq!(got.is_ok(), can);
                if let Ok(budget) = got {
                    self.naive.budgets.push(Some(size));
                    self.budgets.push(Some(budget));
                }
            }
            Step::Grow(n, more) => {
                if let Some(n) = pick(&self.budgets, n)
                    && let Some(budget) = &self.budgets[n]
                {
                    let can = self.naive.available() >= more;
                    prop_assert_eq!(budget.grow(more).is_ok(), can);
                    if can {
                        *self.naive.budgets[n].as_mut().unwrap() += more;
                    }
                }
            }
            Step::Shrink(n, less) => {
                if let Some(n) = pick(&self.budgets, n)
                    && let Some(budget) = &self.budgets[n]
                {
                    let left = self.naive.budgets[n].as_mut().unwrap();
                    let less_want = less.min(*left);
                    *left -= less_want;
                    prop_assert_eq!(budget.shrink(less), less_want);
                }
            }
            Step::AllocatePromised(n) => {
                if let Some(n) = pick(&self.budgets, n)
                    && let Some(budget) = &self.budgets[n]
                {
                    let can = self.naive.budgets[n].unwrap() > 0;
                    let got = budget.allocate();
                    let want = can.then(|| {
                        *self.naive.budgets[n].as_mut().unwrap() -= 1;
                        self.naive.take_lowest(Some(n))
                    });
                    self.expect(got, want)?;
                }
            }
            Step::EndPromise(n) => {
                if let Some(n) = pick(&self.budgets, n) {
                    self.budgets[n] = None;
                    self.naive.budgets[n] = None;
                }
            }
            Step::Reserve(start, len) => {
                let range = start..start + len;
                let naive = &mut self.naive;
                if naive.withdrawn.iter().any(|gsi| range.contains(gsi)) {
                    naive.purge();
                }
                let free = naive.free();
                let numbers = (0..naive.limit).filter(|&gsi| naive.anybodys(gsi)).count();
                let can = len > 0
                    && range.clone().all(|gsi| free.contains(&gsi))
                    && numbers >= naive.promised() + len as usize;
                let got = self.router.reserve_range(range.clone());
                prop_assert_eq!(got.is_ok(), can, "{:?}", got);
                if let Ok(reserved) = got {
                    naive.reserved.push(Some(range));
                    self.ranges.push(Some(reserved));
                }
            }
            Step::ClaimReserved(n, offset) => {
                if let Some(n) = pick(&self.ranges, n)
                    && let Some(reserved) = &self.ranges[n]
                {
                    let gsi = reserved.range().start + offset;
                    let naive = &mut self.naive;
                    let fits = naive.entries() + naive.promised() < naive.limit as usize;
                    let can = reserved.range().contains(&gsi) && !naive.owned.contains_key(&gsi) && fits;
                    if can {
                        if naive.withdrawn.contains(&gsi) {
                            naive.purge();
                        }
                        naive.owned.insert(gsi, Owned { budget: None, floor: 1 });
                    }
                    let got = reserved.claim(Gsi::new(gsi));
                    self.expect(got, can.then_some(gsi))?;
                }
            }
            Step::Unreserve(n) => {
                if let Some(n) = pick(&self.ranges, n) {
                    self.ranges[n] = None;
                    self.naive.reserved[n] = None;
                }
            }
            Step::Commit(changes, fault) => {
                let mut transaction = self.router.transaction();
                let mut staged: BTreeMap<u32, Targets> = BTreeMap::new();
                for change in changes {
                    self.stage(&mut transaction, &mut staged, &change)?;
                }
                self.commit(staged.into_iter().collect(), &mut transaction, fault)?;
            }
            Step::Flush(fault) => {
                let mut transaction = self.router.transaction();
                self.commit(Vec::new(), &mut transaction, fault)?;
            }
            Step::ReleaseDefaults => {
                self.router.release_default_routes();
                let naive = &mut self.naive;
                naive.keep = false;
                for gsi in 0..naive.limit {
                    if !naive.owned.contains_key(&gsi) && naive.now(gsi) != naive.unowned(gsi) {
                        naive.withdrawn.insert(gsi);
                    }
                }
            }
        }
        Ok(())
    }

    fn stage(
        &self,
        transaction: &mut gsi_routing::Transaction,
        staged: &mut BTreeMap<u32, Targets>,
        change: &Change,
    ) -> Result<(), TestCaseError> {
        let (Change::SetMsi(n, ..) | Change::AddLine(n, ..) | Change::Clear(n)) = change;
        let Some(n) = pick(&self.handles, *n) else { return Ok(()) };
        let handle = &self.handles[n];
        let gsi = handle.gsi().get();
        let now = staged.get(&gsi).cloned().unwrap_or_else(|| self.naive.now(gsi));
        match *change {
            Change::Clear(_) => {
                transaction.clear(handle).unwrap();
                staged.insert(gsi, Targets::Nothing);
            }
            Change::SetMsi(_, event, id) => {
                let got = transaction.set_msi(handle, msi(event), device(id));
                if matches!(now, Targets::Lines(_)) {
                    prop_assert_eq!(got, Err(Error::Mixed { gsi: handle.gsi() }));
                } else {
                    prop_assert_eq!(got, Ok(()));
                    staged.insert(gsi, Targets::Msi { message: msi(event), device_id: device(id) });
                }
            }
            Change::AddLine(_, irqchip, pin) => {
                let wired = match (self.naive.kernel_user.is_some(), irqchip) {
                    (true, 0 | 1) => pin < 8,
                    (true, 2) => pin < 24,
                    (false, 0) => pin < 32,
                    _ => false,
                };
                let pin = IrqchipPin { irqchip, pin: Pin::new(pin) };
                let got = transaction.add_line(handle, pin);
                let mut pins = match now {
                    Targets::Msi { .. } => {
                        prop_assert_eq!(got, Err(Error::Mixed { gsi: handle.gsi() }));
                        return Ok(());
                    }
                    Targets::Lines(pins) => pins,
                    Targets::Nothing => Vec::new(),
                };
                let there = pins.contains(&pin);
                let duplicate = pins.iter().any(|other| other.irqchip == irqchip);
                prop_assert_eq!(got.is_ok(), there || (wired && !duplicate), "{:?}", got);
                if got.is_ok() {
                    if !there {
                        pins.push(pin);
                        pins.sort_unstable();
                    }
                    staged.insert(gsi, Targets::Lines(pins));
                }
            }
        }
        Ok(())
    }

    fn commit(
        &mut self,
        staged: Vec<(u32, Targets)>,
        transaction: &mut gsi_routing::Transaction,
        fault: Option<Errno>,
    ) -> Result<(), TestCaseError> {
        let naive = &mut self.naive;
        let mut after = Naive {
            lines: naive.lines.clone(),
            bare: naive.bare.clone(),
            table: naive.table.clone(),
            owned: naive.owned.clone(),
            withdrawn: naive.withdrawn.clone(),
            reserved: naive.reserved.clone(),
            budgets: naive.budgets.clone(),
            ..*naive
        };
        let only_withdrawn = staged.is_empty();
        let touches_lines = staged.iter().any(|(_, t)| matches!(t, Targets::Lines(_)))
            || naive.withdrawn.iter().any(|&gsi| matches!(naive.unowned(gsi), Targets::Lines(_)));
        for (gsi, targets) in staged {
            after.set(gsi, targets);
        }
        after.purge();
        let changed = after.table != naive.table;
        let too_many = after.entries() + after.promised() > after.limit as usize;
        let mut pins = BTreeSet::new();
        let twice = after
            .table
            .values()
            .filter_map(|targets| if let Targets::Lines(pins) = targets { Some(pins) } else { None })
            .flatten()
            .any(|&pin| !pins.insert(pin));

        self.vm.forget_calls();
        if let Some(errno) = fault {
            self.vm.inject(Fault::next(Call::SetRoutes, errno));
        }
        let got = transaction.commit();
        self.vm.clear_faults();
        let calls = self.vm.count(Call::SetRoutes);
        match got {
            Err(Error::TooManyEntries { .. }) => prop_assert!(too_many && calls == 0 && !only_withdrawn),
            Err(Error::PinTaken { .. }) => {
                prop_assert!(twice && touches_lines && calls == 0);
                prop_assert!(!only_withdrawn, "what is withdrawn can always be committed");
            }
            Err(Error::Commit { source, .. }) => {
                prop_assert!(changed && !too_many && !twice && calls == 1);
                prop_assert_eq!(Some(source.errno), fault);
            }
            Ok(commit) => {
                prop_assert!(!too_many && (!twice || !touches_lines || !changed));
                prop_assert!(!(changed && fault.is_some() && commit.installed));
                prop_assert_eq!(commit.installed, calls == 1);
                *naive = after;
            }
            Err(other) => prop_assert!(false, "{:?}", other),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let (usage, naive) = (self.router.usage(), &self.naive);
        prop_assert_eq!(in_kernel(&self.vm), believed(&self.router));
        prop_assert_eq!(believed(&self.router), naive.kernel_table());
        let snapshot = self.router.snapshot();
        prop_assert!(snapshot.table().entries().is_sorted());
        for handle in &self.handles {
            prop_assert_eq!(handle.targets(), naive.now(handle.gsi().get()));
        }
        prop_assert_eq!(usage.owned, naive.owned.len());
        prop_assert_eq!(usage.free, naive.free().len());
        prop_assert_eq!(usage.withdrawn, naive.withdrawn.len());
        prop_assert_eq!(usage.promised, naive.promised());
        prop_assert_eq!(usage.entries, naive.entries());
        prop_assert!(usage.entries + usage.promised <= naive.limit as usize);
        for (budget, left) in self.budgets.iter().zip(&naive.budgets) {
            prop_assert_eq!(budget.as_ref().map(Budget::left), *left);
        }
        Ok(())
    }

    /// Every promise can be kept, and in the end everything is as in the beginning.
    fn finish(mut self) -> Result<(), TestCaseError> {
        let mut taken = Vec::new();
        for budget in self.budgets.iter().flatten() {
            while budget.left() > 0 {
                let handle = budget.allocate().map_err(|e| TestCaseError::fail(e.to_string()))?;
                let mut transaction = self.router.transaction();
                transaction.set_msi(&handle, msi(9), device(9)).unwrap();
                transaction.commit().map_err(|e| TestCaseError::fail(e.to_string()))?;
                taken.push(handle);
            }
        }
        drop(taken);
        self.handles.clear();
        self.budgets.clear();
        self.ranges.clear();
        self.router.flush().unwrap();
        let usage = self.router.usage();
        prop_assert_eq!((usage.owned, usage.withdrawn, usage.reserved, usage.promised), (0, 0, 0, 0));
        prop_assert_eq!(usage.free, self.naive.limit as usize - self.naive.lines.len());
        let snapshot = self.router.snapshot();
        prop_assert!(snapshot.iter().all(|entry| matches!(entry.target, Target::Line(_))));
        prop_assert_eq!(in_kernel(&self.vm), believed(&self.router));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_gic_vm_behaves_like_the_reference(steps in prop::collection::vec(step(), 0..80)) {
        let mut world = World::new(false, 56);
        for step in steps {
            world.run(step)?;
            world.check()?;
        }
        world.finish()?;
    }

    #[test]
    fn an_x86_vm_behaves_like_the_reference(steps in prop::collection::vec(step(), 0..80)) {
        let mut world = World::new(true, 56);
        for step in steps {
            world.run(step)?;
            world.check()?;
        }
        world.finish()?;
    }
}
