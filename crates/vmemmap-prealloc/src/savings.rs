//! What the optimization saves, and what other ways of changing a layout cost.

use crate::{Geometry, VmemmapBackend};
use core::iter::Sum;
use folio_split::{FolioLayout, LayoutCounts, PageSet, TransitionCounts};

/// What the optimization saves at one moment, in pages of memory.
///
/// Savings of several blocks add up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub struct Savings {
    /// Pages of the vmemmap if nothing were shared.
    pub full: u64,
    /// Pages of the vmemmap in use.
    pub used: u64,
    /// Page tables that exist only because tail pages are mapped one by one.
    pub tables: u64,
}

impl Savings {
    /// For one optimized block of this layout that needed `tables` page tables (8 for 1 GiB on x86-64).
    ///
    /// ```
    /// use folio_split::{FolioLayout, Order, OrderSet, Pfn, PfnBlock};
    /// use vmemmap_prealloc::{Geometry, Savings};
    /// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
    /// let counts = FolioLayout::new(block, OrderSet::HUGETLB, 0..1).counts();
    /// let one = Savings::of(&Geometry::LINUX_X86_64, &counts, 8);
    /// assert_eq!((one.gross(), one.net()), (3577, 3569));
    /// let total: Savings = [one, one].into_iter().sum();
    /// assert_eq!(total.gross(), 7154);
    /// ```
    #[must_use]
    pub fn of(geometry: &Geometry, layout: &LayoutCounts, tables: u64) -> Self {
        Self { full: geometry.vmemmap_pages(layout.order()), used: geometry.own_pages(layout), tables }
    }

    /// What one block of this layout saves now: nothing if it is not optimized, less than nothing if it was once, for its
    /// page tables stay. A block smaller than what one page table describes shares it with its neighbours: it counts none.
    /// Between the two rounds of a merge the block has more pages than this says.
    #[must_use]
    pub fn now<V, S>(backend: &V, layout: &FolioLayout<S>) -> Self
    where
        V: VmemmapBackend + ?Sized,
        S: PageSet,
    {
        let (geometry, block) = (backend.geometry(), layout.block());
        let full = geometry.vmemmap_pages(block.order());
        let tables = geometry.tables(block.order()).saturating_sub(backend.tables_missing(block).into());
        if !backend.is_optimized(block) {
            return Self { full, used: full, tables };
        }
        Self::of(&geometry, &layout.counts(), tables)
    }

    /// Pages saved, tables not counted.
    #[must_use]
    pub const fn gross(&self) -> u64 {
        self.full.saturating_sub(self.used)
    }

    /// Pages saved; 0 where the tables cost more than that.
    #[must_use]
    pub const fn net(&self) -> u64 {
        self.gross().saturating_sub(self.tables)
    }
}

impl core::ops::Add for Savings {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            full: self.full.saturating_add(other.full),
            used: self.used.saturating_add(other.used),
            tables: self.tables.saturating_add(other.tables),
        }
    }
}

impl Sum for Savings {
    fn sum<I: Iterator<Item = Self>>(each: I) -> Self {
        each.fold(Self::default(), core::ops::Add::add)
    }
}

/// What the same transition takes where it goes by way of the whole vmemmap, as in Linux: restore every page, change the
/// folios, optimize those that have tail pages (mm/hugetlb.c, `demote_pool_huge_page`; mm/hugetlb_vmemmap.c).
///
/// For reports: this crate does not go that way.
///
/// ```
/// use folio_split::{Empty, Large, Order, OrderSet, Pfn, PfnBlock, Transition};
/// use vmemmap_prealloc::{Geometry, RestorePath};
/// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
/// // 512 folios of 2 MiB: one of them has to stand alone.
/// let demote = Transition::new(block, OrderSet::HUGETLB, Empty, Large(0..512));
/// let linux = RestorePath::of(&Geometry::LINUX_X86_64, &demote.counts());
/// assert_eq!((linux.taken, linux.released, linux.peak), (4095 + 512, 4096, 4607));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub struct RestorePath {
    /// Pages that are allocated: those restored, and a new head page per folio that is optimized.
    pub taken: u64,
    /// Pages that are freed.
    pub released: u64,
    /// How many more pages are in use at the peak than before, with one flush at the end of a batch.
    pub peak: u64,
    /// The same with a flush for each folio that is optimized.
    pub peak_flush_each: u64,
}

impl RestorePath {
    /// For one optimized block.
    #[must_use]
    pub fn of(geometry: &Geometry, counts: &TransitionCounts) -> Self {
        let full = geometry.vmemmap_pages(counts.from().order());
        let restored = full.saturating_sub(geometry.own_pages(counts.from()));
        let large = counts.to().by_order().filter(|&(order, _)| geometry.tail_pages(order) > 0);
        let (mut heads, mut released, mut any) = (0_u64, 0_u64, 0_u64);
        for (order, folios) in large {
            // The page of the head is copied to a new one; what is kept beside it stays.
            let freed = geometry.tail_pages(order).saturating_add(1);
            heads = heads.saturating_add(folios);
            released = released.saturating_add(folios.saturating_mul(freed));
            any |= folios.min(1);
        }
        Self {
            taken: restored.saturating_add(heads),
            released,
            peak: restored.saturating_add(heads),
            peak_flush_each: restored.saturating_add(any),
        }
    }

    /// How many more pages are in use in the end than before.
    #[must_use]
    pub const fn net(&self) -> i64 {
        self.taken.cast_signed().wrapping_sub(self.released.cast_signed())
    }
}
