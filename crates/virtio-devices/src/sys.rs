// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The crate's unsafe code: ioctls, and guest memory as the host kernel wants to see it.
#![allow(
    unsafe_code,
    reason = "ioctls, iovecs and io_uring take raw pointers; each block says why it is sound"
)]

pub(crate) mod discard;
pub(crate) mod scatter;
pub(crate) mod storage;
pub(crate) mod tap;
pub(crate) mod vhost;
