// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each diagnosis from a way that is whole but for one thing; and of two things that are wrong, the first one.

use super::*;
use crate::irq::Line;
use crate::irq::line::test_line;
use crate::irq::situation::{Function, Gic, Its};

/// As a person reads it.
fn text(explanation: &Explanation) -> String {
    super::text(&serde_json::to_value(explanation).unwrap())
}

const MESSAGE: (u64, u32) = (0x809_0040, 3);

/// A vector of a virtio device with nothing wrong.
fn vector() -> Situation {
    let mut line = test_line("net-tap0:3", 7);
    line.kind = Kind::Msix;
    line.index = Some(3);
    line.message = Some(MESSAGE);
    line.route =
        Some(Route::Message { address: MESSAGE.0, data: MESSAGE.1, device_id: 0x10, with_device_id: true });
    line.gsi = Some(64);
    Situation {
        line,
        function: Some(Function {
            passed_through: false,
            bus_master: true,
            intx_disabled: false,
            messages_enabled: true,
            driver_up: Some(true),
            trouble: None,
        }),
        way_back: None,
        gic: Gic {
            spis: 64,
            its: vec![Its { doorbell: MESSAGE.0, frame: 0x808_0000..0x80a_0000 }],
            v2m: false,
            needs_device_id: true,
            enabled: Some(true),
        },
        translation: Some(Translation::Mapped { device: 0x10, event: 3, intid: 8195, target: Some(1) }),
        interrupt: Some(Interrupt {
            intid: 8195,
            enabled: true,
            pending: false,
            active: false,
            level: Some(false),
            target: Some(1),
        }),
        vcpus_on: vec![true, true],
        paused: false,
    }
}

/// A level line of a passed-through function with nothing wrong.
fn level() -> Situation {
    let mut line = test_line("0000:00:08.0:intx", 5);
    line.gsi = Some(4);
    line.route = Some(Route::Pin { pin: 4 });
    line.counted_by = CountedBy::Host;
    let function = vector().function.map(|function| Function {
        passed_through: true,
        messages_enabled: false,
        driver_up: None,
        ..function
    });
    Situation {
        line,
        function,
        way_back: Some(WayBack { by: Unmask::Kernel, due: false }),
        translation: None,
        interrupt: Some(Interrupt { intid: 36, level: Some(true), ..vector().interrupt.unwrap() }),
        ..vector()
    }
}

fn function(situation: &mut Situation) -> &mut Function {
    situation.function.as_mut().unwrap()
}

fn interrupt(situation: &mut Situation) -> &mut Interrupt {
    situation.interrupt.as_mut().unwrap()
}

/// As a trigger is that has never been wired.
fn unwire(line: &mut Line) {
    (line.gsi, line.route, line.armed) = (None, None, false);
}

type Break = fn(&mut Situation);

