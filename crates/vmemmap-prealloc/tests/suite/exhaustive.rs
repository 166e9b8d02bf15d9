//! Pairs of layouts of sixteen pages, with 2 or 4 `struct page`s to a page of the vmemmap: carried out, cancelled at every point,
//! short of each page and each index node, refused for each page that somebody holds. Readers look after every call.

use crate::{
    common::{Held, SCHEMES, Store, add, pool},
    readers::Watched,
};
use folio_split::{Change, FolioBackend, FolioLayout, Order, OrderSet, PageSet, Pfn, PfnBlock, Transition};
use sept_core::{FrameKind, FrameNeeds, FrameSource, FrameStore, test_util::FramePool};
use std::collections::BTreeSet;
use vmemmap_prealloc::{
    ApplyError, Atom, AtomDone, AtomError, Commit, Geometry, Round, TailScheme, VmemmapBackend, VmemmapNeeds,
    install_templates,
    model::{Counters, Frozen, HostModel},
};

/// Without optimization one pair in so many; with it more.
const STRIDE: usize = if cfg!(debug_assertions) { 50_021 } else { 5003 };

const PAGES: u64 = 16;

type Words = [u64; 1];
type Way<'a> = Transition<&'a [u64], &'a [u64]>;

fn atoms<A: PageSet, B: PageSet>(t: &Transition<A, B>) -> Vec<Atom<&A, &B, Frozen>> {
    t.changes(0..PAGES).map(|change| Atom::new(t.by_ref(), change)).collect()
}

struct Host {
    at: Watched,
    pool: FramePool,
}

impl Host {
    fn new(geometry: Geometry, orders: OrderSet) -> Self {
        let block = PfnBlock::new(Pfn::new(PAGES * 9).unwrap(), Order::new(4).unwrap()).unwrap();
        let (host, pool) = (HostModel::new(geometry, orders), pool());
        install_templates(&host, block, orders, &pool).unwrap();
        host.add_block(block, &pool).unwrap();
        Self { at: Watched { host, block }, pool }
    }

    fn state(&self) -> (Counters, FrameNeeds) {
        (self.at.host.counters().in_use(), self.pool.outstanding())
    }

    fn check<S: PageSet>(&self, layout: &FolioLayout<S>) {
        self.at.host.check(layout).unwrap();
        self.at.host.check_host().unwrap();
        self.at.host.check_readers(self.at.block).unwrap();
    }

    /// A reservation with so many pages and nodes.
    fn held(&self, pages: u64, nodes: u64) -> Held {
        let mut store = Store::default();
        let near = self.at.block.base().hpa();
        store.fill(&FrameNeeds::of(FrameKind::Vmemmap, pages as u32), near, &self.pool).unwrap();
        let node = self.at.node_of(self.at.block);
        let mut held = Held::new(self.at.block, node, store);
        held.fill(&self.at.host, &VmemmapNeeds::default(), nodes, &self.pool).unwrap();
        held
    }

    /// Commits until all is done.
    fn commit<A: PageSet, B: PageSet>(&self, atoms: &mut [Atom<A, B, Frozen>], held: &mut Held) -> AtomDone {
        let mut sum = AtomDone::default();
        while atoms.iter().any(|atom| atom.round() != Round::Done) {
            let commit = Commit::freeze(&self.at, &self.at, atoms, held.lend(), 1).unwrap();
            add(&mut sum, commit.remap().unwrap().finish().keep(&self.pool));
        }
        sum
    }

    fn cancel<A: PageSet, B: PageSet>(&self, atoms: &mut [Atom<A, B, Frozen>], held: &mut Held, remap: bool) {
        let commit = Commit::freeze(&self.at, &self.at, atoms, held.lend(), 1).unwrap();
        let thawed = if remap { commit.remap().unwrap().cancel() } else { commit.cancel() };
        let waits = thawed.waits() > 0;
        let _ = thawed.keep(&self.pool);
        self.end_cancel(atoms, held, waits);
    }

