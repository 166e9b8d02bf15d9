//! What a transition takes and gives, before anything is done.

use crate::{Geometry, TailScheme, VmemmapBackend};
use folio_split::{
    Change, FolioLayout, LayoutCounts, Order, OrderSet, PageSet, PfnBlock, Transition, TransitionCounts,
};
use sept_core::{FrameKind, FrameNeeds};

/// Whether tail pages of a block are shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum BlockState {
    /// Every page of the vmemmap is the block's own: a transition changes no mapping.
    Plain,
    /// Exactly the pages that the layout needs are its own.
    Optimized,
}

/// The vmemmap part of a plan: exact, of constant size.
///
/// ```
/// use folio_split::{Empty, Order, OrderSet, Pfn, PfnBlock, Transition};
/// use vmemmap_prealloc::{BlockState, Geometry, VmemmapNeeds};
/// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
/// let needs = |orders| {
///     let share = Transition::new(block, orders, Empty, 1000..1001);
///     VmemmapNeeds::of(&share, &Geometry::LINUX_X86_64, BlockState::Optimized)
/// };
/// assert_eq!(needs(OrderSet::HUGETLB).fresh, 518);
/// assert_eq!((needs(OrderSet::ALL).fresh, needs(OrderSet::ALL).rewrites), (12, 4083));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub struct VmemmapNeeds {
    /// Pages that splits make the block's own: to be reserved.
    pub fresh: u64,
    /// Pages that merges give up: theirs is the time after the flush.
    pub released: u64,
    /// Entries of tail pages that change what they map without a page being taken or given up.
    pub rewrites: u64,
    /// Changes that write an entry: flushes, if each is an atom of its own. A batch needs one.
    pub flushes: u64,
    /// Page tables that must be there before entries can change. 0 for a block that was optimized before.
    pub tables: u32,
    /// Templates that the zone lacks. A commit is refused unless this is 0.
    pub templates: u32,
    /// Whether readers must have passed a quiescent state between the last change and the next pin
    /// ([`TailScheme::SharedWithHead`]). Waited for outside the freeze.
    pub grace_period: bool,
}

impl VmemmapNeeds {
    /// What `transition` takes and gives, with all tables and templates in place.
    ///
    /// Three passes over the runs, and one look at each difference.
    #[must_use]
    pub fn of<A: PageSet, B: PageSet>(
        transition: &Transition<A, B>,
        geometry: &Geometry,
        state: BlockState,
    ) -> Self {
        Self::with_counts(transition, &transition.counts(), geometry, state)
    }

    /// [`VmemmapNeeds::of`] where the counts of the transition are known already.
    #[must_use]
    pub fn with_counts<A: PageSet, B: PageSet>(
        transition: &Transition<A, B>,
        counts: &TransitionCounts,
        geometry: &Geometry,
        state: BlockState,
    ) -> Self {
        if state == BlockState::Plain {
            return Self::default();
        }
        // Between the splits and the merges, the own pages are those of either layout.
        let between = geometry.own_pages(&counts.between);
        let mut needs = Self {
            fresh: between.saturating_sub(geometry.own_pages(&counts.from)),
            released: between.saturating_sub(geometry.own_pages(&counts.to)),
            ..Self::default()
        };
        for change in transition.changes(0..transition.block().pages()) {
            let whole = change.whole();
            if geometry.tail_pages(whole.order()) == 0 {
                continue;
            }
            let fine = match change {
                Change::Split(_) => transition.to_layout().within(whole).map(|part| Fine::of(&part)),
                Change::Merge(_) => transition.from_layout().within(whole).map(|part| Fine::of(&part)),
            };
            needs.rewrites = needs.rewrites.saturating_add(fine.map_or(0, |fine| fine.rewrites(geometry)));
            needs.flushes = needs.flushes.saturating_add(1);
        }
        needs.grace_period = needs.flushes > 0 && geometry.tails() == TailScheme::SharedWithHead;
        needs
    }

    /// What `transition` takes and gives on this backend, missing tables and templates included.
    #[must_use]
    pub fn plan<V, A, B>(backend: &V, transition: &Transition<A, B>, counts: &TransitionCounts) -> Self
    where
        V: VmemmapBackend + ?Sized,
        A: PageSet,
        B: PageSet,
    {
        let (block, geometry) = (transition.block(), backend.geometry());
        if !backend.is_optimized(block) {
            return Self::default();
        }
        let mut needs = Self::with_counts(transition, counts, &geometry, BlockState::Optimized);
        needs.tables = backend.tables_missing(block);
        needs.templates = templates_missing(backend, block, transition.orders());
        needs
    }

    /// Frames to reserve.
    #[must_use]
    pub fn frames(&self) -> FrameNeeds {
        let mut frames = FrameNeeds::NONE;
        // More than 2^32 pages saturate: no source has them.
        frames[FrameKind::Vmemmap] = u32::try_from(self.fresh).unwrap_or(u32::MAX);
        frames[FrameKind::VmemmapTable] = self.tables;
        frames[FrameKind::TailTemplate] = self.templates;
        frames
    }

    /// Entries of the vmemmap's page tables that are written.
    #[must_use]
    pub const fn entry_writes(&self) -> u64 {
        self.fresh.saturating_add(self.released).saturating_add(self.rewrites)
    }
}

/// Templates that folios of `orders` need and the zone of `near` lacks.
pub(crate) fn templates_missing<V: VmemmapBackend + ?Sized>(
    backend: &V,
    near: PfnBlock,
    orders: OrderSet,
) -> u32 {
    crate::templates(backend.geometry(), orders)
        .filter(|&tail| !backend.has_template(near, tail))
        .fold(0, |missing: u32, _| missing.saturating_add(1))
}

/// The finer side of one change, a folio and its pieces.
struct Fine {
    counts: LayoutCounts,
    first: Order,
}

impl Fine {
    fn of<S: PageSet>(part: &FolioLayout<&S>) -> Self {
        Self { counts: part.counts(), first: part.folio_at(0).order() }
    }

    /// Tail pages of the pieces that mapped, or will map, something else while they are tails of the whole.
    fn rewrites(&self, geometry: &Geometry) -> u64 {
        let tails = geometry.all_tail_pages(&self.counts);
        match geometry.tails() {
            TailScheme::PerOrder => tails,
            TailScheme::OrderFree => 0,
            // The first piece has its head where the whole has it.
            TailScheme::SharedWithHead => tails.saturating_sub(geometry.tail_pages(self.first)),
        }
    }
}

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
    /// assert_eq!(Savings::of(&Geometry::LINUX_X86_64, &counts, 8).gross(), 3577);
    /// assert_eq!(Savings::of(&Geometry::LINUX_X86_64, &counts, 8).net(), 3569);
    /// ```
    #[must_use]
    pub fn of(geometry: &Geometry, layout: &LayoutCounts, tables: u64) -> Self {
        Self { full: geometry.vmemmap_pages(layout.order()), used: geometry.own_pages(layout), tables }
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
