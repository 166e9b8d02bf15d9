//! Exact numbers of a layout, in closed form.
//!
//! Let m_o be the number of aligned order-o blocks that contain a small page (or, where runs may stay large, an edge of
//! such a run). For a run `[a, b)` it is
//! `((b - 1) >> o) - (a >> o) + 1`; blocks that two runs share are counted once. With the member orders
//! `l0 > l1 > ... > 0` of a block of order n, `m_l * 2^(l - l')` regions of the next lower member l' come from
//! blocks of order l that could not stay whole, and `m_l'` of those are divided further. Everything a layout costs
//! follows from the m of its member orders.

use crate::{Order, OrderSet, PageSet, Union, pages::edge_in, tally::count};
use core::ops::Range;

/// Exact numbers of one layout.
///
/// ```
/// use folio_split::{FolioLayout, Order, OrderSet, Pfn, PfnBlock};
/// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
/// let counts = FolioLayout::new(block, OrderSet::ALL, 7..8).counts();
/// assert_eq!(counts.folios(), 19);
/// assert_eq!(counts.folios_of(Order::PAGE), 2);
/// assert_eq!(counts.touched(Order::HUGE_2M), Some(1));
/// ```
#[derive(Clone, Copy)]
pub struct LayoutCounts {
    order: Order,
    orders: OrderSet,
    /// m_o for the member orders above 0; anything elsewhere.
    touched: [u64; Order::COUNT],
}

impl LayoutCounts {
    /// Counts the block that begins at page `first` of `small`, a multiple of its size; nothing was counted before.
    pub(crate) fn count<S: PageSet + ?Sized>(&mut self, small: &S, first: u64) {
        count(self.order, self.orders, small, |pages| edge_in(small, pages), first, &mut self.touched);
    }

    /// Counts the block with what keeps pages apart in either set; nothing was counted before.
    pub(crate) fn count_both<A: PageSet, B: PageSet>(&mut self, a: &A, b: &B) {
        // Each set is asked again when its edge was passed.
        let (mut in_a, mut in_b) = (0, 0);
        let edges = |pages: Range<u64>| {
            if in_a < pages.start {
                in_a = edge_in(a, pages.clone()).unwrap_or(pages.end);
            }
            if in_b < pages.start {
                in_b = edge_in(b, pages.clone()).unwrap_or(pages.end);
            }
            Some(in_a.min(in_b)).filter(|&edge| edge < pages.end)
        };
        count(self.order, self.orders, &Union(a, b), edges, 0, &mut self.touched);
    }

    /// The counts of a block without small pages.
    pub(crate) const fn undivided(order: Order, orders: OrderSet) -> Self {
        Self { order, orders: orders.clipped(order), touched: [0; Order::COUNT] }
    }

    /// m_o for a member order above 0.
    #[inline]
    pub(crate) fn m(&self, order: Order) -> u64 {
        self.touched.get(order.index()).copied().unwrap_or(0)
    }

    /// Order of the block.
    #[must_use]
    pub const fn order(&self) -> Order {
        self.order
    }

    /// The orders that folios of the block may have.
    #[must_use]
    pub const fn orders(&self) -> OrderSet {
        self.orders
    }

    /// m_o: the number of aligned order-o blocks that contain a small page; `None` if o is 0 or no member.
    #[must_use]
    pub fn touched(&self, order: Order) -> Option<u64> {
        (order != Order::PAGE && self.orders.contains(order)).then(|| self.m(order))
    }

    /// The number of aligned order-`order` blocks that no single folio covers: each has a folio smaller than itself.
    ///
    /// `order` need not be a member. 0 if it is above the order of the block.
    #[must_use]
    pub fn fragmented(&self, order: Order) -> u64 {
        if order == Order::PAGE || order > self.order {
            return 0;
        }
        match self.orders.smallest_from(order) {
            Some(member) => self.m(member) << member.raw().saturating_sub(order.raw()),
            None => 1 << self.order.raw().saturating_sub(order.raw()),
        }
    }

    /// Folios of one order.
    #[must_use]
    pub fn folios_of(&self, order: Order) -> u64 {
        self.by_order().find(|&(member, _)| member == order).map_or(0, |(_, folios)| folios)
    }

    /// All folios.
    #[must_use]
    pub fn folios(&self) -> u64 {
        self.parts(Order::PAGE)
    }

    /// Folios of order `unit` and above, and aligned blocks of order `unit` that are divided further: what
    /// [`LayoutCounts::weigh`] gives with a weight of 1. One step per order.
    #[must_use]
    pub fn parts(&self, unit: Order) -> u64 {
        let members = self.orders.bits() >> unit.raw();
        let above = self.touched.get(unit.index()..=self.order.index()).unwrap_or_default();
        if above.is_empty() || members.trailing_ones() as usize != above.len() {
            return self.weigh(unit, |_| 1);
        }
        // Where each order is one, each block that is divided is one part more.
        above.iter().skip(1).fold(1, |sum: u64, touched| sum.wrapping_add(*touched))
    }

    /// Whether every folio is of the largest order that the block can have.
    #[must_use]
    pub fn is_undivided(&self) -> bool {
        let largest = self.orders.largest_within(self.order);
        largest == Order::PAGE || self.m(largest) == 0
    }

    /// The sum of a weight that folios have by their order, where those below `unit` count together: an aligned block
    /// of order `unit` that no single folio covers weighs `weight(unit)` as a whole. 0 if the block is smaller than `unit`.
    ///
    /// Every cost that is additive over folios is such a sum: folios themselves with a weight of 1, pages of the vmemmap
    /// with what a folio keeps. One step per member order; a weight above 2^20 may overflow.
    #[must_use]
    #[inline]
    pub fn weigh(&self, unit: Order, weight: impl Fn(Order) -> u64) -> u64 {
        if unit > self.order {
            return 0;
        }
        let largest = self.orders.largest_within(self.order);
        if largest <= unit || self.m(largest) == 0 {
            let largest = largest.max(unit);
            return weight(largest) << self.order.raw().saturating_sub(largest.raw());
        }
        // A block of order l that is divided is 2^(l - l') regions instead of one, l' the member below.
        let (mut below, mut each, mut sum) = (unit, weight(unit), 0_u64);
        for order in self.orders.above(unit) {
            let parts = each << order.raw().wrapping_sub(below.raw());
            let one = weight(order);
            sum = sum.wrapping_add(self.m(order).wrapping_mul(parts.wrapping_sub(one)));
            (below, each) = (order, one);
        }
        sum.wrapping_add(each << self.order.raw().saturating_sub(below.raw()))
    }

    /// The number of folios of each member order, largest first.
    pub fn by_order(&self) -> impl Iterator<Item = (Order, u64)> + '_ {
        // Blocks of the member before that had to be divided; before the first, the whole block has to be.
        self.orders.iter().rev().scan((self.order, 1), |(above, divided), order| {
            let regions = *divided << above.raw().saturating_sub(order.raw());
            *divided = if order == Order::PAGE { 0 } else { self.m(order) };
            *above = order;
            Some((order, regions.saturating_sub(*divided)))
        })
    }
}

impl core::fmt::Debug for LayoutCounts {
    /// The number of folios of each order that occurs, largest first.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_map().entries(self.by_order().filter(|&(_, count)| count != 0)).finish()
    }
}

impl PartialEq for LayoutCounts {
    fn eq(&self, other: &Self) -> bool {
        let same = |order| self.m(order) == other.m(order);
        self.order == other.order && self.orders == other.orders && self.orders.iter().skip(1).all(same)
    }
}

impl Eq for LayoutCounts {}
