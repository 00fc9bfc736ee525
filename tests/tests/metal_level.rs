// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Level-triggered SPIs, there and back: device → irqfd → bare-metal guest → EOI → resample eventfd → device.
//!
//! The devices' registers lie in memory that the guest shares, so the guest quiets a device without leaving. It takes one item at each interrupt: a
//! device with *n* items causes *n* interrupts, each after the first by being resampled, or something is wrong.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use doorbell_tests::metal::{Device, EventLoop, Kind, Machine, beside};
use irq_types::{Intid, Spi};
use irqfd::LevelTrigger;
use vgic::GicRequest;

struct Level {
    trigger: LevelTrigger,
    device: Device,
}

impl Level {
    /// Device `n` of the SPI, not wired yet.
    fn new(machine: &Machine, intid: Intid, n: u32) -> Self {
        let trigger = LevelTrigger::new().unwrap();
        let device = Device::new(machine.mailbox(), intid, n, trigger.line());
        Self { trigger, device }
    }
}

fn spi(n: u32) -> Spi {
    Spi::new(n).unwrap()
}

/// One device on each of `count` lines, every other of them to the same CPU.
fn levels(machine: &Machine, count: u32, kind: Kind) -> Vec<Level> {
    (0..count)
        .map(|n| {
            let intid = spi(n).intid();
            machine.wire(intid, kind, n % machine.gic().config().vcpus());
            let level = Level::new(machine, intid, 0);
            level.trigger.wire(machine.wiring(), &machine.line(spi(n))).unwrap();
            level
        })
        .collect()
}

fn event_loop(levels: &[Level]) -> EventLoop {
    EventLoop::of(levels.iter().map(|level| level.trigger.resampler_for(Arc::new(level.device.clone()))))
}

fn machine(test: &str, vcpus: u32) -> Option<Machine> {
    let request = GicRequest { vcpus, spis: 128, ..GicRequest::default() };
    Machine::start(test, request, |host| host.v2 || host.v3, "a GIC")
}

fn until_all_is_handled(machine: &Machine, levels: &[Level]) {
    machine.until("all items to be taken", || levels.iter().all(|level| !level.device.has_items()));
}

/// As many interrupts as items: neither lost nor doubled. As many EOIs were heard, and all lines are down.
fn assert_one_interrupt_an_item(machine: &Machine, levels: &[Level]) {
    // The last EOI may be on its way to the event loop.
    machine.until("the last EOI to be heard", || {
        levels.iter().all(|level| level.trigger.state().unwrap().resampled >= level.device.posted())
    });
    for level in levels {
        let (posted, intid) = (level.device.posted(), level.device.intid());
        assert_eq!(machine.mailbox().count(intid), posted, "{intid}");
        let state = level.trigger.state().unwrap();
        assert_eq!((state.raised + state.raised_again, state.resampled), (posted, posted), "{intid}");
        assert!(!state.high && !state.resample_due, "{intid}: {state:?}");
    }
}

#[test]
fn of_100_000_levels_each_arrives_exactly_once_and_no_vcpu_returns() {
    let test = "of_100_000_levels_each_arrives_exactly_once_and_no_vcpu_returns";
    let Some(machine) = machine(test, 2) else { return };
    let levels = levels(&machine, 50, Kind::Level);
    let events = event_loop(&levels);
    let serving = machine.serve();
    // The first may find a CPU still on its way into the guest.
    levels.iter().for_each(|level| level.device.post(1));
    until_all_is_handled(&machine, &levels);
    let returns = machine.returns();
    levels.iter().for_each(|level| level.device.post(2000));
    until_all_is_handled(&machine, &levels);
    returns.assert_none(test, "100000 levels", || machine.finish(serving));
    assert_one_interrupt_an_item(&machine, &levels);
    drop(events);
}

#[test]
fn all_of_95_level_devices_interrupt() {
    let test = "all_of_95_level_devices_interrupt";
    let Some(machine) = machine(test, 2) else { return };
    let levels = levels(&machine, 95, Kind::Level);
    let events = event_loop(&levels);
    let serving = machine.serve();
    // One after the other, then all together.
    for level in &levels {
        level.device.post(1);
        machine.until("this device's interrupt", || !level.device.has_items());
    }
    levels.iter().for_each(|level| level.device.post(2));
    until_all_is_handled(&machine, &levels);
    machine.finish(serving);
    for (n, level) in (0..).zip(&levels) {
        assert_eq!(machine.mailbox().count_on(n % 2, level.device.intid()), 3, "{}", level.device.intid());
    }
    assert_one_interrupt_an_item(&machine, &levels);
    drop(events);
}

