// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Capabilities as bytes and masks, ready to be linked into a function's list.

use std::ops::Range;

/// Capability IDs (PCI Code and ID Assignment Specification, section 2).
pub(crate) mod id {
    pub(crate) const POWER_MANAGEMENT: u8 = 0x01;
    pub(crate) const MSI: u8 = 0x05;
    pub(crate) const VENDOR_SPECIFIC: u8 = 0x09;
    pub(crate) const EXPRESS: u8 = 0x10;
    pub(crate) const MSIX: u8 = 0x11;
}

/// A capability: its bytes, and which bits of them software may write.
///
/// Offsets are those of the specification, counted from the capability's start: 2 is the first byte after ID and next pointer of a standard
/// capability, 4 the first one after the header of an extended one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    pub(crate) id: u16,
    /// The version, which only those of the extended list have.
    pub(crate) version: Option<u8>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) writable: Vec<u8>,
    pub(crate) clear: Vec<u8>,
}

impl Capability {
    /// A capability of the standard list. `body` is what follows ID and next pointer; software may write none of it.
    #[must_use]
    pub fn new(id: u8, body: &[u8]) -> Self {
        Self::with_header(u16::from(id), None, 2, body)
    }

    /// A capability of the extended list, at version 0 to 15. `body` is what follows the 4-byte header; software may write none of it.
    #[must_use]
    pub fn extended(id: u16, version: u8, body: &[u8]) -> Self {
        Self::with_header(id, Some(version & 0xf), 4, body)
    }

    fn with_header(id: u16, version: Option<u8>, header: usize, body: &[u8]) -> Self {
        let mut bytes = vec![0; header];
        bytes.extend_from_slice(body);
        Self { id, version, bytes, writable: Vec::new(), clear: Vec::new() }
    }

    /// A vendor-specific capability (section 7.9.4). `body` is what follows ID, next pointer and length byte: for virtio,
    /// `cfg_type`, `bar`, and so on. At most 253 bytes; what is more is left out.
    #[must_use]
    pub fn vendor_specific(body: &[u8]) -> Self {
        let body = &body[..body.len().min(253)];
        let length = u8::try_from(body.len() + 3).unwrap_or(u8::MAX);
        let mut bytes = vec![length];
        bytes.extend_from_slice(body);
        Self::new(id::VENDOR_SPECIFIC, &bytes)
    }

    /// Power management, version 3 (section 7.5.2): D0 and D3hot, no PME, state kept from D3hot to D0.
    #[must_use]
    pub fn power_management() -> Self {
        const VERSION_3: u16 = 3;
        const NO_SOFT_RESET: u8 = 1 << 3;
        const POWER_STATE: u8 = 3;
        let [low, high] = VERSION_3.to_le_bytes();
        Self::new(id::POWER_MANAGEMENT, &[low, high, NO_SOFT_RESET, 0, 0, 0]).writable(4..5, POWER_STATE)
    }

    /// Lets software write the bits `mask` of each of these bytes.
    #[must_use]
    pub fn writable(mut self, bytes: Range<u8>, mask: u8) -> Self {
        set(&mut self.writable, self.bytes.len(), bytes, mask);
        self
    }

    /// Lets software clear the bits `mask` of each of these bytes by writing ones to them.
    #[must_use]
    pub fn write_1_to_clear(mut self, bytes: Range<u8>, mask: u8) -> Self {
        set(&mut self.clear, self.bytes.len(), bytes, mask);
        self
    }

    /// How many bytes it has, with its header.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has no bytes. It always has a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

fn set(masks: &mut Vec<u8>, length: usize, bytes: Range<u8>, mask: u8) {
    masks.resize(length, 0);
    for at in bytes {
        if let Some(byte) = masks.get_mut(usize::from(at)) {
            *byte |= mask;
        }
    }
}
