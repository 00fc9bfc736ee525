// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `irqfd` promises, as rules that run on the fake kernel and on the real one.
//!
//! A guest takes the interrupts, so that what is counted is what arrives.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use doorbell_tests::contract::fixture::{DOORBELL, Machine, eventually};
use doorbell_tests::contract::{Host, Irqchip, Taken};
use gsi_routing::{GsiHandle, Router, V2mFrame, models};
use irq_types::{DeviceId, Gsi, MsiMessage, Ppi, Spi, TriggerMode};
use irqchip::fake::signal;
use irqchip::{
    Capabilities, Capability, CreateDevice, CreateIrqchip, DeviceControl, DeviceKind, Error, IoAddress,
    IoeventBinder, IoeventSpec, IrqchipReady, IrqfdBinder, LineInjector, MsiDelivery, MsiInjector, Route,
    RoutingSink, VmId,
};
use irqfd::{
    EdgeTrigger, InjectedLine, InterruptVector, IoEvent, LevelLine, LevelTrigger, MsiSender, MsiVector,
    VectorGroup, Wiring,
};

/// The device, and its number after the bus was renumbered.
const DEVICE: DeviceId = DeviceId::new(0x108);
const RENUMBERED: DeviceId = DeviceId::new(0x208);
const FIRST_LPI: u32 = 8192;
/// Where the GICv2m frame's register is, and its first SPI.
const SETSPI: u64 = 0x0902_0040;
const FIRST_V2M: u32 = 40;
/// The first x86 vector that messages name, and the local APICs' address.
const FIRST_X86: u32 = 0x50;
const LOCAL_APIC: u64 = 0xfee0_0000;

/// A machine that several can hold, and that counts what it costs.
struct Shared {
    machine: Machine,
    commits: AtomicU64,
    irqfds: AtomicU64,
}

impl RoutingSink for Shared {
    fn vm_id(&self) -> VmId {
        CreateDevice::vm_id(&*self.machine.vm)
    }

    fn set_routes(&self, routes: &[Route]) -> Result<(), Error> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.machine.vm.set_routes(routes)
    }
}

impl IrqfdBinder for Shared {
    fn vm_id(&self) -> VmId {
        CreateDevice::vm_id(&*self.machine.vm)
    }

    fn assign_irqfd(
        &self,
        event: BorrowedFd<'_>,
        gsi: Gsi,
        resample: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        self.irqfds.fetch_add(1, Ordering::Relaxed);
        self.machine.vm.assign_irqfd(event, gsi, resample)
    }

    fn deassign_irqfd(&self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), Error> {
        self.irqfds.fetch_add(1, Ordering::Relaxed);
        self.machine.vm.deassign_irqfd(event, gsi)
    }
}

impl IoeventBinder for Shared {
    fn assign_ioevent(&self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Result<(), Error> {
        self.machine.vm.assign_ioevent(event, spec)
    }

    fn deassign_ioevent(&self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Result<(), Error> {
        self.machine.vm.deassign_ioevent(event, spec)
    }
}

impl MsiInjector for Shared {
    fn signal_msi(&self, message: MsiMessage, device_id: Option<DeviceId>) -> Result<MsiDelivery, Error> {
        self.machine.vm.signal_msi(message, device_id)
    }
}

impl LineInjector for Shared {
    fn set_spi(&self, spi: Spi, high: bool) -> Result<(), Error> {
        self.machine.vm.set_spi(spi, high)
    }

    fn set_ppi(&self, vcpu: u32, ppi: Ppi, high: bool) -> Result<(), Error> {
        self.machine.vm.set_ppi(vcpu, ppi, high)
    }
}

impl Capabilities for Shared {
    fn capability(&self, capability: Capability) -> Result<u32, Error> {
        self.machine.vm.capability(capability)
    }
}

/// x86's irqchips were made with the machine; this gets their token.
struct Made<'a>(&'a Shared);

impl CreateIrqchip for Made<'_> {
    fn create_irqchip(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl CreateDevice for Made<'_> {
    fn vm_id(&self) -> VmId {
        RoutingSink::vm_id(self.0)
    }

    fn supports_device(&self, kind: DeviceKind) -> Result<bool, Error> {
        self.0.machine.vm.supports_device(kind)
    }

    fn create_device(&self, kind: DeviceKind) -> Result<Box<dyn DeviceControl>, Error> {
        self.0.machine.vm.create_device(kind)
    }
}

/// What receives the messages.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Receiver {
    Its,
    V2m,
    LocalApic,
}

