//! X1 and X6: everything that can fail does, at each place.

use crate::common::{
    COARSE, TWO,
    drive::{
        Done, Trace, accept, begin, finish, insist, populate, promote, promoted, request, run, share, steps,
        unshare,
    },
    host::{Host, orders},
    world::{Page, World},
};
use gpa_conversion::{Needs, Operation, Outcome, Promotion, Request, Step};
use sept_core::{
    Class, Classify, FrameKind, Level,
    test_util::{MockFault, MockOp},
};

const OPS: [MockOp; 11] = [
    MockOp::Link,
    MockOp::Unlink,
    MockOp::Map,
    MockOp::Unmap,
    MockOp::Block,
    MockOp::Unblock,
    MockOp::Fence,
    MockOp::Split,
    MockOp::Merge,
    MockOp::Probe,
    MockOp::WriteBack,
];

/// Three blocks with content, some of it shared and some punched; one that was never mapped; and one with an empty table.
fn rich() -> (Host, World) {
    let host = Host::new(9, 5, orders(TWO));
    let mut world = World::new(host.pages());
    let _ = run(&host, &mut world, populate(0..1536), u32::MAX);
    accept(&host, &mut world, 0..1536);
    let _ = run(&host, &mut world, share(1496..1506), 9);
    let _ = run(&host, &mut world, request(1024..1040, Operation::Punch), 9);
    let _ = run(&host, &mut world, request(2048..2049, Operation::Prepare), 9);
    (host, world)
}

/// Requests for [`rich`].
fn requests() -> Vec<Request> {
    vec![
        share(500..516),
        request(7..8, Operation::Isolate),
        request(508..1025, Operation::Punch),
        unshare(1496..1506, true),
        unshare(1490..1540, false),
        populate(1024..2560),
        request(1030..1033, Operation::Populate { largest: Level::L2M, around: true }),
        request(1530..1600, Operation::Prepare),
    ]
}

/// Does `request` with the nth call of `op` failing; `None` if there is no nth call.
fn once(
    op: MockOp,
    nth: u64,
    fault: MockFault,
    index: usize,
) -> Option<(Host, World, World, Done, Option<bool>)> {
    let (host, mut world) = rich();
    let before = world.clone();
    let mut commit = begin(&host, requests()[index]);
    let calls = host.mock().calls(op);
    host.mock().fail(op, nth, fault);
    host.state().leaky = fault == MockFault::Fatal && op == MockOp::WriteBack;
    let mut trace = Trace::default();
    let error = insist(&host, &world, &mut commit, 1_000, &mut trace);
    let reached = host.mock().calls(op) >= calls + nth;
    host.mock().cancel_faults();
    let fatal = error.map(|error| error.class() == Class::Fatal);
    let done = finish(&host, &mut world, commit, trace);
    reached.then_some((host, before, world, done, fatal))
}

#[test]
fn busy_once_completes() {
    for index in 0..requests().len() {
        for op in OPS {
            for nth in 1..4 {
                let fault = if nth % 2 == 0 { MockFault::Busy } else { MockFault::BusyAfterWrite };
                let Some((_, _, _, done, _)) = once(op, nth, fault, index) else { break };
                assert_eq!(done.outcome, Outcome::Converted, "{op:?} {nth} of {index}");
            }
        }
    }
}

/// Refuses `op` from its nth call on until the operation gives up, and then no more.
fn always(op: MockOp, nth: u64, index: usize) -> Option<(Host, World, World, Done)> {
    let (host, mut world) = rich();
    let before = world.clone();
    let mut commit = begin(&host, requests()[index]);
    let calls = host.mock().calls(op);
    (nth..nth + 4).for_each(|nth| host.mock().fail(op, nth, MockFault::BusyAfterWrite));
    let mut trace = Trace::default();
    let _ = insist(&host, &world, &mut commit, 4, &mut trace);
    let reached = host.mock().calls(op) >= calls + nth;
    host.mock().cancel_faults();
    let done = finish(&host, &mut world, commit, trace);
    reached.then_some((host, before, world, done))
}

#[test]
fn busy_for_long_is_turned_round_or_goes_on() {
    for (index, wanted) in requests().into_iter().enumerate() {
        for op in OPS {
            for nth in 1..4 {
                let Some((host, before, mut world, done)) = always(op, nth, index) else { break };
                let name = format!("{op:?} {nth} of {wanted}");
                let removes =
                    matches!(wanted.operation, Operation::Share | Operation::Punch | Operation::Isolate);
                match done.outcome {
                    Outcome::Converted => {}
                    Outcome::RolledBack => {
                        assert_eq!(world, before);
                        host.check(&world);
                        assert!(host.is_canonical(), "{name}: the folios are as before");
                        // What the rollback kept stands behind smaller leaves, until they are promoted.
                        let (pass, _) = promote(&host, &world, 3);
                        assert_eq!(kept(&done, &pass), [0; 3], "{name}");
                    }
                    Outcome::Stopped { range } => {
                        assert!(!removes, "{name}");
                        if let Operation::Unshare { .. } = wanted.operation {
                            let window = Host::window(wanted.range);
                            world.update(
                                window,
                                |page| if page == Page::Shared { Page::Unmapped } else { page },
                            );
                        }
                        crate::common::drive::learn(&host, &mut world, 0..host.pages());
                        let rest = Host::window(range);
                        let whole = Host::window(wanted.range);
                        assert!(
                            world
                                .runs(whole.start..rest.start)
                                .iter()
                                .all(|(_, page)| *page != Page::Unmapped)
                                || wanted.operation == Operation::Prepare
                        );
                        host.check(&world);
                        // Asking again completes it.
                        let _ = run(&host, &mut world, wanted, 1);
                    }
                    other => panic!("{name}: {other:?}"),
                }
            }
        }
    }
}

