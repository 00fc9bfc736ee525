// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each call to the kernel fails, at each of its occurrences in a long life, with each errno that fits it. Afterwards nothing has
//! leaked, and the next operation works.
//!
//! The tests of this binary count the process's descriptors, so they run one at a time.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::{Arc, Mutex, PoisonError};

use common::{DISK, NIC, Rig, interrupt, message, open_descriptors};
use irq_types::{MsiMessage, Ppi, Spi};
use irqchip::fake::{Call, Fault};
use irqchip::{Errno, IoAddress};
use irqfd::{
    EdgeTrigger, Error, InjectedLine, IoEvent, LevelLine, LevelTrigger, MsiSender, MsiVector, Obstacle,
    VectorGroup,
};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What the kernel may answer to a call (Linux 6.12, `virt/kvm/eventfd.c`, `virt/kvm/irqchip.c`, `arch/arm64/kvm/arm.c`).
const ANSWERS: &[(Call, &[Errno])] = &[
    (Call::SetRoutes, &[Errno::ENOMEM, Errno::EINVAL, Errno::E2BIG]),
    (Call::AssignIrqfd, &[Errno::ENOMEM, Errno::EBUSY, Errno::EAGAIN, Errno::EBADF, Errno::EINVAL]),
    (Call::DeassignIrqfd, &[Errno::EBADF, Errno::EINVAL]),
    (Call::AssignIoevent, &[Errno::ENOMEM, Errno::EEXIST, Errno::ENOSPC]),
    (Call::DeassignIoevent, &[Errno::ENOENT, Errno::EBADF]),
    (Call::SignalMsi, &[Errno::EINVAL, Errno::EBUSY]),
    (Call::SetSpi, &[Errno::EINVAL]),
    (Call::SetPpi, &[Errno::EINVAL]),
];

/// A life with a bit of everything. Errors are passed over, as a VMM would that logs them and goes on.
fn life(rig: &Rig) -> u32 {
    let mut failures = 0;
    let mut note = |result: Result<(), Error>| failures += u32::from(result.is_err());
    let vm = || rig.vm.clone();

    // Lines.
    let spi = Spi::new(9).unwrap();
    rig.vm.guest().configure_spi(spi, LevelTrigger::MODE).unwrap();
    let (a, b, edge) =
        (LevelTrigger::new().unwrap(), LevelTrigger::new().unwrap(), EdgeTrigger::new().unwrap());
    a.line().assert().unwrap();
    if let Ok(gsi) = rig.wiring.router().claim_spi(spi).map(Arc::new) {
        note(a.wire(&rig.wiring, &gsi));
        note(b.wire(&rig.wiring, &gsi));
        note(a.unwire());
        note(a.wire(&rig.wiring, &gsi).or_else(|_| a.wire(&rig.wiring, &gsi)));
    }
    if let Ok(gsi) = rig.wiring.router().claim_spi(Spi::new(10).unwrap()) {
        note(edge.wire(&rig.wiring, &Arc::new(gsi)));
    }

    // Vectors: some shared, some not, every kind of change.
    let group = rig.group(NIC, 6);
    note(group.vector(1).unwrap().eventfd().map(|_| ()));
    for n in 0..5u32 {
        note(group.program(n as usize, message(n)));
    }
    for n in 0..4 {
        note(group.unmask(n));
        note(group.vector(n).unwrap().trigger());
    }
    note(group.mask(0));
    note(group.mask(1));
    note(group.vector(0).unwrap().eventfd().map(|_| ()));
    note(group.program(2, message(10)));
    note(group.set_function_mask(true));
    note(group.set_device_id(DISK));
    note(group.set_function_mask(false));
    note(group.unmask(1));
    note(group.resize(8));
    note(group.resize(3));
    note(group.set_enabled(false));
    note(group.set_enabled(true));
    note(group.reset());
    note(group.program(0, message(1)));
    note(group.unmask(0));
    let second = rig.group(DISK, 2);
    note(second.program(0, message(2)));
    note(second.unmask(0));
    drop(group);

    // The rest.
    let doorbell = IoEvent::new(vm(), IoAddress::Mmio(0x1000), 2);
    note(doorbell.as_ref().map(|_| ()).map_err(Clone::clone));
    if let Ok(doorbell) = &doorbell {
        let spec = irqchip::IoeventSpec { address: IoAddress::Mmio(0x2000), length: 4, datamatch: Some(1) };
        note(doorbell.also_at(spec).map(|_| ()));
    }
    let ppi = InjectedLine::ppi(vm(), 0, Ppi::new(7).unwrap());
    note(ppi.assert());
    note(ppi.deassert());
    note(ppi.assert());
    let wire = InjectedLine::spi(vm(), Spi::new(20).unwrap());
    note(wire.assert());
    let sender = MsiSender::new(vm(), vm(), rig.wiring.router().clone(), NIC);
    note(sender.send(message(0)).map(|_| ()));
    failures
}

