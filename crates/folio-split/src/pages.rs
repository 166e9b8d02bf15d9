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

/// The runs of both.
fn union(
    a: impl Fn(u64) -> Option<Range<u64>>,
    b: impl Fn(u64) -> Option<Range<u64>>,
    from: u64,
) -> Option<Range<u64>> {
    let (start, mut end) = match (a(from), b(from)) {
        (None, None) => return None,
        (Some(run), None) | (None, Some(run)) => return Some(run),
        (Some(a), Some(b)) if a.end < b.start => return Some(a),
        (Some(a), Some(b)) if b.end < a.start => return Some(b),
        (Some(a), Some(b)) => (a.start.min(b.start), a.end.max(b.end)),
    };
    // Runs that touch go on as one. Ends with the runs: `end` grows each time round.
    loop {
        let on = |run: Option<Range<u64>>| run.filter(|run| run.start == end).map_or(end, |run| run.end);
        match on(a(end)).max(on(b(end))) {
            same if same == end => return Some(start..end),
            further => end = further,
        }
    }
}

impl<A: PageSet, B: PageSet> PageSet for Union<A, B> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        union(|at| run_from(&self.0, at), |at| run_from(&self.1, at), from)
    }

    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        union(|at| large_from(&self.0, at), |at| large_from(&self.1, at), from)
    }

    fn word(&self, index: u64) -> Option<u64> {
        Some(self.0.word(index)? | self.1.word(index)?)
    }
}

/// The members of the first set that are not members of the second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a difference is its two sets")]
pub struct Minus<A, B>(pub A, pub B);

/// The runs of `a` without those of `b`.
fn minus(
    a: impl Fn(u64) -> Option<Range<u64>>,
    b: impl Fn(u64) -> Option<Range<u64>>,
    from: u64,
) -> Option<Range<u64>> {
    let mut at = from;
    // Ends with the runs: `at` grows each time round.
    loop {
        let run = a(at)?;
        match b(run.start) {
            Some(hole) if hole.start == run.start => at = hole.end,
            Some(hole) => return Some(run.start..run.end.min(hole.start)),
            None => return Some(run),
        }
    }
}

impl<A: PageSet, B: PageSet> PageSet for Minus<A, B> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        minus(|at| run_from(&self.0, at), |at| run_from(&self.1, at), from)
    }

    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        minus(|at| large_from(&self.0, at), |at| large_from(&self.1, at), from)
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

/// The runs of `left` below `seam`, those of `right` from it on.
fn splice(
    left: impl Fn(u64) -> Option<Range<u64>>,
    right: impl Fn(u64) -> Option<Range<u64>>,
    seam: u64,
    from: u64,
) -> Option<Range<u64>> {
    let run = if from < seam { left(from) } else { None };
    let Some(run) = run.filter(|run| run.start < seam) else { return right(from.max(seam)) };
    if run.end < seam {
        return Some(run);
    }
    let rest = right(seam).filter(|rest| rest.start == seam);
    Some(run.start..rest.map_or(seam, |rest| rest.end))
}

impl<A: PageSet, B: PageSet> PageSet for Splice<A, B> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        splice(|at| run_from(&self.left, at), |at| run_from(&self.right, at), self.at, from)
    }

    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        splice(|at| large_from(&self.left, at), |at| large_from(&self.right, at), self.at, from)
    }

    fn word(&self, index: u64) -> Option<u64> {
        let right = bits_from(self.at.saturating_sub(index.saturating_mul(64)));
        Some(self.left.word(index)? & !right | self.right.word(index)? & right)
    }
}

/// Pages that need not be single, but must not share a folio with others: the policy for shared memory that keeps the
/// order of aligned runs.
///
/// A block that lies wholly inside a run, or wholly outside of all, can be a folio. Needs a host whose references on
/// shared memory may be per folio.
///
/// ```
/// use folio_split::{FolioLayout, Large, Order, OrderSet, Pfn, PfnBlock, Union};
/// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
/// // Two whole 2 MiB blocks are shared, and one page elsewhere is broken.
/// let layout = FolioLayout::new(block, OrderSet::HUGETLB, Union(Large(512..1536), 9999..10_000));
/// assert_eq!(layout.folio_at(600).order(), Order::HUGE_2M);
/// assert_eq!(layout.folio_at(9999).order(), Order::PAGE);
/// assert_eq!(layout.counts().folios(), 1023);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a policy for a set")]
pub struct Large<S>(pub S);

impl<S: PageSet> PageSet for Large<S> {
    fn next_run(&self, _from: u64) -> Option<Range<u64>> {
        None
    }

    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        self.0.next_run(from)
    }

    fn word(&self, _index: u64) -> Option<u64> {
        Some(0)
    }
}

/// What keeps pages apart in either set: its layout is the coarsest that refines both layouts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Both<A, B>(pub(crate) A, pub(crate) B);

impl<A: PageSet, B: PageSet> PageSet for Both<A, B> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        union(|at| run_from(&self.0, at), |at| run_from(&self.1, at), from)
    }

    fn next_edge(&self, from: u64) -> Option<u64> {
        match (edge_from(&self.0, from), edge_from(&self.1, from)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (some, None) | (None, some) => some,
        }
    }

    fn word(&self, index: u64) -> Option<u64> {
        Some(self.0.word(index)? | self.1.word(index)?)
    }
}
