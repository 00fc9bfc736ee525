// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Level interrupts: up until the EOI, up again while there is a reason.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{DISK, Rig, costs, interrupt, message};
use gsi_routing::{Target, Targets};
use irq_types::{Gsi, IrqchipPin, Spi, TriggerMode};
use irqchip::fake::{FakeVm, drain, signal};
use irqchip::{IrqfdBinder, RouteTarget, VmId};
use irqfd::{Error, LevelLine, LevelTrigger, Resample, Wiring};
use proptest::prelude::*;

/// The guest takes one interrupt and ends it; whether there was one.
fn guest_handles_one(rig: &Rig) -> bool {
    let taken = rig.vm.guest().take();
    if let Some(interrupt) = taken {
        rig.vm.guest().eoi(interrupt);
    }
    taken.is_some()
}

#[test]
fn a_line_that_is_high_from_the_start_interrupts_when_it_is_wired() {
    let rig = Rig::arm();
    let spi = Spi::new(5).unwrap();
    rig.vm.guest().configure_spi(spi, TriggerMode::Level).unwrap();
    let trigger = LevelTrigger::new().unwrap();
    trigger.line().assert().unwrap();
    assert!(rig.vm.guest().take().is_none());
    let gsi = Arc::new(rig.wiring.router().claim_spi(spi).unwrap());
    trigger.wire(&rig.wiring, &gsi).unwrap();
    assert!(rig.vm.line_is_high(spi));
    assert_eq!(rig.vm.guest().take(), Some(interrupt(spi)));
    rig.vm.guest().eoi(interrupt(spi));
    // And it is a level like any other from here on.
    assert!(trigger.resampler().run().unwrap());
    assert!(rig.vm.line_is_high(spi));
}

/// A kernel whose guest is quick: it takes and ends an interrupt before the call that raised it has returned.
struct WithQuickGuest(Arc<FakeVm>);

impl IrqfdBinder for WithQuickGuest {
    fn vm_id(&self) -> VmId {
        IrqfdBinder::vm_id(&*self.0)
    }

    fn assign_irqfd(
        &self,
        event: BorrowedFd<'_>,
        gsi: Gsi,
        resample: Option<BorrowedFd<'_>>,
    ) -> Result<(), irqchip::Error> {
        self.0.assign_irqfd(event, gsi, resample)?;
        let taken = self.0.guest().take().unwrap();
        self.0.guest().eoi(taken);
        Ok(())
    }

    fn deassign_irqfd(&self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), irqchip::Error> {
        self.0.deassign_irqfd(event, gsi)
    }
}

#[test]
fn a_line_that_is_high_when_it_is_wired_is_raised_once_however_quick_the_guest() {
    let rig = Rig::arm();
    let spi = Spi::new(5).unwrap();
    rig.vm.guest().configure_spi(spi, TriggerMode::Level).unwrap();
    let quick = Arc::new(WithQuickGuest(Arc::clone(&rig.vm)));
    let wiring = Wiring::new(quick, rig.wiring.router().clone()).unwrap();
    let trigger = LevelTrigger::new().unwrap();
    trigger.line().assert().unwrap();
    let gsi = Arc::new(wiring.router().claim_spi(spi).unwrap());
    trigger.wire(&wiring, &gsi).unwrap();
    // The guest has quieted the device; the event loop has yet to hear of the EOI.
    assert!(!rig.vm.line_is_high(spi));
    assert_eq!(rig.vm.guest().take(), None);
    // The same when it is wired again while the device is high.
    trigger.unwire().unwrap();
    trigger.wire(&wiring, &gsi).unwrap();
    assert!(!rig.vm.line_is_high(spi));
    assert_eq!(rig.vm.guest().take(), None);
}