/// After whatever has happened: everything works, and everything has been given back.
fn check_works(rig: &Rig, context: &str) {
    let (trigger, spi) = rig.level(30);
    trigger.line().assert().unwrap();
    assert_eq!(rig.vm.guest().take(), Some(interrupt(spi)), "{context}");
    trigger.line().deassert().unwrap();
    rig.vm.guest().eoi(interrupt(spi));
    let group = rig.group(NIC, 1);
    group.program(0, message(50)).unwrap();
    group.unmask(0).unwrap();
    let before = rig.raised(NIC, 50);
    group.vector(0).unwrap().trigger().unwrap();
    rig.vm.process();
    assert_eq!(rig.raised(NIC, 50), before + 1, "{context}");
}

/// The guest drops what is on the line, so that the next interrupt is the test's own.
fn quiet(rig: &Rig) {
    let _ = rig.vm.guest().take_all(100);
}

#[test]
fn any_call_may_fail_at_any_time_without_a_leak() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::arm();
    let (live, usage, descriptors) = (rig.live(), rig.wiring.router().usage(), open_descriptors());
    rig.vm.forget_calls();
    assert_eq!(life(&rig), 0, "without faults nothing fails");
    let occurrences: Vec<u64> = ANSWERS.iter().map(|&(call, _)| rig.vm.count(call)).collect();
    let mut tried = 0;
    for (&(call, answers), occurrences) in ANSWERS.iter().zip(occurrences) {
        assert!(occurrences > 0, "the life has no {call:?}");
        for n in 0..occurrences {
            for &errno in answers {
                rig.vm.inject(Fault::next(call, errno).after(n));
                let failures = life(&rig);
                rig.vm.clear_faults();
                tried += 1;
                let context = format!("{call:?} number {n} answered {errno}, {failures} operations failed");
                // Withdrawn routes go with the next commit at the latest.
                rig.wiring.router().flush().unwrap();
                quiet(&rig);
                check_works(&rig, &context);
                rig.wiring.router().flush().unwrap();
                assert_eq!(rig.live(), live, "{context}");
                assert_eq!(rig.wiring.router().usage(), usage, "{context}");
                assert_eq!(open_descriptors(), descriptors, "{context}");
            }
        }
    }
    println!("{tried} faults");
    assert!(tried > 150, "only {tried} faults");
}

#[test]
fn what_cannot_be_disarmed_keeps_its_gsi_from_others() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::arm();
    let group = rig.group(NIC, 1);
    group.program(0, message(0)).unwrap();
    group.unmask(0).unwrap();
    let gsi = group.state(0).unwrap().gsi.unwrap();
    rig.vm.inject(Fault::next(Call::DeassignIrqfd, Errno::EINVAL).persistent());
    drop(group);
    rig.vm.clear_faults();
    // It may still be raised: nobody else gets it, and its route stays as it was.
    let next = rig.group(DISK, 1);
    next.program(0, message(0)).unwrap();
    next.unmask(0).unwrap();
    assert_ne!(next.state(0).unwrap().gsi.unwrap(), gsi);
}

