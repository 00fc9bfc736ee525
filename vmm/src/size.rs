// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sizes of memory as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// The units, largest first. They are powers of two: `M` is a mebibyte, as everywhere in this field.
const UNITS: [(char, u32); 5] = [('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for Size {
    type Err = String;

    /// Takes `512M`, `2G`, `1048576`, `2GiB`; a plain number is bytes.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is no size: write a whole number with a unit, e.g. 512M or 2G");
        let number_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(number_end);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let mut letters = unit.chars();
        let shift = match letters.next() {
            None => 0,
            Some(letter) => {
                let letter = letter.to_ascii_uppercase();
                let (_, shift) = UNITS.iter().find(|(name, _)| *name == letter).ok_or_else(bad)?;
                if !matches!(letters.as_str(), "" | "B" | "iB") {
                    return Err(bad());
                }
                *shift
            }
        };
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| format!("'{text}' is more than 64 bits can count"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, shift) in UNITS {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{name}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512M\" or \"2G\", or a number of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Size, E> {
                Ok(Size(n))
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Size, E> {
                u64::try_from(n).map(Size).map_err(|_| E::custom("a size is not negative"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes, shown) in [
            ("0", 0, "0"),
            ("4096", 4096, "4K"),
            ("128M", 128 << 20, "128M"),
            ("128m", 128 << 20, "128M"),
            ("6GiB", 6 << 30, "6G"),
            ("6GB", 6 << 30, "6G"),
            ("1P", 1 << 50, "1P"),
            ("1025", 1025, "1025"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1M", "1.5G", "1X", "1MM", "99999999999999999999", "32768P", "1 G"] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
    }
}
