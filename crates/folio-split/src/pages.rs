//! Sets of pages, read as runs.
//!
//! The pages that must be single folios (shared pages, each with its own reference count, and poisoned pages) are
//! the only state a layout depends on. The set belongs to the host and is never copied: plan and commit read it
//! through [`PageSet::next_run`], which keeps no position, so that both read the same.

mod combined;

pub use combined::{Large, Minus, Splice, Union};

use core::ops::Range;

/// A set of pages, given as offsets from the first page of a block.
///
/// Reading it has no side effects, and it does not change while a plan or a commit reads it (the block's claim sees
/// to that). It may have members after the block; nothing reads on from there. An implementation that breaks its contract
/// makes counts and layouts wrong, and no loop longer than its block.
pub trait PageSet {
    /// The first member at or after `from`, and members that follow it without a gap: as many as the set can tell at once,
    /// so more may follow at the end of the run. `None` if there is no member.
    fn next_run(&self, from: u64) -> Option<Range<u64>>;

    /// Like [`PageSet::next_run`], for pages that need not be single, but must not share a folio with others: those of
    /// an uninterrupted stretch may share folios with each other. Most sets have none; see [`Large`].
    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        let _ = from;
        None
    }

    /// Writes the members among the 4,096 pages from `4096 * index` to `line`, lowest page in bit 0 of its first word, if the
    /// set can tell them at once.
    ///
    /// Where runs are many, counting asks for lines. The default, `false`, is right for a set that is kept as runs; a
    /// set that answers once always answers.
    fn line(&self, index: u64, line: &mut Line) -> bool {
        let _ = (index, line);
        false
    }
}

/// The pages of [`PageSet::line`], 64 in each word.
pub type Line = [u64; 64];

/// What the set answered, with its contract enforced as far as progress needs it.
#[inline]
fn sane(run: Option<Range<u64>>, from: u64) -> Option<Range<u64>> {
    let run = run?;
    let start = run.start.max(from);
    (start < run.end).then_some(start..run.end)
}

/// [`PageSet::next_run`].
#[inline]
pub(crate) fn run_from<S: PageSet + ?Sized>(set: &S, from: u64) -> Option<Range<u64>> {
    sane(set.next_run(from), from)
}

/// [`PageSet::next_large`].
#[inline]
pub(crate) fn large_from<S: PageSet + ?Sized>(set: &S, from: u64) -> Option<Range<u64>> {
    sane(set.next_large(from), from)
}

/// The first page of `pages` that may not share a folio with the page before it, because one of the two is large
/// ([`PageSet::next_large`]) and the other is not.
#[inline]
pub(crate) fn edge_in<S: PageSet + ?Sized>(set: &S, pages: Range<u64>) -> Option<u64> {
    let run = large_from(set, pages.start.saturating_sub(1))?;
    let mut edge = if run.start >= pages.start { run.start } else { run.end };
    // Stretches go on as one. Ends with the pages: `edge` grows each time round.
    while run.start < pages.start
        && edge < pages.end
        && let Some(next) = large_from(set, edge).filter(|next| next.start == edge)
    {
        edge = next.end;
    }
    (edge < pages.end).then_some(edge)
}

impl<T: PageSet + ?Sized> PageSet for &T {
    #[inline]
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        (**self).next_run(from)
    }

    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        (**self).next_large(from)
    }

    #[inline]
    fn line(&self, index: u64, line: &mut Line) -> bool {
        (**self).line(index, line)
    }
}

/// No pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "the empty set has no parts")]
pub struct Empty;

impl PageSet for Empty {
    fn next_run(&self, _from: u64) -> Option<Range<u64>> {
        None
    }

    fn line(&self, _index: u64, line: &mut Line) -> bool {
        *line = [0; 64];
        true
    }
}

/// One run; the empty set if the range is empty.
impl PageSet for Range<u64> {
    #[inline]
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let start = self.start.max(from);
        (start < self.end).then_some(start..self.end)
    }

    fn line(&self, index: u64, line: &mut Line) -> bool {
        for (first, word) in words_of(index).zip(line) {
            *word = bits_from(self.start, first) & !bits_from(self.end, first);
        }
        true
    }
}

/// The first pages of the words of a line.
fn words_of(index: u64) -> impl Iterator<Item = u64> {
    (0..64).map(move |word| index.saturating_mul(4096).saturating_add(word << 6))
}

/// The bits of the word that begins at page `first`, from page `from` on.
#[inline]
const fn bits_from(from: u64, first: u64) -> u64 {
    let skip = from.saturating_sub(first);
    if skip < 64 { u64::MAX << skip } else { 0 }
}

/// Ranges in ascending order that do not overlap; adjacent and empty ones are fine. A binary search per call, or a short
/// walk where they are few.
impl PageSet for [Range<u64>] {
    #[inline]
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let first = if self.len() <= 8 { 0 } else { self.partition_point(|range| range.end <= from) };
        let run = self.get(first..)?.iter().find(|range| range.end > from && range.start < range.end)?;
        Some(run.start.max(from)..run.end)
    }
}

impl<const N: usize> PageSet for [Range<u64>; N] {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        self.as_slice().next_run(from)
    }
}

/// A bitmap: page p is bit p % 64 of word p / 64. Pages after the last word are no members.
impl PageSet for [u64] {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let start = find(self, from, 0)?;
        let end = find(self, start, u64::MAX).unwrap_or_else(|| (self.len() as u64).saturating_mul(64));
        Some(start..end)
    }

    #[inline]
    fn line(&self, index: u64, line: &mut Line) -> bool {
        let first = usize::try_from(index.saturating_mul(64)).unwrap_or(usize::MAX);
        let rest = self.get(first..).unwrap_or_default();
        match rest.first_chunk() {
            Some(whole) => *line = *whole,
            None => {
                *line = [0; 64];
                line.iter_mut().zip(rest).for_each(|(word, part)| *word = *part);
            }
        }
        true
    }
}

/// The first bit at or after `from` that is set in a word exclusive-or `flip`.
fn find(words: &[u64], from: u64, flip: u64) -> Option<u64> {
    let first = usize::try_from(from >> 6).ok()?;
    let (&word, rest) = words.get(first..)?.split_first()?;
    let bits = (word ^ flip) & u64::MAX << (from & 63);
    if bits != 0 {
        return Some(from & !63 | u64::from(bits.trailing_zeros()));
    }
    let mut at = (from | 63).saturating_add(1);
    // A long way goes eight words at a time.
    for words in rest.chunks(8) {
        if words.iter().fold(0, |some, word| some | word ^ flip) != 0 {
            let (skip, word) = words.iter().enumerate().find(|&(_, &word)| word != flip)?;
            at = at.saturating_add((skip as u64) << 6);
            return Some(at | u64::from((word ^ flip).trailing_zeros()));
        }
        at = at.saturating_add((words.len() as u64) << 6);
    }
    None
}
