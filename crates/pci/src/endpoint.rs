// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an emulated function holds: configuration space, MSI and MSI-X in one.

use std::sync::{Arc, Mutex};

use crate::lock::lock;
use crate::{
    BarIndex, ConfigError, ConfigSpace, ConfigWrite, DecodedBar, Msi, MsiLayout, Msix, MsixLayout,
    MsixRegion, VectorSink,
};

/// A configuration space joined with the MSI and MSI-X that its capabilities stand for, and locked: what the accesses of a
/// [`PciFunction`](crate::PciFunction) go to.
///
/// While the sink of a capability is told of a write, the configuration space is not locked.
#[derive(Debug)]
pub struct Endpoint {
    config: Mutex<ConfigSpace>,
    msi: Option<(u16, Msi)>,
    msix: Option<(u16, Msix)>,
}

impl Endpoint {
    /// A function with neither.
    #[must_use]
    pub const fn new(config: ConfigSpace) -> Self {
        Self { config: Mutex::new(config), msi: None, msix: None }
    }

    /// Adds MSI.
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`].
    pub fn with_msi(mut self, layout: MsiLayout, sink: Arc<dyn VectorSink>) -> Result<Self, ConfigError> {
        let at = lock(&self.config).add_capability(&layout.capability())?;
        self.msi = Some((at, Msi::new(layout, sink)));
        Ok(self)
    }

    /// Adds MSI-X. The accesses to the BARs that hold its structures are the function's to [bring](Self::read_msix).
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`].
    pub fn with_msix(mut self, layout: MsixLayout, sink: Arc<dyn VectorSink>) -> Result<Self, ConfigError> {
        let at = lock(&self.config).add_capability(&layout.capability())?;
        self.msix = Some((at, Msix::new(layout, sink)));
        Ok(self)
    }

    /// Its MSI, if it has any.
    #[must_use]
    pub fn msi(&self) -> Option<&Msi> {
        self.msi.as_ref().map(|(_, msi)| msi)
    }

    /// Its MSI-X, if it has any.
    #[must_use]
    pub fn msix(&self) -> Option<&Msix> {
        self.msix.as_ref().map(|(_, msix)| msix)
    }

    /// Whether it interrupts by MSI now.
    #[must_use]
    pub fn msi_enabled(&self) -> bool {
        self.msi().is_some_and(Msi::is_enabled)
    }

    /// Whether it interrupts by MSI-X now.
    #[must_use]
    pub fn msix_enabled(&self) -> bool {
        self.msix().is_some_and(Msix::is_enabled)
    }

    /// Looks at the configuration space, or changes it.
    pub fn with_config<R>(&self, f: impl FnOnce(&mut ConfigSpace) -> R) -> R {
        f(&mut lock(&self.config))
    }

    /// The guest reads from configuration space; as [`PciFunction::read_config`](crate::PciFunction::read_config).
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        // ID and next pointer, and what is in neither capability, are in the configuration space.
        lock(&self.config).read(offset, data);
        let mut patch = |at: u16, read: &dyn Fn(u16, &mut [u8]), length: u16| {
            for (byte, offset) in data.iter_mut().zip(offset..=u16::MAX) {
                if (at + 2..at + length).contains(&offset) {
                    read(offset - at, std::slice::from_mut(byte));
                }
            }
        };
        if let Some((at, msi)) = &self.msi {
            let length = msi.layout().capability_length();
            patch(*at, &|offset, data| msi.read_capability(offset, data), length);
        }
        if let Some((at, msix)) = &self.msix {
            patch(*at, &|offset, data| msix.read_capability(offset, data), MsixLayout::CAPABILITY_LENGTH);
        }
    }

    /// The guest writes to configuration space; as [`PciFunction::write_config`](crate::PciFunction::write_config).
    pub fn write(&self, offset: u16, data: &[u8]) -> ConfigWrite {
        let write = lock(&self.config).write(offset, data);
        if let Some((at, msi)) = &self.msi
            && (*at..at + msi.layout().capability_length()).contains(&offset)
        {
            msi.write_capability(offset - at, data);
        }
        if let Some((at, msix)) = &self.msix
            && (*at..at + MsixLayout::CAPABILITY_LENGTH).contains(&offset)
        {
            msix.write_capability(offset - at, data);
        }
        write
    }

    /// The BARs that decode; as [`PciFunction::decoded`](crate::PciFunction::decoded).
    #[must_use]
    pub fn decoded(&self) -> Vec<DecodedBar> {
        lock(&self.config).decoded()
    }

    /// The guest reads from a BAR. Whether MSI-X has answered: if not, the read is the function's.
    pub fn read_msix(&self, bar: BarIndex, offset: u64, data: &mut [u8]) -> bool {
        let Some(msix) = self.msix() else { return false };
        match msix.layout().locate(bar, offset) {
            Some(MsixRegion::Table(offset)) => msix.read_table(offset, data),
            Some(MsixRegion::Pending(offset)) => msix.read_pending(offset, data),
            None => return false,
        }
        true
    }

    /// The guest writes to a BAR. Whether MSI-X has taken it: if not, the write is the function's.
    pub fn write_msix(&self, bar: BarIndex, offset: u64, data: &[u8]) -> bool {
        let Some(msix) = self.msix() else { return false };
        match msix.layout().locate(bar, offset) {
            Some(MsixRegion::Table(offset)) => msix.write_table(offset, data),
            Some(MsixRegion::Pending(_)) => {}
            None => return false,
        }
        true
    }

    /// As after a reset: configuration space, MSI and MSI-X.
    pub fn reset(&self) {
        lock(&self.config).reset();
        if let Some(msi) = self.msi() {
            msi.reset();
        }
        if let Some(msix) = self.msix() {
            msix.reset();
        }
    }
}
