// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ITS, and MSIs to it (Linux 6.12, `arch/arm64/kvm/vgic/vgic-its.c`).

use irq_types::{Gsi, MsiMessage, TriggerMode};
use irqchip::{
    AttrValue, Capability, CreateIrqchip, DeviceAttr, DeviceKind, Errno, MsiDelivery, Route, RouteTarget, arm,
};

use super::fixture::{DISTRIBUTOR, DOORBELL, ITS, Machine, event, its_route, long, refusal, ring};
use super::{Host, Irqchip, Taken};

const DEVICE: u32 = 0x108;
const LPI: u32 = 8192;
const GICV3: Irqchip = Irqchip::Gic(DeviceKind::GicV3);

/// `KVM_CAP_MSI_DEVID` is 0 on a VM without an ITS and 1 from the creation of one on, on the same host.
pub fn device_ids_are_a_property_of_the_vm(host: &dyn Host) {
    let machine = Machine::ready(host, GICV3);
    assert_eq!(machine.vm.capability(Capability::MsiDeviceId), Ok(0));
    let _its = machine.vm.create_device(DeviceKind::Its).unwrap();
    assert_eq!(machine.vm.capability(Capability::MsiDeviceId), Ok(1));
    assert_eq!(host.vm().capability(Capability::MsiDeviceId), Ok(0));
}

/// Nor does it matter whether a vCPU has run; and there may be several.
pub fn an_its_needs_no_gic_to_be_created(host: &dyn Host) {
    let vm = host.vm();
    assert_eq!(refusal(vm.create_device(DeviceKind::Its)), Ok(()));
    assert_eq!(refusal(vm.create_device(DeviceKind::Its)), Ok(()));
    let machine = Machine::ready(host, GICV3);
    machine.vm.run_vcpu(0).unwrap();
    assert_eq!(refusal(machine.vm.create_device(DeviceKind::Its)), Ok(()));
}

/// 128 KiB at a multiple of 64 KiB, once.
pub fn the_address_of_an_its_has_rules(host: &dyn Host) {
    let vm = host.vm();
    let its = vm.create_device(DeviceKind::Its).unwrap();
    let set = |base| refusal(its.set_attr(arm::ADDR_ITS, long(base)));
    assert_eq!(its.get_attr(arm::ADDR_ITS, long(0)), Ok(long(u64::MAX)));
    assert_eq!(set(ITS + 0x1000), Err(Errno::EINVAL));
    assert_eq!(set(1 << 40), Err(Errno::E2BIG));
    assert_eq!(set((1 << 40) - 0x1_0000), Err(Errno::E2BIG));
    assert_eq!(refusal(its.set_attr(arm::ADDR_ITS, AttrValue::None)), Err(Errno::EFAULT));
    assert_eq!(refusal(its.set_attr(arm::ADDR_V3_DIST, long(DISTRIBUTOR))), Err(Errno::ENODEV));
    assert_eq!(set(ITS), Ok(()));
    assert_eq!(set(ITS), Err(Errno::EEXIST));
    assert_eq!(its.get_attr(arm::ADDR_ITS, long(0)), Ok(long(ITS)));
}

/// `ENXIO` until then, whatever register.
pub fn its_registers_wait_for_the_address(host: &dyn Host) {
    let vm = host.vm();
    let its = vm.create_device(DeviceKind::Its).unwrap();
    assert_eq!(refusal(its.get_attr(arm::its_reg(0), long(0))), Err(Errno::ENXIO));
    assert_eq!(refusal(its.set_attr(arm::its_reg(0x80), long(0))), Err(Errno::ENXIO));
    its.set_attr(arm::ADDR_ITS, long(ITS)).unwrap();
    assert_eq!(refusal(its.get_attr(arm::its_reg(0), long(0))), Ok(()));
}

/// Offsets, widths, and what enabling takes.
pub fn its_registers_have_rules(host: &dyn Host) {
    let machine = Machine::with_its(host);
    let its = machine.its();
    let read = |offset| machine.get_its(offset);
    let write = |offset, value| machine.set_its(offset, value);
    for (offset, known) in [
        (0, Ok(true)),
        (4, Ok(true)),
        (8, Ok(true)),
        (0x80, Ok(true)),
        (0x100, Ok(true)),
        (0x138, Ok(true)),
        (0x140, Ok(false)),
        (0xffe8, Ok(true)),
        (0x1_0040, Ok(false)),
        (2, Err(Errno::EINVAL)),
        (0x84, Err(Errno::EINVAL)),
    ] {
        assert_eq!(its.has_attr(arm::its_reg(offset)).map_err(|e| e.errno), known, "{offset:#x}");
        match known {
            Ok(true) => assert!(read(offset).is_ok(), "{offset:#x}"),
            Ok(false) => assert_eq!(read(offset), Err(Errno::ENXIO), "{offset:#x}"),
            Err(errno) => assert_eq!(read(offset), Err(errno), "{offset:#x}"),
        }
    }
    let typer = read(8).unwrap();
    assert_eq!((typer >> 13) & 0x1f, 15, "16 bits of device ID");
    assert_eq!((typer >> 8) & 0x1f, 15, "16 bits of event ID");
    assert_eq!(write(0, 1), Ok(()));
    assert_eq!(read(0).unwrap() & 1, 0, "without tables and queue it stays disabled");
    assert_eq!(read(0).unwrap() >> 31, 1, "quiescent");
    assert_eq!(write(4, 0x1000), Err(Errno::EINVAL), "there is one table format");
    assert_eq!(write(0x90, 0x10_0000 - 0x20), Err(Errno::EINVAL), "CREADR beyond the queue");
    assert_eq!(refusal(its.set_attr(DeviceAttr { group: 99, attr: 0 }, long(0))), Err(Errno::ENXIO));
}

