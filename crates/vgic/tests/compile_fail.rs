// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wrong orders do not compile.

#[test]
fn wrong_orders_do_not_compile() {
    // These cases are handed to the compiler when the test runs. A test binary that was compiled elsewhere and is run by itself,
    // as in the emulated host, has no compiler beside it.
    if std::env::var_os("CARGO").is_none() {
        println!("SKIP wrong_orders_do_not_compile: no compiler here (CARGO is not set)");
        return;
    }
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
