// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Masked is not lost: what a vector does while it is masked, when it is unmasked, and when its message changes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{DISK, NIC, Rig, costs, message};
use irqchip::fake::{Call, signal};
use irqfd::{Error, InterruptVector, MsiVector, Obstacle, VectorGroup};

/// A group of one programmed, unmasked vector, and the vector.
fn one(rig: &Rig) -> (VectorGroup, InterruptVector) {
    let group = rig.group(NIC, 1);
    group.program(0, message(0)).unwrap();
    group.unmask(0).unwrap();
    let vector = group.vector(0).unwrap();
    (group, vector)
}

/// Who signals: the device in this process, or somebody who holds the eventfd.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Signaller {
    Here,
    Elsewhere,
}

impl Signaller {
    const BOTH: [Self; 2] = [Self::Here, Self::Elsewhere];

    fn signal(self, rig: &Rig, vector: &InterruptVector) {
        match self {
            Self::Here => vector.trigger().unwrap(),
            Self::Elsewhere => signal(vector.eventfd().unwrap()).unwrap(),
        }
        rig.vm.process();
    }
}

#[test]
fn an_unmasked_vector_delivers_each_signal() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let (_group, vector) = one(&rig);
        for n in 1..=3 {
            who.signal(&rig, &vector);
            assert_eq!(rig.raised(NIC, 0), n, "{who:?}");
            assert!(!vector.is_pending());
        }
    }
}

#[test]
fn signals_while_masked_deliver_nothing_set_the_pending_bit_and_arrive_once_on_unmask() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let (group, vector) = one(&rig);
        who.signal(&rig, &vector);
        group.mask(0).unwrap();
        for _ in 0..17 {
            who.signal(&rig, &vector);
        }
        assert_eq!(rig.raised(NIC, 0), 1, "{who:?}: nothing while masked");
        assert!(vector.is_pending());
        assert_eq!(group.pending_word(0).unwrap(), 1);
        group.unmask(0).unwrap();
        assert_eq!(rig.raised(NIC, 0), 2, "{who:?}: once on unmask");
        assert!(!vector.is_pending());
        assert_eq!(group.pending_word(0).unwrap(), 0);
        group.mask(0).unwrap();
        group.unmask(0).unwrap();
        assert_eq!(rig.raised(NIC, 0), 2, "{who:?}: and never again");
        who.signal(&rig, &vector);
        assert_eq!(rig.raised(NIC, 0), 3, "{who:?}");
    }
}

#[test]
fn signals_before_the_guest_has_programmed_anything_arrive_once_when_it_has() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let group = rig.group(NIC, 1);
        let vector = group.vector(0).unwrap();
        who.signal(&rig, &vector);
        who.signal(&rig, &vector);
        assert!(vector.is_pending(), "{who:?}");
        group.unmask(0).unwrap();
        assert_eq!(group.state(0).unwrap().obstacle, Some(Obstacle::NotProgrammed));
        assert_eq!(rig.costs(), costs(0, 0, 0), "without a message there is nothing to tell the kernel");
        group.program(0, message(0)).unwrap();
        assert_eq!(rig.raised(NIC, 0), 1, "{who:?}");
        assert_eq!(group.state(0).unwrap().obstacle, None);
    }
}

#[test]
fn masking_keeps_the_route_and_unmasking_costs_no_commit() {
    let rig = Rig::arm();
    let (group, _vector) = one(&rig);
    let route = group.state(0).unwrap().gsi;
    rig.costs();
    for _ in 0..10 {
        group.mask(0).unwrap();
        assert_eq!(group.state(0).unwrap().gsi, route);
        group.unmask(0).unwrap();
    }
    assert_eq!(rig.costs(), costs(0, 0, 0), "nobody else has the eventfd: the trigger is parked here");
    let shared = group.vector(0).unwrap();
    shared.eventfd().unwrap();
    for _ in 0..10 {
        group.mask(0).unwrap();
        assert!(!group.state(0).unwrap().armed);
        group.unmask(0).unwrap();
    }
    assert_eq!(rig.costs(), costs(0, 10, 10), "somebody else has it: disarmed and armed, without a commit");
}

