// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI functions.

mod bars;
mod capabilities;
mod config;
mod events;
mod interrupts;
mod reset;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::pci::{BarIndex, DecodedBar, IntxPin, Msi, MsiLayout, Msix, MsixLayout, MsixRegion, PciFunction};
use gsi_routing::GsiHandle;
use irq_types::Bdf;
use irqfd::{LevelState, LevelTrigger, Resampler, VectorState, Wiring};
use vfio_bindings::bindings::vfio::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ROM_REGION_INDEX};

pub(crate) use capabilities::standard as capability_list;
pub use events::{Notice, Notifier, PciEvent};
pub use interrupts::{InterruptMode, InterruptState};

use crate::Error;
use crate::device::{Device, Refused};
use crate::info::{DeviceKind, RegionInfo};
use crate::level::ResamplePath;
use crate::slots::GuestSlots;
use bars::{Bar, Placed};
use config::{Config, Consequence};
use interrupts::{Interrupts, Line};
use reset::BusReset;

/// What a function needs of the machine that it is put into.
pub struct PciOptions {
    /// Where its interrupts go.
    pub wiring: Wiring,
    /// The INTx pin that it has in the guest, whichever it has on the host, and the line that the guest finds that pin on; `None`: it has no INTx in the guest.
    pub line: Option<(IntxPin, Arc<GsiHandle>)>,
    /// How the end of an INTx interrupt reaches the host.
    pub resample: ResamplePath,
    /// Where its BARs become memory of the guest.
    pub slots: Arc<dyn GuestSlots>,
    /// Whether it is on a root bus. An endpoint is shown as one that is integrated into the root complex there, since it has no link.
    pub on_root_bus: bool,
    /// Whether it may access memory. A device without an IOMMU must not: what it would reach is the host's.
    pub dma: bool,
    /// Which number ITS or GICv2m know the functions of the bus by, beyond their requester IDs.
    pub device_id_base: u32,
    /// Who hears what goes wrong.
    pub events: Arc<dyn Fn(PciEvent) + Send + Sync>,
}

/// A PCI function of the host in the guest.
///
/// Its configuration space is the device's own, but for what must be the guest's: BARs, which the guest puts elsewhere; memory and
/// I/O enable; the interrupt line register; MSI and MSI-X, whose messages are the guest's. Every other capability passes through both ways, vendor-specific
/// ones included, without which virtio devices have no driver; the kernel's own filter (`drivers/vfio/pci/vfio_pci_config.c`) stands behind it.
pub struct VfioPciFunction {
    // Dropped in this order: what the guest reaches goes first, then the interrupts, the device last.
    placed: Mutex<Placed>,
    msi: Option<(u16, Msi)>,
    msix: Option<(u16, Msix)>,
    interrupts: Arc<Interrupts>,
    bars: Vec<Bar>,
    config: Config,
    slots: Arc<dyn GuestSlots>,
    device_id_base: u32,
    events: Arc<dyn Fn(PciEvent) + Send + Sync>,
    device: Arc<Device>,
}