#[test]
fn a_line_that_was_taken_back_before_wiring_interrupts_nobody() {
    let rig = Rig::arm();
    let spi = Spi::new(5).unwrap();
    rig.vm.guest().configure_spi(spi, TriggerMode::Level).unwrap();
    let trigger = LevelTrigger::new().unwrap();
    trigger.line().assert().unwrap();
    trigger.line().deassert().unwrap();
    trigger.wire(&rig.wiring, &Arc::new(rig.wiring.router().claim_spi(spi).unwrap())).unwrap();
    assert!(!rig.vm.line_is_high(spi));
    assert!(rig.vm.guest().take().is_none());
}

#[test]
fn the_line_stays_up_until_the_eoi_and_comes_up_again_while_the_device_is_high() {
    let rig = Rig::arm();
    let (trigger, spi) = rig.level(7);
    let resampler = trigger.resampler();
    let line = trigger.line();
    line.assert().unwrap();
    for round in 1..=3 {
        assert!(rig.vm.line_is_high(spi), "round {round}");
        assert_eq!(rig.vm.guest().take(), Some(interrupt(spi)));
        assert!(!resampler.run().unwrap(), "nothing to resample before the EOI");
        rig.vm.guest().eoi(interrupt(spi));
        assert!(!rig.vm.line_is_high(spi), "the kernel lowers it");
        assert!(trigger.state().unwrap().resample_due);
        assert!(resampler.run().unwrap());
        assert!(!resampler.run().unwrap(), "one EOI, one resample");
        assert_eq!(trigger.state().unwrap().raised_again, round);
    }
    line.deassert().unwrap();
    assert!(guest_handles_one(&rig));
    assert!(resampler.run().unwrap());
    assert!(!rig.vm.line_is_high(spi));
    assert!(!guest_handles_one(&rig), "nobody asserts it any more");
    let state = trigger.state().unwrap();
    assert_eq!((state.raised, state.resampled, state.raised_again), (1, 4, 3));
}

#[test]
fn asserting_what_is_asserted_signals_once() {
    let rig = Rig::arm();
    let (trigger, _) = rig.level(7);
    let line = trigger.line();
    for _ in 0..10 {
        line.set_level(true).unwrap();
    }
    assert_eq!(trigger.state().unwrap().raised, 1);
    // Between the EOI and the resampler, too: the resampler is about to look.
    assert!(guest_handles_one(&rig));
    line.assert().unwrap();
    assert_eq!(trigger.state().unwrap().raised, 1);
    trigger.resampler().run().unwrap();
    assert!(guest_handles_one(&rig));
}

#[test]
fn devices_that_share_a_line_are_all_heard_until_the_last_is_silent() {
    let rig = Rig::arm();
    let spi = Spi::new(9).unwrap();
    rig.vm.guest().configure_spi(spi, TriggerMode::Level).unwrap();
    let gsi = Arc::new(rig.wiring.router().claim_spi(spi).unwrap());
    let triggers: Vec<_> = (0..3).map(|_| LevelTrigger::new().unwrap()).collect();
    for trigger in &triggers {
        trigger.wire(&rig.wiring, &gsi).unwrap();
    }
    assert_eq!(rig.live().resampling, 3);
    let run_all = || triggers.iter().filter(|t| t.resampler().run().unwrap()).count();
    triggers[0].line().assert().unwrap();
    triggers[2].line().assert().unwrap();
    // The guest serves device 0 only, and ends the interrupt: device 2 still asserts.
    triggers[0].line().deassert().unwrap();
    assert!(guest_handles_one(&rig));
    assert_eq!(run_all(), 3, "each of them hears of the EOI");
    assert!(rig.vm.line_is_high(spi));
    triggers[2].line().deassert().unwrap();
    assert!(guest_handles_one(&rig));
    run_all();
    assert!(!guest_handles_one(&rig));
    // Unplugging one leaves the line to the others.
    triggers[1].line().assert().unwrap();
    triggers[0].unwire().unwrap();
    assert!(rig.vm.line_is_high(spi));
    triggers[2].unwire().unwrap();
    triggers[1].unwire().unwrap();
    assert!(!rig.vm.line_is_high(spi), "the last one takes it down");
    assert_eq!(rig.live().irqfds, 0);
}