/// A machine with its router.
struct Rig {
    shared: Arc<Shared>,
    wiring: Wiring,
    receiver: Receiver,
}

impl Rig {
    fn new(host: &dyn Host, irqchip: Irqchip) -> Self {
        let (machine, receiver) = match irqchip {
            Irqchip::Gic(DeviceKind::GicV3) => (Machine::with_its(host), Receiver::Its),
            Irqchip::Gic(_) => (Machine::ready(host, irqchip), Receiver::V2m),
            Irqchip::X86 => (Machine::ready(host, irqchip), Receiver::LocalApic),
        };
        let shared = Arc::new(Shared { machine, commits: AtomicU64::new(0), irqfds: AtomicU64::new(0) });
        let vm = || shared.clone();
        // Initialising a GIC twice is initialising it once; 256 interrupts is what it freezes at.
        let gic_ready = || IrqchipReady::init_vgic(shared.machine.gic(), 224).unwrap();
        let router = match receiver {
            Receiver::Its => Router::new(vm(), &*shared, &gic_ready(), &models::ARM_GIC),
            Receiver::V2m => {
                let frame = V2mFrame { setspi: SETSPI, first: Spi::new(FIRST_V2M).unwrap(), count: 64 };
                Router::with_v2m(vm(), &*shared, &gic_ready(), &models::ARM_GIC, frame)
            }
            Receiver::LocalApic => {
                let ready = IrqchipReady::create_pic_and_ioapic(&Made(&shared)).unwrap();
                Router::new(vm(), &*shared, &ready, &models::X86_PIC_IOAPIC)
            }
        };
        let wiring = Wiring::new(shared.clone(), router.unwrap()).unwrap();
        let rig = Self { shared, wiring, receiver };
        // The guest's drivers are there for messages 0 to 7.
        for n in 0..8 {
            match receiver {
                Receiver::Its => {
                    rig.machine().map(DEVICE.get(), n, FIRST_LPI + n);
                    rig.machine().map(RENUMBERED.get(), n, FIRST_LPI + 64 + n);
                }
                Receiver::V2m => rig.machine().configure(FIRST_V2M + n, TriggerMode::Edge),
                // The guest's first look for interrupts turns the local APIC on.
                Receiver::LocalApic => rig.is_silent(),
            }
        }
        rig
    }

    fn machine(&self) -> &Machine {
        &self.shared.machine
    }

    /// What the guest writes for message `n`.
    fn message(&self, n: u32) -> MsiMessage {
        match self.receiver {
            Receiver::Its => MsiMessage { address: DOORBELL, data: n },
            Receiver::V2m => MsiMessage { address: SETSPI, data: 32 + FIRST_V2M + n },
            Receiver::LocalApic => MsiMessage { address: LOCAL_APIC, data: FIRST_X86 + n },
        }
    }

    /// As what message `n` arrives.
    fn arrives_as(&self, n: u32) -> Taken {
        match self.receiver {
            Receiver::Its => Taken::Lpi(FIRST_LPI + n),
            Receiver::V2m => Taken::Line(FIRST_V2M + n),
            Receiver::LocalApic => Taken::Message(u8::try_from(FIRST_X86 + n).unwrap()),
        }
    }

    /// The guest takes message `n`, which must come, and ends it.
    fn serve_message(&self, n: u32) {
        assert_eq!(self.machine().take_next(), self.arrives_as(n));
    }

    fn serve_line(&self, pin: u32) {
        self.machine().serve(pin);
    }

    /// There is nothing for the guest.
    fn is_silent(&self) {
        assert_eq!(self.machine().take(), None);
    }

    fn gsi(&self, pin: u32) -> Arc<GsiHandle> {
        Arc::new(self.wiring.router().claim_line(Gsi::new(pin)).unwrap())
    }

    fn group(&self, count: usize) -> VectorGroup {
        VectorGroup::new(self.wiring.clone(), DEVICE, count)
    }

    /// One programmed, unmasked vector.
    fn vector(&self) -> (VectorGroup, InterruptVector) {
        let group = self.group(1);
        group.program(0, self.message(0)).unwrap();
        group.unmask(0).unwrap();
        let vector = group.vector(0).unwrap();
        (group, vector)
    }
}

