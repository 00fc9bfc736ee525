// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Groups of vectors: what enabling them costs, how GSIs are spent, growing, shrinking, renumbering, unplugging.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{Costs, DISK, NIC, Rig, costs, message, open_descriptors};
use irq_types::{DeviceId, EventId, Lpi};
use irqchip::RouteTarget;
use irqchip::fake::{FakeHost, Interrupt};
use irqfd::{Error, MsiVector, Obstacle, VectorGroup};

const MANY: usize = 2048;

/// Programs all vectors, masked.
fn program_all(group: &VectorGroup) {
    for n in 0..group.len() {
        group.program(n, message(u32::try_from(n).unwrap())).unwrap();
    }
}

#[test]
fn two_thousand_vectors_one_by_one_cost_a_handful_of_commits() {
    let rig = Rig::arm();
    let group = rig.group(NIC, MANY);
    program_all(&group);
    assert_eq!(rig.costs(), costs(0, 0, 0), "programming masked vectors is free");
    for n in 0..MANY {
        group.unmask(n).unwrap();
    }
    let spent = rig.costs();
    println!("2048 vectors, programmed first, unmasked one by one: {spent:?}");
    assert!(spent.commits <= 4 && spent.all <= 2100, "{spent:?}");
    assert_eq!(spent, costs(2, MANY as u64, 0));
}

#[test]
fn two_thousand_vectors_at_once_cost_one_commit() {
    let rig = Rig::arm();
    let group = rig.group(NIC, MANY);
    group.set_function_mask(true).unwrap();
    program_all(&group);
    for n in 0..MANY {
        group.unmask(n).unwrap();
    }
    assert_eq!(rig.costs(), costs(0, 0, 0));
    group.set_function_mask(false).unwrap();
    assert_eq!(rig.costs(), costs(1, MANY as u64, 0));
}

#[test]
fn linux_enables_a_device_with_one_commit() {
    // pci_alloc_irq_vectors masks the function, masks each entry and programs each (an ITS domain activates early); request_irq unmasks.
    let rig = Rig::arm();
    let group = rig.group(NIC, 64);
    group.set_function_mask(true).unwrap();
    for n in 0..64 {
        group.mask(n).unwrap();
    }
    for n in 0..5 {
        group.program(n, message(u32::try_from(n).unwrap())).unwrap();
    }
    group.set_function_mask(false).unwrap();
    for n in 0..5 {
        group.unmask(n).unwrap();
    }
    assert_eq!(rig.costs(), costs(1, 5, 0));
    assert_eq!(rig.wiring.router().usage().owned, 5, "no GSI for vectors that are not used");
}

#[test]
fn any_order_of_programming_and_unmasking_ends_the_same() {
    // (vector, what is done): every order of program and unmask of two vectors, each before its own counterpart or after.
    let orders: [[(usize, bool); 4]; 6] = [
        [(0, true), (0, false), (1, true), (1, false)],
        [(0, true), (1, true), (0, false), (1, false)],
        [(0, false), (1, false), (0, true), (1, true)],
        [(0, false), (0, true), (1, false), (1, true)],
        [(0, true), (1, false), (1, true), (0, false)],
        [(1, false), (0, true), (0, false), (1, true)],
    ];
    for order in orders {
        let rig = Rig::arm();
        let group = rig.group(NIC, 2);
        for (n, program) in order {
            if program {
                group.program(n, message(u32::try_from(n).unwrap())).unwrap();
            } else {
                group.unmask(n).unwrap();
            }
        }
        for n in 0..2 {
            group.vector(n).unwrap().trigger().unwrap();
        }
        assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 1)), (1, 1), "{order:?}");
    }
}

#[test]
fn three_devices_of_2048_vectors_that_use_16_each_fit_one_vm() {
    // Once with a guest that programs what it uses, once with one that programs all it has.
    for programmed in [16, MANY] {
        let rig = Rig::arm();
        let groups: Vec<_> = (0..3).map(|n| rig.group(DeviceId::new(8 + n), MANY)).collect();
        for group in &groups {
            for n in 0..programmed {
                group.program(n, message(u32::try_from(n).unwrap())).unwrap();
            }
        }
        for group in &groups {
            for n in 0..16 {
                group.unmask(n).unwrap();
            }
        }
        assert_eq!(rig.live().irqfds, 48);
        // Lines that were not claimed yet, and a fourth device, still find room.
        rig.edge(1);
        rig.map_events(DISK, 16);
        for n in 0..16 {
            groups[1].vector(n as usize).unwrap().trigger().unwrap();
            rig.vm.process();
            assert_eq!(rig.raised(DISK, n), 1, "{programmed} programmed");
        }
    }
}

