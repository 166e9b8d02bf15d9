//! Reservations per NUMA node, and sources that are strict about nodes or not.

use crate::common::{Held, Store};
use folio_split::{Empty, Order, OrderSet, Pfn, PfnBlock, Transition};
use sept_core::{
    Class, Classify, Frame, FrameKind, FrameNeeds, FrameSource, Hpa, Short, test_util::FramePool,
};
use vmemmap_prealloc::{
    Atom, AtomError, Commit, Geometry, NumaNode, OtherNode, ReserveError, VmemmapNeeds, install_templates,
    model::HostModel,
};

/// Memory of two nodes: addresses below and from 1 TiB.
struct Nodes {
    pools: [FramePool; 2],
    /// Whether a page of the other node may serve.
    strict: bool,
}

const SECOND: u64 = 1 << 40;

fn node_of(at: Hpa) -> usize {
    usize::from(at.raw() >= SECOND)
}

impl Nodes {
    fn new(pages: [u64; 2], strict: bool) -> Self {
        let pool = |base, pages| FramePool::new(Hpa::new(base).unwrap(), pages);
        Self { pools: [pool(1 << 39, pages[0]), pool(3 << 39, pages[1])], strict }
    }

    fn out(&self) -> [FrameNeeds; 2] {
        self.pools.each_ref().map(FramePool::outstanding)
    }
}

impl FrameSource for Nodes {
    fn take(&self, kind: FrameKind, near: Hpa) -> Option<Frame> {
        let node = node_of(near);
        let page = self.pools[node].take(kind, near);
        if self.strict { page } else { page.or_else(|| self.pools[1 - node].take(kind, near)) }
    }

    fn give(&self, kind: FrameKind, frame: Frame) {
        self.pools[node_of(frame.hpa())].give(kind, frame);
    }
}

fn on(node: usize) -> PfnBlock {
    let base = if node == 0 { 0 } else { SECOND >> 12 };
    PfnBlock::new(Pfn::new(base | 1 << 18).unwrap(), Order::HUGE_1G).unwrap()
}

fn host(nodes: &Nodes) -> HostModel {
    let model = HostModel::new(Geometry::LINUX_X86_64, OrderSet::HUGETLB);
    install_templates(&model, on(0), OrderSet::HUGETLB, nodes).unwrap();
    for node in [0, 1] {
        model.add_block(on(node), nodes).unwrap();
        model.set_node(on(node), NumaNode::new(node as u32));
    }
    model
}

#[test]
fn pages_come_from_the_node_of_the_block() {
    let nodes = Nodes::new([2000, 2000], true);
    let model = host(&nodes);
    let start = nodes.out();
    for node in [0, 1] {
        let t = Transition::new(on(node), OrderSet::HUGETLB, Empty, 1000..1001);
        let needs = VmemmapNeeds::plan(&model, &t, &t.counts());
        assert_eq!((needs.node.number(), needs.fresh), (node as u32, 518));
        let mut held = Held::new(on(node), needs.node, Store::default());
        held.fill(&model, &needs, 73, &nodes).unwrap();
        let mut want = start;
        want[node][FrameKind::Vmemmap] += 518;
        assert_eq!(nodes.out(), want);
        let mut atoms = [Atom::split(t.by_ref(), on(node))];
        let commit = Commit::freeze(&model, &model, &mut atoms, held.lend(), 1).unwrap();
        let _ = commit.remap().unwrap().finish().release(&nodes);
        let back = t.reversed();
        let mut atoms = [Atom::merge(back.by_ref(), on(node))];
        let commit = Commit::freeze(&model, &model, &mut atoms, held.lend(), 1).unwrap();
        let _ = commit.remap().unwrap().finish().release(&nodes);
        let _ = held.release(&model, &nodes);
        assert_eq!(nodes.out(), start);
    }
}

