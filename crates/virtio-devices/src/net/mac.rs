// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// A unicast Ethernet (EUI-48) address, and not all zeros: what a network card can have as its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress([u8; 6]);

/// Why some bytes or some text cannot be a network card's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MacError {
    /// The text is not six pairs of hexadecimal digits with colons between.
    #[error(
        "{0:?} is no Ethernet address: it has six bytes in hexadecimal with colons between, as in 52:54:00:12:34:56"
    )]
    Syntax(String),
    /// The lowest bit of the first byte is set: such an address names a group.
    #[error("{0} is a multicast address: the first byte of a card's own address is even")]
    Multicast(String),
    /// All bytes are zero.
    #[error("00:00:00:00:00:00 is nobody's address")]
    Zero,
}

impl MacAddress {
    /// The address with these bytes, in the order of transmission.
    ///
    /// # Errors
    /// [`MacError::Multicast`] and [`MacError::Zero`].
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        if bytes[0] & 1 != 0 {
            return Err(MacError::Multicast(Self(bytes).to_string()));
        }
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        Ok(Self(bytes))
    }

    /// A locally administered address that is always the same for the same `seed`, and most likely another for another.
    ///
    /// A guest that finds a new address at each boot takes itself for a new machine, and asks for another lease. What tells this guest and
    /// card from others makes a good seed: the VM's name and the tap's.
    #[must_use]
    pub fn derived_from(seed: &[u8]) -> Self {
        // FNV-1a, 64 bits. Not for secrets: for telling seeds apart, on any host and release alike.
        let hash = seed.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let folded = (hash >> 48) ^ hash;
        let [_, _, first, rest @ ..] = folded.to_be_bytes();
        let [b, c, d, e, f] = rest;
        // Bit 1 says locally administered, bit 0 says a single station (IEEE 802, section 8.4).
        Self([(first & 0xfc) | 2, b, c, d, e, f])
    }

    /// The bytes in the order of transmission.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let syntax = || MacError::Syntax(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(syntax)?;
            // from_str_radix would take a sign.
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(syntax());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| syntax())?;
        }
        if parts.next().is_some() {
            return Err(syntax());
        }
        Self::new(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_the_same_address() {
        let address: MacAddress = "52:54:00:aB:cd:eF".parse().unwrap();
        assert_eq!(address.bytes(), [0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
        assert_eq!(address.to_string(), "52:54:00:ab:cd:ef");
    }

    #[test]
    fn what_no_card_can_have_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "5:54:0:12:34:56",
            "+5:54:00:12:34:56",
            "gg:54:00:12:34:56",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacError::Syntax(text.into())));
        }
        assert_eq!(
            "01:00:5e:00:00:01".parse::<MacAddress>(),
            Err(MacError::Multicast("01:00:5e:00:00:01".into()))
        );
        assert_eq!("00:00:00:00:00:00".parse::<MacAddress>(), Err(MacError::Zero));
    }

    #[test]
    fn derived_addresses_are_stable_local_and_differ() {
        let one = MacAddress::derived_from(b"guest tap0");
        // By whatever release.
        assert_eq!(one.to_string(), "36:1f:cf:01:ca:e4");
        assert_eq!(one, MacAddress::derived_from(b"guest tap0"));
        assert_ne!(one, MacAddress::derived_from(b"guest tap1"));
        assert_ne!(one, MacAddress::derived_from(b"guest2 tap0"));
        for seed in 0..1000_u32 {
            let address = MacAddress::derived_from(&seed.to_le_bytes());
            assert_eq!(address.bytes()[0] & 3, 2, "{address}");
            assert_eq!(MacAddress::new(address.bytes()), Ok(address));
        }
    }
}
