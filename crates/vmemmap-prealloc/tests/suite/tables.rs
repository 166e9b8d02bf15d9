//! The published numbers: layouts of a 1 GiB block, sizes of the optimization, pages of every path between two layouts.

use crate::common::{Host, block, geometry};
use core::ops::Range;
use folio_split::{
    CostModel, Empty, FolioLayout, Large, LayoutCounts, NoFolios, Order, OrderSet, PageSet, Transition,
    XArray,
};
use sept_core::{FrameStore, test_util::VecStore};
use vmemmap_prealloc::{
    ApplyError, AtomError, BlockState, Geometry, NoVmemmap, RestorePath, Savings, TailScheme, VmemmapBackend,
    VmemmapNeeds, optimize, restore, templates,
};

const LINUX: Geometry = Geometry::LINUX_X86_64;

fn spread(step: u64, count: u64) -> Vec<Range<u64>> {
    (0..count).map(move |i| i * step..i * step + 1).collect()
}

/// Sets of pages with m_9 and the other numbers of their rows: pages; m_9; folios, vmemmap pages and index nodes with
/// `{18,9,0}`; the same with all orders.
type Row = (Vec<Range<u64>>, u64, [u64; 3], [u64; 3]);

fn rows() -> [Row; 8] {
    [
        (vec![1000..1001], 1, [1023, 518, 73], [19, 12, 3]),
        (vec![5..6, 100..101], 1, [1023, 518, 73], [25, 12, 4]),
        (vec![5..6, 200_000..200_001], 2, [1534, 525, 81], [36, 23, 5]),
        (vec![16..32], 1, [1023, 518, 73], [30, 12, 3]),
        (vec![512..1024], 1, [1023, 518, 73], [521, 16, 10]),
        (vec![256..768], 2, [1534, 525, 81], [522, 17, 10]),
        (spread(4096, 64), 64, [33_216, 959, 577], [832, 447, 129]),
        (spread(512, 512), 512, [262_144, 4095, 4161], [5120, 2047, 577]),
    ]
}

/// Carried out on the host model, there and back, and compared with what Linux takes for the same.
#[test]
fn examples_of_layouts() {
    for (runs, m_9, hugetlb, all) in rows() {
        for (orders, [folios, pages, nodes]) in [(OrderSet::HUGETLB, hugetlb), (OrderSet::ALL, all)] {
            let host = Host::new(LINUX, orders, &[block(18)]);
            let start = host.model.counters();
            assert_eq!((start.vmemmap_pages, start.tables, start.index_nodes), (1, 8, 0));
            let t = Transition::new(block(18), orders, Empty, runs.as_slice());
            let counts = t.counts();
            assert_eq!((counts.to().folios(), counts.to().touched(Order::HUGE_2M)), (folios, Some(m_9)));
            let done = host.carry_out(&t);
            assert_eq!((done.vmemmap.fresh, done.nodes_used), (pages, nodes), "{runs:?} {orders}");
            let saved = Savings::now(&host.model, &t.to_layout());
            assert_eq!((saved.gross(), saved.net()), (4095 - pages, (4095 - pages).saturating_sub(8)));
            assert!(pages <= RestorePath::of(&LINUX, &counts).taken);
            host.carry_out(&t.reversed());
            assert_eq!(host.model.counters().in_use(), start.in_use());
        }
    }
}

/// m_o by its definition.
fn m(runs: &[Range<u64>], order: u32) -> u64 {
    let blocks: std::collections::BTreeSet<u64> =
        runs.iter().cloned().flatten().map(|page| page >> order).collect();
    blocks.len() as u64
}

/// Folios, single pages, 2 MiB folios, vmemmap pages, index nodes and templates of the three target layouts.
#[test]
fn formulas_of_layouts() {
    for (runs, ..) in rows() {
        let m = |order| m(&runs, order);
        let of = |orders| FolioLayout::new(block(18), orders, runs.as_slice()).counts();
        let all = |counts: &LayoutCounts| {
            [
                counts.folios(),
                counts.folios_of(Order::PAGE),
                counts.folios_of(Order::HUGE_2M),
                LINUX.units(counts),
                XArray::LINUX.units(counts),
            ]
        };
        assert_eq!(all(&of(OrderSet::PAGES)), [1 << 18, 1 << 18, 0, 4096, 4161]);
        let large = m(9);
        let want = [512 + 511 * large, 512 * large, 512 - large, 512 + 7 * large, 65 + 8 * large];
        assert_eq!(all(&of(OrderSet::HUGETLB)), want);
        let [folios, single, huge, pages, nodes] = all(&of(OrderSet::ALL));
        assert_eq!(folios, 1 + (1..=18).map(m).sum::<u64>());
        assert_eq!(single, 2 * m(1));
        assert!(huge <= 511);
        assert_eq!(pages, 1 + (7..=18).map(m).sum::<u64>());
        assert_eq!(nodes, 1 + m(12) + m(6));
        // No layout costs more than a finer one.
        assert!(pages <= LINUX.units(&of(OrderSet::HUGETLB)));
        assert!(nodes <= XArray::LINUX.units(&of(OrderSet::HUGETLB)));
        for (orders, levels) in [(OrderSet::HUGETLB, &[18, 9, 0][..]), (OrderSet::ALL, &[18, 12, 7, 0])] {
            let levels = OrderSet::new(levels.iter().map(|&o| Order::new(o).unwrap())).unwrap();
            let steps: Vec<_> = levels.iter().rev().map(Order::raw).collect();
            let by_level: u64 = steps.windows(2).map(|l| ((1 << (l[0] - l[1])) - 1) * m(l[0].into())).sum();
            assert_eq!(of(levels).folios(), 1 + by_level, "{orders}");
        }
    }
    let extra = |orders| templates(LINUX, orders).count();
    // Order 18 has its template from the start; single pages need none.
    assert_eq!([OrderSet::PAGES, OrderSet::HUGETLB, OrderSet::ALL].map(extra), [0, 2, 34]);
    let buddies = OrderSet::ALL.clipped(Order::HUGE_1G);
    assert_eq!(templates(LINUX, buddies).count(), 12, "orders 7 to 18");
}

