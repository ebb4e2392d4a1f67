//! The types of single values: sizes, counts, and words from a short list.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A number of bytes, written `512MiB`, `10 GB`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Bytes(pub u64);

const UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("pib", 1 << 50),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("pb", 1_000_000_000_000_000),
];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("`{text}` is not a size: write a number and B, KiB, MiB, GiB, TiB, kB, MB, GB or TB");
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let unit = unit.trim().to_ascii_lowercase();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        number.checked_mul(*factor).map(Self).ok_or_else(|| format!("`{text}` is more than 16 EiB"))
    }
}

impl fmt::Display for Bytes {
    /// Exact: the largest binary unit that divides the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().filter(|(name, _)| name.ends_with("ib")).rev();
        for ((_, factor), name) in unit.zip(["PiB", "TiB", "GiB", "MiB", "KiB"]) {
            if self.0 != 0 && self.0.is_multiple_of(*factor) {
                return write!(f, "{}{name}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, "a size such as \"512MiB\"", Self, str::parse)
    }
}

/// A rate in bits per second, written `25Gbit/s`, `100 Mbit/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Rate(pub u64);

const RATES: &[(&str, u64)] = &[
    ("", 1),
    ("bit", 1),
    ("kbit", 1_000),
    ("mbit", 1_000_000),
    ("gbit", 1_000_000_000),
    ("tbit", 1_000_000_000_000),
];

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("`{text}` is not a rate: write a number and bit/s, kbit/s, Mbit/s, Gbit/s or Tbit/s");
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let unit = unit.trim().to_ascii_lowercase();
        let unit = unit.strip_suffix("/s").unwrap_or(&unit);
        let (_, factor) = RATES.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        number.checked_mul(*factor).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Rate {
    /// Exact: the largest unit that divides the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((_, factor), name) in RATES[2..].iter().rev().zip(["Tbit/s", "Gbit/s", "Mbit/s", "kbit/s"]) {
            if self.0 != 0 && self.0.is_multiple_of(*factor) {
                return write!(f, "{}{name}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, "a rate such as \"25Gbit/s\"", Self, str::parse)
    }
}

/// A number, or `auto`: what suits the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Count {
    /// What suits the machine.
    #[default]
    Auto,
    /// Exactly this many.
    Fixed(u64),
}

impl Count {
    /// The number, where one is fixed.
    pub fn fixed(self) -> Option<usize> {
        match self {
            Self::Auto => None,
            Self::Fixed(n) => usize::try_from(n).ok(),
        }
    }
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text
                .parse()
                .map(Self::Fixed)
                .map_err(|_| format!("`{text}` is neither a number nor \"auto\"")),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(n) => write!(f, "{n}"),
        }
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, "a number or \"auto\"", Self::Fixed, str::parse)
    }
}

fn number_or_text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expecting: &'static str,
    number: fn(u64) -> T,
    text: fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Either<T> {
        expecting: &'static str,
        number: fn(u64) -> T,
        text: fn(&str) -> Result<T, String>,
    }
    impl<T> Visitor<'_> for Either<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.expecting)
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
            Ok((self.number)(value))
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
            let value = u64::try_from(value).map_err(|_| E::custom("it is negative"))?;
            Ok((self.number)(value))
        }
        fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
            (self.text)(value).map_err(E::custom)
        }
    }
    deserializer.deserialize_any(Either { expecting, number, text })
}

/// What an acknowledged write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A crash of the machine.
    #[default]
    Fsync,
    /// A crash of the process only; faster.
    Process,
}

/// What a worker does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Spins a little, then sleeps until something comes.
    #[default]
    Adaptive,
    /// Never sleeps: for isolated cores.
    Busy,
}

/// Whether workers are pinned to cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pin {
    /// Where the machine allows it and has enough cores.
    #[default]
    Auto,
    /// Always; it is an error where it is not allowed.
    On,
    /// Never.
    Off,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// An address and port, or what else would be right.
fn address_of(text: &str) -> Result<SocketAddr, String> {
    let message = "is not an address and port, such as `192.0.2.1:7440` or `[::]:7440`";
    text.parse().map_err(|_| format!("`{text}` {message}"))
}

/// An address and port.
pub(crate) fn address<'de, D: Deserializer<'de>>(d: D) -> Result<SocketAddr, D::Error> {
    address_of(&String::deserialize(d)?).map_err(de::Error::custom)
}

/// A list of them.
pub(crate) fn addresses<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<SocketAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(d)?;
    texts.iter().map(|text| address_of(text).map_err(de::Error::custom)).collect()
}

/// What an optional value may be.
pub(crate) trait OrEmpty: Sized + fmt::Display {
    /// The value that is written so, or what would be right.
    fn of(text: &str) -> Result<Self, String>;
}

impl OrEmpty for SocketAddr {
    fn of(text: &str) -> Result<Self, String> {
        address_of(text)
    }
}

impl OrEmpty for IpAddr {
    fn of(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("`{text}` is not an address, such as `192.0.2.1`"))
    }
}

impl OrEmpty for crate::Subnet {
    fn of(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

/// One of these, or the empty string for none.
pub(crate) mod optional {
    use super::*;

    pub(crate) fn serialize<T: OrEmpty, S: Serializer>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => s.collect_str(value),
            None => s.serialize_str(""),
        }
    }

    pub(crate) fn deserialize<'de, T: OrEmpty, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
        let text = String::deserialize(d)?;
        if text.is_empty() { Ok(None) } else { T::of(&text).map(Some).map_err(de::Error::custom) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_exactly() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512MiB", 512 << 20),
            ("10 GB", 10_000_000_000),
            ("3kb", 3000),
            ("7b", 7),
        ] {
            assert_eq!(text.parse::<Bytes>(), Ok(Bytes(bytes)), "{text}");
        }
        for bytes in [0, 1, 1023, 1024, 3 << 20, 5 << 30, u64::MAX] {
            assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        }
        for (text, bits_per_s) in
            [("0", 0), ("25Gbit/s", 25_000_000_000), ("100 Mbit", 100_000_000), ("7bit/s", 7)]
        {
            assert_eq!(text.parse::<Rate>(), Ok(Rate(bits_per_s)), "{text}");
            assert_eq!(Rate(bits_per_s).to_string().parse(), Ok(Rate(bits_per_s)));
        }
        for bad in ["", "Gbit", "1.5Gbit", "1GB", "99999999Tbit"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "9 furlongs", "99999999999PiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }
}
