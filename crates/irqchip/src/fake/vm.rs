// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use irq_types::{DeviceId, Gsi, Intid, MsiMessage, Ppi, Spi};

use super::state::{Answer, State};
use super::{Call, FakeDevice, FakeGuest, FakeHost, Fault, Interrupt, LoggedCall};
use crate::{
    Capabilities, Capability, CreateDevice, CreateIrqchip, DeviceControl, DeviceKind, Errno, Error,
    IoeventBinder, IoeventSpec, IrqfdBinder, LineInjector, MsiDelivery, MsiInjector, Operation, Route,
    RoutingSink, VmId,
};

/// A VM of the model. Clones are the same VM, as two descriptors of one VM are.
#[derive(Debug, Clone)]
pub struct FakeVm {
    id: VmId,
    state: Arc<Mutex<State>>,
}

/// What a VM still has bound: after everything was dropped, all of it is back where it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Live {
    /// Irqfds, the resampling ones among them.
    pub irqfds: usize,
    /// Irqfds with a resamplefd.
    pub resampling: usize,
    /// Ioeventfds.
    pub ioevents: usize,
    /// Entries of the routing table, the default ones among them.
    pub routes: usize,
}

impl FakeVm {
    pub(super) fn new(host: FakeHost) -> Self {
        Self { id: VmId::unique(), state: Arc::new(Mutex::new(State::new(host))) }
    }

    pub(super) fn id(&self) -> VmId {
        self.id
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A look at the state from outside the kernel's interface, after what was signalled has arrived.
    pub(super) fn look<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        state.process();
        f(&mut state)
    }

    /// One call through the kernel's interface.
    pub(super) fn call<T>(
        &self,
        operation: Operation,
        f: impl FnOnce(&mut State) -> Answer<T>,
    ) -> Result<T, Error> {
        let call = Call::of(&operation);
        self.enter(call, Some(operation.clone()), f).map_err(|errno| Error::new(operation, errno))
    }

    fn enter<T>(
        &self,
        call: Call,
        operation: Option<Operation>,
        f: impl FnOnce(&mut State) -> Answer<T>,
    ) -> Answer<T> {
        let mut state = self.lock();
        state.process();
        let admitted = state.ledger.admit(call);
        let answer = admitted.and_then(|()| if state.dead { Err(Errno::EIO) } else { f(&mut state) });
        let result = answer.as_ref().map(|_| ()).map_err(|errno| *errno);
        state.ledger.record(call, operation, result);
        answer
    }

    /// Lets every signal arrive that was sent to a bound eventfd since the last look. Every call and every look does so too.
    pub fn process(&self) {
        self.look(|_| ());
    }

    /// The guest's side.
    #[must_use]
    pub fn guest(&self) -> FakeGuest<'_> {
        FakeGuest::new(self)
    }

    /// Creates a vCPU (`KVM_CREATE_VCPU`) and initialises it (`KVM_ARM_VCPU_INIT`, which gives it the affinity that its redistributor's
    /// registers are addressed by).
    ///
    /// # Errors
    /// `EBUSY` after the GIC's initialisation, `EINVAL` beyond the VM's limit or if the redistributor has no room where it would lie,
    /// `EEXIST` for an id that is taken.
    pub fn create_vcpu(&self, id: u32) -> Result<(), Errno> {
        self.enter(Call::CreateVcpu, None, |state| state.create_vcpu(id))
    }

    /// Runs a vCPU for a moment (`KVM_RUN`). The first run maps the GIC; if that fails, the VM is dead, and every further call answers
    /// `EIO`.
    ///
    /// # Errors
    /// `EBADF` without that vCPU; on the first run `ENXIO` if an address is missing, `EINVAL` if the GIC's blocks overlap, `EBUSY` if a
    /// GICv3 is not initialised.
    pub fn run_vcpu(&self, id: u32) -> Result<(), Errno> {
        self.enter(Call::RunVcpu, None, |state| state.run_vcpu(id))
    }

    /// Runs a vCPU and leaves it in the guest, as a thread would that does not come back: register access is `EBUSY` from now on.
    ///
    /// # Errors
    /// As [`run_vcpu`](Self::run_vcpu).
    pub fn enter_guest(&self, id: u32) -> Result<(), Errno> {
        self.run_vcpu(id)?;
        self.set_running(id, true)
    }

    /// Brings a vCPU out of the guest.
    ///
    /// # Errors
    /// `EBADF` without that vCPU.
    pub fn leave_guest(&self, id: u32) -> Result<(), Errno> {
        self.set_running(id, false)
    }

    fn set_running(&self, id: u32, running: bool) -> Result<(), Errno> {
        self.look(|state| {
            let index = state.vcpu_by_id(id).ok_or(Errno::EBADF)?;
            state.vcpus[index].running = running;
            Ok(())
        })
    }

    /// Adds a failure to come. Several may wait at a time; each counts the calls that it matches.
    pub fn inject(&self, fault: Fault) {
        self.lock().inject_fault(fault);
    }

    /// Takes back all failures that have not happened yet.
    pub fn clear_faults(&self) {
        self.lock().ledger.clear_faults();
    }

    /// How many calls of this kind were made, failed ones included.
    #[must_use]
    pub fn count(&self, call: Call) -> u64 {
        self.lock().ledger.count(call)
    }

    /// How many calls were made in all: so many system calls would it have been.
    #[must_use]
    pub fn total_calls(&self) -> u64 {
        self.lock().ledger.total()
    }

    /// How many routing entries the kernel has copied in all successful commits.
    #[must_use]
    pub fn routes_copied(&self) -> u64 {
        self.lock().ledger.routes_copied()
    }

    /// The calls, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<LoggedCall> {
        self.lock().ledger.log().to_vec()
    }

    /// Starts counting and logging anew.
    pub fn forget_calls(&self) {
        self.lock().ledger.forget();
    }

    /// What is bound now.
    #[must_use]
    pub fn live(&self) -> Live {
        self.look(|state| Live {
            irqfds: state.irqfds.len(),
            resampling: state.irqfds.iter().filter(|irqfd| irqfd.is_resampling()).count(),
            ioevents: state.ioevents.len(),
            routes: state.table.routes.len(),
        })
    }

    /// The kernel's routing table, in the order in which it was given.
    #[must_use]
    pub fn routes(&self) -> Vec<Route> {
        self.look(|state| state.table.routes.clone())
    }

    /// Whether an interrupt of the GIC is pending for the guest (for a private one: for vCPU 0).
    #[must_use]
    pub fn is_pending(&self, intid: Intid) -> bool {
        self.look(|state| state.line(0, intid.get()).is_some_and(|line| line.pending()))
    }

    /// Whether the wire of an SPI that the guest has configured as level is up.
    #[must_use]
    pub fn line_is_high(&self, spi: Spi) -> bool {
        self.look(|state| state.line(0, spi.intid().get()).is_some_and(|line| line.high))
    }

    /// How often an interrupt was raised. Two that were raised before the guest took the first count as two here, and are one to the
    /// guest.
    #[must_use]
    pub fn raised(&self, interrupt: Interrupt) -> u64 {
        self.look(|state| state.raised.get(&interrupt).copied().unwrap_or(0))
    }
}

