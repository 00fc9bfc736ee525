// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function's interrupts: INTx, MSI or MSI-X, one of them at a time, as the guest has enabled them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gsi_routing::GsiHandle;
use irq_types::DeviceId;
use irqfd::{InterruptVector, LevelState, LevelTrigger, Resampler, VectorGroup, VectorState, Wiring};
use pci::{VectorChange, VectorSink};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};

use crate::Error;
use crate::device::Device;
use crate::info::IrqInfo;
use crate::irq_set::IrqSet;
use crate::level::{LevelInterrupt, ResamplePath};
use crate::pci::PciEvent;

/// How a function interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InterruptMode {
    /// Not at all.
    Off,
    /// By its line.
    Intx,
    /// By messages that its configuration space describes.
    Msi,
    /// By messages that a table in a BAR describes.
    Msix,
}

impl InterruptMode {
    const fn index(self) -> Option<u32> {
        match self {
            Self::Off => None,
            Self::Intx => Some(VFIO_PCI_INTX_IRQ_INDEX),
            Self::Msi => Some(VFIO_PCI_MSI_IRQ_INDEX),
            Self::Msix => Some(VFIO_PCI_MSIX_IRQ_INDEX),
        }
    }
}

/// The interrupts of one function.
///
/// VFIO gives a device one kind of interrupt at a time. The guest's enable bits decide: MSI-X, else MSI, else the line. Whatever changes, the one
/// kind is taken apart before the next is set up, and a function without its messages gets its line back.
pub(crate) struct Interrupts {
    device: Arc<Device>,
    line: Option<Line>,
    msi: Option<Vectors>,
    msix: Option<Vectors>,
    state: Mutex<State>,
    events: Arc<dyn Fn(PciEvent) + Send + Sync>,
}

/// What the function's INTx pin is connected to.
pub(crate) struct Line {
    pub(crate) gsi: Arc<GsiHandle>,
    pub(crate) path: ResamplePath,
    pub(crate) wiring: Wiring,
    /// Lasts as long as the function, connected or not, so that whoever runs its resampler need not be told.
    pub(crate) trigger: Arc<LevelTrigger>,
}

/// The vectors of one capability.
struct Vectors {
    group: VectorGroup,
    info: IrqInfo,
}

#[derive(Default)]
struct State {
    /// What is set up.
    line: Option<LevelInterrupt>,
    mode: Option<InterruptMode>,
    /// The function is being reset: nothing is set up until that is done.
    suspended: bool,
    msi: Usage,
    msix: Usage,
    /// The most vectors that it had in use at a time, and of which kind.
    most: Option<(InterruptMode, usize)>,
}

impl State {
    fn usage(&self, mode: InterruptMode) -> Option<&Usage> {
        match mode {
            InterruptMode::Msi => Some(&self.msi),
            InterruptMode::Msix => Some(&self.msix),
            InterruptMode::Off | InterruptMode::Intx => None,
        }
    }

    /// How many vectors have a trigger.
    fn used(&self, mode: InterruptMode) -> usize {
        self.usage(mode).map_or(0, |usage| usage.given.iter().flatten().count())
    }
}

/// What the guest makes of a capability, and what VFIO has been given for it.
#[derive(Default)]
struct Usage {
    enabled: bool,
    /// How many vectors the guest allows (MSI).
    allowed: usize,
    /// One more than the last vector with a message.
    programmed: usize,
    /// Vectors that the guest has unmasked since it enabled the capability.
    wanted: Vec<bool>,
    /// Those that have an eventfd in VFIO.
    given: Vec<Option<InterruptVector>>,
    /// How many vectors the host has allocated.
    allocated: usize,
}

impl Usage {
    fn note(&mut self, change: &VectorChange) {
        match *change {
            VectorChange::Reset => {
                let given = std::mem::take(&mut self.given);
                *self = Self { given, allocated: self.allocated, ..Self::default() };
            }
            VectorChange::Enable(enabled) => self.enabled = enabled,
            VectorChange::Program(vector, _) => self.programmed = self.programmed.max(vector + 1),
            VectorChange::Mask(vector, false) => {
                if let Some(wanted) = self.wanted.get_mut(vector) {
                    *wanted = true;
                } else {
                    self.wanted.resize(vector, false);
                    self.wanted.push(true);
                }
            }
            VectorChange::Allowed(count) => self.allowed = count,
            VectorChange::Mask(_, true) | VectorChange::FunctionMask(_) => {}
        }
    }

    fn is_given(&self, vector: usize) -> bool {
        self.given.get(vector).is_some_and(Option::is_some)
    }

