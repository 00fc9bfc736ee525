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
#[cfg(target_arch = "aarch64")]
pub mod metal;
