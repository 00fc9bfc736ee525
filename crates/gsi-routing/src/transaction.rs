// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::BTreeMap;

use irq_types::{DeviceId, Gsi, IrqchipPin, MsiMessage, Pin, Spi};
use irqchip::arm;

use crate::{Commit, Error, GsiHandle, Router, TableKind, Targets};

/// Changes to the table that are made together or not at all.
///
/// Whatever is staged is checked at once against what this VM's irqchip can do; the kernel would accept much of what never arrives.
/// Nothing is changed before [`commit`](Self::commit), and dropping the transaction forgets what was staged. A later change of the same GSI
/// replaces the earlier one. If a handle is dropped before the commit, the changes staged for it are dropped too.
///
/// An irqfd on a GSI whose route is about to change wants to be disarmed before the commit and armed after it.
#[derive(Debug)]
#[must_use = "staged changes are forgotten unless committed"]
pub struct Transaction {
    router: Router,
    staged: BTreeMap<Gsi, (u64, Targets)>,
}

impl Transaction {
    pub(crate) fn new(router: Router) -> Self {
        Self { router, staged: BTreeMap::new() }
    }

    /// Which table it changes.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// How many GSIs are staged.
    #[must_use]
    pub fn len(&self) -> usize {
        self.staged.len()
    }

