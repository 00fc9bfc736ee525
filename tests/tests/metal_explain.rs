// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why an interrupt does not arrive, where it takes another VMM to get there: one that withdraws a route under an armed irqfd, that writes its routing table itself, or that
//! forgets the way back. The crates are put together by hand around a bare-metal guest on KVM; what `doorbell irq explain` looks with, looks at it.
//!
//! In each state the signal is seen not to arrive, and when it has been put right, to arrive. What the router refuses, it is first seen to refuse.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use doorbell::irq::collect::{self, Host, Owner, Routes};
use doorbell::irq::explain::{Explanation, Verdict, explain};
use doorbell::irq::look::Look;
use doorbell::irq::situation::{Gic, Situation, Unmask, WayBack};
use doorbell::irq::{Kind as LineKind, Line, Route};
use doorbell_tests::metal::{Command, Device, EventLoop, Kind, Machine};
use gsi_routing::{GsiHandle, Router, models};
use irq_types::{DeviceId, EventId, Intid, IrqchipPin, Lpi, MsiMessage, Pin, Spi};
use irqchip::{Capabilities, Capability, Route as KernelRoute, RouteTarget, RoutingSink};
use irqfd::{EdgeTrigger, LevelTrigger, MsiVector, VectorGroup};
use vgic::{GicRequest, MsiChoice};

const SPIS: u32 = 64;
const DEVICE: DeviceId = DeviceId::new(0x108);
const OWNER: Owner<'static> = Owner { device: "device", bdf: None, host: Host::No };

/// A machine without messages, on any host.
fn with_lines(test: &str) -> Option<Machine> {
    let request = GicRequest { msi: MsiChoice::None, spis: SPIS, ..GicRequest::default() };
    Machine::start(test, request, |host| host.v2 || host.v3, "a GIC")
}

fn with_its(test: &str) -> Option<Machine> {
    let request = GicRequest { msi: MsiChoice::Its, spis: SPIS, ..GicRequest::default() };
    Machine::start(test, request, |host| host.its, "an ITS")
}

fn spi(n: u32) -> Spi {
    Spi::new(n).unwrap()
}

fn lpi(n: u32) -> Lpi {
    Lpi::new(8192 + n).unwrap()
}

fn pin(n: u32) -> IrqchipPin {
    IrqchipPin { irqchip: 0, pin: Pin::new(n) }
}

