//! Layouts, plans and commits, on a host that the optimizer knows nothing of.

use crate::tee::ask;
use core::ops::Range;
use folio_split::{
    CostModel, FolioBackend, Large, Minus, Order, OrderSet, OutOfNodes, PageSet, Pfn, PfnBlock, Pinned,
    Splice, Transition, Union, XArray,
};
use sept_core::{Frame, FrameKind, FrameSource, FrameStore, Hpa};
use vmemmap_prealloc::{
    Atom, Commit, Geometry, Reservation, RestorePath, Savings, Tail, TailScheme, VmemmapBackend,
    VmemmapNeeds, VmemmapPage, install_tables, install_templates, merge_atom, optimize, restore, split_atom,
};

struct Host;

impl FolioBackend for Host {
    type Nodes = u64;
    type Frozen = u64;

    fn index(&self) -> &dyn CostModel {
        &XArray::LINUX
    }

    fn reserve_nodes(&self, nodes: &mut u64, near: PfnBlock, count: u64) -> Result<(), OutOfNodes> {
        *nodes = ask(100);
        if ask(101) == 0 { Ok(()) } else { Err(OutOfNodes { near, count }) }
    }

    fn nodes_left(&self, nodes: &u64) -> u64 {
        *nodes
    }

    fn release_nodes(&self, nodes: u64) {
        ask(nodes);
    }

    fn freeze(&self, whole: PfnBlock, _tries: u32) -> Result<u64, Pinned> {
        if ask(102) == 0 { Ok(ask(103)) } else { Err(Pinned { first: whole.base() }) }
    }

    fn split(&self, frozen: &mut u64, piece: PfnBlock, nodes: &mut u64) {
        (*frozen, *nodes) = (ask(piece.base().raw()), ask(104));
    }

    fn merge(&self, frozen: &mut u64, whole: PfnBlock, nodes: &mut u64) -> u64 {
        (*frozen, *nodes) = (ask(whole.base().raw()), ask(105));
        ask(106)
    }

    fn thaw(&self, frozen: u64) {
        ask(frozen);
    }
}

impl VmemmapBackend for Host {
    type Fresh = Frame;
    type Flushed = u64;

    fn geometry(&self) -> Geometry {
        let tails = match ask(110) {
            0 => TailScheme::PerOrder,
            1 => TailScheme::OrderFree,
            _ => TailScheme::SharedWithHead,
        };
        Geometry::new(ask(111), ask(112), ask(113), tails).unwrap_or(Geometry::LINUX_X86_64)
    }

    fn is_optimized(&self, _block: PfnBlock) -> bool {
        ask(114) == 0
    }

    fn set_optimized(&self, _block: PfnBlock, optimized: bool) {
        ask(optimized.into());
    }

    fn has_template(&self, _near: PfnBlock, _tail: Tail) -> bool {
        ask(115) == 0
    }

    fn tables_missing(&self, _block: PfnBlock) -> u32 {
        ask(116) as u32
    }

    fn maps(&self, at: VmemmapPage, _tail: Tail) -> bool {
        ask(at.index) == 0
    }

    fn prepare(&self, at: VmemmapPage, page: Frame) -> Frame {
        ask(at.index);
        page
    }

    fn write_folio(&self, fresh: &mut Frame, _folio: PfnBlock) {
        ask(fresh.hpa().raw());
    }

    fn write_tails(&self, at: VmemmapPage, _folio: PfnBlock) {
        ask(at.index);
    }

    fn map_own(&self, at: VmemmapPage, _fresh: Frame) {
        ask(at.index);
    }

    fn map_tail(&self, at: VmemmapPage, _tail: Tail) {
        ask(at.index);
    }

    fn flush(&self) -> u64 {
        ask(117)
    }

    fn take_replaced(&self, _block: PfnBlock, flushed: &u64) -> Option<Frame> {
        Pages.take(FrameKind::Vmemmap, Hpa::truncate(*flushed))
    }
}

/// Source and store.
struct Pages;

impl FrameSource for Pages {
    fn take(&self, kind: FrameKind, near: Hpa) -> Option<Frame> {
        crate::tee::Source.take(kind, near)
    }

    fn give(&self, _kind: FrameKind, frame: Frame) {
        ask(frame.hpa().raw());
    }
}

impl FrameStore for Pages {
    fn put(&mut self, _kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        if ask(120) == 0 { Ok(()) } else { Err(frame) }
    }

    fn get(&mut self, kind: FrameKind) -> Option<Frame> {
        self.take(kind, Hpa::default())
    }

    fn count(&self, _kind: FrameKind) -> u32 {
        ask(121) as u32
    }
}

fn order(question: u64) -> Order {
    let [low, ..] = ask(question).to_le_bytes();
    Order::new(low).unwrap_or(Order::MAX)
}

fn block() -> Option<(PfnBlock, OrderSet)> {
    let block = PfnBlock::new(Pfn::new(ask(130))?, order(131))?;
    Some((block, OrderSet::from_bits(ask(132)).ok()?.at_least(order(133))))
}

