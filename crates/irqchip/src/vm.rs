// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    Capabilities, CreateDevice, CreateIrqchip, IoeventBinder, IrqfdBinder, LineInjector, MsiInjector,
    RoutingSink,
};

/// Which VM something belongs to. Unique within the process, so that a token or a handle of one VM cannot be used on
/// another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(u64);

impl VmId {
    /// An id that nobody else has. For backends, once for each VM.
    #[must_use]
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// All that a VM offers for interrupts, for those who hold the whole of it. Consumers ask for the one trait they need.
pub trait InterruptVm:
    CreateDevice
    + CreateIrqchip
    + RoutingSink
    + IrqfdBinder
    + IoeventBinder
    + MsiInjector
    + LineInjector
    + Capabilities
{
}

impl<T> InterruptVm for T where
    T: CreateDevice
        + CreateIrqchip
        + RoutingSink
        + IrqfdBinder
        + IoeventBinder
        + MsiInjector
        + LineInjector
        + Capabilities
        + ?Sized
{
}
