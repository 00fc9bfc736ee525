// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the workspace's tests share. Nothing here ships.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a broken assumption is a failed test"
)]

pub mod contract;
pub mod guest;
pub mod histogram;
pub mod hostile;
#[cfg(target_arch = "aarch64")]
pub mod metal;

/// Bytes of all values in no order that repeats soon (xorshift64*, S. Vigna, "An experimental exploration of Marsaglia's xorshift generators").
#[must_use]
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}
