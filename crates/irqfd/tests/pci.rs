// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's writes to MSI and MSI-X capabilities, all the way to the interrupts that arrive.

#![cfg(feature = "pci")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{NIC, Rig, TRANSLATER, costs};
use irqfd::{MsiVector, Obstacle, VectorGroup};
use pci::{BarIndex, Msi, MsiLayout, Msix, MsixLayout, VectorChange, VectorSink};

fn msix(group: &Arc<VectorGroup>, vectors: u16) -> Msix {
    let bar = BarIndex::new(0).unwrap();
    Msix::new(MsixLayout::new(vectors, (bar, 0), (bar, 0x800)).unwrap(), group.clone())
}

/// As Linux writes an entry that is masked.
fn program(msix: &Msix, vector: u64, event: u32) {
    msix.write_table(vector * 16, &u32::try_from(TRANSLATER).unwrap().to_le_bytes());
    msix.write_table(vector * 16 + 4, &[0; 4]);
    msix.write_table(vector * 16 + 8, &event.to_le_bytes());
}

fn set_mask(msix: &Msix, vector: u64, masked: u8) {
    msix.write_table(vector * 16 + 12, &[masked, 0, 0, 0]);
}

fn pending(msix: &Msix) -> u64 {
    let mut bits = [0; 8];
    msix.read_pending(0, &mut bits);
    u64::from_le_bytes(bits)
}

#[test]
fn what_is_signalled_while_it_is_masked_shows_in_the_pending_bits_and_arrives_once() {
    let rig = Rig::arm();
    let group = Arc::new(rig.group(NIC, 3));
    let msix = msix(&group, 3);
    let vectors: Vec<_> = (0..3).map(|n| group.vector(n).unwrap()).collect();
    assert_eq!(group.state(0).unwrap().obstacle, Some(Obstacle::Disabled), "as it comes");
    msix.write_capability(2, &[0, 0xc0]);
    (0..3).for_each(|n| program(&msix, n, u32::try_from(n).unwrap()));
    set_mask(&msix, 0, 0);
    set_mask(&msix, 1, 0);
    assert_eq!(rig.costs(), costs(0, 0, 0), "all is masked");
    vectors[0].trigger().unwrap();
    vectors[0].trigger().unwrap();
    vectors[2].trigger().unwrap();
    rig.vm.process();
    assert_eq!((pending(&msix), rig.raised_in_all(NIC, 3)), (0b101, 0));
    msix.write_capability(2, &[0, 0x80]);
    rig.vm.process();
    assert_eq!((pending(&msix), rig.raised(NIC, 0), rig.raised_in_all(NIC, 3)), (0b100, 1, 1));
    assert_eq!(rig.costs(), costs(1, 2, 0), "one commit for all");
    set_mask(&msix, 2, 0);
    rig.vm.process();
    assert_eq!((pending(&msix), rig.raised(NIC, 2)), (0, 1));
    // Disabled, it holds; and a reset forgets.
    msix.write_capability(3, &[0]);
    vectors[1].trigger().unwrap();
    assert_eq!(group.state(1).unwrap().obstacle, Some(Obstacle::Disabled));
    assert_eq!(pending(&msix), 0b010);
    msix.reset();
    rig.vm.process();
    assert_eq!((pending(&msix), rig.raised_in_all(NIC, 3)), (0, 2));
    let state = group.state(1).unwrap();
    assert_eq!((state.message, state.gsi, state.masked), (None, None, true));
}

#[test]
fn vectors_of_msi_arrive_as_events_of_their_own_as_far_as_they_are_allowed() {
    let rig = Rig::arm();
    let group = Arc::new(rig.group(NIC, 4));
    let msi = Msi::new(MsiLayout::new(4).unwrap(), group.clone());
    let vectors: Vec<_> = (0..4).map(|n| group.vector(n).unwrap()).collect();
    let trigger_all = || {
        vectors.iter().for_each(|vector| vector.trigger().unwrap());
        rig.vm.process();
        (0..4).map(|event| rig.raised(NIC, event)).collect::<Vec<_>>()
    };
    msi.write_capability(4, &u32::try_from(TRANSLATER).unwrap().to_le_bytes());
    msi.write_capability(2, &[0x11, 0]);
    // There are no masks: enabled is unmasked.
    assert_eq!(trigger_all(), [1, 1, 0, 0]);
    assert_eq!(group.state(2).unwrap().obstacle, Some(Obstacle::NotAllowed));
    assert_eq!(
        group.state(3).unwrap().to_string().split(';').next(),
        Some("vector 3: holds, since the guest allows fewer vectors")
    );
    // What was held arrives when it is allowed.
    msi.write_capability(2, &[0x21, 0]);
    rig.vm.process();
    assert_eq!(trigger_all(), [2, 2, 2, 2]);
    msi.write_capability(2, &[0x01, 0]);
    assert_eq!(trigger_all(), [3, 2, 2, 2]);
}

#[test]
fn the_masks_of_msi_hold_what_they_mask() {
    let rig = Rig::arm();
    let group = Arc::new(rig.group(NIC, 2));
    let msi = Msi::new(MsiLayout::new(2).unwrap().with_masking(), group.clone());
    msi.write_capability(16, &[0b10]);
    msi.write_capability(4, &u32::try_from(TRANSLATER).unwrap().to_le_bytes());
    msi.write_capability(2, &[0x11, 0]);
    for n in 0..2 {
        group.vector(n).unwrap().trigger().unwrap();
    }
    rig.vm.process();
    let mut bits = [0; 4];
    msi.read_capability(20, &mut bits);
    assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 1), bits), (1, 0, [0b10, 0, 0, 0]));
    msi.write_capability(16, &[0]);
    rig.vm.process();
    msi.read_capability(20, &mut bits);
    assert_eq!((rig.raised(NIC, 0), rig.raised(NIC, 1), bits), (1, 1, [0; 4]));
}

#[test]
fn a_vector_that_the_group_does_not_have_takes_no_other_along() {
    let rig = Rig::arm();
    let group = rig.group(NIC, 1);
    let message = common::message(0);
    group.apply(&[VectorChange::Program(5, message), VectorChange::Mask(5, false)]);
    group.apply(&[
        VectorChange::Mask(7, false),
        VectorChange::Program(0, message),
        VectorChange::Mask(0, false),
        VectorChange::Enable(true),
    ]);
    group.vector(0).unwrap().trigger().unwrap();
    rig.vm.process();
    assert_eq!((rig.raised(NIC, 0), group.pending_word(9).unwrap()), (1, 0));
}
