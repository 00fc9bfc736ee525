// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wires driven from userspace (Linux 6.12, `arch/arm64/kvm/arm.c`, `kvm_vm_ioctl_irq_line`), and the irqchip of x86.

use irq_types::{Ppi, Spi, TriggerMode};
use irqchip::{CreateIrqchip, DeviceKind, Errno, arm};

use super::fixture::{Machine, refusal, word};
use super::{Host, Irqchip, Taken};

/// `KVM_IRQ_LINE` with an SPI.
fn spi(machine: &Machine, pin: u32, high: bool) -> Result<(), Errno> {
    refusal(machine.vm.set_spi(Spi::new(pin).unwrap(), high))
}

/// `KVM_IRQ_LINE` with a PPI.
fn ppi(machine: &Machine, vcpu: u32, ppi: u32, high: bool) -> Result<(), Errno> {
    refusal(machine.vm.set_ppi(vcpu, Ppi::new(ppi).unwrap(), high))
}

/// `ENXIO`.
pub fn a_line_needs_a_gic(host: &dyn Host) {
    let vm = host.vm();
    vm.create_vcpu(0).unwrap();
    assert_eq!(refusal(vm.set_spi(Spi::new(0).unwrap(), true)), Err(Errno::ENXIO));
    assert_eq!(refusal(vm.set_ppi(0, Ppi::new(0).unwrap(), true)), Err(Errno::ENXIO));
}

/// `EBUSY`.
pub fn a_gicv3s_lines_wait_for_initialisation(host: &dyn Host) {
    let machine = Machine::complete(host, DeviceKind::GicV3);
    assert_eq!(spi(&machine, 0, true), Err(Errno::EBUSY));
    assert_eq!(ppi(&machine, 0, 0, true), Err(Errno::EBUSY));
    machine.init();
    assert_eq!(spi(&machine, 0, true), Ok(()));
}

/// One more thing that does.
pub fn driving_a_line_initialises_a_gicv2(host: &dyn Host) {
    let machine = Machine::complete(host, DeviceKind::GicV2);
    assert_eq!(spi(&machine, 0, false), Ok(()));
    assert_eq!(machine.get_word(arm::NR_IRQS), Ok(256));
    assert_eq!(machine.vm.create_vcpu(1), Err(Errno::EBUSY));
}

/// `EINVAL` beyond.
pub fn a_line_ends_with_the_vms_interrupts(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::with_gic(host, kind);
        machine.set(arm::NR_IRQS, word(64)).unwrap();
        machine.vm.create_vcpu(0).unwrap();
        machine.init();
        assert_eq!(spi(&machine, 31, true), Ok(()));
        assert_eq!(spi(&machine, 32, true), Err(Errno::EINVAL));
        assert_eq!(spi(&machine, 987, true), Err(Errno::EINVAL));
    }
}

/// Lowering it takes nothing back.
pub fn an_edge_line_is_pending_once_it_was_high(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        machine.configure(5, TriggerMode::Edge);
        spi(&machine, 5, true).unwrap();
        spi(&machine, 5, false).unwrap();
        assert!(machine.is_pending(5));
        machine.serve(5);
        assert!(!machine.is_pending(5));
        assert_eq!(machine.take(), None);
        // Nor is it a wire that remembers: high again is one more interrupt, low is nothing.
        spi(&machine, 5, true).unwrap();
        spi(&machine, 5, true).unwrap();
        machine.serve(5);
        assert_eq!(machine.take(), None);
        spi(&machine, 5, false).unwrap();
        assert_eq!(machine.take(), None);
    }
}

/// Until it is enabled.
pub fn a_pending_line_waits(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        machine.configure(5, TriggerMode::Edge);
        let (enable, disable) = (arm::dist_reg(0, 0x104), arm::dist_reg(0, 0x184));
        machine.set(disable, word(1 << 5)).unwrap();
        spi(&machine, 5, true).unwrap();
        assert_eq!(machine.take(), None);
        assert!(machine.is_pending(5));
        machine.set(enable, word(1 << 5)).unwrap();
        machine.serve(5);
        assert_eq!(machine.take(), None);
    }
}

