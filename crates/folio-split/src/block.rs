//! Page frame numbers and aligned blocks of them.

use crate::Order;
use core::{fmt, ops::Range};
use sept_core::{ADDRESS_BITS, Hpa, Level};

/// A page frame number: a physical address divided by 4 KiB, below 2^40.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pfn(u64);

const PFN_LIMIT: u64 = 1 << (ADDRESS_BITS - 12);

impl Pfn {
    /// The page frame `raw`, or `None` at or above 2^40.
    #[must_use]
    pub const fn new(raw: u64) -> Option<Self> {
        if raw < PFN_LIMIT { Some(Self(raw)) } else { None }
    }

    /// The page frame that holds `hpa`.
    #[must_use]
    pub const fn containing(hpa: Hpa) -> Self {
        Self(hpa.raw() >> 12)
    }

    /// The number, below 2^40.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Address of the first byte.
    #[must_use]
    pub const fn hpa(self) -> Hpa {
        Hpa::truncate(self.0 << 12)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pfn({:#x})", self.0)
    }
}

/// 2^order pages at a page frame aligned to them: a folio, or a block that folios are made of.
///
/// Aligned by construction; ordered by its first page, then by its order.
///
/// ```
/// use folio_split::{Order, Pfn, PfnBlock};
/// let block = PfnBlock::new(Pfn::new(0x40000).unwrap(), Order::HUGE_1G).unwrap();
/// let half = block.part(0x20000, Order::new(17).unwrap()).unwrap();
/// assert!(block.contains(half));
/// assert_eq!(half.to_string(), "0x60000/17");
/// assert!(PfnBlock::new(Pfn::new(0x40001).unwrap(), Order::HUGE_1G).is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PfnBlock {
    base: Pfn,
    order: Order,
}

impl PfnBlock {
    /// The block of `order` at `base`, or `None` if `base` is not aligned to it.
    #[must_use]
    pub const fn new(base: Pfn, order: Order) -> Option<Self> {
        if base.0 & order.mask() == 0 { Some(Self { base, order }) } else { None }
    }

    /// The block of `order` that holds `pfn`.
    #[must_use]
    #[inline]
    pub const fn containing(pfn: Pfn, order: Order) -> Self {
        Self { base: Pfn(pfn.0 & !order.mask()), order }
    }

    /// The block that a page of `level` at `hpa` covers; `None` if `hpa` is not aligned to it.
    #[must_use]
    pub const fn of_page(hpa: Hpa, level: Level) -> Option<Self> {
        match Order::new(level.order()) {
            Some(order) if hpa.is_aligned(level) => Some(Self { base: Pfn::containing(hpa), order }),
            _ => None,
        }
    }

    /// First page.
    #[must_use]
    pub const fn base(self) -> Pfn {
        self.base
    }

    /// Number of pages, as a power of two.
    #[must_use]
    pub const fn order(self) -> Order {
        self.order
    }

    /// Number of pages.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.order.pages()
    }

    /// The page frame numbers, half open; the end may be 2^40.
    #[must_use]
    #[inline]
    pub const fn range(self) -> Range<u64> {
        // At most 2^40 + 2^40.
        self.base.0..self.base.0.wrapping_add(self.pages())
    }

    /// Whether all of `other` lies in this block.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        other.order.raw() <= self.order.raw() && other.base.0 & !self.order.mask() == self.base.0
    }

    /// Whether `pfn` lies in this block.
    #[must_use]
    pub const fn contains_pfn(self, pfn: Pfn) -> bool {
        pfn.0 & !self.order.mask() == self.base.0
    }

    /// The block of `order` that begins `offset` pages into this one; `None` if it is not aligned or not inside.
    #[must_use]
    pub const fn part(self, offset: u64, order: Order) -> Option<Self> {
        if order.raw() > self.order.raw() || offset >= self.pages() || offset & order.mask() != 0 {
            return None;
        }
        Some(Self { base: Pfn(self.base.0 | offset), order })
    }

    /// The part of `order` that covers page `offset`, both within this block: higher bits are dropped.
    #[inline]
    pub(crate) const fn part_at(self, offset: u64, order: Order) -> Self {
        let order = if order.raw() > self.order.raw() { self.order } else { order };
        Self { base: Pfn(self.base.0 | (offset & self.order.mask() & !order.mask())), order }
    }

    /// Pages from the start of this block to `pfn`; `None` outside it.
    #[must_use]
    pub const fn offset_of(self, pfn: Pfn) -> Option<u64> {
        if self.contains_pfn(pfn) { Some(pfn.0 & self.order.mask()) } else { None }
    }
}

impl fmt::Display for PfnBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{}", self.base.0, self.order)
    }
}

impl fmt::Debug for PfnBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
