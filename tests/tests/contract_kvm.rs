// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The same contract, held by this machine's KVM: all of it on an arm64 host, what is about eventfds and routes on x86-64.

use doorbell_tests::contract::{self, Need, check, kvm_host};

macro_rules! tests {
    ($($module:ident :: $rule:ident $need:ident;)*) => {$(
        #[test]
        fn $rule() {
            check(&kvm_host::all(), stringify!($rule), Need::$need, contract::$module::$rule);
        }
    )*};
}

doorbell_tests::for_each_contract!(tests);