fn each(host: &dyn Host, rule: impl Fn(&Rig)) {
    for irqchip in host.irqchips() {
        println!("with {irqchip:?}");
        rule(&Rig::new(host, irqchip));
    }
}

/// Who signals a vector.
const SIGNALLERS: [fn(&InterruptVector); 2] =
    [|vector| vector.trigger().unwrap(), |vector| signal(vector.eventfd().unwrap()).unwrap()];

/// The pin of the line under test. (Of x86's, one that goes to the IOAPIC alone.)
const PIN: u32 = 20;

pub fn an_edge_line_delivers_each_signal_and_what_came_early(host: &dyn Host) {
    each(host, |rig| {
        rig.machine().configure(PIN, EdgeTrigger::MODE);
        let trigger = EdgeTrigger::new().unwrap();
        trigger.line().signal().unwrap();
        trigger.line().signal().unwrap();
        trigger.wire(&rig.wiring, &rig.gsi(PIN)).unwrap();
        rig.serve_line(PIN);
        rig.is_silent();
        for _ in 0..3 {
            trigger.line().signal().unwrap();
            rig.serve_line(PIN);
        }
        trigger.unwire().unwrap();
        rig.is_silent();
        trigger.line().signal().unwrap();
        rig.is_silent();
        trigger.wire(&rig.wiring, &rig.gsi(PIN)).unwrap();
        rig.serve_line(PIN);
        rig.is_silent();
    });
}

pub fn a_level_line_may_be_high_from_the_start(host: &dyn Host) {
    each(host, |rig| {
        rig.machine().configure(PIN, LevelTrigger::MODE);
        let trigger = LevelTrigger::new().unwrap();
        trigger.line().assert().unwrap();
        trigger.wire(&rig.wiring, &rig.gsi(PIN)).unwrap();
        rig.serve_line(PIN);
        eventually("the EOI", || trigger.resampler().run().unwrap());
        trigger.line().deassert().unwrap();
        rig.serve_line(PIN);
        eventually("the EOI", || trigger.resampler().run().unwrap());
        rig.is_silent();
    });
}

pub fn a_level_line_interrupts_as_long_as_it_is_asserted(host: &dyn Host) {
    each(host, |rig| {
        rig.machine().configure(PIN, LevelTrigger::MODE);
        let trigger = LevelTrigger::new().unwrap();
        trigger.wire(&rig.wiring, &rig.gsi(PIN)).unwrap();
        let (line, resampler) = (trigger.line(), trigger.resampler());
        rig.is_silent();
        for _ in 0..2 {
            line.assert().unwrap();
            for _ in 0..5 {
                rig.serve_line(PIN);
                eventually("the EOI", || resampler.run().unwrap());
            }
            // The driver has served the device before it ends the interrupt.
            line.deassert().unwrap();
            rig.serve_line(PIN);
            eventually("the EOI", || resampler.run().unwrap());
            rig.is_silent();
        }
        line.assert().unwrap();
        drop(trigger);
        // A local APIC keeps what it has accepted, whatever becomes of the line.
        if rig.receiver != Receiver::LocalApic {
            rig.is_silent();
        }
    });
}

pub fn devices_share_a_level_line(host: &dyn Host) {
    each(host, |rig| {
        rig.machine().configure(PIN, LevelTrigger::MODE);
        let gsi = rig.gsi(PIN);
        let triggers = [LevelTrigger::new().unwrap(), LevelTrigger::new().unwrap()];
        for trigger in &triggers {
            trigger.wire(&rig.wiring, &gsi).unwrap();
            trigger.line().assert().unwrap();
        }
        let resample_all = || {
            for trigger in &triggers {
                eventually("each device hears of the EOI", || trigger.resampler().run().unwrap());
            }
        };
        rig.serve_line(PIN);
        resample_all();
        triggers[0].line().deassert().unwrap();
        rig.serve_line(PIN);
        resample_all();
        // The other one still asserts.
        triggers[1].line().deassert().unwrap();
        rig.serve_line(PIN);
        resample_all();
        rig.is_silent();
    });
}

