// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a router believes of a VM's table, held against this machine's KVM.
//!
//! The kernel does not give its table back. What it fires does: each test raises GSIs and looks at the irqchips' registers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gsi_routing::{Error, GsiHandle, Router, Targets};
use irq_types::{DeviceId, Gsi, MsiMessage};
use irqchip::fake::{eventfd, signal};
use irqchip::{
    Capabilities, Capability, Errno, IrqfdBinder, MsiInjector, Route, RouteTarget, RoutingSink, VmId,
};
use kvm_irqchip::KvmVm;

#[cfg(target_arch = "aarch64")]
use arm64::Machine;
#[cfg(target_arch = "x86_64")]
use x86::Machine;

/// Hands tables on to KVM; on request spoiled by an entry that the kernel refuses.
struct Spoiler {
    vm: KvmVm,
    spoil: AtomicBool,
}

impl RoutingSink for Spoiler {
    fn vm_id(&self) -> VmId {
        RoutingSink::vm_id(&self.vm)
    }

    fn set_routes(&self, routes: &[Route]) -> Result<(), irqchip::Error> {
        let mut routes = routes.to_vec();
        if self.spoil.swap(false, Ordering::Relaxed) {
            let message = MsiMessage::default();
            routes.push(Route {
                gsi: Gsi::new(u32::MAX),
                target: RouteTarget::Msi { message, device_id: None },
            });
        }
        self.vm.set_routes(&routes)
    }
}

const SENDER: DeviceId = DeviceId::new(0x108);

/// Pulses a GSI the way a device does, and waits until everything that came of it is there.
fn fire(vm: &KvmVm, gsi: Gsi) {
    let event = eventfd().unwrap();
    vm.assign_irqfd(event.as_fd(), gsi, None).unwrap();
    signal(&event).unwrap();
    // Taking an irqfd away waits for what it has started (`irqfd_shutdown`).
    vm.deassign_irqfd(event.as_fd(), gsi).unwrap();
}

/// A machine as it should be, or why there is none.
fn ready(machine: Result<Machine, String>, test: &str) -> Option<(Machine, Arc<Spoiler>, Router)> {
    match machine {
        Ok(machine) => {
            let sink = Arc::new(Spoiler { vm: machine.vm.clone(), spoil: AtomicBool::new(false) });
            let router = machine.router(sink.clone());
            Some((machine, sink, router))
        }
        Err(reason) => {
            println!("SKIP {test}: {reason}");
            None
        }
    }
}

/// What a GSI raises in a VM of its own, after `prepare` has had its router; and what that router believes.
fn raised_and_believed(
    gsi: Gsi,
    prepare: impl FnOnce(&Router) -> Vec<GsiHandle>,
) -> Result<(Vec<irq_types::IrqchipPin>, Targets), String> {
    let machine = Machine::new()?;
    let router = machine.router(Arc::new(machine.vm.clone()));
    let _handles = prepare(&router);
    machine.raise(gsi);
    Ok((machine.raised(), router.snapshot().table().targets(gsi)))
}

/// Compares what each GSI of a line raises with what a router believes, also for the first number behind the lines.
fn each_line_raises_what_is_believed(test: &str, mut prepare: impl FnMut(&Router) -> Vec<GsiHandle>) {
    for n in 0..=Machine::LINES {
        let gsi = Gsi::new(n);
        match raised_and_believed(gsi, &mut prepare) {
            Ok((raised, believed)) => {
                let want = match believed {
                    Targets::Lines(pins) => pins,
                    Targets::Nothing => Vec::new(),
                    Targets::Msi { .. } => panic!("{gsi} is an MSI"),
                };
                assert_eq!(raised, want, "{gsi}");
            }
            Err(reason) => {
                println!("SKIP {test}: {reason}");
                return;
            }
        }
    }
}

#[test]
fn the_model_has_the_default_routes_that_kvm_makes() {
    each_line_raises_what_is_believed("the_model_has_the_default_routes_that_kvm_makes", |router| {
        assert!(!router.snapshot().table().entries().is_empty());
        Vec::new()
    });
}

