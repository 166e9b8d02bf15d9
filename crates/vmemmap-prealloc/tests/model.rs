//! Transitions of whole blocks on the model host: what is planned is used, what is read back is the layout.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "a test that overflows or misses an index has failed"
)]

mod common;

use common::{Rng, Source, Store};
use core::ops::Range;
use folio_split::{
    Change, Empty, FolioBackend, FolioLayout, Large, Order, OrderSet, PageSet, Pfn, PfnBlock, Transition,
    Union, XArray,
};
use sept_core::{FrameKind, FrameStore};
use vmemmap_prealloc::{
    ApplyError, AtomDone, AtomError, BlockState, Geometry, TailScheme, VmemmapBackend, VmemmapNeeds,
    install_templates, merge_atom, model::HostModel, optimize, pages_to_restore, reserve, restore,
    split_atom,
};

/// Without optimization, the slowest failures are tried for one number in so many; with it, for each.
const STEP: usize = if cfg!(debug_assertions) { 23 } else { 1 };

fn block(order: u8) -> PfnBlock {
    PfnBlock::new(Pfn::new(5 << order).unwrap(), Order::new(order).unwrap()).unwrap()
}

fn geometry(tails: TailScheme, reserved: u64) -> Geometry {
    Geometry::new(64, 4096, reserved, tails).unwrap()
}

struct Host {
    model: HostModel,
    source: Source,
}

impl Host {
    fn new(geometry: Geometry, orders: OrderSet, blocks: &[PfnBlock]) -> Self {
        let host = Self { model: HostModel::new(geometry, orders), source: Source::new() };
        install_templates(&host.model, blocks[0], orders, &host.source).unwrap();
        for &block in blocks {
            host.model.add_block(block, &host.source).unwrap();
        }
        host
    }

    /// Plans, reserves and carries out a transition; compares what was used with the plan and what is there with
    /// the target.
    fn carry_out<A: PageSet, B: PageSet>(&self, t: &Transition<A, B>) -> AtomDone {
        let Self { model, source } = self;
        let counts = t.counts();
        let needs = VmemmapNeeds::plan(model, t, &counts);
        let index = counts.index_delta(model.index());
        assert_eq!((needs.templates, needs.tables), (0, 0));
        let before = model.counters();
        let mut store = Store::default();
        reserve(&needs.frames(), t.block().base().hpa(), source, &mut store).unwrap();
        let mut nodes = Default::default();
        model.reserve_nodes(&mut nodes, t.block(), index.needed).unwrap();
        let mut sum = AtomDone::default();
        // Splits first: that is what the plan counts with.
        for splits in [true, false] {
            for change in t.changes(0..u64::MAX) {
                let done = match change {
                    Change::Split(whole) if splits => {
                        split_atom(model, model, t, whole, 1, &mut nodes, &mut store).unwrap()
                    }
                    Change::Merge(whole) if !splits => merge_atom(model, model, t, whole, 1, source).unwrap(),
                    _ => continue,
                };
                sum.vmemmap.fresh += done.vmemmap.fresh;
                sum.vmemmap.replaced += done.vmemmap.replaced;
                sum.vmemmap.rewrites += done.vmemmap.rewrites;
                sum.released += done.released;
                sum.nodes_used += done.nodes_used;
                sum.nodes_freed += done.nodes_freed;
                sum.flushes += done.flushes;
            }
        }
        assert_eq!(model.nodes_left(&nodes), 0, "nodes planned and not used");
        model.release_nodes(nodes);
        assert_eq!(store.count(FrameKind::Vmemmap), 0, "pages planned and not used");
        assert_eq!((sum.vmemmap.fresh, sum.vmemmap.replaced), (needs.fresh, needs.released));
        assert_eq!((sum.released, u64::from(sum.flushes)), (needs.released, needs.flushes));
        // A tail that one atom rewrites and another one too is counted in both.
        assert_eq!(sum.vmemmap.rewrites, needs.rewrites);
        assert_eq!((sum.nodes_used, sum.nodes_freed), (index.needed, index.freed));
        let after = model.counters();
        assert_eq!(after.entry_writes - before.entry_writes, needs.entry_writes());
        assert_eq!(after.flushes - before.flushes, needs.flushes);
        assert_eq!(after.vmemmap_pages, before.vmemmap_pages + needs.fresh - needs.released);
        assert_eq!(after.index_nodes, before.index_nodes + index.needed - index.freed);
        assert_eq!((after.replaced_pages, after.reserved_nodes), (0, 0));
        assert_eq!(source.count(FrameKind::Vmemmap), after.vmemmap_pages);
        self.check(&t.to_layout());
        sum
    }

