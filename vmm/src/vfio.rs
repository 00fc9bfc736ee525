// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's devices that the guest gets: what those on PCI and those without a bus have in common.

use std::sync::Arc;

use vfio_passthrough::host::Sysfs;
use vfio_passthrough::iommu::HostFiles;
use vfio_passthrough::{DmaSpaces, GuestSlots};
use vm_memory::GuestMemoryMmap;

use crate::error::{Error, Result};

/// Where devices of the host come from, and where they go.
pub(crate) struct Passthrough {
    pub(crate) sysfs: Sysfs,
    /// The guest's memory as the devices see it.
    pub(crate) spaces: DmaSpaces,
    /// Where their registers become memory of the guest.
    pub(crate) slots: Arc<dyn GuestSlots>,
}

impl Passthrough {
    /// Devices of this host, for a guest with this memory. Opens nothing yet.
    pub(crate) fn new(memory: &GuestMemoryMmap, slots: Arc<dyn GuestSlots>) -> Self {
        Self {
            sysfs: Sysfs::new(),
            spaces: DmaSpaces::new(Arc::new(HostFiles::default()), memory.clone()),
            slots,
        }
    }
}

/// The user's turn, or the host's: one line with what to do.
pub(crate) fn explain(what: &str, error: vfio_passthrough::Error) -> Error {
    use vfio_passthrough::Error as E;
    let hint = error.hint();
    let message = format!("{what}: {error}");
    let mut explained = match &error {
        E::Malformed { .. } | E::NotFound { .. } | E::WrongIommu { .. } => Error::usage(message),
        _ => Error::host(message),
    };
    // The message is the error's own; what it came from follows.
    if let Some(source) = into_source(error) {
        explained = explained.because(source);
    }
    match hint {
        Some(hint) => explained.hint(hint),
        None => explained,
    }
}

fn into_source(error: vfio_passthrough::Error) -> Option<Box<dyn std::error::Error + Send + Sync>> {
    use vfio_passthrough::Error as E;
    match error {
        E::Kernel { source, .. }
        | E::InUse { source, .. }
        | E::Permission { source, .. }
        | E::MemoryLock { source, .. }
        | E::NoReset { source, .. }
        | E::UnsafeInterrupts { source, .. }
        | E::SharedInterrupt { source, .. }
        | E::KeptInterrupt { source, .. } => Some(source.into()),
        E::Interrupt { source, .. } => Some(source.into()),
        _ => None,
    }
}

/// As a `Result`.
pub(crate) trait Explain<T> {
    /// With which option it was, for the user.
    fn explain(self, what: &str) -> Result<T>;
}

impl<T> Explain<T> for std::result::Result<T, vfio_passthrough::Error> {
    fn explain(self, what: &str) -> Result<T> {
        self.map_err(|e| explain(what, e))
    }
}