#[test]
fn when_gsis_run_out_masked_vectors_give_theirs_up_and_the_last_one_gets_a_clear_error() {
    // Room for 224 lines and eight vectors.
    let rig = Rig::arm_with(&FakeHost { routing_limit: 232, ..FakeHost::arm64_gicv3() });
    let group = rig.group(NIC, 12);
    program_all(&group);
    for n in 0..8 {
        group.unmask(n).unwrap();
    }
    let error = group.unmask(8).unwrap_err();
    assert!(matches!(error, Error::Routing(gsi_routing::Error::Exhausted { .. })), "{error}");
    assert!(matches!(group.state(8).unwrap().obstacle, Some(Obstacle::Failed(_))));
    group.vector(8).unwrap().trigger().unwrap();
    // Masking any vector makes room, for the one that waits as well: what it held arrives.
    group.mask(3).unwrap();
    group.retry().unwrap();
    assert_eq!(rig.raised(NIC, 8), 1);
    group.vector(3).unwrap().trigger().unwrap();
    assert_eq!(group.state(3).unwrap().gsi, None, "it gave its GSI up");
    // … and when it is its turn again, it gets one from the next that is masked, with nothing lost.
    group.mask(5).unwrap();
    group.unmask(3).unwrap();
    assert_eq!(rig.raised(NIC, 3), 1);
    for n in [0, 1, 2, 3, 4, 6, 7, 8] {
        assert_eq!(group.state(n).unwrap().obstacle, None, "vector {n}");
    }
}

#[test]
fn a_budget_is_spent_before_what_is_everybodys() {
    for greedy_first in [true, false] {
        let rig = Rig::arm_with(&FakeHost { routing_limit: 232, ..FakeHost::arm64_gicv3() });
        let budget = rig.wiring.router().reserve_budget(4).unwrap();
        let promised = VectorGroup::with_budget(rig.wiring.clone(), NIC, 4, budget);
        let greedy = rig.group(DISK, 8);
        let served = |group: &VectorGroup| {
            program_all(group);
            (0..group.len()).filter(|&n| group.unmask(n).is_ok()).count()
        };
        let counts = if greedy_first {
            (served(&greedy), served(&promised))
        } else {
            let first = served(&promised);
            (served(&greedy), first)
        };
        assert_eq!(counts, (4, 4), "greedy first: {greedy_first}");
    }
}

/// A host with room for 224 lines and eight vectors.
fn eight() -> Rig {
    Rig::arm_with(&FakeHost { routing_limit: 232, ..FakeHost::arm64_gicv3() })
}

#[test]
fn the_first_unmask_spends_all_of_a_budget_even_if_nothing_else_is_left() {
    let rig = eight();
    let budget = rig.wiring.router().reserve_budget(6).unwrap();
    let _others = rig.wiring.router().allocate_many(2).unwrap();
    let group = VectorGroup::with_budget(rig.wiring.clone(), NIC, 6, budget);
    program_all(&group);
    for n in 0..6 {
        group.unmask(n).unwrap();
    }
    assert_eq!(rig.costs(), costs(1, 6, 0));
}

#[test]
fn vectors_that_are_masked_get_half_of_what_is_promised_to_nobody() {
    for (promised, got) in [(6, 1), (4, 2), (0, 4)] {
        let rig = eight();
        let _budget = rig.wiring.router().reserve_budget(promised).unwrap();
        let group = rig.group(NIC, 8);
        program_all(&group);
        group.unmask(0).unwrap();
        assert_eq!(rig.wiring.router().usage().owned, got, "{promised} are promised");
    }
}

#[test]
fn gsis_that_are_about_to_be_free_count_as_free() {
    let rig = eight();
    let gone: Vec<_> = (0..6).map(|n| rig.wiring.router().add_msi(message(n), DISK).unwrap()).collect();
    drop(gone);
    assert_eq!((rig.wiring.router().usage().free, rig.wiring.router().usage().withdrawn), (2, 6));
    let group = rig.group(NIC, 4);
    program_all(&group);
    group.unmask(0).unwrap();
    rig.costs();
    for n in 1..4 {
        group.unmask(n).unwrap();
    }
    assert_eq!(rig.costs(), costs(0, 3, 0));
}