#[test]
fn a_refused_commit_leaves_other_vectors_alone_and_holds_the_one_that_was_asked_for() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::arm();
    let group = rig.group(NIC, 2);
    group.program(0, message(0)).unwrap();
    group.unmask(0).unwrap();
    let (table, usage) = (rig.vm.routes(), rig.wiring.router().usage());
    rig.vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM));
    group.program(1, message(1)).unwrap();
    let error = group.unmask(1).unwrap_err();
    let Error::Routing(gsi_routing::Error::Commit { source, .. }) = &error else { panic!("{error}") };
    assert_eq!(source.errno, Errno::ENOMEM);
    assert_eq!(rig.vm.routes(), table);
    assert_eq!(rig.wiring.router().usage(), usage, "the GSI goes back");
    group.vector(0).unwrap().trigger().unwrap();
    group.vector(1).unwrap().trigger().unwrap();
    rig.vm.process();
    assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 1)), (1, 0));
    let state = group.state(1).unwrap();
    assert!(state.pending && !state.masked, "{state}");
    assert!(state.to_string().contains("ENOMEM"), "{state}");
    // Any call tries again.
    group.mask(0).unwrap();
    rig.vm.process();
    assert_eq!(rig.raised(NIC, 1), 1);
}

#[test]
fn a_message_that_cannot_be_installed_is_not_replaced_by_the_old_one() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::arm();
    let group = rig.group(NIC, 1);
    group.program(0, message(0)).unwrap();
    group.unmask(0).unwrap();
    for call in [Call::DeassignIrqfd, Call::SetRoutes, Call::AssignIrqfd] {
        let old = group.state(0).unwrap().message.unwrap();
        let new = MsiMessage { data: old.data + 1, ..old };
        rig.vm.inject(Fault::next(call, Errno::ENOMEM));
        group.program(0, new).unwrap_err();
        let before = (rig.raised(NIC, old.data), rig.raised(NIC, new.data));
        group.vector(0).unwrap().trigger().unwrap();
        rig.vm.process();
        assert_eq!((rig.raised(NIC, old.data), rig.raised(NIC, new.data)), before, "{call:?}: held");
        group.retry().unwrap();
        rig.vm.process();
        assert_eq!(
            (rig.raised(NIC, old.data), rig.raised(NIC, new.data)),
            (before.0, before.1 + 1),
            "{call:?}"
        );
    }
}

#[test]
fn sharing_the_eventfd_of_a_vector_that_failed_does_not_lead_to_its_old_message() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::arm();
    let group = rig.group(NIC, 1);
    group.program(0, message(0)).unwrap();
    group.unmask(0).unwrap();
    rig.vm.inject(Fault::next(Call::DeassignIrqfd, Errno::EINVAL));
    group.program(0, message(1)).unwrap_err();
    assert!(group.state(0).unwrap().armed, "with the old message");
    let vector = group.vector(0).unwrap();
    irqchip::fake::signal(vector.eventfd().unwrap()).unwrap();
    rig.vm.process();
    assert!(vector.is_pending());
    assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 1)), (0, 0));
    group.retry().unwrap();
    rig.vm.process();
    assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 1)), (0, 1));
}

#[test]
fn a_vector_that_a_failed_resize_has_left_says_so_and_delivers_after_the_next_call() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::arm();
    let group = rig.group(NIC, 2);
    for n in 0..2u32 {
        group.program(n as usize, message(n)).unwrap();
        group.unmask(n as usize).unwrap();
    }
    rig.vm.inject(Fault::next(Call::DeassignIrqfd, Errno::EINVAL));
    let error = group.resize(1).unwrap_err();
    assert_eq!(group.len(), 2, "it is still there");
    assert_eq!(group.state(1).unwrap().obstacle, Some(Obstacle::Failed(error)));
    group.vector(1).unwrap().trigger().unwrap();
    assert!(group.vector(1).unwrap().is_pending());
    group.retry().unwrap();
    rig.vm.process();
    assert_eq!(rig.raised(NIC, 1), 1);
    assert_eq!(group.state(1).unwrap().obstacle, None);
}

#[test]
fn a_reset_that_failed_has_forgotten_what_was_held_and_is_completed_by_the_next_call() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::arm();
    let group = rig.group(NIC, 2);
    let usage = rig.wiring.router().usage();
    for n in 0..2u32 {
        group.program(n as usize, message(n)).unwrap();
        group.unmask(n as usize).unwrap();
    }
    group.mask(1).unwrap();
    group.vector(1).unwrap().trigger().unwrap();
    rig.vm.inject(Fault::next(Call::DeassignIrqfd, Errno::EINVAL).after(1));
    group.reset().unwrap_err();
    assert!(!group.vector(1).unwrap().is_pending());
    assert_eq!(rig.live().irqfds, 1, "the one that was refused");
    group.retry().unwrap();
    assert_eq!((rig.live().irqfds, rig.wiring.router().usage().owned), (0, usage.owned));
    group.program(1, message(3)).unwrap();
    group.unmask(1).unwrap();
    rig.vm.process();
    assert_eq!([1, 3].map(|event| rig.raised(NIC, event)), [0, 0]);
    group.vector(1).unwrap().trigger().unwrap();
    rig.vm.process();
    assert_eq!([1, 3].map(|event| rig.raised(NIC, event)), [0, 1]);
}