#[test]
fn a_line_that_is_high_before_it_is_wired_interrupts_when_it_is() {
    let test = "a_line_that_is_high_before_it_is_wired_interrupts_when_it_is";
    let Some(machine) = machine(test, 1) else { return };
    let intid = spi(7).intid();
    machine.wire(intid, Kind::Level, 0);
    let levels = [Level::new(&machine, intid, 0)];
    levels[0].device.post(3);
    let events = event_loop(&levels);
    let serving = machine.serve();
    levels[0].trigger.wire(machine.wiring(), &machine.line(spi(7))).unwrap();
    until_all_is_handled(&machine, &levels);
    machine.finish(serving);
    assert_one_interrupt_an_item(&machine, &levels);
    drop(events);
}

#[test]
fn a_line_that_is_high_before_the_guest_enables_it_interrupts_when_it_does() {
    let test = "a_line_that_is_high_before_the_guest_enables_it_interrupts_when_it_does";
    let Some(machine) = machine(test, 1) else { return };
    let intid = spi(7).intid();
    let levels = [Level::new(&machine, intid, 0)];
    levels[0].trigger.wire(machine.wiring(), &machine.line(spi(7))).unwrap();
    levels[0].device.post(3);
    let events = event_loop(&levels);
    machine.wire(intid, Kind::Level, 0);
    let serving = machine.serve();
    until_all_is_handled(&machine, &levels);
    machine.finish(serving);
    assert_one_interrupt_an_item(&machine, &levels);
    drop(events);
}

/// A device that is told when its guest takes an item, as one whose registers are emulated: it drives its end of the line itself, and the guest
/// does not end the interrupt before it has.
#[test]
fn a_device_that_drives_its_own_level_causes_one_interrupt_an_item() {
    let test = "a_device_that_drives_its_own_level_causes_one_interrupt_an_item";
    let Some(machine) = machine(test, 1) else { return };
    let levels = levels(&machine, 2, Kind::Lowered);
    let events = EventLoop::of(levels.iter().map(|level| level.trigger.resampler()));
    let serving = machine.serve();
    levels.iter().for_each(|level| level.device.post(250));
    let mut handled = [0; 2];
    machine.until("all items to be taken", || {
        levels.iter().zip(&mut handled).for_each(|(level, handled)| {
            level.device.follow(handled);
        });
        handled == [250; 2]
    });
    machine.finish(serving);
    assert_one_interrupt_an_item(&machine, &levels);
    drop(events);
}

/// The device raises its line whenever it likes, while the event loop looks after EOIs. What comes in between must neither get lost nor stuck.
#[test]
fn a_device_that_asserts_while_it_is_resampled_loses_nothing() {
    let test = "a_device_that_asserts_while_it_is_resampled_loses_nothing";
    let Some(machine) = machine(test, 1) else { return };
    let levels = levels(&machine, 2, Kind::Level);
    let events = event_loop(&levels);
    let serving = machine.serve();
    let mut causeless = 0;
    for batch in 1..=1000 {
        for level in &levels {
            // No waiting: the guest may be anywhere between the acknowledgement and the EOI of the one before.
            level.device.post(1);
        }
        if batch % 10 == 0 {
            // Now it may not be stuck.
            until_all_is_handled(&machine, &levels);
        }
        causeless = machine.mailbox().causeless();
    }
    until_all_is_handled(&machine, &levels);
    drop(serving);
    let mut interrupts = 0;
    for level in &levels {
        let count = machine.mailbox().count(level.device.intid());
        assert_eq!(level.device.handled(), level.device.posted());
        assert!(count >= level.device.posted(), "an item is taken by an interrupt");
        interrupts += count;
    }
    // An assertion between the guest's taking of the item and its EOI is one interrupt too many; the guest says of each that it
    // found no reason.
    causeless = causeless.max(machine.mailbox().causeless());
    println!("{interrupts} interrupts for 2000 items, {causeless} without reason");
    assert_eq!(interrupts, 2000 + causeless);
    drop(events);
}