/// EOI → unmask → trigger, as VFIO does it: this process's resampler has no part in it.
pub fn a_line_that_is_handed_over_never_sticks(host: &dyn Host) {
    each(host, |rig| {
        rig.machine().configure(PIN, LevelTrigger::MODE);
        let trigger = LevelTrigger::new().unwrap();
        trigger.wire(&rig.wiring, &rig.gsi(PIN)).unwrap();
        let resampler = trigger.resampler();
        let fds = trigger.hand_over();
        for _ in 0..200 {
            signal(fds.trigger).unwrap();
            rig.serve_line(PIN);
            assert!(!resampler.run().unwrap());
            eventually("the EOI", || irqchip::fake::drain(fds.resample).unwrap() == 1);
        }
        rig.is_silent();
    });
}

pub fn signals_while_masked_arrive_once_on_unmask(host: &dyn Host) {
    for send in SIGNALLERS {
        each(host, |rig| {
            let (group, vector) = rig.vector();
            rig.is_silent();
            send(&vector);
            rig.serve_message(0);
            for _ in 0..3 {
                group.mask(0).unwrap();
                for _ in 0..17 {
                    send(&vector);
                }
                rig.is_silent();
                assert!(vector.is_pending());
                assert_eq!(group.pending_word(0).unwrap(), 1);
                group.unmask(0).unwrap();
                rig.serve_message(0);
                rig.is_silent();
                assert!(!vector.is_pending());
                send(&vector);
                rig.serve_message(0);
            }
            group.mask(0).unwrap();
            group.unmask(0).unwrap();
            rig.is_silent();
        });
    }
}

pub fn a_new_message_takes_effect_masked_and_unmasked(host: &dyn Host) {
    for send in SIGNALLERS {
        each(host, |rig| {
            let (group, vector) = rig.vector();
            send(&vector);
            rig.serve_message(0);
            group.program(0, rig.message(1)).unwrap();
            rig.is_silent();
            send(&vector);
            rig.serve_message(1);
            group.mask(0).unwrap();
            send(&vector);
            group.program(0, rig.message(2)).unwrap();
            send(&vector);
            rig.is_silent();
            group.unmask(0).unwrap();
            rig.serve_message(2);
            rig.is_silent();
        });
    }
}

pub fn the_function_mask_and_the_vectors_own_are_apart(host: &dyn Host) {
    for send in SIGNALLERS {
        each(host, |rig| {
            let group = rig.group(3);
            for n in 0..3 {
                group.program(n as usize, rig.message(n)).unwrap();
            }
            group.unmask(0).unwrap();
            group.unmask(2).unwrap();
            group.set_function_mask(true).unwrap();
            for n in 0..3 {
                send(&group.vector(n).unwrap());
            }
            rig.is_silent();
            assert_eq!(group.pending_word(0).unwrap(), 0b111);
            group.set_function_mask(false).unwrap();
            let mut taken = [rig.machine().take_next(), rig.machine().take_next()];
            let mut wanted = [rig.arrives_as(0), rig.arrives_as(2)];
            taken.sort_by_key(|taken| format!("{taken:?}"));
            wanted.sort_by_key(|taken| format!("{taken:?}"));
            assert_eq!(taken, wanted);
            rig.is_silent();
            group.unmask(1).unwrap();
            rig.serve_message(1);
        });
    }
}

pub fn what_a_dropped_group_had_is_silent_and_free(host: &dyn Host) {
    each(host, |rig| {
        let usage = rig.wiring.router().usage();
        let (group, vector) = rig.vector();
        let event = vector.eventfd().unwrap().try_clone_to_owned().unwrap();
        drop(group);
        signal(&event).unwrap();
        vector.trigger().unwrap();
        rig.is_silent();
        assert_eq!(rig.wiring.router().usage(), usage);
        let (_group, vector) = rig.vector();
        vector.trigger().unwrap();
        rig.serve_message(0);
        rig.is_silent();
    });
}

pub fn a_renumbered_device_interrupts_under_its_new_number(host: &dyn Host) {
    let rig = Rig::new(host, Irqchip::Gic(DeviceKind::GicV3));
    let (group, vector) = rig.vector();
    vector.trigger().unwrap();
    rig.serve_message(0);
    group.set_device_id(RENUMBERED).unwrap();
    vector.trigger().unwrap();
    assert_eq!(rig.machine().take_next(), Taken::Lpi(FIRST_LPI + 64));
    rig.is_silent();
}

