// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::{DeviceId, EventId, Intid, IrqchipPin, Lpi, MsiMessage, Pin, Spi, TriggerMode};

use super::FakeVm;
use super::routing::IOAPIC;
use super::state::{PRIVATE, State};
use crate::{Errno, IoAddress};

/// What a guest takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Interrupt {
    /// Of the GIC. MSIs arrive as LPIs.
    Intid(Intid),
    /// A pin of x86's IOAPIC.
    IoapicPin(u32),
    /// A message to x86's local APICs.
    Message(MsiMessage),
}

/// The guest's side of a [`FakeVm`]: what its drivers would do. From [`FakeVm::guest`].
#[derive(Debug)]
pub struct FakeGuest<'a> {
    vm: &'a FakeVm,
}

impl<'a> FakeGuest<'a> {
    pub(super) fn new(vm: &'a FakeVm) -> Self {
        Self { vm }
    }

    /// Sets an SPI's trigger, enables it, and enables the distributor.
    ///
    /// # Errors
    /// `ENODEV` before the GIC is initialised (no guest runs then), `EINVAL` if this VM has no such SPI.
    pub fn configure_spi(&self, spi: Spi, trigger: TriggerMode) -> Result<(), Errno> {
        self.vm.look(|state| {
            let gic = state.gic.as_mut().filter(|gic| gic.initialised).ok_or(Errno::ENODEV)?;
            gic.enabled = true;
            state.touch(0, spi.intid().get(), |line| {
                line.config = trigger;
                line.enabled = true;
            })
        })
    }

    /// Enables or disables an interrupt. What arrives while it is disabled stays pending.
    ///
    /// # Errors
    /// `EINVAL` if this VM has no such interrupt.
    pub fn set_enabled(&self, intid: Intid, enabled: bool) -> Result<(), Errno> {
        self.vm.look(|state| state.touch(0, intid.get(), |line| line.enabled = enabled))
    }

    /// Makes an event of a device an LPI of vCPU 0, through the VM's first ITS, and enables all of them.
    ///
    /// # Errors
    /// `ENODEV` without an initialised GICv3 or an ITS, `ENXIO` if the ITS has no address, `EINVAL` without a vCPU 0.
    pub fn map_event(&self, device: DeviceId, event: EventId, lpi: Lpi) -> Result<(), Errno> {
        self.vm.look(|state| state.map_event(0, device, event, lpi, 0))
    }

    /// The same through one of several ITSes (in the order of creation) and to any vCPU.
    ///
    /// # Errors
    /// As [`map_event`](Self::map_event); `EINVAL` without that vCPU.
    pub fn map_event_on(
        &self,
        its: usize,
        device: DeviceId,
        event: EventId,
        lpi: Lpi,
        vcpu: u32,
    ) -> Result<(), Errno> {
        self.vm.look(|state| state.map_event(its, device, event, lpi, vcpu))
    }

    /// Forgets what an event of a device was mapped to.
    ///
    /// # Errors
    /// `ENODEV` without an ITS.
    pub fn unmap_event(&self, device: DeviceId, event: EventId) -> Result<(), Errno> {
        self.vm.look(|state| state.unmap_event(0, device, event))
    }

    /// Sets up a pin of x86's IOAPIC, unmasked.
    ///
    /// # Errors
    /// `ENODEV` without an IOAPIC, `EINVAL` without that pin.
    pub fn configure_ioapic_pin(&self, pin: u32, trigger: TriggerMode) -> Result<(), Errno> {
        self.vm.look(|state| state.configure_ioapic_pin(pin, trigger, false))
    }

    /// Acknowledges the pending interrupt of the highest priority; of several, the one with the lowest number. It is active from now on, and
    /// does not come again before [`eoi`](Self::eoi). LPIs and messages have no active state.
    #[must_use]
    pub fn take(&self) -> Option<Interrupt> {
        self.vm.look(State::take)
    }

    /// Ends an interrupt. For a level interrupt the kernel hears of it: resamplers are notified.
    pub fn eoi(&self, interrupt: Interrupt) {
        self.vm.look(|state| state.eoi(interrupt));
    }

    /// Takes and ends interrupts until there are none, but at most `limit` of them: a level line that nobody lowers comes for ever.
    #[must_use]
    pub fn take_all(&self, limit: usize) -> Vec<Interrupt> {
        let mut taken = Vec::new();
        while taken.len() < limit {
            let Some(interrupt) = self.take() else { break };
            self.eoi(interrupt);
            taken.push(interrupt);
        }
        taken
    }

    /// Writes `length` bytes (1, 2, 4 or 8) of `value`. Whether an ioeventfd took the write; if not, it would have been an exit to
    /// userspace.
    #[must_use]
    pub fn write(&self, address: IoAddress, value: u64, length: u32) -> bool {
        self.vm.look(|state| state.guest_write(address, value, length))
    }
}

impl State {
    fn take(&mut self) -> Option<Interrupt> {
        if let Some(ioapic) = &mut self.ioapic {
            if let Some(at) = ioapic.pins.iter().position(super::x86::IoapicPin::pending) {
                let pin = &mut ioapic.pins[at];
                pin.latch = false;
                pin.active = true;
                return Some(Interrupt::IoapicPin(u32::try_from(at).ok()?));
            }
            return self.messages.pop_front().map(Interrupt::Message);
        }
        self.prune();
        let private = self.vcpus.first().into_iter().flat_map(|vcpu| (0..).zip(&vcpu.private));
        let shared = (PRIVATE..).zip(&self.lines.spis);
        let lpis = self.lines.lpis.iter().map(|(intid, line)| (*intid, line));
        let (_, intid) = private
            .chain(shared)
            .chain(lpis)
            .filter(|(_, line)| line.queued && !line.active && line.pending())
            .map(|(intid, line)| (line.priority, intid))
            .min()?;
        let line = self.line(0, intid)?;
        line.reports_eoi = line.config == TriggerMode::Level;
        if line.config == TriggerMode::Edge {
            line.latch = false;
        }
        let intid = Intid::new(intid).ok()?;
        line.active = !matches!(intid, Intid::Lpi(_));
        Some(Interrupt::Intid(intid))
    }

    /// `vgic_v3_fold_lr_state` for an ended interrupt; `kvm_ioapic_update_eoi`.
    fn eoi(&mut self, interrupt: Interrupt) {
        match interrupt {
            Interrupt::Intid(intid) => {
                let Some(line) = self.line(0, intid.get()).filter(|line| line.active) else { return };
                line.active = false;
                let reports = std::mem::take(&mut line.reports_eoi);
                if line.config == TriggerMode::Level {
                    line.latch = false;
                }
                if let (true, Intid::Spi(spi)) = (reports, intid) {
                    self.notify_acked(IrqchipPin { irqchip: 0, pin: spi.pin() });
                }
            }
            Interrupt::IoapicPin(pin) => {
                if let Some(ioapic) = &mut self.ioapic
                    && let Some(entry) = ioapic.pins.get_mut(pin as usize)
                {
                    entry.active = false;
                }
                // x86 tells of every EOI, whatever the trigger.
                self.notify_acked(IrqchipPin { irqchip: IOAPIC, pin: Pin::new(pin) });
            }
            Interrupt::Message(_) => {}
        }
    }
}
