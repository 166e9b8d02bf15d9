//! Entries and ranges: aligned pieces of the guest address space.

use super::{ADDRESS_LIMIT, Gpa, Level};
use core::fmt;

/// One entry: a guest address aligned to its level.
///
/// ```
/// use sept_core::{Gpa, GpaEntry, Level};
/// let gpa = Gpa::new(0x4000_0000).unwrap();
/// let entry = GpaEntry::new(gpa, Level::L2M).unwrap();
/// assert_eq!(entry.to_string(), "0x40000000/2M");
/// assert!(GpaEntry::new(Gpa::new(0x1000).unwrap(), Level::L2M).is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GpaEntry {
    gpa: Gpa,
    level: Level,
}

impl GpaEntry {
    /// The entry at `gpa` of `level`, or `None` if `gpa` is not aligned to it.
    #[must_use]
    pub const fn new(gpa: Gpa, level: Level) -> Option<Self> {
        if gpa.is_aligned(level) { Some(Self { gpa, level }) } else { None }
    }

    /// The entry of `level` that covers `gpa`.
    #[must_use]
    pub const fn containing(gpa: Gpa, level: Level) -> Self {
        Self { gpa: gpa.align_down(level), level }
    }

    /// First address covered.
    #[must_use]
    pub const fn gpa(self) -> Gpa {
        self.gpa
    }

    /// Level of the entry.
    #[must_use]
    pub const fn level(self) -> Level {
        self.level
    }

    /// First address after the entry, in bytes (may be 2^52).
    #[must_use]
    pub const fn end(self) -> u64 {
        // No overflow: both terms are at most 2^52.
        self.gpa.0.wrapping_add(self.level.size())
    }

    /// The `index`-th entry (0 to 511) of the next lower level, or `None` at 4K or above 511.
    #[must_use]
    pub const fn child(self, index: u16) -> Option<Self> {
        let Some(level) = self.level.child() else { return None };
        if index > 511 {
            return None;
        }
        // `index` fits below the bits that `gpa` may have set, which is aligned to the parent level.
        Some(Self { gpa: Gpa(self.gpa.0 | ((index as u64) << level.shift())), level })
    }

    /// The addresses covered, as a range.
    #[must_use]
    pub const fn range(self) -> GpaRange {
        GpaRange { start: self.gpa.0, end: self.end() }
    }
}

impl fmt::Display for GpaEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{}", self.gpa.0, self.level)
    }
}

impl fmt::Debug for GpaEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A half-open, non-empty range of 4 KiB pages.
///
/// ```
/// use sept_core::{Gpa, GpaRange};
/// let range = GpaRange::new(Gpa::new(0x1000).unwrap(), 0x3000).unwrap();
/// assert_eq!(range.pages(), 3);
/// assert!(GpaRange::new(Gpa::new(0x1000).unwrap(), 0).is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GpaRange {
    start: u64,
    end: u64,
}

impl GpaRange {
    /// `len` bytes from `start`: both multiples of 4 KiB, `len` not zero, the end at most 2^52.
    #[must_use]
    pub const fn new(start: Gpa, len: u64) -> Option<Self> {
        if len == 0 || len & 0xfff != 0 || !start.is_aligned(Level::L4K) {
            return None;
        }
        match start.0.checked_add(len) {
            Some(end) if end <= ADDRESS_LIMIT => Some(Self { start: start.0, end }),
            _ => None,
        }
    }

    /// First address.
    #[must_use]
    pub const fn start(self) -> Gpa {
        Gpa(self.start)
    }

    /// First address after the range, in bytes (may be 2^52).
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Bytes in the range.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(self) -> u64 {
        self.end.wrapping_sub(self.start)
    }

    /// 4 KiB pages in the range.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.len() >> 12
    }

    /// Whether `gpa` lies in the range.
    #[must_use]
    pub const fn contains(self, gpa: Gpa) -> bool {
        self.start <= gpa.0 && gpa.0 < self.end
    }

    /// Whether the whole of `entry` lies in the range.
    #[must_use]
    pub const fn covers(self, entry: GpaEntry) -> bool {
        self.start <= entry.gpa.0 && entry.end() <= self.end
    }

    /// The part shared with `other`.
    #[must_use]
    pub const fn intersect(self, other: Self) -> Option<Self> {
        let start = if self.start > other.start { self.start } else { other.start };
        let end = if self.end < other.end { self.end } else { other.end };
        if start < end { Some(Self { start, end }) } else { None }
    }

    /// The smallest range of whole entries of `level` that holds this one.
    #[must_use]
    pub const fn align_out(self, level: Level) -> Self {
        let mask = level.mask();
        // The end is at most 2^52, a multiple of every level's size, so rounding up cannot pass it.
        Self { start: self.start & !mask, end: self.end.wrapping_add(mask) & !mask }
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl fmt::Debug for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
