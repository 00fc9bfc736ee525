// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds that raise interrupts (Linux 6.12, `virt/kvm/eventfd.c`).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use irq_types::{Gsi, TriggerMode};
use irqchip::Errno;

use super::fixture::{Machine, count, event, refusal, ring};
use super::{Host, Taken};

/// A ready machine for each irqchip, with pins 5 and 6 set up as edge.
fn each(host: &dyn Host, rule: impl Fn(&Machine)) {
    for irqchip in host.irqchips() {
        let machine = Machine::ready(host, irqchip);
        machine.configure(5, TriggerMode::Edge);
        machine.configure(6, TriggerMode::Edge);
        rule(&machine);
    }
}

/// `EAGAIN`, whatever descriptor is given: that is looked at first.
pub fn an_irqfd_waits_for_initialisation(host: &dyn Host) {
    let event = event();
    let vm = host.vm();
    assert_eq!(refusal(vm.assign_irqfd(event.as_fd(), Gsi::new(0), None)), Err(Errno::EAGAIN));
    for kind in host.gics() {
        let machine = Machine::complete(host, kind);
        assert_eq!(machine.bind(&event, 0), Err(Errno::EAGAIN));
        let file = File::open("/dev/null").unwrap();
        let answer = machine.vm.assign_irqfd(file.as_fd(), Gsi::new(0), None);
        assert_eq!(refusal(answer), Err(Errno::EAGAIN));
        machine.init();
        assert_eq!(machine.bind(&event, 0), Ok(()));
        assert_eq!(machine.unbind(&event, 0), Ok(()));
    }
}

/// x86 says `EINVAL`.
pub fn an_irqfd_needs_an_irqchip(host: &dyn Host) {
    let event = event();
    let answer = host.vm().assign_irqfd(event.as_fd(), Gsi::new(0), None);
    assert_eq!(refusal(answer), Err(Errno::EINVAL));
}

/// And empties the counter.
pub fn a_signal_is_an_interrupt(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        machine.bind(&event, 5).unwrap();
        assert_eq!(machine.take(), None);
        for _ in 0..3 {
            ring(&event);
            machine.serve(5);
            assert_eq!(machine.take(), None);
        }
        assert_eq!(count(&event), 0);
    });
}

/// Edge interrupts merge while they are pending.
pub fn a_burst_before_it_is_taken_is_one_interrupt(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        machine.bind(&event, 5).unwrap();
        for _ in 0..5 {
            ring(&event);
        }
        machine.unbind(&event, 5).unwrap();
        machine.serve(5);
        assert_eq!(machine.take(), None);
    });
}

/// Once, however high it is; and it stays in the counter, which the next signal empties.
pub fn a_counter_that_is_not_zero_fires_at_once(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        ring(&event);
        ring(&event);
        machine.bind(&event, 5).unwrap();
        machine.serve(5);
        assert_eq!(machine.take(), None);
        ring(&event);
        machine.serve(5);
        assert_eq!(machine.take(), None);
        assert_eq!(count(&event), 0);
        // As many signals as there were at first are signals like any other.
        ring(&event);
        ring(&event);
        machine.unbind(&event, 5).unwrap();
        machine.serve(5);
        assert_eq!(machine.take(), None);
    });
}

/// `EBUSY` for a second irqfd, on the same GSI and on another.
pub fn an_eventfd_raises_one_gsi(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        machine.bind(&event, 5).unwrap();
        assert_eq!(machine.bind(&event, 5), Err(Errno::EBUSY));
        assert_eq!(machine.bind(&event, 6), Err(Errno::EBUSY));
        ring(&event);
        machine.serve(5);
        assert_eq!(machine.take(), None);
        machine.unbind(&event, 5).unwrap();
        assert_eq!(machine.bind(&event, 6), Ok(()));
        ring(&event);
        machine.serve(6);
    });
}