/// What a guest with a big device does at boot. Counted on this kernel, beside a router that commits once a vector.
pub fn enabling_2048_vectors_costs_a_handful_of_commits(host: &dyn Host) {
    const VECTORS: usize = 2048;
    let irqchip = host.irqchips().pop().expect("an irqchip");
    let rig = Rig::new(host, irqchip);
    if rig.receiver == Receiver::V2m {
        // 64 SPIs are all that such a guest has.
        return;
    }
    let group = rig.group(VECTORS);
    let message =
        |n: usize| MsiMessage { data: u32::try_from(n % 128).unwrap() + FIRST_X86, ..rig.message(0) };
    for n in 0..VECTORS {
        group.program(n, message(n)).unwrap();
    }
    for n in 0..VECTORS {
        group.unmask(n).unwrap();
    }
    let spent = |shared: &Shared| {
        (shared.commits.swap(0, Ordering::Relaxed), shared.irqfds.swap(0, Ordering::Relaxed))
    };
    let (commits, irqfds) = spent(&rig.shared);
    println!(
        "{VECTORS} vectors one by one: {commits} KVM_SET_GSI_ROUTING, {irqfds} KVM_IRQFD (one commit a vector: {VECTORS} and {VECTORS})"
    );
    assert!(commits <= 4 && commits + irqfds <= 2100, "{commits} commits, {irqfds} irqfds");
    drop(group);
    spent(&rig.shared);
    let group = rig.group(VECTORS);
    group.set_function_mask(true).unwrap();
    for n in 0..VECTORS {
        group.program(n, message(n)).unwrap();
        group.unmask(n).unwrap();
    }
    group.set_function_mask(false).unwrap();
    let (commits, irqfds) = spent(&rig.shared);
    println!("{VECTORS} vectors at once: {commits} KVM_SET_GSI_ROUTING, {irqfds} KVM_IRQFD");
    assert_eq!((commits, irqfds), (1, VECTORS as u64));
}

pub fn a_guests_write_rings_while_the_doorbell_exists(host: &dyn Host) {
    const REGISTER: IoAddress = IoAddress::Mmio(0x0a00_0000);
    each(host, |rig| {
        let vm = &rig.machine().vm;
        let any = IoEvent::new(rig.shared.clone(), REGISTER, 4).unwrap();
        assert!(vm.write(REGISTER, 5, 4));
        assert!(vm.write(REGISTER, 6, 4));
        assert_eq!((any.take().unwrap(), any.take().unwrap()), (2, 0));
        assert!(!vm.write(REGISTER, 5, 2), "another width is an exit");
        let other = IoEvent::new(rig.shared.clone(), REGISTER, 4).unwrap_err();
        assert!(other.to_string().contains("EEXIST"), "{other}");
        drop(any);
        assert!(!vm.write(REGISTER, 5, 4));
        let queues: Vec<_> = (0..3)
            .map(|queue| IoEvent::with_datamatch(rig.shared.clone(), REGISTER, 2, queue).unwrap())
            .collect();
        assert!(vm.write(REGISTER, 1, 2));
        assert!(!vm.write(REGISTER, 3, 2));
        let rung: Vec<_> = queues.iter().map(|queue| queue.take().unwrap()).collect();
        assert_eq!(rung, [0, 1, 0]);
        let window = IoeventSpec { address: IoAddress::Mmio(0x0a00_1000), length: 0, datamatch: None };
        let second = queues[2].also_at(window).unwrap();
        assert!(vm.write(window.address, 0xffff, 4));
        assert_eq!(queues[2].take().unwrap(), 1);
        drop(second);
        assert!(!vm.write(window.address, 0, 4));
    });
}

pub fn a_private_wire_is_driven_both_ways(host: &dyn Host) {
    for kind in host.gics() {
        let rig = Rig::new(host, Irqchip::Gic(kind));
        let ppi = Ppi::new(7).unwrap();
        let line = InjectedLine::ppi(rig.shared.clone(), 0, ppi);
        line.assert().unwrap();
        line.deassert().unwrap();
        let missing = InjectedLine::ppi(rig.shared.clone(), 3, ppi);
        assert!(missing.assert().unwrap_err().to_string().contains("PPI 7 of vCPU 3"));
        rig.is_silent();
        // A shared one, whose level can be seen: it really falls.
        rig.machine().configure(PIN, TriggerMode::Level);
        let wire = InjectedLine::spi(rig.shared.clone(), Spi::new(PIN).unwrap());
        wire.assert().unwrap();
        rig.serve_line(PIN);
        rig.serve_line(PIN);
        wire.deassert().unwrap();
        rig.is_silent();
        wire.assert().unwrap();
        drop(wire);
        rig.is_silent();
    }
}