/// Table frames that an operation kept and that promotion did not give back: TEE tables, mirror tables, vmemmap.
fn kept(done: &Done, pass: &Promotion<Host>) -> [i64; 3] {
    [FrameKind::TeeTable, FrameKind::MirrorTable, FrameKind::Vmemmap].map(|kind| {
        let count = |needs: &Needs| i64::from(needs.frames[kind]);
        count(&done.used) - count(&done.released) - count(&pass.released())
    })
}

#[test]
fn fatal_names_what_is_lost() {
    for (index, wanted) in requests().into_iter().enumerate() {
        for op in OPS {
            for nth in 1..4 {
                let Some((host, before, world, done, fatal)) = once(op, nth, MockFault::Fatal, index) else {
                    break;
                };
                let name = format!("{op:?} {nth} of {wanted}");
                assert!(fatal != Some(false), "{name}");
                match done.outcome {
                    Outcome::Converted | Outcome::RolledBack | Outcome::Stopped { .. } => {}
                    Outcome::Poisoned { range } => {
                        assert!(wanted.range.start() <= range.start() && range.end() <= wanted.range.end());
                        let lost = Host::window(range);
                        let whole = Host::window(wanted.range);
                        assert_eq!(world, before);
                        // Everything outside is as it was; before the lost part the request was carried out.
                        host.check_step(&before, Some(whole.clone()));
                        for leaf in host.mock().leaves() {
                            let page = Host::page(leaf.at.gpa());
                            assert!(
                                !(whole.start..lost.start).contains(&page),
                                "{name}: {leaf:?} is not done"
                            );
                        }
                        let first =
                            host.mock().leaves().iter().any(|leaf| Host::page(leaf.at.gpa()) == lost.start);
                        let held = op == MockOp::WriteBack;
                        assert!(first || held, "{name}: {lost:?} is not where it stopped");
                    }
                    other => panic!("{name}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn write_back_refused_while_settling() {
    let host = Host::new(9, 2, orders(TWO));
    let mut world = World::new(host.pages());
    let _ = run(&host, &mut world, request(0..1024, Operation::Prepare), 1);
    let mut commit = begin(&host, populate(0..1024));
    for nth in 1..4 {
        host.mock().fail(MockOp::WriteBack, nth, MockFault::Busy);
    }
    let mut trace = Trace::default();
    assert!(insist(&host, &world, &mut commit, 1_000, &mut trace).is_some());
    let done = finish(&host, &mut world, commit, trace);
    assert_eq!(done.released.frames[FrameKind::TeeTable], 2);
}

#[test]
fn cancel_at_every_step() {
    for (index, wanted) in requests().into_iter().enumerate() {
        for at in 0.. {
            let (host, mut world) = rich();
            let mut commit = begin(&host, requests()[index]);
            let mut trace = Trace::default();
            let mut ended = false;
            for _ in 0..at {
                ended = crate::common::drive::step(&host, &world, &mut commit, 1, &mut trace).unwrap()
                    == Step::Ended;
            }
            let before = (host.mock().calls(MockOp::Unmap), host.state().shared.clone());
            let cancelled = commit.cancel();
            assert_eq!(cancelled.is_err(), commit.cancel().is_err());
            steps(&host, &world, &mut commit, 1, &mut trace);
            let done = finish(&host, &mut world, commit, trace);
            let removed = host.mock().calls(MockOp::Unmap) - before.0;
            match (cancelled, done.outcome) {
                (Err(_), Outcome::Converted) | (Ok(()), Outcome::Converted | Outcome::Stopped { .. }) => {}
                (Ok(()), Outcome::RolledBack) => {
                    assert_eq!((removed, host.state().shared.clone()), (0, before.1));
                    host.check(&world);
                    assert!(host.is_canonical(), "{wanted}");
                }
                other => panic!("{wanted}, step {at}: {other:?}"),
            }
            if ended || at > 60 {
                break;
            }
        }
    }
}

#[test]
fn cancel_with_folios_much_larger_than_2m() {
    let host = Host::new(18, 1, orders(COARSE));
    let world = promoted(&host);
    for at in [1, 2, 3, 6, 12, 20] {
        let mut commit = begin(&host, share(6000..6001));
        let mut trace = Trace::default();
        for _ in 0..at {
            let _ = crate::common::drive::step(&host, &world, &mut commit, 1, &mut trace).unwrap();
        }
        commit.cancel().unwrap();
        steps(&host, &world, &mut commit, 1, &mut trace);
        let done = finish(&host, &mut world.clone(), commit, trace);
        assert_eq!(done.outcome, Outcome::RolledBack);
        host.check(&world);
        let _ = promote(&host, &world, u32::MAX);
        assert_eq!(host.leaves(), [0, 0, 1]);
    }
}

#[test]
fn held_fences_hold_everything() {
    for (index, wanted) in requests().into_iter().enumerate() {
        let (host, mut world) = rich();
        let mut commit = begin(&host, requests()[index]);
        host.mock().hold_fences(true);
        let mut trace = Trace::default();
        for _ in 0..100_000 {
            match crate::common::drive::step(&host, &world, &mut commit, 3, &mut trace).unwrap() {
                Step::Ended => break,
                Step::AwaitFence => {
                    let before = host.image();
                    for _ in 0..3 {
                        let again =
                            crate::common::drive::step(&host, &world, &mut commit, 3, &mut trace).unwrap();
                        assert_eq!(again, Step::AwaitFence, "{wanted}");
                        assert_eq!(host.image(), before, "{wanted}");
                    }
                    host.mock().end_fences();
                }
                _ => {}
            }
        }
        let _ = finish(&host, &mut world, commit, trace);
    }
}