#[test]
fn the_source_says_whether_others_may_serve() {
    for strict in [true, false] {
        let nodes = Nodes::new([2000, 100], strict);
        let model = host(&nodes);
        let start = nodes.out();
        let got = 100 - nodes.out()[1].total() as u32;
        let t = Transition::new(on(1), OrderSet::HUGETLB, Empty, 1000..1001);
        let needs = VmemmapNeeds::plan(&model, &t, &t.counts());
        let mut held = Held::new(on(1), needs.node, Store::default());
        let filled = held.fill(&model, &needs, 73, &nodes);
        if strict {
            let short = Short { kind: FrameKind::Vmemmap, need: 518, got, full: false };
            assert_eq!(filled, Err(ReserveError::Pages(short)));
        } else {
            filled.unwrap();
            let of = |node: usize| nodes.out()[node][FrameKind::Vmemmap] - start[node][FrameKind::Vmemmap];
            assert_eq!((of(0), of(1)), (518 - got, got));
        }
        let _ = held.release(&model, &nodes);
        assert_eq!(nodes.out(), start);
    }
}

#[test]
fn a_reservation_is_for_one_node() {
    let nodes = Nodes::new([2000, 2000], true);
    let model = host(&nodes);
    let start = nodes.out();
    let plan = |node| {
        let t = Transition::new(on(node), OrderSet::HUGETLB, Empty, 1000..1001);
        VmemmapNeeds::plan(&model, &t, &t.counts())
    };
    let (here, there) = (plan(0), plan(1));
    assert_eq!(here.plus(here).map(|needs| (needs.fresh, needs.flushes)), Ok((2 * 518, 2)));
    let other = here.plus(there).unwrap_err();
    assert_eq!(other.to_string(), "a plan for node 0 cannot have a block of node 1");
    let mut held = Held::new(on(0), here.node, Store::default());
    let error = held.fill(&model, &there, 73, &nodes).unwrap_err();
    assert!(matches!(error, ReserveError::Node(OtherNode { .. })));
    assert_eq!(error.class(), Class::Caller);
    assert_eq!(nodes.out(), start);
    let _ = held.release(&model, &nodes);
}

/// One flush for several blocks of one node; pages of two nodes are not mixed, whichever way they go.
#[test]
fn a_commit_is_for_one_node() {
    let nodes = Nodes::new([2000, 2000], true);
    let model = host(&nodes);
    let start = nodes.out();
    let share = [0, 1].map(|node| Transition::new(on(node), OrderSet::HUGETLB, Empty, 1000..1001));
    let back = share.each_ref().map(Transition::reversed);
    // A sum begins with nothing, and nothing is of no node.
    let plan = |t: &Transition<_, _>| VmemmapNeeds::plan(&model, t, &t.counts());
    let needs = VmemmapNeeds::default().plus(plan(&share[1])).unwrap();
    assert_eq!(needs, plan(&share[1]));
    assert_eq!(needs.plus(VmemmapNeeds::default()), Ok(needs));
    let mut held = [0, 1].map(|node| {
        let needs = plan(&share[node]);
        let mut held = Held::new(on(node), needs.node, Store::default());
        held.fill(&model, &needs, 73, &nodes).unwrap();
        held
    });
    let before = (nodes.out(), model.counters());
    let mut both = share.each_ref().map(|t| Atom::split(t.by_ref(), t.block()));
    let refused = Commit::freeze(&model, &model, &mut both, held[0].lend(), 1).unwrap_err();
    let [node, other] = [0, 1].map(NumaNode::new);
    assert!(matches!(refused.error, AtomError::Node(wrong) if (wrong.node, wrong.other) == (node, other)));
    assert_eq!((refused.position, refused.class()), (1, Class::Caller));
    assert_eq!((nodes.out(), model.counters()), before);
    // Each by itself; and the way back.
    for (atoms, held) in both.chunks_mut(1).zip(&mut held) {
        let commit = Commit::freeze(&model, &model, atoms, held.lend(), 1).unwrap();
        let _ = commit.remap().unwrap().finish().keep(&nodes);
    }
    let mut both = back.each_ref().map(|t| Atom::merge(t.by_ref(), t.block()));
    let refused = Commit::freeze(&model, &model, &mut both, held[0].lend(), 1).unwrap_err();
    assert!(matches!(refused.error, AtomError::Node(_)), "{refused}");
    for (atoms, mut held) in both.chunks_mut(1).zip(held) {
        let commit = Commit::freeze(&model, &model, atoms, held.lend(), 1).unwrap();
        let _ = commit.remap().unwrap().finish().release(&nodes);
        let _ = held.release(&model, &nodes);
    }
    assert_eq!(nodes.out(), start);
}
