//! From one layout to another.
//!
//! Both layouts are canonical for the same block and orders, so where they differ, one of them has a folio that the
//! other has in pieces: every difference is one split or one merge of one folio, independent of all others. They
//! may be carried out in any order, and each undone by its opposite.
//!
//! The layout in which the pages of both sets are small is the coarsest one that refines both. It is what exists between the
//! last split and the first merge, and its counts give what the splits take and the merges give back, exactly.
//!
//! # Merges
//!
//! Which folios can be formed follows from the set: those whose pages are no more in it. With two buddies that is one merge
//! of two folios, with the last small page of a block it is the whole block, in one step; a host that
//! merges late leaves pages in the set. Whether one can be formed *now* has conditions that the set does not know:
//!
//! * nobody but the host holds a reference on any of its pieces ([`FolioBackend::freeze`](crate::FolioBackend::freeze)
//!   finds out, with a bounded number of attempts);
//! * no page of it is broken, or has to be single for another reason: such pages are in the set, or the set is wrong;
//! * where its tail pages are shared, the zone has the template (vmemmap-prealloc refuses before anything changed).
//!
//! A merge that is refused has changed nothing. Its pages stay in the set, and it is a candidate for the next transition.
//! Neither allocates: a merge only gives back.

use crate::{
    Change, ChangeRuns, Changes, CostDelta, CostModel, FolioLayout, Folios, LayoutCounts, Order, OrderSet,
    PageSet, PfnBlock, Splice, TransitionCounts,
    cost::Between,
    pages::{edge_in, run_from},
};
use core::ops::Range;

/// Two layouts of one block: that of `from`, and that of `to`.
///
/// ```
/// use folio_split::{Change, Empty, Order, OrderSet, Pfn, PfnBlock, Transition, XArray};
/// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
/// let share = Transition::new(block, OrderSet::HUGETLB, Empty, 1000..1001);
/// assert_eq!(share.delta(&XArray::LINUX).needed, 73);
/// let mut changes = share.changes(0..block.pages());
/// assert_eq!(changes.next(), Some(Change::Split(block)));
/// assert_eq!(changes.next(), None);
/// assert_eq!(share.split_pieces(block).count(), 1023);
/// assert_eq!(share.reversed().changes(0..1).next(), Some(Change::Merge(block)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition<A, B> {
    block: PfnBlock,
    orders: OrderSet,
    from: A,
    to: B,
}

impl<A: PageSet, B: PageSet> Transition<A, B> {
    /// From the layout in which the pages of `from` are small to that in which those of `to` are.
    #[must_use]
    pub const fn new(block: PfnBlock, orders: OrderSet, from: A, to: B) -> Self {
        Self { block, orders: orders.clipped(block.order()), from, to }
    }

    /// The block.
    #[must_use]
    pub const fn block(&self) -> PfnBlock {
        self.block
    }

    /// The orders that folios of the block may have.
    #[must_use]
    pub const fn orders(&self) -> OrderSet {
        self.orders
    }

    /// The layout before.
    #[must_use]
    pub const fn from_layout(&self) -> FolioLayout<&A> {
        FolioLayout::new(self.block, self.orders, &self.from)
    }

    /// The layout after.
    #[must_use]
    pub const fn to_layout(&self) -> FolioLayout<&B> {
        FolioLayout::new(self.block, self.orders, &self.to)
    }

    /// The same transition, reading the sets through references.
    #[must_use]
    pub const fn by_ref(&self) -> Transition<&A, &B> {
        Transition { block: self.block, orders: self.orders, from: &self.from, to: &self.to }
    }

    /// The same transition as far as folios of `order` and above are concerned: what is smaller counts as single pages.
    #[must_use]
    pub const fn at_least(&self, order: Order) -> Transition<&A, &B> {
        let Transition { block, orders, from, to } = self.by_ref();
        Transition { block, orders: orders.at_least(order), from, to }
    }

    /// The way back: it takes what this one gives and gives what this one takes.
    #[must_use]
    pub const fn reversed(&self) -> Transition<&B, &A> {
        Transition { block: self.block, orders: self.orders, from: &self.to, to: &self.from }
    }

    /// The part of this transition that concerns pages `done..until`, when those below `done` have had their turn.
    ///
    /// Steps that follow each other from 0 to the size of the block add up to the whole; the layout between two of
    /// them is canonical, and known from the seam alone. So a long transition can be cut into short atoms, parked,
    /// and turned round at any seam.
    #[must_use]
    pub const fn step(&self, done: u64, until: u64) -> Transition<Splice<&B, &A>, Splice<&B, &A>> {
        Transition {
            block: self.block,
            orders: self.orders,
            from: Splice { left: &self.to, right: &self.from, at: done },
            to: Splice { left: &self.to, right: &self.from, at: until },
        }
    }

