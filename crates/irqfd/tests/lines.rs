// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Edge lines, wires that are driven by calls, messages without routes, and doorbells: what each tells, and what it leaves behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::fd::AsFd;
use std::sync::Arc;

use common::{DISK, NIC, Rig, costs, interrupt, message};
use irq_types::{Ppi, Spi, TriggerMode};
use irqchip::fake::{Call, Fault};
use irqchip::{Errno, IoAddress, MsiDelivery};
use irqfd::{EdgeTrigger, Error, InjectedLine, IoEvent, LevelLine, MsiSender};

#[test]
fn an_edge_trigger_is_wired_to_lines_only_and_only_once() {
    let rig = Rig::arm();
    let (trigger, _) = rig.edge(6);
    let gsi = trigger.state().unwrap().gsi.unwrap();
    let second = Arc::new(rig.wiring.router().claim_spi(Spi::new(7).unwrap()).unwrap());
    assert_eq!(trigger.wire(&rig.wiring, &second), Err(Error::AlreadyWired { gsi }));
    let msi = Arc::new(rig.wiring.router().add_msi(message(0), DISK).unwrap());
    let free = EdgeTrigger::new().unwrap();
    assert_eq!(
        free.wire(&rig.wiring, &msi),
        Err(Error::NotALine { gsi: msi.gsi(), mode: TriggerMode::Edge })
    );
    assert_eq!(rig.live().irqfds, 1);
    free.wire(&rig.wiring, &second).unwrap();
    assert_eq!(rig.live().irqfds, 2);
}

#[test]
fn an_edge_trigger_says_what_waits_until_it_is_wired() {
    let rig = Rig::arm();
    let (spi, trigger) = (Spi::new(6).unwrap(), EdgeTrigger::new().unwrap());
    rig.vm.guest().configure_spi(spi, EdgeTrigger::MODE).unwrap();
    let state = || {
        let state = trigger.state().unwrap();
        (state.gsi.is_some(), state.waiting, state.signals)
    };
    assert_eq!(state(), (false, false, 0));
    trigger.line().signal().unwrap();
    trigger.line().signal().unwrap();
    assert_eq!(state(), (false, true, 2));
    let gsi = Arc::new(rig.wiring.router().claim_spi(spi).unwrap());
    trigger.wire(&rig.wiring, &gsi).unwrap();
    assert_eq!(state(), (true, false, 2));
    assert_eq!(rig.vm.guest().take_all(9), [interrupt(spi)]);
    // What the kernel refuses to disarm is wired still.
    rig.vm.inject(Fault::next(Call::DeassignIrqfd, Errno::EINVAL));
    assert!(matches!(trigger.unwire(), Err(Error::Kernel(_))));
    trigger.line().signal().unwrap();
    assert_eq!(state(), (true, false, 3));
    assert_eq!(rig.vm.guest().take_all(9), [interrupt(spi)]);
    trigger.unwire().unwrap();
    assert_eq!(state(), (false, false, 3));
    trigger.line().signal().unwrap();
    assert_eq!(state(), (false, true, 4));
    assert_eq!(rig.vm.guest().take_all(9), []);
}

#[test]
fn a_wire_costs_a_call_for_each_change_and_none_else() {
    let rig = Rig::arm();
    let spi = Spi::new(6).unwrap();
    let line = InjectedLine::spi(rig.vm.clone(), spi);
    let calls = || {
        let count = rig.vm.count(Call::SetSpi);
        rig.vm.forget_calls();
        count
    };
    rig.vm.guest().configure_spi(spi, TriggerMode::Level).unwrap();
    line.deassert().unwrap();
    assert_eq!(calls(), 0, "it is low");
    for _ in 0..2 {
        line.assert().unwrap();
    }
    assert_eq!((calls(), rig.vm.line_is_high(spi)), (1, true));
    // What was refused is not believed.
    rig.vm.inject(Fault::next(Call::SetSpi, Errno::ENOMEM));
    line.deassert().unwrap_err();
    assert!(rig.vm.line_is_high(spi));
    line.deassert().unwrap();
    assert!(!rig.vm.line_is_high(spi));
    calls();
    drop(line);
    assert_eq!(calls(), 0, "nothing to lower");
}

#[test]
fn a_wire_that_is_dropped_falls_even_if_the_kernel_refuses_once() {
    let rig = Rig::arm();
    let spi = Spi::new(6).unwrap();
    rig.vm.guest().configure_spi(spi, TriggerMode::Level).unwrap();
    let line = InjectedLine::spi(rig.vm.clone(), spi);
    line.assert().unwrap();
    rig.vm.inject(Fault::next(Call::SetSpi, Errno::ENOMEM));
    drop(line);
    assert!(!rig.vm.line_is_high(spi));
    // A private one is its vCPU's.
    let line = InjectedLine::ppi(rig.vm.clone(), 0, Ppi::new(7).unwrap());
    line.assert().unwrap();
    drop(line);
    assert_eq!(rig.vm.count(Call::SetPpi), 2);
}

#[test]
fn a_message_to_a_v2m_frame_is_a_pulse() {
    let rig = Rig::arm_v2m();
    let spi = Spi::new(70).unwrap();
    rig.vm.guest().configure_spi(spi, TriggerMode::Edge).unwrap();
    let sender = MsiSender::new(rig.vm.clone(), rig.vm.clone(), rig.wiring.router().clone(), NIC);
    // The frame's messages are INTIDs.
    for _ in 0..2 {
        assert_eq!(sender.send(message(32 + 70)), Ok(MsiDelivery::Delivered));
        assert_eq!(rig.vm.guest().take_all(9), [interrupt(spi)]);
    }
    assert_eq!((rig.vm.count(Call::SetSpi), rig.vm.count(Call::SignalMsi)), (4, 0));
    // The wire is left low: the guest may make it a level one.
    rig.vm.guest().configure_spi(spi, TriggerMode::Level).unwrap();
    assert_eq!(sender.send(message(32 + 70)), Ok(MsiDelivery::Delivered));
    assert!(!rig.vm.line_is_high(spi));
}

#[test]
fn a_doorbell_gives_its_address_back_even_if_the_kernel_refuses_once() {
    let rig = Rig::arm();
    let register = IoAddress::Mmio(0x0a00_0000);
    let doorbell = IoEvent::new(rig.vm.clone(), register, 4).unwrap();
    assert!(rig.vm.guest().write(register, 0, 4));
    rig.vm.inject(Fault::next(Call::DeassignIoevent, Errno::ENOMEM));
    drop(doorbell);
    assert!(!rig.vm.guest().write(register, 0, 4));
    assert_eq!(rig.live().ioevents, 0);
    // What could never ring is not asked of the kernel.
    rig.costs();
    let refused = IoEvent::with_datamatch(rig.vm.clone(), register, 0, 1).unwrap_err();
    assert!(matches!(refused, Error::IoeventSpec { .. }), "{refused}");
    assert_eq!(rig.costs(), costs(0, 0, 0));
}

#[test]
fn eventfds_are_closed_on_exec() {
    let (edge, level) = (EdgeTrigger::new().unwrap(), irqfd::LevelTrigger::new().unwrap());
    let level = level.fds();
    for fd in [edge.eventfd(), level.trigger.as_fd(), level.resample.as_fd()] {
        assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
}