/// A set as runs, and one as bits.
pub struct Sets<'a> {
    runs: &'a [Range<u64>],
    bits: &'a [u64],
}

/// Sets of every kind, layouts, transitions and costs.
#[unsafe(no_mangle)]
pub extern "C" fn folio_layouts(sets: &Sets<'_>) -> u64 {
    let &Sets { runs, bits } = sets;
    let Some((block, orders)) = block() else { return 0 };
    let splice = Splice { left: runs, right: ask(134)..ask(135), at: ask(136) };
    let to = Union(Union(runs, Minus(splice, ask(165)..ask(166))), Large(bits));
    let t = Transition::new(block, orders, runs, to);
    let index = XArray::new(ask(137).to_le_bytes()[0]).unwrap_or(XArray::LINUX);
    let counts = t.counts();
    let mut sum =
        counts.delta(&index).needed ^ counts.to().folios() ^ counts.between().fragmented(order(138));
    sum ^= counts.from().by_order().fold(0, |sum, (order, folios)| sum ^ order.pages() ^ folios);
    for folio in t.from_layout().folios(ask(139)).take(9) {
        sum ^= folio.base().raw();
    }
    sum ^= t.change_runs(ask(140)..ask(141)).take(9).fold(0, |sum, run| sum ^ run.count);
    for change in t.changes(ask(140)..ask(141)).take(9) {
        sum ^= t.delta_of(change, &index).freed;
        sum ^= t.split_pieces(change.whole()).chain(t.split_pieces(block)).take(9).count() as u64;
    }
    sum ^= t.step(ask(142), ask(143)).changes(0..u64::MAX).take(9).count() as u64;
    sum ^= index.split_nodes(order(144), order(145)).unwrap_or(index.slots(order(146)));
    sum ^ u64::from(index.largest_split(order(147)).raw()) ^ index.chain_nodes(order(148), order(149))
}

/// Plans, reservations and commits in every phase.
#[unsafe(no_mangle)]
pub extern "C" fn vmemmap_commits(sets: &Sets<'_>) -> u64 {
    let Some((block, orders)) = block() else { return 0 };
    let t = Transition::new(block, orders, sets.runs, sets.bits);
    let counts = t.counts();
    let needs = VmemmapNeeds::plan(&Host, &t, &counts);
    let mut held = Reservation::new(block, needs.node, Pages);
    let mut sum = u64::from(held.fill(&Host, &needs, counts.delta(Host.index()).needed, &Pages).is_ok());
    held.trim(&needs, &Pages);
    let mut atoms = [Atom::split(t.by_ref(), block), Atom::merge(t.by_ref(), block)];
    for _ in 0..ask(150) {
        let Ok(commit) = Commit::freeze(&Host, &Host, &mut atoms, held.lend(), 3) else { break };
        let thawed = match ask(151) {
            0 => commit.cancel(),
            way => match commit.remap() {
                Ok(remapped) if way == 1 => remapped.cancel(),
                Ok(remapped) => remapped.finish(),
                Err(_) => break,
            },
        };
        sum ^= thawed.waits() as u64;
        sum ^= if ask(152) == 0 { thawed.keep(&Pages) } else { thawed.release(&Pages) }.released;
    }
    let done = [
        split_atom(&Host, &Host, &t, block, 1, &mut ask(153), &mut Pages).is_ok(),
        merge_atom(&Host, &Host, &t, block, 1, &Pages).is_ok(),
        optimize(&Host, &Host, &t.to_layout(), 1, &Pages).is_ok(),
        restore(&Host, &Host, &t.to_layout(), 1, &mut Pages).is_ok(),
        install_templates(&Host, block, orders, &Pages).is_ok(),
        install_tables(&Host, block, &Pages).is_ok(),
        needs.plus(needs).is_ok(),
    ];
    let geometry = Host.geometry();
    sum ^= Savings::of(&geometry, counts.to(), sum).net() ^ Savings::now(&Host, &t.to_layout()).gross();
    sum ^= RestorePath::of(&geometry, &counts).peak;
    let _ = held.release(&Host, &Pages);
    done.iter().fold(sum, |sum, &done| sum << 1 ^ u64::from(done))
}

/// A set that keeps no promise is no reason to panic either.
#[unsafe(no_mangle)]
pub extern "C" fn folio_broken_sets() -> u64 {
    struct Broken;
    impl PageSet for Broken {
        fn next_run(&self, from: u64) -> Option<Range<u64>> {
            Some(ask(from)..ask(160))
        }

        fn next_large(&self, from: u64) -> Option<Range<u64>> {
            Some(ask(from)..ask(161))
        }
    }
    let Some((block, orders)) = block() else { return 0 };
    let t = Transition::new(block, orders, Broken, Broken);
    t.counts().to().folios() ^ t.changes(0..u64::MAX).count() as u64
}
