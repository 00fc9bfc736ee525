// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fake kernel's hosts.

use irq_types::{DeviceId, EventId, Intid, Lpi, MsiMessage, Spi, TriggerMode};
use irqchip::fake::{FakeHost, FakeVm, Interrupt};
use irqchip::{DeviceControl, Errno, IoAddress};

use super::{ContractVm, Host, Irqchip, Need, Taken};

struct Fake {
    name: &'static str,
    host: FakeHost,
}

/// Every kind of host that the model has.
#[must_use]
pub fn all() -> Vec<Box<dyn Host>> {
    let hosts = [
        ("a fake GICv2 host", FakeHost::arm64_gicv2()),
        ("a fake GICv3 host", FakeHost::arm64_gicv3()),
        ("a fake GICv3 host with GICv2 compatibility", FakeHost::arm64_gicv3_and_v2()),
        ("a fake x86 host", FakeHost::x86()),
    ];
    hosts.into_iter().map(|(name, host)| Box::new(Fake { name, host }) as Box<dyn Host>).collect()
}

impl Host for Fake {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn offers(&self, need: Need) -> Result<(), String> {
        let FakeHost { gic_v2, gic_v3, its, x86, .. } = self.host;
        let has = match need {
            Need::Irqchip => true,
            Need::Gic => gic_v2 && !x86 || gic_v3,
            Need::GicV2 => gic_v2,
            Need::GicV3 => gic_v3,
            Need::BothGics => gic_v2 && gic_v3,
            Need::Its => its,
            Need::X86 => x86,
        };
        if has { Ok(()) } else { Err(format!("{} has none", self.name)) }
    }

    fn vm(&self) -> Box<dyn ContractVm> {
        Box::new(self.host.vm())
    }
}

impl ContractVm for FakeVm {
    fn create_vcpu(&self, id: u32) -> Result<(), Errno> {
        Self::create_vcpu(self, id)
    }

    fn run_vcpu(&self, id: u32) -> Result<(), Errno> {
        Self::run_vcpu(self, id)
    }

    fn configure_ioapic_pin(&self, pin: u32, trigger: TriggerMode) {
        self.guest().configure_ioapic_pin(pin, trigger).unwrap();
    }

    fn map_event(
        &self,
        _gic: &dyn DeviceControl,
        _its: &dyn DeviceControl,
        device: DeviceId,
        event: EventId,
        lpi: Lpi,
    ) {
        self.guest().map_event(device, event, lpi).unwrap();
    }

    fn enable_lpi(
        &self,
        _its: &dyn DeviceControl,
        _device: DeviceId,
        _event: EventId,
        lpi: Lpi,
        enabled: bool,
    ) {
        self.guest().set_enabled(lpi.intid(), enabled).unwrap();
    }

    fn unmap_event(&self, _its: &dyn DeviceControl, device: DeviceId, event: EventId) {
        self.guest().unmap_event(device, event).unwrap();
    }

    fn while_running(&self, id: u32, done: &mut dyn FnMut() -> bool) {
        self.enter_guest(id).unwrap();
        super::fixture::eventually("what happens while a vCPU runs", done);
        self.leave_guest(id).unwrap();
    }

    fn take(&self, _irqchip: Irqchip) -> Option<Taken> {
        // The guest must run to take anything.
        Self::run_vcpu(self, 0).unwrap();
        Some(match self.guest().take()? {
            Interrupt::Intid(Intid::Spi(spi)) => Taken::Line(spi.get()),
            Interrupt::Intid(Intid::Lpi(lpi)) => Taken::Lpi(lpi.get()),
            Interrupt::Intid(private) => Taken::Private(private.get()),
            Interrupt::IoapicPin(pin) => Taken::Line(pin),
            Interrupt::Message(message) => Taken::Message(u8::try_from(message.data & 0xff).unwrap()),
            other => panic!("{other:?} is new"),
        })
    }

    fn awaits_end(&self, _irqchip: Irqchip, _taken: Taken) -> bool {
        true
    }

    fn end(&self, irqchip: Irqchip, taken: Taken) {
        let intid = |n| Interrupt::Intid(Intid::new(n).unwrap());
        let x86 = irqchip == Irqchip::X86;
        self.guest().eoi(match taken {
            Taken::Line(pin) if x86 => Interrupt::IoapicPin(pin),
            Taken::Line(pin) => Interrupt::Intid(Spi::new(pin).unwrap().intid()),
            Taken::Private(n) | Taken::Lpi(n) => intid(n),
            Taken::Message(vector) => {
                Interrupt::Message(MsiMessage { address: 0xfee0_0000, data: u32::from(vector) })
            }
        });
    }

    fn write(&self, address: IoAddress, value: u64, length: u32) -> bool {
        self.guest().write(address, value, length)
    }
}
