//! Sets made of other sets.

use super::{Line, PageSet, bits_from, edge_from, large_from, run_from, words_of};
use core::ops::Range;

/// A line of two sets.
#[inline]
fn combined<A, B>(a: &A, b: &B, index: u64, line: &mut Line, combine: impl Fn(u64, u64) -> u64) -> bool
where
    A: PageSet + ?Sized,
    B: PageSet + ?Sized,
{
    let mut other = [0; 64];
    let told = a.line(index, line) && b.line(index, &mut other);
    line.iter_mut().zip(other).for_each(|(a, b)| *a = combine(*a, b));
    told
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

    fn line(&self, index: u64, line: &mut Line) -> bool {
        combined(&self.0, &self.1, index, line, |a, b| a | b)
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

    fn line(&self, index: u64, line: &mut Line) -> bool {
        combined(&self.0, &self.1, index, line, |a, b| a & !b)
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

    fn line(&self, index: u64, line: &mut Line) -> bool {
        let mut right = [0; 64];
        let told = self.left.line(index, line) && self.right.line(index, &mut right);
        for ((first, word), right) in words_of(index).zip(line).zip(right) {
            let mask = bits_from(self.at, first);
            *word = *word & !mask | right & mask;
        }
        told
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

    fn line(&self, _index: u64, line: &mut Line) -> bool {
        *line = [0; 64];
        true
    }
}

/// What keeps pages apart in either set: its layout is the coarsest that refines both layouts.
///
/// For counting alone: a run may end where the other set goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Both<A, B>(pub(crate) A, pub(crate) B);

impl<A: PageSet, B: PageSet> PageSet for Both<A, B> {
    #[inline]
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        match (run_from(&self.0, from), run_from(&self.1, from)) {
            (Some(a), Some(b)) => Some(if a.start <= b.start { a } else { b }),
            (some, None) | (None, some) => some,
        }
    }

    #[inline]
    fn next_edge(&self, from: u64) -> Option<u64> {
        match (edge_from(&self.0, from), edge_from(&self.1, from)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (some, None) | (None, some) => some,
        }
    }

    fn line(&self, index: u64, line: &mut Line) -> bool {
        combined(&self.0, &self.1, index, line, |a, b| a | b)
    }
}
