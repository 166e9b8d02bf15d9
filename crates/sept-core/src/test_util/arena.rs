//! Table memory in boxed arrays.

use crate::{Frame, Hpa, Level, SideWord, TableMemory, Tainted, Word};
use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};
use std::{boxed::Box, sync::OnceLock, vec::Vec};

const ENTRIES: usize = 512;
const WORDS: usize = ENTRIES + SideWord::COUNT;

/// What scrubbing a frame means on the modelled machine.
pub type Scrub = Box<dyn Fn(Hpa, Level) + Send + Sync>;

/// A window of modelled physical memory in which every 4 KiB frame can be a table.
///
/// Tables cost host memory from their first write on.
///
/// # Panics
///
/// Access to a table outside the window panics: it is a bug in the code under test.
pub struct Arena {
    base: Hpa,
    tables: Vec<OnceLock<Box<[AtomicU64]>>>,
    scrub: Scrub,
}

impl Arena {
    /// A window of `frames` 4 KiB frames from `base`; `scrub` is told about every frame that is overwritten.
    #[must_use]
    pub fn new(base: Hpa, frames: usize, scrub: Scrub) -> Self {
        Self { base, tables: (0..frames).map(|_| OnceLock::new()).collect(), scrub }
    }

    #[expect(clippy::indexing_slicing, reason = "documented: a stray table address panics")]
    fn word(&self, table: Hpa, word: Word) -> &AtomicU64 {
        let frame = usize::try_from(table.raw().wrapping_sub(self.base.raw()) >> 12).unwrap_or(usize::MAX);
        let words = self.tables[frame].get_or_init(|| (0..WORDS).map(|_| AtomicU64::new(0)).collect());
        match word {
            Word::Entry(index) => &words[usize::from(index) % ENTRIES],
            Word::Side(side) => &words[ENTRIES.wrapping_add(side.index())],
        }
    }
}

#[expect(unsafe_code, reason = "the trait's promises")]
// SAFETY:
// * every word has an `AtomicU64` of its own, zero at first;
// * frames of the window index different boxes, words of a frame different elements;
// * `scrub` hands the frame to the modelled machine, which overwrites it.
unsafe impl TableMemory for Arena {
    type Pin<'a> = ();

    fn pin(&self) {}

    fn load(&self, table: Hpa, word: Word, order: Ordering) -> u64 {
        self.word(table, word).load(order)
    }

    fn store(&self, table: Hpa, word: Word, value: u64, order: Ordering) {
        self.word(table, word).store(value, order);
    }

    fn compare_exchange(&self, table: Hpa, word: Word, old: u64, new: u64) -> Result<(), u64> {
        self.word(table, word).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }

    fn add(&self, table: Hpa, word: Word, value: u64) {
        self.word(table, word).fetch_add(value, Ordering::AcqRel);
    }

    fn write_detached(&self, table: &Frame, entry: impl Fn(u16) -> u64) {
        for index in 0..512 {
            self.store(table.hpa(), Word::Entry(index), entry(index), Ordering::Relaxed);
        }
        for side in SideWord::ALL {
            self.store(table.hpa(), Word::Side(side), 0, Ordering::Relaxed);
        }
    }

    fn scrub(&self, page: Frame<Tainted>) -> Frame {
        (self.scrub)(page.hpa(), page.level());
        Frame::from_ledger(page.hpa(), page.level())
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({:#x}, {} frames)", self.base, self.tables.len())
    }
}
