//! Quantities with their units, written as people write them: `30s`, `256MiB`, `0.5`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, to the millisecond: `500ms`, `30s`, `2m`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(u64);

impl Span {
    pub const ZERO: Self = Self(0);

    pub const fn is_zero(&self) -> bool {
        self.0 == 0
    }

    pub const fn millis(ms: u64) -> Self {
        Self(ms)
    }

    pub const fn secs(s: u64) -> Self {
        Self(s.saturating_mul(1000))
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }

    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

const SPAN_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, &SPAN_UNITS).map(Self).ok_or_else(|| {
            format!("`{text}` is not a duration: write a whole number and a unit, such as 500ms, 30s, 2m or 1h")
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.0, &SPAN_UNITS, "s", f)
    }
}

/// An amount of memory: `64MiB`, `1GiB`; Docker's `64m` and `1g` mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(u64);

impl Bytes {
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

const BYTE_UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let docker = [("k", 1 << 10), ("m", 1 << 20), ("g", 1 << 30)];
        parse(text, &BYTE_UNITS).or_else(|| parse(text, &docker)).map(Self).ok_or_else(|| {
            format!("`{text}` is not an amount of memory: write a whole number and a unit, such as 64MiB or 1GiB")
        })
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.0, &BYTE_UNITS, "B", f)
    }
}

/// A share of processors, to the thousandth: `0.5`, `2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus(u32);

impl Cpus {
    pub const fn milli(self) -> u32 {
        self.0
    }

    pub const fn from_milli(milli: u32) -> Self {
        Self(milli)
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(f64::from(self.0) / 1000.0)
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let cpus = f64::deserialize(from)?;
        if !(0.001..=1024.0).contains(&cpus) {
            return Err(de::Error::custom(format!(
                "{cpus} is not a share of processors: write a number from 0.001 to 1024, such as 0.5"
            )));
        }
        // In range by the check above, so the cast keeps the value.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range checked above")]
        Ok(Self((cpus * 1000.0).round() as u32))
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// The largest unit that divides the value; zero in `zero`'s unit.
fn show(value: u64, units: &[(&str, u64)], zero: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match units.iter().rev().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor)) {
        Some((name, factor)) => write!(f, "{}{name}", value / factor),
        None => write!(f, "0{zero}"),
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

as_text!(Span);
as_text!(Bytes);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_span_reads_back_what_it_prints(ms in 0..u64::MAX / 4) {
            prop_assert_eq!(Span::millis(ms).to_string().parse::<Span>(), Ok(Span::millis(ms)));
        }

        #[test]
        fn memory_reads_back_what_it_prints(bytes in 0..u64::MAX / 4) {
            prop_assert_eq!(Bytes::new(bytes).to_string().parse::<Bytes>(), Ok(Bytes::new(bytes)));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<Span>();
            let _ = text.parse::<Bytes>();
        }
    }

    #[test]
    fn a_number_without_unit_is_refused_with_an_example() {
        let error = "30".parse::<Span>().expect_err("no unit");
        assert!(error.contains("30s"), "{error}");
        assert_eq!("64m".parse::<Bytes>(), Ok(Bytes::new(64 << 20)));
    }
}