    /// The differences that touch the pages of `window`, in ascending order.
    pub fn changes(&self, window: Range<u64>) -> Changes<'_, A, B> {
        Changes::new(self.change_runs(window))
    }

    /// The same with consecutive folios of one order together: few however many folios change.
    ///
    /// One look-up for each run of the sets, less what lies inside of folios that change.
    ///
    /// ```
    /// use folio_split::{Change, Order, OrderSet, Pfn, PfnBlock, Transition};
    /// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
    /// // 390 MiB more are shared: 196 folios of 2 MiB are split.
    /// let more = [1000..1001, 100_000..200_000];
    /// let more = Transition::new(block, OrderSet::HUGETLB, 1000..1001, more.as_slice());
    /// let runs: Vec<_> = more.change_runs(0..block.pages()).collect();
    /// assert_eq!(runs.len(), 1);
    /// assert_eq!((runs[0].first.whole().order(), runs[0].count), (Order::HUGE_2M, 196));
    /// assert_eq!(more.changes(0..block.pages()).count(), 196);
    /// ```
    pub fn change_runs(&self, window: Range<u64>) -> ChangeRuns<'_, A, B> {
        let (from, to) = (self.from_layout(), self.to_layout());
        let end = window.end.min(self.block.pages());
        let at = match window.start {
            start if start >= end => end,
            0 => 0,
            // A change may begin before the window.
            start => {
                let first = from.folio_at(start).base().min(to.folio_at(start).base());
                first.raw() & self.block.order().mask()
            }
        };
        ChangeRuns::new(from, to, at, end)
    }

    /// Whether the folio `whole` exists before and is in pieces after.
    #[must_use]
    pub fn splits(&self, whole: PfnBlock) -> bool {
        divides(&self.from_layout(), &self.to_layout(), whole)
    }

    /// Whether the folio `whole` exists after and is in pieces before.
    #[must_use]
    pub fn merges(&self, whole: PfnBlock) -> bool {
        divides(&self.to_layout(), &self.from_layout(), whole)
    }

    /// What becomes of `whole` when it is split: the folios of the layout after.
    pub fn split_pieces(&self, whole: PfnBlock) -> Folios<&B> {
        pieces(FolioLayout::new(self.block, self.orders, &self.to), whole)
    }

    /// What `whole` is merged from: the folios of the layout before.
    pub fn merge_pieces(&self, whole: PfnBlock) -> Folios<&A> {
        pieces(FolioLayout::new(self.block, self.orders, &self.from), whole)
    }

    /// Exact numbers of the layouts before, after and in between.
    ///
    /// A pass over the runs of each set; one more over both if neither set holds the other.
    #[must_use]
    pub fn counts(&self) -> TransitionCounts {
        let order = self.block.order();
        let mut counts = TransitionCounts::undivided(order, self.orders);
        counts.from.count(&self.from, 0);
        counts.to.count(&self.to, 0);
        // The first share and the last unshare of a block are the most frequent; then come a few pages more, or less. A set
        // that holds the other touches no fewer blocks.
        let smallest = self.orders.smallest_large().unwrap_or(Order::PAGE);
        if counts.from.is_undivided()
            || counts.from.m(smallest) <= counts.to.m(smallest) && holds(&self.to, &self.from, order)
        {
            counts.between = Between::To;
        } else if counts.to.is_undivided()
            || counts.from.m(smallest) >= counts.to.m(smallest) && holds(&self.from, &self.to, order)
        {
            counts.between = Between::From;
        } else {
            counts.between = Between::Apart(LayoutCounts::undivided(order, self.orders));
            if let Between::Apart(between) = &mut counts.between {
                between.count_both(&self.from, &self.to);
            }
        }
        counts
    }

    /// What one of the changes takes or gives back. Those of all changes add up to [`Transition::delta`].
    ///
    /// Nothing, if the transition does not make this change.
    #[must_use]
    pub fn delta_of<M: CostModel + ?Sized>(&self, change: Change, cost: &M) -> CostDelta {
        let whole = change.whole();
        let fine = match change {
            Change::Split(_) if self.splits(whole) => {
                self.to_layout().within(whole).map(|part| part.counts())
            }
            Change::Merge(_) if self.merges(whole) => {
                self.from_layout().within(whole).map(|part| part.counts())
            }
            _ => None,
        };
        let undivided = LayoutCounts::undivided(whole.order(), self.orders);
        let units = fine.map_or(0, |fine| cost.units(&fine).saturating_sub(cost.units(&undivided)));
        match change {
            Change::Split(_) => CostDelta { needed: units, freed: 0 },
            Change::Merge(_) => CostDelta { needed: 0, freed: units },
        }
    }

    /// Units of one cost that the splits need and the merges give back. For several, take the counts once.
    #[must_use]
    pub fn delta<M: CostModel + ?Sized>(&self, cost: &M) -> CostDelta {
        self.counts().delta(cost)
    }
}

/// Whether each run of `inner` is part of one of `outer`. Says no where that would take long to find out.
fn holds<A: PageSet, B: PageSet>(outer: &A, inner: &B, order: Order) -> bool {
    // Edges of the outer one make its layout finer still.
    if edge_in(inner, 1..order.pages()).is_some() {
        return false;
    }
    let mut at = 0;
    for _ in 0..FEW_RUNS {
        let Some(run) = run_from(inner, at).filter(|run| run.start < order.pages()) else { return true };
        let end = run.end.min(order.pages());
        if run_from(outer, run.start).is_none_or(|around| around.start > run.start || around.end < end) {
            return false;
        }
        at = end;
    }
    false
}

/// Runs that are looked up one by one.
const FEW_RUNS: u32 = 8;

/// Whether `whole` is a folio of `coarse` and in pieces in `fine`.
fn divides<A: PageSet, B: PageSet>(coarse: &FolioLayout<A>, fine: &FolioLayout<B>, whole: PfnBlock) -> bool {
    coarse
        .block()
        .offset_of(whole.base())
        .is_some_and(|page| coarse.folio_at(page) == whole && fine.folio_at(page).order() < whole.order())
}

/// The folios of `layout` inside `whole`; none if it is not part of the block.
fn pieces<S: PageSet + Copy>(layout: FolioLayout<S>, whole: PfnBlock) -> Folios<S> {
    layout.narrowed(whole).into_folios(if layout.block().contains(whole) { 0 } else { u64::MAX })
}
