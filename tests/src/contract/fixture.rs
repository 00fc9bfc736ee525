// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMs in the states that rules begin from, and short words for what they do.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use irq_types::{DeviceId, EventId, Gsi, IrqchipPin, Lpi, MsiMessage, Pin, Spi, TriggerMode};
use irqchip::fake::{drain, eventfd, signal};
use irqchip::{
    AttrValue, CreateIrqchip, DeviceAttr, DeviceControl, DeviceKind, Errno, Error, MsiDelivery, Route,
    RouteTarget, arm,
};

use super::{ContractVm, Host, Irqchip, Taken};

/// Where the blocks of the GIC lie.
pub const DISTRIBUTOR: u64 = 0x0800_0000;
/// GICv2.
pub const CPU_INTERFACE: u64 = 0x0801_0000;
/// The ITS.
pub const ITS: u64 = 0x0808_0000;
/// `GITS_TRANSLATER`.
pub const DOORBELL: u64 = ITS + 0x1_0040;
/// The one redistributor region.
pub const REDISTRIBUTORS: u64 = 0x080a_0000;

/// How long a rule waits for something that must come. It fails after that; nothing is ever measured.
const PATIENCE: Duration = Duration::from_secs(20);

/// The errno of a refusal.
pub fn refusal<T>(answer: Result<T, Error>) -> Result<(), Errno> {
    answer.map(|_| ()).map_err(|error| error.errno)
}

/// A new eventfd.
#[must_use]
pub fn event() -> OwnedFd {
    eventfd().unwrap()
}

/// Signals an eventfd.
pub fn ring(event: &OwnedFd) {
    signal(event).unwrap();
}

/// An eventfd's counter, which is zero afterwards.
#[must_use]
pub fn count(event: &OwnedFd) -> u64 {
    drain(event).unwrap()
}

/// Waits until `what` holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// A value of 32 bits.
#[must_use]
pub const fn word(n: u32) -> AttrValue {
    AttrValue::U32(n)
}

/// A value of 64 bits.
#[must_use]
pub const fn long(n: u64) -> AttrValue {
    AttrValue::U64(n)
}

/// A VM with an irqchip.
pub struct Machine {
    /// The VM.
    pub vm: Box<dyn ContractVm>,
    /// What it has.
    pub irqchip: Irqchip,
    gic: Option<Box<dyn DeviceControl>>,
    its: Option<Box<dyn DeviceControl>>,
}

impl Machine {
    /// A VM whose GIC was created, and nothing else.
    #[must_use]
    pub fn with_gic(host: &dyn Host, kind: DeviceKind) -> Self {
        let vm = host.vm();
        let gic = vm.create_device(kind).unwrap();
        Self { vm, irqchip: Irqchip::Gic(kind), gic: Some(gic), its: None }
    }

    /// … and whose addresses are set, and which has vCPU 0.
    #[must_use]
    pub fn complete(host: &dyn Host, kind: DeviceKind) -> Self {
        Self::complete_with_vcpus(host, kind, &[0])
    }

    fn complete_with_vcpus(host: &dyn Host, kind: DeviceKind, ids: &[u32]) -> Self {
        let machine = Self::with_gic(host, kind);
        machine.place();
        for id in ids {
            machine.vm.create_vcpu(*id).unwrap();
        }
        machine
    }

    /// A VM with vCPU 0 whose irqchip is ready for interrupts.
    #[must_use]
    pub fn ready(host: &dyn Host, irqchip: Irqchip) -> Self {
        match irqchip {
            Irqchip::Gic(kind) => Self::with_vcpus(host, kind, &[0]),
            Irqchip::X86 => {
                let vm = host.vm();
                CreateIrqchip::create_irqchip(&*vm).unwrap();
                vm.create_vcpu(0).unwrap();
                Self { vm, irqchip, gic: None, its: None }
            }
        }
    }

    /// A VM with these vCPUs whose GIC is ready.
    #[must_use]
    pub fn with_vcpus(host: &dyn Host, kind: DeviceKind, ids: &[u32]) -> Self {
        let machine = Self::complete_with_vcpus(host, kind, ids);
        machine.init();
        machine
    }

    /// A VM with a GICv3 and an ITS, ready.
    #[must_use]
    pub fn with_its(host: &dyn Host) -> Self {
        Self::with_its_and_vcpus(host, &[0])
    }

    /// … and with these vCPUs.
    #[must_use]
    pub fn with_its_and_vcpus(host: &dyn Host, ids: &[u32]) -> Self {
        let mut machine = Self::with_vcpus(host, DeviceKind::GicV3, ids);
        let its = machine.vm.create_device(DeviceKind::Its).unwrap();
        its.set_attr(arm::ADDR_ITS, long(ITS)).unwrap();
        its.set_attr(arm::CTRL_INIT, AttrValue::None).unwrap();
        machine.its = Some(its);
        machine
    }