#[test]
fn bus_renumbering_sends_all_routes_again_with_the_new_device_id() {
    let rig = Rig::arm();
    let group = rig.group(NIC, 4);
    program_all(&group);
    for n in 0..3 {
        group.unmask(n).unwrap();
    }
    group.mask(2).unwrap();
    group.vector(2).unwrap().trigger().unwrap();
    rig.costs();
    group.set_device_id(DISK).unwrap();
    assert_eq!(rig.costs().commits, 1);
    assert_eq!(group.device_id(), DISK);
    let senders: Vec<_> = rig
        .vm
        .routes()
        .into_iter()
        .filter_map(|route| match route.target {
            RouteTarget::Msi { device_id, .. } => Some(device_id),
            RouteTarget::Line(_) => None,
        })
        .collect();
    assert_eq!(senders, [Some(DISK); 4]);
    for n in 0..2 {
        group.vector(n).unwrap().trigger().unwrap();
    }
    group.unmask(2).unwrap();
    assert_eq!((rig.raised_in_all(NIC, 4), rig.raised_in_all(DISK, 4)), (0, 3));
    rig.costs();
    group.set_device_id(DISK).unwrap();
    assert_eq!(rig.costs(), costs(0, 0, 0), "the same number again");
}

#[test]
fn a_message_that_is_written_again_with_the_new_number_is_routed_under_it() {
    let rig = Rig::arm();
    let group = rig.group(NIC, 1);
    group.program(0, message(0)).unwrap();
    group.unmask(0).unwrap();
    group.mask(0).unwrap();
    group
        .update(|changes| {
            changes.set_device_id(DISK);
            changes.program(0, message(0))?;
            changes.unmask(0)
        })
        .unwrap();
    group.vector(0).unwrap().trigger().unwrap();
    assert_eq!((rig.raised(NIC, 0), rig.raised(DISK, 0)), (0, 1));
}

#[test]
fn growing_adds_masked_vectors_and_shrinking_gives_back_what_they_had() {
    let rig = Rig::arm();
    let group = rig.group(NIC, 2);
    group.resize(4).unwrap();
    assert_eq!(group.len(), 4);
    program_all(&group);
    for n in 0..4 {
        group.unmask(n).unwrap();
    }
    let gone = group.vector(3).unwrap();
    let kept = group.vector(1).unwrap();
    assert_eq!((kept.index(), gone.index()), (1, 3));
    rig.costs();
    group.resize(2).unwrap();
    assert_eq!(rig.costs(), costs(1, 0, 2));
    assert_eq!(group.len(), 2);
    assert_eq!(group.unmask(2), Err(Error::NoSuchVector { index: 2, count: 2 }));
    assert!(matches!(group.vector(3), Err(Error::NoSuchVector { index: 3, count: 2 })));
    gone.trigger().unwrap();
    assert_eq!(gone.eventfd().unwrap_err(), Error::Gone);
    kept.trigger().unwrap();
    assert_eq!((rig.raised(NIC, 1), rig.raised(NIC, 3)), (1, 0));
    // The old handle does not come back to life with a new vector of the same number.
    group.resize(4).unwrap();
    assert_eq!(gone.eventfd().unwrap_err(), Error::Gone);
    assert!(!group.vector(3).unwrap().is_pending());
    assert!(!group.is_empty());
    group.resize(0).unwrap();
    assert!(group.is_empty());
}

#[test]
fn a_batch_is_one_commit_whatever_is_in_it() {
    let rig = Rig::arm();
    let group = rig.group(NIC, 8);
    group
        .update(|changes| {
            for n in 0..8 {
                changes.program(n, message(u32::try_from(n).unwrap()))?;
                changes.unmask(n)?;
            }
            changes.mask(7)
        })
        .unwrap();
    assert_eq!(rig.costs(), costs(1, 7, 0));
    group
        .update(|changes| {
            changes.program(0, message(20))?;
            changes.program(1, message(21))?;
            changes.set_device_id(DISK);
            changes.unmask(7)
        })
        .unwrap();
    assert_eq!(rig.costs(), costs(1, 8, 7));
    assert_eq!(group.update(|changes| changes.mask(8)), Err(Error::NoSuchVector { index: 8, count: 8 }));
}