    /// Whether nothing is staged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.staged.is_empty()
    }

    fn own(&self, gsi: &GsiHandle) -> Result<Gsi, Error> {
        if !self.router.is(gsi.router()) {
            return Err(Error::OtherRouter { gsi: gsi.gsi() });
        }
        Ok(gsi.gsi())
    }

    /// What the GSI is to fire as far as is known now: what is staged, or what was committed.
    fn current(&self, handle: &GsiHandle) -> Targets {
        match self.staged.get(&handle.gsi()) {
            Some((serial, targets)) if *serial == handle.serial() => targets.clone(),
            _ => handle.targets(),
        }
    }

    fn stage(&mut self, handle: &GsiHandle, targets: Targets) {
        self.staged.insert(handle.gsi(), (handle.serial(), targets));
    }

    /// The GSI sends `message` from `sender` and nothing else. The sender is always given; whether the kernel is told is the router's
    /// business.
    ///
    /// # Errors
    /// [`Error::Mixed`] if the GSI fires lines; [`Error::NoMsiReceiver`], [`Error::DeviceIdTooWide`], [`Error::NotItsOwnSource`],
    /// [`Error::OtherRouter`].
    pub fn set_msi(
        &mut self,
        handle: &GsiHandle,
        message: MsiMessage,
        sender: DeviceId,
    ) -> Result<(), Error> {
        let gsi = self.own(handle)?;
        if matches!(self.current(handle), Targets::Lines(_)) {
            return Err(Error::Mixed { gsi });
        }
        self.router.shared().rules.check_msi(gsi, message, sender)?;
        self.stage(handle, Targets::Msi { message, device_id: sender });
        Ok(())
    }

    /// The GSI fires `pin`, beside pins of other irqchips that it fires already.
    ///
    /// # Errors
    /// [`Error::Mixed`] if the GSI sends an MSI; [`Error::DuplicateChip`], [`Error::NoSuchChip`], [`Error::NoSuchPin`],
    /// [`Error::NotItsOwnSource`], [`Error::OtherRouter`].
    pub fn add_line(&mut self, handle: &GsiHandle, pin: IrqchipPin) -> Result<(), Error> {
        let gsi = self.own(handle)?;
        let mut pins = match self.current(handle) {
            Targets::Nothing => Vec::new(),
            Targets::Lines(pins) => pins,
            Targets::Msi { .. } => return Err(Error::Mixed { gsi }),
        };
        if pins.contains(&pin) {
            self.stage(handle, Targets::Lines(pins));
            return Ok(());
        }
        if pins.iter().any(|other| other.irqchip == pin.irqchip) {
            return Err(Error::DuplicateChip { gsi, pin });
        }
        self.router.shared().rules.check_line(gsi, pin)?;
        pins.push(pin);
        pins.sort_unstable();
        self.stage(handle, Targets::Lines(pins));
        Ok(())
    }

    /// The GSI fires nothing. It stays yours.
    ///
    /// # Errors
    /// [`Error::OtherRouter`].
    pub fn clear(&mut self, handle: &GsiHandle) -> Result<(), Error> {
        self.own(handle)?;
        self.stage(handle, Targets::Nothing);
        Ok(())
    }

    /// Allocates a GSI and stages its route. The GSI is yours at once; without the commit it fires nothing.
    ///
    /// # Errors
    /// Those of [`Router::allocate`] and [`set_msi`](Self::set_msi).
    pub fn add_msi(&mut self, message: MsiMessage, sender: DeviceId) -> Result<GsiHandle, Error> {
        let handle = self.router.allocate()?;
        self.set_msi(&handle, message, sender)?;
        Ok(handle)
    }

    /// Claims the GSI that stands for an SPI, and stages its route.
    ///
    /// # Errors
    /// [`Error::NoSpis`] without a GIC; those of [`claim_line`](Self::claim_line).
    pub fn claim_spi(&mut self, spi: Spi) -> Result<GsiHandle, Error> {
        let model = self.router.model();
        if !model.spis {
            return Err(Error::NoSpis { spi, model: model.name });
        }
        self.claim_line(arm::default_gsi(spi.pin()))
    }

    /// Claims a GSI that stands for a line, and stages the route to what it stands for. Where that is the default route and still in the
    /// table, the commit has nothing to do.
    ///
    /// # Errors
    /// [`Error::NoSuchLine`], [`Error::Taken`], [`Error::Exhausted`].
    pub fn claim_line(&mut self, gsi: Gsi) -> Result<GsiHandle, Error> {
        let shared = self.router.shared();
        let rules = shared.rules;
        let pins: Vec<IrqchipPin> = match rules.model.table {
            TableKind::Routed => rules.model.line_pins(gsi, rules.lines).collect(),
            TableKind::Identity => vec![IrqchipPin { irqchip: 0, pin: Pin::new(gsi.get()) }],
        };
        if pins.is_empty() || pins.iter().any(|&pin| rules.check_line(gsi, pin).is_err()) {
            return Err(Error::NoSuchLine { gsi, model: rules.model.name, lines: rules.lines });
        }
        if rules.model.spis && rules.msi.v2m.is_some_and(|frame| frame.has_pin(gsi.get())) {
            return Err(Error::Taken { gsi });
        }
        let serial = shared.own_line(gsi)?;
        let handle = GsiHandle::new(self.router.clone(), gsi, serial);
        self.stage(&handle, Targets::Lines(pins));
        Ok(handle)
    }

    /// All MSIs get the sender that `new_id` gives for their old one: the bus has been renumbered. What is staged is renumbered too.
    /// Returns how many GSIs change.
    ///
    /// # Errors
    /// [`Error::DeviceIdTooWide`]; nothing is staged then.
    pub fn renumber_devices(&mut self, mut new_id: impl FnMut(DeviceId) -> DeviceId) -> Result<usize, Error> {
        let rules = self.router.shared().rules;
        let mut renumbered = Vec::new();
        for (gsi, serial, targets) in self.all_current() {
            if let Targets::Msi { message, device_id } = targets {
                let id = new_id(device_id);
                if id != device_id {
                    rules.check_msi(gsi, message, id)?;
                    renumbered.push((gsi, (serial, Targets::Msi { message, device_id: id })));
                }
            }
        }
        let count = renumbered.len();
        self.staged.extend(renumbered);
        Ok(count)
    }

    /// What each owned GSI is to fire as far as is known now.
    fn all_current(&self) -> Vec<(Gsi, u64, Targets)> {
        let table = self.router.snapshot();
        let mut all: BTreeMap<Gsi, (u64, Targets)> = BTreeMap::new();
        self.router.shared().lock_allocator(|allocator| {
            for entry in table.iter() {
                if let Some(serial) = allocator.serial(entry.gsi) {
                    all.entry(entry.gsi).or_insert_with(|| (serial, table.table().targets(entry.gsi)));
                }
            }
        });
        all.extend(self.staged.iter().map(|(&gsi, staged)| (gsi, staged.clone())));
        all.into_iter().map(|(gsi, (serial, targets))| (gsi, serial, targets)).collect()
    }

    /// Makes all staged changes, with at most one call to the kernel, and none if it would notice no difference.
    ///
    /// Afterwards the transaction is empty. If it fails, everything is as it was, what was staged is still staged, and the commit may
    /// be tried again.
    ///
    /// # Errors
    /// [`Error::TooManyEntries`] and [`Error::PinTaken`] before the kernel sees the table; [`Error::Commit`] when it refuses it.
    pub fn commit(&mut self) -> Result<Commit, Error> {
        let commit = self.router.shared().commit_staged(&self.staged)?;
        self.staged.clear();
        Ok(commit)
    }
}
