// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::{DeviceId, Gsi, IrqchipPin, MsiMessage};

use crate::{Entry, Error, IrqchipModel, MsiPath, MsiPolicy, TableKind, Target};

/// What one VM's table may hold: the model with the VM's own numbers filled in. Pure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) model: &'static IrqchipModel,
    /// How many lines the irqchip was configured with.
    pub(crate) lines: u32,
    /// How many entries the table may have, and the number each GSI lies below.
    pub(crate) limit: u32,
    pub(crate) msi: MsiPolicy,
}

impl Rules {
    /// Whether `gsi` may fire `pin`.
    pub(crate) fn check_line(&self, gsi: Gsi, pin: IrqchipPin) -> Result<(), Error> {
        let model = self.model;
        let chip = model.chip(pin.irqchip).ok_or(Error::NoSuchChip { gsi, pin, model: model.name })?;
        let wired = chip.wired_pins(self.lines);
        if !wired.contains(&pin.pin.get()) {
            let (first, last) = (wired.start, wired.end.saturating_sub(1));
            return Err(Error::NoSuchPin { gsi, pin, chip: chip.name, first, last });
        }
        if model.table == TableKind::Identity && pin.pin.get() != gsi.get() {
            return Err(Error::NotItsOwnSource { gsi, number: pin.pin.get() });
        }
        Ok(())
    }

    /// Whether `gsi` may send `message` from `device_id`.
    pub(crate) fn check_msi(&self, gsi: Gsi, message: MsiMessage, device_id: DeviceId) -> Result<(), Error> {
        match self.model.msi {
            _ if self.msi.v2m_spi(message).is_some() => Ok(()),
            MsiPath::Table => Ok(()),
            MsiPath::TableWithIts { .. } if !self.msi.needs_device_id() => {
                Err(Error::NoMsiReceiver { gsi, message })
            }
            MsiPath::TableWithIts { device_id_bits: bits } => {
                if device_id.get().checked_shr(bits).unwrap_or(0) != 0 {
                    return Err(Error::DeviceIdTooWide { gsi, device_id, bits });
                }
                Ok(())
            }
            MsiPath::SourceNumber if message.data != gsi.get() => {
                Err(Error::NotItsOwnSource { gsi, number: message.data })
            }
            MsiPath::SourceNumber => Ok(()),
        }
    }

    /// The routes that the kernel has made for the lines.
    pub(crate) fn default_entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        if self.model.default_routes {
            for gsi in self.model.line_gsis(self.lines).map(Gsi::new) {
                let pins = self.model.line_pins(gsi, self.lines);
                entries.extend(pins.map(|pin| Entry { gsi, target: Target::Line(pin) }));
            }
        }
        entries
    }
}