    /// One more than the last vector that the guest waits for.
    fn last_wanted(&self) -> usize {
        self.wanted.iter().rposition(|&wanted| wanted).map_or(0, |last| last + 1)
    }
}

/// The end that the MSI or MSI-X capability drives.
pub(crate) struct Sink {
    interrupts: Arc<Interrupts>,
    mode: InterruptMode,
}

impl VectorSink for Sink {
    fn apply(&self, changes: &[VectorChange]) {
        self.interrupts.apply(self.mode, changes);
    }

    fn pending_word(&self, word: usize) -> u64 {
        self.interrupts
            .vectors(self.mode)
            .and_then(|vectors| vectors.group.pending_word(word).ok())
            .unwrap_or(0)
    }
}

impl Interrupts {
    pub(crate) fn new(
        device: Arc<Device>,
        line: Option<Line>,
        wiring: &Wiring,
        sender: DeviceId,
        events: Arc<dyn Fn(PciEvent) + Send + Sync>,
    ) -> Result<Arc<Self>, Error> {
        let vectors = |index| -> Result<Option<Vectors>, Error> {
            let info = device.irq(index)?;
            Ok((info.count > 0 && info.has_eventfd()).then(|| Vectors {
                group: VectorGroup::new(wiring.clone(), sender, info.count as usize),
                info,
            }))
        };
        let (msi, msix) = (vectors(VFIO_PCI_MSI_IRQ_INDEX)?, vectors(VFIO_PCI_MSIX_IRQ_INDEX)?);
        let line = if device.irq(VFIO_PCI_INTX_IRQ_INDEX)?.count > 0 { line } else { None };
        Ok(Arc::new(Self { device, line, msi, msix, state: Mutex::default(), events }))
    }

    /// Whether there is a line.
    pub(crate) fn has_line(&self) -> bool {
        self.line.is_some()
    }

    /// The sink for a capability.
    pub(crate) fn sink(self: &Arc<Self>, mode: InterruptMode) -> Arc<dyn VectorSink> {
        Arc::new(Sink { interrupts: Arc::clone(self), mode })
    }

    fn vectors(&self, mode: InterruptMode) -> Option<&Vectors> {
        match mode {
            InterruptMode::Msi => self.msi.as_ref(),
            InterruptMode::Msix => self.msix.as_ref(),
            InterruptMode::Off | InterruptMode::Intx => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, mode: InterruptMode, changes: &[VectorChange]) {
        let Some(vectors) = self.vectors(mode) else { return };
        let mut state = self.lock();
        // The routes first: a vector that VFIO gets is one that can deliver. A failure is kept by the vector that it hit.
        vectors.group.apply(changes);
        let usage = match mode {
            InterruptMode::Msi => &mut state.msi,
            _ => &mut state.msix,
        };
        for change in changes {
            usage.note(change);
        }
        self.settle(&mut state);
    }

    /// Sets up what is to be set up at the start, and after a reset.
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        state.suspended = false;
        self.settle(&mut state);
    }

    /// Takes everything apart for a reset of the function.
    pub(crate) fn suspend(&self) {
        let mut state = self.lock();
        state.suspended = true;
        self.settle(&mut state);
    }

    /// The guest knows the function by another number.
    pub(crate) fn set_sender(&self, sender: DeviceId) {
        for vectors in [&self.msi, &self.msix].into_iter().flatten() {
            // A failure is kept by the vectors that it hit, and tried again.
            let _ = vectors.group.set_device_id(sender);
        }
    }

    fn trouble(&self, error: Error) {
        (self.events)(PciEvent::Trouble(error));
    }

    /// Makes VFIO's side what the guest's wishes ask for. What fails is said and tried again at the guest's next write.
    fn settle(&self, state: &mut State) {
        let target = if state.suspended {
            InterruptMode::Off
        } else if state.msix.enabled {
            InterruptMode::Msix
        } else if state.msi.enabled {
            InterruptMode::Msi
        } else if self.line.is_some() {
            InterruptMode::Intx
        } else {
            InterruptMode::Off
        };
        if state.mode.unwrap_or(InterruptMode::Off) != target {
            self.take_apart(state);
            state.mode = None;
        }
        let result = match target {
            InterruptMode::Off => Ok(()),
            InterruptMode::Intx => self.set_up_line(state),
            InterruptMode::Msi => self.set_up_msi(state),
            InterruptMode::Msix => self.set_up_msix(state),
        };
        match result {
            Ok(()) => {
                state.mode = Some(target);
                let used = state.used(target);
                if used > state.most.map_or(0, |(_, most)| most) {
                    state.most = Some((target, used));
                }
            }
            Err(e) => {
                self.take_apart(state);
                state.mode = None;
                self.trouble(e);
            }
        }
    }

