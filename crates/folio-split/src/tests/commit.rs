//! The order of the calls on a host without a vmemmap: a list of folios, and an index whose nodes are counted one by one.

use super::{Rng, block, reference_changes};
use crate::*;
use core::cell::RefCell;
use std::{
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};

const ORDER: u8 = 10;
const CHUNK: u8 = 2;

#[derive(Clone, PartialEq, Debug)]
struct State {
    /// Order and references by first page; 0 references are a frozen folio.
    folios: BTreeMap<u64, (u8, u32)>,
    /// Nodes of the index, by the order of the block that they divide and its number.
    nodes: BTreeSet<(u8, u64)>,
    spare: u64,
}

struct Host(RefCell<State>);

#[derive(Default)]
struct Nodes(u64);

impl Host {
    fn new() -> Self {
        let folios = BTreeMap::from([(0, (ORDER, 1))]);
        Self(RefCell::new(State { folios, nodes: BTreeSet::new(), spare: 1000 }))
    }

    fn offset(folio: PfnBlock) -> u64 {
        block(ORDER).offset_of(folio.base()).unwrap()
    }

    fn state(&self) -> State {
        self.0.borrow().clone()
    }

    fn orders(&self) -> Vec<u8> {
        let folios = &self.0.borrow().folios;
        folios.values().flat_map(|&(order, _)| core::iter::repeat_n(order, 1 << order)).collect()
    }

    /// Lets the references of frozen folios begin, or end, at `from`.
    fn turn(&self, whole: PfnBlock, from: u32, to: u32) -> Result<(), Pinned> {
        let mut state = self.0.borrow_mut();
        let start = Self::offset(whole);
        let mut inside = state.folios.range(start..start + whole.pages());
        if let Some((&page, _)) = inside.find(|&(_, &(_, refs))| refs != from) {
            return Err(Pinned { first: Pfn::new(block(ORDER).base().raw() + page).unwrap() });
        }
        state.folios.range_mut(start..start + whole.pages()).for_each(|(_, folio)| folio.1 = to);
        Ok(())
    }
}

impl FolioBackend for Host {
    type Nodes = Nodes;
    type Frozen = PfnBlock;

    fn index(&self) -> &dyn CostModel {
        const {
            &match XArray::new(CHUNK) {
                Some(index) => index,
                None => XArray::LINUX,
            }
        }
    }

    fn reserve_nodes(&self, nodes: &mut Nodes, near: PfnBlock, count: u64) -> Result<(), OutOfNodes> {
        let spare = &mut self.0.borrow_mut().spare;
        *spare = spare.checked_sub(count).ok_or(OutOfNodes { near, count })?;
        nodes.0 += count;
        Ok(())
    }

    fn nodes_left(&self, nodes: &Nodes) -> u64 {
        nodes.0
    }

    fn release_nodes(&self, nodes: Nodes) {
        self.0.borrow_mut().spare += nodes.0;
    }

    fn freeze(&self, whole: PfnBlock, _tries: u32) -> Result<PfnBlock, Pinned> {
        self.turn(whole, 1, 0).map(|()| whole)
    }

    fn split(&self, frozen: &mut PfnBlock, piece: PfnBlock, nodes: &mut Nodes) {
        assert!(frozen.contains(piece));
        let mut state = self.0.borrow_mut();
        let at = Self::offset(piece);
        state.folios.insert(at, (piece.order().raw(), 0));
        for order in (CHUNK..=ORDER).step_by(CHUNK.into()).filter(|&order| order > piece.order().raw()) {
            if state.nodes.insert((order, at >> order)) {
                nodes.0 = nodes.0.checked_sub(1).unwrap();
            }
        }
    }

