// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! x86's irqchips, as far as routing and resampling need them (Linux 6.12, `arch/x86/kvm/ioapic.c`).
//!
//! The guest of the model uses the IOAPIC; the PICs take routes and deliver nothing.

use irq_types::{Gsi, IrqchipPin, Pin, TriggerMode};

use super::irqfd::Source;
use super::routing::IOAPIC;
use super::state::{Answer, State};
use crate::{Errno, Route, RouteTarget};

/// `KVM_IOAPIC_NUM_PINS`.
pub(super) const PINS: u32 = 24;

/// One entry of the redirection table, with the state behind it.
#[derive(Debug, Clone, Copy)]
pub(super) struct IoapicPin {
    pub(super) config: TriggerMode,
    pub(super) masked: bool,
    /// What each source drives: the wire is high if any does.
    user: bool,
    resample: bool,
    /// Edge: raised and not taken yet.
    pub(super) latch: bool,
    /// Taken and not ended: `remote_irr` for a level interrupt.
    pub(super) active: bool,
}

impl IoapicPin {
    const fn high(&self) -> bool {
        self.user || self.resample
    }

    pub(super) const fn pending(&self) -> bool {
        match self.config {
            TriggerMode::Edge => self.latch,
            TriggerMode::Level => self.high() && !self.masked && !self.active,
        }
    }
}

/// The IOAPIC.
#[derive(Debug)]
pub(super) struct Ioapic {
    pub(super) pins: [IoapicPin; PINS as usize],
}

impl Ioapic {
    fn new() -> Self {
        let pin = IoapicPin {
            config: TriggerMode::Edge,
            masked: true,
            user: false,
            resample: false,
            latch: false,
            active: false,
        };
        Self { pins: [pin; PINS as usize] }
    }

    /// `ioapic_set_irq`: whether the wire rose. A rising edge at a masked pin is lost.
    pub(super) fn drive(&mut self, pin: u32, source: Source, high: bool) -> bool {
        let Some(pin) = self.pins.get_mut(pin as usize) else { return false };
        let was = pin.high();
        match source {
            Source::User => pin.user = high,
            Source::Resample => pin.resample = high,
        }
        let rose = !was && pin.high();
        if rose && pin.config == TriggerMode::Edge && !pin.masked {
            pin.latch = true;
        }
        rose
    }
}

impl State {
    /// `KVM_CREATE_IRQCHIP` on x86. arm64 would make a GICv2 without a device to configure it by; backends of this seam do not ask it to.
    pub(super) fn create_irqchip(&mut self) -> Answer {
        if !self.host.x86 {
            return Err(Errno::ENOTTY);
        }
        if self.ioapic.is_some() {
            return Err(Errno::EEXIST);
        }
        if !self.vcpus.is_empty() {
            return Err(Errno::EINVAL);
        }
        self.ioapic = Some(Ioapic::new());
        // `kvm_setup_default_irq_routing`: GSI i to pin i of the IOAPIC, and the first sixteen to the PICs as well.
        let mut routes = Vec::new();
        for n in 0..PINS {
            let line = |irqchip, pin| Route {
                gsi: Gsi::new(n),
                target: RouteTarget::Line(IrqchipPin { irqchip, pin: Pin::new(pin) }),
            };
            routes.push(line(IOAPIC, n));
            if n < 16 {
                routes.push(line(n / 8, n % 8));
            }
        }
        self.install_routes(&routes)
    }

    /// The guest's driver sets up an IOAPIC pin and unmasks it.
    pub(super) fn configure_ioapic_pin(&mut self, pin: u32, config: TriggerMode, masked: bool) -> Answer {
        let ioapic = self.ioapic.as_mut().ok_or(Errno::ENODEV)?;
        let entry = ioapic.pins.get_mut(pin as usize).ok_or(Errno::EINVAL)?;
        entry.config = config;
        entry.masked = masked;
        Ok(())
    }
}