#[test]
fn two_devices_share_a_line_and_neither_waits_for_the_other() {
    let test = "two_devices_share_a_line_and_neither_waits_for_the_other";
    let Some(machine) = machine(test, 1) else { return };
    let intid = spi(3).intid();
    machine.wire(intid, Kind::Level, 0);
    let gsi = machine.line(spi(3));
    let levels = [0, 1].map(|n| Level::new(&machine, intid, n));
    levels.iter().for_each(|level| level.trigger.wire(machine.wiring(), &gsi).unwrap());
    let events = event_loop(&levels);
    let serving = machine.serve();
    for round in 1..=200 {
        // Alone, the other alone, both, and one while the other still has something to say.
        let [a, b] = &levels;
        a.device.post(1);
        machine.until("the first device alone", || !a.device.has_items());
        b.device.post(2);
        machine.until("the second device alone", || !b.device.has_items());
        a.device.post(3);
        b.device.post(1);
        until_all_is_handled(&machine, &levels);
        assert_eq!((a.device.handled(), b.device.handled()), (4 * round, 3 * round));
    }
    drop(serving);
    let (count, causeless) = (machine.mailbox().count(intid), machine.mailbox().causeless());
    println!("{count} interrupts for 1400 items, {causeless} without reason");
    // One interrupt takes an item from one device or from both.
    assert!((700..=1400).contains(&(count - causeless)));
    drop(events);
}

/// What VFIO does with INTx, in a thread: `trigger` fires when the device's interrupt is unmasked and the device has something to say; the
/// interrupt is masked when it fires; `resample` unmasks it.
fn vfio(device: &Device, mut trigger: &File, mut resample: &File, over: &dyn Fn() -> bool) {
    let mut masked = false;
    while !over() {
        // It does not block, and has a count or nothing.
        if resample.read(&mut [0; 8]).is_ok() {
            masked = false;
        }
        if !masked && device.has_items() {
            masked = true;
            trigger.write_all(&1_u64.to_ne_bytes()).unwrap();
        }
        thread::sleep(Duration::from_micros(50));
    }
}

/// The line's eventfds, for somebody else to use.
fn hand_over(trigger: &LevelTrigger) -> (File, File) {
    let own = |fd: BorrowedFd<'_>| File::from(fd.try_clone_to_owned().unwrap());
    let fds = trigger.hand_over();
    (own(fds.trigger), own(fds.resample))
}

#[test]
fn a_line_whose_eventfds_are_handed_over_works_without_the_trigger() {
    let test = "a_line_whose_eventfds_are_handed_over_works_without_the_trigger";
    let Some(machine) = machine(test, 1) else { return };
    let items = 2000;
    let levels = levels(&machine, 1, Kind::Level);
    let Level { trigger, device } = &levels[0];
    // The event loop is there before and after, and must keep its hands off in between.
    let events = event_loop(&levels);
    let serving = machine.serve();
    device.post(10);
    until_all_is_handled(&machine, &levels);
    machine.until("the last EOI to be heard", || trigger.state().unwrap().resampled == 10);

    let (fire, unmask) = hand_over(trigger);
    let somebody = |over: &dyn Fn() -> bool| vfio(device, &fire, &unmask, over);
    beside(somebody, || {
        for _ in 0..items / 10 {
            device.post_quietly(10);
            until_all_is_handled(&machine, &levels);
        }
    });
    trigger.take_back();
    drop(serving);
    assert_eq!(trigger.state().unwrap().resampled, 10, "somebody else heard the EOIs");
    assert_eq!(machine.mailbox().count(device.intid()), 10 + items);
    assert_eq!(machine.mailbox().causeless(), 0);
    drop(events);

    // The line is ours again, with a new event loop: the old one has let go of it.
    let _ = (&unmask).read(&mut [0; 8]);
    let events = event_loop(&levels);
    let serving = machine.serve();
    device.post(10);
    until_all_is_handled(&machine, &levels);
    machine.finish(serving);
    assert_eq!(machine.mailbox().count(device.intid()), 20 + items);
    drop(events);
}

#[test]
fn a_shared_line_of_which_one_device_is_handed_over_serves_both() {
    let test = "a_shared_line_of_which_one_device_is_handed_over_serves_both";
    let Some(machine) = machine(test, 1) else { return };
    let intid = spi(3).intid();
    machine.wire(intid, Kind::Level, 0);
    let gsi = machine.line(spi(3));
    let levels = [0, 1].map(|n| Level::new(&machine, intid, n));
    levels.iter().for_each(|level| level.trigger.wire(machine.wiring(), &gsi).unwrap());
    let [ours, theirs] = &levels;
    let (fire, unmask) = hand_over(&theirs.trigger);
    let events = event_loop(&levels[..1]);
    let serving = machine.serve();
    let somebody = |over: &dyn Fn() -> bool| vfio(&theirs.device, &fire, &unmask, over);
    beside(somebody, || {
        for _ in 0..200 {
            ours.device.post(3);
            theirs.device.post_quietly(2);
            until_all_is_handled(&machine, &levels);
            theirs.device.post_quietly(1);
            machine.until("the one that is handed over, alone", || !theirs.device.has_items());
        }
    });
    drop(serving);
    assert_eq!((ours.device.handled(), theirs.device.handled()), (600, 600));
    drop(events);
}