#[test]
fn masking_one_of_many_unmasked_vectors_silences_it_and_no_other() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let group = rig.group(NIC, 4);
        for n in 0..4 {
            group.program(n as usize, message(n)).unwrap();
            group.unmask(n as usize).unwrap();
        }
        group.mask(2).unwrap();
        for n in 0..4 {
            who.signal(&rig, &group.vector(n).unwrap());
        }
        let raised: Vec<_> = (0..4).map(|n| rig.raised(NIC, n)).collect();
        assert_eq!(raised, [1, 1, 0, 1], "{who:?}");
        assert_eq!(group.pending_word(0).unwrap(), 0b0100);
    }
}

#[test]
fn a_new_message_for_an_unmasked_vector_takes_effect_at_once_and_in_order() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let (group, vector) = one(&rig);
        who.signal(&rig, &vector);
        rig.vm.forget_calls();
        group.program(0, message(5)).unwrap();
        let order: Vec<_> = rig.vm.calls().into_iter().map(|logged| logged.call).collect();
        assert_eq!(order, [Call::DeassignIrqfd, Call::SetRoutes, Call::AssignIrqfd]);
        who.signal(&rig, &vector);
        assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 5)), (1, 1), "{who:?}");
        rig.vm.forget_calls();
        group.program(0, message(5)).unwrap();
        assert_eq!(rig.costs(), costs(0, 0, 0), "the same message again");
    }
}

#[test]
fn a_message_that_is_taken_back_while_masked_costs_no_commit() {
    let rig = Rig::arm();
    let (group, vector) = one(&rig);
    group.mask(0).unwrap();
    rig.costs();
    group.program(0, message(5)).unwrap();
    group.program(0, message(0)).unwrap();
    group.unmask(0).unwrap();
    assert_eq!(rig.costs(), costs(0, 0, 0));
    vector.trigger().unwrap();
    rig.vm.process();
    assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 5)), (1, 0));
}

#[test]
fn what_was_signalled_while_masked_arrives_with_the_new_message() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let (group, vector) = one(&rig);
        group.mask(0).unwrap();
        who.signal(&rig, &vector);
        who.signal(&rig, &vector);
        group.program(0, message(6)).unwrap();
        who.signal(&rig, &vector);
        assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 6)), (0, 0), "{who:?}");
        assert!(vector.is_pending());
        group.unmask(0).unwrap();
        assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 6)), (0, 1), "{who:?}");
    }
}

#[test]
fn the_function_mask_silences_all_and_leaves_the_vectors_own_masks_alone() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let group = rig.group(NIC, 3);
        for n in 0..3 {
            group.program(n as usize, message(n)).unwrap();
        }
        group.unmask(0).unwrap();
        group.unmask(1).unwrap();
        group.set_function_mask(true).unwrap();
        for n in 0..3 {
            who.signal(&rig, &group.vector(n).unwrap());
        }
        assert_eq!(rig.raised_in_all(NIC, 3), 0, "{who:?}");
        assert_eq!(group.pending_word(0).unwrap(), 0b111);
        assert_eq!(group.state(0).unwrap().obstacle, Some(Obstacle::FunctionMasked));
        group.set_function_mask(false).unwrap();
        let raised: Vec<_> = (0..3).map(|n| rig.raised(NIC, n)).collect();
        assert_eq!(raised, [1, 1, 0], "{who:?}");
        assert_eq!(group.pending_word(0).unwrap(), 0b100);
        assert_eq!(group.state(2).unwrap().obstacle, Some(Obstacle::Masked));
    }
}

#[test]
fn disabling_gives_everything_back_and_keeps_what_the_guest_has_written() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let empty = rig.live();
        let group = rig.group(NIC, 2);
        for n in 0..2 {
            group.program(n as usize, message(n)).unwrap();
            group.unmask(n as usize).unwrap();
            let _ = group.vector(n as usize).unwrap().eventfd().unwrap();
        }
        group.set_enabled(false).unwrap();
        assert_eq!(rig.live(), empty);
        assert_eq!(group.state(0).unwrap().gsi, None);
        assert_eq!(group.state(0).unwrap().obstacle, Some(Obstacle::Disabled));
        who.signal(&rig, &group.vector(1).unwrap());
        rig.costs();
        group.set_enabled(true).unwrap();
        assert_eq!(rig.costs(), costs(1, 2, 0));
        assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 1)), (0, 1), "{who:?}");
    }
}

