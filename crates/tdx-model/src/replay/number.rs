//! Numbers, flags and names as traces write them.
//!
//! Registers and addresses are hexadecimal strings, levels, counts and epochs decimal numbers. Both forms are read
//! everywhere: a writer that differs in this says the same.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// A number: `"0x1f"`, `"31"` or `31`; a flag counts as 0 or 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Hex(pub(super) u64);

impl Hex {
    /// The value in a type that may be too narrow for it.
    pub(super) fn fit<T: TryFrom<u64>>(self) -> Result<T, String> {
        T::try_from(self.0).map_err(|_| format!("{:#x} is too large", self.0))
    }
}

struct Digits;

impl Visitor<'_> for Digits {
    type Value = Hex;

    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a number, or one written as \"0x..\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Hex, E> {
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).map(Hex).map_err(E::custom),
            None => text.parse().map(Hex).map_err(E::custom),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Hex, E> {
        Ok(Hex(number))
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Hex, E> {
        Ok(Hex(flag.into()))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Digits)
    }
}

/// Any of the number types that rows have.
pub(super) fn number<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<T, D::Error> {
    Hex::deserialize(deserializer)?.fit().map_err(D::Error::custom)
}

/// The same for a number that need not be there, or is `null`.
pub(super) fn optional<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::<Hex>::deserialize(deserializer)?.map(Hex::fit).transpose().map_err(D::Error::custom)
}

/// A flag written as `true` or as a number.
pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Hex::deserialize(deserializer).map(|number| number.0 != 0)
}

/// A state, by name or by number.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Named {
    Number(Hex),
    Name(String),
}

impl Default for Named {
    fn default() -> Self {
        Self::Number(Hex(0))
    }
}

impl Named {
    /// The number, where `names` are the names of 0, 1, 2 and so on; prefixes like `TD_` do not count.
    pub(super) fn number_in(&self, names: &[&str]) -> Result<u8, String> {
        let found = match self {
            Self::Number(Hex(number)) => usize::try_from(*number).ok().filter(|&number| number < names.len()),
            Self::Name(name) => {
                names.iter().position(|known| name.strip_suffix(known).is_some_and(is_prefix))
            }
        };
        found.map(|number| number as u8).ok_or_else(|| format!("unknown state {self:?}"))
    }
}

fn is_prefix(text: &str) -> bool {
    text.is_empty() || text.ends_with('_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_number_say_the_same() {
        for text in ["\"0x1f\"", "31", "\"31\""] {
            assert_eq!(serde_json::from_str::<Hex>(text).unwrap(), Hex(31), "{text}");
        }
        assert_eq!(serde_json::from_str::<Hex>("\"0xffffffffffffffff\"").unwrap(), Hex(u64::MAX));
        for text in ["\"0xg\"", "\"\"", "-1", "1.5", "[]", "\"0x10000000000000000\""] {
            assert!(serde_json::from_str::<Hex>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn states_have_names_and_numbers() {
        let names = ["IDLE", "RUNNABLE", "LIVE_EXPORT", "PAUSED_EXPORT"];
        let number = |text: &str| serde_json::from_str::<Named>(text).unwrap().number_in(&names);
        assert_eq!(number("\"RUNNABLE\""), Ok(1));
        assert_eq!(number("\"OP_STATE_LIVE_EXPORT\""), Ok(2));
        assert_eq!(number("3"), Ok(3));
        assert!(number("4").is_err() && number("\"EXPORT\"").is_err());
    }
}
