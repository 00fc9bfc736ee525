// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Level interrupts and the way back (Linux 6.12, `virt/kvm/eventfd.c`, `irqfd_resampler_ack`;
//! `arch/arm64/kvm/vgic/vgic-v3.c`, `vgic_v3_fold_lr_state`; `arch/x86/kvm/ioapic.c`).

use std::fs::File;
use std::os::fd::OwnedFd;

use irq_types::TriggerMode;
use irqchip::{DeviceKind, Errno};

use super::fixture::{Machine, count, event, eventually, ring};
use super::{Host, Irqchip, Taken};

/// A ready machine for each irqchip, with pin 5 set up as level.
fn each(host: &dyn Host, rule: impl Fn(&Machine)) {
    for irqchip in host.irqchips() {
        let machine = Machine::ready(host, irqchip);
        machine.configure(5, TriggerMode::Level);
        rule(&machine);
    }
}

/// Takes the interrupt of pin 5, which must come, and does not end it.
fn take(machine: &Machine) {
    let mut taken = None;
    eventually("the level interrupt", || {
        taken = machine.take();
        taken.is_some()
    });
    assert_eq!(taken, Some(Taken::Line(5)));
}

/// One signal is one interrupt: after the EOI the kernel lowers the line and says so.
pub fn a_resampled_line_stays_up_until_the_eoi(host: &dyn Host) {
    each(host, |machine| {
        let (event, resample) = (event(), event());
        machine.bind_level(&event, 5, &resample).unwrap();
        for _ in 0..3 {
            ring(&event);
            take(machine);
            if machine.vm.awaits_end(machine.irqchip, Taken::Line(5)) {
                assert_eq!(count(&resample), 0, "it is not ended yet");
            }
            machine.end(Taken::Line(5));
            eventually("the resampler hears of the EOI", || {
                let heard = count(&resample);
                assert!(heard <= 1);
                heard == 1
            });
            assert_eq!(machine.take(), None);
        }
    });
}

/// What the resample event is for.
pub fn a_device_that_still_wants_attention_raises_the_line_again(host: &dyn Host) {
    each(host, |machine| {
        let (event, resample) = (event(), event());
        machine.bind_level(&event, 5, &resample).unwrap();
        ring(&event);
        for _ in 0..5 {
            machine.serve(5);
            eventually("the resampler hears of the EOI", || count(&resample) == 1);
            ring(&event);
        }
        machine.serve(5);
        eventually("the resampler hears of the EOI", || count(&resample) == 1);
        assert_eq!(machine.take(), None);
    });
}

/// Everybody on the GSI hears of the EOI, whoever raised it.
pub fn resamplers_share_a_line(host: &dyn Host) {
    each(host, |machine| {
        let (one, two) = ((event(), event()), (event(), event()));
        machine.bind_level(&one.0, 5, &one.1).unwrap();
        machine.bind_level(&two.0, 5, &two.1).unwrap();
        for raiser in [&one.0, &two.0] {
            ring(raiser);
            machine.serve(5);
            for resample in [&one.1, &two.1] {
                eventually("each resampler hears of the EOI", || count(resample) == 1);
            }
            assert_eq!(machine.take(), None);
        }
        machine.unbind(&one.0, 5).unwrap();
        ring(&two.0);
        machine.serve(5);
        eventually("the one that is left hears of the EOI", || count(&two.1) == 1);
        assert_eq!(count(&one.1), 0);
    });
}

/// But not the first of two.
pub fn the_last_resampler_takes_the_line_down(host: &dyn Host) {
    each(host, |machine| {
        let (one, two) = ((event(), event()), (event(), event()));
        machine.bind_level(&one.0, 5, &one.1).unwrap();
        machine.bind_level(&two.0, 5, &two.1).unwrap();
        ring(&one.0);
        machine.unbind(&one.0, 5).unwrap();
        machine.serve(5);
        eventually("the resampler that is left hears of the EOI", || count(&two.1) == 1);
        ring(&two.0);
        machine.unbind(&two.0, 5).unwrap();
        assert_eq!(machine.take(), None);
    });
}