    fn take_apart(&self, state: &mut State) {
        state.line = None;
        for (usage, mode) in [(&mut state.msi, InterruptMode::Msi), (&mut state.msix, InterruptMode::Msix)] {
            if usage.allocated > 0
                && let Some(index) = mode.index()
            {
                usage.allocated = 0;
                usage.given.clear();
                if let Err(e) = self.device.set_irqs("disable", &IrqSet::disable(index)) {
                    self.trouble(e);
                }
            }
            if !usage.enabled {
                // The guest begins anew when it enables the capability again; what it leaves unmasked it still wants.
                usage.programmed = 0;
            }
        }
    }

    fn set_up_line(&self, state: &mut State) -> Result<(), Error> {
        let (Some(line), None) = (&self.line, &state.line) else { return Ok(()) };
        state.line = Some(LevelInterrupt::connect_trigger(
            Arc::clone(&line.trigger),
            Arc::clone(&self.device),
            VFIO_PCI_INTX_IRQ_INDEX,
            &line.wiring,
            &line.gsi,
            line.path,
        )?);
        Ok(())
    }

    /// MSI: as many vectors as the guest allows, all of them from the start: VFIO cannot change them while MSI is enabled.
    fn set_up_msi(&self, state: &mut State) -> Result<(), Error> {
        let Some(vectors) = &self.msi else { return Ok(()) };
        let usage = &mut state.msi;
        let count = usage.allowed.clamp(1, vectors.group.len());
        if usage.allocated == count {
            return Ok(());
        }
        let index = VFIO_PCI_MSI_IRQ_INDEX;
        if usage.allocated > 0 {
            usage.allocated = 0;
            usage.given.clear();
            self.device.set_irqs("disable", &IrqSet::disable(index))?;
        }
        usage.wanted = vec![true; count];
        self.give(vectors, usage, index, 0..count)?;
        usage.allocated = count;
        Ok(())
    }

    /// MSI-X: the vectors that the guest has unmasked.
    ///
    /// Where the host can add vectors while others are in use (`VFIO_IRQ_INFO_NORESIZE` is clear), each is added when the guest first unmasks it. Where
    /// it cannot, as on hosts with an ITS up to and including Linux 6.12, MSI-X is disabled and enabled with more. That is rare: a guest programs the messages of
    /// all vectors that it means to use before it unmasks the first.
    fn set_up_msix(&self, state: &mut State) -> Result<(), Error> {
        let Some(vectors) = &self.msix else { return Ok(()) };
        let usage = &mut state.msix;
        let index = VFIO_PCI_MSIX_IRQ_INDEX;
        let count = vectors.group.len();
        usage.wanted.truncate(count);
        let last = usage.last_wanted();

        let before = usage.allocated;
        // As long as no vector is in use, it costs nothing to have as many as the guest has programmed by now.
        let unused = last > 0 && usage.given.iter().all(Option::is_none);
        let short = last > before || unused && usage.programmed.min(count) > before;
        let grow = short && !vectors.info.can_grow();
        let mut interrupted = Vec::new();
        if before > 0 && grow {
            usage.allocated = 0;
            interrupted = std::mem::take(&mut usage.given);
            self.device.set_irqs("disable", &IrqSet::disable(index))?;
        }
        if usage.allocated == 0 {
            // At least one, without a trigger until it is wanted: the function's MSI-X must be on, since the guest relies on the line being off.
            let first = if vectors.info.can_grow() {
                1
            } else {
                last.max(usage.programmed)
                    .max(if grow { before.saturating_mul(2) } else { 1 })
                    .clamp(1, count)
            };
            self.allocate(vectors, usage, index, first, last)?;
            // What the device would have sent while it could not: the driver finds no reason, or one that nobody would have told it of.
            for (vector, _) in (0..).zip(interrupted).filter(|(_, given)| given.is_some()) {
                self.device.set_irqs("fire again", &IrqSet::fire(index, vector, 1))?;
            }
        }
        // Those that are new since, in runs.
        let mut vector = 0;
        while vector < last {
            if usage.is_given(vector) || !usage.wanted.get(vector).copied().unwrap_or(false) {
                vector += 1;
                continue;
            }
            let end = (vector..last)
                .find(|&next| usage.is_given(next) || !usage.wanted.get(next).copied().unwrap_or(false))
                .unwrap_or(last);
            self.give(vectors, usage, index, vector..end)?;
            usage.allocated = usage.allocated.max(end);
            vector = end;
        }
        Ok(())
    }

