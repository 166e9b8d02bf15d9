//! Every operation, alone and there and back.

use crate::common::{
    ALL, COARSE, HUGETLB, PAGES, TWO,
    drive::{
        Trace, accept, accepted, begin, finish, populate, promote, promoted, request, run, share, step,
        steps, unshare,
    },
    host::{Host, Store, orders},
    world::{Page, World},
};
use gpa_conversion::{Bound, Operation, Outcome, Plan, Refusal, Step};
use sept_core::{FrameKind, FrameNeeds, GpaEntry, Level};

const GIB: u64 = 1 << 18;

fn host(block: u8, list: &[u8]) -> Host {
    Host::new(block, if block == 18 { 1 } else { 2 }, orders(list))
}

/// The sets with the block orders that they are tried on.
const SETS: &[(u8, &[u8])] =
    &[(18, HUGETLB), (18, ALL), (18, COARSE), (9, TWO), (9, ALL), (9, PAGES), (9, &[9, 6, 0])];

#[test]
fn there_and_back() {
    for &(block, list) in SETS {
        let host = host(block, list);
        let mut world = promoted(&host);
        let before = host.image();
        let page = 777.min(host.pages() - 1);
        let done = run(&host, &mut world, share(page..page + 1), 1);
        assert_eq!(done.outcome, Outcome::Converted);
        assert_eq!(world.at(page), Page::Shared);
        let back = run(&host, &mut world, unshare(page..page + 1, true), 1);
        assert_eq!(back.released.index_nodes, done.used.index_nodes);
        assert_eq!(back.released.frames[FrameKind::Vmemmap], done.used.frames[FrameKind::Vmemmap]);
        accept(&host, &mut world, page..page + 1);
        let (pass, _) = promote(&host, &world, 1);
        assert!(pass.releasable().covers(&pass.released()));
        assert_eq!(host.image(), before, "I4 for {list:?}");
        host.check_readers();
    }
}

#[test]
fn one_gib_leaf() {
    let host = host(18, HUGETLB);
    let mut world = promoted(&host);
    assert_eq!(host.leaves(), [0, 0, 1]);
    let done = run(&host, &mut world, share(1000..1001), u32::MAX);
    assert_eq!(host.leaves(), [511, 511, 0]);
    assert_eq!((done.trace.of("split"), done.trace.of("fence"), done.trace.of("window")), (2, 3, 2));
    assert_eq!((done.trace.of("remove"), done.trace.of("blocked")), (1, 1));
}

#[test]
fn populate_takes_the_largest_leaf_that_fits() {
    let host = host(9, TWO);
    let mut world = World::new(host.pages());
    let done = run(&host, &mut world, populate(0..600), u32::MAX);
    assert_eq!(host.leaves(), [88, 1, 0]);
    // Two levels above, and one table for the part of the second 2 MiB.
    let tables = FrameNeeds::of(FrameKind::TeeTable, 3).plus(FrameNeeds::of(FrameKind::MirrorTable, 3));
    assert_eq!(done.used.frames, tables);
    let small = request(900..901, Operation::Populate { largest: Level::L4K, around: true });
    let _ = run(&host, &mut world, small, 1);
    assert_eq!(host.leaves(), [89, 1, 0]);
}

#[test]
fn where_the_guest_accepts_small_pages_small_pages_are_mapped() {
    let host = host(9, TWO);
    let mut world = World::new(host.pages());
    let _ = run(&host, &mut world, request(0..1, Operation::Prepare), u32::MAX);
    let slot = GpaEntry::containing(Host::gpa(600), Level::L2M);
    host.table.inhibit(slot, true).unwrap();
    let done = run(&host, &mut world, populate(512..1024), u32::MAX);
    assert_eq!((host.leaves(), done.trace.of("link")), ([512, 0, 0], 1));
    accept(&host, &mut world, 512..1024);
    let _ = promote(&host, &world, u32::MAX);
    assert_eq!(host.leaves(), [512, 0, 0]);
    host.table.inhibit(slot, false).unwrap();
    let _ = promote(&host, &world, u32::MAX);
    assert_eq!(host.leaves(), [0, 1, 0]);
}

