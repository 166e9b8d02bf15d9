//! Real pages, one thread: what is planned is used, what is read back is the layout, tails cannot be written.
#![allow(
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "a test that finds nothing has failed"
)]

mod common;

use common::{Held, SCHEMES, block, carry_out, commit, host, reserve};
use folio_split::{Empty, FolioLayout, Order, OrderSet, Pfn, Transition};
use sept_core::{FrameKind, test_util::VecStore};
use std::{os::unix::process::ExitStatusExt, process::Command};
use vmemmap_mmap::{MmapHost, SetupError, State};
use vmemmap_prealloc::{
    ApplyError, Atom, AtomError, Commit, TailScheme, VmemmapBackend, VmemmapNeeds, VmemmapPage, optimize,
    restore,
};

#[test]
fn one_gigabyte_there_and_back() {
    for (orders, tails) in [
        (OrderSet::HUGETLB, TailScheme::PerOrder),
        (OrderSet::ALL, TailScheme::PerOrder),
        (OrderSet::ALL, TailScheme::SharedWithHead),
    ] {
        let host = host(18, 1, orders, tails);
        let start = host.outstanding();
        assert_eq!(start[FrameKind::Vmemmap], 1);
        let one = [1000..1001];
        let two = [1000..1001, 200_000..200_700];
        let first = Transition::new(block(18, 0), orders, Empty, one.as_slice());
        let more = Transition::new(block(18, 0), orders, one.as_slice(), two.as_slice());
        let fresh = carry_out(&host, &first, || ()).fresh;
        assert_eq!(fresh, if orders == OrderSet::ALL { 12 } else { 518 });
        host.check(&first.to_layout()).unwrap();
        carry_out(&host, &more, || ());
        host.check(&more.to_layout()).unwrap();
        carry_out(&host, &Transition::new(block(18, 0), orders, two.as_slice(), Empty), || ());
        host.check(&first.from_layout()).unwrap();
        assert_eq!(host.outstanding(), start);
    }
}

#[test]
fn every_missing_page_changes_nothing() {
    let host = host(13, 1, OrderSet::ALL, TailScheme::PerOrder);
    let start = host.outstanding();
    let t = Transition::new(block(13, 0), OrderSet::ALL, Empty, 4000..4001);
    let needs = VmemmapNeeds::plan(&host, &t, &t.counts());
    let need = needs.fresh;
    for have in 0..need {
        host.limit(Some(have));
        let mut held = Held::new(t.block(), needs.node, VecStore::default());
        assert!(held.fill(&host, &needs, 0, &host).is_err());
        assert_eq!(host.outstanding(), start);
        let mut less = needs;
        less.fresh = have;
        held.fill(&host, &less, 0, &host).unwrap();
        let before = host.map_calls();
        let mut atoms = [Atom::split(t.by_ref(), t.block())];
        let refused = Commit::freeze(&host, &host, &mut atoms, held.lend(), 1).unwrap_err();
        let short = ApplyError::Short { whole: t.block(), need, have };
        assert_eq!(refused.error, AtomError::Vmemmap(short));
        assert_eq!(host.map_calls(), before);
        let _ = held.release(&host, &host);
        host.check(&t.from_layout()).unwrap();
    }
    host.limit(None);
    assert_eq!(host.outstanding(), start);
}