    /// Has the host allocate vectors: `wished` of them, or, if it has not that many, as many as it has.
    fn allocate(
        &self,
        vectors: &Vectors,
        usage: &mut Usage,
        index: u32,
        wished: usize,
        last: usize,
    ) -> Result<(), Error> {
        let mut count = wished;
        loop {
            match self.give(vectors, usage, index, 0..count) {
                Ok(()) => {
                    usage.allocated = count;
                    return Ok(());
                }
                Err(Error::TooFewVectors { available, name, .. })
                    if available > 0 && (available as usize) < count =>
                {
                    count = available as usize;
                    if count < last {
                        self.trouble(Error::TooFewVectors { name, wanted: last, available });
                        // The guest waits for those beyond in vain; it need not be tried at each of its writes.
                        usage.wanted.truncate(count);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Gives VFIO the eventfds of a range of vectors: those that the guest wants, and -1 for the others.
    fn give(
        &self,
        vectors: &Vectors,
        usage: &mut Usage,
        index: u32,
        range: std::ops::Range<usize>,
    ) -> Result<(), Error> {
        let failed = |source| Error::Interrupt { name: self.device.name().to_owned(), index, source };
        let mut handles = Vec::with_capacity(range.len());
        for vector in range.clone() {
            let wanted = usage.wanted.get(vector).copied().unwrap_or(false);
            handles.push(if wanted { Some(vectors.group.vector(vector).map_err(failed)?) } else { None });
        }
        let fds = handles
            .iter()
            .map(|handle| handle.as_ref().map(InterruptVector::eventfd).transpose())
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        let start = u32::try_from(range.start).unwrap_or(u32::MAX);
        self.device.set_irqs("get triggers for", &IrqSet::trigger(index, start, &fds))?;
        if usage.given.len() < range.end {
            usage.given.resize_with(range.end, || None);
        }
        for (slot, handle) in usage.given.iter_mut().skip(range.start).zip(handles) {
            *slot = handle;
        }
        Ok(())
    }

    /// What the event loop has to run, if the line's way back goes through it.
    pub(crate) fn resampler(&self) -> Option<Resampler> {
        let line = self.line.as_ref().filter(|line| line.path == ResamplePath::EventLoop)?;
        let device = Arc::clone(&self.device);
        Some(LevelInterrupt::resampler_of(&line.trigger, device, VFIO_PCI_INTX_IRQ_INDEX))
    }

    /// How it interrupts, and what of it is in use.
    pub(crate) fn state(&self) -> InterruptState {
        let state = self.lock();
        let mode = state.mode.unwrap_or(InterruptMode::Off);
        InterruptState {
            mode,
            line: state.line.as_ref().and_then(|line| line.state().ok()),
            allocated: state.usage(mode).map_or(0, |usage| usage.allocated),
            used: state.used(mode),
            most: state.most,
            vectors: self.vectors(mode).map_or(0, |vectors| vectors.group.len()),
        }
    }
}

impl Interrupts {
    /// The vectors of the kind of messages that is in use; without one, those that there would be: MSI-X, else MSI.
    pub(crate) fn vector_states(&self) -> (InterruptMode, Vec<VectorState>) {
        let mode = match self.lock().mode {
            Some(mode @ (InterruptMode::Msi | InterruptMode::Msix)) => mode,
            _ if self.msix.is_some() => InterruptMode::Msix,
            _ => InterruptMode::Msi,
        };
        let states = self.vectors(mode).map_or_else(Vec::new, |vectors| {
            (0..vectors.group.len()).filter_map(|index| vectors.group.state(index).ok()).collect()
        });
        (mode, states)
    }

    /// How the line is doing, connected or not; `None` if the function has none.
    pub(crate) fn line_state(&self) -> Option<LevelState> {
        self.line.as_ref().and_then(|line| line.trigger.state().ok())
    }

    /// Whether VFIO's end of the line, with its unmask eventfd, is connected.
    pub(crate) fn line_connected(&self) -> bool {
        self.lock().line.is_some()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // VFIO's ends go before the irqfds that they lead to. Fields do the rest.
        let mut state = self.lock();
        state.suspended = true;
        self.take_apart(&mut state);
    }
}

/// How a function interrupts now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterruptState {
    /// By what.
    pub mode: InterruptMode,
    /// Its line, if it is in use.
    pub line: Option<LevelState>,
    /// How many vectors the host has allocated for it.
    pub allocated: usize,
    /// How many of them have a trigger.
    pub used: usize,
    /// The most vectors that had a trigger at a time, and of which kind: a driver that is unloaded leaves none.
    pub most: Option<(InterruptMode, usize)>,
    /// How many the function has.
    pub vectors: usize,
}