/// In the order of the way: what is broken, the verdict, words of what is said.
const VECTOR: &[(Break, Verdict, &str)] = &[
    (|s| s.paused = true, Verdict::Paused, "paused"),
    (|s| function(s).trouble = Some("bad ring".into()), Verdict::DeviceInTrouble, "bad ring"),
    (|s| function(s).driver_up = Some(false), Verdict::NoDriver, "DRIVER_OK"),
    (|s| s.gic.its.clear(), Verdict::NoReceiver, "neither an ITS nor a v2m frame"),
    (
        |s| s.line.masked = Some(Mask::Disabled),
        Verdict::MessagesDisabled,
        "MSI-X is not enabled by the guest",
    ),
    (
        |s| {
            function(s).passed_through = true;
            function(s).bus_master = false;
        },
        Verdict::BusMasterOff,
        "bus mastering is off",
    ),
    (|s| s.line.masked = Some(Mask::Function), Verdict::FunctionMasked, "the function mask of MSI-X"),
    (|s| s.line.masked = Some(Mask::NotAllowed), Verdict::NotAllowed, "fewer vectors than 4"),
    (|s| s.line.message = None, Verdict::NoMessage, "no message for entry 3"),
    (|s| s.line.masked = Some(Mask::Entry), Verdict::EntryMasked, "masked at MSI-X entry 3 by the guest"),
    (|s| s.line.trouble = Some("no GSI is left".into()), Verdict::Refused, "no GSI is left"),
    (|s| unwire(&mut s.line), Verdict::NotArmed, "eventfd 5 is wired to no GSI"),
    (|s| s.line.route = None, Verdict::NoRoute, "GSI 64 leads nowhere"),
    (
        |s| s.gic.its[0].frame = 0x10_0000..0x12_0000,
        Verdict::NoReceiver,
        "nothing takes messages at 0x8090040; the ITS takes them at",
    ),
    (
        |s| {
            let (address, data) = MESSAGE;
            s.line.route = Some(Route::Message { address, data, device_id: 0x10, with_device_id: false });
        },
        Verdict::NoDeviceId,
        "needs a device ID",
    ),
    (
        |s| s.line.route = Some(Route::Pin { pin: 64 }),
        Verdict::PinOutside,
        "pin 64, and the GIC has pins 0 to 63",
    ),
    (|s| s.line.armed = false, Verdict::NotArmed, "no irqfd listens to eventfd 5"),
    (|s| s.gic.enabled = Some(false), Verdict::GicOff, "has not switched the distributor on"),
    (
        |s| s.translation = Some(Translation::NoDevice { device: 0x10 }),
        Verdict::NoDeviceMapping,
        "no mapping for device 0x10",
    ),
    (
        |s| s.translation = Some(Translation::NoEvent { device: 0x10, event: 3 }),
        Verdict::NoEventMapping,
        "no mapping for device 0x10 event 3",
    ),
    (|s| interrupt(s).enabled = false, Verdict::LpiDisabled, "LPI 8195 is disabled by the guest"),
    (|s| s.vcpus_on = vec![true, false], Verdict::VcpuOff, "vCPU 1, which is off"),
    (|s| interrupt(s).active = true, Verdict::NotEnded, "not ended it"),
    (|s| interrupt(s).pending = true, Verdict::NotTaken, "has not taken it"),
    (|s| s.line.fired = Some(0), Verdict::NotFired, "everything is fine: the device has not fired"),
    (|_| (), Verdict::Fine, "everything is fine: the device has fired 7 times"),
];

const LEVEL: &[(Break, Verdict, &str)] = &[
    (|s| s.paused = true, Verdict::Paused, "paused"),
    (|s| function(s).messages_enabled = true, Verdict::LineUnused, "interrupts by messages"),
    (|s| function(s).intx_disabled = true, Verdict::LineDisabled, "interrupt disable bit"),
    (|s| s.line.trouble = Some("EBUSY".into()), Verdict::Refused, "EBUSY"),
    (|s| unwire(&mut s.line), Verdict::NotArmed, "eventfd 5 is wired to no GSI"),
    (|s| s.line.route = None, Verdict::NoRoute, "GSI 4 leads nowhere"),
    (|s| s.line.route = Some(Route::Pin { pin: 64 }), Verdict::PinOutside, "pins 0 to 63"),
    (|s| s.line.armed = false, Verdict::NotArmed, "no irqfd"),
    (
        |s| s.way_back = Some(WayBack { by: Unmask::Kernel, due: true }),
        Verdict::UnmaskNotArmed,
        "the EOI is still in eventfd 6: VFIO has no unmask eventfd armed",
    ),
    (
        |s| s.way_back = Some(WayBack { by: Unmask::Loop, due: true }),
        Verdict::EoiUnseen,
        "the event loop has not looked",
    ),
    (|s| s.gic.enabled = Some(false), Verdict::GicOff, "distributor"),
    (
        |s| interrupt(s).level = Some(false),
        Verdict::ConfiguredAsEdge,
        "INTID 36 is a level interrupt, and the guest has configured it as edge",
    ),
    (|s| interrupt(s).enabled = false, Verdict::SpiDisabled, "INTID 36 is disabled by the guest"),
    (|s| s.vcpus_on = vec![true, false], Verdict::VcpuOff, "vCPU 1"),
    (|s| interrupt(s).active = true, Verdict::NotEnded, "not ended it"),
    (|s| interrupt(s).pending = true, Verdict::NotTaken, "has not taken it"),
    (|s| s.line.fired = Some(0), Verdict::NotFired, "has not fired"),
    (|_| (), Verdict::Fine, "has fired 5 times, says the host's /proc/interrupts"),
];