#[test]
fn ninety_five_level_devices_all_interrupt() {
    let rig = Rig::arm();
    let devices: Vec<_> = (0..95).map(|n| rig.level(n)).collect();
    for (trigger, _) in &devices {
        trigger.line().assert().unwrap();
    }
    let mut heard: Vec<_> = std::iter::from_fn(|| rig.vm.guest().take()).collect();
    heard.sort_unstable();
    let wanted: Vec<_> = devices.iter().map(|(_, spi)| interrupt(*spi)).collect();
    assert_eq!(heard, wanted);
    for (trigger, spi) in &devices {
        trigger.line().deassert().unwrap();
        rig.vm.guest().eoi(interrupt(*spi));
        assert!(trigger.resampler().run().unwrap(), "{spi}");
    }
    assert!(rig.vm.guest().take().is_none());
    assert_eq!(rig.vm.count(irqchip::fake::Call::SetRoutes), 0, "default routes serve them all");
}

#[test]
fn device_tree_route_and_trigger_cannot_disagree() {
    // All three come from the SPI and the trigger's mode, for both kinds of trigger.
    let rig = Rig::arm();
    for (n, mode) in [(11, LevelTrigger::MODE), (12, irqfd::EdgeTrigger::MODE)] {
        let spi = Spi::new(n).unwrap();
        let (gsi, resampling) = match mode {
            TriggerMode::Level => {
                let (trigger, _) = rig.level(n);
                let gsi = trigger.state().unwrap().gsi.unwrap();
                (gsi, rig.live().resampling == 1)
            }
            TriggerMode::Edge => {
                let (trigger, _) = rig.edge(n);
                let gsi = trigger.state().unwrap().gsi.unwrap();
                (gsi, rig.live().resampling == 1)
            }
        };
        let pin = IrqchipPin { irqchip: 0, pin: spi.pin() };
        let routes = rig.vm.routes();
        let route = routes.iter().find(|route| route.gsi == gsi).unwrap();
        assert_eq!(route.target, RouteTarget::Line(pin));
        assert_eq!(
            resampling,
            spi.fdt_cells(mode)[2] == 4,
            "an EOI comes back exactly where the device tree says level"
        );
        assert_eq!(spi.fdt_cells(mode)[1], pin.pin.get());
    }
}

/// The other side of VFIO's INTx: a masked, automasked line whose unmask eventfd is the resamplefd. Runs "in the kernel".
fn vfio_serves(rig: &Rig, trigger: &LevelTrigger, spi: Spi, interrupts: u32) {
    let fds = trigger.hand_over();
    let mut delivered = 0;
    signal(fds.trigger).unwrap();
    while let Some(taken) = rig.vm.guest().take() {
        assert_eq!(taken, interrupt(spi));
        delivered += 1;
        rig.vm.guest().eoi(taken);
        // EOI → unmask → the device still asserts → trigger.
        assert_eq!(drain(fds.resample).unwrap(), 1, "interrupt {delivered} was not unmasked");
        if delivered < interrupts {
            signal(fds.trigger).unwrap();
        }
    }
    assert_eq!(delivered, interrupts, "the line is stuck");
}

#[test]
fn a_hundred_thousand_interrupts_of_a_handed_over_line_need_nobody_here() {
    let rig = Rig::arm();
    let (trigger, spi) = rig.level(3);
    let resampler = trigger.resampler();
    rig.vm.forget_calls();
    vfio_serves(&rig, &trigger, spi, 100_000);
    assert_eq!(rig.costs(), costs(0, 0, 0));
    let state = trigger.state().unwrap();
    assert!(state.handed_over);
    assert_eq!((state.raised, state.resampled, state.raised_again), (0, 0, 0));
    assert!(resampler.is_idle());
}