/// What a line or vector is now, from the state of the real one.
fn line_of(machine: &Machine, collect: impl FnOnce(Routes<'_>) -> Line) -> Line {
    let router = machine.wiring().router();
    collect(Routes { table: &router.snapshot(), msi: router.msi_policy() })
}

fn edge(machine: &Machine, trigger: &EdgeTrigger) -> Line {
    line_of(machine, |routes| collect::edge(&OWNER, "edge", &trigger.state().unwrap(), routes))
}

fn level(machine: &Machine, trigger: &LevelTrigger) -> (Line, Option<WayBack>) {
    let state = trigger.state().unwrap();
    let by = if state.handed_over { Unmask::Kernel } else { Unmask::Loop };
    let line = line_of(machine, |routes| collect::level(&OWNER, "level", &state, routes));
    (line, Some(WayBack { by, due: state.resample_due }))
}

fn vector(machine: &Machine, group: &VectorGroup) -> Line {
    let state = group.state(0).unwrap();
    line_of(machine, |routes| collect::vector(&OWNER, LineKind::Msix, &state, routes))
}

/// The VM's directory in debugfs. It has the number of the thread that made the VM, which is a test's.
fn debugfs(machine: &Machine) -> Option<PathBuf> {
    let end = format!("-{}", machine.vm().fd().as_raw_fd());
    let all = fs::read_dir("/sys/kernel/debug/kvm").ok()?;
    let mut paths = all.flatten().map(|entry| entry.path());
    paths.find(|path| path.is_dir() && path.to_string_lossy().ends_with(&end))
}

/// Explains while no CPU runs: once with the kernel's debugfs if it is there, once with the GIC's registers and the guest's tables only.
fn look(machine: &Machine, line: &Line, way_back: Option<WayBack>) -> Vec<Explanation> {
    let mut ways = vec![None];
    match debugfs(machine) {
        Some(directory) => ways.push(Some(directory)),
        None => println!("no debugfs here: only by the registers"),
    }
    let explained = ways.into_iter().map(|debugfs| {
        let mut situation = Situation {
            line: line.clone(),
            function: None,
            way_back,
            gic: Gic::of(machine.gic(), machine.wiring().router()),
            translation: None,
            interrupt: None,
            vcpus_on: vec![true],
            paused: false,
        };
        let memory = machine.memory();
        Look { gic: machine.gic(), memory, debugfs, still: true }.fill_in(&mut situation);
        explain(&situation)
    });
    explained.collect()
}

/// Both ways of looking come to this verdict, with these words.
fn expect_of(machine: &Machine, line: &Line, way_back: Option<WayBack>, verdict: Verdict, words: &str) {
    for said in look(machine, line, way_back) {
        assert_eq!(said.verdict, verdict, "{said:#?}");
        let last = &said.steps.last().unwrap().found;
        assert!(last.contains(words), "{words:?} is not in {last:?}");
    }
}

fn expect(machine: &Machine, line: &Line, verdict: Verdict, words: &str) {
    expect_of(machine, line, None, verdict, words);
}

fn expect_level(machine: &Machine, trigger: &LevelTrigger, verdict: Verdict, words: &str) {
    let (line, way_back) = level(machine, trigger);
    expect_of(machine, &line, way_back, verdict, words);
}

/// The guest takes whatever there is, and has then been interrupted so often.
fn assert_count(machine: &Machine, intid: Intid, count: u64) {
    drop(machine.serve());
    assert_eq!(machine.mailbox().count(intid), count, "{intid}");
}

/// The guest takes interrupts until it has been interrupted so often, and then no more often.
fn until_count(machine: &Machine, intid: Intid, count: u64) {
    let serving = machine.serve();
    machine.until("the interrupt", || machine.mailbox().count(intid) >= count);
    drop(serving);
    assert_eq!(machine.mailbox().count(intid), count, "{intid}");
}

/// An edge on SPI 3, wired.
fn wired_edge(machine: &Machine) -> (EdgeTrigger, Arc<GsiHandle>, Intid) {
    let intid = spi(3).intid();
    machine.wire(intid, Kind::Edge, 0);
    let (trigger, gsi) = (EdgeTrigger::new().unwrap(), machine.line(spi(3)));
    trigger.wire(machine.wiring(), &gsi).unwrap();
    (trigger, gsi, intid)
}

/// The table that the router has committed, with another target for `gsi`: past the router, as a VMM would that has none.
fn write_table(machine: &Machine, gsi: &GsiHandle, target: Option<RouteTarget>) {
    let router = machine.wiring().router();
    let policy = router.msi_policy();
    let table: Vec<KernelRoute> = router
        .snapshot()
        .iter()
        .map(|entry| {
            let own = policy.route_target(entry.target);
            let target = if entry.gsi == gsi.gsi() { target.unwrap_or(own) } else { own };
            KernelRoute { gsi: entry.gsi, target }
        })
        .collect();
    machine.vm().set_routes(&table).unwrap();
}

#[test]
fn no_route_a_line_whose_route_was_withdrawn_leads_nowhere() {
    let Some(machine) = with_lines("no_route_a_line_whose_route_was_withdrawn_leads_nowhere") else { return };
    let (trigger, gsi, intid) = wired_edge(&machine);
    trigger.line().signal().unwrap();
    until_count(&machine, intid, 1);
    expect(&machine, &edge(&machine, &trigger), Verdict::Fine, "has fired once");

    let mut change = machine.wiring().router().transaction();
    change.clear(&gsi).unwrap();
    change.commit().unwrap();
    trigger.line().signal().unwrap();
    expect(&machine, &edge(&machine, &trigger), Verdict::NoRoute, &format!("{} leads nowhere", gsi.gsi()));
    assert_count(&machine, intid, 1);

    change.add_line(&gsi, pin(3)).unwrap();
    change.commit().unwrap();
    trigger.line().signal().unwrap();
    until_count(&machine, intid, 2);
    expect(&machine, &edge(&machine, &trigger), Verdict::Fine, "has fired 3 times");
}

#[test]
fn pin_outside_the_router_refuses_what_the_kernel_takes_and_then_loses() {
    let test = "pin_outside_the_router_refuses_what_the_kernel_takes_and_then_loses";
    let Some(machine) = with_lines(test) else { return };
    let (trigger, gsi, intid) = wired_edge(&machine);
    let router = machine.wiring().router();
    let refused = router.claim_spi(spi(SPIS)).unwrap_err();
    assert!(matches!(refused, gsi_routing::Error::NoSuchLine { .. }), "{refused}");
    let mut change = router.transaction();
    change.clear(&gsi).unwrap();
    let refused = change.add_line(&gsi, pin(SPIS)).unwrap_err();
    assert!(matches!(refused, gsi_routing::Error::NoSuchPin { .. }), "{refused}");
    drop(change);

    write_table(&machine, &gsi, Some(RouteTarget::Line(pin(SPIS))));
    trigger.line().signal().unwrap();
    let astray = Line { route: Some(Route::Pin { pin: SPIS }), ..edge(&machine, &trigger) };
    expect(&machine, &astray, Verdict::PinOutside, "pin 64, and the GIC has pins 0 to 63");
    assert_count(&machine, intid, 0);

    write_table(&machine, &gsi, None);
    trigger.line().signal().unwrap();
    until_count(&machine, intid, 1);
}

/// A vector of [`DEVICE`] with this message, unmasked; the guest has mapped event 0 of the device.
fn wired_vector(machine: &Machine, message: MsiMessage) -> VectorGroup {
    machine.call(0, Command::MapDevice(DEVICE, 5));
    machine.call(0, Command::MapEvent(DEVICE, EventId::new(0), lpi(0), 0));
    let group = VectorGroup::new(machine.wiring().clone(), DEVICE, 1);
    group.program(0, message).unwrap();
    group.unmask(0).unwrap();
    group
}

fn doorbell(machine: &Machine) -> u64 {
    machine.gic().layout().its_doorbell(0).unwrap()
}

/// A VM that is asked for its ITS too early, or not at all.
struct NoIts<'a>(&'a dyn Capabilities);

