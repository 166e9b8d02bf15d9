//! Exact needs, against closed forms and brute force.

use crate::common::{
    ALL, COARSE, HUGETLB, TWO,
    drive::{Done, accept, promote, promoted, request, run, share, unshare},
    forms::{m, relayout, sigma},
    host::{Host, orders},
    world::Page,
};
use gpa_conversion::{Operation, Plan};
use proptest::prelude::*;
use sept_core::FrameKind;

const GIB: u64 = 1 << 18;

fn four(done: &Done) -> [u64; 4] {
    let frames = &done.used.frames;
    let count = |kind: FrameKind| u64::from(frames[kind]);
    [
        count(FrameKind::Vmemmap),
        done.used.index_nodes,
        count(FrameKind::TeeTable),
        count(FrameKind::MirrorTable),
    ]
}

#[test]
fn one_page_in_a_fresh_gib() {
    for (list, want) in [(HUGETLB, [518, 73, 2, 2]), (ALL, [12, 3, 2, 2])] {
        let host = Host::new(18, 1, orders(list));
        let mut world = promoted(&host);
        let done = run(&host, &mut world, share(1000..1001), u32::MAX);
        assert_eq!(four(&done), want, "{list:?}");
    }
}

#[test]
fn one_page_in_a_fresh_2m() {
    for (list, want) in [(TWO, [7, 8, 1, 1]), (ALL, [3, 1, 1, 1])] {
        let host = Host::new(9, 2, orders(list));
        let mut world = promoted(&host);
        let done = run(&host, &mut world, share(100..101), u32::MAX);
        assert_eq!(four(&done), want, "{list:?}");
    }
}

#[test]
fn metadata_pairs_come_with_tables_of_4k() {
    let host = Host::with_metadata(18, 1, orders(HUGETLB));
    let mut world = promoted(&host);
    let start = host.image();
    let done = run(&host, &mut world, share(1000..2000), u32::MAX);
    assert_eq!(done.used.frames[FrameKind::TeeMetadata], 2 * 2);
    let _ = run(&host, &mut world, unshare(1000..2000, true), u32::MAX);
    accept(&host, &mut world, 0..GIB);
    let (pass, _) = promote(&host, &world, u32::MAX);
    assert!(pass.released().frames[FrameKind::TeeMetadata] >= 4);
    assert_eq!(host.image(), start);
}

/// X4: ranges whose ends lie on, before and after the edges of 2 MiB and 1 GiB.
#[test]
fn ranges_around_every_edge() {
    let near = |edge: u64| [edge.saturating_sub(1), edge, edge + 1, edge + 511];
    let edges: Vec<u64> = [0, 512, 1024, GIB / 2, GIB - 512, GIB - 1].into_iter().flat_map(near).collect();
    let host = Host::new(18, 2, orders(HUGETLB));
    let _ = promoted(&host);
    for &start in &edges {
        for &end in edges.iter().chain(&[GIB, GIB + 1, GIB + 512, GIB + 700, 2 * GIB]) {
            if start < end && start < host.pages() {
                let plan = Plan::new(&host, share(start..end)).unwrap();
                let want = sigma(&(start..end), GIB) + sigma(&(start..end), 512);
                assert_eq!(
                    plan.needs().frames[FrameKind::TeeTable],
                    u32::try_from(want).unwrap(),
                    "{start}..{end}"
                );
                assert_eq!(plan.needs().frames[FrameKind::MirrorTable], u32::try_from(want).unwrap());
            }
        }
    }
}

/// X9: more and more of a block is shared; each time what is new is paid for.
#[test]
fn increments_equal_the_formulas() {
    for list in [HUGETLB, ALL, COARSE] {
        let host = Host::new(18, 1, orders(list));
        let mut world = promoted(&host);
        let mut set = Vec::new();
        let mut seed = 7_u64;
        for _ in 0..12 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let start = (seed >> 33) % (GIB - 600);
            let run_of = start..start + 1 + (seed >> 20) % 600;
            let before = set.clone();
            set.push(run_of.clone());
            let done = run(&host, &mut world, share(run_of), u32::MAX);
            let (pages, nodes) = relayout(18, list, &before, &set);
            assert_eq!((four(&done)[0], four(&done)[1]), (pages, nodes), "{list:?}");
        }
        if list == HUGETLB {
            let m9 = m(&set, 9);
            assert_eq!(host.mm.counters().index_nodes, 65 + 8 * m9);
            assert_eq!(host.mm.counters().vmemmap_pages, 512 + 7 * m9);
        }
        if list == ALL {
            let above: u64 = (7..=18).map(|order| m(&set, order)).sum();
            assert_eq!(host.mm.counters().vmemmap_pages, 1 + above);
            assert_eq!(host.mm.counters().index_nodes, m(&set, 18) + m(&set, 12) + m(&set, 6));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Shares of one range over 1 GiB leaves, over 2 MiB leaves and over 4 KiB leaves.
    #[test]
    fn any_range(start in 0..GIB - 1, len in prop_oneof![1_u64..4, 500_u64..1100, 1_u64..GIB], kind in 0_usize..3) {
        let list = [HUGETLB, ALL, COARSE][kind];
        let range = start..(start + len).min(GIB);
        let host = Host::new(18, 1, orders(list));
        let _ = promoted(&host);
        let needs = Plan::new(&host, share(range.clone())).unwrap().needs();
        let (pages, nodes) = relayout(18, list, &[], core::slice::from_ref(&range));
        prop_assert_eq!(u64::from(needs.frames[FrameKind::Vmemmap]), pages);
        prop_assert_eq!(needs.index_nodes, nodes);
        // Every 2 MiB of a folio that falls to smaller ones than 2 MiB has a table, unless all of it goes.
        let unit = if list == COARSE { 1 << 12 } else { 512 };
        let touched: u64 = (range.start / unit * unit..range.end.div_ceil(unit) * unit)
            .step_by(512)
            .filter(|&at| at < range.start || at + 512 > range.end)
            .count() as u64;
        let want = if range == (0..GIB) { 0 } else { 1 + touched };
        prop_assert_eq!(u64::from(needs.frames[FrameKind::TeeTable]), want);
        if unit == 512 {
            prop_assert_eq!(want, sigma(&range, GIB) + sigma(&range, 512));
        }
    }
}

/// Leaves of all three sizes in one guest.
#[test]
fn mixed_leaves() {
    let host = Host::new(18, 2, orders(HUGETLB));
    let mut world = promoted(&host);
    let _ = run(&host, &mut world, share(GIB + 100..GIB + 101), u32::MAX);
    // The first block is one leaf of 1 GiB; the second has 2 MiB leaves and a table of 4 KiB ones.
    let plan = |range| Plan::new(&host, share(range)).unwrap().needs().frames[FrameKind::TeeTable];
    assert_eq!(plan(GIB - 1..GIB + 1), 2);
    assert_eq!(plan(GIB + 5..GIB + 50), 0);
    assert_eq!(plan(GIB + 50..GIB + 1000), 1);
    assert_eq!(plan(GIB..2 * GIB), 0);
    assert_eq!(plan(GIB + 512..GIB + 1024), 0);
    let done = run(&host, &mut world, request(GIB - 1..GIB + 600, Operation::Punch), u32::MAX);
    assert_eq!(four(&done), [0, 0, 3, 3]);
    assert!(world.is_all(GIB - 1..GIB + 100, Page::Unmapped));
}
