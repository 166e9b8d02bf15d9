//! Transitions of whole blocks on the model host: what is planned is used, what is read back is the layout.

use crate::common::{Host, Rng, SCHEMES, Store, block, geometry, pool};
use folio_split::{
    Empty, FolioBackend, FolioLayout, Large, Order, OrderSet, Pfn, PfnBlock, Transition, Union,
};
use sept_core::{FrameKind, FrameNeeds, FrameStore};
use vmemmap_prealloc::{
    ApplyError, AtomError, BlockState, Geometry, Tail, TailScheme, VmemmapBackend, VmemmapNeeds, VmemmapPage,
    install_tables, install_templates,
    model::{HostModel, StructPage},
    optimize, restore,
};

#[test]
fn from_any_layout_to_any_layout() {
    let some = OrderSet::from_bits(0b10_0100_1010_0001_0001).unwrap();
    for seed in 1..80 {
        let mut rng = Rng(seed);
        let order = [18, 12, 9, 7, 6, 5][rng.next(6) as usize];
        let orders = [OrderSet::ALL, OrderSet::HUGETLB, some, OrderSet::PAGES][rng.next(4) as usize];
        // 128, 64 or 32 bytes, and 64 with pages of 16 KiB.
        let (size, page) = [(128, 4096), (64, 4096), (32, 4096), (64, 16384)][rng.next(4) as usize];
        let geometry = Geometry::new(size, page, 1 + rng.next(3), SCHEMES[rng.next(3) as usize]).unwrap();
        let pages = 1 << order;
        let host = Host::new(geometry, orders, &[block(order)]);
        let mut now = Vec::new();
        host.check(&FolioLayout::new(block(order), orders, now.as_slice()));
        for turn in 0..6 {
            let longest = 1 << rng.next(u64::from(order));
            let next = if turn == 5 { Vec::new() } else { rng.runs(12, pages, longest) };
            let t = Transition::new(block(order), orders, now.as_slice(), next.as_slice());
            if rng.next(2) == 0 {
                host.carry_out(&t)
            } else {
                host.carry_out_together(&t)
            };
            now = next;
        }
    }
}

/// The last block that a physical address can name, and plans of all memory as one block.
#[test]
fn the_end_of_all_memory() {
    for tails in SCHEMES {
        for order in [7, 10, 18] {
            let order = Order::new(order).unwrap();
            let name = PfnBlock::new(Pfn::new((1 << 40) - order.pages()).unwrap(), order).unwrap();
            let host = Host::new(geometry(tails, 1), OrderSet::ALL, &[name]);
            let last = order.pages() - 1;
            let runs = [0..1, last..last + 1];
            let t = Transition::new(name, OrderSet::ALL, Empty, runs.as_slice());
            host.carry_out(&t);
            host.carry_out_together(&t.reversed());
        }
    }
    // One page apart: half a block of each order from 7 on has its own head, as in any other block.
    let all = PfnBlock::new(Pfn::new(0).unwrap(), Order::MAX).unwrap();
    let last = Order::MAX.pages() - 1;
    let t = Transition::new(all, OrderSet::ALL, Empty, last..last + 1);
    let needs = VmemmapNeeds::of(&t, &Geometry::LINUX_X86_64, BlockState::Optimized);
    assert_eq!((needs.fresh, needs.flushes), (40 - 6, 1));
    assert_eq!(needs.rewrites, (1 << 34) - 1 - (40 - 6));
    // More pages than a source can be asked for at once are more than it has.
    let halves = OrderSet::new([Order::PAGE, Order::MAX]).unwrap();
    let split = Transition::new(all, halves, Empty, 7..8);
    let needs = VmemmapNeeds::of(&split, &Geometry::LINUX_X86_64, BlockState::Optimized);
    assert_eq!(needs.fresh, (1 << 34) - 1);
    assert_eq!(needs.frames()[FrameKind::Vmemmap], u32::MAX);
    assert_eq!(needs.plus(needs).map(|both| both.net()), Ok((1 << 35) - 2));
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
        let host = Host { model: HostModel::new(Geometry::LINUX_X86_64, OrderSet::ALL), pool: pool() };
        host.model.add_plain_block(block(order));
        let t = Transition::new(block(order), OrderSet::ALL, Empty, 0..1);
        let done = host.carry_out(&t);
        assert_eq!(done.vmemmap.entry_writes(), 0);
        host.carry_out(&t.reversed());
        assert!(host.pool.outstanding().is_none());
    }
}