    fn check<S: PageSet>(&self, layout: &FolioLayout<S>) {
        self.model.check(layout).unwrap();
        self.model.check_host().unwrap();
    }
}

/// The small pages, then new vmemmap pages and index nodes with `{18,9,0}`, then with all orders.
type Row = (Vec<Range<u64>>, u64, u64, u64, u64);

#[test]
fn the_published_table() {
    let spread = |step: u64, count: u64| (0..count).map(move |i| i * step..i * step + 1).collect::<Vec<_>>();
    let rows: [Row; 8] = [
        (vec![1000..1001], 518, 73, 12, 3),
        (vec![5..6, 100..101], 518, 73, 12, 4),
        (vec![5..6, 200_000..200_001], 525, 81, 23, 5),
        (vec![16..32], 518, 73, 12, 3),
        (vec![512..1024], 518, 73, 16, 10),
        (vec![256..768], 525, 81, 17, 10),
        (spread(4096, 64), 959, 577, 447, 129),
        (spread(512, 512), 4095, 4161, 2047, 577),
    ];
    for (runs, hugetlb, hugetlb_nodes, all, all_nodes) in rows {
        for (orders, pages, nodes) in
            [(OrderSet::HUGETLB, hugetlb, hugetlb_nodes), (OrderSet::ALL, all, all_nodes)]
        {
            let host = Host::new(Geometry::LINUX_X86_64, orders, &[block(18)]);
            let start = host.model.counters();
            assert_eq!((start.vmemmap_pages, start.tables, start.index_nodes), (1, 8, 0));
            let t = Transition::new(block(18), orders, Empty, runs.as_slice());
            let done = host.carry_out(&t);
            assert_eq!((done.vmemmap.fresh, done.nodes_used), (pages, nodes), "{runs:?} {orders}");
            host.carry_out(&t.reversed());
            let end = host.model.counters();
            assert_eq!(end.in_use(), start.in_use());
        }
    }
}

/// Rewrites of one shared page: (512 - m) * 7 with `{18,9,0}`, 4,083 with all orders, none without an order.
#[test]
fn rewrites_depend_on_the_template() {
    let of = |orders, tails| {
        let t = Transition::new(block(18), orders, Empty, 1000..1001);
        VmemmapNeeds::of(&t, &geometry(tails, 1), BlockState::Optimized)
    };
    assert_eq!(of(OrderSet::HUGETLB, TailScheme::PerOrder).rewrites, 511 * 7);
    assert_eq!(of(OrderSet::ALL, TailScheme::PerOrder).rewrites, 4083);
    assert_eq!(of(OrderSet::ALL, TailScheme::OrderFree).rewrites, 0);
    // The first piece, of order 17 or 9, keeps its head page.
    assert_eq!(of(OrderSet::HUGETLB, TailScheme::SharedWithHead).rewrites, 510 * 7);
    assert!(of(OrderSet::HUGETLB, TailScheme::SharedWithHead).grace_period);
    assert_eq!(VmemmapNeeds::default(), {
        let t = Transition::new(block(18), OrderSet::ALL, Empty, 1000..1001);
        VmemmapNeeds::of(&t, &Geometry::LINUX_X86_64, BlockState::Plain)
    });
}

