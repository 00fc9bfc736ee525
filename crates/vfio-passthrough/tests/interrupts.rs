// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a function says of its interrupts, the way back through the event loop, and a host that refuses for a while.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::*;
use vfio_passthrough::fake::Call;
use vfio_passthrough::pci::{InterruptMode, InterruptState, PciEvent, VfioPciFunction};
use vfio_passthrough::{Error, ResamplePath};

/// Mode; vectors allocated, and with a trigger; the most that there were.
fn summary(state: &InterruptState) -> (InterruptMode, usize, usize, Option<(InterruptMode, usize)>) {
    (state.mode, state.allocated, state.used, state.most)
}

#[test]
fn a_function_says_how_it_interrupts_and_what_it_has_had() {
    use InterruptMode::{Intx, Msi, Msix, Off};
    let rig = Rig::new();
    let fake = Nvme::default().device(&rig);
    let function = rig.function(&fake, Some(rig.line(4))).unwrap();
    let line = || function.line().map(|(state, connected)| (state.handed_over, connected)).unwrap();
    assert_eq!(summary(&function.interrupts()), (Intx, 0, 0, None));
    assert!(function.interrupts().line.is_some());
    assert_eq!((line(), function.vectors().0, function.vectors().1.len()), ((true, true), Msix, 8));
    for vector in 0..3 {
        program(&function, 0x2000, vector, u32::try_from(vector).unwrap());
        mask(&function, 0x2000, vector, false);
    }
    set_config(&function, MSIX_CONTROL, &ENABLE);
    assert_eq!(summary(&function.interrupts()), (Msix, 3, 3, Some((Msix, 3))));
    assert!(function.interrupts().line.is_none() && !line().1);
    // Messages of the other kind, and fewer: the most stays what it was.
    set_config(&function, MSIX_CONTROL, &[0, 0]);
    assert!(line().1);
    set_config(&function, MSI + 2, &[0x11, 0]);
    assert_eq!(summary(&function.interrupts()), (Msi, 2, 2, Some((Msix, 3))));
    assert_eq!(
        (function.vectors().0, function.vectors().1.len(), function.interrupts().vectors),
        (Msi, 4, 4)
    );
    set_config(&function, MSI + 2, &[0x21, 0]);
    assert_eq!(summary(&function.interrupts()), (Msi, 4, 4, Some((Msi, 4))));
    set_config(&function, MSI + 2, &[0, 0]);
    assert_eq!(summary(&function.interrupts()), (Intx, 0, 0, Some((Msi, 4))));

    // Without a line in the guest there is none, whatever the device has.
    let function = rig.function(&Nvme::default().device(&rig), None).unwrap();
    assert_eq!((summary(&function.interrupts()), function.line().map(|_| ())), ((Off, 0, 0, None), None));
}

#[test]
fn a_functions_line_comes_back_through_the_event_loop() {
    let rig = Rig::new();
    let fake = Nvme::default().device(&rig);
    rig.iommu.add(PCI_NAME, fake.clone());
    let open = rig.space.open(&rig.pci_name()).unwrap();
    let function =
        VfioPciFunction::new(open, rig.options(Some(rig.line(4)), ResamplePath::EventLoop)).unwrap();
    let resampler = function.resampler().unwrap();
    assert!(!fake.has_unmask(0));
    for _ in 0..2 {
        fake.set_level(0, true).unwrap();
        assert!(rig.line_is_high(4) && fake.is_masked(0));
        fake.set_level(0, false).unwrap();
        assert!(rig.take_line());
        assert!(resampler.run().unwrap());
        assert!(!rig.line_is_high(4) && !fake.is_masked(0));
        // The same one is good after the line was gone for a while.
        set_config(&function, MSIX_CONTROL, &ENABLE);
        set_config(&function, MSIX_CONTROL, &[0, 0]);
    }
    let kernel = rig.function(&Nvme::default().device(&rig), Some(rig.line(5))).unwrap();
    assert!(kernel.resampler().is_none(), "the kernel does it by itself");
}

/// The first, the second, … request fails: it is said once, and the guest's next write brings all that it has asked for.
#[test]
fn what_the_host_refuses_is_said_and_tried_again_at_the_next_write() {
    for can_grow in [false, true] {
        for nth in 1..=2 {
            let rig = Rig::new();
            let fake = Nvme { can_grow, ..Nvme::default() }.device(&rig);
            let function = rig.function(&fake, None).unwrap();
            for vector in [0, 2] {
                program(&function, 0x2000, vector, u32::try_from(vector).unwrap());
                mask(&function, 0x2000, vector, false);
            }
            rig.faults.fail(Call::SetIrqs, nth, libc::EIO);
            set_config(&function, MSIX_CONTROL, &ENABLE);
            let struck = rig.faults.clear();
            assert_eq!(struck, can_grow || nth == 1);
            {
                let events = std::mem::take(&mut *rig.events.lock().unwrap());
                let said = matches!(events.as_slice(), [PciEvent::Trouble(Error::Kernel { .. })]);
                assert_eq!(said, struck, "{events:?}");
            }
            if struck {
                assert!(fake.is_quiet(), "nothing is half set up");
                assert_eq!(function.interrupts().mode, InterruptMode::Off);
                // Nothing that has to do with it.
                mask(&function, 0x2000, 7, false);
                mask(&function, 0x2000, 7, true);
            }
            assert_eq!(function.interrupts().mode, InterruptMode::Msix);
            for vector in [0_u32, 2] {
                assert!(fake.send(2, vector as usize).unwrap());
                assert_eq!(rig.raised(vector), 1, "vector {vector}, can grow: {can_grow}");
            }
            assert!(rig.events.lock().unwrap().is_empty());
        }
    }
}
