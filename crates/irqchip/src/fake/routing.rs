// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The routing table, and what firing a GSI does (Linux 6.12, `virt/kvm/irqchip.c`, `arch/arm64/kvm/vgic/vgic-irqfd.c`,
//! `arch/x86/kvm/irq_comm.c`).

use std::collections::BTreeMap;

use irq_types::{Gsi, IrqchipPin};

use super::irqfd::Source;
use super::state::{Answer, PRIVATE, State};
use crate::{Errno, MsiDelivery, Route, RouteTarget};

/// `KVM_IRQCHIP_NUM_PINS` of arm64: room for every SPI, however many this VM has.
const ARM_PINS: u32 = 1020 - 32;
/// The pins of one of x86's two PICs.
const PIC_PINS: u32 = 8;
/// x86's irqchips: two PICs, then the IOAPIC.
pub(super) const IOAPIC: u32 = 2;

/// `struct kvm_irq_routing_table`.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) routes: Vec<Route>,
    by_gsi: BTreeMap<Gsi, Vec<RouteTarget>>,
    /// The reverse way, which an EOI takes. Of several GSIs on a pin, the table's last counts.
    by_pin: BTreeMap<IrqchipPin, Gsi>,
}

impl Table {
    pub(super) fn targets(&self, gsi: Gsi) -> &[RouteTarget] {
        self.by_gsi.get(&gsi).map_or(&[], Vec::as_slice)
    }

    /// `kvm_irq_map_chip_pin`.
    pub(super) fn gsi_of(&self, pin: IrqchipPin) -> Option<Gsi> {
        self.by_pin.get(&pin).copied()
    }
}

impl State {
    /// `KVM_SET_GSI_ROUTING`. x86 wants its irqchip first (`kvm_arch_can_set_irq_routing`); arm64 takes a table at any time.
    pub(super) fn set_routes(&mut self, routes: &[Route]) -> Answer {
        if self.host.x86 && !self.has_irqchip() {
            return Err(Errno::EINVAL);
        }
        if routes.len() > self.host.routing_limit as usize {
            return Err(Errno::EINVAL);
        }
        self.install_routes(routes)
    }

    /// `kvm_set_irq_routing`: all or nothing.
    pub(super) fn install_routes(&mut self, routes: &[Route]) -> Answer {
        if routes.iter().any(|route| route.gsi.get() >= self.host.routing_limit) {
            return Err(Errno::EINVAL);
        }
        let mut table = Table { routes: routes.to_vec(), ..Table::default() };
        for route in routes {
            let others = table.by_gsi.entry(route.gsi).or_default();
            // `setup_routing_entry`: one GSI may go to one pin of each irqchip, or send one message.
            let conflict = others.iter().any(|other| match (other, &route.target) {
                (RouteTarget::Line(a), RouteTarget::Line(b)) => a.irqchip == b.irqchip,
                _ => true,
            });
            if conflict {
                return Err(Errno::EINVAL);
            }
            if let RouteTarget::Line(pin) = route.target {
                if !self.pin_exists(pin) {
                    return Err(Errno::EINVAL);
                }
                table.by_pin.insert(pin, route.gsi);
            }
            others.push(route.target);
        }
        self.table = table;
        Ok(())
    }

    /// `kvm_set_routing_entry`. On arm64 the limit is that of the architecture: a pin beyond this VM's SPIs passes here, and its
    /// interrupts are lost later.
    fn pin_exists(&self, pin: IrqchipPin) -> bool {
        match (self.host.x86, pin.irqchip) {
            (false, 0) => pin.pin.get() < ARM_PINS,
            (true, 0 | 1) => pin.pin.get() < PIC_PINS,
            (true, IOAPIC) => pin.pin.get() < super::x86::PINS,
            _ => false,
        }
    }

    /// `kvm_set_irq`: every target of the GSI; what a target refuses is nobody's news.
    pub(super) fn set_gsi(&mut self, gsi: Gsi, source: Source, high: bool) {
        for target in self.table.targets(gsi).to_vec() {
            self.fire(target, source, high);
        }
    }

    /// One target: `vgic_irqfd_set_irq`, `kvm_set_msi`, `kvm_set_pic_irq`, `kvm_set_ioapic_irq`.
    pub(super) fn fire(&mut self, target: RouteTarget, source: Source, high: bool) {
        match target {
            RouteTarget::Line(pin) if self.host.x86 => {
                if let (IOAPIC, Some(ioapic)) = (pin.irqchip, &mut self.ioapic)
                    && ioapic.drive(pin.pin.get(), source, high)
                {
                    self.count_raised(super::Interrupt::IoapicPin(pin.pin.get()));
                }
            }
            RouteTarget::Line(pin) => {
                let _lost = self.drive_spi(PRIVATE + pin.pin.get(), high);
            }
            RouteTarget::Msi { message, device_id } if high => {
                let _lost = self.send_msi(message, device_id);
            }
            RouteTarget::Msi { .. } => {}
        }
    }

    /// `KVM_SIGNAL_MSI` (`kvm_send_userspace_msi`).
    pub(super) fn signal_msi(
        &mut self,
        message: irq_types::MsiMessage,
        device_id: Option<irq_types::DeviceId>,
    ) -> Answer<MsiDelivery> {
        if !self.has_irqchip() {
            return Err(Errno::EINVAL);
        }
        let delivered = self.send_msi(message, device_id)?;
        Ok(if delivered { MsiDelivery::Delivered } else { MsiDelivery::Blocked })
    }

    fn send_msi(
        &mut self,
        message: irq_types::MsiMessage,
        device_id: Option<irq_types::DeviceId>,
    ) -> Answer<bool> {
        if !self.host.x86 {
            return self.send_to_its(message, device_id);
        }
        // `kvm_irq_delivery_to_apic` answers -1 when there is no local APIC to take it.
        if self.vcpus.is_empty() {
            return Err(Errno::EPERM);
        }
        self.messages.push_back(message);
        self.count_raised(super::Interrupt::Message(message));
        Ok(true)
    }
}
