//! Sizes of the vmemmap, as values.
//!
//! With 64-byte `struct page`s and 4 KiB pages, one page of the vmemmap describes 64 pages of memory: a folio of
//! order 7 or above has whole pages of the vmemmap that hold nothing but tails. Those need not exist: their entries
//! map, read-only, a page with the same content (Linux mm/hugetlb_vmemmap.c; Documentation/mm/vmemmap_dedup.rst).

use folio_split::{CostModel, LayoutCounts, Order, PfnBlock};
use sept_core::{Class, Classify};

/// What the entries of tail pages map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum TailScheme {
    /// The last page that the folio keeps, which holds its head (Linux before 7.1: "fake heads"). Readers must tell a
    /// head from its image, and a head becomes a tail in two rounds with a grace period between them: see
    /// [`Commit`](crate::Commit).
    SharedWithHead,
    /// One read-only template per zone and order, never freed (Linux "Eliminate fake head pages", 2026): a tail holds
    /// a mask over its own address, so that all tails of one order are alike.
    PerOrder,
    /// One read-only template per zone: a tail does not say of which order it is, and the head is found elsewhere.
    OrderFree,
}

/// What one tail page of a folio maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Tail {
    /// The template of the zone for folios of this order.
    Template(Order),
    /// The template of the zone for folios of any order.
    AnyTemplate,
    /// The page of the block's own vmemmap with this index, which holds the folio's head.
    HeadPage(u64),
}

/// The sizes that decide what optimizing costs and saves.
///
/// ```
/// use folio_split::Order;
/// use vmemmap_prealloc::{Geometry, GeometryError, TailScheme};
/// let geometry = Geometry::new(64, 4096, 1, TailScheme::PerOrder)?;
/// assert_eq!(geometry, Geometry::LINUX_X86_64);
/// assert_eq!(geometry.vmemmap_pages(Order::HUGE_1G), 4096);
/// assert_eq!(geometry.smallest_order(), Order::new(7));
/// assert_eq!(
///     Geometry::new(56, 4096, 1, TailScheme::PerOrder),
///     Err(GeometryError::NoDivisor { struct_page_size: 56, page_size: 4096 }),
/// );
/// # Ok::<(), GeometryError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Geometry {
    /// `struct page`s in a page of the vmemmap, as a power of two.
    structs: Order,
    /// Entries of a page table, as a power of two.
    entries: Order,
    reserved: u64,
    tails: TailScheme,
}

const fn order(raw: u8) -> Order {
    match Order::new(raw) {
        Some(order) => order,
        None => Order::MAX,
    }
}

/// The number of the highest bit that is set; 0 of 0.
const fn log2(value: u64) -> u8 {
    match value.checked_ilog2() {
        Some(bit) => bit.to_le_bytes()[0],
        None => 0,
    }
}

impl Geometry {
    /// 64-byte `struct page`s, 4 KiB pages, one page kept per folio, one template per zone and order.
    pub const LINUX_X86_64: Self =
        Self { structs: order(6), entries: order(9), reserved: 1, tails: TailScheme::PerOrder };

    /// Sizes in bytes; `reserved` is the number of vmemmap pages that a folio keeps, its first ones (1 in Linux, 2
    /// for device DAX).
    ///
    /// # Errors
    ///
    /// [`GeometryError::PageSize`] for a page size that is not a power of two from 64 bytes on,
    /// [`GeometryError::NoDivisor`] if `struct page`s straddle pages (Linux too is without the optimization then),
    /// [`GeometryError::NothingReserved`] if a folio would not keep its head.
    pub const fn new(
        struct_page_size: u64,
        page_size: u64,
        reserved: u64,
        tails: TailScheme,
    ) -> Result<Self, GeometryError> {
        if !page_size.is_power_of_two() || page_size < 64 || page_size > 1 << 30 {
            return Err(GeometryError::PageSize { page_size });
        }
        let structs = match page_size.checked_div(struct_page_size) {
            // A divisor of a power of two is one.
            Some(structs) if structs > 0 && structs.wrapping_mul(struct_page_size) == page_size => structs,
            _ => return Err(GeometryError::NoDivisor { struct_page_size, page_size }),
        };
        if reserved == 0 {
            return Err(GeometryError::NothingReserved);
        }
        let [structs, ..] = structs.trailing_zeros().to_le_bytes();
        // Entries are 8 bytes.
        let [entries, ..] = page_size.trailing_zeros().saturating_sub(3).to_le_bytes();
        Ok(Self { structs: order(structs), entries: order(entries), reserved, tails })
    }

    /// `struct page`s in a page of the vmemmap, as a power of two: a folio smaller than this shares its page.
    #[must_use]
    pub const fn structs(&self) -> Order {
        self.structs
    }