/// What more pages cost where some are small already: only blocks that were not touched before.
#[test]
fn one_more_page_costs_what_it_touches() {
    let sets = rows().map(|(runs, ..)| runs);
    for (i, from) in sets.iter().enumerate() {
        for more in sets.iter().skip(i) {
            let to = folio_split::Union(from.as_slice(), more.as_slice());
            let mut both = from.clone();
            both.extend(more.iter().cloned());
            let new = |order| m(&both, order) - m(from, order);
            let delta = |orders| {
                let t = Transition::new(block(18), orders, from.as_slice(), to);
                let (counts, index) = (t.counts(), t.delta(&XArray::LINUX));
                let pages = VmemmapNeeds::of(&t, &LINUX, BlockState::Optimized);
                assert_eq!((index.freed, pages.released), (0, 0));
                assert_eq!(
                    (index.net(), pages.net()),
                    (index.needed.cast_signed(), pages.fresh.cast_signed())
                );
                [counts.to().folios() - counts.from().folios(), pages.fresh, index.needed]
            };
            assert_eq!(delta(OrderSet::HUGETLB), [511 * new(9), 7 * new(9), 8 * new(9)]);
            let sum = |from: u32| (from..=18).map(new).sum::<u64>();
            assert_eq!(delta(OrderSet::ALL), [sum(1), sum(7), new(12) + new(6)]);
        }
    }
}

/// `struct page`s, pages and savings of 2 MiB and 1 GiB.
#[test]
fn sizes_of_the_optimization() {
    for (order, structs, pages, tables) in [(Order::HUGE_2M, 512, 8, 0), (Order::HUGE_1G, 1 << 18, 4096, 8)] {
        assert_eq!((order.pages(), LINUX.vmemmap_pages(order)), (structs, pages));
        assert_eq!((LINUX.kept(order), LINUX.tail_pages(order), LINUX.tables(order)), (1, pages - 1, tables));
        let counts = FolioLayout::new(block(order.raw()), OrderSet::ALL, Empty).counts();
        let saved = Savings::of(&LINUX, &counts, LINUX.tables(order));
        assert_eq!((saved.gross(), saved.net()), (pages - 1, pages - 1 - tables));
    }
    assert_eq!((LINUX.table_order().raw(), LINUX.smallest_order()), (15, Order::new(7)));
    // Device DAX keeps two pages: 6 of 8 are saved.
    assert_eq!(geometry(TailScheme::PerOrder, 2).tail_pages(Order::HUGE_2M), 6);
    for (size, saved) in [(64, Some(7)), (56, None), (80, None), (32, Some(3)), (128, Some(15))] {
        let geometry = Geometry::new(size, 4096, 1, TailScheme::PerOrder);
        assert_eq!(geometry.ok().map(|geometry| geometry.tail_pages(Order::HUGE_2M)), saved, "{size}");
    }
    // 16 KiB pages: 256 `struct page`s each, 2 MiB is order 7.
    let large = Geometry::new(64, 16384, 1, TailScheme::OrderFree).unwrap();
    assert_eq!(
        (large.structs().raw(), large.smallest_order(), large.table_order().raw()),
        (8, Order::new(9), 19)
    );
}

