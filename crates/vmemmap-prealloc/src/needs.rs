//! What a transition takes and gives, before anything is done.

use crate::{Geometry, NumaNode, TailScheme, VmemmapBackend, templates};
use folio_split::{FolioLayout, Order, OrderSet, PageSet, PfnBlock, Transition, TransitionCounts};
use sept_core::{Class, Classify, FrameKind, FrameNeeds};

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
    /// The NUMA node whose pages are needed: that of the block.
    pub node: NumaNode,
    /// Pages that splits make the block's own: to be reserved. So many more are in use at the peak than before.
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
    /// Whether heads become tails in pages that are given up, where readers may be inside RCU sections
    /// ([`TailScheme::SharedWithHead`]): a merge takes two rounds then, with a grace period between them in which nothing is
    /// frozen (see [`Commit`](crate::Commit)), and [`optimize`](crate::optimize) needs one between the last change of
    /// the block's folios and the call. One serves a whole batch.
    ///
    /// The cancel of a split whose entries were written asks for one of its own: [`Thawed::waits`](crate::Thawed::waits).
    pub grace_period: bool,
}

impl VmemmapNeeds {
    /// What `transition` takes and gives, with all tables and templates in place.
    ///
    /// Constant time after the counts where the block is undivided before or after; else one look at each difference
    /// that has tail pages.
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
        let smallest = geometry.smallest_order();
        let (BlockState::Optimized, Some(smallest)) = (state, smallest) else { return Self::default() };
        let pages = counts.delta(geometry);
        let changed = Changed::of(transition, counts, geometry, smallest);
        // An entry of a changed folio's tail pages is a page taken, a page given up, or maps another page of tails.
        let others = changed.tails.saturating_sub(pages.needed).saturating_sub(pages.freed);
        let old = geometry.tails() == TailScheme::SharedWithHead;
        Self {
            fresh: pages.needed,
            released: pages.freed,
            rewrites: match geometry.tails() {
                TailScheme::PerOrder => others,
                TailScheme::OrderFree => 0,
                TailScheme::SharedWithHead => others.saturating_sub(changed.first),
            },
            flushes: changed.folios,
            grace_period: old && pages.freed > 0,
            ..Self::default()
        }
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
        let node = backend.node_of(block);
        if !backend.is_optimized(block) {
            return Self { node, ..Self::default() };
        }
        Self {
            node,
            tables: backend.tables_missing(block),
            templates: templates_missing(backend, block, transition.orders()),
            ..Self::with_counts(transition, counts, &geometry, BlockState::Optimized)
        }
    }

    /// What [`optimize`](crate::optimize) gives, and what it lacks: page tables and templates, to be installed before.
    #[must_use]
    pub fn to_optimize<V, S>(backend: &V, layout: &FolioLayout<S>) -> Self
    where
        V: VmemmapBackend + ?Sized,
        S: PageSet,
    {
        let (block, geometry) = (layout.block(), backend.geometry());
        let node = backend.node_of(block);
        if backend.is_optimized(block) {
            return Self { node, ..Self::default() };
        }
        let released = geometry.all_tail_pages(&layout.counts());
        Self {
            node,
            released,
            flushes: released.min(1),
            grace_period: geometry.tails() == TailScheme::SharedWithHead && released > 0,
            tables: backend.tables_missing(block),
            templates: templates_missing(backend, block, layout.orders()),
            ..Self::default()
        }
    }

    /// What [`restore`](crate::restore) takes.
    #[must_use]
    pub fn to_restore<V, S>(backend: &V, layout: &FolioLayout<S>) -> Self
    where
        V: VmemmapBackend + ?Sized,
        S: PageSet,
    {
        let (block, geometry) = (layout.block(), backend.geometry());
        let optimized = backend.is_optimized(block);
        let fresh = if optimized { geometry.all_tail_pages(&layout.counts()) } else { 0 };
        Self { node: backend.node_of(block), fresh, flushes: fresh.min(1), ..Self::default() }
    }

    /// The needs of two transitions of different blocks of one node. Tables and templates that both lack count twice. What
    /// needs and gives nothing is of no node: [`VmemmapNeeds::default`] is where a sum begins.
    ///
    /// # Errors
    ///
    /// [`OtherNode`] if the blocks are of different nodes: each node has a plan and a reservation of its own.
    pub fn plus(self, other: Self) -> Result<Self, OtherNode> {
        if self == (Self { node: self.node, ..Self::default() }) {
            return Ok(other);
        }
        if other == (Self { node: other.node, ..Self::default() }) {
            return Ok(self);
        }
        if other.node != self.node {
            return Err(OtherNode { node: self.node, other: other.node });
        }
        Ok(Self {
            node: self.node,
            fresh: self.fresh.saturating_add(other.fresh),
            released: self.released.saturating_add(other.released),
            rewrites: self.rewrites.saturating_add(other.rewrites),
            flushes: self.flushes.saturating_add(other.flushes),
            tables: self.tables.saturating_add(other.tables),
            templates: self.templates.saturating_add(other.templates),
            grace_period: self.grace_period || other.grace_period,
        })
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

    /// How many more pages are in use in the end than before.
    #[must_use]
    pub const fn net(&self) -> i64 {
        // Both are below 2^41.
        self.fresh.cast_signed().wrapping_sub(self.released.cast_signed())
    }
}

/// Two blocks are of different NUMA nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a plan for node {node} cannot have a block of node {other}")]
#[non_exhaustive]
pub struct OtherNode {
    /// The node of the plan or the reservation.
    pub node: NumaNode,
    /// The node of what was to be added.
    pub other: NumaNode,
}

impl Classify for OtherNode {
    fn class(&self) -> Class {
        Class::Caller
    }
}

/// Templates that folios of `orders` need and the zone of `near` lacks.
fn templates_missing<V: VmemmapBackend + ?Sized>(backend: &V, near: PfnBlock, orders: OrderSet) -> u32 {
    templates(backend.geometry(), orders)
        .filter(|&tail| !backend.has_template(near, tail))
        .fold(0, |missing: u32, _| missing.saturating_add(1))
}

/// The folios that a transition divides or forms, as far as they have tail pages.
#[derive(Default)]
struct Changed {
    folios: u64,
    /// Their tail pages.
    tails: u64,
    /// The tail pages of the first piece of each, if it makes a difference: it has its head where the whole has it.
    first: u64,
}

impl Changed {
    fn of<A: PageSet, B: PageSet>(
        transition: &Transition<A, B>,
        counts: &TransitionCounts,
        geometry: &Geometry,
        smallest: Order,
    ) -> Self {
        let old = geometry.tails() == TailScheme::SharedWithHead;
        let one_sided = if counts.from().is_undivided() {
            Some(counts.to())
        } else if counts.to().is_undivided() {
            Some(counts.from())
        } else {
            None
        };
        if let (Some(fine), false) = (one_sided, old) {
            // The folios that are touched, all of the largest order.
            let largest = fine.orders().largest_within(fine.order());
            let folios = if largest < smallest { 0 } else { fine.touched(largest).unwrap_or(0) };
            return Self { folios, tails: folios.saturating_mul(geometry.tail_pages(largest)), first: 0 };
        }
        let mut changed = Self::default();
        for run in transition.at_least(smallest).change_runs(0..transition.block().pages()) {
            let tails = geometry.tail_pages(run.first.whole().order());
            changed.folios = changed.folios.saturating_add(run.count);
            changed.tails = changed.tails.saturating_add(run.count.saturating_mul(tails));
            changed.first = changed.first.saturating_add(geometry.tail_pages(run.first_piece));
        }
        changed
    }
}