impl Capabilities for NoIts<'_> {
    fn capability(&self, capability: Capability) -> Result<u32, irqchip::Error> {
        if capability == Capability::MsiDeviceId { Ok(0) } else { self.0.capability(capability) }
    }
}

#[test]
fn its_no_device_id_the_router_always_gives_one_and_the_kernel_loses_a_message_without() {
    let test = "its_no_device_id_the_router_always_gives_one_and_the_kernel_loses_a_message_without";
    let Some(machine) = with_its(test) else { return };
    let message = MsiMessage { address: doorbell(&machine), data: 0 };
    let group = wired_vector(&machine, message);
    let interrupt = group.vector(0).unwrap();
    interrupt.trigger().unwrap();
    until_count(&machine, lpi(0).intid(), 1);
    expect(&machine, &vector(&machine, &group), Verdict::Fine, "has fired once");

    // A router that knows nothing of the ITS takes no message at all.
    let sink = Arc::clone(machine.vm()) as Arc<dyn RoutingSink>;
    let ignorant = NoIts(&**machine.vm());
    let ignorant = Router::new(sink, &ignorant, machine.gic().ready(), &models::ARM_GIC).unwrap();
    let refused = ignorant.transaction().add_msi(message, DEVICE).unwrap_err();
    assert!(matches!(refused, gsi_routing::Error::NoMsiReceiver { .. }), "{refused}");

    let table = machine.wiring().router().snapshot();
    let gsi = vector(&machine, &group).gsi.unwrap();
    let write = |device_id| {
        let policy = machine.wiring().router().msi_policy();
        let entry = |entry: &gsi_routing::Entry| {
            let own = policy.route_target(entry.target);
            let target = if entry.gsi.get() == gsi { RouteTarget::Msi { message, device_id } } else { own };
            KernelRoute { gsi: entry.gsi, target }
        };
        machine.vm().set_routes(&table.iter().map(entry).collect::<Vec<_>>()).unwrap();
    };
    write(None);
    interrupt.trigger().unwrap();
    let Some(Route::Message { address, data, device_id, .. }) = vector(&machine, &group).route else {
        panic!("a message")
    };
    let anonymous = Route::Message { address, data, device_id, with_device_id: false };
    let line = Line { route: Some(anonymous), ..vector(&machine, &group) };
    expect(&machine, &line, Verdict::NoDeviceId, &format!("the route of GSI {gsi} needs a device ID"));
    assert_count(&machine, lpi(0).intid(), 1);

    write(Some(DEVICE));
    interrupt.trigger().unwrap();
    until_count(&machine, lpi(0).intid(), 2);
}