impl CreateDevice for FakeVm {
    fn vm_id(&self) -> VmId {
        self.id
    }

    fn supports_device(&self, kind: DeviceKind) -> Result<bool, Error> {
        self.call(Operation::TestDevice { kind }, |state| Ok(state.supports(kind)))
    }

    fn create_device(&self, kind: DeviceKind) -> Result<Box<dyn DeviceControl>, Error> {
        let its = self.call(Operation::CreateDevice { kind }, |state| {
            if !state.supports(kind) {
                return Err(Errno::ENODEV);
            }
            match kind {
                DeviceKind::Its => Ok(state.create_its()),
                DeviceKind::GicV2 | DeviceKind::GicV3 => state.create_gic(kind).map(|()| 0),
            }
        })?;
        Ok(Box::new(FakeDevice::new(self.clone(), kind, its)))
    }
}

impl CreateIrqchip for FakeVm {
    fn create_irqchip(&self) -> Result<(), Error> {
        self.call(Operation::CreateIrqchip, State::create_irqchip)
    }
}

impl RoutingSink for FakeVm {
    fn vm_id(&self) -> VmId {
        self.id
    }

    fn set_routes(&self, routes: &[Route]) -> Result<(), Error> {
        self.call(Operation::SetRoutes { entries: routes.len() }, |state| state.set_routes(routes))
    }
}

impl IrqfdBinder for FakeVm {
    fn vm_id(&self) -> VmId {
        self.id
    }

    fn assign_irqfd(
        &self,
        event: BorrowedFd<'_>,
        gsi: Gsi,
        resample: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let operation = Operation::AssignIrqfd { fd: event.as_raw_fd(), gsi, resample: resample.is_some() };
        self.call(operation, |state| state.assign_irqfd(event, gsi, resample))
    }

    fn deassign_irqfd(&self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), Error> {
        let operation = Operation::DeassignIrqfd { fd: event.as_raw_fd(), gsi };
        self.call(operation, |state| state.deassign_irqfd(event, gsi))
    }
}

impl IoeventBinder for FakeVm {
    fn assign_ioevent(&self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Result<(), Error> {
        self.call(Operation::AssignIoevent { spec }, |state| state.assign_ioevent(event, spec))
    }

    fn deassign_ioevent(&self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Result<(), Error> {
        self.call(Operation::DeassignIoevent { spec }, |state| state.deassign_ioevent(event, spec))
    }
}

impl MsiInjector for FakeVm {
    fn signal_msi(&self, message: MsiMessage, device_id: Option<DeviceId>) -> Result<MsiDelivery, Error> {
        let operation = Operation::SignalMsi { message, device_id };
        self.call(operation, |state| state.signal_msi(message, device_id))
    }
}

impl LineInjector for FakeVm {
    fn set_spi(&self, spi: Spi, high: bool) -> Result<(), Error> {
        self.call(Operation::SetSpi { spi, high }, |state| state.set_spi(spi.intid(), high))
    }

    fn set_ppi(&self, vcpu: u32, ppi: Ppi, high: bool) -> Result<(), Error> {
        let operation = Operation::SetPpi { vcpu, ppi, high };
        self.call(operation, |state| state.set_ppi(vcpu, ppi.intid().get(), high))
    }
}

impl Capabilities for FakeVm {
    fn capability(&self, capability: Capability) -> Result<u32, Error> {
        self.call(Operation::CheckCapability { capability }, |state| {
            Ok(match capability {
                Capability::IrqRouting => state.host.routing_limit,
                // `msis_require_devid`: from the creation of an ITS on.
                Capability::MsiDeviceId => u32::from(!state.itses.is_empty()),
                Capability::ArmIrqLineLayout2 => u32::from(!state.host.x86),
                Capability::Irqfd
                | Capability::IrqfdResample
                | Capability::Ioeventfd
                | Capability::IoeventfdAnyLength
                | Capability::SignalMsi
                | Capability::DeviceCtrl => 1,
            })
        })
    }
}