/// Several blocks, all frozen, one flush: cancelled, and carried out, there and back.
#[test]
fn a_batch_needs_one_flush() {
    const BLOCKS: u64 = 5;
    for tails in SCHEMES {
        let host = host(12, BLOCKS, OrderSet::ALL, tails);
        let small: Vec<_> = (0..BLOCKS).map(|number| number * 700..number * 700 + 3).collect();
        let ts: Vec<_> = (0..BLOCKS)
            .zip(&small)
            .map(|(number, small)| Transition::new(block(12, number), OrderSet::ALL, Empty, small.clone()))
            .collect();
        let plans = ts.iter().map(|t| VmemmapNeeds::plan(&host, t, &t.counts()));
        let needs = plans.reduce(|sum, one| sum.plus(one).unwrap()).unwrap();
        let mut held = Held::new(block(12, 0), needs.node, VecStore::default());
        held.fill(&host, &needs, 0, &host).unwrap();
        host.limit(Some(0));
        let mut atoms: Vec<_> = ts.iter().map(|t| Atom::split(t.by_ref(), t.block())).collect();
        let remapped = Commit::freeze(&host, &host, &mut atoms, held.lend(), 1).unwrap().remap().unwrap();
        let thawed = remapped.cancel();
        let waits = thawed.waits() as u64;
        assert_eq!(waits, if tails == TailScheme::SharedWithHead { BLOCKS } else { 0 });
        let mut released = thawed.keep(&host).released;
        if waits > 0 {
            let commit = Commit::freeze(&host, &host, &mut atoms, held.lend(), 1).unwrap();
            let ended = commit.cancel().keep(&host);
            assert_eq!(ended.flushes, 1);
            released += ended.released;
        }
        assert_eq!(released, needs.fresh);
        ts.iter().for_each(|t| host.check(&t.from_layout()).unwrap());
        let done = commit(&host, &mut atoms, &mut held, &mut || ());
        assert_eq!((done.flushes, done.vmemmap.fresh), (1, needs.fresh));
        assert!(held.is_empty(&host));
        ts.iter().for_each(|t| host.check(&t.to_layout()).unwrap());

        let back: Vec<_> = ts.iter().map(Transition::reversed).collect();
        let mut atoms: Vec<_> = back.iter().map(|t| Atom::merge(t.by_ref(), t.block())).collect();
        let remapped = Commit::freeze(&host, &host, &mut atoms, held.lend(), 1).unwrap().remap().unwrap();
        let _ = remapped.cancel().release(&host);
        ts.iter().for_each(|t| host.check(&t.to_layout()).unwrap());
        let done = commit(&host, &mut atoms, &mut held, &mut || ());
        assert_eq!((done.flushes, done.released), (1, needs.fresh));
        ts.iter().for_each(|t| host.check(&t.from_layout()).unwrap());
        host.limit(None);
        let _ = held.release(&host, &host);
        assert_eq!(u64::from(host.outstanding()[FrameKind::Vmemmap]), BLOCKS);
    }
}

/// All pages back, as before the optimization; and optimized again.
#[test]
fn a_block_gets_its_whole_vmemmap_back() {
    for (small, tails) in [(0..0, SCHEMES[0]), (77..90, SCHEMES[0]), (77..90, SCHEMES[1])] {
        let host = host(12, 1, OrderSet::ALL, tails);
        let t = Transition::new(block(12, 0), OrderSet::ALL, Empty, small);
        carry_out(&host, &t, || ());
        let layout = t.to_layout();
        let needs = VmemmapNeeds::to_restore(&host, &layout);
        let mut held = Held::new(t.block(), needs.node, VecStore::default());
        assert!(restore(&host, &host, &layout, 1, held.lend().pages).is_err());
        held.fill(&host, &needs, 0, &host).unwrap();
        let need = needs.fresh;
        assert_eq!(restore(&host, &host, &layout, 1, held.lend().pages).unwrap().vmemmap.fresh, need);
        assert!(held.is_empty(&host));
        assert!(!host.is_optimized(t.block()));
        assert_eq!(host.outstanding()[FrameKind::Vmemmap], 64);
        host.check(&layout).unwrap();
        assert_eq!(optimize(&host, &host, &layout, 1, &host).unwrap().released, need);
        host.check(&layout).unwrap();
    }
}

/// The test runs itself: the child stores to a tail, and the MMU stops it.
#[test]
fn a_stray_store_to_a_tail_faults() {
    const NAME: &str = "VMEMMAP_SCRIBBLE";
    let at = |page: u64| Pfn::new(block(9, 0).base().raw() + page).unwrap();
    if let Ok(page) = std::env::var(NAME) {
        host(9, 1, OrderSet::HUGETLB, TailScheme::PerOrder).scribble(at(page.parse().unwrap()));
        std::process::exit(42);
    }
    let run = |page: u64| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_stray_store_to_a_tail_faults"])
            .env(NAME, page.to_string())
            .output()
            .unwrap()
            .status
    };
    // The first page of the vmemmap is the folio's own, all others are tails.
    assert_eq!(run(5).code(), Some(42));
    for page in [64, 511] {
        assert_eq!(run(page).signal(), Some(11), "SIGSEGV");
    }
}

