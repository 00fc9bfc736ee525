// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Routes in the kernel's words (Linux 6.12, `include/uapi/linux/kvm.h`, `struct kvm_irq_routing_entry`).

use irqchip::{Errno, Route, RouteTarget};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};

/// The argument of `KVM_SET_GSI_ROUTING`. More entries than any kernel takes are the kernel's `EINVAL`, without asking it.
pub(crate) fn table(routes: &[Route]) -> Result<KvmIrqRouting, Errno> {
    let mut table = KvmIrqRouting::new(routes.len()).map_err(|_| Errno::EINVAL)?;
    for (slot, route) in table.as_mut_slice().iter_mut().zip(routes) {
        fill(slot, route);
    }
    Ok(table)
}

/// Writes a route into a zeroed slot.
fn fill(slot: &mut kvm_irq_routing_entry, route: &Route) {
    slot.gsi = route.gsi.get();
    match route.target {
        RouteTarget::Line(to) => {
            slot.type_ = KVM_IRQ_ROUTING_IRQCHIP;
            slot.u.irqchip = kvm_irq_routing_irqchip { irqchip: to.irqchip, pin: to.pin.get() };
        }
        RouteTarget::Msi { message, device_id } => {
            slot.type_ = KVM_IRQ_ROUTING_MSI;
            let mut msi = kvm_irq_routing_msi {
                address_lo: message.address_lo(),
                address_hi: message.address_hi(),
                data: message.data,
                ..Default::default()
            };
            if let Some(id) = device_id {
                slot.flags = KVM_MSI_VALID_DEVID;
                msi.__bindgen_anon_1.devid = id.get();
            }
            slot.u.msi = msi;
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "the kernel's union is read back, the field that was written")]
mod tests {
    use super::*;
    use irq_types::{DeviceId, Gsi, IrqchipPin, MsiMessage, Pin};

    fn msi(device_id: Option<u32>) -> Route {
        Route {
            gsi: Gsi::new(40),
            target: RouteTarget::Msi {
                message: MsiMessage { address: 0x1_0808_0040, data: 7 },
                device_id: device_id.map(DeviceId::new),
            },
        }
    }

    #[test]
    fn a_line_is_irqchip_and_pin_without_flags() {
        let line = RouteTarget::Line(IrqchipPin { irqchip: 2, pin: Pin::new(23) });
        let table = table(&[Route { gsi: Gsi::new(5), target: line }]).unwrap();
        let entry = table.as_slice()[0];
        assert_eq!((entry.gsi, entry.type_, entry.flags), (5, 1, 0));
        // SAFETY: a line was written.
        let chip = unsafe { entry.u.irqchip };
        assert_eq!((chip.irqchip, chip.pin), (2, 23));
    }

    #[test]
    fn an_msi_has_its_address_split_and_says_whether_it_has_a_device_id() {
        for (id, flags, devid) in [(None, 0, 0), (Some(0x108), 1, 0x108), (Some(0), 1, 0)] {
            let table = table(&[msi(id)]).unwrap();
            let entry = table.as_slice()[0];
            assert_eq!((entry.gsi, entry.type_, entry.flags), (40, 2, flags));
            // SAFETY: an MSI was written.
            let msi = unsafe { entry.u.msi };
            assert_eq!((msi.address_lo, msi.address_hi, msi.data), (0x0808_0040, 1, 7));
            // SAFETY: both members of the union are a u32.
            assert_eq!(unsafe { msi.__bindgen_anon_1.devid }, devid);
        }
    }

    #[test]
    fn the_table_has_as_many_entries_as_routes_and_no_flags() {
        let table = table(&[msi(None), msi(Some(1))]).unwrap();
        assert_eq!((table.as_fam_struct_ref().nr, table.as_fam_struct_ref().flags), (2, 0));
    }

    #[test]
    fn more_than_any_kernel_takes_is_the_kernels_own_answer() {
        assert!(table(&vec![msi(None); 4096]).is_ok());
        assert_eq!(table(&vec![msi(None); 4097]).err(), Some(Errno::EINVAL));
    }
}