#[test]
fn from_any_layout_to_any_layout() {
    let some = OrderSet::from_bits(0b10_0100_1010_0001_0001).unwrap();
    for seed in 1..40 {
        let mut rng = Rng(seed);
        let order = [18, 12, 9, 7, 6, 5][rng.next(6) as usize];
        let orders = [OrderSet::ALL, OrderSet::HUGETLB, some, OrderSet::PAGES][rng.next(4) as usize];
        let tails =
            [TailScheme::PerOrder, TailScheme::OrderFree, TailScheme::SharedWithHead][rng.next(3) as usize];
        let geometry = geometry(tails, 1 + rng.next(3));
        let pages = 1 << order;
        let host = Host::new(geometry, orders, &[block(order)]);
        let mut now = Vec::new();
        host.check(&FolioLayout::new(block(order), orders, now.as_slice()));
        for _ in 0..6 {
            let longest = 1 << rng.next(u64::from(order));
            let next = rng.runs(12, pages, longest);
            host.carry_out(&Transition::new(block(order), orders, now.as_slice(), next.as_slice()));
            now = next;
        }
        host.carry_out(&Transition::new(block(order), orders, now.as_slice(), Empty));
    }
}

#[test]
fn shared_runs_may_stay_large() {
    let host = Host::new(Geometry::LINUX_X86_64, OrderSet::ALL, &[block(13)]);
    let broken = 5000..5001;
    let shared = [100..101, 512..2048];
    let t = Transition::new(block(13), OrderSet::ALL, Empty, Union(broken.clone(), Large(shared.as_slice())));
    host.carry_out(&t);
    let order =
        |page| host.model.index_entry(Pfn::new(block(13).base().raw() + page).unwrap()).unwrap().order();
    assert_eq!([order(100), order(600), order(1500), order(5000)].map(Order::raw), [0, 9, 10, 0]);
    let more = [512..2048, 3000..3001];
    let on = Union(broken, Large(more.as_slice()));
    host.carry_out(&Transition::new(block(13), OrderSet::ALL, *t.to_layout().small(), on));
}

#[test]
fn plain_blocks_cost_no_vmemmap() {
    for order in [0, 3, 9, 13] {
        let host =
            Host { model: HostModel::new(Geometry::LINUX_X86_64, OrderSet::ALL), source: Source::new() };
        host.model.add_plain_block(block(order));
        let t = Transition::new(block(order), OrderSet::ALL, Empty, 0..1);
        let done = host.carry_out(&t);
        assert_eq!(done.vmemmap.entry_writes(), 0);
        host.carry_out(&t.reversed());
        assert!(host.source.outstanding().is_empty());
    }
}

#[test]
fn a_boot_block_is_optimized_at_any_layout() {
    for small in [0..0, 77..600] {
        let host =
            Host { model: HostModel::new(Geometry::LINUX_X86_64, OrderSet::ALL), source: Source::new() };
        let Host { model, source } = &host;
        let name = block(13);
        install_templates(model, name, OrderSet::ALL, source).unwrap();
        model.add_boot_block(name, source).unwrap();
        assert_eq!(model.counters().vmemmap_pages, 128);
        // While plain, a transition moves no page.
        let t = Transition::new(name, OrderSet::ALL, Empty, small.clone());
        assert_eq!(host.carry_out(&t).vmemmap.entry_writes(), 0);
        assert!(optimize(model, &t.to_layout()).is_err());
        assert_eq!(vmemmap_prealloc::install_tables(model, name, source), Ok(1));
        let frozen = model.freeze(name, 1).unwrap();
        let applied = optimize(model, &t.to_layout()).unwrap();
        let flushed = model.flush();
        model.thaw(frozen);
        assert_eq!(model.release(name, &flushed, source), applied.replaced);
        let own = Geometry::LINUX_X86_64.own_pages(&t.to_layout().counts());
        assert_eq!(applied.replaced, 128 - own);
        host.check(&t.to_layout());
        host.carry_out(&t.reversed());
    }
}