#[test]
fn its_no_receiver_a_message_to_where_no_its_is_goes_nowhere() {
    let Some(machine) = with_its("its_no_receiver_a_message_to_where_no_its_is_goes_nowhere") else { return };
    let beside = MsiMessage { address: doorbell(&machine) + 0x100_0000, data: 0 };
    let group = wired_vector(&machine, beside);
    let interrupt = group.vector(0).unwrap();
    interrupt.trigger().unwrap();
    let words = format!(
        "nothing takes messages at {:#x}; the ITS takes them at {:#x}",
        beside.address,
        doorbell(&machine)
    );
    expect(&machine, &vector(&machine, &group), Verdict::NoReceiver, &words);
    assert_count(&machine, lpi(0).intid(), 0);

    group.program(0, MsiMessage { address: doorbell(&machine), ..beside }).unwrap();
    interrupt.trigger().unwrap();
    until_count(&machine, lpi(0).intid(), 1);
    expect(&machine, &vector(&machine, &group), Verdict::Fine, "has fired 2 times");
}

#[test]
fn its_what_the_guest_has_mapped_and_enabled_is_seen_with_and_without_debugfs() {
    let test = "its_what_the_guest_has_mapped_and_enabled_is_seen_with_and_without_debugfs";
    let Some(machine) = with_its(test) else { return };
    let event = EventId::new(0);
    let group = VectorGroup::new(machine.wiring().clone(), DEVICE, 1);
    group.program(0, MsiMessage { address: doorbell(&machine), data: 0 }).unwrap();
    group.unmask(0).unwrap();
    let now = || vector(&machine, &group);
    expect(&machine, &now(), Verdict::NoDeviceMapping, "no mapping for device 0x108");
    machine.call(0, Command::MapDevice(DEVICE, 5));
    expect(&machine, &now(), Verdict::NoEventMapping, "no mapping for device 0x108 event 0");
    machine.call(0, Command::MapEvent(DEVICE, event, lpi(0), 0));
    expect(&machine, &now(), Verdict::NotFired, "the device has not fired");
    machine.call(0, Command::EnableLpi(DEVICE, event, lpi(0), false));
    expect(&machine, &now(), Verdict::LpiDisabled, "LPI 8192 is disabled by the guest");
    machine.call(0, Command::EnableLpi(DEVICE, event, lpi(0), true));
    expect(&machine, &now(), Verdict::NotFired, "the device has not fired");
    machine.call(0, Command::Discard(DEVICE, event));
    expect(&machine, &now(), Verdict::NoEventMapping, "no mapping for device 0x108 event 0");
}

#[test]
fn what_the_guest_has_made_of_an_spi_is_seen_with_and_without_debugfs() {
    let test = "what_the_guest_has_made_of_an_spi_is_seen_with_and_without_debugfs";
    let Some(machine) = with_lines(test) else { return };
    let (trigger, _gsi, intid) = wired_edge(&machine);
    let now = || edge(&machine, &trigger);
    expect(&machine, &now(), Verdict::NotFired, "the device has not fired");
    machine.call(0, Command::Enable(intid, false));
    expect(&machine, &now(), Verdict::SpiDisabled, "INTID 35 is disabled by the guest");
    machine.call(0, Command::Enable(intid, true));
    // The CPU has its interrupts off until it serves.
    trigger.line().signal().unwrap();
    let pending = || look(&machine, &now(), None).iter().all(|said| said.verdict == Verdict::NotTaken);
    machine.until("it to be pending", pending);
    until_count(&machine, intid, 1);
    expect(&machine, &now(), Verdict::Fine, "has fired once");
    machine.wire(intid, Kind::Level, 0);
    expect(&machine, &now(), Verdict::ConfiguredAsLevel, "the guest has configured it as level");
    machine.wire(intid, Kind::Edge, 0);
    expect(&machine, &now(), Verdict::Fine, "has fired once");
}

#[test]
fn v2m_configured_as_level_a_messages_spi_is_an_edge() {
    let test = "v2m_configured_as_level_a_messages_spi_is_an_edge";
    let request = GicRequest { msi: MsiChoice::V2m, ..GicRequest::default() };
    let Some(machine) = Machine::start(test, request, |host| host.v2 || host.v3, "a GIC") else { return };
    let frame = machine.gic().v2m_frame().unwrap();
    let intid = frame.spis().first().intid();
    machine.wire(intid, Kind::Level, 0);
    let group = VectorGroup::new(machine.wiring().clone(), DEVICE, 1);
    group.program(0, frame.message(frame.spis().first()).unwrap()).unwrap();
    group.unmask(0).unwrap();
    expect(&machine, &vector(&machine, &group), Verdict::ConfiguredAsLevel, "has configured it as level");
    machine.wire(intid, Kind::Edge, 0);
    group.vector(0).unwrap().trigger().unwrap();
    until_count(&machine, intid, 1);
    expect(&machine, &vector(&machine, &group), Verdict::Fine, "has fired once");

    // What is no SPI of the frame is refused before the kernel sees it.
    let outside = MsiMessage { data: intid.get() - 1, ..frame.message(frame.spis().first()).unwrap() };
    group.program(0, outside).unwrap_err();
    expect(&machine, &vector(&machine, &group), Verdict::Refused, "cannot be connected");
}

