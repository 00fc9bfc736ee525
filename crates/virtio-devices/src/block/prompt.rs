// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is done at once, in the queue's own thread, although there is io_uring.
//!
//! io_uring does at once what it can do without waiting, and leaves the rest to threads of the kernel. For two kinds of I/O it does not try, though both mostly are mere copies
//! (Linux 6.12, `io_uring/rw.c`, `io_write` and `io_file_supports_nowait`): writes to the page cache of a regular file, but for few file systems, and reads of a
//! file that knows no `RWF_NOWAIT`, as all in tmpfs. A thread of the kernel costs such a copy several times what it takes itself. So they are done here; until
//! one takes long, because the page cache is full or the file is far away. Then it is the kernel's threads' turn for a while.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::sys::storage::{Step, knows_nowait};

/// A copy takes no longer than this, and [`PER_BYTE`] for each byte: slow machines are ten times as fast.
const SLOW: Duration = Duration::from_millis(4);
/// In nanoseconds.
const PER_BYTE: u64 = 10;
/// How long the kernel's threads then have their turn.
const TURN: Duration = Duration::from_millis(200);

/// Decides which steps are done at once.
#[derive(Debug)]
pub(super) struct Prompt {
    reads: bool,
    writes: bool,
    /// Since when something was slow.
    slow: Option<Instant>,
}

impl Prompt {
    /// For an image, which is used past the page cache or not.
    pub(super) fn new(file: &File, direct: bool) -> Self {
        let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        Self { reads: regular && !knows_nowait(file.as_fd()), writes: regular && !direct, slow: None }
    }

    /// Whether `step` is to be done now. What waits for the disk is not.
    pub(super) fn takes(&mut self, step: &Step<'_>) -> bool {
        let kind = match step {
            Step::Read { .. } => self.reads,
            Step::Write { durable, .. } => self.writes && !durable,
            Step::Sync | Step::Punch { .. } | Step::Zero { .. } => false,
        };
        kind && match self.slow {
            Some(since) if since.elapsed() < TURN => false,
            _ => {
                self.slow = None;
                true
            }
        }
    }

    /// A step was done now: `bytes` of it, beginning at `start`.
    pub(super) fn took(&mut self, start: Instant, bytes: usize) {
        let copying = Duration::from_nanos(PER_BYTE.saturating_mul(bytes as u64));
        if start.elapsed() > SLOW + copying {
            self.slow = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt() -> Prompt {
        Prompt { reads: true, writes: true, slow: None }
    }

    #[test]
    fn what_waits_for_the_disk_is_left_to_the_kernel() {
        let all = [
            (Step::Read { to: &[], offset: 0 }, true),
            (Step::Write { from: &[], offset: 0, durable: false }, true),
            (Step::Write { from: &[], offset: 0, durable: true }, false),
            (Step::Sync, false),
            (Step::Punch { offset: 0, length: 512 }, false),
            (Step::Zero { offset: 0, length: 512 }, false),
        ];
        for (step, taken) in &all {
            assert_eq!(prompt().takes(step), *taken);
            assert!(!Prompt { reads: false, writes: false, slow: None }.takes(step));
        }
        assert!(!Prompt { reads: false, writes: true, slow: None }.takes(&all[0].0));
        assert!(!Prompt { reads: true, writes: false, slow: None }.takes(&all[1].0));
    }

    #[test]
    fn a_slow_copy_gives_the_kernel_its_turn_and_only_for_a_while() {
        let read = Step::Read { to: &[], offset: 0 };
        let ago = |millis| Instant::now().checked_sub(Duration::from_millis(millis)).unwrap();
        let mut prompt = prompt();
        // 100 MB take a second, so half a second for them is quick.
        prompt.took(ago(500), 100_000_000);
        assert!(prompt.takes(&read));
        prompt.took(ago(500), 4096);
        assert!(!prompt.takes(&read));
        prompt.slow = Some(ago(1000));
        assert!(prompt.takes(&read));
        assert!(prompt.slow.is_none());
    }

    #[test]
    fn a_disk_past_the_page_cache_has_its_writes_done_by_the_kernel() {
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        assert!(Prompt::new(&file, false).writes);
        assert!(!Prompt::new(&file, true).writes);
        let device = std::fs::File::open("/dev/null").unwrap();
        let prompt = Prompt::new(&device, false);
        assert!(!prompt.writes && !prompt.reads, "only regular files");
    }
}
