//! A host with its page source, and what every test does with it.

use folio_split::{
    Change, FolioBackend, FolioLayout, Order, OrderSet, PageSet, Pfn, PfnBlock, Transition, TransitionCounts,
};
use sept_core::{
    Frame, FrameKind, FrameSource, FrameStore, Hpa,
    test_util::{FramePool, VecStore},
};
use vmemmap_prealloc::{
    Atom, AtomDone, Commit, Geometry, Reservation, Round, TailScheme, VmemmapBackend, VmemmapNeeds,
    install_templates,
    model::{Frozen, HostModel, Nodes},
};

pub(crate) const SCHEMES: [TailScheme; 3] =
    [TailScheme::PerOrder, TailScheme::OrderFree, TailScheme::SharedWithHead];

pub(crate) fn block(order: u8) -> PfnBlock {
    PfnBlock::new(Pfn::new(5 << order).unwrap(), Order::new(order).unwrap()).unwrap()
}

pub(crate) fn geometry(tails: TailScheme, reserved: u64) -> Geometry {
    Geometry::new(64, 4096, reserved, tails).unwrap()
}

/// Memory without an end.
pub(crate) fn pool() -> FramePool {
    FramePool::new(Hpa::new(1 << 20).unwrap(), 1 << 30)
}

/// A store that can be too small, or count more than it has.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) frames: VecStore,
    /// Frames it counts and does not give.
    pub(crate) lies: u32,
    pub(crate) room: Option<u32>,
}

impl FrameStore for Store {
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        if self.room.is_some_and(|room| self.frames.count(kind) >= room) {
            return Err(frame);
        }
        self.frames.put(kind, frame)
    }

    fn get(&mut self, kind: FrameKind) -> Option<Frame> {
        self.frames.get(kind)
    }

    fn count(&self, kind: FrameKind) -> u32 {
        self.frames.count(kind) + if kind == FrameKind::Vmemmap { self.lies } else { 0 }
    }
}

pub(crate) type Held = Reservation<Store, Nodes>;

pub(crate) struct Host {
    pub(crate) model: HostModel,
    pub(crate) pool: FramePool,
}

impl Host {
    pub(crate) fn new(geometry: Geometry, orders: OrderSet, blocks: &[PfnBlock]) -> Self {
        let host = Self { model: HostModel::new(geometry, orders), pool: pool() };
        install_templates(&host.model, blocks[0], orders, &host.pool).unwrap();
        for &block in blocks {
            host.model.add_block(block, &host.pool).unwrap();
        }
        host
    }

    /// Plans and reserves.
    pub(crate) fn reserve<A: PageSet, B: PageSet>(
        &self,
        t: &Transition<A, B>,
    ) -> (TransitionCounts, VmemmapNeeds, Held) {
        let Self { model, pool } = self;
        let counts = t.counts();
        let needs = VmemmapNeeds::plan(model, t, &counts);
        let mut held = Reservation::new(t.block(), needs.node, Store::default());
        held.fill(model, &needs, counts.delta(model.index()).needed, pool).unwrap();
        (counts, needs, held)
    }

    /// Plans, reserves and carries out, each change by itself: splits first, as the plan counts. Compares what was used
    /// with the plan, and what is there with the target.
    pub(crate) fn carry_out<A: PageSet, B: PageSet>(&self, t: &Transition<A, B>) -> AtomDone {
        let before = self.model.counters();
        let (counts, needs, mut held) = self.reserve(t);
        // Nothing more is to be had.
        self.dry(true);
        let mut sum = AtomDone::default();
        for splits in [true, false] {
            for change in t.changes(0..u64::MAX) {
                if matches!(change, Change::Split(_)) == splits {
                    let mut atoms = [Atom::new(t.by_ref(), change)];
                    self.commit(&mut atoms, &mut held, &mut sum);
                }
            }
        }
        self.dry(false);
        assert_eq!(u64::from(sum.flushes), needs.flushes);
        let sum = self.settle(t, &counts, &needs, held, sum);
        assert_eq!(self.model.counters().flushes - before.flushes, needs.flushes);
        assert_eq!(self.model.counters().entry_writes - before.entry_writes, needs.entry_writes());
        sum
    }

    /// The same with one flush (or two, with tails shared with the head: one for each round).
    pub(crate) fn carry_out_together<A: PageSet, B: PageSet>(&self, t: &Transition<A, B>) -> AtomDone {
        let (counts, needs, mut held) = self.reserve(t);
        self.dry(true);
        let mut sum = AtomDone::default();
        let mut atoms: Vec<_> = t.changes(0..u64::MAX).map(|change| Atom::new(t.by_ref(), change)).collect();
        self.commit(&mut atoms, &mut held, &mut sum);
        self.dry(false);
        let most = needs.flushes.min(1 + u64::from(needs.grace_period));
        assert!((u64::from(needs.flushes > 0)..=most).contains(&u64::from(sum.flushes)));
        self.settle(t, &counts, &needs, held, sum)
    }