    /// After a grace period, if splits wait for one.
    fn end_cancel<A: PageSet, B: PageSet>(
        &self,
        atoms: &mut [Atom<A, B, Frozen>],
        held: &mut Held,
        waits: bool,
    ) {
        assert_eq!(atoms.iter().any(|atom| atom.round() == Round::Second), waits);
        // One by one: what the others need may not be there.
        for atom in atoms.iter_mut().filter(|atom| atom.round() == Round::Second) {
            let atom = core::slice::from_mut(atom);
            let _ =
                Commit::freeze(&self.at, &self.at, atom, held.lend(), 1).unwrap().cancel().keep(&self.pool);
        }
        assert!(atoms.iter().all(|atom| atom.round() == Round::First));
    }

    /// From a layout to another, with everything that can go wrong on the way, and back.
    fn there_and_back(&self, t: &Way<'_>) {
        let (at, start, back) = (&self.at, self.state(), t.reversed());
        let counts = t.counts();
        let (needs, nodes) = (VmemmapNeeds::plan(at, t, &counts), counts.delta(at.index()));
        self.short(t, &needs, nodes.needed);
        let mut held = self.held(needs.fresh, nodes.needed);
        let before = self.state();
        let same = |held: &Held| {
            assert_eq!((self.state(), held.pages_left()), (before, needs.fresh));
            assert_eq!(held.nodes_left(at), nodes.needed);
            self.check(&t.from_layout());
        };
        self.pinned(t, &mut held);
        same(&held);
        for remap in [false, true] {
            self.cancel(&mut atoms(t), &mut held, remap);
            same(&held);
            // With a grace period, the splits are done after the first round and are unmade by themselves.
            let mut there = atoms(t);
            let commit = Commit::freeze(at, at, &mut there, held.lend(), 1).unwrap();
            let thawed = commit.remap().unwrap().finish();
            assert_eq!(thawed.waits() > 0, needs.grace_period);
            let _ = thawed.keep(&self.pool);
            let (mut waiting, done): (Vec<_>, Vec<_>) =
                there.into_iter().partition(|atom| atom.round() == Round::Second);
            self.cancel(&mut waiting, &mut held, remap);
            let undo = done.iter().map(|atom| Atom::new(back.by_ref(), atom.change().reversed()));
            self.commit(&mut undo.collect::<Vec<_>>(), &mut held);
            same(&held);
        }
        let done = self.commit(&mut atoms(t), &mut held);
        assert!(u64::from(done.flushes) <= needs.flushes.min(1 + u64::from(needs.grace_period)));
        let moved = (done.vmemmap.fresh, done.vmemmap.replaced, done.vmemmap.rewrites);
        assert_eq!(moved, (needs.fresh, needs.released, needs.rewrites));
        assert_eq!((done.nodes_used, done.nodes_freed), (nodes.needed, nodes.freed));
        assert_eq!((held.pages_left(), held.nodes_left(at)), (needs.released, nodes.freed));
        self.check(&t.to_layout());
        self.commit(&mut atoms(&back), &mut held);
        same(&held);
        let _ = held.release(at, &self.pool);
        assert_eq!(self.state(), start);
    }

    /// Each number of pages and nodes that is too small, and each store that counts what it has not.
    fn short(&self, t: &Way<'_>, needs: &VmemmapNeeds, nodes: u64) {
        let (at, pool) = (&self.at, &self.pool);
        let start = self.state();
        let mut atoms = atoms(t);
        for have in 0..needs.fresh {
            let mut held = self.held(have, nodes);
            let refused = Commit::freeze(at, at, &mut atoms, held.lend(), 1).unwrap_err();
            assert!(matches!(refused.error, AtomError::Vmemmap(ApplyError::Short { .. })), "{refused}");
            let _ = held.release(at, pool);
            let mut store = Store { lies: (needs.fresh - have) as u32, ..Store::default() };
            let near = at.block.base().hpa();
            store.frames.fill(&FrameNeeds::of(FrameKind::Vmemmap, have as u32), near, pool).unwrap();
            let mut spare = self.held(0, nodes);
            let reserved = vmemmap_prealloc::Reserved { pages: &mut store, nodes: spare.lend().nodes };
            let commit = Commit::freeze(at, at, &mut atoms, reserved, 1).unwrap();
            let error = commit.remap().map(drop).unwrap_err().error;
            assert!(matches!(error, AtomError::Vmemmap(ApplyError::BrokenStore { .. })), "{error}");
            assert_eq!(spare.nodes_left(at), nodes);
            let waits = atoms.iter().any(|atom| atom.round() == Round::Second);
            self.end_cancel(&mut atoms, &mut spare, waits);
            let _ = spare.release(at, pool);
            let flushed = at.flush();
            while let Some(frame) = at.take_replaced(at.block, &flushed) {
                pool.give(FrameKind::Vmemmap, frame);
            }
            assert_eq!(self.state(), start);
            self.check(&t.from_layout());
        }
        for have in 0..nodes {
            let mut held = self.held(needs.fresh, have);
            let refused = Commit::freeze(at, at, &mut atoms, held.lend(), 1).unwrap_err();
            assert!(matches!(refused.error, AtomError::Index(_)), "{refused}");
            let _ = held.release(at, pool);
            assert_eq!(self.state(), start);
        }
    }

