// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rules of `irqfd` on the fake kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "one rule is for the real kernel only")]

use doorbell_tests::contract::{Need, check, fake_host};

mod irqfd_rules;

macro_rules! tests {
    ($($rule:ident $need:ident;)*) => {$(
        #[test]
        fn $rule() {
            assert!(check(&fake_host::all(), stringify!($rule), Need::$need, irqfd_rules::$rule));
        }
    )*};
}

for_each_irqfd_rule!(tests);