    /// One commit, or two with a grace period between them.
    pub(crate) fn commit<A: PageSet, B: PageSet>(
        &self,
        atoms: &mut [Atom<A, B, Frozen>],
        held: &mut Held,
        sum: &mut AtomDone,
    ) {
        while atoms.iter().any(|atom| atom.round() != Round::Done) {
            let thawed = Commit::freeze(&self.model, &self.model, atoms, held.lend(), 1).unwrap();
            let thawed = thawed.remap().unwrap().finish();
            let waits = thawed.waits();
            add(sum, thawed.keep(&self.pool));
            assert_eq!(atoms.iter().filter(|atom| atom.round() == Round::Second).count(), waits);
        }
    }

    /// Cancels a commit, or what waits of one, with a grace period between if one is due. Says whether it was.
    pub(crate) fn cancel<A: PageSet, B: PageSet>(
        &self,
        atoms: &mut [Atom<A, B, Frozen>],
        held: &mut Held,
        remap: bool,
        sum: &mut AtomDone,
    ) -> bool {
        let Self { model, pool } = self;
        let commit = Commit::freeze(model, model, atoms, held.lend(), 1).unwrap();
        let thawed = if remap { commit.remap().unwrap().cancel() } else { commit.cancel() };
        let waits = thawed.waits() > 0;
        add(sum, thawed.keep(pool));
        if waits {
            assert_eq!(model.geometry().tails(), TailScheme::SharedWithHead);
            let ended = Commit::freeze(model, model, atoms, held.lend(), 1).unwrap().cancel();
            assert_eq!(ended.waits(), 0);
            add(sum, ended.keep(pool));
        }
        waits
    }

    pub(crate) fn dry(&self, dry: bool) {
        self.pool.limit(dry.then_some(0));
        self.model.limit_nodes(dry.then_some(0));
    }

    /// Gives the pages that wait with the backend back, and says how many.
    pub(crate) fn collect(&self, block: PfnBlock) -> u64 {
        let flushed = self.model.flush();
        let pages = core::iter::from_fn(|| self.model.take_replaced(block, &flushed));
        pages.map(|frame| self.pool.give(FrameKind::Vmemmap, frame)).count() as u64
    }

    fn settle<A: PageSet, B: PageSet>(
        &self,
        t: &Transition<A, B>,
        counts: &TransitionCounts,
        needs: &VmemmapNeeds,
        held: Held,
        sum: AtomDone,
    ) -> AtomDone {
        let Self { model, pool } = self;
        let index = counts.delta(model.index());
        assert_eq!((needs.templates, needs.tables), (0, 0));
        // What is left is what merges gave back.
        assert_eq!(held.pages_left(), needs.released, "pages planned and not used");
        assert_eq!(held.nodes_left(model), index.freed, "nodes planned and not used");
        let _ = held.release(model, pool);
        assert_eq!((sum.vmemmap.fresh, sum.vmemmap.replaced), (needs.fresh, needs.released));
        assert_eq!((sum.released, sum.vmemmap.rewrites), (needs.released, needs.rewrites));
        assert_eq!((sum.nodes_used, sum.nodes_freed), (index.needed, index.freed));
        let after = model.counters();
        assert_eq!((after.replaced_pages, after.reserved_nodes), (0, 0));
        assert_eq!(u64::from(pool.outstanding()[FrameKind::Vmemmap]), after.vmemmap_pages);
        assert!(pool.faults().is_empty());
        self.check(&t.to_layout());
        sum
    }

    pub(crate) fn check<S: PageSet>(&self, layout: &FolioLayout<S>) {
        self.model.check(layout).unwrap();
        if layout.block().order().raw() <= 13 {
            self.model.check_readers(layout.block()).unwrap();
        }
        self.model.check_host().unwrap();
    }
}

pub(crate) fn add(sum: &mut AtomDone, done: AtomDone) {
    sum.vmemmap.fresh += done.vmemmap.fresh;
    sum.vmemmap.replaced += done.vmemmap.replaced;
    sum.vmemmap.rewrites += done.vmemmap.rewrites;
    sum.released += done.released;
    sum.nodes_used += done.nodes_used;
    sum.nodes_freed += done.nodes_freed;
    sum.flushes += done.flushes;
}

/// A small generator of numbers (xorshift64*), so that a failing seed can be named.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    }

    /// Up to `most` runs in `pages` pages, ascending and apart.
    pub(crate) fn runs(&mut self, most: u64, pages: u64, longest: u64) -> Vec<core::ops::Range<u64>> {
        let mut runs: Vec<core::ops::Range<u64>> = Vec::new();
        let mut starts: Vec<_> = (0..self.next(most + 1)).map(|_| self.next(pages)).collect();
        starts.sort_unstable();
        for start in starts {
            let end = (start + 1 + self.next(longest)).min(pages);
            match runs.last_mut() {
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ => runs.push(start..end),
            }
        }
        runs
    }
}
