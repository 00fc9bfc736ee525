// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts without an eventfd: SGIs between the guest's CPUs, and what userspace injects by an ioctl each.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;

use doorbell_tests::metal::{Command, Device, Kind, Machine};
use irq_types::{Intid, Ppi, Sgi, Spi};
use irqchip::LineInjector;
use irqfd::InjectedLine;
use vgic::GicRequest;

fn machine(test: &str, vcpus: u32) -> Option<Machine> {
    let request = GicRequest { vcpus, spis: 64, ..GicRequest::default() };
    Machine::start(test, request, |host| host.v2 || host.v3, "a GIC")
}

#[test]
fn of_100_000_ipis_each_arrives_exactly_once_and_no_vcpu_returns() {
    let test = "of_100_000_ipis_each_arrives_exactly_once_and_no_vcpu_returns";
    let Some(machine) = machine(test, 2) else { return };
    let (sgis, rounds) = (16, 6250);
    let sgi = |n| Sgi::new(n).unwrap();
    for n in 0..sgis {
        machine.call(1, Command::Wire(sgi(n).intid(), Kind::Edge, 1));
    }
    let serving = machine.serve_on(1);
    let returns = machine.returns();
    machine.call(0, Command::Sgis { cpu: 1, first: sgi(0), count: sgis, rounds });
    // One: the sender's, when it had sent all of them.
    println!(
        "100000 IPIs: KVM_RUN returned {} times; kvm_userspace_exit: {:?}",
        returns.own(),
        returns.kernel()
    );
    assert_eq!(returns.own(), 1);
    assert_eq!(returns.kernel().unwrap_or(1), 1);
    drop(returns);
    machine.finish(serving);
    for n in 0..sgis {
        assert_eq!(machine.mailbox().count_on(1, sgi(n).intid()), rounds, "{}", sgi(n));
        assert_eq!(machine.mailbox().count_on(0, sgi(n).intid()), 0, "{}", sgi(n));
    }
}

/// Each CPU has its own wire of the same PPI.
#[test]
fn a_ppi_interrupts_the_cpu_whose_wire_is_raised() {
    let test = "a_ppi_interrupts_the_cpu_whose_wire_is_raised";
    let Some(machine) = machine(test, 2) else { return };
    // INTID 20 is not one of those that the timers, the PMU and the GIC's own maintenance have (Base System Architecture, "PPI assignments").
    let ppi = Ppi::new(4).unwrap();
    let injector: Arc<dyn LineInjector> = Arc::clone(machine.vm()) as _;
    for cpu in [0, 1] {
        machine.wire(ppi.intid(), Kind::Lowered, cpu);
    }
    for cpu in [0, 1] {
        let line = Arc::new(InjectedLine::ppi(Arc::clone(&injector), cpu, ppi));
        // One device a CPU: both CPUs see both, but only one is interrupted.
        let device = Device::new(machine.mailbox(), ppi.intid(), cpu, line);
        let serving = machine.serve();
        one_by_one(&machine, &device, 500);
        machine.finish(serving);
        assert_eq!(machine.mailbox().count_on(cpu, ppi.intid()), 500, "CPU {cpu}");
        assert_eq!(machine.mailbox().count(ppi.intid()), 500 * u64::from(cpu + 1), "CPU {cpu}");
    }
}

#[test]
fn an_spi_that_userspace_drives_is_up_until_it_is_lowered() {
    let test = "an_spi_that_userspace_drives_is_up_until_it_is_lowered";
    let Some(machine) = machine(test, 1) else { return };
    let spi = Spi::new(5).unwrap();
    machine.wire(spi.intid(), Kind::Lowered, 0);
    let line = Arc::new(InjectedLine::spi(Arc::clone(machine.vm()) as _, spi));
    let device = Device::new(machine.mailbox(), spi.intid(), 0, line);
    let serving = machine.serve();
    one_by_one(&machine, &device, 1000);
    // Several at once: the line stays up, and the guest is interrupted again after each EOI, without anybody being told of it.
    device.post(1000);
    let mut handled = 1000;
    machine.until("the rest", || {
        device.follow(&mut handled);
        handled == 2000
    });
    machine.finish(serving);
    assert_eq!(machine.mailbox().count(spi.intid()), 2000);
}

fn one_by_one(machine: &Machine, device: &Device, items: u64) {
    let mut handled = device.handled();
    for _ in 0..items {
        device.post(1);
        machine.until("this item to be taken", || device.follow(&mut handled));
    }
}

#[test]
fn each_pulse_of_an_spi_from_userspace_arrives_exactly_once() {
    let test = "each_pulse_of_an_spi_from_userspace_arrives_exactly_once";
    let Some(machine) = machine(test, 2) else { return };
    let spis: Vec<Spi> = (0..50).map(|n| Spi::new(n).unwrap()).collect();
    for (n, spi) in (0..).zip(&spis) {
        machine.wire(spi.intid(), Kind::Edge, n % 2);
    }
    let serving = machine.serve();
    for round in 1..=200 {
        for spi in &spis {
            machine.vm().set_spi(*spi, true).unwrap();
            machine.vm().set_spi(*spi, false).unwrap();
        }
        let count = |spi: &Spi| machine.mailbox().count(spi.intid());
        machine.until("a round of pulses", || spis.iter().all(|spi| count(spi) >= round));
    }
    machine.finish(serving);
    for spi in &spis {
        assert_eq!(machine.mailbox().count(Intid::Spi(*spi)), 200, "{spi}");
    }
}