/// A device on SPI 5, a level, and its end of the line.
fn level_device(machine: &Machine, kind: Kind) -> (LevelTrigger, Device, Intid) {
    let intid = spi(5).intid();
    machine.wire(intid, kind, 0);
    let trigger = LevelTrigger::new().unwrap();
    let device = Device::new(machine.mailbox(), intid, 0, trigger.line());
    (trigger, device, intid)
}

#[test]
fn not_armed_a_trigger_that_is_wired_to_nothing_waits() {
    let Some(machine) = with_lines("not_armed_a_trigger_that_is_wired_to_nothing_waits") else { return };
    let (trigger, device, intid) = level_device(&machine, Kind::Level);
    device.post(1);
    let eventfd = trigger.state().unwrap().eventfd;
    expect_level(
        &machine,
        &trigger,
        Verdict::NotArmed,
        &format!("eventfd {eventfd} is wired to no GSI: no irqfd listens to it"),
    );
    assert_count(&machine, intid, 0);

    trigger.wire(machine.wiring(), &machine.line(spi(5))).unwrap();
    let events = EventLoop::of([trigger.resampler_for(Arc::new(device.clone()))]);
    until_count(&machine, intid, 1);
    machine.until("the EOI to be heard", || !trigger.state().unwrap().resample_due);
    expect_level(&machine, &trigger, Verdict::Fine, "has fired once");
    drop(events);
}

#[test]
fn eoi_unseen_a_level_that_nobody_resamples_dies_after_its_first_interrupt() {
    let test = "eoi_unseen_a_level_that_nobody_resamples_dies_after_its_first_interrupt";
    let Some(machine) = with_lines(test) else { return };
    let (trigger, device, intid) = level_device(&machine, Kind::Level);
    trigger.wire(machine.wiring(), &machine.line(spi(5))).unwrap();
    expect_level(&machine, &trigger, Verdict::NotFired, "has not fired");
    // The guest takes one at each interrupt.
    device.post(2);
    until_count(&machine, intid, 1);
    expect_level(&machine, &trigger, Verdict::EoiUnseen, "the event loop has not looked at it");
    assert_count(&machine, intid, 1);

    let events = EventLoop::of([trigger.resampler_for(Arc::new(device.clone()))]);
    until_count(&machine, intid, 2);
    machine.until("the EOI to be heard", || !trigger.state().unwrap().resample_due);
    expect_level(&machine, &trigger, Verdict::Fine, "has fired once");
    drop(events);
}

fn write(event: BorrowedFd<'_>) {
    File::from(event.try_clone_to_owned().unwrap()).write_all(&1_u64.to_ne_bytes()).unwrap();
}

/// A line that is handed over to somebody who signals the trigger and forgets the other eventfd, as VFIO does when it is given a trigger only. With a
/// device of VFIO's and the whole program, tests/vfio_irq.rs has the same.
#[test]
fn unmask_not_armed_an_eoi_that_nobody_takes_stays_in_the_eventfd() {
    let test = "unmask_not_armed_an_eoi_that_nobody_takes_stays_in_the_eventfd";
    let Some(machine) = with_lines(test) else { return };
    let (trigger, device, intid) = level_device(&machine, Kind::Level);
    trigger.wire(machine.wiring(), &machine.line(spi(5))).unwrap();
    let fds = trigger.hand_over();
    expect_level(&machine, &trigger, Verdict::NotFired, "has not fired");
    device.post_quietly(1);
    write(fds.trigger);
    until_count(&machine, intid, 1);
    let resamplefd = trigger.state().unwrap().resamplefd;
    let words = format!("the EOI is still in eventfd {resamplefd}: VFIO has no unmask eventfd armed");
    expect_level(&machine, &trigger, Verdict::UnmaskNotArmed, &words);

    // What VFIO does when it waits for it.
    let mut count = [0; 8];
    File::from(fds.resample.try_clone_to_owned().unwrap()).read_exact(&mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1, "one EOI");
    expect_level(&machine, &trigger, Verdict::NotFired, "everything is fine");
}