    /// Pages of the vmemmap that a folio keeps.
    #[must_use]
    pub const fn reserved(&self) -> u64 {
        self.reserved
    }

    /// What tail pages map.
    #[must_use]
    pub const fn tails(&self) -> TailScheme {
        self.tails
    }

    /// Pages of memory that one page table of the vmemmap describes, as a power of two: 15 (128 MiB) on x86-64.
    #[must_use]
    pub const fn table_order(&self) -> Order {
        order(self.structs.raw().saturating_add(self.entries.raw()))
    }

    /// Page tables whose entries describe a block of `order` and nothing else: 8 for 1 GiB on x86-64, 0 below 128 MiB.
    #[must_use]
    pub const fn tables(&self, order: Order) -> u64 {
        match order.raw().checked_sub(self.table_order().raw()) {
            Some(tables) => 1 << tables,
            None => 0,
        }
    }

    /// The smallest order whose folios have a page to save; `None` if it is beyond all orders.
    #[must_use]
    pub fn smallest_order(&self) -> Option<Order> {
        let spare = self.reserved.checked_add(1)?.checked_next_power_of_two()?.trailing_zeros();
        Order::new(u8::try_from(spare).ok()?.checked_add(self.structs.raw())?)
    }

    /// Pages of the vmemmap that describe a block of `order`; 0 if it shares one with its neighbours.
    #[must_use]
    pub const fn vmemmap_pages(&self, order: Order) -> u64 {
        match order.raw().checked_sub(self.structs.raw()) {
            Some(pages) => 1 << pages,
            None => 0,
        }
    }

    /// Pages that a folio of `order` keeps; 0 if it shares one with its neighbours.
    #[must_use]
    pub fn kept(&self, order: Order) -> u64 {
        self.vmemmap_pages(order).min(self.reserved)
    }

    /// Tail pages of a folio of `order`.
    #[must_use]
    pub fn tail_pages(&self, order: Order) -> u64 {
        self.vmemmap_pages(order).saturating_sub(self.reserved)
    }

    /// Pages of the vmemmap that are a layout's own, V of the formulas: what folios keep, and those that describe
    /// folios too small to have one. 512 + 7 m_9 for a divided 1 GiB block of `{18,9,0}`.
    #[must_use]
    pub fn own_pages(&self, layout: &LayoutCounts) -> u64 {
        // Up to this order folios keep all their pages.
        let whole = order(self.structs.raw().saturating_add(log2(self.reserved)));
        if layout.order() <= whole {
            return self.vmemmap_pages(layout.order());
        }
        let all = self.vmemmap_pages(whole);
        if all == self.reserved {
            return layout.parts(whole).saturating_mul(all);
        }
        layout.weigh(whole, |order| if order > whole { self.reserved } else { all })
    }

    /// Tail pages of all folios of a layout.
    #[must_use]
    pub fn all_tail_pages(&self, layout: &LayoutCounts) -> u64 {
        self.vmemmap_pages(layout.order()).saturating_sub(self.own_pages(layout))
    }

    /// What the tail pages of `folio`, a folio of `block`, map.
    #[must_use]
    pub fn tail_of(&self, block: PfnBlock, folio: PfnBlock) -> Tail {
        match self.tails {
            TailScheme::PerOrder => Tail::Template(folio.order()),
            TailScheme::OrderFree => Tail::AnyTemplate,
            TailScheme::SharedWithHead => {
                let kept = self.kept(folio.order()).saturating_sub(1);
                Tail::HeadPage(self.index_of(block, folio).saturating_add(kept))
            }
        }
    }

    /// Index in the block's vmemmap of the page that holds the head of `folio`.
    #[must_use]
    pub fn index_of(&self, block: PfnBlock, folio: PfnBlock) -> u64 {
        block.offset_of(folio.base()).unwrap_or(0) >> self.structs.raw()
    }
}

impl CostModel for Geometry {
    /// The pages that are a layout's own.
    fn units(&self, layout: &LayoutCounts) -> u64 {
        self.own_pages(layout)
    }
}

/// Why a geometry was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// Not a power of two from 64 bytes to 1 GiB.
    #[error("{page_size} bytes is no page size")]
    PageSize {
        /// The size asked for.
        page_size: u64,
    },
    /// `struct page`s straddle pages, so no page holds tails alone in the same places.
    #[error("a struct page of {struct_page_size} bytes does not divide a page of {page_size} bytes")]
    NoDivisor {
        /// Bytes of a `struct page`.
        struct_page_size: u64,
        /// Bytes of a page.
        page_size: u64,
    },
    /// A folio must keep the page of its head.
    #[error("a folio must keep at least one page of the vmemmap")]
    NothingReserved,
}

impl Classify for GeometryError {
    fn class(&self) -> Class {
        Class::Caller
    }
}