impl VfioPciFunction {
    /// Makes an open device a function for the guest's bus.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Description`], [`Error::Kernel`].
    pub fn new(device: Arc<Device>, options: PciOptions) -> Result<Arc<Self>, Error> {
        if device.info().kind() != Some(DeviceKind::Pci) {
            return Err(Error::Unsupported {
                name: device.name().to_owned(),
                reason: "it is no PCI device".to_owned(),
            });
        }
        let PciOptions { wiring, line, resample, slots, on_root_bus, dma, device_id_base, events } = options;
        let page = rustix::param::page_size() as u64;
        let region = device.region(VFIO_PCI_CONFIG_REGION_INDEX)?;
        let snapshot = config::snapshot(&device, &region)?;
        let description = |what: String| Error::Description { name: device.name().to_owned(), what };

        let pin = line.as_ref().map(|(pin, _)| *pin);
        let line = line
            .map(|(_, gsi)| {
                let failed = |source| Error::Interrupt { name: device.name().to_owned(), index: 0, source };
                let trigger = Arc::new(LevelTrigger::new().map_err(failed)?);
                Ok::<_, Error>(Line { gsi, path: resample, wiring: wiring.clone(), trigger })
            })
            .transpose()?;
        let sender = Bdf::from_requester_id(0).device_id(device_id_base);
        let interrupts = Interrupts::new(Arc::clone(&device), line, &wiring, sender, Arc::clone(&events))?;

        // The function cannot be left half set up by what its capabilities drive: nothing is enabled before `resume`.
        interrupts.suspend();
        let mut msi = None;
        let mut msix = None;
        let mut trapped = Vec::new();
        for (id, at) in capabilities::standard(&snapshot) {
            let bytes = snapshot.get(usize::from(at)..).unwrap_or_default();
            match id {
                capabilities::id::MSI if msi.is_none() => {
                    let control =
                        bytes.get(2..4).and_then(|c| c.try_into().ok()).map_or(0, u16::from_le_bytes);
                    let layout = MsiLayout::parse(control).map_err(|e| description(e.to_string()))?;
                    msi = Some((at, Msi::new(layout, interrupts.sink(InterruptMode::Msi))));
                }
                capabilities::id::MSIX if msix.is_none() => {
                    let capability = bytes.get(..12).unwrap_or_default();
                    let layout = MsixLayout::parse(capability).map_err(|e| description(e.to_string()))?;
                    trapped.extend([layout.table(), layout.pending()]);
                    msix = Some((at, Msix::new(layout, interrupts.sink(InterruptMode::Msix))));
                }
                _ => {}
            }
        }
        let bars = find_bars(&device, &snapshot, &trapped, page, &*events)?;
        let config = Config::new(
            &device,
            region,
            snapshot,
            &bars,
            &config::Choices {
                on_root_bus,
                dma,
                pin: pin.filter(|_| interrupts.has_line()),
                msi: msi.as_ref().map(|(at, msi)| (*at, msi.layout().capability_length())),
                msix: msix.as_ref().map(|(at, _)| (*at, MsixLayout::CAPABILITY_LENGTH)),
            },
        )
        .map_err(description)?;
        let function = Arc::new(Self {
            placed: Mutex::default(),
            msi,
            msix,
            interrupts,
            bars,
            config,
            slots,
            device_id_base,
            events,
            device,
        });
        function.config.prepare(&function.device)?;
        function.interrupts.resume();
        Ok(function)
    }

    /// The device itself.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// How it interrupts now.
    #[must_use]
    pub fn interrupts(&self) -> InterruptState {
        self.interrupts.state()
    }

    /// The vectors of the kind of messages that is in use, each with its state; without one in use, those that there would be. Empty if the
    /// function has no messages.
    #[must_use]
    pub fn vectors(&self) -> (InterruptMode, Vec<VectorState>) {
        self.interrupts.vector_states()
    }

    /// How its line is doing, whether or not it is in use, and whether VFIO drives it now. `None` if it has no line.
    #[must_use]
    pub fn line(&self) -> Option<(LevelState, bool)> {
        Some((self.interrupts.line_state()?, self.interrupts.line_connected()))
    }

    /// What the event loop has to run with [`ResamplePath::EventLoop`].
    #[must_use]
    pub fn resampler(&self) -> Option<Resampler> {
        self.interrupts.resampler()
    }