#[test]
fn what_is_handed_over_is_not_touched_here_until_it_is_taken_back() {
    let rig = Rig::arm();
    let (trigger, spi) = rig.level(3);
    let (line, resampler) = (trigger.line(), trigger.resampler());
    line.assert().unwrap();
    assert!(guest_handles_one(&rig));
    resampler.run().unwrap();
    trigger.hand_over();
    assert_eq!(line.assert(), Err(Error::HandedOver));
    assert_eq!(line.deassert(), Err(Error::HandedOver));
    assert!(guest_handles_one(&rig), "what was up when it was handed over is taken");
    assert!(!resampler.run().unwrap(), "the EOI is the new owner's");
    assert!(trigger.state().unwrap().resample_due);
    assert!(!rig.vm.line_is_high(spi));
    trigger.take_back();
    assert!(resampler.run().unwrap(), "an EOI that nobody has taken is seen now");
    assert!(!rig.vm.line_is_high(spi), "the device's end was taken low");
    line.assert().unwrap();
    assert!(rig.vm.line_is_high(spi));
}

#[test]
fn an_eoi_that_the_new_owner_has_seen_is_forgotten_once() {
    let rig = Rig::arm();
    let (trigger, _) = rig.level(3);
    signal(trigger.hand_over().trigger).unwrap();
    assert!(guest_handles_one(&rig));
    assert!(trigger.state().unwrap().resample_due);
    assert!(trigger.forget_eoi().unwrap());
    assert!(!trigger.state().unwrap().resample_due);
    assert!(!trigger.forget_eoi().unwrap(), "there is no other");
}

#[test]
fn an_eoi_that_is_the_new_owners_is_left_to_it_by_unwiring() {
    let rig = Rig::arm();
    let (trigger, _) = rig.level(3);
    signal(trigger.hand_over().trigger).unwrap();
    assert!(guest_handles_one(&rig));
    trigger.unwire().unwrap();
    assert!(trigger.state().unwrap().resample_due);
}

/// A device that is slow to answer: somebody hands its line over while it is asked.
struct HandedOverMeanwhile {
    asked: mpsc::SyncSender<()>,
    handed_over: Mutex<mpsc::Receiver<()>>,
}

impl Resample for HandedOverMeanwhile {
    fn resampled(&self) -> bool {
        self.asked.send(()).unwrap();
        // Handing over waits for the answer, so this comes to nothing, but for how long it is given the chance.
        let _ = self.handed_over.lock().unwrap().recv_timeout(Duration::from_millis(200));
        true
    }
}

#[test]
fn a_line_that_is_handed_over_while_its_device_is_asked_is_low_when_it_is_taken_back() {
    let rig = Rig::arm();
    let (trigger, spi) = rig.level(3);
    let (asked, is_asked) = mpsc::sync_channel(1);
    let (done, is_done) = mpsc::sync_channel(1);
    let device = Arc::new(HandedOverMeanwhile { asked, handed_over: Mutex::new(is_done) });
    let resampler = trigger.resampler_for(device);
    trigger.line().assert().unwrap();
    assert!(guest_handles_one(&rig));
    thread::scope(|scope| {
        scope.spawn(|| resampler.run().unwrap());
        is_asked.recv().unwrap();
        trigger.hand_over();
        done.send(()).unwrap();
    });
    assert!(!trigger.state().unwrap().high);
    // What the answer raised is taken, and its EOI.
    while guest_handles_one(&rig) {}
    drain(trigger.fds().resample).unwrap();
    trigger.take_back();
    trigger.line().assert().unwrap();
    assert!(rig.vm.line_is_high(spi), "the first assertion after is not taken for an old one");
}