/// A wrong device-tree flag is an interrupt without a way back.
pub fn an_edge_spi_reports_no_eoi(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        machine.configure(5, TriggerMode::Edge);
        machine.configure(6, TriggerMode::Level);
        let (event, resample) = (event(), event());
        let (other, other_resample) = (super::fixture::event(), super::fixture::event());
        machine.bind_level(&event, 5, &resample).unwrap();
        machine.bind_level(&other, 6, &other_resample).unwrap();
        for _ in 0..2 {
            ring(&event);
            machine.serve(5);
            // An EOI that is reported, after the one that is not.
            ring(&other);
            machine.serve(6);
            eventually("the level interrupt's resampler hears", || count(&other_resample) == 1);
            assert_eq!(count(&resample), 0);
        }
    }
}

/// x86 tells of every EOI.
pub fn an_edge_pin_of_the_ioapic_reports_its_eoi(host: &dyn Host) {
    let machine = Machine::ready(host, Irqchip::X86);
    machine.configure(5, TriggerMode::Edge);
    let (event, resample) = (event(), event());
    machine.bind_level(&event, 5, &resample).unwrap();
    for _ in 0..2 {
        ring(&event);
        machine.serve(5);
        eventually("the resampler hears of the EOI", || count(&resample) == 1);
    }
}

/// On arm64 an irqfd raises its SPI's wire on the spot and nothing lowers it: the guest takes it again and again.
pub fn a_plain_irqfd_leaves_a_level_spi_up(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        machine.configure(5, TriggerMode::Level);
        let event = event();
        machine.bind(&event, 5).unwrap();
        ring(&event);
        for _ in 0..3 {
            machine.serve(5);
        }
        if kind == DeviceKind::GicV3 {
            assert!(machine.is_high(5));
        }
        machine.unbind(&event, 5).unwrap();
        machine.serve(5);
        machine.vm.set_spi(irq_types::Spi::new(5).unwrap(), false).unwrap();
        assert_eq!(machine.take(), None);
    }
}

/// … but what was in its counter when it was armed is a pulse, which a guest that does not run misses.
pub fn a_plain_irqfd_that_fires_when_armed_pulses_a_level_spi(host: &dyn Host) {
    for kind in host.gics() {
        let machine = Machine::ready(host, Irqchip::Gic(kind));
        machine.configure(5, TriggerMode::Level);
        let event = event();
        ring(&event);
        machine.bind(&event, 5).unwrap();
        machine.unbind(&event, 5).unwrap();
        assert_eq!(machine.take(), None);
    }
}

/// `EINVAL`; and the trigger is free afterwards.
pub fn a_resampler_must_be_an_eventfd(host: &dyn Host) {
    each(host, |machine| {
        let file: OwnedFd = File::open("/dev/null").unwrap().into();
        let event = event();
        assert_eq!(machine.bind_level(&event, 5, &file), Err(Errno::EINVAL));
        assert_eq!(machine.bind_level(&file, 5, &event), Err(Errno::EINVAL));
        assert_eq!(machine.bind(&event, 5), Ok(()));
        assert_eq!(machine.bind_level(&event, 5, &super::fixture::event()), Err(Errno::EBUSY));
    });
}

/// Of two GSIs on a pin, only the later in the table gets to know.
pub fn the_eoi_goes_by_the_last_route_of_a_pin(host: &dyn Host) {
    each(host, |machine| {
        machine.routes(&[machine.line(41, 5), machine.line(40, 5)]).unwrap();
        let (early, late) = ((event(), event()), (event(), event()));
        machine.bind_level(&early.0, 41, &early.1).unwrap();
        machine.bind_level(&late.0, 40, &late.1).unwrap();
        ring(&late.0);
        machine.serve(5);
        eventually("the later route's resampler hears of the EOI", || count(&late.1) == 1);
        assert_eq!(count(&early.1), 0);
        assert_eq!(machine.take(), None);
    });
}
