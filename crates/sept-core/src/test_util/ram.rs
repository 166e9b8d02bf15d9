//! Ownership of guest memory, page by page.

use crate::{Frame, Hpa, Level};
use core::fmt;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    vec::Vec,
};

/// Guest memory of a modelled host: says for each 4 KiB page whether the host holds it or has lent it.
///
/// ```
/// use sept_core::{Hpa, Level, test_util::RamLedger};
/// let ram = RamLedger::new(Hpa::new(0x4000_0000).unwrap(), 1024);
/// let page = ram.lend(Hpa::new(0x4020_0000).unwrap(), Level::L2M).unwrap();
/// assert!(ram.lend(Hpa::new(0x4020_1000).unwrap(), Level::L4K).is_none()); // part of the page above
/// ram.take_back(page).unwrap();
/// ```
pub struct RamLedger {
    base: Hpa,
    pages: u64,
    lent: Mutex<Vec<u64>>,
}

impl RamLedger {
    /// `pages` 4 KiB pages from `base` up, all held by the host. `base` must be 2 MiB aligned for 2 MiB lending.
    #[must_use]
    pub fn new(base: Hpa, pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or(0);
        Self { base, pages, lent: Mutex::new(std::vec![0; words]) }
    }

    fn lent(&self) -> MutexGuard<'_, Vec<u64>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends the page of `level` at `hpa`; `None` if any part of it is lent already or outside.
    pub fn lend(&self, hpa: Hpa, level: Level) -> Option<Frame> {
        self.flip(hpa, level, false).then(|| Frame::from_ledger(hpa, level))
    }

    /// Takes a page back, in whatever pieces it comes.
    ///
    /// # Errors
    ///
    /// Part of it was not lent; nothing changed.
    pub fn take_back(&self, page: Frame) -> Result<(), Frame> {
        if self.flip(page.hpa(), page.level(), true) { Ok(()) } else { Err(page) }
    }

    /// Pages lent at the moment.
    #[must_use]
    pub fn lent_pages(&self) -> u64 {
        self.lent().iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Changes all pages of a block from `lent` to not `lent`, if all are.
    fn flip(&self, hpa: Hpa, level: Level, lent: bool) -> bool {
        let first = hpa.raw().wrapping_sub(self.base.raw()) >> 12;
        let Some(end) = first.checked_add(level.pages()) else { return false };
        // A larger page is whole words of the bitmap, unless the base was not aligned.
        let split_words = level > Level::L4K && first & 63 != 0;
        if hpa < self.base || end > self.pages || !hpa.is_aligned(level) || split_words {
            return false;
        }
        let mut words = self.lent();
        let expect = if lent { u64::MAX } else { 0 };
        let masks = |page: u64| {
            let mask = if level == Level::L4K {
                1_u64.wrapping_shl(u32::try_from(page & 63).unwrap_or(0))
            } else {
                u64::MAX
            };
            (usize::try_from(page >> 6).unwrap_or(usize::MAX), mask)
        };
        let step = if level == Level::L4K { 1 } else { 64 };
        let pages = || (first..end).step_by(step).map(masks);
        let all =
            pages().all(|(word, mask)| words.get(word).is_some_and(|bits| bits & mask == expect & mask));
        if all {
            for (word, mask) in pages() {
                if let Some(bits) = words.get_mut(word) {
                    *bits ^= mask;
                }
            }
        }
        all
    }
}

impl fmt::Debug for RamLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamLedger({:#x}, {} pages, {} lent)", self.base, self.pages, self.lent_pages())
    }
}