/// The kernel counts eventfds, not descriptors.
pub fn an_eventfd_is_known_through_any_descriptor(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        let other = event.try_clone().unwrap();
        machine.bind(&event, 5).unwrap();
        assert_eq!(machine.bind(&other, 6), Err(Errno::EBUSY));
        ring(&other);
        machine.serve(5);
        assert_eq!(machine.unbind(&other, 5), Ok(()));
        assert_eq!(machine.bind(&event, 6), Ok(()));
    });
}

/// The other way round there is no limit.
pub fn several_eventfds_may_raise_one_gsi(host: &dyn Host) {
    each(host, |machine| {
        let events = [event(), event(), event()];
        for event in &events {
            machine.bind(event, 5).unwrap();
        }
        for event in &events {
            ring(event);
            machine.serve(5);
        }
        machine.unbind(&events[0], 5).unwrap();
        ring(&events[1]);
        machine.serve(5);
    });
}

/// `EINVAL`, on the way in and on the way out.
pub fn what_is_no_eventfd_is_refused(host: &dyn Host) {
    each(host, |machine| {
        let file: OwnedFd = File::open("/dev/null").unwrap().into();
        assert_eq!(machine.bind(&file, 5), Err(Errno::EINVAL));
        assert_eq!(machine.unbind(&file, 5), Err(Errno::EINVAL));
    });
}

/// So that undoing is safe.
pub fn deassigning_what_is_not_assigned_is_no_error(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        assert_eq!(machine.unbind(&event, 5), Ok(()));
        machine.bind(&event, 5).unwrap();
        assert_eq!(machine.unbind(&event, 5), Ok(()));
        assert_eq!(machine.unbind(&event, 5), Ok(()));
    });
    assert_eq!(refusal(host.vm().deassign_irqfd(event().as_fd(), Gsi::new(5))), Ok(()));
}

/// Another GSI is another irqfd.
pub fn deassigning_goes_by_eventfd_and_gsi(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        machine.bind(&event, 5).unwrap();
        assert_eq!(machine.unbind(&event, 6), Ok(()));
        ring(&event);
        machine.serve(5);
        machine.unbind(&event, 5).unwrap();
        ring(&event);
        assert_eq!(machine.take(), None);
        assert_eq!(count(&event), 1, "a signal now stays in the counter");
    });
}

/// What armed it, or came while it was armed, is not there to fire again when it is armed again.
pub fn deassigning_empties_the_counter(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        ring(&event);
        machine.bind(&event, 5).unwrap();
        machine.serve(5);
        machine.unbind(&event, 5).unwrap();
        assert_eq!(count(&event), 0);
        machine.bind(&event, 5).unwrap();
        machine.unbind(&event, 5).unwrap();
        assert_eq!(machine.take(), None);
        // Deassigning what is not assigned leaves it alone.
        ring(&event);
        machine.unbind(&event, 5).unwrap();
        assert_eq!(count(&event), 1);
    });
}

/// The signal is gone; a route that comes later does not bring it back.
pub fn a_gsi_without_route_is_accepted_and_lost(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        machine.routes(&[]).unwrap();
        assert_eq!(machine.bind(&event, 40), Ok(()));
        ring(&event);
        machine.unbind(&event, 40).unwrap();
        machine.routes(&[machine.line(40, 5)]).unwrap();
        machine.bind(&event, 40).unwrap();
        machine.unbind(&event, 40).unwrap();
        assert_eq!(machine.take(), None);
    });
}

/// Also one that no table can have.
pub fn any_gsi_is_accepted(host: &dyn Host) {
    each(host, |machine| {
        let event = event();
        for gsi in [4096, u32::MAX] {
            assert_eq!(machine.bind(&event, gsi), Ok(()));
            ring(&event);
            assert_eq!(machine.unbind(&event, gsi), Ok(()));
        }
        assert_eq!(machine.take(), None::<Taken>);
    });
}