#[test]
fn a_boot_block_is_optimized_at_any_layout() {
    for small in [0..0, 77..600] {
        let host = Host { model: HostModel::new(Geometry::LINUX_X86_64, OrderSet::ALL), pool: pool() };
        let Host { model, pool } = &host;
        let name = block(13);
        install_templates(model, name, OrderSet::ALL, pool).unwrap();
        model.add_boot_block(name, pool).unwrap();
        assert_eq!(model.counters().vmemmap_pages, 128);
        // While plain, a transition moves no page.
        let t = Transition::new(name, OrderSet::ALL, Empty, small.clone());
        assert_eq!(host.carry_out(&t).vmemmap.entry_writes(), 0);
        let needs = VmemmapNeeds::to_optimize(model, &t.to_layout());
        assert_eq!((needs.tables, needs.templates), (1, 0));
        let missing = optimize(model, model, &t.to_layout(), 1, pool);
        assert_eq!(missing, Err(AtomError::Vmemmap(ApplyError::NoTable { block: name, missing: 1 })));
        assert_eq!(install_tables(model, name, pool), Ok(1));
        let done = optimize(model, model, &t.to_layout(), 1, pool).unwrap();
        let own = Geometry::LINUX_X86_64.own_pages(&t.to_layout().counts());
        assert_eq!((done.vmemmap.replaced, done.released), (128 - own, 128 - own));
        host.check(&t.to_layout());
        host.carry_out(&t.reversed());
    }
}

/// The opposite of optimizing, at any layout; and every store that is too small or counts more than it has.
#[test]
fn a_block_gets_its_whole_vmemmap_back() {
    for tails in SCHEMES {
        let name = block(11);
        let host = Host::new(geometry(tails, 1), OrderSet::ALL, &[name]);
        let Host { model, pool } = &host;
        let t = Transition::new(name, OrderSet::ALL, Empty, 77..90);
        host.carry_out(&t);
        let (layout, start) = (t.to_layout(), pool.outstanding());
        let need = VmemmapNeeds::to_restore(model, &layout).fresh;
        assert_eq!(need, 32 - Geometry::LINUX_X86_64.own_pages(&layout.counts()));
        let fill = |pages: u64| {
            let mut store = Store::default();
            let needs = FrameNeeds::of(FrameKind::Vmemmap, pages as u32);
            store.fill(&needs, name.base().hpa(), pool).unwrap();
            store
        };
        for have in 0..need {
            let mut store = fill(have);
            let short = restore(model, model, &layout, 1, &mut store);
            assert_eq!(short, Err(AtomError::Vmemmap(ApplyError::Short { whole: name, need, have })));
            store.lies = (need - have) as u32;
            let broken = restore(model, model, &layout, 1, &mut store);
            let got = have;
            assert_eq!(broken, Err(AtomError::Vmemmap(ApplyError::BrokenStore { whole: name, need, got })));
            assert_eq!(host.collect(name), have);
            assert_eq!(pool.outstanding(), start);
            host.check(&layout);
        }
        let mut store = fill(need);
        assert_eq!(restore(model, model, &layout, 1, &mut store).unwrap().vmemmap.fresh, need);
        host.check(&layout);
        assert_eq!((model.is_optimized(name), VmemmapNeeds::to_restore(model, &layout).fresh), (false, 0));
        assert_eq!(VmemmapNeeds::to_optimize(model, &layout).released, need);
        assert_eq!(optimize(model, model, &layout, 1, pool).unwrap().released, need);
        assert_eq!(VmemmapNeeds::to_optimize(model, &layout), VmemmapNeeds::default());
        host.carry_out(&t.reversed());
    }
}

/// Plans of both ways say what they do, flushes and the grace period before included; nothing where all pages are single.
#[test]
fn plans_of_the_whole_vmemmap() {
    for (tails, small, flushes) in
        SCHEMES.into_iter().flat_map(|tails| [(tails, 0..0, 1), (tails, 0..1 << 10, 0)])
    {
        let name = block(10);
        let host = Host::new(geometry(tails, 1), OrderSet::ALL, &[name]);
        let Host { model, pool } = &host;
        let t = Transition::new(name, OrderSet::ALL, Empty, small);
        host.carry_out(&t);
        let layout = t.to_layout();
        for _ in 0..2 {
            let before = model.counters();
            let needs = VmemmapNeeds::to_restore(model, &layout);
            let mut store = Store::default();
            store.fill(&needs.frames(), name.base().hpa(), pool).unwrap();
            let done = restore(model, model, &layout, 1, &mut store).unwrap();
            assert_eq!((done.vmemmap.fresh, u64::from(done.flushes)), (needs.fresh, needs.flushes));
            let needs = VmemmapNeeds::to_optimize(model, &layout);
            let done = optimize(model, model, &layout, 1, pool).unwrap();
            assert_eq!((done.released, u64::from(done.flushes)), (needs.released, needs.flushes));
            assert_eq!(needs.grace_period, tails == TailScheme::SharedWithHead && needs.released > 0);
            assert_eq!((needs.flushes, model.counters().flushes - before.flushes), (flushes, 2 * flushes));
            assert_eq!(model.counters().in_use(), before.in_use());
            host.check(&layout);
        }
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
    let at = |index| VmemmapPage { block: block(12), index };
    // A stray store to a tail.
    let Host { model, .. } = host();
    model.scribble(Pfn::new(block(12).base().raw() + 100).unwrap(), StructPage::AnyTail);
    assert!(model.check_host().is_err());
    assert!(model.check(&t.from_layout()).is_ok());
    // A wrong template.
    let Host { model, .. } = host();
    model.map_tail(at(3), Tail::Template(Order::new(9).unwrap()));
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
    let Host { model, .. } = host();
    let frozen = model.freeze(block(12), 1).unwrap();
    model.map_tail(at(9), Tail::Template(Order::new(12).unwrap()));
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