#[test]
fn a_commit_keeps_the_default_routes() {
    each_line_raises_what_is_believed("a_commit_keeps_the_default_routes", |router| {
        let lines = router.snapshot().table().entries().len();
        let mut transaction = router.transaction();
        let line = transaction.claim_line(Gsi::new(3)).unwrap();
        let free = router.allocate_many(2).unwrap();
        for handle in &free {
            // A number away from the lines, so that it cannot be what is raised below.
            assert!(handle.gsi().get() >= Machine::LINES);
        }
        transaction.commit().unwrap();
        router.reinstall().unwrap();
        assert_eq!(router.snapshot().table().entries().len(), lines);
        vec![line]
    });
}

#[test]
fn released_default_routes_raise_nothing() {
    each_line_raises_what_is_believed("released_default_routes_raise_nothing", |router| {
        let line = router.claim_line(Gsi::new(3)).unwrap();
        router.release_default_routes();
        router.flush().unwrap();
        assert!(matches!(router.snapshot().table().targets(Gsi::new(3)), Targets::Lines(_)));
        assert_eq!(router.snapshot().table().targets(Gsi::new(4)), Targets::Nothing);
        vec![line]
    });
}

#[test]
fn as_many_routes_as_the_vm_says_are_taken_and_no_more() {
    let test = "as_many_routes_as_the_vm_says_are_taken_and_no_more";
    let Some((machine, _, router)) = ready(Machine::new(), test) else { return };
    let limit = machine.vm.capability(Capability::IrqRouting).unwrap();
    assert_eq!(router.limit(), limit);
    let usage = router.usage();
    let vectors = router.allocate_many(limit as usize - usage.entries).unwrap();
    let mut transaction = router.transaction();
    for vector in &vectors {
        transaction.set_msi(vector, machine.message(0), SENDER).unwrap();
    }
    let commit = transaction.commit().unwrap();
    assert_eq!((commit.entries, commit.installed), (limit as usize, true));
    assert!(matches!(router.allocate(), Err(Error::Exhausted { available: 0, .. })));

    // The kernel would have refused it, as the router says.
    let entry =
        Route { gsi: Gsi::new(0), target: RouteTarget::Msi { message: machine.message(0), device_id: None } };
    let too_many = vec![entry; limit as usize + 1];
    assert_eq!(machine.vm.set_routes(&too_many).unwrap_err().errno, Errno::EINVAL);
    let beyond = [Route { gsi: Gsi::new(limit), ..entry }];
    assert_eq!(machine.vm.set_routes(&beyond).unwrap_err().errno, Errno::EINVAL);
}

#[test]
fn a_commit_that_kvm_refuses_leaves_the_old_table_in_force() {
    let test = "a_commit_that_kvm_refuses_leaves_the_old_table_in_force";
    let Some((machine, sink, router)) = ready(Machine::new(), test) else { return };
    // GSI 5 moves from its own pin to that of GSI 6, which is claimed and cleared for it.
    let (five, six) = (router.claim_line(Gsi::new(5)).unwrap(), router.claim_line(Gsi::new(6)).unwrap());
    let (own, other) = (five.targets(), six.targets());
    let before = router.snapshot();
    let mut transaction = router.transaction();
    transaction.clear(&five).unwrap();
    transaction.clear(&six).unwrap();
    let (Targets::Lines(own), Targets::Lines(other)) = (own, other) else { panic!() };
    for &pin in &other {
        transaction.add_line(&five, pin).unwrap();
    }
    sink.spoil.store(true, Ordering::Relaxed);
    let error = transaction.commit().unwrap_err();
    let Error::Commit { changed: 2, source } = error else { panic!("{error:?}") };
    assert_eq!(source.errno, Errno::EINVAL);
    assert_eq!(router.snapshot(), before);
    machine.raise(five.gsi());
    assert_eq!(machine.raised(), own);
    machine.lower(five.gsi());

    // And once it is not refused, the new one.
    transaction.commit().unwrap();
    machine.forget();
    machine.raise(five.gsi());
    assert_eq!(machine.raised(), other);
}

#[test]
fn a_committed_message_arrives_and_a_withdrawn_one_does_not() {
    let test = "a_committed_message_arrives_and_a_withdrawn_one_does_not";
    let Some((machine, _, router)) = ready(Machine::that_needs_no_guest(), test) else { return };
    let vector = router.add_msi(machine.message(1), SENDER).unwrap();
    let gsi = vector.gsi();
    fire(&machine.vm, gsi);
    assert_eq!(machine.messages(), [1]);
    // Changed while in use: the next one is the new one.
    let mut transaction = router.transaction();
    transaction.set_msi(&vector, machine.message(2), SENDER).unwrap();
    transaction.commit().unwrap();
    fire(&machine.vm, gsi);
    assert_eq!(machine.messages(), [1, 2]);
    drop(vector);
    router.flush().unwrap();
    fire(&machine.vm, gsi);
    assert_eq!(machine.messages(), [1, 2]);
}

