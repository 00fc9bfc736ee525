// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::BTreeMap;

use crate::{Errno, Operation};

/// A kind of call into the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Call {
    /// [`CreateDevice::create_device`](crate::CreateDevice::create_device).
    CreateDevice,
    /// [`CreateDevice::supports_device`](crate::CreateDevice::supports_device).
    TestDevice,
    /// [`CreateIrqchip::create_irqchip`](crate::CreateIrqchip::create_irqchip).
    CreateIrqchip,
    /// [`DeviceControl::has_attr`](crate::DeviceControl::has_attr).
    HasAttr,
    /// [`DeviceControl::set_attr`](crate::DeviceControl::set_attr).
    SetAttr,
    /// [`DeviceControl::get_attr`](crate::DeviceControl::get_attr).
    GetAttr,
    /// [`RoutingSink::set_routes`](crate::RoutingSink::set_routes).
    SetRoutes,
    /// [`IrqfdBinder::assign_irqfd`](crate::IrqfdBinder::assign_irqfd).
    AssignIrqfd,
    /// [`IrqfdBinder::deassign_irqfd`](crate::IrqfdBinder::deassign_irqfd).
    DeassignIrqfd,
    /// [`IoeventBinder::assign_ioevent`](crate::IoeventBinder::assign_ioevent).
    AssignIoevent,
    /// [`IoeventBinder::deassign_ioevent`](crate::IoeventBinder::deassign_ioevent).
    DeassignIoevent,
    /// [`MsiInjector::signal_msi`](crate::MsiInjector::signal_msi).
    SignalMsi,
    /// [`LineInjector::set_spi`](crate::LineInjector::set_spi).
    SetSpi,
    /// [`LineInjector::set_ppi`](crate::LineInjector::set_ppi).
    SetPpi,
    /// [`Capabilities::capability`](crate::Capabilities::capability).
    CheckCapability,
    /// [`FakeVm::create_vcpu`](super::FakeVm::create_vcpu).
    CreateVcpu,
    /// [`FakeVm::run_vcpu`](super::FakeVm::run_vcpu).
    RunVcpu,
}

impl Call {
    pub(super) const fn of(operation: &Operation) -> Self {
        match operation {
            Operation::CreateDevice { .. } => Self::CreateDevice,
            Operation::TestDevice { .. } => Self::TestDevice,
            Operation::CreateIrqchip => Self::CreateIrqchip,
            Operation::HasAttr { .. } => Self::HasAttr,
            Operation::SetAttr { .. } => Self::SetAttr,
            Operation::GetAttr { .. } => Self::GetAttr,
            Operation::SetRoutes { .. } => Self::SetRoutes,
            Operation::AssignIrqfd { .. } => Self::AssignIrqfd,
            Operation::DeassignIrqfd { .. } => Self::DeassignIrqfd,
            Operation::AssignIoevent { .. } => Self::AssignIoevent,
            Operation::DeassignIoevent { .. } => Self::DeassignIoevent,
            Operation::SignalMsi { .. } => Self::SignalMsi,
            Operation::SetSpi { .. } => Self::SetSpi,
            Operation::SetPpi { .. } => Self::SetPpi,
            Operation::CheckCapability { .. } => Self::CheckCapability,
        }
    }
}

/// A failure to come: which call, and what it answers.
///
/// ```
/// use irqchip::fake::{Call, FakeHost, Fault};
/// use irqchip::{Errno, RoutingSink};
///
/// let vm = FakeHost::arm64_gicv3().vm();
/// vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM));
/// assert_eq!(vm.set_routes(&[]).unwrap_err().errno, Errno::ENOMEM);
/// assert!(vm.set_routes(&[]).is_ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    call: Option<Call>,
    skip: u64,
    errno: Errno,
    persistent: bool,
}

impl Fault {
    /// The next call of this kind fails, once.
    #[must_use]
    pub const fn next(call: Call, errno: Errno) -> Self {
        Self { call: Some(call), skip: 0, errno, persistent: false }
    }

    /// The next call of any kind fails, once.
    #[must_use]
    pub const fn any(errno: Errno) -> Self {
        Self { call: None, skip: 0, errno, persistent: false }
    }

    /// … but only after `calls` of the same kind have gone through: `after(0)` is the next one.
    #[must_use]
    pub const fn after(self, calls: u64) -> Self {
        Self { skip: calls, ..self }
    }

    /// … and from then on every one fails.
    #[must_use]
    pub const fn persistent(self) -> Self {
        Self { persistent: true, ..self }
    }
}

/// A call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedCall {
    /// Its kind.
    pub call: Call,
    /// Its operands; `None` for the calls that a vCPU's owner makes.
    pub operation: Option<Operation>,
    /// What it answered.
    pub result: Result<(), Errno>,
}

/// Faults to come, and calls that were.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    faults: Vec<Fault>,
    counts: BTreeMap<Call, u64>,
    log: Vec<LoggedCall>,
    routes_copied: u64,
}

impl Ledger {
    pub(super) fn inject(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    pub(super) fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// What an injected fault makes of this call, if one does. Each fault counts each call that it matches.
    pub(super) fn admit(&mut self, call: Call) -> Result<(), Errno> {
        let mut answer = Ok(());
        self.faults.retain_mut(|fault| {
            if fault.call.is_some_and(|kind| kind != call) {
                return true;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                return true;
            }
            if answer.is_err() {
                return true;
            }
            answer = Err(fault.errno);
            fault.persistent
        });
        answer
    }

    pub(super) fn record(&mut self, call: Call, operation: Option<Operation>, result: Result<(), Errno>) {
        *self.counts.entry(call).or_default() += 1;
        if let (Some(Operation::SetRoutes { entries }), Ok(())) = (&operation, result) {
            self.routes_copied += *entries as u64;
        }
        self.log.push(LoggedCall { call, operation, result });
    }

    pub(super) fn count(&self, call: Call) -> u64 {
        self.counts.get(&call).copied().unwrap_or(0)
    }

    pub(super) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(super) fn routes_copied(&self) -> u64 {
        self.routes_copied
    }

    pub(super) fn log(&self) -> &[LoggedCall] {
        &self.log
    }

    pub(super) fn forget(&mut self) {
        self.counts.clear();
        self.log.clear();
        self.routes_copied = 0;
    }
}
