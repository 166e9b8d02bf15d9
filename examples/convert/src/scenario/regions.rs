use std::collections::BTreeMap;
use std::fmt;

use super::Size;

/// A range of guest addresses that does not wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its first address.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
}

impl Region {
    /// The address behind its last.
    #[must_use]
    pub fn end(self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} {}", self.start, Size(self.len))
    }
}

/// Disjoint regions; adjacent ones are one.
#[derive(Clone, Debug, Default)]
pub struct Regions(BTreeMap<u64, u64>);

impl Regions {
    /// Adds `new`, or names the first address that is there already.
    ///
    /// # Errors
    ///
    /// That address.
    pub fn insert(&mut self, new: Region) -> Result<(), u64> {
        let (mut start, mut end) = (new.start, new.end());
        if let Some((&below, &below_end)) = self.0.range(..=start).next_back() {
            if below_end > start {
                return Err(start);
            }
            if below_end == start {
                start = below;
            }
        }
        if let Some((&above, _)) = self.0.range(new.start..end).next() {
            return Err(above);
        }
        if let Some(e) = self.0.remove(&end) {
            end = e;
        }
        self.0.insert(start, end);
        Ok(())
    }

    /// Whether all of `region` is there; if not, the first address that is missing.
    ///
    /// # Errors
    ///
    /// That address.
    pub fn cover(&self, region: Region) -> Result<(), u64> {
        match self.0.range(..=region.start).next_back() {
            Some((_, &end)) if end >= region.end() => Ok(()),
            Some((_, &end)) if end > region.start => Err(end),
            _ => Err(region.start),
        }
    }

    /// The regions, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Region> {
        self.0.iter().map(|(&start, &end)| Region { start, len: end - start })
    }
}
