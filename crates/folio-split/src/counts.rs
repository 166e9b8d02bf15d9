//! Exact numbers of a layout, in closed form.
//!
//! Let m_o be the number of aligned order-o blocks that contain a small page (or, where runs may stay large, an edge of
//! such a run). For a run `[a, b)` it is
//! `((b - 1) >> o) - (a >> o) + 1`; blocks that two runs share are counted once. With the member orders
//! `l0 > l1 > ... > 0` of a block of order n, `m_l * 2^(l - l')` regions of the next lower member l' come from
//! blocks of order l that could not stay whole, and `m_l'` of those are divided further. Everything a layout costs
//! follows from the m of its member orders.

use crate::{
    Order, OrderSet, PageSet,
    pages::edge_from,
    tally::{Tally, handful, mixed},
};

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
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LayoutCounts {
    order: Order,
    orders: OrderSet,
    /// m_o for the member orders above 0; 0 elsewhere.
    touched: [u64; Order::COUNT],
}

impl LayoutCounts {
    /// Counts the block of `order` that begins at page `first` of `small`, a multiple of its size.
    pub(crate) fn of<S: PageSet + ?Sized>(order: Order, orders: OrderSet, small: &S, first: u64) -> Self {
        let mut counts = Self::undivided(order, orders);
        let Some(smallest) = counts.orders.smallest_large() else { return counts };
        let end = first.saturating_add(order.pages());
        if edge_from(small, first.saturating_add(1)).is_some_and(|edge| edge < end) {
            for order in counts.orders.iter().skip(1) {
                if let Some(touched) = counts.touched.get_mut(order.index()) {
                    *touched = mixed(order, small, first, end);
                }
            }
        } else if !handful(order, counts.orders, small, first, &mut counts.touched) {
            Tally::new(order, smallest, &mut counts.touched).count(small, first);
            // It counts orders on the way that are no members.
            for (order, touched) in counts.touched.iter_mut().enumerate() {
                if counts.orders.bits() >> order & 1 == 0 {
                    *touched = 0;
                }
            }
        }
        counts
    }

    /// The counts of a block without small pages.
    pub(crate) const fn undivided(order: Order, orders: OrderSet) -> Self {
        Self { order, orders: orders.clipped(order), touched: [0; Order::COUNT] }
    }

    /// m_o for a member order above 0.
    #[inline]
    fn m(&self, order: Order) -> u64 {
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
        // A block of order l that is divided is 2^(l - l') regions instead of one, l' the member below.
        let mut below = 0;
        let mut sum: u64 = 0;
        for order in self.orders.iter().skip(1) {
            let divided = self.m(order);
            sum = sum.wrapping_add(divided << order.raw().wrapping_sub(below)).wrapping_sub(divided);
            below = order.raw();
        }
        sum.wrapping_add(1 << self.order.raw().saturating_sub(below))
    }

    /// The number of folios of each member order, largest first.
    pub fn by_order(&self) -> impl Iterator<Item = (Order, u64)> + '_ {
        // Blocks of the member before that had to be divided; before the first, the whole block has to be.
        self.orders.iter().rev().scan((self.order, 1), |(above, divided), order| {
            let regions = *divided << above.raw().saturating_sub(order.raw());
            *divided = self.m(order);
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
