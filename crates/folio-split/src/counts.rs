//! Exact numbers of a layout, in closed form.
//!
//! Let m_o be the number of aligned order-o blocks that contain a small page. For a run `[a, b)` it is
//! `((b - 1) >> o) - (a >> o) + 1`; blocks that two runs share are counted once. With the member orders
//! `l0 > l1 > ... > 0` of a block of order n, `m_l * 2^(l - l')` regions of the next lower member l' come from
//! blocks of order l that could not stay whole, and `m_l'` of those are divided further. Everything a layout costs
//! follows from the m of its member orders.

use crate::{Order, OrderSet, PageSet, pages::run_from};

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
        let orders = orders.clipped(order);
        let mut counts = Self { order, orders, touched: [0; Order::COUNT] };
        match orders.smallest_large() {
            None => {}
            Some(_) if order.raw() < WORD_ORDER.raw() => {
                let word = (small.word(first >> 6) >> (first & 63)) & !(u64::MAX << order.pages());
                counts.add_word(word);
            }
            Some(smallest) if smallest.raw() >= WORD_ORDER.raw() => counts.add_units(small, first, smallest),
            Some(_) => counts.add_words(small, first),
        }
        counts
    }

    /// Counts blocks of `unit` and above: after a run, the rest of its last unit cannot add anything.
    fn add_units<S: PageSet + ?Sized>(&mut self, small: &S, first: u64, unit: Order) {
        let end = first.saturating_add(self.order.pages());
        let (mut at, mut previous) = (first, None);
        while let Some(run) = run_from(small, at).filter(|run| run.start < end) {
            let last = run.end.min(end).saturating_sub(1);
            self.add_run(run.start, last, previous, Order::PAGE);
            previous = Some(last);
            at = (last | unit.mask()).saturating_add(1);
        }
    }

    /// Counts a word at a time where runs are short, and whole words by closed form where they are long.
    fn add_words<S: PageSet + ?Sized>(&mut self, small: &S, first: u64) {
        let end = first.saturating_add(self.order.pages());
        let (mut at, mut previous) = (first, None);
        while let Some(run) = run_from(small, at).filter(|run| run.start < end) {
            let head = run.start >> 6;
            // Words after the head that the run covers completely.
            let full = (run.end.min(end) >> 6).saturating_sub(head).saturating_sub(1);
            let last = head.saturating_add(full);
            self.add_word(small.word(head));
            for order in
                self.orders.clipped(Order::new(WORD_ORDER.raw().saturating_sub(1)).unwrap_or_default())
            {
                self.add(order, full << WORD_ORDER.raw().saturating_sub(order.raw()));
            }
            self.add_run(head, last, previous, WORD_ORDER);
            previous = Some(last);
            at = last.saturating_add(1) << 6;
        }
    }

    /// Adds the blocks that units `first..=last` touch, without those that unit `previous` has touched.
    #[inline]
    fn add_run(&mut self, first: u64, last: u64, previous: Option<u64>, unit: Order) {
        for order in self.orders.at_least(unit) {
            if order == Order::PAGE {
                continue;
            }
            let shift = order.raw().saturating_sub(unit.raw());
            let (low, high) = (first >> shift, last >> shift);
            let seen = previous.is_some_and(|previous| previous >> shift == low);
            let new = high.saturating_sub(low).saturating_add(u64::from(!seen));
            if new == 0 {
                break; // and so in all larger blocks
            }
            self.add(order, new);
        }
    }

    /// Adds the blocks of order 1 to 5 that the members of one word touch.
    #[inline]
    fn add_word(&mut self, word: u64) {
        const KEEP: [u64; 5] = [
            0x5555_5555_5555_5555,
            0x1111_1111_1111_1111,
            0x0101_0101_0101_0101,
            0x0001_0001_0001_0001,
            0x0000_0001_0000_0001,
        ];
        let mut folded = word;
        for (order, (keep, shift)) in (1..).zip(KEEP.into_iter().zip([1, 2, 4, 8, 16])) {
            folded = (folded | folded >> shift) & keep;
            if let Some(order) = Order::new(order).filter(|&order| self.orders.contains(order)) {
                self.add(order, u64::from(folded.count_ones()));
            }
        }
    }

    #[inline]
    fn add(&mut self, order: Order, blocks: u64) {
        if let (true, Some(touched)) = (order != Order::PAGE, self.touched.get_mut(order.index())) {
            *touched = touched.saturating_add(blocks);
        }
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
        if !self.orders.contains(order) {
            return 0;
        }
        self.regions(order).saturating_sub(self.m(order))
    }

    /// All folios.
    #[must_use]
    pub fn folios(&self) -> u64 {
        self.orders.iter().fold(0, |sum: u64, order| sum.saturating_add(self.folios_of(order)))
    }

    /// Order-`order` blocks that are a folio or were divided at this member order.
    fn regions(&self, order: Order) -> u64 {
        let above =
            Order::new(order.raw().saturating_add(1)).and_then(|next| self.orders.smallest_from(next));
        match above {
            Some(above) => self.m(above) << above.raw().saturating_sub(order.raw()),
            None => 1 << self.order.raw().saturating_sub(order.raw()),
        }
    }
}

impl core::fmt::Debug for LayoutCounts {
    /// The number of folios of each order that occurs, largest first.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let folios = self.orders.iter().rev().map(|order| (order, self.folios_of(order)));
        f.debug_map().entries(folios.filter(|&(_, count)| count != 0)).finish()
    }
}

/// Pages in a word of a bitmap, as an order.
const WORD_ORDER: Order = match Order::new(6) {
    Some(order) => order,
    None => Order::MAX,
};