/// It is part of the contract, and a no-op.
pub fn initialising_an_its_does_nothing(host: &dyn Host) {
    let vm = host.vm();
    let its = vm.create_device(DeviceKind::Its).unwrap();
    assert_eq!(its.has_attr(arm::CTRL_INIT), Ok(true));
    for _ in 0..2 {
        assert_eq!(refusal(its.set_attr(arm::CTRL_INIT, AttrValue::None)), Ok(()));
    }
    assert_eq!(refusal(its.set_attr(arm::ADDR_ITS, long(ITS))), Ok(()), "the address may still come");
    assert_eq!(refusal(its.set_attr(arm::CTRL_ITS_RESET, AttrValue::None)), Ok(()));
}

/// `EINVAL`.
pub fn an_msi_without_device_id_is_refused(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(DEVICE, 0, LPI);
    assert_eq!(machine.send(0, None), Err(Errno::EINVAL));
    assert_eq!(machine.take(), None);
}

/// `ENODEV`, with or without device ID.
pub fn an_msi_without_its_is_enodev(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        assert_eq!(machine.send(0, Some(DEVICE)), Err(Errno::ENODEV));
        assert_eq!(machine.send(0, None), Err(Errno::ENODEV));
    }
}

/// `EINVAL`.
pub fn an_msi_without_irqchip_is_refused(host: &dyn Host) {
    let vm = host.vm();
    let answer = vm.signal_msi(MsiMessage { address: 0xfee0_0000, data: 0x40 }, None);
    assert_eq!(refusal(answer), Err(Errno::EINVAL));
}

/// An address where no ITS is.
pub fn an_msi_beside_the_its_is_refused(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(DEVICE, 0, LPI);
    for address in [0, ITS - 4, ITS + 0x2_0000, DISTRIBUTOR, DOORBELL + (1 << 32)] {
        let message = MsiMessage { address, data: 0 };
        assert_eq!(machine.send_message(message, Some(DEVICE)), Err(Errno::EINVAL), "{address:#x}");
    }
    // Within the frame any offset will do.
    let message = MsiMessage { address: ITS + 0x123, data: 0 };
    assert_eq!(machine.send_message(message, Some(DEVICE)), Ok(MsiDelivery::Delivered));
}

/// `EBUSY`: the guest has not set it up yet.
pub fn an_msi_to_a_disabled_its_is_busy(host: &dyn Host) {
    let machine = Machine::with_its(host);
    assert_eq!(machine.send(0, Some(DEVICE)), Err(Errno::EBUSY));
}

/// Neither error nor interrupt.
pub fn an_msi_that_the_guest_has_not_mapped_is_blocked(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(DEVICE, 0, LPI);
    assert_eq!(machine.send(1, Some(DEVICE)), Ok(MsiDelivery::Blocked));
    assert_eq!(machine.send(0, Some(DEVICE + 1)), Ok(MsiDelivery::Blocked));
    assert_eq!(machine.take(), None);
}

/// Once, though it was sent twice before it was taken; and again after.
pub fn an_msi_becomes_its_lpi(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(DEVICE, 5, LPI + 3);
    for _ in 0..2 {
        assert_eq!(machine.send(5, Some(DEVICE)), Ok(MsiDelivery::Delivered));
    }
    assert_eq!(machine.take_next(), Taken::Lpi(LPI + 3));
    assert_eq!(machine.take(), None);
    assert_eq!(machine.send(5, Some(DEVICE)), Ok(MsiDelivery::Delivered));
    assert_eq!(machine.take_next(), Taken::Lpi(LPI + 3));
}

/// The fast way of a device.
pub fn an_msi_irqfd_becomes_its_lpi(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(DEVICE, 0, LPI);
    machine.map(DEVICE, 1, LPI + 1);
    machine.routes(&[its_route(300, 0, Some(DEVICE)), its_route(301, 1, Some(DEVICE))]).unwrap();
    let (first, second) = (event(), event());
    machine.bind(&first, 300).unwrap();
    machine.bind(&second, 301).unwrap();
    for _ in 0..3 {
        ring(&second);
        assert_eq!(machine.take_next(), Taken::Lpi(LPI + 1));
        ring(&first);
        assert_eq!(machine.take_next(), Taken::Lpi(LPI));
    }
    assert_eq!(machine.take(), None);
}

