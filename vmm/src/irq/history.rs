// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When interrupts were last active, as far as looks can tell. Nobody writes down the time of an interrupt, since that would cost each one, and the kernel keeps none for those that
//! pass this process by. So counts are compared with those of the look before: what has changed, has changed between the two.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Line;
use super::line::Active;

/// What the looks so far have seen.
#[derive(Debug)]
pub struct History {
    looks: Mutex<Looks>,
}

#[derive(Debug)]
struct Looks {
    /// When the last one began; the machine's start, when all counts were 0, counts as one.
    last: Instant,
    seen: BTreeMap<String, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    total: u64,
    /// The last change came between these two.
    changed: Option<(Instant, Instant)>,
}

impl History {
    /// Of a machine that begins to run at `start`.
    #[must_use]
    pub fn new(start: Instant) -> Self {
        Self { looks: Mutex::new(Looks { last: start, seen: BTreeMap::new() }) }
    }

    /// Notes the counts of `lines`, which were collected from `began` until `now`, and fills in when they last changed.
    pub fn look(&self, lines: &mut [Line], began: Instant, now: Instant) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let last = looks.last;
        // Devices come and go; what is gone is forgotten.
        let mut kept = BTreeMap::new();
        for line in lines {
            let total = line.total();
            let before = looks.seen.get(&line.line).copied().unwrap_or(Seen { total: 0, changed: None });
            let changed = if before.total == total { before.changed } else { Some((last, now)) };
            let ms_since =
                |at| u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX);
            line.active = changed.map(|(after, by)| Active {
                at_least_ms_ago: ms_since(by),
                // Rounded up, so that it is true.
                at_most_ms_ago: ms_since(after).saturating_add(1),
            });
            kept.insert(line.line.clone(), Seen { total, changed });
        }
        *looks = Looks { last: began, seen: kept };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::line::test_line;
    use std::time::Duration;

    #[test]
    fn a_change_came_between_the_look_that_saw_it_and_the_one_before() {
        let start = Instant::now();
        let history = History::new(start);
        let look = |total: u64, seconds: u64| {
            let mut lines = [test_line("a", total), test_line("b", 0)];
            let now = start + Duration::from_secs(seconds);
            history.look(&mut lines, now, now);
            assert_eq!(lines[1].active, None, "b never fires");
            lines[0].active.map(|active| (active.at_least_ms_ago, active.at_most_ms_ago))
        };
        assert_eq!(look(0, 1), None);
        assert_eq!(look(1, 3), Some((0, 2001)));
        assert_eq!(look(1, 8), Some((5000, 7001)));
        assert_eq!(look(9, 9), Some((0, 1001)));
        assert_eq!(look(9, 10), Some((1000, 2001)));
    }

    #[test]
    fn what_comes_while_a_look_is_taken_is_not_dated_after_it() {
        let start = Instant::now();
        let history = History::new(start);
        let look = |total: u64, began: u64, now: u64| {
            let mut lines = [test_line("a", total)];
            let at = |seconds| start + Duration::from_secs(seconds);
            history.look(&mut lines, at(began), at(now));
            lines[0].active.map(|active| (active.at_least_ms_ago, active.at_most_ms_ago))
        };
        look(1, 1, 4);
        // It may have come at 2, after its count was read.
        assert_eq!(look(2, 6, 7), Some((0, 6001)));
    }

    #[test]
    fn what_was_there_at_the_first_look_came_since_the_start() {
        let start = Instant::now();
        let history = History::new(start);
        let look = |names: &[&str], seconds: u64| {
            let mut lines: Vec<Line> = names.iter().map(|name| test_line(name, 7)).collect();
            let now = start + Duration::from_secs(seconds);
            history.look(&mut lines, now, now);
            let active = lines.pop().unwrap().active.unwrap();
            (active.at_least_ms_ago, active.at_most_ms_ago)
        };
        assert_eq!(look(&["a"], 60), (0, 60_001));
        assert_eq!(look(&["a"], 70), (10_000, 70_001));
        // A device that came since the last look.
        assert_eq!(look(&["a", "b"], 72), (0, 2001));
    }
}