#[test]
fn populate_around_maps_beyond_its_range() {
    let host = host(9, TWO);
    let mut world = World::new(host.pages());
    let around = |at| request(at..at + 1, Operation::Populate { largest: Level::L2M, around: true });
    let _ = run(&host, &mut world, around(100), u32::MAX);
    assert_eq!(host.leaves(), [0, 1, 0]);
    let again = run(&host, &mut world, around(3), u32::MAX);
    assert!(again.planned.is_none());
    // A leaf that the guest has not accepted is split when a smaller one is asked for.
    let small = request(100..101, Operation::Populate { largest: Level::L4K, around: false });
    let done = run(&host, &mut world, small, 1);
    assert_eq!(done.trace.of("split"), 1);
    assert_eq!(host.leaves(), [512, 0, 0]);
}

#[test]
fn populate_leaves_shared_and_broken_pages_alone() {
    for merge in [false, true] {
        let host = host(9, TWO);
        let mut world = World::new(host.pages());
        let _ = run(&host, &mut world, share(5..9), 1);
        let _ = run(&host, &mut world, request(20..21, Operation::Isolate), 1);
        let _ = run(&host, &mut world, unshare(6..7, merge), 1);
        let _ = run(&host, &mut world, populate(0..host.pages()), 1);
        assert_eq!(world.at(5), Page::Shared);
        assert_eq!(world.at(20), Page::Poisoned);
    }
}

#[test]
fn prepare_hangs_tables_and_maps_nothing() {
    let host = host(9, TWO);
    let mut world = World::new(host.pages());
    let done = run(&host, &mut world, request(10..600, Operation::Prepare), 1);
    assert_eq!(done.trace.of("link"), 4);
    assert_eq!(host.leaves(), [0, 0, 0]);
    let again = run(&host, &mut world, request(10..600, Operation::Prepare), 1);
    assert!(again.planned.is_none());
    // The empty table that stands where a large leaf fits goes.
    let done = run(&host, &mut world, populate(0..512), 1);
    assert_eq!((done.trace.of("unlink"), done.releasable, done.used.is_none()), (1, done.released, true));
    assert_eq!(host.leaves(), [0, 1, 0]);
}

#[test]
fn punch_keeps_attribute_and_folios() {
    for &(block, list) in SETS {
        let host = host(block, list);
        let mut world = promoted(&host);
        let done = run(&host, &mut world, request(450..560, Operation::Punch), 1);
        assert_eq!(done.used.index_nodes, 0);
        assert_eq!(done.used.frames[FrameKind::Vmemmap], 0);
        let again = run(&host, &mut world, request(450..560, Operation::Punch), 1);
        assert!(again.used.is_none());
        let _ = run(&host, &mut world, populate(450..560), 1);
        accept(&host, &mut world, 450..560);
        let _ = promote(&host, &world, u32::MAX);
        assert!(world.is_all(0..host.pages(), Page::Accepted));
    }
}

#[test]
fn isolate_costs_one_page() {
    for &(block, list) in SETS {
        let host = host(block, list);
        let mut world = promoted(&host);
        let done = run(&host, &mut world, request(300..301, Operation::Isolate), 1);
        assert_eq!(done.trace.of("remove"), 1);
        let again = run(&host, &mut world, request(300..301, Operation::Isolate), 1);
        assert!(again.used.is_none());
        // Round about it life goes on; the page stays what it is.
        let _ = run(&host, &mut world, share(280..320), 1);
        let _ = run(&host, &mut world, unshare(280..320, true), 1);
        accept(&host, &mut world, 280..320);
        let _ = promote(&host, &world, u32::MAX);
        assert_eq!(world.at(300), Page::Poisoned);
        assert!(world.is_all(301..host.pages(), Page::Accepted));
    }
}

#[test]
fn isolation_is_of_one_page() {
    let host = host(9, TWO);
    let _ = accepted(&host);
    let before = host.image();
    assert!(Plan::new(&host, request(300..302, Operation::Isolate)).is_err());
    assert_eq!(host.image(), before);
}

#[test]
fn lazy_unshare_then_coalesce() {
    for &(block, list) in SETS {
        let host = host(block, list);
        let mut world = promoted(&host);
        let before = host.image();
        let taken = run(&host, &mut world, share(3..400), 7);
        let back = run(&host, &mut world, unshare(3..400, false), 7);
        assert_eq!(back.released.frames[FrameKind::Vmemmap], 0);
        let merged = run(&host, &mut world, request(0..host.pages(), Operation::Coalesce), 1);
        assert!(host.is_canonical());
        assert_eq!(merged.released, merged.releasable);
        assert_eq!(merged.released.index_nodes, taken.used.index_nodes);
        accept(&host, &mut world, 0..host.pages());
        let _ = promote(&host, &world, u32::MAX);
        assert_eq!(host.image(), before, "{list:?}");
    }
}

