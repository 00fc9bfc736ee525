// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use core::fmt;
use core::str::FromStr;

use crate::DeviceId;
use crate::OutOfRange;
use crate::range::check;

/// A PCI function within its segment: bus, device (0–31), function (0–7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bdf(u16);

impl Bdf {
    /// The function at this place.
    ///
    /// # Errors
    /// If `device` is greater than 31 or `function` greater than 7.
    pub const fn new(bus: u8, device: u8, function: u8) -> Result<Self, OutOfRange> {
        if let Err(e) = check("PCI device number", device as u32, 0, 31) {
            return Err(e);
        }
        if let Err(e) = check("PCI function number", function as u32, 0, 7) {
            return Err(e);
        }
        Ok(Self(((bus as u16) << 8) | ((device as u16) << 3) | function as u16))
    }

    /// The function that a requester ID names.
    #[must_use]
    pub const fn from_requester_id(id: u16) -> Self {
        Self(id)
    }

    /// The bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        ((self.0 >> 3) & 0x1f) as u8
    }

    /// The function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// The 16 bits that go over the bus with each transaction (PCIe base specification, section 2.2.6.2).
    #[must_use]
    pub const fn requester_id(self) -> u16 {
        self.0
    }

    /// The device ID that an ITS sees, behind a host bridge whose `msi-map` is the identity plus `base`.
    #[must_use]
    pub const fn device_id(self, base: u32) -> DeviceId {
        DeviceId::new(base.wrapping_add(self.0 as u32))
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

/// A PCI function with its segment (also called domain).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sbdf {
    /// The segment, one per host bridge as a rule.
    pub segment: u16,
    /// The function within it.
    pub bdf: Bdf,
}

impl fmt::Display for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{}", self.segment, self.bdf)
    }
}

/// A text that is no PCI address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParseBdfError;

impl fmt::Display for ParseBdfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a PCI address is written [SSSS:]BB:DD.F in hexadecimal, e.g. 0000:01:00.0")
    }
}

impl core::error::Error for ParseBdfError {}

/// One to `width` hexadecimal digits, and nothing else (no sign, which `from_str_radix` would take).
fn hex(text: &str, width: usize) -> Result<u16, ParseBdfError> {
    if text.is_empty() || text.len() > width || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ParseBdfError);
    }
    u16::from_str_radix(text, 16).map_err(|_| ParseBdfError)
}

impl FromStr for Bdf {
    type Err = ParseBdfError;

    fn from_str(text: &str) -> Result<Self, ParseBdfError> {
        let (bus, rest) = text.split_once(':').ok_or(ParseBdfError)?;
        let (device, function) = rest.split_once('.').ok_or(ParseBdfError)?;
        let byte = |text, width| u8::try_from(hex(text, width)?).map_err(|_| ParseBdfError);
        Self::new(byte(bus, 2)?, byte(device, 2)?, byte(function, 1)?).map_err(|_| ParseBdfError)
    }
}

impl FromStr for Sbdf {
    type Err = ParseBdfError;

    /// Takes `SSSS:BB:DD.F`, and `BB:DD.F` in segment 0.
    fn from_str(text: &str) -> Result<Self, ParseBdfError> {
        let (segment, bdf) = match text.split_once(':') {
            Some((segment, bdf)) if bdf.contains(':') => (hex(segment, 4)?, bdf),
            _ => (0, text),
        };
        Ok(Self { segment, bdf: bdf.parse()? })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["0000:00:00.0", "0000:00:08.0", "00ff:ff:1f.7"] {
            assert_eq!(text.parse::<Sbdf>().unwrap().to_string(), text);
        }
        assert_eq!("1:2.3".parse::<Sbdf>().unwrap().to_string(), "0000:01:02.3");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "0",
            "0:0",
            "0:0.8",
            "0:20.0",
            "100:0.0",
            "0:0.0.0",
            "x:0.0",
            "+1:0.0",
            "10000:00:00.0",
            ":0.0",
            "000:0.0",
            "0:000.0",
            "0:0.00",
            "00000:0:0.0",
        ] {
            assert_eq!(text.parse::<Sbdf>(), Err(ParseBdfError), "{text:?}");
        }
    }

    #[test]
    fn the_requester_id_is_bus_device_function() {
        let bdf = Bdf::new(1, 2, 3).unwrap();
        assert_eq!(bdf.requester_id(), 0x0113);
        assert_eq!(Bdf::from_requester_id(0x0113), bdf);
        assert_eq!(bdf.device_id(0x1_0000), DeviceId::new(0x1_0113));
    }
}