/// The peak of extra pages and what each path takes and gives back.
#[test]
fn paths_between_layouts() {
    let needs = |from: &dyn PageSet, to: &dyn PageSet, orders| {
        let t = Transition::new(block(18), orders, from, to);
        let needs = VmemmapNeeds::of(&t, &LINUX, BlockState::Optimized);
        (RestorePath::of(&LINUX, &t.counts()), (needs.fresh, needs.released))
    };
    let (l, b) = (OrderSet::HUGETLB, OrderSet::ALL);
    // 1 GiB to 512 folios of 2 MiB.
    let (linux, direct) = needs(&Empty, &Large(0..512), l);
    assert_eq!((linux.taken, linux.released), (4095 + 512, 4096));
    assert_eq!((linux.peak, linux.peak_flush_each, direct), (4607, 4096, (511, 0)));
    // Linux restores 4,095 pages; the direct way takes 3,584 less.
    assert_eq!(linux.taken - 512 - direct.0, 3584);
    assert_eq!(linux.net(), 511);
    // m blocks of 2 MiB stay single pages.
    for touched in [1, 2, 100, 511, 512] {
        let small = spread(512, touched);
        let (linux, direct) = needs(&Empty, &small.as_slice(), l);
        assert_eq!((linux.taken, linux.released), (4095 + (512 - touched), 8 * (512 - touched)));
        assert!(linux.peak <= 4607);
        assert_eq!(direct, (511 + 7 * touched, 0));
        assert_eq!(linux.net(), direct.0.cast_signed());
        let (_, back) = needs(&small.as_slice(), &Empty, l);
        assert_eq!(back, (0, 511 + 7 * touched));
    }
    for (runs, ..) in rows() {
        let (_, direct) = needs(&Empty, &runs.as_slice(), b);
        assert_eq!(direct, ((7..=18).map(|order| m(&runs, order)).sum(), 0));
    }
    // Back from single pages: Linux needs a page for the new head.
    let (linux, direct) = needs(&(0..1 << 18), &Empty, l);
    assert_eq!((linux.taken, linux.released, linux.peak, direct), (1, 4096, 1, (0, 4095)));
}

/// Entries that change without a page: (512 - m) * 7 with `{18,9,0}`, 4,083 with all orders, none without an order.
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
    // Only a head that becomes a tail is waited for.
    assert!(!of(OrderSet::HUGETLB, TailScheme::SharedWithHead).grace_period);
    let back = Transition::new(block(18), OrderSet::HUGETLB, 1000..1001, Empty);
    for (tails, waits) in [(TailScheme::PerOrder, false), (TailScheme::SharedWithHead, true)] {
        let needs = VmemmapNeeds::of(&back, &geometry(tails, 1), BlockState::Optimized);
        assert_eq!(needs.grace_period, waits);
    }
    assert_eq!(VmemmapNeeds::of(&back, &LINUX, BlockState::Plain), VmemmapNeeds::default());
}

/// Savings of several blocks at different layouts, one of them not optimized, are what the host's counters say.
#[test]
fn savings_add_up() {
    let blocks: Vec<_> = (8..12).map(|i| block(18).base().raw() / 5 * i).collect();
    let blocks: Vec<_> = blocks
        .into_iter()
        .map(|base| folio_split::PfnBlock::new(folio_split::Pfn::new(base).unwrap(), Order::HUGE_1G).unwrap())
        .collect();
    let host = Host::new(LINUX, OrderSet::ALL, &blocks[..3]);
    host.model.add_boot_block(blocks[3], &host.pool).unwrap();
    let small: Vec<_> = [vec![], vec![7..8], vec![5..6, 512..1024], vec![9..10]].into();
    let mut report = Vec::new();
    for (&block, small) in blocks.iter().zip(&small) {
        let t = Transition::new(block, OrderSet::ALL, Empty, small.as_slice());
        let needs = VmemmapNeeds::plan(&host.model, &t, &t.counts());
        assert_eq!(needs.fresh > 0, host.model.is_optimized(block) && !small.is_empty());
        host.carry_out_together(&t);
        report.push(Savings::now(&host.model, &t.to_layout()));
    }
    assert_eq!(report.iter().map(Savings::gross).collect::<Vec<_>>()[..2], [4095, 4083]);
    assert_eq!(report[3].gross(), 0);
    let total: Savings = report.iter().copied().sum();
    let counters = host.model.counters();
    assert_eq!((total.full, total.used), (4 * 4096, counters.vmemmap_pages));
    assert_eq!(total.tables, counters.tables);
    assert_eq!(total.gross(), report.iter().map(Savings::gross).sum::<u64>());
    // The first block gets its whole vmemmap back, and its page tables stay: nothing is saved, and they are to be paid for.
    let whole = FolioLayout::new(blocks[0], OrderSet::ALL, Empty);
    let needs = VmemmapNeeds::to_restore(&host.model, &whole);
    let mut store = VecStore::default();
    store.fill(&needs.frames(), blocks[0].base().hpa(), &host.pool).unwrap();
    restore(&host.model, &host.model, &whole, 1, &mut store).unwrap();
    let first = Savings::now(&host.model, &whole);
    assert_eq!((first.used, first.tables, first.gross(), first.net()), (4096, 8, 0, 0));
    let total: Savings = [first].into_iter().chain(report[1..].iter().copied()).sum();
    let counters = host.model.counters();
    assert_eq!((total.used, total.tables), (counters.vmemmap_pages, counters.tables));
    // A host without the optimization has neither.
    let plain = Savings::now(&NoVmemmap::new(), &whole);
    assert_eq!((plain.full, plain.used, plain.tables), (4096, 4096, 0));
    let refused = optimize(&NoFolios::new(), &NoVmemmap::new(), &whole, 1, &host.pool);
    let missing = ApplyError::NoTable { block: blocks[0], missing: 8 };
    assert_eq!(refused, Err(AtomError::Vmemmap(missing)));
}