pub fn an_injected_message_tells_what_became_of_it(host: &dyn Host) {
    each(host, |rig| {
        let vm = || rig.shared.clone();
        let sender = MsiSender::new(vm(), vm(), rig.wiring.router().clone(), DEVICE);
        assert_eq!(sender.send(rig.message(0)), Ok(MsiDelivery::Delivered));
        rig.serve_message(0);
        if rig.receiver == Receiver::Its {
            assert_eq!(sender.send(rig.message(77)), Ok(MsiDelivery::Blocked));
            let nowhere = MsiMessage { address: 0x1000, data: 0 };
            assert!(sender.send(nowhere).unwrap_err().to_string().contains("EINVAL"));
        }
        rig.is_silent();
    });
}

/// The deassignment of an irqfd throws away what it finds in the eventfd's counter. That must never be a signal: each one that comes at the
/// very moment is delivered or pending.
///
/// Not for the fake, which has no wait queue and so no such moment.
pub fn a_signal_at_the_moment_of_masking_is_delivered_or_pending(host: &dyn Host) {
    use std::sync::Barrier;
    let rounds = if cfg!(target_arch = "aarch64") { 200 } else { 1000 };
    each(host, |rig| {
        let (group, vector) = rig.vector();
        let event = vector.eventfd().unwrap();
        let (start, end) = (Barrier::new(2), Barrier::new(2));
        let (mut delivered_before, mut kept) = (0, 0);
        // How long the last mask took, so that the signals sweep over all of the next.
        let last_mask = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..rounds {
                    start.wait();
                    let began = Instant::now();
                    let delay = last_mask.load(Ordering::Relaxed) * (round % 32) / 24;
                    while began.elapsed() < Duration::from_nanos(delay) {
                        std::hint::spin_loop();
                    }
                    signal(event).unwrap();
                    end.wait();
                }
            });
            for round in 0..rounds {
                start.wait();
                let began = Instant::now();
                group.mask(0).unwrap();
                let took = u64::try_from(began.elapsed().as_nanos()).unwrap();
                last_mask.store(took.min(10_000_000), Ordering::Relaxed);
                end.wait();
                // Disarming waits for the injections under way: what is not here now is in the counter.
                let arrived = rig.machine().take();
                if let Some(taken) = arrived {
                    assert_eq!(taken, rig.arrives_as(0));
                    rig.machine().end(taken);
                    rig.is_silent();
                }
                assert_ne!(arrived.is_some(), vector.is_pending(), "round {round}: lost or doubled");
                group.unmask(0).unwrap();
                if arrived.is_some() {
                    delivered_before += 1;
                } else {
                    kept += 1;
                    rig.serve_message(0);
                }
                rig.is_silent();
            }
        });
        println!("{delivered_before} delivered before the mask, {kept} kept for the unmask");
    });
}

/// Hands each rule to a macro, as `name Need;`.
#[macro_export]
macro_rules! for_each_irqfd_rule {
    ($use:ident) => {
        $use! {
            an_edge_line_delivers_each_signal_and_what_came_early Irqchip;
            a_level_line_may_be_high_from_the_start Irqchip;
            a_level_line_interrupts_as_long_as_it_is_asserted Irqchip;
            devices_share_a_level_line Irqchip;
            a_line_that_is_handed_over_never_sticks Irqchip;
            signals_while_masked_arrive_once_on_unmask Irqchip;
            a_new_message_takes_effect_masked_and_unmasked Irqchip;
            the_function_mask_and_the_vectors_own_are_apart Irqchip;
            what_a_dropped_group_had_is_silent_and_free Irqchip;
            a_renumbered_device_interrupts_under_its_new_number Its;
            enabling_2048_vectors_costs_a_handful_of_commits Irqchip;
            a_guests_write_rings_while_the_doorbell_exists Irqchip;
            a_private_wire_is_driven_both_ways Gic;
            an_injected_message_tells_what_became_of_it Irqchip;
        }
    };
}