/// The opposite of optimizing, at any layout; and every store that is too small or counts more than it has.
#[test]
fn a_block_gets_its_whole_vmemmap_back() {
    for tails in [TailScheme::PerOrder, TailScheme::OrderFree, TailScheme::SharedWithHead] {
        let name = block(11);
        let host = Host::new(geometry(tails, 1), OrderSet::ALL, &[name]);
        let Host { model, source } = &host;
        let t = Transition::new(name, OrderSet::ALL, Empty, 77..90);
        host.carry_out(&t);
        let (layout, start) = (t.to_layout(), source.outstanding());
        let need = pages_to_restore(model, &layout);
        assert_eq!(need, 32 - Geometry::LINUX_X86_64.own_pages(&layout.counts()));
        let fill = |pages: u64| {
            let mut store = Store::default();
            let needs = sept_core::FrameNeeds::of(FrameKind::Vmemmap, pages as u32);
            reserve(&needs, name.base().hpa(), source, &mut store).unwrap();
            store
        };
        for have in 0..need {
            let mut store = fill(have);
            let frozen = model.freeze(name, 1).unwrap();
            assert!(matches!(restore(model, &layout, &mut store), Err(ApplyError::Short { .. })));
            store.lies = (need - have) as u32;
            let broken = restore(model, &layout, &mut store);
            assert_eq!(broken, Err(ApplyError::BrokenStore { whole: name, need, got: have }));
            let flushed = model.flush();
            model.thaw(frozen);
            assert_eq!(model.release(name, &flushed, source), have);
            assert_eq!(source.outstanding(), start);
            host.check(&layout);
        }
        let mut store = fill(need);
        let frozen = model.freeze(name, 1).unwrap();
        assert_eq!(restore(model, &layout, &mut store).unwrap().fresh, need);
        let _ = model.flush();
        model.thaw(frozen);
        host.check(&layout);
        assert_eq!((model.is_optimized(name), pages_to_restore(model, &layout)), (false, 0));
        let frozen = model.freeze(name, 1).unwrap();
        assert_eq!(optimize(model, &layout).unwrap().replaced, need);
        let flushed = model.flush();
        model.thaw(frozen);
        assert_eq!(model.release(name, &flushed, source), need);
        host.carry_out(&t.reversed());
    }
}

#[test]
fn a_pin_stops_the_atom_and_nothing_changes() {
    let host = Host::new(Geometry::LINUX_X86_64, OrderSet::HUGETLB, &[block(18)]);
    let Host { model, source } = &host;
    let share = Transition::new(block(18), OrderSet::HUGETLB, Empty, 1000..1004);
    host.carry_out(&share);
    let page = Pfn::new(block(18).base().raw() + 1002).unwrap();
    assert!(model.pin(page));
    assert_eq!(model.first_pinned(block(18), 0..1 << 18), Some(page));
    let back = share.reversed();
    let before = (model.counters(), source.outstanding());
    match merge_atom(model, model, &back, block(18), 3, source) {
        Err(AtomError::Pinned(pinned)) => assert_eq!(pinned.first, page),
        other => panic!("{other:?}"),
    }
    assert_eq!((model.counters(), source.outstanding()), before);
    host.check(&share.to_layout());
    assert!(model.unpin(page));
    host.carry_out(&back);
}

