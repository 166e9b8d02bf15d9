//! The canonical coarsest layout of a block.

use crate::{
    LayoutCounts, Order, OrderSet, PageSet, PfnBlock,
    pages::{edge_in, run_from},
};
use core::ops::Range;

/// A run, or an edge, behind all pages.
const NOWHERE: u64 = u64::MAX;

/// How a block is divided into folios: the coarsest way in which every page of a set is a folio of its own.
///
/// A block of a member order that holds no small page and lies in no larger such block is a folio; what is left is
/// single pages. The result is unique, so a layout *is* its inputs: nothing proportional to pages is stored, and the
/// layouts of a block before and after a change differ in their page set alone. A block whose own order is not in
/// the set starts as folios of the largest order below it.
///
/// Pages are numbered from the first page of the block, in the layout as in its [`PageSet`].
///
/// ```
/// use folio_split::{FolioLayout, Order, OrderSet, Pfn, PfnBlock};
/// let block = PfnBlock::new(Pfn::new(0x4000_0000 >> 12).unwrap(), Order::HUGE_1G).unwrap();
/// let layout = FolioLayout::new(block, OrderSet::HUGETLB, 1000..1001);
/// assert_eq!(layout.folio_at(0).order(), Order::HUGE_2M);
/// assert_eq!(layout.folio_at(1001).order(), Order::PAGE);
/// assert_eq!(layout.folios(0).count(), 1023);
/// assert_eq!(layout.counts().folios(), 1023);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolioLayout<S> {
    block: PfnBlock,
    orders: OrderSet,
    small: S,
    /// Where the block begins in the numbering of `small`: not 0 for a part of a larger block.
    first: u64,
}

impl<S: PageSet> FolioLayout<S> {
    /// The layout of `block` with folios of `orders` in which the pages of `small` are single pages.
    ///
    /// Orders above that of the block are left out; members of `small` after the block are ignored.
    #[must_use]
    pub const fn new(block: PfnBlock, orders: OrderSet, small: S) -> Self {
        Self { block, orders: orders.clipped(block.order()), small, first: 0 }
    }

    /// The block.
    #[must_use]
    pub const fn block(&self) -> PfnBlock {
        self.block
    }

    /// The orders that folios of this block may have.
    #[must_use]
    pub const fn orders(&self) -> OrderSet {
        self.orders
    }

    /// The pages that are single folios, in the numbering of the block this layout was made for.
    #[must_use]
    pub const fn small(&self) -> &S {
        &self.small
    }

    /// The same layout, reading the set through a reference.
    #[must_use]
    pub const fn by_ref(&self) -> FolioLayout<&S> {
        FolioLayout { block: self.block, orders: self.orders, small: &self.small, first: self.first }
    }

    /// The layout of one aligned part of the block; `None` if `part` is not inside it.
    ///
    /// Where a larger folio covers `part`, the part is shown as if it were a block by itself.
    #[must_use]
    pub fn within(&self, part: PfnBlock) -> Option<FolioLayout<&S>> {
        self.block.contains(part).then(|| self.by_ref().narrowed(part))
    }

    /// The folio that page `page` belongs to; the number is taken modulo the size of the block.
    ///
    /// At most one look-up in the set per order.
    #[must_use]
    pub fn folio_at(&self, page: u64) -> PfnBlock {
        let page = page & self.block.order().mask();
        // The largest block around the page that may still be a folio.
        let mut order = self.block.order();
        // Ends with the orders: what is in the way makes the block smaller each time.
        loop {
            let start = page & !order.mask();
            let run = self.run_from(start).unwrap_or(NOWHERE..NOWHERE);
            let edge = self.edge_after(start);
            if run.contains(&page) {
                return self.block.part_at(page, Order::PAGE);
            }
            // What lies behind the page bounds the block from above; the last of what lies before it, from below.
            let behind = |at: u64| if at > page { order_below(page, at) } else { order };
            let before = |at: u64| if at <= page { order_below(page, at.wrapping_sub(1)) } else { order };
            let smaller = before(run.end).min(before(edge));
            if smaller >= order {
                let order = order.min(behind(run.start)).min(behind(edge));
                return self.block.part_at(page, self.orders.largest_within(order));
            }
            order = smaller;
        }
    }

    /// The folios from the one that holds page `from`, in ascending order. One look-up in the set per run.
    pub fn folios(&self, from: u64) -> Folios<&S> {
        self.by_ref().into_folios(from)
    }

