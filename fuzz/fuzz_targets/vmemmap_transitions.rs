//! Arbitrary sequences of splits, merges, aborts and shortages on the model host, which checks every read.
#![no_main]

use arbitrary::Arbitrary;
use folio_split::{
    Change, Empty, FolioBackend, Order, OrderSet, Pfn, PfnBlock, Transition, commit_merge, commit_split,
};
use libfuzzer_sys::fuzz_target;
use sept_core::{
    FrameKind, FrameStore, Hpa,
    test_util::{FramePool, VecStore},
};
use std::ops::Range;
use vmemmap_prealloc::{
    AtomError, Geometry, TailScheme, VmemmapBackend, VmemmapNeeds, apply_merge, apply_split, give_back,
    install_templates, merge_atom, model::HostModel, optimize, pages_to_restore, reserve, restore,
    split_atom,
};

#[derive(Arbitrary, Debug)]
struct Input {
    order: u8,
    orders: u64,
    reserved: u8,
    tails: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// To another layout; a reader pins a page meanwhile.
    Change { runs: Vec<(u16, u8)>, pin: Option<u16> },
    /// As far as the flush, or the metadata, and back inside the freeze.
    Abort { runs: Vec<(u16, u8)>, metadata: bool },
    /// Only so many pages are to be had.
    Short { runs: Vec<(u16, u8)>, pages: u8 },
    /// Every page of the vmemmap back, and the optimization again.
    Restore,
}

fn set(runs: &[(u16, u8)], pages: u64) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    let mut runs: Vec<_> =
        runs.iter().take(8).map(|&(start, len)| (u64::from(start) % pages, u64::from(len))).collect();
    runs.sort_unstable();
    for (start, len) in runs {
        let end = (start + len + 1).min(pages);
        match out.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ => out.push(start..end),
        }
    }
    out
}

fuzz_target!(|input: Input| {
    let order = input.order % 13;
    let pages = 1 << order;
    let orders = OrderSet::from_bits(input.orders & OrderSet::ALL.bits() | 1).unwrap();
    let tails = [TailScheme::PerOrder, TailScheme::OrderFree, TailScheme::SharedWithHead];
    let geometry =
        Geometry::new(64, 4096, u64::from(input.reserved % 3) + 1, tails[usize::from(input.tails % 3)])
            .unwrap();
    let block = PfnBlock::new(Pfn::new(3 << order).unwrap(), Order::new(order).unwrap()).unwrap();
    let pool = FramePool::new(Hpa::new(1 << 30).unwrap(), 1 << 12);
    let host = HostModel::new(geometry, orders);
    install_templates(&host, block, orders, &pool).unwrap();
    host.add_block(block, &pool).unwrap();
    let start = (host.counters().in_use(), pool.outstanding());
    let mut now: Vec<Range<u64>> = Vec::new();
    for step in input.steps.iter().take(12) {
        match step {
            Step::Change { runs, pin } => {
                let next = set(runs, pages);
                change(&host, &pool, block, &now, &next, pin.map(|pin| u64::from(pin) % pages));
                now = next;
            }
            Step::Abort { runs, metadata } => abort(&host, &pool, block, &now, &set(runs, pages), *metadata),
            Step::Short { runs, pages: left } => {
                let next = set(runs, pages);
                let t = Transition::new(block, orders, now.as_slice(), next.as_slice());
                let needs = VmemmapNeeds::plan(&host, &t, &t.counts()).frames();
                let before = pool.outstanding();
                let mut store = VecStore::default();
                pool.limit(Some(u64::from(*left)));
                let enough = u32::from(*left) >= needs[FrameKind::Vmemmap];
                assert_eq!(reserve(&needs, block.base().hpa(), &pool, &mut store).is_ok(), enough);
                pool.limit(None);
                give_back(&needs, &pool, &mut store);
                assert_eq!(pool.outstanding(), before);
            }
            Step::Restore => again(&host, &pool, &Transition::new(block, orders, now.as_slice(), Empty)),
        }
        host.check(&Transition::new(block, orders, now.as_slice(), Empty).from_layout()).unwrap();
        host.check_readers(block).unwrap();
        host.check_host().unwrap();
    }
    change(&host, &pool, block, &now, &[], None);
    assert_eq!((host.counters().in_use(), pool.outstanding()), start);
    assert!(pool.faults().is_empty());
});