#[test]
fn too_little_changes_nothing() {
    for orders in [OrderSet::ALL, OrderSet::HUGETLB] {
        let host = Host::new(Geometry::LINUX_X86_64, orders, &[block(18)]);
        let Host { model, source } = &host;
        let t = Transition::new(block(18), orders, Empty, 1000..1001);
        let needs = VmemmapNeeds::plan(model, &t, &t.counts());
        let need = needs.fresh;
        let nodes_needed = t.index_delta(&XArray::LINUX).needed;
        let start = source.outstanding();
        // Every allocation of a reservation made to fail.
        for limit in 0..need {
            source.limit(Some(limit));
            let mut store = Store::default();
            assert!(reserve(&needs.frames(), block(18).base().hpa(), source, &mut store).is_err());
            let mut full = Store::default();
            full.room = Some(limit as usize);
            source.limit(None);
            assert!(reserve(&needs.frames(), block(18).base().hpa(), source, &mut full).is_err());
            assert_eq!(source.outstanding(), start);
        }
        let before = model.counters();
        // Every store that is too small, and every one that counts more than it has.
        for have in (0..need).step_by(STEP) {
            let mut store = Store::default();
            let part = sept_core::FrameNeeds::of(FrameKind::Vmemmap, have as u32);
            reserve(&part, block(18).base().hpa(), source, &mut store).unwrap();
            let mut nodes = Default::default();
            model.reserve_nodes(&mut nodes, block(18), nodes_needed).unwrap();
            let kept = source.outstanding();
            let error = split_atom(model, model, &t, block(18), 1, &mut nodes, &mut store);
            assert!(matches!(error, Err(AtomError::Vmemmap(_))));
            assert_eq!(source.outstanding(), kept);
            store.lies = (need - have) as u32;
            let before_lie = model.counters().replaced_pages;
            let error = split_atom(model, model, &t, block(18), 1, &mut nodes, &mut store);
            assert!(matches!(error, Err(AtomError::Vmemmap(_))));
            assert_eq!(model.counters().replaced_pages - before_lie, have);
            let flushed = model.flush();
            assert_eq!(model.release(block(18), &flushed, source), have);
            assert_eq!(source.outstanding(), start);
            assert_eq!(model.nodes_left(&nodes), nodes_needed);
            model.release_nodes(nodes);
            host.check(&t.from_layout());
        }
        let after = model.counters();
        assert_eq!(after.in_use(), before.in_use());
        // Every number of nodes that is too small.
        for have in 0..nodes_needed {
            let mut nodes = Default::default();
            model.limit_nodes(Some(have));
            assert!(model.reserve_nodes(&mut nodes, block(18), nodes_needed).is_err());
            model.limit_nodes(None);
            model.reserve_nodes(&mut nodes, block(18), have).unwrap();
            let mut store = Store::default();
            let error = split_atom(model, model, &t, block(18), 1, &mut nodes, &mut store);
            assert!(matches!(error, Err(AtomError::Index(_))));
            model.release_nodes(nodes);
        }
        assert_eq!(model.counters(), after);
        host.carry_out(&t);
    }
}

#[test]
fn steps_of_two_megabytes_cost_the_same() {
    let host = Host::new(Geometry::LINUX_X86_64, OrderSet::HUGETLB, &[block(18)]);
    let runs = [100..3000, 70_000..70_001];
    let t = Transition::new(block(18), OrderSet::HUGETLB, Empty, runs.as_slice());
    let whole = VmemmapNeeds::plan(&host.model, &t, &t.counts());
    let mut fresh = 0;
    for at in (0..1 << 18).step_by(512) {
        fresh += host.carry_out(&t.step(at, at + 512)).vmemmap.fresh;
    }
    assert_eq!(fresh, whole.fresh);
    let back = t.reversed();
    for at in (0..1 << 18).step_by(512) {
        host.carry_out(&back.step(at, at + 512));
    }
    assert_eq!(host.model.counters().vmemmap_pages, 1);
}

