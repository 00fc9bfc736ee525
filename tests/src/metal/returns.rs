// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How often vCPUs come back to userspace, counted twice: by those who call `KVM_RUN`, and by the kernel.

use super::cpu::Cpu;
use crate::histogram::Histogram;

/// The tracepoint that is hit each time `KVM_RUN` returns.
const EVENT: &str = "kvm/kvm_userspace_exit";

/// Counts from the moment it is made. One at a time: tests with the kernel's counts run one after the other.
#[derive(Debug)]
pub struct Returns<'a> {
    cpus: &'a [Cpu],
    own: u64,
    kernel: Option<Histogram>,
}

impl<'a> Returns<'a> {
    pub(super) fn new(cpus: &'a [Cpu]) -> Self {
        let kernel = Histogram::start(EVENT, "common_pid");
        Self { cpus, own: own(cpus), kernel }
    }

    /// How often the vCPUs' threads have seen `KVM_RUN` return.
    #[must_use]
    pub fn own(&self) -> u64 {
        own(self.cpus) - self.own
    }

    /// How often the kernel says that they returned; `None` where it has no such tracepoint (or we may not use it).
    #[must_use]
    pub fn kernel(&self) -> Option<u64> {
        let counts = self.kernel.as_ref()?.counts();
        Some(self.cpus.iter().filter_map(|cpu| counts.get(&cpu.tid())).sum())
    }
}

impl Returns<'_> {
    /// That no vCPU has returned up to now, although `interrupts` of a kind were delivered; and, when `bring_back` has made the vCPUs return, that
    /// the counts would have shown it. Where the kernel does not count, prints that `test` could not look.
    ///
    /// # Panics
    /// If one has.
    pub fn assert_none(self, test: &str, interrupts: &str, bring_back: impl FnOnce()) {
        let (own, kernel) = (self.own(), self.kernel());
        println!("{interrupts}: KVM_RUN returned {own} times; kvm_userspace_exit: {kernel:?}");
        bring_back();
        assert_eq!(own, 0, "returns of KVM_RUN");
        assert!(self.own() > 0, "bringing a vCPU back makes KVM_RUN return");
        match kernel {
            None => println!("SKIP {test}: no {EVENT} with histograms here"),
            Some(hits) => {
                assert_eq!(hits, 0, "hits of kvm_userspace_exit");
                assert_eq!(self.kernel(), Some(self.own()), "the kernel counts what we count");
            }
        }
    }
}

fn own(cpus: &[Cpu]) -> u64 {
    cpus.iter().map(Cpu::returns).sum()
}