/// Nobody hears of the `EINVAL` that `KVM_SIGNAL_MSI` would have answered.
pub fn an_msi_route_without_device_id_is_accepted_and_lost(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(DEVICE, 0, LPI);
    assert_eq!(machine.routes(&[its_route(300, 0, None)]), Ok(()));
    let event = event();
    machine.bind(&event, 300).unwrap();
    ring(&event);
    machine.unbind(&event, 300).unwrap();
    assert_eq!(machine.take(), None);
    // With one it is an interrupt.
    machine.routes(&[its_route(300, 0, Some(DEVICE))]).unwrap();
    machine.bind(&event, 300).unwrap();
    ring(&event);
    assert_eq!(machine.take_next(), Taken::Lpi(LPI));
}

/// A translation that was used before is found by what the field holds, given or not; so device 0, and only it, can do without saying who
/// it is. Whoever hard-codes 0 sees the first interrupt lost and the others arrive.
pub fn a_device_of_id_zero_is_found_without_saying_so(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(0, 0, LPI);
    assert_eq!(machine.send(0, None), Err(Errno::EINVAL));
    assert_eq!(machine.send(0, Some(0)), Ok(MsiDelivery::Delivered));
    assert_eq!(machine.take_next(), Taken::Lpi(LPI));
    assert_eq!(machine.send(0, None), Ok(MsiDelivery::Delivered));
    assert_eq!(machine.take_next(), Taken::Lpi(LPI));
    machine.unmap(0, 0);
    assert_eq!(machine.send(0, None), Err(Errno::EINVAL));
}

/// It waits for the guest, and was delivered none the less.
pub fn a_disabled_lpi_is_pending(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(DEVICE, 0, LPI);
    machine.enable_lpi(DEVICE, 0, LPI, false);
    assert_eq!(machine.send(0, Some(DEVICE)), Ok(MsiDelivery::Delivered));
    assert_eq!(machine.take(), None);
    machine.enable_lpi(DEVICE, 0, LPI, true);
    assert_eq!(machine.take_next(), Taken::Lpi(LPI));
    assert_eq!(machine.take(), None);
}

/// Blocked, also through an irqfd that was fast until then.
pub fn an_event_that_was_unmapped_is_blocked(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(DEVICE, 0, LPI);
    machine.routes(&[its_route(300, 0, Some(DEVICE))]).unwrap();
    let event = event();
    machine.bind(&event, 300).unwrap();
    ring(&event);
    assert_eq!(machine.take_next(), Taken::Lpi(LPI));
    machine.unmap(DEVICE, 0);
    assert_eq!(machine.send(0, Some(DEVICE)), Ok(MsiDelivery::Blocked));
    ring(&event);
    machine.unbind(&event, 300).unwrap();
    assert_eq!(machine.take(), None);
}

/// Its registers and its commands wait for vCPUs to stand still.
pub fn an_its_is_busy_while_a_vcpu_runs(host: &dyn Host) {
    let machine = Machine::with_its(host);
    let busy = |answer: Result<(), Errno>| answer == Err(Errno::EBUSY);
    machine.vm.while_running(0, &mut || busy(refusal(machine.its().get_attr(arm::its_reg(0), long(0)))));
    machine.vm.while_running(0, &mut || {
        busy(refusal(machine.its().set_attr(arm::CTRL_ITS_RESET, AttrValue::None)))
    });
    assert_eq!(refusal(machine.its().get_attr(arm::its_reg(0), long(0))), Ok(()));
}

/// x86: the message names CPU and vector. Without a CPU there is nobody to take it, which the kernel calls `EPERM` (it returns -1).
pub fn an_x86_message_is_a_vector(host: &dyn Host) {
    let message = MsiMessage { address: 0xfee0_0000, data: 0x80 };
    let vm = host.vm();
    CreateIrqchip::create_irqchip(&*vm).unwrap();
    assert_eq!(refusal(vm.signal_msi(message, None)), Err(Errno::EPERM));

    let machine = Machine::ready(host, Irqchip::X86);
    machine.configure(5, TriggerMode::Edge);
    assert_eq!(machine.send_message(message, None), Ok(MsiDelivery::Delivered));
    assert_eq!(machine.take_next(), Taken::Message(0x80));
    let target = RouteTarget::Msi { message, device_id: None };
    machine.routes(&[Route { gsi: Gsi::new(300), target }]).unwrap();
    let event = event();
    machine.bind(&event, 300).unwrap();
    for _ in 0..3 {
        ring(&event);
        assert_eq!(machine.take_next(), Taken::Message(0x80));
    }
    assert_eq!(machine.take(), None);
    assert_eq!(machine.vm.capability(Capability::MsiDeviceId), Ok(0));
}

/// The event number alone says nothing: bus renumbering changes who is meant.
pub fn each_device_has_events_of_its_own(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(DEVICE, 0, LPI);
    machine.map(DEVICE + 8, 0, LPI + 1);
    assert_eq!(machine.send(0, Some(DEVICE + 8)), Ok(MsiDelivery::Delivered));
    assert_eq!(machine.take_next(), Taken::Lpi(LPI + 1));
    assert_eq!(machine.send(0, Some(DEVICE)), Ok(MsiDelivery::Delivered));
    assert_eq!(machine.take_next(), Taken::Lpi(LPI));
}