#[test]
fn nothing_to_do_costs_nothing() {
    let host = host(9, TWO);
    let mut world = promoted(&host);
    let _ = run(&host, &mut world, share(10..20), 1);
    let again = run(&host, &mut world, share(10..20), 1);
    assert!(again.planned.is_none() && again.released.is_none());
    let _ = run(&host, &mut world, unshare(10..20, true), 1);
    accept(&host, &mut world, 0..host.pages());
    let again = run(&host, &mut world, unshare(10..20, true), 1);
    assert!(again.planned.is_none() && again.trace.of("map") == 0);
    assert!(world.is_all(0..host.pages(), Page::Accepted));
}

#[test]
fn bound_does_not_change_the_end() {
    let requests = |pages: u64| {
        [
            share(450..1030.min(pages)),
            request(500..501, Operation::Isolate),
            unshare(470..700, true),
            request(440..520, Operation::Punch),
            populate(0..pages),
        ]
    };
    for &(block, list) in SETS {
        let bounds: &[u32] = if block == 9 { &[1, 7, u32::MAX] } else { &[9, u32::MAX] };
        let images: Vec<_> = bounds
            .iter()
            .copied()
            .map(|bound| {
                let host = host(block, list);
                let mut world = promoted(&host);
                for request in requests(host.pages()) {
                    let _ = run(&host, &mut world, request, bound);
                }
                accept(&host, &mut world, 0..host.pages());
                let _ = promote(&host, &world, bound);
                (host.image(), world)
            })
            .collect();
        assert!(images.windows(2).all(|pair| pair[0] == pair[1]), "{list:?}");
    }
}

#[test]
fn parked_between_any_two_steps() {
    let cut = |parked: u32| {
        let host = host(9, TWO);
        let mut world = promoted(&host);
        let mut commit = begin(&host, share(40..48));
        let mut trace = Trace::default();
        for _ in 0..parked {
            let _ = step(&host, &world, &mut commit, 1, &mut trace).unwrap();
        }
        // This block is taken; the other one is free.
        let held =
            Plan::new(&host, share(60..61)).unwrap().reserve(&host, &host.pool, Store::default()).unwrap();
        let refused = held.commit(&host).unwrap_err();
        assert_eq!(refused.error, Refusal::Contended);
        let _ = refused.held.release(&host, &host.pool);
        let other = share(512 + 7..512 + 9);
        let mut second = begin(&host, other);
        while second.step(&host, Bound::calls(1), &host.pool, &mut ()).unwrap() != Step::Ended {
            host.check_step(&world, Some(0..host.pages()));
        }
        let receipt = second.finish(&host).unwrap();
        assert_eq!(receipt.used, receipt.planned);
        let _ = receipt.rest.release(&host, &host.pool);
        world.apply(other);
        steps(&host, &world, &mut commit, 1, &mut trace);
        let steps = trace.steps;
        let _ = finish(&host, &mut world, commit, trace);
        assert!(world.is_all(519..521, Page::Shared) && world.is_all(40..48, Page::Shared));
        steps
    };
    let total = cut(0);
    for parked in 1..total {
        assert_eq!(cut(parked), total);
    }
}

#[test]
fn lazily_populated_memory_converts_for_nothing() {
    let host = host(18, HUGETLB);
    let mut world = World::new(GIB);
    let done = run(&host, &mut world, share(0..512), u32::MAX);
    assert_eq!(done.used.frames[FrameKind::TeeTable], 0);
    assert_eq!(done.used.frames[FrameKind::Vmemmap], 518);
    let done = run(&host, &mut world, unshare(0..512, true), u32::MAX);
    // One page for the free 512 GiB slot, one for the free 1 GiB slot; the 2 MiB are mapped at once.
    assert_eq!(done.used.frames[FrameKind::TeeTable], 2);
    assert_eq!(host.leaves(), [0, 1, 0]);
}

#[test]
fn a_range_is_cut_at_blocks() {
    let host = Host::new(9, 5, orders(TWO));
    let whole = share(100..2300);
    let (first, rest) = whole.cut(&host, 2);
    assert_eq!((Host::window(first.range), Host::window(rest.unwrap().range)), (100..1024, 1024..2300));
    let (second, rest) = rest.unwrap().cut(&host, 0);
    assert_eq!((Host::window(second.range), Host::window(rest.unwrap().range)), (1024..1536, 1536..2300));
    assert_eq!(rest.unwrap().cut(&host, 9), (rest.unwrap(), None));
    assert_eq!(share(0..2560).cut(&host, 5).1, None);
}
