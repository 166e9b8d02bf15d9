//! The memory that tables live in.
//!
//! A table is one 4 KiB frame of 512 entries plus a few *side words* that no walker reads: the ledger of what stands
//! behind the table. The implementor decides where both are. Words are read and written one at a time and atomically;
//! nobody ever holds a reference into a table.
//!
//! Shipped: [`LinearMap`] for a host that has all memory mapped at one offset, [`FrameSlice`] for a program that
//! brings its own few frames, `test_util::Arena` for tests.

mod linear;
mod slice;

pub use linear::{LinearHost, LinearMap};
pub use slice::{FrameSlice, SideWords, TableFrame};

use crate::{Frame, Hpa, Tainted};
use core::sync::atomic::Ordering;

/// One word of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a word is an entry or a side word; implementors match on it")]
pub enum Word {
    /// Entry 0 to 511.
    Entry(u16),
    /// A word beside the entries.
    Side(SideWord),
}

/// The words beside the 512 entries: never walked, never visible to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "implementors reserve room for exactly these")]
pub enum SideWord {
    /// Number of entries that are not free.
    Live,
    /// Address of the table's external page (TDX: the S-EPT page) with bit 0 set, 0 if none.
    External,
    /// Address of the first metadata page that came with the table, with bit 0 set, 0 if none.
    Metadata0,
    /// Address of the second metadata page that came with the table, with bit 0 set, 0 if none.
    Metadata1,
    /// Base of the host memory that the metadata pages describe, with bit 0 set, 0 if there are none.
    Backing,
    /// Next table of a chain of unlinked ones, 0 at its end.
    Link,
    /// Of an unlinked table whose entries still own what they name: first address and level of its entries, with bit
    /// 11 set. 0 of any other.
    Place,
}

impl SideWord {
    /// Number of side words.
    pub const COUNT: usize = 7;

    /// All side words, in the order of [`SideWord::index`].
    pub const ALL: [Self; Self::COUNT] = [
        Self::Live,
        Self::External,
        Self::Metadata0,
        Self::Metadata1,
        Self::Backing,
        Self::Link,
        Self::Place,
    ];

    /// Position of the word, 0 to [`SideWord::COUNT`] - 1.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Live => 0,
            Self::External => 1,
            Self::Metadata0 => 2,
            Self::Metadata1 => 3,
            Self::Backing => 4,
            Self::Link => 5,
            Self::Place => 6,
        }
    }
}

/// Entries of a table.
pub(crate) const FANOUT: u16 = 512;

/// Cache lines of a table.
pub(crate) const LINES: u16 = 64;

/// Access to table frames by physical address.
///
/// # Safety
///
/// * A word reads as what was last stored there, by whichever thread, as an atomic of the given ordering would; all
///   words of a frame that was never written read 0 in the side words.
/// * Different words and different frames do not overlap.
/// * [`TableMemory::scrub`] really overwrites the frame with ordinary host data.
///
/// Frames are minted again from the addresses kept here; a memory that forgets or mixes them up gives one frame to
/// two owners.
#[expect(unsafe_code, reason = "frames are minted from what is stored here")]
pub unsafe trait TableMemory {
    /// A software walk under way (an RCU read section, IRQs off, or `()`); see [`Shootdown`](crate::Shootdown).
    type Pin<'a>
    where
        Self: 'a;

    /// Begins a software walk.
    fn pin(&self) -> Self::Pin<'_>;

    /// Reads a word. `order` is one that a load can have: relaxed or acquire.
    fn load(&self, table: Hpa, word: Word, order: Ordering) -> u64;

    /// Reads entries (table, index) as [`TableMemory::load`] does with [`Ordering::Acquire`]. A walk makes one and reads
    /// all its levels through it, so that what the memory needs to find a word stays in registers.
    #[inline]
    fn reader(&self) -> impl Fn(Hpa, u16) -> u64 {
        |table, index| self.load(table, Word::Entry(index), Ordering::Acquire)
    }

    /// Reads the eight entries from `line` times 8 on (0 to 63): one cache line, in no particular order among them and
    /// without ordering after ([`Ordering::Relaxed`]).
    fn load_line(&self, table: Hpa, line: u16) -> [u64; 8] {
        let first = line.wrapping_mul(8);
        core::array::from_fn(|index| {
            let [low, high, ..] = index.to_le_bytes();
            let index = first.wrapping_add(u16::from_le_bytes([low, high]));
            self.load(table, Word::Entry(index), Ordering::Relaxed)
        })
    }

    /// Writes a word. `order` is one that a store can have: relaxed or release.
    fn store(&self, table: Hpa, word: Word, value: u64, order: Ordering);

    /// Replaces `old` by `new` (acquire and release).
    ///
    /// # Errors
    ///
    /// The word held something else, which is returned.
    fn compare_exchange(&self, table: Hpa, word: Word, old: u64, new: u64) -> Result<(), u64>;

    /// Adds `value` to a word, wrapping (acquire and release).
    fn add(&self, table: Hpa, word: Word, value: u64);

    /// Fills the entries of a table that nobody can reach yet, with plain stores, and clears its side words.
    fn write_detached(&self, table: &Frame, entry: impl Fn(u16) -> u64);

    /// Overwrites a frame that was written under another key, bypassing the cache (TDX: `MOVDIR64B`), with zeroes.
    ///
    /// Its lines were written back before; see [`External::write_back`](crate::External::write_back).
    fn scrub(&self, page: Frame<Tainted>) -> Frame;
}

#[expect(unsafe_code, reason = "forwards to an implementor")]
// SAFETY: every method forwards to a type that keeps the promises.
unsafe impl<M: TableMemory + ?Sized> TableMemory for &M {
    type Pin<'a>
        = M::Pin<'a>
    where
        Self: 'a;

    fn pin(&self) -> Self::Pin<'_> {
        (**self).pin()
    }

    fn load(&self, table: Hpa, word: Word, order: Ordering) -> u64 {
        (**self).load(table, word, order)
    }

    fn reader(&self) -> impl Fn(Hpa, u16) -> u64 {
        (**self).reader()
    }

    fn load_line(&self, table: Hpa, line: u16) -> [u64; 8] {
        (**self).load_line(table, line)
    }

    fn store(&self, table: Hpa, word: Word, value: u64, order: Ordering) {
        (**self).store(table, word, value, order);
    }

    fn compare_exchange(&self, table: Hpa, word: Word, old: u64, new: u64) -> Result<(), u64> {
        (**self).compare_exchange(table, word, old, new)
    }

    fn add(&self, table: Hpa, word: Word, value: u64) {
        (**self).add(table, word, value);
    }

    fn write_detached(&self, table: &Frame, entry: impl Fn(u16) -> u64) {
        (**self).write_detached(table, entry);
    }

    fn scrub(&self, page: Frame<Tainted>) -> Frame {
        (**self).scrub(page)
    }
}
