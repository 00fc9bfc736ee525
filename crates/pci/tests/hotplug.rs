// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's hot-plug driver at a slot: the steps of Linux 6.12, drivers/pci/hotplug/pciehp_hpc.c and pciehp_ctrl.c.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::sync::{Arc, Mutex};

use common::*;
use irq_types::Bdf;
use pci::*;

const LINK_CONTROL: u16 = 0x10;
const LINK_STATUS: u16 = 0x12;
const SLOT_CONTROL: u16 = 0x18;
const SLOT_STATUS: u16 = 0x1a;

const BUTTON: u16 = 1;
const PRESENCE_CHANGED: u16 = 8;
const COMMAND_COMPLETED: u16 = 0x10;
const PRESENT: u16 = 0x40;
const LINK_CHANGED: u16 = 0x100;

/// What pcie_enable_notification enables where there is a button: link state, button, interrupt, command completed.
const NOTIFY: u16 = 0x1000 | 0x20 | 0x10 | 1;
const POWER_OFF: u16 = 0x400;
const INDICATOR: u16 = 0x300;
const INDICATOR_ON: u16 = 0x100;
const INDICATOR_BLINK: u16 = 0x200;
const INDICATOR_OFF: u16 = 0x300;
const LINK_ACTIVE: u16 = 0x2000;

struct Slot {
    bus: HostBridge,
    wires: Arc<Wires>,
    port: Bdf,
    express: u16,
    events: Arc<Mutex<Vec<BusEvent>>>,
}

const BEHIND: Bdf = Bdf::from_requester_id(0x100);

