//! Sets of pages, read as runs.
//!
//! The pages that must be single folios (shared pages, each with its own reference count, and poisoned pages) are
//! the only state a layout depends on. The set belongs to the host and is never copied: plan and commit read it
//! through [`PageSet::next_run`], which keeps no position, so that both read the same.

use core::ops::Range;

/// A set of pages, given as offsets from the first page of a block.
///
/// Reading it has no side effects, and it does not change while a plan or a commit reads it (the block's claim sees
/// to that). An implementation that breaks its contract makes counts and layouts wrong, never a loop endless.
pub trait PageSet {
    /// The first run of members at or after `from`: its start is at least `from`, it is not empty, and the page
    /// after it is no member. `None` if no member follows.
    fn next_run(&self, from: u64) -> Option<Range<u64>>;

    /// The members among the 64 pages from `64 * index`, lowest page in bit 0, if the set can tell them at once.
    ///
    /// Where runs are many, counting asks for words. The default, `None`, is right for a set that is kept as runs; a
    /// set that answers once always answers.
    fn word(&self, index: u64) -> Option<u64> {
        let _ = index;
        None
    }
}

/// [`PageSet::next_run`] with its contract enforced as far as progress needs it.
#[inline]
pub(crate) fn run_from<S: PageSet + ?Sized>(set: &S, from: u64) -> Option<Range<u64>> {
    let run = set.next_run(from)?;
    let start = run.start.max(from);
    (start < run.end).then_some(start..run.end)
}

/// The first page at or after `from` that is a member of one set and not of the other.
pub(crate) fn next_difference<A, B>(a: &A, b: &B, from: u64) -> Option<u64>
where
    A: PageSet + ?Sized,
    B: PageSet + ?Sized,
{
    let mut at = from;
    // Ends with the runs: `at` grows each time round.
    loop {
        match (run_from(a, at), run_from(b, at)) {
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

    #[inline]
    fn word(&self, index: u64) -> Option<u64> {
        (**self).word(index)
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

    fn word(&self, _index: u64) -> Option<u64> {
        Some(0)
    }
}

/// One run; the empty set if the range is empty.
impl PageSet for Range<u64> {
    #[inline]
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let start = self.start.max(from);
        (start < self.end).then_some(start..self.end)
    }

    #[inline]
    fn word(&self, index: u64) -> Option<u64> {
        let first = index.saturating_mul(64);
        Some(bits_from(self.start.saturating_sub(first)) & !bits_from(self.end.saturating_sub(first)))
    }
}

/// The bits of a word from bit `first` on.
#[inline]
const fn bits_from(first: u64) -> u64 {
    if first < 64 { u64::MAX << first } else { 0 }
}

/// Ranges in ascending order that do not overlap; adjacent and empty ones are fine. A binary search per call.
impl PageSet for [Range<u64>] {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let first = self.partition_point(|range| range.end <= from);
        let mut rest = self.iter().skip(first).filter(|range| range.start < range.end);
        let head = rest.next()?;
        let start = head.start.max(from);
        let end =
            rest.try_fold(head.end, |end, range| if range.start <= end { Ok(range.end) } else { Err(end) });
        let (Ok(end) | Err(end)) = end;
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
    fn word(&self, index: u64) -> Option<u64> {
        Some(usize::try_from(index).ok().and_then(|index| self.get(index)).copied().unwrap_or(0))
    }
}

/// The first bit at or after `from` that is set in a word exclusive-or `flip`.
fn find(words: &[u64], from: u64, flip: u64) -> Option<u64> {
    let first = usize::try_from(from >> 6).ok()?;
    let mut keep = u64::MAX << (from & 63);
    let mut at = from & !63;
    for &word in words.get(first..)? {
        let bits = (word ^ flip) & keep;
        if bits != 0 {
            return Some(at | u64::from(bits.trailing_zeros()));
        }
        keep = u64::MAX;
        at = at.saturating_add(64);
    }
    None
}

/// The members of either set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a union is its two sets")]
pub struct Union<A, B>(pub A, pub B);

impl<A: PageSet, B: PageSet> PageSet for Union<A, B> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let (start, mut end) = match (run_from(&self.0, from), run_from(&self.1, from)) {
            (None, None) => return None,
            (Some(run), None) | (None, Some(run)) => return Some(run),
            (Some(a), Some(b)) if a.end < b.start => return Some(a),
            (Some(a), Some(b)) if b.end < a.start => return Some(b),
            (Some(a), Some(b)) => (a.start.min(b.start), a.end.max(b.end)),
        };
        // Runs that touch go on as one. Ends with the runs: `end` grows each time round.
        loop {
            let a = run_from(&self.0, end).filter(|run| run.start == end);
            let b = run_from(&self.1, end).filter(|run| run.start == end);
            match a.map_or(end, |run| run.end).max(b.map_or(end, |run| run.end)) {
                same if same == end => return Some(start..end),
                further => end = further,
            }
        }
    }

    fn word(&self, index: u64) -> Option<u64> {
        Some(self.0.word(index)? | self.1.word(index)?)
    }
}

/// The members of the first set that are not members of the second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a difference is its two sets")]
pub struct Minus<A, B>(pub A, pub B);

impl<A: PageSet, B: PageSet> PageSet for Minus<A, B> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let mut at = from;
        // Ends with the runs: `at` grows each time round.
        loop {
            let run = run_from(&self.0, at)?;
            match run_from(&self.1, run.start) {
                Some(hole) if hole.start == run.start => at = hole.end,
                Some(hole) => return Some(run.start..run.end.min(hole.start)),
                None => return Some(run),
            }
        }
    }

    fn word(&self, index: u64) -> Option<u64> {
        Some(self.0.word(index)? & !self.1.word(index)?)
    }
}

/// Below page `at` the members of `left`, from it on the members of `right`.
///
/// A transition that has come as far as page `at` has the layout of the splice of its target and its start:
/// progress is one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a splice is its two sets and the seam")]
pub struct Splice<A, B> {
    /// The set below the seam.
    pub left: A,
    /// The set from the seam on.
    pub right: B,
    /// The first page that is read from `right`.
    pub at: u64,
}

impl<A: PageSet, B: PageSet> PageSet for Splice<A, B> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let left = if from < self.at { run_from(&self.left, from) } else { None };
        let Some(left) = left.filter(|run| run.start < self.at) else {
            return run_from(&self.right, from.max(self.at));
        };
        if left.end < self.at {
            return Some(left);
        }
        let right = run_from(&self.right, self.at).filter(|run| run.start == self.at);
        Some(left.start..right.map_or(self.at, |run| run.end))
    }

    fn word(&self, index: u64) -> Option<u64> {
        let right = bits_from(self.at.saturating_sub(index.saturating_mul(64)));
        Some(self.left.word(index)? & !right | self.right.word(index)? & right)
    }
}