/// KVM gives an interrupt to a vCPU when something happens to the interrupt, and enabling the distributor happens to none of them
/// (`vgic_queue_irq_unlock`, `vgic_target_oracle`): what came before is pending and does not arrive, until it is touched.
pub fn enabling_the_distributor_wakes_nothing(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        machine.configure(5, TriggerMode::Edge);
        let (control, on) = (arm::dist_reg(0, 0), if kind == DeviceKind::GicV2 { 1 } else { 2 });
        machine.set(control, word(0)).unwrap();
        spi(&machine, 5, true).unwrap();
        assert_eq!(machine.take(), None);
        machine.set(control, word(on)).unwrap();
        assert_eq!(machine.take(), None);
        assert!(machine.is_pending(5));
        machine.set(arm::dist_reg(0, 0x104), word(1 << 5)).unwrap();
        machine.serve(5);
        assert_eq!(machine.take(), None);
    }
}

/// And no longer.
pub fn a_level_line_is_pending_while_it_is_high(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        machine.configure(5, TriggerMode::Level);
        spi(&machine, 5, true).unwrap();
        spi(&machine, 5, false).unwrap();
        assert_eq!(machine.take(), None);
        spi(&machine, 5, true).unwrap();
        machine.serve(5);
        machine.serve(5);
        spi(&machine, 5, false).unwrap();
        assert_eq!(machine.take(), None);
    }
}

/// `EINVAL` without it.
pub fn a_ppi_needs_its_vcpu(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        assert_eq!(ppi(&machine, 0, 7, true), Ok(()));
        assert_eq!(ppi(&machine, 1, 7, true), Err(Errno::EINVAL));
        assert_eq!(ppi(&machine, 4096, 7, true), Err(Errno::EINVAL));
    }
}

/// Level from the start, and another vCPU has a wire of its own.
pub fn a_ppi_is_its_vcpus(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::complete(host, kind);
        machine.vm.create_vcpu(1).unwrap();
        machine.init();
        let intid = 16 + 7;
        let (enable, distributor) = if kind == DeviceKind::GicV2 {
            (arm::dist_reg(0, 0x100), 1)
        } else {
            (arm::redist_reg(0, 0x1_0100), 2)
        };
        machine.set(enable, word(1 << intid)).unwrap();
        machine.set(arm::dist_reg(0, 0), word(distributor)).unwrap();
        ppi(&machine, 1, 7, true).unwrap();
        assert_eq!(machine.take(), None, "the other vCPU's");
        ppi(&machine, 0, 7, true).unwrap();
        assert_eq!(machine.take_next(), Taken::Private(intid));
        assert_eq!(machine.take_next(), Taken::Private(intid), "it is a level");
        ppi(&machine, 0, 7, false).unwrap();
        assert_eq!(machine.take(), None);
    }
}

/// Once a vCPU has run, the virtual timer's PPI (INTID 27) belongs to KVM's timer. Driving it is no error and does nothing.
pub fn a_timers_ppi_is_left_alone(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        let enable =
            if kind == DeviceKind::GicV2 { arm::dist_reg(0, 0x100) } else { arm::redist_reg(0, 0x1_0100) };
        machine.set(enable, word(1 << 27)).unwrap();
        let distributor = if kind == DeviceKind::GicV2 { 1 } else { 2 };
        machine.set(arm::dist_reg(0, 0), word(distributor)).unwrap();
        machine.vm.run_vcpu(0).unwrap();
        assert_eq!(ppi(&machine, 0, 11, true), Ok(()));
        assert_eq!(machine.take(), None);
    }
}

/// `ENXIO`.
pub fn x86_has_no_spis_and_ppis(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::X86);
    assert_eq!(spi(&machine, 0, true), Err(Errno::ENXIO));
    assert_eq!(ppi(&machine, 0, 0, true), Err(Errno::ENXIO));
}

/// `EEXIST`; and before the first vCPU.
pub fn irqchips_are_created_once(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::X86);
    assert_eq!(refusal(CreateIrqchip::create_irqchip(&*machine.vm)), Err(Errno::EEXIST));
    let vm = host.vm();
    vm.create_vcpu(0).unwrap();
    assert_eq!(refusal(CreateIrqchip::create_irqchip(&*vm)), Err(Errno::EINVAL));
}

/// `ENOTTY`.
pub fn arm_has_no_irqchip_without_device(host: &dyn Host) {
    assert_eq!(refusal(CreateIrqchip::create_irqchip(&*host.vm())), Err(Errno::ENOTTY));
}