#[test]
fn broken_pages_own_their_struct_page() {
    let host = Host::new(Geometry::LINUX_X86_64, OrderSet::ALL, &[block(18)]);
    let page = 4711;
    let t = Transition::new(block(18), OrderSet::ALL, Empty, page..page + 1);
    host.carry_out(&t);
    let pfn = Pfn::new(block(18).base().raw() + page).unwrap();
    assert!(host.model.poison(pfn));
    host.check(&t.to_layout());
    let more = [page..page + 1, 9000..9100];
    let t = Transition::new(block(18), OrderSet::ALL, page..page + 1, more.as_slice());
    host.carry_out(&t);
    host.carry_out(&t.reversed());
    assert!(!host.model.poison(Pfn::new(pfn.raw() + 4).unwrap()));
    assert_eq!(host.model.violations().len(), 1);
}

#[test]
fn the_model_sees_what_goes_wrong() {
    let host = || Host::new(Geometry::LINUX_X86_64, OrderSet::ALL, &[block(12)]);
    let t = Transition::new(block(12), OrderSet::ALL, Empty, 7..8);
    let at = |index| vmemmap_prealloc::VmemmapPage { block: block(12), index };
    // A stray store to a tail.
    let Host { model, .. } = host();
    model.scribble(
        Pfn::new(block(12).base().raw() + 100).unwrap(),
        vmemmap_prealloc::model::StructPage::AnyTail,
    );
    assert!(model.check_host().is_err());
    assert!(model.check(&t.from_layout()).is_ok());
    // A wrong template.
    let Host { model, .. } = host();
    model.map_tail(at(3), vmemmap_prealloc::Tail::Template(Order::new(9).unwrap()));
    assert!(model.check(&t.from_layout()).is_err());
    assert!(model.check_host().is_err(), "not frozen");
    // A split that forgot the vmemmap.
    let Host { model, .. } = host();
    let mut nodes = Default::default();
    model.reserve_nodes(&mut nodes, block(12), 9).unwrap();
    let mut frozen = model.freeze(block(12), 1).unwrap();
    for piece in t.split_pieces(block(12)) {
        model.split(&mut frozen, piece, &mut nodes);
    }
    model.thaw(frozen);
    model.release_nodes(nodes);
    assert!(model.check_host().is_err());
    assert!(model.check(&t.to_layout()).is_err());
    // A flush that was left out.
    let Host { model, source } = host();
    let mut store = Store::default();
    let needs = VmemmapNeeds::plan(&model, &t, &t.counts());
    reserve(&needs.frames(), block(12).base().hpa(), &source, &mut store).unwrap();
    let frozen = model.freeze(block(12), 1).unwrap();
    let _ = vmemmap_prealloc::apply_split(&model, &t, block(12), &mut store).unwrap();
    model.thaw(frozen);
    assert!(model.violations()[0].contains("not flushed"), "{:?}", model.violations());
}

#[test]
fn many_untouched_blocks_are_cheap() {
    let blocks: Vec<_> =
        (0..1024).map(|i| PfnBlock::new(Pfn::new(i << 18).unwrap(), Order::HUGE_1G).unwrap()).collect();
    let host = Host::new(Geometry::LINUX_X86_64, OrderSet::HUGETLB, &blocks);
    let counters = host.model.counters();
    assert_eq!((counters.vmemmap_pages, counters.tables, counters.templates), (1024, 8192, 2));
    host.check(&FolioLayout::new(blocks[1000], OrderSet::HUGETLB, Empty));
    // Small blocks share page tables.
    let blocks: Vec<_> =
        (0..64).map(|i| PfnBlock::new(Pfn::new(i << 9).unwrap(), Order::HUGE_2M).unwrap()).collect();
    let host = Host::new(Geometry::LINUX_X86_64, OrderSet::HUGETLB, &blocks);
    assert_eq!((host.model.counters().vmemmap_pages, host.model.counters().tables), (64, 1));
    let t = Transition::new(blocks[9], OrderSet::HUGETLB, Empty, 7..8);
    let done = host.carry_out(&t);
    assert_eq!((done.vmemmap.fresh, done.nodes_used), (7, 8));
}