#[test]
fn a_message_that_is_written_again_while_disabled_is_routed_again_when_enabled() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let (group, vector) = one(&rig);
        group.set_enabled(false).unwrap();
        group.program(0, message(0)).unwrap();
        group.set_enabled(true).unwrap();
        who.signal(&rig, &vector);
        assert_eq!(rig.raised(NIC, 0), 1, "{who:?}");
    }
}

#[test]
fn sharing_the_eventfd_of_a_masked_vector_takes_what_is_pending_along() {
    let rig = Rig::arm();
    let (group, vector) = one(&rig);
    group.mask(0).unwrap();
    vector.trigger().unwrap();
    vector.trigger().unwrap();
    assert!(group.state(0).unwrap().armed);
    let elsewhere = vector.eventfd().unwrap();
    rig.vm.process();
    assert!(!group.state(0).unwrap().armed, "now only disarming holds signals back");
    assert_eq!(rig.raised(NIC, 0), 0);
    assert!(vector.is_pending());
    signal(elsewhere).unwrap();
    vector.trigger().unwrap();
    rig.vm.process();
    assert_eq!(rig.raised(NIC, 0), 0);
    group.unmask(0).unwrap();
    assert_eq!(rig.raised(NIC, 0), 1);
    vector.trigger().unwrap();
    rig.vm.process();
    assert_eq!(rig.raised(NIC, 0), 2, "this process may still signal it too");
}

#[test]
fn the_eventfd_stays_the_same_for_the_life_of_the_vector() {
    use std::os::fd::AsRawFd;
    let rig = Rig::arm();
    let group = rig.group(NIC, 1);
    let vector = group.vector(0).unwrap();
    assert_eq!(group.state(0).unwrap().eventfd, None, "none is made before it is needed");
    let fd = vector.eventfd().unwrap().as_raw_fd();
    group.program(0, message(0)).unwrap();
    group.unmask(0).unwrap();
    group.program(0, message(1)).unwrap();
    group.mask(0).unwrap();
    group.reset().unwrap();
    group.set_enabled(false).unwrap();
    assert_eq!(vector.eventfd().unwrap().as_raw_fd(), fd);
    assert_eq!(group.state(0).unwrap().eventfd, Some(fd));
}

#[test]
fn pending_can_be_forgotten() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let (group, vector) = one(&rig);
        group.mask(0).unwrap();
        who.signal(&rig, &vector);
        group.clear_pending(0).unwrap();
        assert!(!vector.is_pending());
        group.unmask(0).unwrap();
        assert_eq!(rig.raised(NIC, 0), 0, "{who:?}");
    }
}

#[test]
fn a_reset_device_has_nothing_programmed_and_nothing_pending() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let empty = rig.live();
        let (group, vector) = one(&rig);
        group.mask(0).unwrap();
        who.signal(&rig, &vector);
        group.reset().unwrap();
        assert_eq!(rig.live(), empty);
        assert!(!vector.is_pending());
        let state = group.state(0).unwrap();
        assert_eq!((state.message, state.gsi, state.masked), (None, None, true));
        who.signal(&rig, &vector);
        group.program(0, message(1)).unwrap();
        group.unmask(0).unwrap();
        assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 1)), (0, 1), "{who:?}");
    }
}

#[test]
fn a_reset_device_may_use_all_its_vectors_again() {
    let rig = Rig::arm();
    let group = rig.group(NIC, 2);
    group.set_allowed(1).unwrap();
    group.reset().unwrap();
    group.program(1, message(1)).unwrap();
    group.unmask(1).unwrap();
    assert_eq!(group.state(1).unwrap().obstacle, None);
    group.vector(1).unwrap().trigger().unwrap();
    assert_eq!(rig.raised(NIC, 1), 1);
}

#[test]
fn the_pending_array_has_a_bit_for_each_vector_at_its_place() {
    let rig = Rig::arm();
    let group = rig.group(NIC, 130);
    for n in [0, 1, 63, 64, 127, 129] {
        group.vector(n).unwrap().trigger().unwrap();
    }
    let words: Vec<_> = (0..4).map(|word| group.pending_word(word).unwrap()).collect();
    assert_eq!(words, [1 | 2 | 1 << 63, 1 | 1 << 63, 0b10, 0]);
    assert_eq!(group.pending_word(usize::MAX).unwrap(), 0);
}