#[test]
fn ten_thousand_plugs_and_unplugs_leave_nothing_behind() {
    let rig = Rig::arm();
    let (live, usage, fds) = (rig.live(), rig.wiring.router().usage(), open_descriptors());
    let mut first = None;
    for cycle in 0..10_000 {
        let group = rig.group(NIC, 4);
        group
            .update(|changes| {
                for n in 0..4 {
                    changes.program(n, message(u32::try_from(n).unwrap()))?;
                    changes.unmask(n)?;
                }
                Ok(())
            })
            .unwrap();
        group.vector(0).unwrap().trigger().unwrap();
        drop(group);
        let spent = rig.costs();
        let first = *first.get_or_insert(spent);
        assert_eq!(spent, first, "cycle {cycle} costs what the first did");
    }
    assert_eq!(first, Some(Costs { commits: 2, arms: 4, disarms: 4, all: 10 }));
    assert_eq!((rig.live(), rig.wiring.router().usage()), (live, usage));
    // Other tests of this binary run meanwhile.
    assert!(open_descriptors() < fds + 5000, "{} descriptors", open_descriptors());
    assert_eq!(rig.raised(NIC, 0), 10_000);
}

#[test]
fn dropping_a_group_disarms_before_it_withdraws() {
    let rig = Rig::arm();
    let empty = (rig.live(), rig.wiring.router().usage());
    let group = rig.group(NIC, 3);
    program_all(&group);
    group.unmask(0).unwrap();
    group.unmask(1).unwrap();
    let vector = group.vector(0).unwrap();
    let shared = group.vector(1).unwrap();
    let outlives = shared.eventfd().unwrap();
    rig.costs();
    // The guard in the rig fails the test if a route goes while an irqfd is armed on it.
    drop(group);
    assert_eq!(rig.costs(), costs(1, 0, 2));
    assert_eq!((rig.live(), rig.wiring.router().usage()), empty);
    vector.trigger().unwrap();
    irqchip::fake::signal(outlives).unwrap();
    assert_eq!(vector.eventfd().unwrap_err(), Error::Gone);
    assert_eq!(rig.raised_in_all(NIC, 3), 0);
}

#[test]
fn plain_msi_has_a_message_of_its_own_for_each_vector() {
    // Multi-message MSI: one address, consecutive data. A VMM that gives all vectors the same event ID cannot pass such a device through.
    let rig = Rig::arm();
    let group = rig.group(DISK, 4);
    let base = message(16);
    group
        .update(|changes| {
            for n in 0..4u32 {
                let message = irq_types::MsiMessage { data: base.data + n, ..base };
                changes.program(n as usize, message)?;
                changes.unmask(n as usize)?;
            }
            Ok(())
        })
        .unwrap();
    for n in 0..4u32 {
        group.vector(n as usize).unwrap().trigger().unwrap();
        rig.vm.process();
        assert_eq!(rig.raised(DISK, 16 + n), 1);
    }
    let lpi = Lpi::new(60_000).unwrap();
    rig.vm.guest().map_event(DISK, EventId::new(19), lpi).unwrap();
    group.vector(3).unwrap().trigger().unwrap();
    assert_eq!(
        rig.vm.raised(Interrupt::Intid(lpi.intid())),
        1,
        "the guest may move it to another LPI by itself"
    );
}

#[test]
fn a_vectors_state_tells_where_it_is() {
    let rig = Rig::arm();
    let group = rig.group(NIC, 1);
    assert_eq!(
        group.state(0).unwrap().to_string(),
        "vector 0: holds, since the vector is masked; 0 passed, 0 held, 0 released"
    );
    group.program(0, message(3)).unwrap();
    group.unmask(0).unwrap();
    let vector = group.vector(0).unwrap();
    vector.trigger().unwrap();
    group.mask(0).unwrap();
    vector.trigger().unwrap();
    vector.trigger().unwrap();
    group.program(0, message(4)).unwrap();
    let state = group.state(0).unwrap();
    let fd = state.eventfd.unwrap();
    assert_eq!(
        state.to_string(),
        format!(
            "vector 0: holds, since the vector is masked; pending; message 0x8090040 <- 0x4; GSI 224 still routed to \
             0x8090040 <- 0x3; eventfd {fd} armed; 1 passed, 2 held, 0 released"
        )
    );
    group.unmask(0).unwrap();
    let state = group.state(0).unwrap();
    assert_eq!(
        state.to_string(),
        format!(
            "vector 0: delivers; message 0x8090040 <- 0x4; GSI 224 routed, from device ID 0x8; eventfd {fd} armed; 1 passed, \
             2 held, 1 released"
        )
    );
    assert_eq!(state.route, Some((message(4), NIC)));
}
