//! Readers that look after every single call of a commit, also one that is turned round.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "a test that overflows or misses an index has failed"
)]

mod common;

use common::{Rng, Source, Store};
use folio_split::{
    Change, Empty, FolioBackend, IndexModel, Order, OrderSet, OutOfNodes, PageSet, Pfn, PfnBlock, Pinned,
    Transition, commit_merge, commit_split,
};
use sept_core::{Frame, FrameSource};
use vmemmap_prealloc::{
    Geometry, Tail, TailScheme, VmemmapBackend, VmemmapNeeds, VmemmapPage, apply_merge, apply_split,
    install_templates, merge_atom,
    model::{Flushed, Fresh, Frozen, HostModel, Nodes},
    reserve, split_atom,
};

/// The model host, with a look at every page of one block after every call that changes something.
struct Watched {
    host: HostModel,
    block: PfnBlock,
}

impl Watched {
    fn look<T>(&self, done: T) -> T {
        self.host.check_readers(self.block).unwrap();
        done
    }
}

impl FolioBackend for Watched {
    type Nodes = Nodes;
    type Frozen = Frozen;

    fn index(&self) -> &dyn IndexModel {
        self.host.index()
    }

    fn reserve_nodes(&self, nodes: &mut Nodes, near: PfnBlock, count: u64) -> Result<(), OutOfNodes> {
        self.host.reserve_nodes(nodes, near, count)
    }

    fn nodes_left(&self, nodes: &Nodes) -> u64 {
        self.host.nodes_left(nodes)
    }

    fn release_nodes(&self, nodes: Nodes) {
        self.host.release_nodes(nodes);
    }

    fn freeze(&self, whole: PfnBlock, tries: u32) -> Result<Frozen, Pinned> {
        let frozen = self.host.freeze(whole, tries);
        self.look(frozen)
    }

    fn split(&self, frozen: &mut Frozen, piece: PfnBlock, nodes: &mut Nodes) {
        self.host.split(frozen, piece, nodes);
        self.look(());
    }

    fn merge(&self, frozen: &mut Frozen, whole: PfnBlock) -> u64 {
        let freed = self.host.merge(frozen, whole);
        self.look(freed)
    }

    fn thaw(&self, frozen: Frozen) {
        self.host.thaw(frozen);
        self.look(());
    }
}

impl VmemmapBackend for Watched {
    type Fresh = Fresh;
    type Flushed = Flushed;

    fn geometry(&self) -> Geometry {
        self.host.geometry()
    }

    fn is_optimized(&self, block: PfnBlock) -> bool {
        self.host.is_optimized(block)
    }

    fn set_optimized(&self, block: PfnBlock, optimized: bool) {
        self.host.set_optimized(block, optimized);
    }

    fn has_template(&self, near: PfnBlock, tail: Tail) -> bool {
        self.host.has_template(near, tail)
    }

    fn add_template(&self, near: PfnBlock, tail: Tail, page: Frame) -> Result<(), Frame> {
        self.host.add_template(near, tail, page)
    }

    fn tables_missing(&self, block: PfnBlock) -> u32 {
        self.host.tables_missing(block)
    }

    fn add_table(&self, block: PfnBlock, table: Frame) -> Result<(), Frame> {
        self.host.add_table(block, table)
    }

    fn prepare(&self, at: VmemmapPage, page: Frame) -> Fresh {
        self.host.prepare(at, page)
    }

    fn write_folio(&self, fresh: &mut Fresh, folio: PfnBlock) {
        self.host.write_folio(fresh, folio);
    }

    fn map_own(&self, at: VmemmapPage, fresh: Fresh) {
        self.host.map_own(at, fresh);
        self.look(());
    }

    fn map_tail(&self, at: VmemmapPage, tail: Tail) {
        self.host.map_tail(at, tail);
        self.look(());
    }

    fn flush(&self) -> Flushed {
        let flushed = self.host.flush();
        self.look(flushed)
    }

    fn release(&self, block: PfnBlock, flushed: &Flushed, to: &dyn FrameSource) -> u64 {
        let released = self.host.release(block, flushed, to);
        self.look(released)
    }
}

const ORDER: u8 = 10;
const PAGES: u64 = 1 << ORDER;

fn watched(tails: TailScheme, orders: OrderSet, source: &Source) -> Watched {
    let geometry = Geometry::new(64, 4096, 1, tails).unwrap();
    let block = PfnBlock::new(Pfn::new(7 << ORDER).unwrap(), Order::new(ORDER).unwrap()).unwrap();
    let host = HostModel::new(geometry, orders);
    install_templates(&host, block, orders, source).unwrap();
    host.add_block(block, source).unwrap();
    Watched { host, block }
}

