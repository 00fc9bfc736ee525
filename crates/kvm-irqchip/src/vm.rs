// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use irq_types::{DeviceId, Gsi, MsiMessage, Ppi, Spi};
use irqchip::{
    Capabilities, Capability, CreateDevice, CreateIrqchip, DeviceControl, DeviceKind, Errno, Error,
    IoAddress, IoeventBinder, IoeventSpec, IrqfdBinder, LineInjector, MsiDelivery, MsiInjector, Operation,
    Route, RoutingSink, VmId,
};
use kvm_bindings as kvm;
use kvm_ioctls::VmFd;

use crate::{KvmDevice, routing, sys};

/// A VM of KVM. Clones are the same VM; two that are wrapped separately count as two ([`VmId`]), so wrap a `VmFd` once.
#[derive(Clone)]
pub struct KvmVm {
    fd: Arc<VmFd>,
    id: VmId,
}

impl KvmVm {
    /// Wraps a VM, which stays usable for everything that is not about interrupts.
    #[must_use]
    pub fn new(fd: Arc<VmFd>) -> Self {
        Self { fd, id: VmId::unique() }
    }

    /// The wrapped VM.
    #[must_use]
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    fn ioeventfd(
        &self,
        event: BorrowedFd<'_>,
        spec: IoeventSpec,
        flags: u32,
        operation: Operation,
    ) -> Result<(), Error> {
        let (addr, bus) = match spec.address {
            IoAddress::Mmio(address) => (address, 0),
            IoAddress::Pio(port) => (u64::from(port), 1 << kvm::kvm_ioeventfd_flag_nr_pio),
        };
        let compare = match spec.datamatch {
            Some(_) => 1 << kvm::kvm_ioeventfd_flag_nr_datamatch,
            None => 0,
        };
        let request = kvm::kvm_ioeventfd {
            datamatch: spec.datamatch.unwrap_or(0),
            addr,
            len: spec.length,
            fd: event.as_raw_fd(),
            flags: flags | bus | compare,
            ..Default::default()
        };
        sys::ioeventfd(&self.fd, &request).map_err(|errno| Error::new(operation, errno))
    }

    /// `KVM_IRQ_LINE`, whose number only arm64 encodes as the seam means it.
    fn irq_line(&self, number: u32, high: bool, operation: Operation) -> Result<(), Error> {
        #[cfg(target_arch = "aarch64")]
        let answer = self.fd.set_irq_line(number, high).map_err(sys::errno);
        #[cfg(not(target_arch = "aarch64"))]
        let answer = {
            let _ = (number, high);
            Err(Errno::ENXIO)
        };
        answer.map_err(|errno| Error::new(operation, errno))
    }
}

impl fmt::Debug for KvmVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmVm").field("id", &self.id).field("fd", &self.fd.as_raw_fd()).finish()
    }
}

/// `KVM_DEV_TYPE_*`. The numbers are the same on every architecture.
fn device_type(kind: DeviceKind) -> Result<u32, Errno> {
    match kind {
        DeviceKind::GicV2 => Ok(kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2),
        DeviceKind::GicV3 => Ok(kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3),
        DeviceKind::Its => Ok(kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS),
        _ => Err(Errno::ENODEV),
    }
}

impl CreateDevice for KvmVm {
    fn vm_id(&self) -> VmId {
        self.id
    }

    fn supports_device(&self, kind: DeviceKind) -> Result<bool, Error> {
        match device_type(kind).and_then(|number| sys::test_device(&self.fd, number)) {
            Ok(()) => Ok(true),
            Err(Errno::ENODEV) => Ok(false),
            Err(errno) => Err(Error::new(Operation::TestDevice { kind }, errno)),
        }
    }

    fn create_device(&self, kind: DeviceKind) -> Result<Box<dyn DeviceControl>, Error> {
        let fd = device_type(kind)
            .and_then(|number| sys::create_device(&self.fd, number))
            .map_err(|errno| Error::new(Operation::CreateDevice { kind }, errno))?;
        Ok(Box::new(KvmDevice::new(fd, kind, self.id)))
    }
}

impl CreateIrqchip for KvmVm {
    /// On arm64 `ENOTTY`, without asking: there `KVM_CREATE_IRQCHIP` would make a GICv2 that no device descriptor configures and that
    /// is not ready.
    fn create_irqchip(&self) -> Result<(), Error> {
        #[cfg(target_arch = "x86_64")]
        let answer = self.fd.create_irq_chip().map_err(sys::errno);
        #[cfg(not(target_arch = "x86_64"))]
        let answer = Err(Errno::ENOTTY);
        answer.map_err(|errno| Error::new(Operation::CreateIrqchip, errno))
    }
}

impl RoutingSink for KvmVm {
    fn vm_id(&self) -> VmId {
        self.id
    }

    fn set_routes(&self, routes: &[Route]) -> Result<(), Error> {
        routing::table(routes)
            .and_then(|table| self.fd.set_gsi_routing(&table).map_err(sys::errno))
            .map_err(|errno| Error::new(Operation::SetRoutes { entries: routes.len() }, errno))
    }
}

impl IrqfdBinder for KvmVm {
    fn vm_id(&self) -> VmId {
        self.id
    }