#[test]
fn what_is_not_possible_is_refused_in_words() {
    // 2^34 mappings are more than any system allows.
    match MmapHost::new(block(18, 0), 1 << 22, 0, TailScheme::PerOrder) {
        Err(error @ SetupError::Maps { needed, limit, .. }) => {
            assert!(needed > limit);
            assert!(error.to_string().contains("vm.max_map_count"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    // What a first host may take is not given to a second one, though the kernel has joined it to a few mappings.
    let limit = |error| match error {
        Err(SetupError::Maps { in_use, limit, .. }) => (in_use, limit),
        other => panic!("{other:?}"),
    };
    let ask = |blocks| MmapHost::new(block(6, 0), blocks, 0, TailScheme::PerOrder);
    let first = MmapHost::new(block(18, 0), 1, 0, TailScheme::PerOrder).unwrap();
    let (in_use, most) = limit(ask(1 << 40));
    assert!(in_use > 4096);
    assert_eq!(limit(ask(most - 4096)).1, most);
    drop(first);
    let small = MmapHost::new(block(3, 0), 1, 0, TailScheme::PerOrder);
    assert!(matches!(small, Err(SetupError::TooSmall { order: 3 })));
    let tails = MmapHost::new(block(9, 0), 1, 0, TailScheme::OrderFree);
    assert!(matches!(tails, Err(SetupError::Tails { tails: TailScheme::OrderFree })));
}

#[test]
fn the_check_sees_a_wrong_template() {
    let host = host(9, 1, OrderSet::ALL, TailScheme::PerOrder);
    let layout = FolioLayout::new(block(9, 0), OrderSet::ALL, Empty);
    let tail = vmemmap_prealloc::Tail::Template(Order::new(8).unwrap());
    host.map_tail(VmemmapPage { block: block(9, 0), index: 3 }, tail);
    assert!(host.check(&layout).is_err());
    let state = host.state(Pfn::new(block(9, 0).base().raw() + 200).unwrap());
    assert_eq!(state, Some(State::Tail(8)));
}

/// What is left of a merge whose second round never came goes away with the next split, wherever that is.
#[test]
fn a_merge_left_half_done() {
    for at in [700, 3000] {
        let host = host(12, 1, OrderSet::ALL, TailScheme::SharedWithHead);
        let share = Transition::new(block(12, 0), OrderSet::ALL, Empty, 700..703);
        carry_out(&host, &share, || ());
        let back = share.reversed();
        let mut held = reserve(&host, &back).1;
        let mut atoms = [Atom::merge(back.by_ref(), block(12, 0))];
        let commit = Commit::freeze(&host, &host, &mut atoms, held.lend(), 1).unwrap();
        let thawed = commit.remap().unwrap().finish();
        assert_eq!(thawed.waits(), 1);
        let _ = thawed.release(&host);
        let own = |host: &MmapHost| host.outstanding()[FrameKind::Vmemmap];
        assert_eq!(own(&host), 7);
        let again = Transition::new(block(12, 0), OrderSet::ALL, Empty, at..at + 3);
        let (needs, mut held) = reserve(&host, &again);
        let mut atoms = [Atom::split(again.by_ref(), block(12, 0))];
        let commit = Commit::freeze(&host, &host, &mut atoms, held.lend(), 1).unwrap();
        // The six pages of the merge come back, the reservation is used up.
        assert_eq!(commit.remap().unwrap().finish().release(&host).released, 6);
        assert_eq!(u64::from(own(&host)), 1 + needs.fresh);
        let _ = held.release(&host, &host);
        host.check(&again.to_layout()).unwrap();
        carry_out(&host, &again.reversed(), || ());
        host.check(&again.from_layout()).unwrap();
        assert_eq!(own(&host), 1);
    }
}