#[test]
fn a_vector_that_cannot_be_routed_holds_and_says_why() {
    let rig = Rig::arm_v2m();
    let group = rig.group(NIC, 2);
    group.program(0, message(5)).unwrap();
    let error = group.unmask(0).unwrap_err();
    assert!(matches!(error, Error::Routing(gsi_routing::Error::NoMsiReceiver { .. })), "{error}");
    let vector = group.vector(0).unwrap();
    vector.trigger().unwrap();
    assert!(vector.is_pending());
    let line = group.state(0).unwrap().to_string();
    assert!(line.starts_with("vector 0: holds, since") && line.contains("pending"), "{line}");
    // Another vector's business goes on.
    let spi = irq_types::Spi::new(70).unwrap();
    rig.vm.guest().configure_spi(spi, irq_types::TriggerMode::Edge).unwrap();
    group.program(1, message(spi.intid().get())).unwrap();
    group.unmask(1).unwrap();
    group.vector(1).unwrap().trigger().unwrap();
    assert_eq!(rig.vm.guest().take(), Some(common::interrupt(spi)));
    // The guest corrects its message.
    let other = irq_types::Spi::new(71).unwrap();
    rig.vm.guest().configure_spi(other, irq_types::TriggerMode::Edge).unwrap();
    group.program(0, message(other.intid().get())).unwrap();
    rig.vm.guest().eoi(common::interrupt(spi));
    assert_eq!(rig.vm.guest().take(), Some(common::interrupt(other)));
    assert_eq!(group.state(0).unwrap().obstacle, None);
}

#[test]
fn two_vectors_of_a_gicv2m_guest_may_use_one_spi_in_turn() {
    // Linux frees a vector's SPI and gives it to another device while the first vector is still programmed, only masked.
    let rig = Rig::arm_v2m();
    let spi = irq_types::Spi::new(80).unwrap();
    rig.vm.guest().configure_spi(spi, irq_types::TriggerMode::Edge).unwrap();
    let (old, new) = (rig.group(NIC, 1), rig.group(DISK, 1));
    for group in [&old, &new] {
        group.program(0, message(spi.intid().get())).unwrap();
        group.unmask(0).unwrap();
        group.vector(0).unwrap().trigger().unwrap();
        assert_eq!(rig.vm.guest().take(), Some(common::interrupt(spi)));
        rig.vm.guest().eoi(common::interrupt(spi));
        group.mask(0).unwrap();
    }
}

#[test]
fn no_signal_is_lost_or_invented_while_threads_trigger_and_a_vcpu_masks() {
    for who in Signaller::BOTH {
        let rig = Rig::arm();
        let (group, vector) = one(&rig);
        let (masked, stop, sent) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
        if who == Signaller::Elsewhere {
            vector.eventfd().unwrap();
        }
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        match who {
                            Signaller::Here => vector.trigger().unwrap(),
                            Signaller::Elsewhere => signal(vector.eventfd().unwrap()).unwrap(),
                        }
                        sent.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                    }
                });
            }
            // On a machine with other things to do, all rounds may be over before they have begun.
            while sent.load(Ordering::SeqCst) == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            for round in 0..300 {
                group.mask(0).unwrap();
                masked.store(true, Ordering::SeqCst);
                rig.vm.process();
                let before = rig.raised(NIC, 0);
                if round % 3 == 0 {
                    group.program(0, message(0)).unwrap();
                }
                thread::yield_now();
                assert_eq!(rig.raised(NIC, 0), before, "{who:?}: delivered while masked");
                group.unmask(0).unwrap();
                rig.vm.process();
            }
            stop.store(true, Ordering::SeqCst);
        });
        rig.vm.process();
        let raised = rig.raised(NIC, 0);
        assert!(!vector.is_pending(), "{who:?}");
        assert!(raised >= 1 && raised <= sent.load(Ordering::SeqCst), "{who:?}: {raised}");
        // The last word: one more signal is one more interrupt.
        who.signal(&rig, &vector);
        assert_eq!(rig.raised(NIC, 0), raised + 1, "{who:?}");
    }
}
