// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The routing table (Linux 6.12, `virt/kvm/irqchip.c`).

use irq_types::{Gsi, IrqchipPin, MsiMessage, Pin, TriggerMode};
use irqchip::{AttrValue, Capability, Errno, Route, RouteTarget, arm};

use super::fixture::{Machine, event, refusal, ring, word};
use super::{Host, Irqchip};

/// A route to a pin of any irqchip.
fn line(gsi: u32, irqchip: u32, pin: u32) -> Route {
    Route { gsi: Gsi::new(gsi), target: RouteTarget::Line(IrqchipPin { irqchip, pin: Pin::new(pin) }) }
}

/// A route to nowhere in particular: what it says is looked at when it fires.
fn msi(gsi: u32) -> Route {
    let message = MsiMessage { address: 0xfee0_0000, data: 0x40 };
    Route { gsi: Gsi::new(gsi), target: RouteTarget::Msi { message, device_id: None } }
}

fn limit(machine: &Machine) -> u32 {
    machine.vm.capability(Capability::IrqRouting).unwrap()
}

/// All of `KVM_CAP_IRQ_ROUTING`, not one more.
pub fn a_table_may_have_as_many_routes_as_the_limit(host: &dyn Host) {
    for irqchip in host.irqchips() {
        let machine = Machine::ready(host, irqchip);
        let all: Vec<Route> = (0..limit(&machine)).map(msi).collect();
        assert_eq!(machine.routes(&all), Ok(()));
        let more: Vec<Route> = all.into_iter().chain([msi(0)]).collect();
        assert_eq!(machine.routes(&more), Err(Errno::EINVAL));
    }
}

/// The same limit holds for the numbers.
pub fn a_gsi_lies_below_the_limit(host: &dyn Host) {
    for irqchip in host.irqchips() {
        let machine = Machine::ready(host, irqchip);
        let limit = limit(&machine);
        assert_eq!(machine.routes(&[msi(limit - 1)]), Ok(()));
        for gsi in [limit, limit + 1, u32::MAX] {
            assert_eq!(machine.routes(&[msi(gsi)]), Err(Errno::EINVAL), "{gsi}");
        }
    }
}

/// Not to two pins of one, nor to the same pin twice.
pub fn a_gsi_goes_to_an_irqchip_once(host: &dyn Host) {
    for irqchip in host.irqchips() {
        let machine = Machine::ready(host, irqchip);
        assert_eq!(machine.routes(&[machine.line(5, 5), machine.line(5, 6)]), Err(Errno::EINVAL));
        assert_eq!(machine.routes(&[machine.line(5, 5), machine.line(5, 5)]), Err(Errno::EINVAL));
    }
}

/// Not both, and not two messages.
pub fn a_gsi_is_a_line_or_a_message(host: &dyn Host) {
    for irqchip in host.irqchips() {
        let machine = Machine::ready(host, irqchip);
        assert_eq!(machine.routes(&[machine.line(5, 5), msi(5)]), Err(Errno::EINVAL));
        assert_eq!(machine.routes(&[msi(5), machine.line(5, 5)]), Err(Errno::EINVAL));
        assert_eq!(machine.routes(&[msi(5), msi(5)]), Err(Errno::EINVAL));
        assert_eq!(machine.routes(&[msi(5), machine.line(6, 5)]), Ok(()));
    }
}

/// Each of which raises it.
pub fn a_pin_may_have_several_gsis(host: &dyn Host) {
    for irqchip in host.irqchips() {
        let machine = Machine::ready(host, irqchip);
        machine.configure(5, TriggerMode::Edge);
        assert_eq!(machine.routes(&[machine.line(40, 5), machine.line(41, 5)]), Ok(()));
        for gsi in [40, 41] {
            let event = event();
            machine.bind(&event, gsi).unwrap();
            ring(&event);
            machine.serve(5);
        }
    }
}

/// x86: the default table sends the first sixteen to a PIC and to the IOAPIC.
pub fn a_gsi_may_go_to_several_irqchips(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::X86);
    assert_eq!(machine.routes(&[line(5, 0, 5), line(5, 2, 5), line(9, 1, 1), line(9, 2, 9)]), Ok(()));
    machine.configure(5, TriggerMode::Edge);
    let event = event();
    machine.bind(&event, 5).unwrap();
    ring(&event);
    machine.serve(5);
}

/// arm64: one, of 988 pins whatever the VM has. x86: two of 8 and one of 24.
pub fn irqchips_and_pins_have_ends(host: &dyn Host) {
    for irqchip in host.irqchips() {
        let machine = Machine::ready(host, irqchip);
        let ends: &[(u32, u32)] =
            if irqchip == Irqchip::X86 { &[(0, 8), (1, 8), (2, 24), (3, 0)] } else { &[(0, 988), (1, 0)] };
        for &(chip, end) in ends {
            assert_eq!(machine.routes(&[line(5, chip, end)]), Err(Errno::EINVAL), "{chip} {end}");
            assert_eq!(machine.routes(&[line(5, chip, u32::MAX)]), Err(Errno::EINVAL));
            if end > 0 {
                assert_eq!(machine.routes(&[line(5, chip, end - 1)]), Ok(()), "{chip} {end}");
            }
        }
    }
}

