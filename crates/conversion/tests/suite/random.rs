//! Random sequences of operations against the page by page reference, in every order set, eager and lazy.

use crate::common::{
    ALL, COARSE, HUGETLB, PAGES, TWO,
    drive::{Trace, accept, begin, finish, promote, request, run, step, steps},
    host::{Host, orders},
    world::{Page, World},
};
use gpa_conversion::{Operation, Outcome, Plan, PlanError, Request};
use proptest::prelude::*;
use sept_core::Level;

#[derive(Clone, Debug)]
enum Act {
    /// An operation, and how many steps to take before it is cancelled.
    Operate {
        kind: u8,
        start: u64,
        len: u64,
        bound: u32,
        cancel: Option<u32>,
    },
    Accept {
        start: u64,
        len: u64,
    },
    Promote {
        bound: u32,
    },
    Pin {
        page: u64,
    },
    Unpin,
}

fn acts() -> impl Strategy<Value = Act> {
    let len = prop_oneof![3 => 1_u64..6, 3 => 1_u64..600, 1 => 1_u64..3000];
    let bound = prop_oneof![Just(1_u32), Just(3), Just(64), Just(u32::MAX)];
    let cancel = prop_oneof![4 => Just(None), 1 => (0_u32..12).prop_map(Some)];
    prop_oneof![
        8 => (0_u8..9, any::<u64>(), len.clone(), bound.clone(), cancel)
            .prop_map(|(kind, start, len, bound, cancel)| Act::Operate { kind, start, len, bound, cancel }),
        3 => (any::<u64>(), len).prop_map(|(start, len)| Act::Accept { start, len }),
        1 => bound.prop_map(|bound| Act::Promote { bound }),
        1 => any::<u64>().prop_map(|page| Act::Pin { page }),
        1 => Just(Act::Unpin),
    ]
}

/// A request of some kind near `start`, aligned now and then.
fn wanted(host: &Host, kind: u8, start: u64, len: u64, lazy: bool) -> Request {
    let start = start % host.pages();
    let start = if len > 400 { start & !511 } else { start };
    let end = (start + len).min(host.pages());
    let operation = match kind {
        0 | 1 => Operation::Share,
        2 | 3 => Operation::Unshare { merge: !lazy },
        4 => Operation::Populate { largest: Level::L2M, around: false },
        5 => Operation::Populate {
            largest: if len.is_multiple_of(2) { Level::L2M } else { Level::L4K },
            around: true,
        },
        6 => Operation::Punch,
        7 => Operation::Coalesce,
        _ => Operation::Isolate,
    };
    // A broken page is rare.
    let range = if operation == Operation::Isolate { start..start + 1 } else { start..end };
    request(range, operation)
}

fn operate(host: &Host, world: &mut World, wanted: Request, bound: u32, cancel: Option<u32>) {
    let pinned = host.state().pins.keys().copied().find(|page| Host::window(wanted.range).contains(page));
    if let (Operation::Unshare { .. }, Some(page)) = (wanted.operation, pinned) {
        let before = host.image();
        assert_eq!(Plan::new(host, wanted), Err(PlanError::Pinned { first: Host::gpa(page) }));
        assert_eq!(host.image(), before);
        return;
    }
    if host.state().pins.is_empty() && cancel.is_none() {
        let _ = run(host, world, wanted, bound);
        return;
    }
    let mut commit = begin(host, wanted);
    let mut trace = Trace::default();
    for _ in 0..cancel.unwrap_or(100_000) {
        match step(host, world, &mut commit, bound, &mut trace) {
            Ok(gpa_conversion::Step::Ended) => break,
            Ok(_) => {}
            Err(error) => {
                assert!(matches!(error, gpa_conversion::CommitError::Pinned { .. }), "{error}");
                break;
            }
        }
    }
    let _ = commit.cancel();
    steps(host, world, &mut commit, bound, &mut trace);
    let done = finish(host, world, commit, trace);
    if let Outcome::Stopped { .. } = done.outcome {
        if let Operation::Unshare { .. } = wanted.operation {
            let private = |page| if page == Page::Shared { Page::Unmapped } else { page };
            world.update(Host::window(wanted.range), private);
        }
        crate::common::drive::learn(host, world, 0..host.pages());
    }
    host.check(world);
}

