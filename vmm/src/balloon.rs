// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's balloon as who runs the guest sees it: how large it is to be, how large it is, how the guest's memory is.

use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_devices::{BalloonHandle, BalloonStats};

use crate::error::{Error, Result};
use crate::size::Size;

/// How large a balloon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BalloonState {
    /// Bytes that the guest is asked to give back.
    pub target: u64,
    /// Bytes that it has given back.
    pub actual: u64,
    /// Bytes of the guest's memory, with those that are given back.
    pub memory: u64,
    /// Bytes that the host has got, ever: of the balloon, and of what the guest has reported to be free.
    pub discarded: u64,
    /// Why the host has not taken something.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<String>,
    /// What the guest says of its memory, if it has a driver for that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stats: Option<GuestMemory>,
}

/// A guest's memory in its own words, in bytes. It tells what it knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestMemory {
    /// All that it counts as its own; what is in the balloon counts as well.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total: Option<u64>,
    /// Not used for anything.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub free: Option<u64>,
    /// To be had without swapping.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub available: Option<u64>,
    /// Caches of files.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub caches: Option<u64>,
    /// Swapped in, ever.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub swap_in: Option<u64>,
    /// Swapped out, ever.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub swap_out: Option<u64>,
    /// Page faults that waited for a disk, ever; a number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub major_faults: Option<u64>,
}

impl From<BalloonStats> for GuestMemory {
    fn from(stats: BalloonStats) -> Self {
        let BalloonStats { total, free, available, caches, swap_in, swap_out, major_faults, .. } = stats;
        Self { total, free, available, caches, swap_in, swap_out, major_faults }
    }
}

/// Pages that are given back are taken from under a device that reaches them by DMA: it goes on writing to memory that is somebody else's by then.
pub(crate) fn excludes_devices() -> Error {
    Error::usage("a guest with a balloon cannot have devices of the host's: they may reach memory that the balloon gave back")
        .hint("start it without --balloon, or without them")
}

/// The balloon of a guest with `memory` bytes.
pub(crate) fn state(balloon: &BalloonHandle, memory: u64, runs: bool) -> BalloonState {
    if runs {
        hear(balloon);
    }
    BalloonState {
        target: balloon.target(),
        actual: balloon.actual(),
        memory,
        discarded: balloon.discarded(),
        failure: balloon.failure(),
        stats: balloon.stats().map(GuestMemory::from),
    }
}

/// Asks the guest how its memory is, and gives it a moment to answer. One that has no driver never does.
fn hear(balloon: &BalloonHandle) {
    const A_MOMENT: Duration = Duration::from_millis(500);
    let heard = balloon.times_heard();
    if heard == 0 {
        return;
    }
    balloon.request_stats();
    let end = Instant::now() + A_MOMENT;
    while balloon.times_heard() == heard && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Checks how large a balloon is asked for, in bytes, of a guest with `memory`.
pub(crate) fn check(size: u64, memory: u64) -> Result<()> {
    if size < memory {
        return Ok(());
    }
    let (size, memory) = (Size(size), Size(memory));
    Err(Error::usage(format!("a balloon of {size} leaves the guest nothing: it has {memory}"))
        .hint("SIZE is what the guest is asked to give back, and 0 gives it all of that again"))
}

/// There is none.
pub(crate) fn absent() -> Error {
    Error::host("the guest has no balloon").hint("start it with --balloon")
}

#[cfg(test)]
mod tests {
    use virtio_devices::{Balloon, BalloonOptions};

    use super::*;

    #[test]
    fn a_balloon_is_smaller_than_the_memory() {
        check(0, 1 << 30).unwrap();
        check((1 << 30) - 1, 1 << 30).unwrap();
        let line = check(1 << 30, 1 << 30).unwrap_err().one_line();
        assert!(line.contains("1G leaves the guest nothing"), "{line}");
    }

    #[test]
    fn a_guest_without_a_driver_is_not_waited_for_and_knows_nothing() {
        let handle = Balloon::new(BalloonOptions::default()).unwrap().handle();
        handle.set_target(5 << 20);
        let state = state(&handle, 64 << 20, true);
        assert_eq!((state.target, state.actual, state.memory), (5 << 20, 0, 64 << 20));
        assert_eq!((state.stats, state.failure), (None, None));
    }
}
