// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! This machine's KVM.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use irq_types::{DeviceId, EventId, Gsi, Lpi, MsiMessage, Ppi, Spi, TriggerMode};
use irqchip::{
    Capabilities, Capability, CreateDevice, CreateIrqchip, DeviceControl, DeviceKind, Errno, Error,
    IoAddress, IoeventBinder, IoeventSpec, IrqfdBinder, LineInjector, MsiDelivery, MsiInjector, Route,
    RoutingSink, VmId,
};
use kvm_ioctls::{Kvm, VcpuFd};
use kvm_irqchip::{HostIrqchips, KvmVm};

use super::fixture::eventually;
use super::kvm_guest::Guest;
use super::{ContractVm, Host, Irqchip, Need, Taken};

/// Either a host to try rules on, or why there is none.
struct Machine(Result<(Kvm, HostIrqchips), String>);

/// This machine.
#[must_use]
pub fn all() -> Vec<Box<dyn Host>> {
    let kvm = Kvm::new().map_err(|e| format!("/dev/kvm: {e}"));
    let probed = kvm.and_then(|kvm| {
        let host = HostIrqchips::probe(&kvm).map_err(|e| e.to_string())?;
        Ok((kvm, host))
    });
    vec![Box::new(Machine(probed))]
}

impl Host for Machine {
    fn name(&self) -> String {
        format!("KVM of this {} machine", std::env::consts::ARCH)
    }

    fn offers(&self, need: Need) -> Result<(), String> {
        let (_, host) = self.0.as_ref().map_err(Clone::clone)?;
        let x86 = cfg!(target_arch = "x86_64");
        let (has, what) = match need {
            Need::Irqchip => (x86 || host.gic_v2 || host.gic_v3, "in-kernel irqchip"),
            Need::Gic => (host.gic_v2 || host.gic_v3, "GIC"),
            Need::GicV2 => (host.gic_v2, "GICv2"),
            Need::GicV3 => (host.gic_v3, "GICv3"),
            Need::BothGics => (host.gic_v2 && host.gic_v3, "choice of GICs"),
            Need::Its => (host.its, "ITS"),
            Need::X86 => (x86, "PIC and IOAPIC"),
        };
        if has { Ok(()) } else { Err(format!("this host's KVM has no {what}")) }
    }

    fn vm(&self) -> Box<dyn ContractVm> {
        let (kvm, _) = self.0.as_ref().unwrap();
        #[cfg(target_arch = "aarch64")]
        let vm = kvm.create_vm_with_ipa_size(40).unwrap();
        #[cfg(not(target_arch = "aarch64"))]
        let vm = kvm.create_vm().unwrap();
        let guest = Guest::new(&vm);
        Box::new(KvmContractVm {
            vcpus: Mutex::new(Vec::new()),
            vm: KvmVm::new(Arc::new(vm)),
            guest: Mutex::new(guest),
        })
    }
}

/// The order of the fields is the order in which they go: vCPUs, VM, memory.
struct KvmContractVm {
    vcpus: Mutex<Vec<(u32, VcpuFd)>>,
    vm: KvmVm,
    guest: Mutex<Guest>,
}

impl KvmContractVm {
    fn on<T>(&self, id: u32, f: impl FnOnce(&mut Guest, &mut VcpuFd) -> T) -> T {
        let mut vcpus = self.vcpus.lock().unwrap();
        let (_, vcpu) = vcpus.iter_mut().find(|(other, _)| *other == id).expect("there is such a vCPU");
        f(&mut self.guest.lock().unwrap(), vcpu)
    }
}

impl ContractVm for KvmContractVm {
    fn create_vcpu(&self, id: u32) -> Result<(), Errno> {
        let vcpu = self.vm.fd().create_vcpu(id.into()).map_err(|e| Errno::new(e.errno()))?;
        self.vcpus.lock().unwrap().push((id, vcpu));
        self.on(id, |guest, vcpu| guest.prepare(id, vcpu))
    }

    fn run_vcpu(&self, id: u32) -> Result<(), Errno> {
        self.on(id, |guest, vcpu| guest.run(id, vcpu))
    }

    fn configure_ioapic_pin(&self, pin: u32, trigger: TriggerMode) {
        #[cfg(target_arch = "x86_64")]
        self.on(0, |guest, vcpu| guest.configure_ioapic_pin(vcpu, pin, trigger == TriggerMode::Level));
        #[cfg(not(target_arch = "x86_64"))]
        panic!("no IOAPIC to set up pin {pin} of as {trigger}");
    }