    /// The GIC.
    #[must_use]
    pub fn gic(&self) -> &dyn DeviceControl {
        &**self.gic.as_ref().expect("the machine has a GIC")
    }

    /// The ITS.
    #[must_use]
    pub fn its(&self) -> &dyn DeviceControl {
        &**self.its.as_ref().expect("the machine has an ITS")
    }

    /// The kind of GIC.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.gic().kind()
    }

    /// Sets an attribute of the GIC.
    pub fn set(&self, attr: DeviceAttr, value: AttrValue) -> Result<(), Errno> {
        refusal(self.gic().set_attr(attr, value))
    }

    /// A 64-bit attribute of the GIC.
    pub fn get(&self, attr: DeviceAttr) -> Result<u64, Errno> {
        match self.gic().get_attr(attr, long(0)) {
            Ok(AttrValue::U64(n)) => Ok(n),
            Ok(other) => panic!("{other:?} is not what was asked for"),
            Err(error) => Err(error.errno),
        }
    }

    /// A 32-bit attribute of the GIC.
    pub fn get_word(&self, attr: DeviceAttr) -> Result<u32, Errno> {
        match self.gic().get_attr(attr, word(0)) {
            Ok(AttrValue::U32(n)) => Ok(n),
            Ok(other) => panic!("{other:?} is not what was asked for"),
            Err(error) => Err(error.errno),
        }
    }

    /// What a 32-bit register of the GIC holds after this was written.
    pub fn keeps(&self, attr: DeviceAttr, value: u32) -> u32 {
        self.set(attr, word(value)).unwrap();
        self.get_word(attr).unwrap()
    }

    /// Writes a register of the ITS.
    pub fn set_its(&self, offset: u32, value: u64) -> Result<(), Errno> {
        refusal(self.its().set_attr(arm::its_reg(offset), long(value)))
    }

    /// A register of the ITS.
    pub fn get_its(&self, offset: u32) -> Result<u64, Errno> {
        match self.its().get_attr(arm::its_reg(offset), long(0)) {
            Ok(AttrValue::U64(n)) => Ok(n),
            Ok(other) => panic!("{other:?} is not what was asked for"),
            Err(error) => Err(error.errno),
        }
    }

    /// What a register of the ITS holds after this was written.
    pub fn its_keeps(&self, offset: u32, value: u64) -> u64 {
        self.set_its(offset, value).unwrap();
        self.get_its(offset).unwrap()
    }

    /// `KVM_SIGNAL_MSI`.
    pub fn send_message(&self, message: MsiMessage, device: Option<u32>) -> Result<MsiDelivery, Errno> {
        self.vm.signal_msi(message, device.map(DeviceId::new)).map_err(|error| error.errno)
    }

    /// … to the ITS at [`ITS`].
    pub fn send(&self, event: u32, device: Option<u32>) -> Result<MsiDelivery, Errno> {
        self.send_message(its_message(event), device)
    }

    /// Gives the blocks of the GIC their addresses.
    pub fn place(&self) {
        if self.kind() == DeviceKind::GicV2 {
            self.set(arm::ADDR_V2_DIST, long(DISTRIBUTOR)).unwrap();
            self.set(arm::ADDR_V2_CPU, long(CPU_INTERFACE)).unwrap();
        } else {
            self.set(arm::ADDR_V3_DIST, long(DISTRIBUTOR)).unwrap();
            self.set(arm::ADDR_V3_REDIST, long(REDISTRIBUTORS)).unwrap();
        }
    }

    /// … to a GICv3's distributor only.
    pub fn place_distributor(&self) {
        self.set(arm::ADDR_V3_DIST, long(DISTRIBUTOR)).unwrap();
    }

    /// Initialises the GIC.
    pub fn init(&self) {
        self.set(arm::CTRL_INIT, AttrValue::None).unwrap();
    }

    /// The guest's driver sets a line's trigger and enables it.
    pub fn configure(&self, pin: u32, trigger: TriggerMode) {
        if self.irqchip == Irqchip::X86 {
            self.vm.configure_ioapic_pin(pin, trigger);
            return;
        }
        let intid = Spi::new(pin).unwrap().intid().get();
        let (offset, shift) = (0xc00 + intid / 16 * 4, intid % 16 * 2);
        let others = self.get_word(arm::dist_reg(0, offset)).unwrap() & !(3 << shift);
        let config = if trigger == TriggerMode::Edge { 2 } else { 0 };
        self.set(arm::dist_reg(0, offset), word(others | (config << shift))).unwrap();
        if self.kind() == DeviceKind::GicV2 {
            // To CPU 0.
            let (offset, shift) = (0x800 + intid / 4 * 4, intid % 4 * 8);
            let others = self.get_word(arm::dist_reg(0, offset)).unwrap() & !(0xff << shift);
            self.set(arm::dist_reg(0, offset), word(others | (1 << shift))).unwrap();
        }
        self.set(arm::dist_reg(0, 0x100 + intid / 32 * 4), word(1 << (intid % 32))).unwrap();
        let enable = if self.kind() == DeviceKind::GicV2 { 1 } else { 2 };
        self.set(arm::dist_reg(0, 0), word(enable)).unwrap();
    }

    /// The guest's driver makes an event of a device an LPI.
    pub fn map(&self, device: u32, event: u32, lpi: u32) {
        let (device, event) = (DeviceId::new(device), EventId::new(event));
        self.vm.map_event(self.gic(), self.its(), device, event, Lpi::new(lpi).unwrap());
    }

    /// The guest enables or disables an LPI.
    pub fn enable_lpi(&self, device: u32, event: u32, lpi: u32, enabled: bool) {
        let (device, event) = (DeviceId::new(device), EventId::new(event));
        self.vm.enable_lpi(self.its(), device, event, Lpi::new(lpi).unwrap(), enabled);
    }

    /// The guest takes a mapping back.
    pub fn unmap(&self, device: u32, event: u32) {
        self.vm.unmap_event(self.its(), DeviceId::new(device), EventId::new(event));
    }

    /// Which irqchip of the VM has the lines: x86's third is the IOAPIC.
    #[must_use]
    pub fn chip(&self) -> u32 {
        if self.irqchip == Irqchip::X86 { 2 } else { 0 }
    }

    /// A route to a line.
    #[must_use]
    pub fn line(&self, gsi: u32, pin: u32) -> Route {
        let to = IrqchipPin { irqchip: self.chip(), pin: Pin::new(pin) };
        Route { gsi: Gsi::new(gsi), target: RouteTarget::Line(to) }
    }

    /// Replaces the table.
    pub fn routes(&self, routes: &[Route]) -> Result<(), Errno> {
        refusal(self.vm.set_routes(routes))
    }

    /// Binds an eventfd to a GSI.
    pub fn bind(&self, event: &OwnedFd, gsi: u32) -> Result<(), Errno> {
        refusal(self.vm.assign_irqfd(event.as_fd(), Gsi::new(gsi), None))
    }

    /// … with a resampler.
    pub fn bind_level(&self, event: &OwnedFd, gsi: u32, resample: &OwnedFd) -> Result<(), Errno> {
        refusal(self.vm.assign_irqfd(event.as_fd(), Gsi::new(gsi), Some(resample.as_fd())))
    }

    /// Unbinds it, and waits for what it has started.
    pub fn unbind(&self, event: &OwnedFd, gsi: u32) -> Result<(), Errno> {
        refusal(self.vm.deassign_irqfd(event.as_fd(), Gsi::new(gsi)))
    }

    /// The guest acknowledges what is there.
    #[must_use]
    pub fn take(&self) -> Option<Taken> {
        self.vm.take(self.irqchip)
    }

    /// The guest ends it.
    pub fn end(&self, taken: Taken) {
        self.vm.end(self.irqchip, taken);
    }

    /// The guest takes and ends an interrupt that must come.
    #[must_use]
    pub fn take_next(&self) -> Taken {
        let mut taken = None;
        eventually("an interrupt", || {
            taken = self.take();
            taken.is_some()
        });
        let taken = taken.unwrap();
        self.end(taken);
        taken
    }

    /// The guest takes a line's interrupt that must come, and ends it.
    pub fn serve(&self, pin: u32) {
        assert_eq!(self.take_next(), Taken::Line(pin));
    }

    /// Whether an SPI's wire is up. GICv3, level.
    #[must_use]
    pub fn is_high(&self, pin: u32) -> bool {
        let intid = Spi::new(pin).unwrap().intid().get();
        let attr = DeviceAttr { group: arm::GROUP_LEVEL_INFO, attr: u64::from(intid & !31) };
        self.get_word(attr).unwrap() & (1 << (intid % 32)) != 0
    }

    /// Whether an SPI's pending bit is set; of a GICv3 the latch, of a GICv2 latch or wire.
    #[must_use]
    pub fn is_pending(&self, pin: u32) -> bool {
        let intid = Spi::new(pin).unwrap().intid().get();
        let attr = arm::dist_reg(0, 0x200 + intid / 32 * 4);
        self.get_word(attr).unwrap() & (1 << (intid % 32)) != 0
    }
}

/// A message to the ITS at [`ITS`].
#[must_use]
pub const fn its_message(event: u32) -> MsiMessage {
    MsiMessage { address: DOORBELL, data: event }
}

/// A route to the ITS.
#[must_use]
pub fn its_route(gsi: u32, event: u32, device: Option<u32>) -> Route {
    let target = RouteTarget::Msi { message: its_message(event), device_id: device.map(DeviceId::new) };
    Route { gsi: Gsi::new(gsi), target }
}
