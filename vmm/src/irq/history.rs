// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When interrupts were last seen to be active. Nobody writes down the time of an interrupt, since that would cost each one; so counts are compared with those of
//! the last look.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Line;

/// What the looks so far have seen.
#[derive(Debug, Default)]
pub struct History {
    seen: Mutex<BTreeMap<String, Seen>>,
}

#[derive(Debug)]
struct Seen {
    total: u64,
    /// When a change was noticed; not known for what came before the first look.
    changed: Option<Instant>,
}

impl History {
    /// Notes the counts of `lines`, and fills in when they were last seen to change.
    pub fn look(&self, lines: &mut [Line], now: Instant) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Devices come and go; what is gone is forgotten.
        let mut kept = BTreeMap::new();
        for line in lines {
            let total = line.total();
            let changed = match seen.remove(&line.line) {
                Some(before) if before.total == total => before.changed,
                Some(_) => Some(now),
                None => None,
            };
            line.active_ms_ago = changed
                .map(|at| u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX));
            kept.insert(line.line.clone(), Seen { total, changed });
        }
        *seen = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::line::test_line;
    use std::time::Duration;

    #[test]
    fn activity_is_what_changed_since_the_last_look() {
        let (history, start) = (History::default(), Instant::now());
        let look = |total: u64, seconds: u64| {
            let mut lines = [test_line("a", total), test_line("b", 7)];
            history.look(&mut lines, start + Duration::from_secs(seconds));
            assert_eq!(lines[1].active_ms_ago, None, "b never changes");
            lines[0].active_ms_ago
        };
        assert_eq!(look(1, 0), None, "before the first look anything may have been");
        assert_eq!(look(1, 1), None);
        assert_eq!(look(2, 2), Some(0));
        assert_eq!(look(2, 5), Some(3000));
        assert_eq!(look(9, 6), Some(0));
    }
}
