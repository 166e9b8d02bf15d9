//! Sets of pages, read as runs.
//!
//! The pages that must be single folios (shared pages, each with its own reference count, and poisoned pages) are
//! the only state a layout depends on. The set belongs to the host and is never copied: plan and commit read it
//! through [`PageSet::next_run`], which keeps no position, so that both read the same.

mod combined;

pub(crate) use combined::Both;
pub use combined::{Large, Minus, Splice, Union};

use core::ops::Range;

/// A set of pages, given as offsets from the first page of a block.
///
/// Reading it has no side effects, and it does not change while a plan or a commit reads it (the block's claim sees
/// to that). An implementation that breaks its contract makes counts and layouts wrong, never a loop endless.
pub trait PageSet {
    /// The first run of members at or after `from`: its start is at least `from`, it is not empty, and the page
    /// after it is no member. `None` if no member follows.
    fn next_run(&self, from: u64) -> Option<Range<u64>>;

    /// The first run at or after `from` of pages that may share folios with each other, but with no other pages.
    ///
    /// They need not be single pages: this is the policy that keeps the order of aligned runs, see [`Large`]. Most
    /// sets have none.
    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        let _ = from;
        None
    }

    /// The first page at or after `from` that may not share a folio with the page before it, because one of the two
    /// is in a run of [`PageSet::next_large`] and the other is not in the same.
    fn next_edge(&self, from: u64) -> Option<u64> {
        let run = large_from(self, from.saturating_sub(1))?;
        Some(if run.start >= from { run.start } else { run.end })
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

/// [`PageSet::next_run`] with its contract enforced as far as progress needs it.
#[inline]
pub(crate) fn run_from<S: PageSet + ?Sized>(set: &S, from: u64) -> Option<Range<u64>> {
    let run = set.next_run(from)?;
    let start = run.start.max(from);
    (start < run.end).then_some(start..run.end)
}

/// [`PageSet::next_large`] with its contract enforced as far as progress needs it.
#[inline]
pub(crate) fn large_from<S: PageSet + ?Sized>(set: &S, from: u64) -> Option<Range<u64>> {
    let run = set.next_large(from)?;
    let start = run.start.max(from);
    (start < run.end).then_some(start..run.end)
}

/// [`PageSet::next_edge`] with its contract enforced as far as progress needs it.
#[inline]
pub(crate) fn edge_from<S: PageSet + ?Sized>(set: &S, from: u64) -> Option<u64> {
    set.next_edge(from).filter(|&edge| edge >= from)
}

/// The first page at or after `from` that is a member of one set and not of the other, in either sense.
pub(crate) fn next_difference<A, B>(a: &A, b: &B, from: u64) -> Option<u64>
where
    A: PageSet + ?Sized,
    B: PageSet + ?Sized,
{
    let small = difference(|at| run_from(a, at), |at| run_from(b, at), from);
    match (small, difference(|at| large_from(a, at), |at| large_from(b, at), from)) {
        (Some(small), Some(large)) => Some(small.min(large)),
        (some, None) | (None, some) => some,
    }
}

/// Where two sets of runs differ first.
fn difference(
    a: impl Fn(u64) -> Option<Range<u64>>,
    b: impl Fn(u64) -> Option<Range<u64>>,
    from: u64,
) -> Option<u64> {
    let mut at = from;
    // Ends with the runs: `at` grows each time round.
    loop {
        match (a(at), b(at)) {
            (None, None) => return None,
            (Some(run), None) | (None, Some(run)) => return Some(run.start),
            (Some(a), Some(b)) if a.start != b.start => return Some(a.start.min(b.start)),
            (Some(a), Some(b)) if a.end != b.end => return Some(a.end.min(b.end)),
            (Some(a), Some(_)) => at = a.end,
        }
    }
}

impl<T: PageSet + ?Sized> PageSet for &T {
    #[inline]
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        (**self).next_run(from)
    }

    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        (**self).next_large(from)
    }

    fn next_edge(&self, from: u64) -> Option<u64> {
        (**self).next_edge(from)
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
        let mut rest = self.get(first..)?.iter();
        let head = rest.find(|range| range.end > from && range.start < range.end)?;
        let (start, mut end) = (head.start.max(from), head.end);
        for range in rest {
            if range.start > end {
                break;
            }
            end = end.max(range.end);
        }
        Some(start..end)
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