    fn map_event(
        &self,
        gic: &dyn DeviceControl,
        its: &dyn DeviceControl,
        device: DeviceId,
        event: EventId,
        lpi: Lpi,
    ) {
        self.guest.lock().unwrap().map_event(gic, its, device, event, lpi);
    }

    fn enable_lpi(&self, its: &dyn DeviceControl, device: DeviceId, event: EventId, lpi: Lpi, enabled: bool) {
        self.guest.lock().unwrap().enable_lpi(its, device, event, lpi, enabled);
    }

    fn unmap_event(&self, its: &dyn DeviceControl, device: DeviceId, event: EventId) {
        self.guest.lock().unwrap().unmap_event(its, device, event);
    }

    /// The guest comes back all the time and is sent in again; most of the time it is there.
    fn while_running(&self, id: u32, done: &mut dyn FnMut() -> bool) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    self.run_vcpu(id).unwrap();
                }
            });
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                eventually("what happens while a vCPU runs", done);
            }));
            stop.store(true, Ordering::Relaxed);
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn take(&self, irqchip: Irqchip) -> Option<Taken> {
        self.on(0, |guest, vcpu| guest.take(vcpu, irqchip))
    }

    fn awaits_end(&self, _irqchip: Irqchip, taken: Taken) -> bool {
        self.on(0, |_, vcpu| Guest::awaits_end(vcpu, taken))
    }

    fn end(&self, _irqchip: Irqchip, taken: Taken) {
        self.on(0, |_, vcpu| Guest::end(vcpu, taken));
    }

    fn write(&self, address: IoAddress, value: u64, length: u32) -> bool {
        self.on(0, |guest, vcpu| guest.write(vcpu, address, value, length))
    }
}

// The seam itself is passed on as it is.

impl CreateDevice for KvmContractVm {
    fn vm_id(&self) -> VmId {
        CreateDevice::vm_id(&self.vm)
    }

    fn supports_device(&self, kind: DeviceKind) -> Result<bool, Error> {
        self.vm.supports_device(kind)
    }

    fn create_device(&self, kind: DeviceKind) -> Result<Box<dyn DeviceControl>, Error> {
        self.vm.create_device(kind)
    }
}

impl CreateIrqchip for KvmContractVm {
    fn create_irqchip(&self) -> Result<(), Error> {
        self.vm.create_irqchip()
    }
}

impl RoutingSink for KvmContractVm {
    fn vm_id(&self) -> VmId {
        RoutingSink::vm_id(&self.vm)
    }

    fn set_routes(&self, routes: &[Route]) -> Result<(), Error> {
        self.vm.set_routes(routes)
    }
}

impl IrqfdBinder for KvmContractVm {
    fn vm_id(&self) -> VmId {
        IrqfdBinder::vm_id(&self.vm)
    }

    fn assign_irqfd(
        &self,
        event: BorrowedFd<'_>,
        gsi: Gsi,
        resample: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        self.vm.assign_irqfd(event, gsi, resample)
    }

    fn deassign_irqfd(&self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), Error> {
        self.vm.deassign_irqfd(event, gsi)
    }
}

impl IoeventBinder for KvmContractVm {
    fn assign_ioevent(&self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Result<(), Error> {
        self.vm.assign_ioevent(event, spec)
    }

    fn deassign_ioevent(&self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Result<(), Error> {
        self.vm.deassign_ioevent(event, spec)
    }
}

impl MsiInjector for KvmContractVm {
    fn signal_msi(&self, message: MsiMessage, device_id: Option<DeviceId>) -> Result<MsiDelivery, Error> {
        self.vm.signal_msi(message, device_id)
    }
}

impl LineInjector for KvmContractVm {
    fn set_spi(&self, spi: Spi, high: bool) -> Result<(), Error> {
        self.vm.set_spi(spi, high)
    }

    fn set_ppi(&self, vcpu: u32, ppi: Ppi, high: bool) -> Result<(), Error> {
        self.vm.set_ppi(vcpu, ppi, high)
    }
}

impl Capabilities for KvmContractVm {
    fn capability(&self, capability: Capability) -> Result<u32, Error> {
        self.vm.capability(capability)
    }
}