    fn merge(&self, frozen: &mut PfnBlock, whole: PfnBlock, nodes: &mut Nodes) -> u64 {
        assert_eq!(*frozen, whole);
        let mut state = self.0.borrow_mut();
        let start = Self::offset(whole);
        state.folios.retain(|&page, _| !(start..start + whole.pages()).contains(&page));
        state.folios.insert(start, (whole.order().raw(), 0));
        let before = state.nodes.len();
        state.nodes.retain(|&(order, number)| {
            order > whole.order().raw() || !(start..start + whole.pages()).contains(&(number << order))
        });
        let freed = (before - state.nodes.len()) as u64;
        nodes.0 += freed;
        freed
    }

    fn thaw(&self, frozen: PfnBlock) {
        self.turn(frozen, 0, 1).unwrap();
    }
}

/// Freeze, change, thaw.
fn carry_out<A: PageSet, B: PageSet>(
    host: &Host,
    t: &Transition<A, B>,
    change: Change,
    nodes: &mut Nodes,
) -> CostDelta {
    let mut frozen = host.freeze(change.whole(), 1).unwrap();
    let done = match change {
        Change::Split(whole) => {
            let needed = commit_split(host, t, whole, &mut frozen, nodes).unwrap();
            CostDelta { needed, freed: 0 }
        }
        Change::Merge(whole) => {
            CostDelta { needed: 0, freed: commit_merge(host, t, whole, &mut frozen, nodes).unwrap() }
        }
    };
    host.thaw(frozen);
    done
}

#[test]
fn every_change_uses_what_is_planned_and_is_undone_with_it() {
    let some = OrderSet::from_bits(0b101_0010_1001).unwrap();
    for seed in 1..80 {
        let mut rng = Rng(seed);
        let orders = [OrderSet::ALL, some, OrderSet::PAGES][rng.next(3) as usize];
        let host = Host::new();
        let mut now = Vec::new();
        if orders == OrderSet::PAGES {
            // A block that cannot be whole is in pages from the start.
            host.0.borrow_mut().folios = (0..1 << ORDER).map(|page| (page, (0, 1))).collect();
        }
        for _ in 0..5 {
            let next = rng.runs(5, 1 << ORDER, 60);
            let t = Transition::new(block(ORDER), orders, now.as_slice(), next.as_slice());
            let (start, planned) = (host.state(), t.delta(host.index()));
            let (old, back) = (host.orders(), t.reversed());
            let mut nodes = Nodes::default();
            host.reserve_nodes(&mut nodes, block(ORDER), planned.needed).unwrap();
            let spare = core::mem::take(&mut host.0.borrow_mut().spare);
            let changes: Vec<_> = t.changes(0..u64::MAX).collect();
            let splits = changes.iter().filter(|change| matches!(change, Change::Split(_)));
            let merges = changes.iter().filter(|change| matches!(change, Change::Merge(_)));
            let mut used = CostDelta::default();
            for &change in splits.chain(merges) {
                let one = carry_out(&host, &t, change, &mut nodes);
                assert_eq!(one, t.delta_of(change, host.index()));
                used = CostDelta { needed: used.needed + one.needed, freed: used.freed + one.freed };
                // There and back, at once, in one freeze: the same nodes.
                let (before, left) = (host.state(), nodes.0);
                let mut frozen = host.freeze(change.whole(), 1).unwrap();
                match change {
                    Change::Split(whole) => {
                        commit_merge(&host, &back, whole, &mut frozen, &mut nodes).unwrap();
                        commit_split(&host, &t, whole, &mut frozen, &mut nodes).unwrap();
                    }
                    Change::Merge(whole) => {
                        commit_split(&host, &back, whole, &mut frozen, &mut nodes).unwrap();
                        commit_merge(&host, &t, whole, &mut frozen, &mut nodes).unwrap();
                    }
                }
                host.thaw(frozen);
                assert_eq!((host.state(), nodes.0), (before, left));
            }
            assert_eq!((used, nodes.0), (planned, planned.freed), "seed {seed}");
            assert_eq!(changes, reference_changes(block(ORDER), &old, &host.orders()));
            for change in changes.iter().rev().map(|change| change.reversed()) {
                carry_out(&host, &back, change, &mut nodes);
            }
            assert_eq!(host.orders(), old);
            assert_eq!(nodes.0, planned.needed);
            // And again, in the order of pages.
            for &change in &changes {
                carry_out(&host, &t, change, &mut nodes);
            }
            host.0.borrow_mut().spare = spare;
            host.release_nodes(nodes);
            assert_eq!(host.state().spare + planned.needed, start.spare + planned.freed);
            now = next;
        }
    }
}

