//! Readers that look after every single call of a commit, also of one that is cancelled.

use crate::common::{Held, Rng, SCHEMES, Store, geometry, pool};
use folio_split::{
    CostModel, Empty, FolioBackend, Order, OrderSet, OutOfNodes, PageSet, Pfn, PfnBlock, Pinned, Transition,
};
use sept_core::{Frame, test_util::FramePool};
use vmemmap_prealloc::{
    Atom, Commit, Geometry, NumaNode, Round, Tail, TailScheme, VmemmapBackend, VmemmapNeeds, VmemmapPage,
    install_templates,
    model::{Flushed, Fresh, Frozen, HostModel, Nodes},
};

/// The model host, with a look at every page of one block after every call that changes something.
pub(crate) struct Watched {
    pub(crate) host: HostModel,
    pub(crate) block: PfnBlock,
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

    fn index(&self) -> &dyn CostModel {
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

    fn merge(&self, frozen: &mut Frozen, whole: PfnBlock, nodes: &mut Nodes) -> u64 {
        let freed = self.host.merge(frozen, whole, nodes);
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

    fn maps(&self, at: VmemmapPage, tail: Tail) -> bool {
        self.host.maps(at, tail)
    }

    fn prepare(&self, at: VmemmapPage, page: Frame) -> Fresh {
        self.host.prepare(at, page)
    }

    fn write_folio(&self, fresh: &mut Fresh, folio: PfnBlock) {
        self.host.write_folio(fresh, folio);
    }

    fn write_tails(&self, at: VmemmapPage, folio: PfnBlock) {
        self.host.write_tails(at, folio);
        self.look(());
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

    fn take_replaced(&self, block: PfnBlock, flushed: &Flushed) -> Option<Frame> {
        let frame = self.host.take_replaced(block, flushed);
        self.look(frame)
    }
}

const ORDER: u8 = 10;
const PAGES: u64 = 1 << ORDER;

fn watched(tails: TailScheme, orders: OrderSet, pool: &FramePool) -> Watched {
    let block = PfnBlock::new(Pfn::new(7 << ORDER).unwrap(), Order::new(ORDER).unwrap()).unwrap();
    let host = HostModel::new(geometry(tails, 1), orders);
    install_templates(&host, block, orders, pool).unwrap();
    host.add_block(block, pool).unwrap();
    Watched { host, block }
}

fn filled<A: PageSet, B: PageSet>(at: &Watched, t: &Transition<A, B>, pool: &FramePool) -> Held {
    let counts = t.counts();
    let mut held = Held::new(t.block(), NumaNode::default(), Store::default());
    let needs = VmemmapNeeds::plan(at, t, &counts);
    held.fill(at, &needs, counts.delta(at.index()).needed, pool).unwrap();
    held
}

/// Each change by itself, and all together; cancelled, and then carried out.
#[test]
fn no_reader_gets_a_head_that_does_not_cover_its_page() {
    let some = OrderSet::from_bits(0b101_1000_1001).unwrap();
    for (seed, (tails, orders)) in
        (1..).zip(SCHEMES.into_iter().flat_map(|tails| [(tails, OrderSet::ALL), (tails, some)]))
    {
        let pool = pool();
        let at = watched(tails, orders, &pool);
        let mut rng = Rng(seed);
        let mut now = Vec::new();
        for together in [false, true, false, true] {
            let next = rng.runs(3, PAGES, 40);
            let t = Transition::new(at.block, orders, now.as_slice(), next.as_slice());
            let mut held = filled(&at, &t, &pool);
            let mut atoms: Vec<_> = t.changes(0..PAGES).map(|change| Atom::new(t.by_ref(), change)).collect();
            let commit = Commit::freeze(&at, &at, &mut atoms, held.lend(), 1).unwrap();
            let thawed = commit.remap().unwrap().cancel();
            let waits = thawed.waits() > 0;
            let _ = thawed.keep(&pool);
            if waits {
                let commit = Commit::freeze(&at, &at, &mut atoms, held.lend(), 1).unwrap();
                let _ = commit.cancel().keep(&pool);
            }
            at.host.check(&t.from_layout()).unwrap();
            let size = if together { atoms.len().max(1) } else { 1 };
            for atoms in atoms.chunks_mut(size) {
                while atoms.iter().any(|atom| atom.round() != Round::Done) {
                    let commit = Commit::freeze(&at, &at, atoms, held.lend(), 1).unwrap();
                    let _ = commit.remap().unwrap().finish().release(&pool);
                }
            }
            let _ = held.release(&at, &pool);
            at.host.check(&t.to_layout()).unwrap();
            at.host.check_host().unwrap();
            now = next;
        }
    }
}

/// The watcher itself: one tail left with the template of the order before.
#[test]
fn the_watcher_sees_a_wrong_order() {
    let pool = pool();
    let at = watched(TailScheme::PerOrder, OrderSet::ALL, &pool);
    let t = Transition::new(at.block, OrderSet::ALL, Empty, 300..303);
    let mut held = filled(&at, &t, &pool);
    let mut atoms = [Atom::split(t.by_ref(), at.block)];
    let commit = Commit::freeze(&at.host, &at.host, &mut atoms, held.lend(), 1).unwrap();
    let remapped = commit.remap().unwrap();
    at.host.map_tail(VmemmapPage { block: at.block, index: 9 }, Tail::Template(at.block.order()));
    let _ = remapped.finish().release(&pool);
    let _ = held.release(&at, &pool);
    assert!(at.host.check_readers(at.block).is_err());
}