#[test]
fn the_vm_wants_device_ids_exactly_where_the_router_says() {
    let test = "the_vm_wants_device_ids_exactly_where_the_router_says";
    let Some((machine, _, router)) = ready(Machine::new(), test) else { return };
    let message = machine.message(0);
    let answer = router.signal_msi(&machine.vm, message, SENDER);
    assert_eq!(answer.map_err(|error| error.errno), machine.answer_to_an_msi());
    if router.msi_policy().needs_device_id() {
        let error = machine.vm.signal_msi(message, None).unwrap_err();
        assert_eq!(error.errno, Errno::EINVAL);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use gsi_routing::{Router, models};
    use irq_types::{Gsi, IrqchipPin, MsiMessage, Pin};
    use irqchip::{Errno, IrqchipReady, MsiDelivery, RoutingSink};
    use kvm_bindings::kvm_irqchip;
    use kvm_ioctls::{Kvm, VcpuFd};
    use std::sync::Arc;

    // Not the structure of the same name.
    use ::kvm_irqchip::KvmVm;

    /// A VM with two PICs and an IOAPIC, and a vCPU whose local APIC is on.
    pub(super) struct Machine {
        pub(super) vm: KvmVm,
        pub(super) ready: IrqchipReady,
        vcpu: VcpuFd,
    }

    impl Machine {
        pub(super) const LINES: u32 = 24;
        const FIRST_VECTOR: u32 = 0x40;

        pub(super) fn new() -> Result<Self, String> {
            let kvm = Kvm::new().map_err(|error| format!("/dev/kvm does not open: {error}"))?;
            let fd = Arc::new(kvm.create_vm().map_err(|error| format!("no VM: {error}"))?);
            let vm = KvmVm::new(fd.clone());
            let ready = IrqchipReady::create_pic_and_ioapic(&vm).map_err(|error| format!("{error:?}"))?;
            let vcpu = fd.create_vcpu(0).unwrap();
            let mut apic = vcpu.get_lapic().unwrap();
            // The spurious vector register's bit 8 switches the APIC on (Intel SDM volume 3, "Advanced
            // Programmable Interrupt Controller").
            apic.regs[0xf0] = -1;
            apic.regs[0xf1] = 1;
            vcpu.set_lapic(&apic).unwrap();
            Ok(Self { vm, ready, vcpu })
        }

        pub(super) fn that_needs_no_guest() -> Result<Self, String> {
            Self::new()
        }

        pub(super) fn router(&self, sink: Arc<dyn RoutingSink>) -> Router {
            Router::new(sink, &self.vm, &self.ready, &models::X86_PIC_IOAPIC).unwrap()
        }

        /// To the local APIC of the vCPU.
        pub(super) fn message(&self, n: u32) -> MsiMessage {
            MsiMessage { address: 0xfee0_0000, data: Self::FIRST_VECTOR + n }
        }

        pub(super) fn answer_to_an_msi(&self) -> Result<MsiDelivery, Errno> {
            Ok(MsiDelivery::Delivered)
        }

        /// Drives the GSI through the table (`KVM_IRQ_LINE`, Linux 6.12, `arch/x86/kvm/x86.c`, `kvm_vm_ioctl_irq_line`).
        pub(super) fn raise(&self, gsi: Gsi) {
            self.vm.fd().set_irq_line(gsi.get(), true).unwrap();
        }

        pub(super) fn lower(&self, gsi: Gsi) {
            self.vm.fd().set_irq_line(gsi.get(), false).unwrap();
        }

        fn chip(&self, chip_id: u32) -> kvm_irqchip {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.vm.fd().get_irqchip(&mut chip).unwrap();
            chip
        }

        /// The PICs' state of each input: what was raised and not taken.
        #[allow(unsafe_code, reason = "the kernel's union is read as the chip that was asked for")]
        fn pic_irr(&self, chip_id: u32) -> u32 {
            // SAFETY: KVM_GET_IRQCHIP has filled in the PIC's state for chips 0 and 1, of bytes that may have any value.
            unsafe { self.chip(chip_id).chip.pic }.irr.into()
        }

        #[allow(unsafe_code, reason = "the kernel's union is read as the chip that was asked for")]
        fn ioapic_irr(&self) -> u32 {
            // SAFETY: KVM_GET_IRQCHIP has filled in the IOAPIC's state for chip 2, of integers that may have any value.
            unsafe { self.chip(2).chip.ioapic }.irr
        }

        /// The inputs that are up.
        pub(super) fn raised(&self) -> Vec<IrqchipPin> {
            let (slave, mut master) = (self.pic_irr(1), self.pic_irr(0));
            if slave != 0 {
                // The slave's output is the master's input 2.
                master &= !(1 << 2);
            }
            let mut pins = Vec::new();
            for (irqchip, irr) in [(0, master), (1, slave), (2, self.ioapic_irr())] {
                let raised = (0..32).filter(|pin| irr & (1 << pin) != 0);
                pins.extend(raised.map(|pin| IrqchipPin { irqchip, pin: Pin::new(pin) }));
            }
            pins
        }

        /// Takes what is raised back: an edge stays in a PIC's register until it is.
        pub(super) fn forget(&self) {
            for chip_id in [0, 1] {
                let mut chip = kvm_irqchip { chip_id, ..Default::default() };
                chip.chip.pic = Default::default();
                self.vm.fd().set_irqchip(&chip).unwrap();
            }
        }

        /// The messages that wait in the local APIC, which are interrupt vectors.
        pub(super) fn messages(&self) -> Vec<u32> {
            let apic = self.vcpu.get_lapic().unwrap();
            let irr = |vector: u32| {
                let byte = apic.regs[(0x200 + vector / 32 * 0x10 + vector % 32 / 8) as usize];
                byte & (1u8 << (vector % 8)).cast_signed() != 0
            };
            (0..256).filter(|&vector| irr(vector)).map(|vector| vector - Self::FIRST_VECTOR).collect()
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm64 {
    use gsi_routing::{Router, V2mFrame, models};
    use irq_types::{Gsi, IrqchipPin, MsiMessage, Spi};
    use irqchip::{
        AttrValue, CreateDevice, DeviceControl, DeviceKind, Errno, IrqchipReady, LineInjector, MsiDelivery,
        RoutingSink, arm,
    };
    use kvm_ioctls::Kvm;
    use kvm_irqchip::KvmVm;
    use std::sync::Arc;

    const FRAME_FIRST: Spi = match Spi::new(32) {
        Ok(spi) => spi,
        Err(_) => panic!(),
    };

    /// A VM with the best GIC that the host has, its SPIs edge-triggered, and an ITS where there can be one.
    pub(super) struct Machine {
        pub(super) vm: KvmVm,
        pub(super) ready: IrqchipReady,
        gic: Box<dyn DeviceControl>,
        v3: bool,
        its: bool,
    }

    impl Machine {
        pub(super) const LINES: u32 = 64;
        const DOORBELL: u64 = 0x0809_0040;
        /// Where there is no ITS.
        const FRAME: V2mFrame = V2mFrame { setspi: 0x0802_0040, first: FRAME_FIRST, count: 32 };

        pub(super) fn new() -> Result<Self, String> {
            Self::with_its_if(true)
        }

        /// An MSI that goes to an ITS is nothing before a guest maps it.
        pub(super) fn that_needs_no_guest() -> Result<Self, String> {
            Self::with_its_if(false)
        }

        fn with_its_if(wanted: bool) -> Result<Self, String> {
            let kvm = Kvm::new().map_err(|error| format!("/dev/kvm does not open: {error}"))?;
            let fd = Arc::new(kvm.create_vm().map_err(|error| format!("no VM: {error}"))?);
            let vm = KvmVm::new(fd.clone());
            let v3 = vm.supports_device(DeviceKind::GicV3).unwrap();
            let kind = if v3 { DeviceKind::GicV3 } else { DeviceKind::GicV2 };
            let gic = vm.create_device(kind).map_err(|error| error.to_string())?;
            gic.set_attr(arm::NR_IRQS, AttrValue::U32(Self::LINES + 32)).unwrap();
            let distributor = if v3 { arm::ADDR_V3_DIST } else { arm::ADDR_V2_DIST };
            let per_cpu = if v3 { arm::ADDR_V3_REDIST } else { arm::ADDR_V2_CPU };
            gic.set_attr(distributor, AttrValue::U64(0x0800_0000)).unwrap();
            gic.set_attr(per_cpu, AttrValue::U64(0x080c_0000)).unwrap();
            fd.create_vcpu(0).unwrap();
            let its = v3 && wanted;
            if its {
                let its = vm.create_device(DeviceKind::Its).unwrap();
                its.set_attr(arm::ADDR_ITS, AttrValue::U64(Self::DOORBELL - 0x1_0040)).unwrap();
                its.set_attr(arm::CTRL_INIT, AttrValue::None).unwrap();
            }
            let ready = IrqchipReady::init_vgic(&*gic, Self::LINES).unwrap();
            let machine = Self { vm, ready, gic, v3, its };
            // GICD_ICFGRn: two bits an interrupt, 2 for edge (IHI 0069H). A pulse stays pending then.
            for n in 2..2 + Self::LINES / 16 {
                machine.write(0xc00 + n * 4, 0xaaaa_aaaa);
            }
            Ok(machine)
        }

        fn write(&self, offset: u32, value: u32) {
            self.gic.set_attr(arm::dist_reg(0, offset), AttrValue::U32(value)).unwrap();
        }

        fn read(&self, offset: u32) -> u32 {
            match self.gic.get_attr(arm::dist_reg(0, offset), AttrValue::U32(0)).unwrap() {
                AttrValue::U32(value) => value,
                other => panic!("{other}"),
            }
        }

        /// Pulses the GSI through the table. `KVM_IRQ_LINE` does not go through it on arm64.
        pub(super) fn raise(&self, gsi: Gsi) {
            super::fire(&self.vm, gsi);
        }

        pub(super) fn lower(&self, _: Gsi) {
            self.forget();
        }

        /// The SPIs that are pending (GICD_ISPENDRn).
        pub(super) fn raised(&self) -> Vec<IrqchipPin> {
            let pending = |spi: &Spi| {
                let intid = spi.intid().get();
                self.read(0x200 + intid / 32 * 4) & (1 << (intid % 32)) != 0
            };
            let spis = (0..Self::LINES).map(|n| Spi::new(n).unwrap());
            spis.filter(pending).map(|spi| IrqchipPin { irqchip: 0, pin: spi.pin() }).collect()
        }

        /// Nothing is pending any more. A GICv3's userspace access to GICD_ISPENDRn writes the state as a whole, a GICv2's sets bits and
        /// needs GICD_ICPENDRn to clear them (Linux 6.12, `vgic_v3_uaccess_write_pending`, `vgic_mmio_uaccess_write_cpending`).
        pub(super) fn forget(&self) {
            for n in 0..Self::LINES {
                self.vm.set_spi(Spi::new(n).unwrap(), false).unwrap();
            }
            for word in 1..=Self::LINES / 32 {
                if self.v3 {
                    self.write(0x200 + word * 4, 0);
                } else {
                    self.write(0x280 + word * 4, u32::MAX);
                }
            }
        }

        pub(super) fn router(&self, sink: Arc<dyn RoutingSink>) -> Router {
            let (vm, ready, model) = (&self.vm, &self.ready, &models::ARM_GIC);
            if self.its {
                Router::new(sink, vm, ready, model).unwrap()
            } else {
                Router::with_v2m(sink, vm, ready, model, Self::FRAME).unwrap()
            }
        }

        /// To the ITS, or to the frame.
        pub(super) fn message(&self, n: u32) -> MsiMessage {
            if self.its {
                MsiMessage { address: Self::DOORBELL, data: n }
            } else {
                MsiMessage { address: Self::FRAME.setspi, data: FRAME_FIRST.intid().get() + n }
            }
        }

        /// No guest has switched the ITS on; a missing device ID would be noticed before. A frame is nothing to the kernel.
        pub(super) fn answer_to_an_msi(&self) -> Result<MsiDelivery, Errno> {
            Err(if self.its { Errno::EBUSY } else { Errno::ENODEV })
        }

        /// The messages that the frame has received.
        pub(super) fn messages(&self) -> Vec<u32> {
            let pins = self.raised().into_iter().map(|pin| pin.pin.get());
            pins.map(|pin| pin - FRAME_FIRST.pin().get()).collect()
        }
    }
}
