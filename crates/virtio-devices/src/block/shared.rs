// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a disk's queues share, and what can be looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::operation::{Operation, Status};

#[derive(Debug)]
pub(super) struct Shared {
    /// A flush is needed to make writes durable. Otherwise each write is durable when it is answered.
    pub(super) writeback: AtomicBool,
    pub(super) counters: Arc<BlockCounters>,
    /// Queues that are served with io_uring, since activation.
    pub(super) rings: AtomicU32,
}

/// What a disk has done since the machine was built. Each can be read at any time.
#[derive(Debug, Default)]
pub struct BlockCounters {
    /// Reads that were answered.
    pub reads: AtomicU64,
    /// Bytes that they have brought.
    pub bytes_read: AtomicU64,
    /// Writes that were answered.
    pub writes: AtomicU64,
    /// Bytes that they have taken.
    pub bytes_written: AtomicU64,
    /// Other requests: flushes, discards, zeroing, questions for the serial number.
    pub others: AtomicU64,
    /// Requests that were answered with an error.
    pub errors: AtomicU64,
}

impl BlockCounters {
    pub(super) fn count(&self, operation: &Operation, status: Status) {
        let add = |counter: &AtomicU64, by| counter.fetch_add(by, Ordering::Relaxed);
        if status != Status::Ok {
            add(&self.errors, 1);
        }
        if operation.is_read() {
            add(&self.reads, 1);
            add(&self.bytes_read, operation.moved());
        } else if operation.is_write() {
            add(&self.writes, 1);
            add(&self.bytes_written, operation.moved());
        } else {
            add(&self.others, 1);
        }
    }
}