fn sequence(host: &Host, acts: Vec<Act>, lazy: bool) {
    let mut world = World::new(host.pages());
    for act in acts {
        match act {
            Act::Operate { kind, start, len, bound, cancel } => {
                operate(host, &mut world, wanted(host, kind, start, len, lazy), bound, cancel);
            }
            Act::Accept { start, len } => {
                let start = start % host.pages();
                accept(host, &mut world, start..(start + len).min(host.pages()));
            }
            Act::Promote { bound } => drop(promote(host, &world, bound)),
            Act::Pin { page } => {
                let page = host.state().shared.next(page % host.pages()).map(|run| run.start);
                page.into_iter().for_each(|page| host.pin(page));
            }
            Act::Unpin => {
                let pins: Vec<(u64, u32)> = host.state().pins.clone().into_iter().collect();
                for (page, count) in pins {
                    (0..count).for_each(|_| host.unpin(page));
                }
            }
        }
    }
    restore(host, &mut world);
}

/// I4: everything private again, accepted and promoted, all is as it was; but for broken pages.
fn restore(host: &Host, world: &mut World) {
    let pins: Vec<(u64, u32)> = host.state().pins.clone().into_iter().collect();
    for (page, count) in pins {
        (0..count).for_each(|_| host.unpin(page));
    }
    let all = 0..host.pages();
    let _ = run(host, world, request(all.clone(), Operation::Unshare { merge: true }), u32::MAX);
    accept(host, world, all.clone());
    let _ = promote(host, world, u32::MAX);
    assert!(host.is_canonical());
    let broken: Vec<u64> = all.clone().filter(|&page| world.at(page) == Page::Poisoned).collect();
    assert!(world.is_all(all.clone(), Page::Accepted) || !broken.is_empty());
    if broken.is_empty() {
        let blocks = usize::try_from(host.blocks).unwrap();
        let huge = host.block_order.raw() == 18;
        let kept = host.orders.largest_within(host.block_order).raw();
        match (huge, kept) {
            (true, _) => assert_eq!(host.leaves(), [0, 0, blocks]),
            (_, 9) => assert_eq!(host.leaves(), [0, blocks, 0]),
            _ => assert_eq!(host.leaves(), [512 * blocks, 0, 0]),
        }
        assert_eq!(host.mm.counters().index_nodes, 0);
    }
    if !huge_host(host) {
        host.check_readers();
    }
}

fn huge_host(host: &Host) -> bool {
    host.block_order.raw() == 18
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn small_blocks(set in 0_usize..4, lazy: bool, metadata: bool, acts in prop::collection::vec(acts(), 1..16)) {
        let list = [TWO, ALL, PAGES, &[9, 6, 0]][set];
        let host = if metadata { Host::with_metadata(9, 2, orders(list)) } else { Host::new(9, 2, orders(list)) };
        sequence(&host, acts, lazy);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn large_blocks(set in 0_usize..3, blocks in 1_u64..3, lazy: bool, acts in prop::collection::vec(acts(), 1..12)) {
        let list = [HUGETLB, ALL, COARSE][set];
        // Bounds of 1 over many pages say nothing new here and take long.
        let acts = acts.into_iter().map(|act| match act {
            Act::Operate { kind, start, len, cancel, .. } => {
                Act::Operate { kind, start, len, bound: 500, cancel }
            }
            Act::Promote { .. } => Act::Promote { bound: u32::MAX },
            other => other,
        });
        sequence(&Host::new(18, blocks, orders(list)), acts.collect(), lazy);
    }
}
