//! The page sets of one block, as bitmaps that exist only where a bit is set.

use std::ops::Range;

use folio_split::{Line, PageSet};

/// A set of pages of one block.
#[derive(Clone, Debug, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
    count: u64,
}

impl Bits {
    /// Whether `page` is a member.
    pub(super) fn contains(&self, page: u64) -> bool {
        self.words.get(word_of(page)).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Adds or removes the pages of `range`.
    pub(super) fn set(&mut self, range: Range<u64>, member: bool) {
        if !member && self.words.is_empty() || range.is_empty() {
            return;
        }
        let last = word_of(range.end - 1);
        if self.words.len() <= last {
            self.words.resize(last + 1, 0);
        }
        for index in word_of(range.start)..=last {
            let base = index as u64 * 64;
            let from = range.start.saturating_sub(base).min(63);
            let to = (range.end - base).min(64);
            let mask = (u64::MAX >> (64 - (to - from))) << from;
            let word = &mut self.words[index];
            self.count -= u64::from(word.count_ones());
            *word = if member { *word | mask } else { *word & !mask };
            self.count += u64::from(word.count_ones());
        }
        if self.count == 0 {
            self.words = Vec::new();
        }
    }
}

impl PageSet for Bits {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        if self.count == 0 { None } else { self.words.as_slice().next_run(from) }
    }

    fn line(&self, index: u64, line: &mut Line) -> bool {
        self.words.as_slice().line(index, line)
    }
}

/// The first page that is in `set` and not in `other`.
pub(super) fn first_outside(set: &impl PageSet, other: &impl PageSet) -> Option<u64> {
    let mut at = 0;
    loop {
        let page = set.next_run(at)?.start;
        at = other.next_run(page).filter(|run| run.start <= page).map_or(page, |run| run.end);
        if at == page {
            return Some(page);
        }
    }
}

fn word_of(page: u64) -> usize {
    usize::try_from(page / 64).unwrap_or(usize::MAX)
}
