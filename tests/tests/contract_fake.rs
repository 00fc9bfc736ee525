// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The contract, held by the fake kernel. Runs anywhere.

use doorbell_tests::contract::{self, Need, check, fake_host};

macro_rules! tests {
    ($($module:ident :: $rule:ident $need:ident;)*) => {$(
        #[test]
        fn $rule() {
            let tried = check(&fake_host::all(), stringify!($rule), Need::$need, contract::$module::$rule);
            assert!(tried, "there is a fake host for everything");
        }
    )*};
}

doorbell_tests::for_each_contract!(tests);