    fn assign_irqfd(
        &self,
        event: BorrowedFd<'_>,
        gsi: Gsi,
        resample: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let request = kvm::kvm_irqfd {
            fd: sys::raw(event),
            gsi: gsi.get(),
            flags: if resample.is_some() { kvm::KVM_IRQFD_FLAG_RESAMPLE } else { 0 },
            resamplefd: resample.map_or(0, sys::raw),
            ..Default::default()
        };
        sys::irqfd(&self.fd, &request).map_err(|errno| {
            let resample = resample.is_some();
            Error::new(Operation::AssignIrqfd { fd: event.as_raw_fd(), gsi, resample }, errno)
        })
    }

    fn deassign_irqfd(&self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), Error> {
        let request = kvm::kvm_irqfd {
            fd: sys::raw(event),
            gsi: gsi.get(),
            flags: kvm::KVM_IRQFD_FLAG_DEASSIGN,
            ..Default::default()
        };
        sys::irqfd(&self.fd, &request)
            .map_err(|errno| Error::new(Operation::DeassignIrqfd { fd: event.as_raw_fd(), gsi }, errno))
    }
}

impl IoeventBinder for KvmVm {
    fn assign_ioevent(&self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Result<(), Error> {
        self.ioeventfd(event, spec, 0, Operation::AssignIoevent { spec })
    }

    fn deassign_ioevent(&self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Result<(), Error> {
        let deassign = 1 << kvm::kvm_ioeventfd_flag_nr_deassign;
        self.ioeventfd(event, spec, deassign, Operation::DeassignIoevent { spec })
    }
}

impl MsiInjector for KvmVm {
    fn signal_msi(&self, message: MsiMessage, device_id: Option<DeviceId>) -> Result<MsiDelivery, Error> {
        let request = kvm::kvm_msi {
            address_lo: message.address_lo(),
            address_hi: message.address_hi(),
            data: message.data,
            flags: if device_id.is_some() { kvm::KVM_MSI_VALID_DEVID } else { 0 },
            devid: device_id.map_or(0, DeviceId::get),
            ..Default::default()
        };
        // The kernel's answer is how many CPUs took it, 0 if the guest has blocked it.
        match self.fd.signal_msi(request) {
            Ok(0) => Ok(MsiDelivery::Blocked),
            Ok(_) => Ok(MsiDelivery::Delivered),
            Err(e) => Err(Error::new(Operation::SignalMsi { message, device_id }, sys::errno(e))),
        }
    }
}

impl LineInjector for KvmVm {
    fn set_spi(&self, spi: Spi, high: bool) -> Result<(), Error> {
        self.irq_line(spi.kvm_irq_line(), high, Operation::SetSpi { spi, high })
    }

    fn set_ppi(&self, vcpu: u32, ppi: Ppi, high: bool) -> Result<(), Error> {
        let operation = Operation::SetPpi { vcpu, ppi, high };
        match ppi.kvm_irq_line(vcpu) {
            Ok(number) => self.irq_line(number, high, operation),
            // No vCPU can have such an index.
            Err(_) => Err(Error::new(operation, Errno::EINVAL)),
        }
    }
}

impl Capabilities for KvmVm {
    fn capability(&self, capability: Capability) -> Result<u32, Error> {
        let number = match capability {
            Capability::IrqRouting => kvm::KVM_CAP_IRQ_ROUTING,
            Capability::MsiDeviceId => kvm::KVM_CAP_MSI_DEVID,
            Capability::Irqfd => kvm::KVM_CAP_IRQFD,
            Capability::IrqfdResample => kvm::KVM_CAP_IRQFD_RESAMPLE,
            Capability::Ioeventfd => kvm::KVM_CAP_IOEVENTFD,
            Capability::IoeventfdAnyLength => kvm::KVM_CAP_IOEVENTFD_ANY_LENGTH,
            Capability::SignalMsi => kvm::KVM_CAP_SIGNAL_MSI,
            Capability::ArmIrqLineLayout2 => kvm::KVM_CAP_ARM_IRQ_LINE_LAYOUT_2,
            Capability::DeviceCtrl => kvm::KVM_CAP_DEVICE_CTRL,
            // A capability that this backend has never heard of is not there.
            _ => return Ok(0),
        };
        u32::try_from(self.fd.check_extension_raw(number.into()))
            .map_err(|_| Error::new(Operation::CheckCapability { capability }, sys::last_errno()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;

    /// A VM, or a line on stdout that says why there is none.
    fn vm() -> Option<KvmVm> {
        match Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(vm) => Some(KvmVm::new(Arc::new(vm))),
            Err(e) => {
                println!("SKIP: no VM on this host: {e}");
                None
            }
        }
    }

    #[test]
    fn testing_for_a_device_closes_nobodys_descriptor() {
        let Some(vm) = vm() else { return };
        // Descriptor 0 is what a zeroed `kvm_create_device` names.
        let stdin = std::fs::read_link("/proc/self/fd/0").ok();
        for kind in [DeviceKind::GicV2, DeviceKind::GicV3, DeviceKind::Its] {
            vm.supports_device(kind).unwrap();
        }
        assert_eq!(std::fs::read_link("/proc/self/fd/0").ok(), stdin);
    }

    #[test]
    fn a_capability_has_a_value() {
        let Some(vm) = vm() else { return };
        assert!(vm.capability(Capability::IrqRouting).unwrap() >= 1024);
        assert_eq!(vm.capability(Capability::Irqfd).unwrap(), 1);
    }
}