    /// Asks to be told of an event. `None` if the device never says it. There is one of each kind at a time.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn notifier(&self, notice: Notice) -> Result<Option<Notifier>, Error> {
        Notifier::new(&self.device, notice)
    }

    /// Which parts of its BARs the guest reaches without an exit: (BAR, offset, bytes).
    #[must_use]
    pub fn mapped(&self) -> Vec<(BarIndex, u64, u64)> {
        self.bars.iter().flat_map(|bar| bar.mapped().map(|(offset, len)| (bar.index, offset, len))).collect()
    }

    /// Lets the other devices of its address space reach its BARs, where the IOMMU can do that. Done whenever the guest places BARs; once more by who
    /// opens another device later. What cannot be is [`PciEvent::HiddenFromPeers`].
    pub fn show_to_peers(&self) {
        let Some(space) = self.device.shared_space() else { return };
        let hidden = self.lock_placed().show_to_peers(&self.bars, space);
        for (bar, source) in hidden {
            (self.events)(PciEvent::HiddenFromPeers { bar, source });
        }
    }

    /// The BARs that other devices of its address space cannot reach where they are now.
    #[must_use]
    pub fn hidden_from_peers(&self) -> Vec<BarIndex> {
        self.lock_placed().hidden()
    }

    /// Accesses by the guest that the kernel refused.
    #[must_use]
    pub fn refused(&self) -> Refused {
        self.device.refused()
    }

    fn lock_placed(&self) -> MutexGuard<'_, Placed> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self, error: Error) {
        (self.events)(PciEvent::Trouble(error));
    }

    fn bar(&self, index: BarIndex) -> Option<&Bar> {
        self.bars.iter().find(|bar| bar.index == index)
    }

    /// What of MSI-X is at this place.
    fn locate(&self, bar: BarIndex, offset: u64) -> Option<(&Msix, MsixRegion)> {
        let (_, msix) = self.msix.as_ref()?;
        Some((msix, msix.layout().locate(bar, offset)?))
    }

    /// Resets those of the functions that the kernel has not reset when it opened them, since they have no reset of their own: with their bus, once for all that
    /// are on it. For functions that no guest has found yet. `functions` are all that may be disturbed; what a bus reset reaches must be among them, or be
    /// used by nobody.
    ///
    /// Returns what has been reset together. What has not been, and why, is [`PciEvent::Trouble`] of the function; one whose bus cannot be reset either keeps its
    /// state, as it does on a host.
    pub fn reset_with_bus(functions: &[&Self]) -> Vec<Vec<String>> {
        let together: Vec<&str> = functions.iter().map(|function| function.device.name()).collect();
        let mut done: Vec<Vec<String>> = Vec::new();
        for function in functions.iter().filter(|function| !function.device.info().can_reset()) {
            if done.iter().flatten().any(|name| name == function.device.name()) {
                continue;
            }
            let plan = match BusReset::plan(&function.device, &together) {
                Ok(Some(plan)) => plan,
                Ok(None) => continue,
                Err(e) => {
                    function.trouble(e);
                    continue;
                }
            };
            let reached: Vec<_> =
                functions.iter().filter(|other| plan.reaches(other.device.name())).collect();
            reached.iter().for_each(|other| other.quiesce());
            match plan.carry_out(&function.device) {
                Ok(names) => done.push(names),
                Err(e) => function.trouble(e),
            }
            reached.iter().for_each(|other| other.begin_anew());
        }
        done
    }

    /// Resets the device by itself: with its own reset, else with its bus if nothing else that is in use is there.
    fn reset_alone(&self) {
        let own = if self.device.info().can_reset() {
            match self.device.reset() {
                Ok(()) => return,
                Err(e) => Some(e),
            }
        } else {
            None
        };
        let name = self.device.name();
        let bus = BusReset::plan(&self.device, &[name])
            .and_then(|plan| plan.map(|plan| plan.carry_out(&self.device)).transpose());
        match bus {
            Ok(Some(_)) => {}
            // A device without a reset keeps its state, as it does on a host; its interrupts and mappings are gone all the same.
            Ok(None) => own.into_iter().for_each(|e| self.trouble(e)),
            Err(e) => own.into_iter().chain([e]).for_each(|e| self.trouble(e)),
        }
    }

    /// Whatever the guest has set up is gone; `device` resets the device meanwhile.
    fn reset_around(&self, device: impl FnOnce(&Self)) {
        self.quiesce();
        device(self);
        self.begin_anew();
    }

    /// Nothing of it may be in the guest's address space while it does not answer, and nothing may interrupt.
    fn quiesce(&self) {
        self.lock_placed().clear();
        self.interrupts.suspend();
    }

    /// After a reset: as at the start.
    fn begin_anew(&self) {
        self.config.reset();
        if let Some((_, msi)) = &self.msi {
            msi.reset();
        }
        if let Some((_, msix)) = &self.msix {
            msix.reset();
        }
        if let Err(e) = self.config.prepare(&self.device) {
            self.trouble(e);
        }
        self.interrupts.resume();
    }
}