impl Slot {
    /// A slot that the guest has numbered, with MSI enabled if `message`, and with `device` in it from the start.
    fn new(message: bool, device: Option<Arc<Device>>) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = events.clone();
        let bus = HostBridge::new(host_config())
            .unwrap()
            .with_observer(move |event| log.lock().unwrap().push(event));
        let (wires, port) = Wires::port(&PortConfig { slot: Some(7), ..PortConfig::default() });
        let at = bdf("0:2.0");
        bus.add_port(at, port).unwrap();
        if let Some(device) = device {
            bus.plug(at, vec![(0, device)]).unwrap();
        }
        assert_eq!(bus.assign(), []);
        let express = bus.capability(at, 0x10);
        if message {
            let msi = bus.capability(at, 5);
            bus.set_word(at, msi + 2, 1);
        }
        Self { bus, wires, port: at, express, events }
    }

    fn with_driver(device: Option<Arc<Device>>) -> Self {
        let slot = Self::new(true, device);
        slot.set_control(0x13ff, slot.control() & !0x103f | NOTIFY);
        slot.acknowledge();
        slot
    }

    fn get(&self, register: u16) -> u16 {
        self.bus.word(self.port, self.express + register)
    }

    fn control(&self) -> u16 {
        self.get(SLOT_CONTROL)
    }

    fn status(&self) -> u16 {
        self.get(SLOT_STATUS)
    }

    fn link_is_up(&self) -> bool {
        self.get(LINK_STATUS) & LINK_ACTIVE != 0
    }

    fn set_control(&self, mask: u16, bits: u16) {
        self.bus.set_word(self.port, self.express + SLOT_CONTROL, self.control() & !mask | bits & mask);
    }

    /// pciehp_isr: reads and clears until there is nothing left.
    fn acknowledge(&self) -> u16 {
        let mut events = 0;
        loop {
            let status = self.status() & (BUTTON | PRESENCE_CHANGED | COMMAND_COMPLETED | LINK_CHANGED);
            if status == 0 {
                self.wires.messages();
                return events;
            }
            events |= status;
            self.bus.set_word(self.port, self.express + SLOT_STATUS, status);
        }
    }

    /// What the interrupt that has arrived is for.
    fn interrupted_by(&self) -> u16 {
        assert_eq!(self.wires.messages(), 1, "one message");
        self.acknowledge()
    }

    /// pcie_write_cmd: writes, and waits for the command to complete.
    fn command(&self, mask: u16, bits: u16) -> u16 {
        self.set_control(mask, bits);
        let events = self.interrupted_by();
        assert_ne!(events & COMMAND_COMPLETED, 0);
        events & !COMMAND_COMPLETED
    }

    /// board_added
    fn power_on(&self) {
        assert_eq!(self.command(POWER_OFF, 0), LINK_CHANGED);
        self.bus.set_word(self.port, self.express + LINK_CONTROL, 0);
        self.command(INDICATOR, INDICATOR_BLINK);
        assert!(self.link_is_up());
        assert_ne!(self.get(LINK_STATUS) & 0x3f0, 0, "negotiated width");
        assert_eq!(self.bus.word(BEHIND, 0), 0x1af4);
        self.command(INDICATOR, INDICATOR_ON);
    }

    /// How the guest has turned the power on and off since the last look.
    fn powered(&self) -> Vec<bool> {
        let mut events = self.events.lock().unwrap();
        let power = events.extract_if(.., |event| matches!(event, BusEvent::SlotPower { .. }));
        power
            .map(|event| match event {
                BusEvent::SlotPower { port, on } if port == self.port => on,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn removed(&self) -> usize {
        let mut events = self.events.lock().unwrap();
        let removed = events.iter().filter(|event| matches!(event, BusEvent::Removed { .. })).count();
        events.clear();
        removed
    }
}

fn device() -> Arc<Device> {
    Device::new(&[(0, BarKind::Memory32 { prefetchable: false }, 0x1000)])
}

#[test]
fn the_slot_says_what_it_has() {
    let slot = Slot::new(false, None);
    let capabilities = slot.bus.dword(slot.port, slot.express + 0x14);
    // Button, power controller, both indicators, hot-plug; slot 7. No surprise, latch or interlock; commands complete with an event.
    assert_eq!(capabilities, 0x5b | 7 << 19);
    assert_eq!(slot.get(2), 0x0142, "version 2, root port, slot implemented");
    assert_ne!(slot.bus.dword(slot.port, slot.express + 0xc) & 1 << 20, 0, "link active reporting");
    assert_eq!((slot.control() & 0x7c0, slot.status()), (POWER_OFF | INDICATOR_OFF | 0xc0, 0));
    assert!(!slot.link_is_up());
    let full = Slot::new(false, Some(device()));
    assert_eq!((full.control() & 0x7c0, full.status()), (INDICATOR_ON | 0xc0, PRESENT));
    assert!(full.link_is_up());
    assert_eq!(full.wires.messages(), 0, "what was there from the start is no news");
}

#[test]
fn a_device_that_is_plugged_in_is_found_powered_on_and_released_again() {
    let slot = Slot::with_driver(None);
    for round in 0..100 {
        let device = device();
        slot.bus.plug(slot.port, vec![(0, device.clone())]).unwrap();
        assert_eq!(slot.interrupted_by(), BUTTON | PRESENCE_CHANGED, "round {round}");
        assert_eq!((slot.status() & PRESENT, slot.link_is_up()), (PRESENT, false));
        assert_eq!(slot.bus.word(BEHIND, 0), 0xffff, "without power");
        slot.power_on();
        assert_eq!(device.take(), [Seen::Bdf(BEHIND)]);
        slot.bus.set_dword(BEHIND, 0x10, slot.bus.dword(slot.port, 0x20) << 16);
        slot.bus.set_word(BEHIND, 4, 2);
        assert!(matches!(device.take()[..], [Seen::Placed(_)]));

        slot.bus.request_removal(slot.port).unwrap();
        assert_eq!(slot.bus.request_removal(slot.port), Err(BusError::Busy(slot.port)));
        assert_eq!(slot.interrupted_by(), BUTTON);
        slot.command(INDICATOR, INDICATOR_BLINK);
        assert_eq!(slot.bus.request_removal(slot.port), Err(BusError::Busy(slot.port)));
        // Five seconds later: the driver is gone.
        assert_eq!(slot.command(POWER_OFF, POWER_OFF), LINK_CHANGED);
        assert_eq!(device.take(), [Seen::Reset, Seen::Placed(vec![])]);
        assert_eq!((slot.removed(), slot.bus.word(BEHIND, 0)), (0, 0xffff));
        // And one more.
        assert_eq!(slot.command(INDICATOR, INDICATOR_OFF), PRESENCE_CHANGED);
        assert_eq!((slot.removed(), slot.status()), (1, 0));
        assert_eq!(Arc::strong_count(&device), 1, "nobody holds on to it");
    }
}

#[test]
fn a_guest_that_cycles_the_power_keeps_its_device() {
    let device = device();
    let slot = Slot::with_driver(Some(device.clone()));
    device.take();
    slot.command(POWER_OFF | INDICATOR, POWER_OFF | INDICATOR_OFF);
    assert_eq!(device.take(), [Seen::Reset]);
    assert_eq!((slot.status() & PRESENT, slot.powered(), slot.removed()), (PRESENT, vec![false], 0));
    slot.power_on();
    assert_eq!(slot.powered(), [true]);
    // Asked for while it is off anyway: there is nobody to wait for.
    slot.command(POWER_OFF | INDICATOR, POWER_OFF | INDICATOR_OFF);
    slot.bus.request_removal(slot.port).unwrap();
    assert_eq!((slot.status() & PRESENT, slot.removed()), (0, 1));
}

#[test]
fn a_device_does_not_leave_before_both_power_and_indicator_are_off() {
    for (first, second) in [(POWER_OFF, INDICATOR_OFF), (INDICATOR_OFF, POWER_OFF)] {
        let slot = Slot::with_driver(Some(device()));
        slot.bus.request_removal(slot.port).unwrap();
        slot.acknowledge();
        slot.command(first, first);
        assert_eq!((slot.status() & PRESENT, slot.removed()), (PRESENT, 0));
        slot.command(second, second);
        assert_eq!((slot.status() & PRESENT, slot.removed()), (0, 1));
    }
}

#[test]
fn a_device_that_is_torn_out_is_missed_at_once() {
    let device = device();
    let slot = Slot::with_driver(Some(device.clone()));
    slot.bus.set_word(BEHIND, 4, 2);
    let functions = slot.bus.remove(slot.port).unwrap();
    assert_eq!(functions.len(), 1);
    assert_eq!(slot.interrupted_by(), PRESENCE_CHANGED | LINK_CHANGED);
    assert_eq!((slot.bus.word(BEHIND, 0), slot.link_is_up(), slot.status()), (0xffff, false, 0));
    assert_eq!(device.take().last(), Some(&Seen::Placed(vec![])));
    assert_eq!(slot.bus.remove(slot.port).map(drop), Err(BusError::Empty(slot.port)));
    assert_eq!(slot.bus.request_removal(slot.port), Err(BusError::Empty(slot.port)));
    // Another one in a slot that still has power: the link comes up by itself.
    let plug = |functions: Vec<Arc<dyn PciFunction>>| {
        slot.bus.plug(slot.port, functions.into_iter().map(|function| (0, function)).collect()).unwrap();
    };
    plug(functions);
    assert_eq!(slot.interrupted_by(), BUTTON | PRESENCE_CHANGED | LINK_CHANGED);
    assert_eq!(slot.bus.word(BEHIND, 0), 0x1af4);
    // That the first one of two was asked for does not take the second one out.
    slot.bus.request_removal(slot.port).unwrap();
    let functions = slot.bus.remove(slot.port).unwrap();
    plug(functions);
    slot.acknowledge();
    slot.command(POWER_OFF | INDICATOR, POWER_OFF | INDICATOR_OFF);
    assert_eq!((slot.status() & PRESENT, slot.removed()), (PRESENT, 0));
}

#[test]
fn a_message_is_sent_when_a_reason_comes_and_not_again_while_there_is_one() {
    let slot = Slot::with_driver(None);
    slot.set_control(0, 0);
    assert_eq!((slot.status(), slot.wires.messages()), (COMMAND_COMPLETED, 1));
    slot.set_control(0, 0);
    slot.bus.plug(slot.port, vec![(0, device())]).unwrap();
    assert_eq!(slot.wires.messages(), 0, "software has not cleared all bits");
    slot.bus.set_word(slot.port, slot.express + SLOT_STATUS, COMMAND_COMPLETED);
    assert_eq!(slot.wires.messages(), 0, "nor now");
    // The button's event is disabled and enabled again: a reason comes.
    slot.set_control(0x11, 0);
    assert_eq!(slot.wires.messages(), 0);
    slot.set_control(0x11, 1);
    assert_eq!(slot.wires.messages(), 1);
}

/// Section 6.7.3.4.
#[test]
fn each_event_interrupts_where_it_and_the_interrupt_are_enabled() {
    const INTERRUPT: u16 = 0x20;
    const ALL: u16 = 0x1000 | 0x10 | 8 | 1;
    type Act = fn(&Slot);
    let acts: [(&str, u16, u16, bool, Act); 4] = [
        ("button", 1, BUTTON, true, |slot| slot.bus.request_removal(slot.port).unwrap()),
        ("presence", 8, PRESENCE_CHANGED, false, |slot| drop(slot.bus.remove(slot.port).unwrap())),
        ("command", 0x10, COMMAND_COMPLETED, true, |slot| slot.set_control(0, 0)),
        ("link", 0x1000, LINK_CHANGED, true, |slot| {
            slot.bus.set_word(slot.port, slot.express + LINK_CONTROL, 0x10);
        }),
    ];
    for (what, enable, event, power, act) in acts {
        for (control, messages) in [
            (enable | INTERRUPT, 1),
            (ALL | INTERRUPT, 1),
            (ALL & !enable | INTERRUPT, 0),
            (INTERRUPT, 0),
            (enable, 0),
            (ALL, 0),
        ] {
            let slot = Slot::new(true, Some(device()));
            slot.set_control(0x1000 | 0x3f | POWER_OFF, control | if power { 0 } else { POWER_OFF });
            slot.acknowledge();
            act(&slot);
            let told = slot.wires.messages();
            assert_eq!((slot.status() & !PRESENT, told), (event, messages), "{what}: {control:#x}");
        }
    }
}

#[test]
fn without_messages_the_line_is_high_while_there_is_a_reason() {
    let slot = Slot::new(false, None);
    slot.set_control(0x13ff, NOTIFY);
    assert!(slot.wires.line(), "command completed");
    let status = |slot: &Slot| slot.bus.word(slot.port, 6) & 8;
    assert_eq!(status(&slot), 8);
    slot.bus.set_word(slot.port, 4, 0x400);
    assert!(!slot.wires.line(), "interrupt disable");
    assert_eq!(status(&slot), 8, "the status bit does not mind");
    slot.bus.set_word(slot.port, 4, 0);
    assert!(slot.wires.line());
    slot.acknowledge();
    assert_eq!((slot.wires.line(), status(&slot)), (false, 0));
    slot.bus.plug(slot.port, vec![(0, device())]).unwrap();
    assert!(slot.wires.line());
    // Messages take over.
    let msi = slot.bus.capability(slot.port, 5);
    slot.bus.set_word(slot.port, msi + 2, 1);
    assert_eq!((slot.wires.line(), slot.wires.messages()), (false, 1));
}

#[test]
fn a_disabled_link_is_down() {
    let slot = Slot::with_driver(Some(device()));
    slot.bus.set_word(slot.port, slot.express + LINK_CONTROL, 0x10);
    assert_eq!((slot.interrupted_by(), slot.bus.word(BEHIND, 0)), (LINK_CHANGED, 0xffff));
    slot.bus.set_word(slot.port, slot.express + LINK_CONTROL, 0);
    assert_eq!((slot.interrupted_by(), slot.bus.word(BEHIND, 0)), (LINK_CHANGED, 0x1af4));
}

#[test]
fn a_reset_of_the_machine_leaves_the_device_in_its_slot() {
    let device = device();
    let slot = Slot::with_driver(Some(device.clone()));
    device.take();
    slot.bus.request_removal(slot.port).unwrap();
    slot.bus.reset();
    assert_eq!(device.take(), [Seen::Reset]);
    assert_eq!((slot.control() & 0x7c0, slot.status()), (INDICATOR_ON | 0xc0, PRESENT));
    assert!(slot.link_is_up());
    assert_eq!(slot.bus.dword(slot.port, 0x18), 0, "bus numbers are gone");
    slot.set_control(POWER_OFF | INDICATOR, POWER_OFF | INDICATOR_OFF);
    assert_eq!(slot.removed(), 0, "the request is, too");
    // An empty slot is empty, and what it had to say is gone.
    let slot = Slot::new(false, None);
    slot.set_control(0x13ff, NOTIFY);
    assert!(slot.wires.line());
    slot.bus.reset();
    assert_eq!((slot.control() & 0x17ff, slot.status()), (POWER_OFF | INDICATOR_OFF | 0xc0, 0));
    assert!(!slot.link_is_up() && !slot.wires.line());
}

#[test]
fn an_error_of_a_device_interrupts_if_the_guest_wants_to_know() {
    let slot = Slot::with_driver(None);
    let (wires, port) = Wires::port(&PortConfig::default());
    let at = bdf("0:3.0");
    slot.bus.add_port(at, port.clone()).unwrap();
    slot.bus.set_word(at, slot.bus.capability(at, 5) + 2, 1);
    assert_eq!(slot.bus.dword(at, 0x100), 0x1382_0001, "AER version 2, then ACS");
    let (command, status, source) = (0x12c, 0x130, 0x134);
    let function = bdf("2:0.1");
    port.report_error(function, ErrorSeverity::NonFatal);
    assert_eq!(wires.messages(), 0);
    assert_eq!((slot.bus.dword(at, status), slot.bus.dword(at, source)), (0x24, 0x0201_0000));
    slot.bus.set_dword(at, command, 7);
    assert_eq!(wires.messages(), 1);
    port.report_error(bdf("2:0.0"), ErrorSeverity::Fatal);
    assert_eq!(
        (slot.bus.dword(at, status), slot.bus.dword(at, source)),
        (0x6c, 0x0201_0000),
        "the first one's"
    );
    slot.bus.set_dword(at, status, 0x7f);
    port.report_error(bdf("2:0.0"), ErrorSeverity::Fatal);
    assert_eq!((slot.bus.dword(at, status), slot.bus.dword(at, source)), (0x54, 0x0200_0000));
    port.report_error(bdf("2:0.3"), ErrorSeverity::Correctable);
    assert_eq!((slot.bus.dword(at, status), slot.bus.dword(at, source)), (0x55, 0x0200_0203));
    assert_eq!(wires.messages(), 1);
    // Each severity has its enable.
    for (severity, enable) in
        [(ErrorSeverity::Correctable, 1), (ErrorSeverity::NonFatal, 2), (ErrorSeverity::Fatal, 4)]
    {
        for enabled in 0..8 {
            slot.bus.set_dword(at, status, 0x7f);
            slot.bus.set_dword(at, command, enabled);
            wires.messages();
            port.report_error(function, severity);
            assert_eq!(wires.messages(), u32::from(enabled & enable != 0), "{severity:?}, {enabled}");
        }
    }
}