/// What was committed before is gone without a word: GSI 0 goes to pin 0.
pub fn initialisation_replaces_the_table(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::complete(host, kind);
        machine.routes(&[machine.line(0, 7)]).unwrap();
        machine.init();
        machine.configure(0, TriggerMode::Edge);
        machine.configure(7, TriggerMode::Edge);
        let event = event();
        machine.bind(&event, 0).unwrap();
        ring(&event);
        machine.serve(0);
        assert_eq!(machine.take(), None);
        // A second initialisation replaces nothing.
        machine.routes(&[machine.line(0, 7)]).unwrap();
        machine.set(arm::CTRL_INIT, AttrValue::None).unwrap();
        ring(&event);
        machine.serve(7);
    }
}

/// GSI i to pin i, up to the VM's last.
pub fn the_default_table_has_every_spi(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        machine.place();
        machine.set(arm::NR_IRQS, word(96)).unwrap();
        machine.vm.create_vcpu(0).unwrap();
        machine.init();
        for pin in [0, 31, 63] {
            machine.configure(pin, TriggerMode::Edge);
            let event = event();
            machine.bind(&event, pin).unwrap();
            ring(&event);
            machine.serve(pin);
        }
    }
}

/// All or nothing.
pub fn a_refused_table_leaves_the_old_one(host: &dyn Host) {
    for irqchip in host.irqchips() {
        let machine = Machine::ready(host, irqchip);
        machine.configure(5, TriggerMode::Edge);
        machine.configure(6, TriggerMode::Edge);
        machine.routes(&[machine.line(40, 5)]).unwrap();
        let event = event();
        machine.bind(&event, 40).unwrap();
        assert_eq!(machine.routes(&[machine.line(40, 6), machine.line(41, 5000)]), Err(Errno::EINVAL));
        ring(&event);
        machine.serve(5);
        assert_eq!(machine.take(), None);
    }
}

/// The kernel compares with the architecture's last pin, not with this VM's. That is why routes are validated when staged.
pub fn a_pin_beyond_the_vms_interrupts_is_accepted_and_lost(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        machine.place();
        machine.set(arm::NR_IRQS, word(64)).unwrap();
        machine.vm.create_vcpu(0).unwrap();
        machine.init();
        assert_eq!(machine.routes(&[machine.line(40, 32)]), Ok(()));
        let event = event();
        assert_eq!(machine.bind(&event, 40), Ok(()));
        ring(&event);
        machine.unbind(&event, 40).unwrap();
        assert_eq!(machine.take(), None);
    }
}

/// At once.
pub fn a_changed_route_moves_a_bound_irqfd(host: &dyn Host) {
    for irqchip in host.irqchips() {
        let machine = Machine::ready(host, irqchip);
        machine.configure(5, TriggerMode::Edge);
        machine.configure(6, TriggerMode::Edge);
        machine.routes(&[machine.line(40, 5)]).unwrap();
        let event = event();
        machine.bind(&event, 40).unwrap();
        for pin in [5, 6, 5] {
            machine.routes(&[machine.line(40, pin)]).unwrap();
            ring(&event);
            machine.serve(pin);
        }
    }
}

/// Of which every GSI is lost.
pub fn an_empty_table_is_a_table(host: &dyn Host) {
    for irqchip in host.irqchips() {
        let machine = Machine::ready(host, irqchip);
        machine.configure(5, TriggerMode::Edge);
        let event = event();
        machine.bind(&event, 5).unwrap();
        assert_eq!(machine.routes(&[]), Ok(()));
        ring(&event);
        machine.unbind(&event, 5).unwrap();
        assert_eq!(machine.take(), None);
    }
}

/// arm64 takes one at any time, also before there is a GIC.
pub fn a_table_needs_no_gic(host: &dyn Host) {
    let vm = host.vm();
    assert_eq!(refusal(vm.set_routes(&[line(0, 0, 0)])), Ok(()));
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        assert_eq!(machine.routes(&[line(0, 0, 0)]), Ok(()));
    }
}

/// x86 does not.
pub fn a_table_needs_an_irqchip(host: &dyn Host) {
    let vm = host.vm();
    assert_eq!(refusal(vm.set_routes(&[])), Err(Errno::EINVAL));
    assert_eq!(refusal(vm.set_routes(&[line(0, 2, 0)])), Err(Errno::EINVAL));
}