#[test]
fn a_shared_line_may_be_handed_over_for_one_device_and_not_for_the_other() {
    let rig = Rig::arm();
    let spi = Spi::new(9).unwrap();
    rig.vm.guest().configure_spi(spi, TriggerMode::Level).unwrap();
    let gsi = Arc::new(rig.wiring.router().claim_spi(spi).unwrap());
    let (passed_through, emulated) = (LevelTrigger::new().unwrap(), LevelTrigger::new().unwrap());
    passed_through.wire(&rig.wiring, &gsi).unwrap();
    emulated.wire(&rig.wiring, &gsi).unwrap();
    let fds = passed_through.hand_over();
    emulated.line().assert().unwrap();
    signal(fds.trigger).unwrap();
    assert!(guest_handles_one(&rig));
    assert_eq!(drain(fds.resample).unwrap(), 1);
    assert!(emulated.resampler().run().unwrap());
    assert!(rig.vm.line_is_high(spi), "the emulated device still asserts");
    emulated.line().deassert().unwrap();
    assert!(guest_handles_one(&rig));
    assert_eq!(drain(fds.resample).unwrap(), 1);
    assert!(!rig.vm.line_is_high(spi));
}

/// A device that has to be asked, with `left` things to say.
struct Asked {
    left: AtomicU32,
    line: std::sync::OnceLock<Arc<dyn LevelLine>>,
    asserts_while_asked: AtomicBool,
}

impl Resample for Asked {
    fn resampled(&self) -> bool {
        if self.asserts_while_asked.load(Ordering::SeqCst) {
            self.line.get().unwrap().assert().unwrap();
            return false;
        }
        let left = self.left.load(Ordering::SeqCst);
        self.left.store(left.saturating_sub(1), Ordering::SeqCst);
        left > 0
    }
}

fn asked(rig: &Rig, spi: u32, left: u32) -> (LevelTrigger, Spi, Arc<Asked>) {
    let (trigger, spi) = rig.level(spi);
    let device = Arc::new(Asked {
        left: AtomicU32::new(left),
        line: std::sync::OnceLock::new(),
        asserts_while_asked: AtomicBool::new(false),
    });
    let _ = device.line.set(trigger.line());
    (trigger, spi, device)
}

#[test]
fn a_device_that_is_asked_interrupts_as_long_as_it_has_something_to_say() {
    let rig = Rig::arm();
    let (trigger, _, device) = asked(&rig, 4, 3);
    let resampler = trigger.resampler_for(device);
    trigger.line().assert().unwrap();
    let mut interrupts = 0;
    while guest_handles_one(&rig) {
        interrupts += 1;
        resampler.run().unwrap();
    }
    assert_eq!(interrupts, 4);
    // It was taken low, so that the next assertion is one.
    trigger.line().assert().unwrap();
    assert!(guest_handles_one(&rig));
}

#[test]
fn what_a_device_asserts_while_it_is_asked_is_not_lost() {
    let rig = Rig::arm();
    let (trigger, spi, device) = asked(&rig, 4, 0);
    let resampler = trigger.resampler_for(device.clone());
    trigger.line().assert().unwrap();
    assert!(guest_handles_one(&rig));
    device.asserts_while_asked.store(true, Ordering::SeqCst);
    resampler.run().unwrap();
    assert!(rig.vm.line_is_high(spi));
}

#[test]
fn unwiring_lowers_and_wiring_again_raises_what_is_still_high() {
    let rig = Rig::arm();
    let (trigger, spi) = rig.level(6);
    let gsi = trigger.state().unwrap().gsi.unwrap();
    trigger.line().assert().unwrap();
    rig.vm.process();
    trigger.unwire().unwrap();
    assert!(!rig.vm.line_is_high(spi));
    assert_eq!(trigger.state().unwrap().gsi, None);
    trigger.unwire().unwrap();
    let claimed = rig.wiring.router().claim_spi(spi).unwrap();
    assert_eq!(claimed.gsi(), gsi, "the line was given back");
    trigger.wire(&rig.wiring, &Arc::new(claimed)).unwrap();
    assert!(rig.vm.line_is_high(spi));
}