#[test]
fn what_cannot_be_disarmed_is_told_to_whoever_masks_or_resets() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::arm();
    let group = rig.group(NIC, 1);
    group.program(0, message(0)).unwrap();
    group.unmask(0).unwrap();
    // Only disarming keeps the signals of others back.
    let vector = group.vector(0).unwrap();
    vector.eventfd().unwrap();
    rig.vm.inject(Fault::next(Call::DeassignIrqfd, Errno::EINVAL).persistent());
    assert!(matches!(group.mask(0), Err(Error::Kernel(_))));
    let reset = group.update(|changes| {
        changes.reset();
        Ok(())
    });
    assert!(matches!(reset, Err(Error::Kernel(_))));
    assert!(matches!(group.retry(), Err(Error::Kernel(_))));
    rig.vm.clear_faults();
    assert_eq!(rig.live().irqfds, 1);
    group.retry().unwrap();
    assert_eq!(rig.live().irqfds, 0);
}

#[test]
fn what_changes_all_vectors_tells_of_the_one_that_cannot_be_routed() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    type Change = fn(&VectorGroup) -> Result<(), Error>;
    let changes: [(Change, Change); 3] = [
        (|group| group.set_function_mask(true), |group| group.set_function_mask(false)),
        (|group| group.set_allowed(0), |group| group.set_allowed(1)),
        (|_| Ok(()), |group| group.set_device_id(DISK)),
    ];
    for (before, change) in changes {
        let rig = Rig::arm();
        let group = rig.group(NIC, 1);
        before(&group).unwrap();
        group.program(0, message(0)).unwrap();
        group.unmask(0).unwrap();
        rig.vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM));
        assert!(matches!(change(&group), Err(Error::Routing(_))));
        group.retry().unwrap();
        assert_eq!(group.state(0).unwrap().obstacle, None);
    }
}

#[test]
fn running_out_of_descriptors_is_an_error_that_passes() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::arm();
    let group = rig.group(NIC, 2);
    for n in 0..2u32 {
        group.program(n as usize, message(n)).unwrap();
    }
    group.unmask(0).unwrap();
    let (live, descriptors) = (rig.live(), open_descriptors());
    let mut hoard = Vec::new();
    while let Ok(event) = irqchip::fake::eventfd() {
        hoard.push(event);
    }
    for error in [
        group.unmask(1).unwrap_err(),
        EdgeTrigger::new().map(|_| ()).unwrap_err(),
        LevelTrigger::new().map(|_| ()).unwrap_err(),
        IoEvent::new(rig.vm.clone(), IoAddress::Mmio(0), 4).map(|_| ()).unwrap_err(),
        group.vector(1).unwrap().eventfd().map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "cannot create an eventfd: Too many open files (EMFILE)");
    }
    group.vector(1).unwrap().trigger().unwrap();
    drop(hoard);
    assert_eq!((rig.live(), open_descriptors()), (live, descriptors));
    group.retry().unwrap();
    rig.vm.process();
    assert_eq!(rig.raised(NIC, 1), 1);
}

#[test]
fn a_group_is_gone_with_all_it_had_even_if_its_last_commit_fails() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::arm();
    let (live, usage, descriptors) = (rig.live(), rig.wiring.router().usage(), open_descriptors());
    let group: VectorGroup = rig.group(NIC, 1);
    group.program(0, message(0)).unwrap();
    group.unmask(0).unwrap();
    rig.vm.inject(Fault::next(Call::SetRoutes, Errno::ENOMEM));
    drop(group);
    assert_eq!((rig.live().irqfds, open_descriptors()), (live.irqfds, descriptors));
    // Anybody's next commit takes the route along.
    rig.wiring.router().flush().unwrap();
    assert_eq!((rig.live(), rig.wiring.router().usage()), (live, usage));
}