    /// [`FolioLayout::folios`] for a layout that nobody else needs.
    pub fn into_folios(self, from: u64) -> Folios<S> {
        let next =
            if from < self.block.pages() { self.offset_of(self.folio_at(from)) } else { self.block.pages() };
        Folios { layout: self, next, walls: Walls::default() }
    }

    /// Exact numbers of this layout, in one pass over the runs of the set.
    #[must_use]
    pub fn counts(&self) -> LayoutCounts {
        let mut counts = LayoutCounts::undivided(self.block.order(), self.orders);
        counts.count(&self.small, self.first);
        counts
    }

    /// This layout for one part of the block; unchanged if `part` is not inside it.
    pub(crate) fn narrowed(self, part: PfnBlock) -> Self {
        match self.block.offset_of(part.base()) {
            Some(offset) if self.block.contains(part) => Self {
                block: part,
                orders: self.orders.clipped(part.order()),
                small: self.small,
                // `first` is a multiple of the block's size, `offset` below it.
                first: self.first | offset,
            },
            _ => self,
        }
    }

    /// The first run at or after page `from` of this block.
    fn run_from(&self, from: u64) -> Option<Range<u64>> {
        let run = run_from(&self.small, self.first.saturating_add(from))?;
        Some(run.start.saturating_sub(self.first)..run.end.saturating_sub(self.first))
    }

    /// The first page after page `at` that may not share a folio with the page before it; far away if there is none.
    #[inline]
    fn edge_after(&self, at: u64) -> u64 {
        let from = |page: u64| self.first.saturating_add(page);
        let edge = edge_in(&self.small, from(at).saturating_add(1)..from(self.block.pages()));
        edge.map_or(NOWHERE, |edge| edge.saturating_sub(self.first))
    }

    /// Where a folio of this block begins.
    const fn offset_of(&self, folio: PfnBlock) -> u64 {
        folio.base().raw() & self.block.order().mask()
    }
}

/// The largest order whose block around page `a` does not hold page `b`, another one.
#[inline]
pub(crate) const fn order_below(a: u64, b: u64) -> Order {
    let [bit, ..] = 63_u32.saturating_sub((a ^ b).leading_zeros()).to_le_bytes();
    match Order::new(bit) {
        Some(order) => order,
        None => Order::MAX,
    }
}

/// What bounds the folios of a layout after a page: the next run of single pages, and the next edge.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walls {
    /// The first run that ends after the page.
    pub(crate) run: Range<u64>,
    /// The first edge after the page.
    pub(crate) edge: u64,
}

impl Walls {
    /// Goes on to page `at`. One look-up for each run and edge that is passed.
    #[inline]
    pub(crate) fn seek<S: PageSet>(&mut self, layout: &FolioLayout<S>, at: u64) {
        if at >= self.run.end {
            self.run = layout.run_from(at).unwrap_or(NOWHERE..NOWHERE);
        }
        if at >= self.edge {
            self.edge = layout.edge_after(at);
        }
    }

    /// The first page after which there is a wall, or which is single: no folio reaches it from before.
    #[inline]
    pub(crate) fn next(&self) -> u64 {
        self.run.start.min(self.edge)
    }
}

/// The folios of a layout, in ascending order.
#[derive(Clone, Debug)]
#[must_use = "iterators are lazy"]
pub struct Folios<S> {
    layout: FolioLayout<S>,
    next: u64,
    walls: Walls,
}

impl<S: PageSet> Iterator for Folios<S> {
    type Item = PfnBlock;

    fn next(&mut self) -> Option<PfnBlock> {
        let FolioLayout { block, orders, .. } = self.layout;
        let at = self.next;
        if at >= block.pages() {
            return None;
        }
        self.walls.seek(&self.layout, at);
        // A folio begins at `at`: the largest member order that is aligned here and ends before the next wall.
        let room = self.walls.next().saturating_sub(at);
        let aligned = at.trailing_zeros().min(63);
        let free = 63_u32.saturating_sub(room.max(1).leading_zeros());
        let [limit, ..] = aligned.min(free).to_le_bytes();
        let limit = Order::new(limit).unwrap_or(Order::MAX).min(block.order());
        let folio = block.part_at(at, orders.largest_within(limit));
        self.next = at.saturating_add(folio.pages());
        Some(folio)
    }
}

impl<S: PageSet> core::iter::FusedIterator for Folios<S> {}
