//! The words of one line behind its verb.

use std::str::SplitWhitespace;

use super::{PAGE, Region, number};

/// What is wrong with a line.
pub(super) type Reason = String;

/// A word of the file as an error shows it: printable, and not longer than a line.
pub(super) fn quote(word: &str) -> String {
    const LONGEST: usize = 40;
    let mut shown: String = word.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if word.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

/// Operands still to be read.
#[derive(Debug)]
pub(super) struct Operands<'a>(SplitWhitespace<'a>);

impl<'a> Operands<'a> {
    pub(super) fn new(rest: SplitWhitespace<'a>) -> Self {
        Self(rest)
    }

    /// The next word, if there is one.
    pub(super) fn next(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    /// The next word, called `name` when it is missing.
    pub(super) fn word(&mut self, name: &str) -> Result<&'a str, Reason> {
        self.next().ok_or_else(|| format!("{name} is missing"))
    }

    pub(super) fn number(&mut self, name: &str) -> Result<u64, Reason> {
        self.word(name).and_then(number::parse)
    }

    /// `START LEN`, in units of `unit`, below `limit`.
    pub(super) fn region(&mut self, unit: u64, limit: u64) -> Result<Region, Reason> {
        let (start, len) = (self.number("START")?, self.number("LEN")?);
        if len == 0 {
            return Err("LEN is zero".to_owned());
        }
        aligned("START", start, unit)?;
        aligned("LEN", len, unit)?;
        match start.checked_add(len) {
            None => Err(format!("{start:#x} + {len:#x} wraps")),
            Some(end) if end > limit => {
                Err(format!("the range ends at {end:#x}, above the shared bit {limit:#x}"))
            }
            Some(_) => Ok(Region { start, len }),
        }
    }

    /// The address of a 4 KiB page.
    pub(super) fn page(&mut self, name: &str) -> Result<u64, Reason> {
        let gpa = self.number(name)?;
        aligned(name, gpa, PAGE)?;
        Ok(gpa)
    }

    /// `key=value` words up to the end of the line: the values in the order of `keys`.
    pub(super) fn keys<const N: usize>(&mut self, keys: [&str; N]) -> Result<[Option<&'a str>; N], Reason> {
        let mut values = [None; N];
        for word in self.0.by_ref() {
            let Some((key, value)) = word.split_once('=') else {
                return Err(format!("extra operand {}", quote(word)));
            };
            let known = keys.iter().zip(&mut values).find(|(name, _)| **name == key);
            let Some((_, slot)) = known else {
                return Err(format!("unknown key {}", quote(key)));
            };
            if slot.replace(value).is_some() {
                return Err(format!("{} is given twice", quote(key)));
            }
        }
        Ok(values)
    }

    /// Nothing may follow.
    pub(super) fn end(&mut self) -> Result<(), Reason> {
        self.next().map_or(Ok(()), |word| Err(format!("extra operand {}", quote(word))))
    }
}

/// Refuses `value` when it is not a multiple of `unit`.
pub(super) fn aligned(name: &str, value: u64, unit: u64) -> Result<(), Reason> {
    if value.is_multiple_of(unit) {
        return Ok(());
    }
    Err(format!("{name} {value:#x} is not a multiple of {}", super::Size(unit)))
}

/// One of `choices` by its name.
pub(super) fn choose<T: Copy>(key: &str, value: &str, choices: &[(&str, T)]) -> Result<T, Reason> {
    choices.iter().find(|(name, _)| *name == value).map(|&(_, choice)| choice).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        format!("{key} is {}, not {}", quote(value), names.join(" or "))
    })
}