fn check(whole: fn() -> Situation, table: &[(Break, Verdict, &str)]) {
    for (broken, verdict, words) in table {
        let mut situation = whole();
        broken(&mut situation);
        let explanation = explain(&situation);
        assert_eq!(explanation.verdict, *verdict, "{}", text(&explanation));
        let said = &explanation.steps.last().unwrap().found;
        assert!(said.contains(words), "{words:?} is not in {said:?}");
        let wrong = explanation.steps.iter().filter(|step| !step.ok).count();
        assert_eq!(wrong, usize::from(!matches!(verdict, Verdict::Fine | Verdict::NotFired)), "{said}");
        assert_eq!(explanation.advice.is_some(), *verdict != Verdict::Fine, "{said}");
        let text = text(&explanation);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}

#[test]
fn each_thing_that_can_be_wrong_with_a_vector_is_said() {
    check(vector, VECTOR);
}

#[test]
fn each_thing_that_can_be_wrong_with_a_line_is_said() {
    check(level, LEVEL);
}

/// docs/interrupts.md has each verdict in two tables: what is wrong, and the real guest that shows it.
#[test]
fn each_verdict_is_in_the_book_twice() {
    let book = include_str!("../../../docs/interrupts.md");
    let (walk, shown) = book.split_once("### Each verdict in a real guest").unwrap();
    let mut verdicts: Vec<Verdict> = VECTOR.iter().chain(LEVEL).map(|&(_, verdict, _)| verdict).collect();
    verdicts.push(Verdict::ConfiguredAsLevel);
    for verdict in verdicts {
        let name = format!("`{}`", serde_json::to_value(verdict).unwrap().as_str().unwrap());
        for table in [walk, shown] {
            assert!(table.lines().any(|row| row.starts_with('|') && row.contains(&name)), "{name}");
        }
    }
}

#[test]
fn of_two_things_that_are_wrong_the_first_on_the_way_is_said() {
    for (whole, table) in [(vector as fn() -> Situation, VECTOR), (level as fn() -> Situation, LEVEL)] {
        for pair in table.windows(2) {
            let [(first, verdict, _), (second, ..)] = pair else { continue };
            let mut situation = whole();
            second(&mut situation);
            first(&mut situation);
            assert_eq!(explain(&situation).verdict, *verdict);
        }
    }
}

#[test]
fn a_message_to_any_of_an_itss_addresses_is_the_itss() {
    let mut situation = vector();
    for (address, verdict) in [
        (0x807_ffff, Verdict::NoReceiver),
        (0x808_0000, Verdict::Fine),
        (0x809_ffff, Verdict::Fine),
        (0x80a_0000, Verdict::NoReceiver),
    ] {
        situation.line.route =
            Some(Route::Message { address, data: 3, device_id: 0x10, with_device_id: true });
        assert_eq!(explain(&situation).verdict, verdict, "{address:#x}");
    }
}

#[test]
fn a_message_to_a_v2m_frame_ends_at_an_edge_spi() {
    let mut situation = vector();
    (situation.gic.its, situation.gic.v2m) = (Vec::new(), true);
    situation.translation = None;
    situation.line.route = Some(Route::Pin { pin: 40 });
    let spi = Interrupt { intid: 72, level: Some(false), ..situation.interrupt.unwrap() };
    situation.interrupt = Some(spi);
    assert_eq!(explain(&situation).verdict, Verdict::Fine);
    situation.interrupt = Some(Interrupt { level: Some(true), ..spi });
    assert_eq!(explain(&situation).verdict, Verdict::ConfiguredAsLevel);
}

#[test]
fn what_could_not_be_looked_at_is_said_and_is_not_wrong() {
    let mut situation = vector();
    situation.translation = Some(Translation::Unknown { why: "GICv4 keeps it".into() });
    situation.interrupt = None;
    situation.vcpus_on = Vec::new();
    let explanation = explain(&situation);
    assert_eq!(explanation.verdict, Verdict::Fine);
    assert!(text(&explanation).contains("not looked at: GICv4 keeps it"));
}
