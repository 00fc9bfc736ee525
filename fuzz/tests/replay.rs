// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every target on its corpus, and on random bytes: what fits into an ordinary test run. `make fuzz` does it for longer, guided by coverage.

use doorbell_fuzz::TARGETS;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[test]
fn no_entry_of_the_corpus_breaks_a_promise() {
    for (name, target) in TARGETS {
        let folder = format!("{}/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut entries = 0;
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder}: {e}")) {
            target(&std::fs::read(entry.unwrap().path()).unwrap());
            entries += 1;
        }
        assert!(entries > 0, "{name} has no corpus");
    }
}

#[test]
fn no_random_bytes_break_a_promise() {
    for (name, target) in TARGETS {
        let mut runner =
            TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
        let result = runner.run(&vec(any::<u8>(), 0..300), |bytes| {
            target(&bytes);
            Ok(())
        });
        assert!(result.is_ok(), "{name}: {result:?}");
    }
}
