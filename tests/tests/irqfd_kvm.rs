// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The same rules on this machine's KVM: lines, LPIs and GICv2m messages on an arm64 host, the IOAPIC and the local APIC on x86-64.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(unreachable_pub, reason = "a module that two tests share")]

use doorbell_tests::contract::{Need, check, kvm_host};

mod irqfd_rules;

macro_rules! tests {
    ($($rule:ident $need:ident;)*) => {$(
        #[test]
        fn $rule() {
            check(&kvm_host::all(), stringify!($rule), Need::$need, irqfd_rules::$rule);
        }
    )*};
}

for_each_irqfd_rule!(tests);

#[test]
fn a_signal_at_the_moment_of_masking_is_delivered_or_pending() {
    let rule = irqfd_rules::a_signal_at_the_moment_of_masking_is_delivered_or_pending;
    check(&kvm_host::all(), "a_signal_at_the_moment_of_masking", Need::Irqchip, rule);
}