/// Finds the BARs by their registers and the sizes of the regions behind them.
fn find_bars(
    device: &Device,
    snapshot: &[u8],
    trapped: &[(BarIndex, std::ops::Range<u64>)],
    page: u64,
    events: &(dyn Fn(PciEvent) + Send + Sync),
) -> Result<Vec<Bar>, Error> {
    let mut bars = Vec::new();
    let mut index = 0;
    while index < 6 {
        let Ok(bar) = BarIndex::new(index) else { break };
        let register = config::dword(snapshot, 0x10 + 4 * u16::from(index));
        let kind = bars::kind(register);
        let region = device.region(index.into())?;
        index += 1 + u8::from(matches!(kind, ::pci::BarKind::Memory64 { .. }));
        if usable(&region) {
            let holes: Vec<_> =
                trapped.iter().filter(|(at, _)| *at == bar).map(|(_, hole)| hole.clone()).collect();
            let (bar, refused) = Bar::new(device, bar, kind, region, &holes, page);
            refused.into_iter().for_each(|e| events(PciEvent::Trouble(e)));
            bars.push(bar);
        }
    }
    // A device need not have a ROM, nor the kernel a region for it.
    if let Ok(region) = device.region(VFIO_PCI_ROM_REGION_INDEX)
        && usable(&region)
    {
        bars.push(Bar::new(device, BarIndex::ROM, ::pci::BarKind::Rom, region, &[], page).0);
    }
    Ok(bars)
}

fn usable(region: &RegionInfo) -> bool {
    region.size.is_power_of_two() && (region.readable() || region.writable())
}

impl PciFunction for VfioPciFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.read(&self.device, offset, data, |capability, relative, data| match capability {
            config::Emulated::Msi => {
                if let Some((_, msi)) = &self.msi {
                    msi.read_capability(relative, data);
                }
            }
            config::Emulated::Msix => {
                if let Some((_, msix)) = &self.msix {
                    msix.read_capability(relative, data);
                }
            }
        });
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        match self.config.classify(offset, data) {
            Consequence::None => self.config.write(&self.device, offset, data),
            Consequence::Emulated(capability, relative) => match capability {
                config::Emulated::Msi => {
                    if let Some((_, msi)) = &self.msi {
                        msi.write_capability(relative, data);
                    }
                }
                config::Emulated::Msix => {
                    if let Some((_, msix)) = &self.msix {
                        msix.write_capability(relative, data);
                    }
                }
            },
            Consequence::SwitchesOff => {
                // Before the kernel takes the registers away from under the guest's mappings.
                self.lock_placed().clear();
                self.config.write(&self.device, offset, data);
            }
            Consequence::Resets => {
                self.reset_around(|this| this.config.write_through(&this.device, offset, data));
            }
        }
    }

    fn decoded(&self) -> Vec<DecodedBar> {
        self.config.decoded()
    }

    fn placed(&self, bars: &[DecodedBar]) {
        let refused = self.lock_placed().update(&self.bars, bars, &*self.slots);
        refused.into_iter().for_each(|e| self.trouble(e));
        self.show_to_peers();
    }

    fn read_bar(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        match self.locate(bar, offset) {
            Some((msix, MsixRegion::Table(at))) => msix.read_table(at, data),
            Some((msix, MsixRegion::Pending(at))) => msix.read_pending(at, data),
            None => match self.bar(bar) {
                Some(bar) => self.device.load(&bar.region, offset, data),
                None => data.fill(0xff),
            },
        }
    }

    fn write_bar(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        match self.locate(bar, offset) {
            Some((msix, MsixRegion::Table(at))) => msix.write_table(at, data),
            Some((_, MsixRegion::Pending(_))) => {}
            None => {
                if let Some(bar) = self.bar(bar) {
                    self.device.store(&bar.region, offset, data);
                }
            }
        }
    }

    fn set_bdf(&self, bdf: Bdf) {
        self.interrupts.set_sender(bdf.device_id(self.device_id_base));
    }

    fn reset(&self) {
        self.reset_around(Self::reset_alone);
    }
}

impl fmt::Debug for VfioPciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioPciFunction")
            .field("device", &self.device)
            .field("interrupts", &self.interrupts.state())
            .field("bars", &self.bars)
            .finish_non_exhaustive()
    }
}