    /// A reader holds one page after the other: refused if its folio changes.
    fn pinned(&self, t: &Way<'_>, held: &mut Held) {
        let at = &self.at;
        let mut atoms = atoms(t);
        for page in 0..PAGES {
            let pfn = Pfn::new(at.block.base().raw() + page).unwrap();
            let changes = |change: Change| change.whole().contains_pfn(pfn);
            let position = atoms.iter().position(|atom| changes(atom.change()));
            assert!(at.host.pin(pfn));
            let before = at.host.counters();
            match Commit::freeze(at, at, &mut atoms, held.lend(), 3) {
                Ok(commit) => {
                    assert_eq!(position, None);
                    let _ = commit.cancel().keep(&self.pool);
                }
                Err(refused) => {
                    assert!(matches!(refused.error, AtomError::Pinned(_)), "{refused}");
                    assert_eq!(Some(refused.position), position);
                }
            }
            assert_eq!(at.host.counters(), before);
            self.check(&t.from_layout());
            assert!(at.host.unpin(pfn));
        }
    }
}

/// One set for each layout that there is.
fn layouts(orders: OrderSet) -> Vec<Words> {
    let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::new(4).unwrap()).unwrap();
    let mut seen = BTreeSet::new();
    let words = (0..1_u64 << PAGES).map(|bits| [bits]);
    words
        .filter(|words| {
            seen.insert(FolioLayout::new(block, orders, words.as_slice()).folios(0).collect::<Vec<_>>())
        })
        .collect()
}

#[test]
fn every_way_that_a_pair_of_layouts_can_go() {
    let mut tried = [0_u64; 2];
    for (number, orders) in (0..16).map(|high| OrderSet::from_bits(high << 1 | 1).unwrap()).enumerate() {
        let sets = layouts(orders);
        for (turn, tails) in SCHEMES.into_iter().enumerate() {
            for (kind, (size, reserved)) in [(32, 1), (16, 1), (32, 2), (16, 3)].into_iter().enumerate() {
                let host = Host::new(Geometry::new(size, 64, reserved, tails).unwrap(), orders);
                let mut now = &sets[0];
                let pairs = sets.len() * sets.len();
                // Sets with few layouts have all their pairs tried.
                let stride = STRIDE.min(1 + pairs / if cfg!(debug_assertions) { 9 } else { 80 });
                for pair in ((number * 7 + turn * 5 + kind)..pairs).step_by(stride) {
                    let (a, b) = (&sets[pair / sets.len()], &sets[pair % sets.len()]);
                    let t = Transition::new(host.at.block, orders, now.as_slice(), a.as_slice());
                    let nodes = t.delta(host.at.index()).needed;
                    let needs = VmemmapNeeds::plan(&host.at, &t, &t.counts());
                    let mut held = host.held(needs.fresh, nodes);
                    host.commit(&mut atoms(&t), &mut held);
                    let _ = held.release(&host.at, &host.pool);
                    let t = Transition::new(host.at.block, orders, a.as_slice(), b.as_slice());
                    host.there_and_back(&t);
                    now = a;
                    tried[usize::from(tails == TailScheme::SharedWithHead)] += 1;
                }
            }
        }
    }
    assert!(tried.iter().all(|&tried| tried > 300), "{tried:?}");
}