#[test]
fn an_eoi_from_before_unwiring_is_not_looked_at_after_it() {
    let rig = Rig::arm();
    let (trigger, _) = rig.level(6);
    trigger.line().assert().unwrap();
    assert!(guest_handles_one(&rig));
    assert!(trigger.state().unwrap().resample_due);
    trigger.unwire().unwrap();
    assert!(!trigger.state().unwrap().resample_due);
    assert!(!trigger.resampler().run().unwrap());
}

#[test]
fn a_line_that_the_guest_has_forgotten_is_refreshed() {
    let rig = Rig::arm();
    let (trigger, spi) = rig.level(6);
    trigger.line().assert().unwrap();
    assert!(guest_handles_one(&rig));
    // A reset controller and a lost EOI: the line is down, the device is high, and nobody will ask.
    drain(trigger.fds().resample).unwrap();
    assert!(!rig.vm.line_is_high(spi));
    trigger.line().assert().unwrap();
    assert!(!rig.vm.line_is_high(spi));
    trigger.refresh().unwrap();
    assert!(rig.vm.line_is_high(spi));
}

#[test]
fn dropping_a_trigger_lowers_the_line_disarms_and_gives_the_gsi_back() {
    let rig = Rig::arm();
    let before = rig.live();
    let (trigger, spi) = rig.level(6);
    let line = trigger.line();
    line.assert().unwrap();
    assert!(rig.vm.line_is_high(spi));
    drop(trigger);
    assert!(!rig.vm.line_is_high(spi));
    assert_eq!(rig.live(), before);
    assert!(rig.wiring.router().claim_spi(spi).is_ok());
    line.deassert().unwrap();
    line.assert().unwrap();
    assert!(!rig.vm.line_is_high(spi), "an end that outlives its trigger leads nowhere");
}

#[test]
fn only_lines_of_the_same_vm_can_be_wired_and_only_once() {
    let (rig, other) = (Rig::arm(), Rig::arm());
    let (trigger, spi) = rig.level(6);
    let gsi = trigger.state().unwrap().gsi.unwrap();
    let second = Arc::new(rig.wiring.router().claim_spi(Spi::new(7).unwrap()).unwrap());
    assert_eq!(trigger.wire(&rig.wiring, &second), Err(Error::AlreadyWired { gsi }));
    let free = LevelTrigger::new().unwrap();
    assert_eq!(free.wire(&other.wiring, &second), Err(Error::OtherVm { what: "the GSI" }));
    let msi = Arc::new(rig.wiring.router().add_msi(message(0), DISK).unwrap());
    assert!(matches!(msi.targets(), Targets::Msi { .. }));
    assert_eq!(
        free.wire(&rig.wiring, &msi),
        Err(Error::NotALine { gsi: msi.gsi(), mode: TriggerMode::Level })
    );
    let unrouted = Arc::new(rig.wiring.router().allocate().unwrap());
    assert!(matches!(free.wire(&rig.wiring, &unrouted), Err(Error::NotALine { .. })));
    assert!(matches!(
        Wiring::new(rig.guard.clone(), other.wiring.router().clone()),
        Err(Error::OtherVm { what: "the irqfd binder" })
    ));
    assert_eq!(rig.live().irqfds, 1);
    let pin = Target::Line(IrqchipPin { irqchip: 0, pin: spi.pin() });
    assert_eq!(rig.wiring.router().snapshot().of(gsi)[0].target, pin);
}

#[cfg(feature = "event-manager")]
#[test]
fn an_event_manager_loop_resamples_and_lets_go_of_what_is_handed_over() {
    use event_manager::{EventManager, SubscriberOps};
    use irqfd::ResampleSubscriber;

    let rig = Rig::arm();
    let (trigger, spi) = rig.level(6);
    let mut events = EventManager::new().unwrap();
    let troubled = Arc::new(AtomicBool::new(false));
    let told = troubled.clone();
    events.add_subscriber(ResampleSubscriber::new(trigger.resampler(), move |_| {
        told.store(true, Ordering::SeqCst);
    }));
    trigger.line().assert().unwrap();
    for _ in 0..3 {
        assert!(guest_handles_one(&rig));
        assert!(!rig.vm.line_is_high(spi));
        assert_eq!(events.run_with_timeout(0).unwrap(), 1);
        assert!(rig.vm.line_is_high(spi));
        assert_eq!(events.run_with_timeout(0).unwrap(), 0, "the loop does not spin");
    }
    trigger.hand_over();
    assert!(guest_handles_one(&rig));
    assert_eq!(events.run_with_timeout(0).unwrap(), 1);
    assert_eq!(events.run_with_timeout(0).unwrap(), 0, "the loop does not spin on somebody else's eventfd");
    assert!(!troubled.load(Ordering::SeqCst));
}

