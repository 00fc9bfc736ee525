// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The measurement that several kinds of interrupt share.

use irq_types::Intid;

use super::Machine;

/// Signals each interrupt in turn, all of them a thousand times, the next time when all have been counted; and holds that each signal was taken
/// exactly once, by the CPU that it was for (interrupt `n` is CPU `n` modulo the number of CPUs), and that no vCPU left the kernel for it.
///
/// The CPUs are idle before and after. What has come is counted when they are back, so that a second delivery of the last signal would be seen.
///
/// # Panics
/// If an interrupt is lost, doubled, strays, or goes through userspace.
pub fn exactly_once(machine: &Machine, test: &str, intids: &[Intid], signal: impl Fn(usize)) {
    const ROUNDS: u64 = 1000;
    let mailbox = machine.mailbox();
    let serving = machine.serve();
    let round = |n| {
        (0..intids.len()).for_each(&signal);
        machine.until("a round", || intids.iter().all(|&intid| mailbox.count(intid) >= n));
    };
    // The first may find a CPU still on its way into the guest.
    round(1);
    let returns = machine.returns();
    (2..=ROUNDS + 1).for_each(round);
    let what = format!("{} interrupts", ROUNDS * intids.len() as u64);
    returns.assert_none(test, &what, || drop(serving));
    let cpus = machine.gic().config().vcpus();
    for (cpu, &intid) in (0..cpus).cycle().zip(intids) {
        assert_eq!(mailbox.count_on(cpu, intid), ROUNDS + 1, "{intid} on CPU {cpu}");
        assert_eq!(mailbox.count(intid), ROUNDS + 1, "{intid}");
    }
    assert_eq!(mailbox.special(), 0);
}