/// Turned round inside a split, after each of its pieces: one call, and the nodes that the pieces took are there again.
#[test]
fn a_split_is_undone_after_any_piece() {
    let some = OrderSet::from_bits(0b101_0010_1001).unwrap();
    for (orders, runs) in [OrderSet::ALL, some].into_iter().flat_map(|orders| {
        [vec![0..1], vec![300..301], vec![1023..1024], vec![5..70, 900..901]].map(|runs| (orders, runs))
    }) {
        let host = Host::new();
        let t = Transition::new(block(ORDER), orders, Empty, runs.as_slice());
        let (whole, back, need) = (block(ORDER), t.reversed(), t.delta(host.index()).needed);
        let mut nodes = Nodes(need);
        let before = host.state();
        let pieces: Vec<_> = t.split_pieces(whole).collect();
        for done in 0..=pieces.len() {
            let mut frozen = host.freeze(whole, 1).unwrap();
            pieces[..done].iter().for_each(|&piece| host.split(&mut frozen, piece, &mut nodes));
            let taken = need - nodes.0;
            assert_eq!(taken > 0, done > 0);
            assert_eq!(commit_merge(&host, &back, whole, &mut frozen, &mut nodes), Ok(taken));
            host.thaw(frozen);
            assert_eq!((host.state(), nodes.0), (before.clone(), need), "{done} pieces of {runs:?}");
        }
        carry_out(&host, &t, Change::Split(whole), &mut nodes);
        assert_eq!(nodes.0, 0);
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    let host = Host::new();
    let t = Transition::new(block(ORDER), OrderSet::ALL, Empty, 300..301);
    let (whole, back) = (block(ORDER), t.reversed());
    let half = whole.part(512, Order::HUGE_2M).unwrap();
    let need = t.delta(host.index()).needed;
    assert_eq!(nodes_to_split(host.index(), &t, whole), Ok(need));
    let before = host.state();
    for have in 0..need {
        let mut nodes = Nodes(have);
        let mut frozen = host.freeze(whole, 1).unwrap();
        let short = commit_split(&host, &t, whole, &mut frozen, &mut nodes);
        assert_eq!(short, Err(CommitError::Nodes { whole, need, have }));
        host.thaw(frozen);
        assert_eq!((host.state(), nodes.0), (before.clone(), have));
    }
    let mut nodes = Nodes(need);
    let mut frozen = host.freeze(whole, 1).unwrap();
    for other in [half, block(ORDER - 1)] {
        let refused = commit_split(&host, &t, other, &mut frozen, &mut nodes);
        assert_eq!(refused, Err(CommitError::NotASplit { whole: other }));
        let refused = commit_merge(&host, &back, other, &mut frozen, &mut nodes);
        assert_eq!(refused, Err(CommitError::NotAMerge { whole: other }));
    }
    assert!(commit_split(&host, &back, whole, &mut frozen, &mut nodes).is_err());
    host.thaw(frozen);
    assert_eq!((host.state(), nodes.0), (before, need));
    // Somebody else's reference.
    carry_out(&host, &t, Change::Split(whole), &mut nodes);
    host.0.borrow_mut().folios.get_mut(&512).unwrap().1 = 2;
    let before = host.state();
    assert_eq!(host.freeze(whole, 1).unwrap_err().first, half.base());
    assert_eq!(host.state(), before);
}