/// What can happen to three devices on a line.
#[derive(Debug, Clone)]
enum Step {
    Assert(usize),
    Deassert(usize),
    Guest,
    Run(usize),
    Wire(usize),
    Unwire(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3usize).prop_map(Step::Assert),
        3 => (0..3usize).prop_map(Step::Deassert),
        3 => Just(Step::Guest),
        3 => (0..3usize).prop_map(Step::Run),
        1 => (0..3usize).prop_map(Step::Wire),
        1 => (0..3usize).prop_map(Step::Unwire),
    ]
}

/// The naive reference: who is high, who is wired, who has an EOI to look at, and the wire.
#[derive(Default)]
struct Naive {
    high: [bool; 3],
    wired: [bool; 3],
    due: [bool; 3],
    wire: bool,
}

impl Naive {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Assert(n) => {
                self.wire |= self.wired[n] && !self.high[n];
                self.high[n] = true;
            }
            Step::Deassert(n) => self.high[n] = false,
            Step::Guest => {
                if std::mem::take(&mut self.wire) {
                    for n in 0..3 {
                        self.due[n] |= self.wired[n];
                    }
                }
            }
            Step::Run(n) => {
                if std::mem::take(&mut self.due[n]) {
                    self.wire |= self.high[n] && self.wired[n];
                }
            }
            Step::Wire(n) => {
                self.wired[n] = true;
                self.wire |= self.high[n];
            }
            Step::Unwire(n) => {
                self.wired[n] = false;
                self.due[n] = false;
                self.wire &= self.wired.contains(&true);
            }
        }
    }
}

proptest! {
    #[test]
    fn three_devices_on_a_line_behave_like_the_naive_reference(steps in prop::collection::vec(step(), 1..60)) {
        let rig = Rig::arm();
        let spi = Spi::new(9).unwrap();
        rig.vm.guest().configure_spi(spi, TriggerMode::Level).unwrap();
        let gsi = Arc::new(rig.wiring.router().claim_spi(spi).unwrap());
        let triggers: Vec<_> = (0..3).map(|_| LevelTrigger::new().unwrap()).collect();
        let mut naive = Naive::default();
        for step in &steps {
            match *step {
                Step::Assert(n) => triggers[n].line().assert().unwrap(),
                Step::Deassert(n) => triggers[n].line().deassert().unwrap(),
                Step::Guest => { guest_handles_one(&rig); }
                Step::Run(n) => { triggers[n].resampler().run().unwrap(); }
                Step::Wire(n) => {
                    let result = triggers[n].wire(&rig.wiring, &gsi);
                    prop_assert_eq!(result.is_err(), naive.wired[n]);
                    if naive.wired[n] { continue; }
                }
                Step::Unwire(n) => triggers[n].unwire().unwrap(),
            }
            naive.step(step);
            prop_assert_eq!(rig.vm.line_is_high(spi), naive.wire, "after {:?}", step);
        }
        // Whatever happened: once the resamplers have run, a device that asserts is heard, and a line that nobody asserts falls silent.
        for _ in 0..2 {
            for trigger in &triggers {
                trigger.resampler().run().unwrap();
            }
            let heard = guest_handles_one(&rig);
            let somebody = (0..3).any(|n| naive.high[n] && naive.wired[n]);
            prop_assert!(heard || !somebody);
        }
    }
}
