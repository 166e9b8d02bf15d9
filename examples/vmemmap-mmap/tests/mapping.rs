//! Real pages, one thread: what is planned is used, what is read back is the layout, tails cannot be written.
#![allow(
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "a test that finds nothing has failed"
)]

mod common;

use common::{block, carry_out, host};
use folio_split::{Empty, FolioBackend, FolioLayout, Order, OrderSet, Pfn, Transition};
use sept_core::{FrameKind, FrameNeeds, test_util::VecStore};
use std::{os::unix::process::ExitStatusExt, process::Command};
use vmemmap_mmap::{MmapHost, SetupError, State};
use vmemmap_prealloc::{
    AtomError, VmemmapBackend, VmemmapNeeds, apply_merge, apply_split, optimize, pages_to_restore, reserve,
    restore, split_atom,
};

#[test]
fn one_gigabyte_there_and_back() {
    for orders in [OrderSet::HUGETLB, OrderSet::ALL] {
        let host = host(18, 1, orders);
        let start = host.outstanding();
        assert_eq!(start[FrameKind::Vmemmap], 1);
        let one = [1000..1001];
        let two = [1000..1001, 200_000..200_700];
        let first = Transition::new(block(18, 0), orders, Empty, one.as_slice());
        let more = Transition::new(block(18, 0), orders, one.as_slice(), two.as_slice());
        let fresh = carry_out(&host, &first, || ()).vmemmap.fresh;
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
    let host = host(13, 1, OrderSet::ALL);
    let start = host.outstanding();
    let t = Transition::new(block(13, 0), OrderSet::ALL, Empty, 4000..4001);
    let need = VmemmapNeeds::plan(&host, &t, &t.counts()).frames();
    for have in 0..need[FrameKind::Vmemmap] {
        host.limit(Some(u64::from(have)));
        let mut store = VecStore::default();
        assert!(reserve(&need, t.block().base().hpa(), &host, &mut store).is_err());
        assert_eq!(host.outstanding(), start);
        reserve(&FrameNeeds::of(FrameKind::Vmemmap, have), t.block().base().hpa(), &host, &mut store)
            .unwrap();
        let before = host.map_calls();
        let short = split_atom(&host, &host, &t, t.block(), 1, &mut (), &mut store);
        assert!(matches!(short, Err(AtomError::Vmemmap(_))));
        assert_eq!(host.map_calls(), before);
        vmemmap_prealloc::give_back(&need, &host, &mut store);
        host.check(&t.from_layout()).unwrap();
    }
    host.limit(None);
    assert_eq!(host.outstanding(), start);
}

/// Several blocks, all frozen, one flush.
#[test]
fn a_batch_needs_one_flush() {
    const BLOCKS: u64 = 5;
    let host = host(12, BLOCKS, OrderSet::ALL);
    let small: Vec<_> = (0..BLOCKS).map(|number| number * 700..number * 700 + 3).collect();
    let ts: Vec<_> = (0..BLOCKS)
        .zip(&small)
        .map(|(number, small)| Transition::new(block(12, number), OrderSet::ALL, Empty, small.clone()))
        .collect();
    let mut store = VecStore::default();
    for t in &ts {
        let needs = VmemmapNeeds::plan(&host, t, &t.counts());
        reserve(&needs.frames(), t.block().base().hpa(), &host, &mut store).unwrap();
    }
    let mut frozen: Vec<_> = ts.iter().map(|t| host.freeze(t.block(), 1).unwrap()).collect();
    for t in &ts {
        let _ = apply_split(&host, t, t.block(), &mut store).unwrap();
    }
    let _ = host.flush();
    for (t, frozen) in ts.iter().zip(&mut frozen) {
        folio_split::commit_split(&host, t, t.block(), frozen, &mut ()).unwrap();
    }
    frozen.into_iter().for_each(|frozen| host.thaw(frozen));
    ts.iter().for_each(|t| host.check(&t.to_layout()).unwrap());

    let mut frozen: Vec<_> = ts.iter().map(|t| host.freeze(t.block(), 1).unwrap()).collect();
    let mut replaced = 0;
    for (t, frozen) in ts.iter().zip(&mut frozen) {
        folio_split::commit_merge(&host, &t.reversed(), t.block(), frozen).unwrap();
        replaced += apply_merge(&host, &t.reversed(), t.block()).unwrap().replaced;
    }
    let flushed = host.flush();
    frozen.into_iter().for_each(|frozen| host.thaw(frozen));
    let released: u64 = ts.iter().map(|t| host.release(t.block(), &flushed, &host)).sum();
    assert_eq!(released, replaced);
    ts.iter().for_each(|t| host.check(&t.from_layout()).unwrap());
    assert_eq!(u64::from(host.outstanding()[FrameKind::Vmemmap]), BLOCKS);
}

/// All pages back, as before the optimization; and optimized again.
#[test]
fn a_block_gets_its_whole_vmemmap_back() {
    for small in [0..0, 77..90] {
        let host = host(12, 1, OrderSet::ALL);
        let t = Transition::new(block(12, 0), OrderSet::ALL, Empty, small);
        carry_out(&host, &t, || ());
        let layout = t.to_layout();
        let need = pages_to_restore(&host, &layout);
        let mut store = VecStore::default();
        let needs = FrameNeeds::of(FrameKind::Vmemmap, u32::try_from(need).unwrap());
        assert!(restore(&host, &layout, &mut store).is_err());
        reserve(&needs, t.block().base().hpa(), &host, &mut store).unwrap();
        let frozen = host.freeze(t.block(), 1).unwrap();
        assert_eq!(restore(&host, &layout, &mut store).unwrap().fresh, need);
        let _ = host.flush();
        host.thaw(frozen);
        assert!(!host.is_optimized(t.block()));
        assert_eq!(host.outstanding()[FrameKind::Vmemmap], 64);
        host.check(&layout).unwrap();
        let frozen = host.freeze(t.block(), 1).unwrap();
        assert_eq!(optimize(&host, &layout).unwrap().replaced, need);
        let flushed = host.flush();
        host.thaw(frozen);
        assert_eq!(host.release(t.block(), &flushed, &host), need);
        host.check(&layout).unwrap();
    }
}

/// The test runs itself: the child stores to a tail, and the MMU stops it.
#[test]
fn a_stray_store_to_a_tail_faults() {
    const NAME: &str = "VMEMMAP_SCRIBBLE";
    let at = |page: u64| Pfn::new(block(9, 0).base().raw() + page).unwrap();
    if let Ok(page) = std::env::var(NAME) {
        host(9, 1, OrderSet::HUGETLB).scribble(at(page.parse().unwrap()));
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
fn too_many_mappings_are_refused_in_words() {
    // 1 TiB takes 2^22 mappings, and an order of magnitude more than any system allows.
    match MmapHost::new(block(18, 0), 1 << 22, 0) {
        Err(error @ SetupError::Maps { needed, limit, .. }) => {
            assert!(needed > limit);
            assert!(error.to_string().contains("vm.max_map_count"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(MmapHost::new(block(3, 0), 1, 0), Err(SetupError::TooSmall { order: 3 })));
}

#[test]
fn the_check_sees_a_wrong_template() {
    let host = host(9, 1, OrderSet::ALL);
    let layout = FolioLayout::new(block(9, 0), OrderSet::ALL, Empty);
    let tail = vmemmap_prealloc::Tail::Template(Order::new(8).unwrap());
    host.map_tail(vmemmap_prealloc::VmemmapPage { block: block(9, 0), index: 3 }, tail);
    assert!(host.check(&layout).is_err());
    let state = host.state(Pfn::new(block(9, 0).base().raw() + 200).unwrap());
    assert_eq!(state, Some(State::Tail(8)));
}
