// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI Express capability (PCI Express base specification 6.0, section 7.5.3).

use super::capability::{Capability, id};

// Offsets from the start of the capability.
pub(crate) const FLAGS: u16 = 0x02;
pub(crate) const DEVICE_CAPABILITIES: u16 = 0x04;
pub(crate) const DEVICE_CONTROL: u16 = 0x08;
pub(crate) const LINK_CAPABILITIES: u16 = 0x0c;
pub(crate) const LINK_CONTROL: u16 = 0x10;
pub(crate) const SLOT_CAPABILITIES: u16 = 0x14;
pub(crate) const SLOT_CONTROL: u16 = 0x18;
pub(crate) const ROOT_CONTROL: u16 = 0x1c;
pub(crate) const DEVICE_CAPABILITIES_2: u16 = 0x24;
pub(crate) const DEVICE_CONTROL_2: u16 = 0x28;
pub(crate) const LINK_CAPABILITIES_2: u16 = 0x2c;
pub(crate) const LINK_CONTROL_2: u16 = 0x30;
/// How long version 2 of it is.
const LENGTH: usize = 0x3c;

/// Capability version 2, which all since PCI Express 2.0 have.
pub(crate) const VERSION: u16 = 2;
/// Device capabilities: role-based error reporting, which the specification demands.
pub(crate) const ROLE_BASED_ERRORS: u32 = 1 << 15;
/// Device capabilities: function level reset.
const FUNCTION_LEVEL_RESET: u32 = 1 << 28;
/// Device control: start a function level reset. Reads zero.
pub(crate) const INITIATE_RESET: u32 = 15;
/// Device control: what can be written and means nothing to a function without a wire: error reporting, relaxed ordering, payload sizes, extended tags, no snoop.
const DEVICE_CONTROL_WRITABLE: u16 = 0x79ff;
/// Device control after a reset: relaxed ordering, no snoop, read requests of 512 bytes.
const DEVICE_CONTROL_DEFAULT: u16 = 0x2810;
/// Device status: the error bits that software clears.
const DEVICE_STATUS_ERRORS: u8 = 0x0f;

/// What kind of function has the capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExpressKind {
    /// A function behind a port: it has a link.
    Endpoint,
    /// A function on the root bus: it has none.
    IntegratedEndpoint,
}

/// A register block under construction.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    clear: Vec<u8>,
}

impl Block {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; LENGTH], writable: vec![0; LENGTH], clear: vec![0; LENGTH] }
    }

    fn put(to: &mut [u8], offset: u16, value: &[u8]) {
        for (byte, value) in to.iter_mut().skip(usize::from(offset)).zip(value) {
            *byte |= value;
        }
    }

    pub(crate) fn word(mut self, offset: u16, value: u16, writable: u16) -> Self {
        Self::put(&mut self.bytes, offset, &value.to_le_bytes());
        Self::put(&mut self.writable, offset, &writable.to_le_bytes());
        self
    }

    pub(crate) fn dword(mut self, offset: u16, value: u32) -> Self {
        Self::put(&mut self.bytes, offset, &value.to_le_bytes());
        self
    }

    pub(crate) fn clear(mut self, offset: u16, bits: u16) -> Self {
        Self::put(&mut self.clear, offset, &bits.to_le_bytes());
        self
    }

    /// Device control and status as each function has them.
    pub(crate) fn device(self, capabilities: u32) -> Self {
        self.dword(DEVICE_CAPABILITIES, ROLE_BASED_ERRORS | capabilities)
            .word(DEVICE_CONTROL, DEVICE_CONTROL_DEFAULT, DEVICE_CONTROL_WRITABLE)
            .clear(DEVICE_CONTROL + 2, DEVICE_STATUS_ERRORS.into())
    }

    pub(crate) fn finish(self) -> Capability {
        let Self { bytes, writable, clear } = self;
        Capability { id: id::EXPRESS.into(), version: None, bytes, writable, clear }
    }
}

impl Capability {
    /// PCI Express, version 2, without a slot: payloads of 128 bytes, and a function level reset if the function wants to be
    /// [told](crate::ConfigSpace::asks_for_reset) of it.
    ///
    /// An [endpoint](ExpressKind::Endpoint) has a link of one lane at 2.5 GT/s, the least there is: nobody measures it.
    #[must_use]
    pub fn express(kind: ExpressKind, function_level_reset: bool) -> Self {
        /// 2.5 GT/s, one lane.
        const SLOWEST_LINK: u16 = 0x11;
        /// In link capabilities 2, the vector of speeds begins at bit 1.
        const ONLY_SPEED_1: u32 = 1 << 1;
        /// Link control: ASPM, read completion boundary, common clock, extended synch, clock power management.
        const LINK_CONTROL_WRITABLE: u16 = 0x00cb;
        let device_type: u16 = match kind {
            ExpressKind::Endpoint => 0,
            ExpressKind::IntegratedEndpoint => 9,
        };
        let flr = if function_level_reset { FUNCTION_LEVEL_RESET } else { 0 };
        let block = Block::new().word(FLAGS, VERSION | device_type << 4, 0).device(flr);
        match kind {
            ExpressKind::IntegratedEndpoint => block,
            ExpressKind::Endpoint => block
                .dword(LINK_CAPABILITIES, SLOWEST_LINK.into())
                .word(LINK_CONTROL, 0, LINK_CONTROL_WRITABLE)
                .word(LINK_CONTROL + 2, SLOWEST_LINK, 0)
                .dword(LINK_CAPABILITIES_2, ONLY_SPEED_1)
                .word(LINK_CONTROL_2, 1, 0),
        }
        .finish()
    }
}