fn filled<A: PageSet, B: PageSet>(at: &Watched, t: &Transition<A, B>, source: &Source) -> (Store, Nodes) {
    let mut store = Store::default();
    let needs = VmemmapNeeds::plan(at, t, &t.counts());
    reserve(&needs.frames(), t.block().base().hpa(), source, &mut store).unwrap();
    let mut nodes = Nodes::default();
    at.reserve_nodes(&mut nodes, t.block(), t.index_delta(at.index()).needed).unwrap();
    (store, nodes)
}

const SCHEMES: [TailScheme; 3] = [TailScheme::PerOrder, TailScheme::OrderFree, TailScheme::SharedWithHead];

#[test]
fn no_reader_gets_a_head_that_does_not_cover_its_page() {
    let some = OrderSet::from_bits(0b101_1000_1001).unwrap();
    for (seed, (tails, orders)) in
        (1..).zip(SCHEMES.into_iter().flat_map(|tails| [(tails, OrderSet::ALL), (tails, some)]))
    {
        let source = Source::new();
        let at = watched(tails, orders, &source);
        let mut rng = Rng(seed);
        let mut now = Vec::new();
        for _ in 0..3 {
            let next = rng.runs(3, PAGES, 40);
            let t = Transition::new(at.block, orders, now.as_slice(), next.as_slice());
            let (mut store, mut nodes) = filled(&at, &t, &source);
            for change in t.changes(0..PAGES) {
                let _ = match change {
                    Change::Split(whole) => {
                        split_atom(&at, &at, &t, whole, 1, &mut nodes, &mut store).unwrap()
                    }
                    Change::Merge(whole) => merge_atom(&at, &at, &t, whole, 1, &source).unwrap(),
                };
            }
            at.release_nodes(nodes);
            at.host.check(&t.to_layout()).unwrap();
            at.host.check_host().unwrap();
            now = next;
        }
    }
}

/// The parts of an atom, turned round before and after the metadata is split: nothing more is allocated.
#[test]
fn a_split_is_undone_inside_the_freeze() {
    for tails in SCHEMES {
        for metadata in [false, true] {
            let source = Source::new();
            let at = watched(tails, OrderSet::ALL, &source);
            let start = at.host.counters().in_use();
            let t = Transition::new(at.block, OrderSet::ALL, Empty, 300..303);
            let (mut store, mut nodes) = filled(&at, &t, &source);
            let pages = store_count(&store);
            source.limit(Some(0));
            at.host.limit_nodes(Some(0));

            let whole = at.block;
            let mut frozen = at.freeze(whole, 1).unwrap();
            let applied = apply_split(&at, &t, whole, &mut store).unwrap();
            assert_eq!((applied.fresh, store_count(&store)), (pages, 0));
            let _ = at.flush();
            let back = t.reversed();
            let mut used = 0;
            let mut freed = 0;
            if metadata {
                used = commit_split(&at, &t, whole, &mut frozen, &mut nodes).unwrap();
                freed = commit_merge(&at, &back, whole, &mut frozen).unwrap();
            }
            let applied = apply_merge(&at, &back, whole).unwrap();
            let flushed = at.flush();
            at.thaw(frozen);
            assert_eq!(at.release(whole, &flushed, &source), applied.replaced);
            assert_eq!((applied.replaced, used), (pages, freed));

            at.release_nodes(nodes);
            assert_eq!(at.host.counters().in_use(), start);
            at.host.check(&t.from_layout()).unwrap();
            at.host.check_host().unwrap();
        }
    }
}

fn store_count(store: &Store) -> u64 {
    u64::from(sept_core::FrameStore::count(store, sept_core::FrameKind::Vmemmap))
}

/// The watcher itself: one tail left with the template of the order before.
#[test]
fn the_watcher_sees_a_wrong_order() {
    let source = Source::new();
    let at = watched(TailScheme::PerOrder, OrderSet::ALL, &source);
    let t = Transition::new(at.block, OrderSet::ALL, Empty, 300..303);
    let (mut store, mut nodes) = filled(&at, &t, &source);
    let mut frozen = at.freeze(at.block, 1).unwrap();
    let _ = apply_split(&at, &t, at.block, &mut store).unwrap();
    at.host.map_tail(VmemmapPage { block: at.block, index: 9 }, Tail::Template(at.block.order()));
    let _ = at.flush();
    let _ = commit_split(&at, &t, at.block, &mut frozen, &mut nodes).unwrap();
    at.release_nodes(nodes);
    at.host.thaw(frozen);
    assert!(at.host.check_readers(at.block).is_err());
}
