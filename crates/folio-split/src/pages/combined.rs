//! Sets made of other sets.

use super::{Line, PageSet, bits_from, large_from, run_from, words_of};
use core::ops::Range;

/// The members of either set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a union is its two sets")]
pub struct Union<A, B>(pub A, pub B);

/// The run that begins first.
#[inline]
fn first(a: Option<Range<u64>>, b: Option<Range<u64>>) -> Option<Range<u64>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if a.start <= b.start { a } else { b }),
        (some, None) | (None, some) => some,
    }
}

impl<A: PageSet, B: PageSet> PageSet for Union<A, B> {
    #[inline]
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        first(run_from(&self.0, from), run_from(&self.1, from))
    }

    #[inline]
    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        first(large_from(&self.0, from), large_from(&self.1, from))
    }

    fn line(&self, index: u64, line: &mut Line) -> bool {
        let mut other = [0; 64];
        let told = self.0.line(index, line) && self.1.line(index, &mut other);
        line.iter_mut().zip(other).for_each(|(a, b)| *a |= b);
        told
    }
}

/// The members of a set that do not lie in a range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a difference is what it is made of")]
pub struct Minus<S>(pub S, pub Range<u64>);

impl<S> Minus<S> {
    /// The first run of a set, as far as it lies outside.
    #[inline]
    fn outside(&self, next: impl Fn(u64) -> Option<Range<u64>>, from: u64) -> Option<Range<u64>> {
        let hole = &self.1;
        let mut run = next(from)?;
        if hole.contains(&run.start) {
            run = next(hole.end)?;
        }
        Some(run.start..if run.start < hole.start { run.end.min(hole.start) } else { run.end })
    }
}

impl<S: PageSet> PageSet for Minus<S> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        self.outside(|at| run_from(&self.0, at), from)
    }

    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        self.outside(|at| large_from(&self.0, at), from)
    }

    fn line(&self, index: u64, line: &mut Line) -> bool {
        let told = self.0.line(index, line);
        for (first, word) in words_of(index).zip(line) {
            *word &= !(bits_from(self.1.start, first) & !bits_from(self.1.end, first));
        }
        told
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

impl<A, B> Splice<A, B> {
    /// The first run of the left set below the seam, or of the right set from it on.
    #[inline]
    fn either(
        &self,
        left: impl Fn(u64) -> Option<Range<u64>>,
        right: impl Fn(u64) -> Option<Range<u64>>,
        from: u64,
    ) -> Option<Range<u64>> {
        let below = if from < self.at { left(from).filter(|run| run.start < self.at) } else { None };
        match below {
            Some(run) => Some(run.start..run.end.min(self.at)),
            None => right(from.max(self.at)),
        }
    }
}

impl<A: PageSet, B: PageSet> PageSet for Splice<A, B> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        self.either(|at| run_from(&self.left, at), |at| run_from(&self.right, at), from)
    }

    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        self.either(|at| large_from(&self.left, at), |at| large_from(&self.right, at), from)
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