fn change(
    host: &HostModel,
    pool: &FramePool,
    block: PfnBlock,
    now: &[Range<u64>],
    next: &[Range<u64>],
    pin: Option<u64>,
) {
    let t = Transition::new(block, host.orders(), now, next);
    let counts = t.counts();
    let needs = VmemmapNeeds::plan(host, &t, &counts);
    let index = counts.index_delta(host.index());
    let mut store = VecStore::default();
    reserve(&needs.frames(), block.base().hpa(), pool, &mut store).unwrap();
    let mut nodes = Default::default();
    host.reserve_nodes(&mut nodes, block, index.needed).unwrap();
    pool.limit(Some(0));
    host.limit_nodes(Some(0));
    let pin = pin.and_then(|page| Pfn::new(block.base().raw() + page));
    let (mut fresh, mut released, mut rewrites, mut used, mut freed) = (0, 0, 0, 0, 0);
    for splits in [true, false] {
        for change in t.changes(0..block.pages()) {
            let mut run = || match change {
                Change::Split(whole) => split_atom(host, host, &t, whole, 1, &mut nodes, &mut store),
                Change::Merge(whole) => merge_atom(host, host, &t, whole, 1, pool),
            };
            if matches!(change, Change::Split(_)) != splits {
                continue;
            }
            if let Some(pin) = pin.filter(|&pin| change.whole().contains_pfn(pin)) {
                assert!(host.pin(pin));
                assert!(matches!(run(), Err(AtomError::Pinned(_))));
                assert!(host.unpin(pin));
            }
            let done = run().unwrap();
            fresh += done.vmemmap.fresh;
            released += done.released;
            rewrites += done.vmemmap.rewrites;
            used += done.nodes_used;
            freed += done.nodes_freed;
        }
    }
    assert_eq!((fresh, released, rewrites), (needs.fresh, needs.released, needs.rewrites));
    assert_eq!((used, freed), (index.needed, index.freed));
    assert_eq!((store.count(FrameKind::Vmemmap), host.nodes_left(&nodes)), (0, 0));
    host.release_nodes(nodes);
    host.limit_nodes(None);
    pool.limit(None);
}

fn abort(
    host: &HostModel,
    pool: &FramePool,
    block: PfnBlock,
    now: &[Range<u64>],
    next: &[Range<u64>],
    metadata: bool,
) {
    let t = Transition::new(block, host.orders(), now, next);
    let back = t.reversed();
    let before = (host.counters().in_use(), pool.outstanding());
    let counts = t.counts();
    let needs = VmemmapNeeds::plan(host, &t, &counts).frames();
    let mut store = VecStore::default();
    reserve(&needs, block.base().hpa(), pool, &mut store).unwrap();
    let mut nodes = Default::default();
    host.reserve_nodes(&mut nodes, block, counts.index_delta(host.index()).needed).unwrap();
    pool.limit(Some(0));
    host.limit_nodes(Some(0));
    for change in t.changes(0..block.pages()) {
        let Change::Split(whole) = change else { continue };
        let mut frozen = host.freeze(whole, 1).unwrap();
        let applied = apply_split(host, &t, whole, &mut store).unwrap();
        let _ = host.flush();
        if metadata {
            commit_split(host, &t, whole, &mut frozen, &mut nodes).unwrap();
            commit_merge(host, &back, whole, &mut frozen).unwrap();
        }
        assert_eq!(apply_merge(host, &back, whole).unwrap().replaced, applied.fresh);
        host.check_readers(block).unwrap();
        let flushed = host.flush();
        host.thaw(frozen);
        assert_eq!(host.release(block, &flushed, pool), applied.fresh);
    }
    host.release_nodes(nodes);
    host.limit_nodes(None);
    pool.limit(None);
    give_back(&needs, pool, &mut store);
    assert_eq!((host.counters().in_use(), pool.outstanding()), before);
}

fn again<A: folio_split::PageSet, B: folio_split::PageSet>(
    host: &HostModel,
    pool: &FramePool,
    t: &Transition<A, B>,
) {
    let (block, layout) = (t.block(), t.from_layout());
    if !host.is_optimized(block) {
        return;
    }
    let mut store = VecStore::default();
    let need = pages_to_restore(host, &layout);
    let needs = sept_core::FrameNeeds::of(FrameKind::Vmemmap, u32::try_from(need).unwrap());
    reserve(&needs, block.base().hpa(), pool, &mut store).unwrap();
    let frozen = host.freeze(block, 1).unwrap();
    assert_eq!(restore(host, &layout, &mut store).unwrap().fresh, need);
    host.check_readers(block).unwrap();
    let _ = host.flush();
    host.thaw(frozen);
    host.check(&layout).unwrap();
    let frozen = host.freeze(block, 1).unwrap();
    assert_eq!(optimize(host, &layout).unwrap().replaced, need);
    let flushed = host.flush();
    host.thaw(frozen);
    assert_eq!(host.release(block, &flushed, pool), need);
}
