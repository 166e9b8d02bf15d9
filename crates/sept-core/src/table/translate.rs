//! What a guest address leads to.
//!
//! The one path that a host takes a million times a second: one bit of each entry is looked at, everything else is
//! out of the way. A [`Walker`] pins the table once for many addresses.

use super::{Found, SecurePageTable};
use crate::{External, Format, Gpa, GpaEntry, Hpa, LeafState, Level, TableMemory};
use core::fmt;

/// What a guest address is to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Translation {
    /// The host address of the byte.
    pub hpa: Hpa,
    /// Size of the page it lies in.
    pub level: Level,
    /// Acceptance, as far as the host knows.
    pub state: LeafState,
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// What the guest reaches at `gpa`: `None` for a hole, where the page or a table above it is blocked, and for an entry
    /// that is being changed at this moment ([`SecurePageTable::lookup`] tells these apart). One read per level.
    #[inline]
    #[must_use]
    pub fn translate(&self, gpa: Gpa) -> Option<Translation> {
        self.walker().translate(gpa)
    }

    /// Pins the table once, to translate many addresses. Drop it before a fence is awaited.
    #[inline]
    pub fn walker(&self) -> Walker<'_, F, M, X, impl Fn(Hpa, u16) -> u64> {
        let _pin = self.memory.pin();
        let near = if F::top(self.config) == Level::L512G { F::limit(self.config) } else { 0 };
        Walker { table: self, _pin, root: self.root, config: self.config, near, read: self.memory.reader() }
    }

    /// [`Walker::translate`] where the root is above the 512 GiB level.
    #[cold]
    fn translate_far(&self, gpa: Gpa) -> Packed {
        Packed::of(self.lookup_pinned(gpa).ok().and_then(|found| found.translation(gpa)))
    }

    /// [`Walker::translate`] where the walk meets no open table above 4K: a larger page, a hole, something blocked.
    #[cold]
    fn reached(&self, level: Level, raw: u64, gpa: Gpa) -> Packed {
        Packed::of(self.end_of_walk(level, raw, gpa).translation(gpa))
    }
}

/// A translation, or none, in two registers: so that the fast path need not go through memory to meet the slow one.
#[derive(Clone, Copy)]
struct Packed {
    hpa: u64,
    /// Level and state plus one each, a byte for each; 0 for none.
    rest: u64,
}

impl Packed {
    fn of(translation: Option<Translation>) -> Self {
        let Some(Translation { hpa, level, state }) = translation else { return Self { hpa: 0, rest: 0 } };
        let state = match state {
            LeafState::Pending => 1,
            LeafState::Mapped => 2,
            LeafState::Destroyed => 3,
        };
        Self {
            hpa: hpa.raw(),
            rest: u64::from_le_bytes([level.raw().wrapping_add(1), state, 0, 0, 0, 0, 0, 0]),
        }
    }

    #[inline]
    const fn unpack(self) -> Option<Translation> {
        let [level, state, ..] = self.rest.to_le_bytes();
        let (Some(level), hpa) = (Level::new(level.wrapping_sub(1)), Hpa::truncate(self.hpa)) else {
            return None;
        };
        let state = match state {
            1 => LeafState::Pending,
            2 => LeafState::Mapped,
            _ => LeafState::Destroyed,
        };
        Some(Translation { hpa, level, state })
    }
}

/// A pinned table: walks that share one [`TableMemory::Pin`]. Made by [`SecurePageTable::walker`].
#[must_use = "it holds a pin"]
pub struct Walker<'a, F: Format, M: TableMemory + 'a, X: External, R> {
    table: &'a SecurePageTable<F, M, X>,
    _pin: M::Pin<'a>,
    root: Hpa,
    config: F::Config,
    /// First address that a walk from the 512 GiB level does not find: 0 where the root is above that level.
    near: u64,
    read: R,
}

impl<F: Format, M: TableMemory, X: External, R: Fn(Hpa, u16) -> u64> Walker<'_, F, M, X, R> {
    /// What the guest reaches at `gpa`; see [`SecurePageTable::translate`].
    #[inline(always)]
    #[must_use]
    pub fn translate(&self, gpa: Gpa) -> Option<Translation> {
        let (mut table, config) = (self.root, self.config);
        if gpa.raw() >= self.near {
            return self.table.translate_far(gpa).unpack();
        }
        // Goes down one level, or leaves with where the way ends above 4K.
        let (level, raw) = 'end: {
            macro_rules! step {
                ($level:expr) => {
                    let raw = (self.read)(table, $level.index(gpa));
                    match F::next(config, $level, raw) {
                        Some(next) => table = next,
                        None => break 'end ($level, raw),
                    }
                };
            }
            step!(Level::L512G);
            step!(Level::L1G);
            step!(Level::L2M);
            let entry = F::decode(config, Level::L4K, (self.read)(table, Level::L4K.index(gpa)));
            let at = GpaEntry::containing(gpa, Level::L4K);
            return Found { at, entry, hidden: false }.translation(gpa);
        };
        self.table.reached(level, raw, gpa).unpack()
    }
}

impl<F: Format, M: TableMemory, X: External, R> fmt::Debug for Walker<'_, F, M, X, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Walker({:#x})", self.root)
    }
}
