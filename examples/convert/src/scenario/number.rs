use std::fmt;

use super::operands::{Reason, quote};

/// A number of bytes, printed as a scenario writes it: in the largest unit that divides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = ["", "K", "M", "G", "T"];
        let step = if self.0 == 0 { 0 } else { (self.0.trailing_zeros() / 10).min(4) };
        let suffix = unit.get(step as usize).copied().unwrap_or_default();
        f.pad(&format!("{}{suffix}", self.0 >> (10 * step)))
    }
}

/// Reads a decimal or `0x` number with an optional `K`, `M`, `G` or `T`.
pub(super) fn parse(word: &str) -> Result<u64, Reason> {
    let (digits, shift) = match word.as_bytes().last() {
        Some(b'K') => (&word[..word.len() - 1], 10),
        Some(b'M') => (&word[..word.len() - 1], 20),
        Some(b'G') => (&word[..word.len() - 1], 30),
        Some(b'T') => (&word[..word.len() - 1], 40),
        _ => (word, 0),
    };
    let (digits, radix) = digits.strip_prefix("0x").map_or((digits, 10), |hex| (hex, 16));
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(format!("{} is not a number", quote(word)));
    }
    u64::from_str_radix(digits, radix)
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("{} does not fit in 64 bits", quote(word)))
}
