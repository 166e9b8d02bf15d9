//! I7: a pinned page stops an unshare before anything changed, whenever the pin comes. And what faults may do meanwhile.

use crate::common::{
    ALL, HUGETLB, TWO,
    drive::{Trace, begin, finish, promoted, run, share, step, steps, unshare},
    host::{Host, Store, orders},
    world::{Page, World},
};
use gpa_conversion::{CommitError, Outcome, Plan, PlanError, Refusal, Step};
use sept_core::{Class, Classify, Fill, GpaEntry, Level, test_util::MockOp};
use std::sync::{Arc, mpsc};

fn shared() -> (Host, World) {
    let host = Host::new(9, 2, orders(TWO));
    let mut world = promoted(&host);
    let _ = run(&host, &mut world, share(100..700), 50);
    (host, world)
}

#[test]
fn pinned_when_planned() {
    let (host, world) = shared();
    host.pin(300);
    host.pin(650);
    let before = host.image();
    assert_eq!(Plan::new(&host, unshare(200..700, true)), Err(PlanError::Pinned { first: Host::gpa(300) }));
    assert_eq!(host.image(), before);
    host.unpin(300);
    host.unpin(650);
    host.check(&world);
}

#[test]
fn pinned_between_plan_and_commit() {
    let (host, world) = shared();
    let held =
        Plan::new(&host, unshare(200..700, true)).unwrap().reserve(&host, &host.pool, Store::default());
    let held = held.unwrap();
    host.pin(699);
    let refused = held.commit(&host).unwrap_err();
    assert_eq!(refused.error, Refusal::Plan(PlanError::Pinned { first: Host::gpa(699) }));
    host.unpin(699);
    let _ = refused.held.release(&host, &host.pool);
    host.check(&world);
}

/// The pin comes after the claim: while host mappings are dropped, or in the last moment of their flush.
#[test]
fn pinned_after_the_claim() {
    for late in [false, true] {
        let (host, mut world) = shared();
        let before = host.image();
        let mut commit = begin(&host, unshare(200..700, true));
        host.state().hold_flush = true;
        let mut trace = Trace::default();
        assert_eq!(step(&host, &world, &mut commit, 1, &mut trace).unwrap(), Step::AwaitFence);
        if late {
            host.state().at_flush_end = Some(Box::new(|host| host.pin(650)));
        } else {
            host.pin(650);
        }
        host.state().hold_flush = false;
        let error = step(&host, &world, &mut commit, 1, &mut trace).unwrap_err();
        assert_eq!(error, CommitError::Pinned { first: Host::gpa(650) }, "late: {late}");
        assert_eq!(error.class(), Class::Retry);
        commit.cancel().unwrap();
        steps(&host, &world, &mut commit, 1, &mut trace);
        assert_eq!(finish(&host, &mut world, commit, trace).outcome, Outcome::RolledBack);
        host.unpin(650);
        assert_eq!(host.image(), before);
        host.check(&world);
        let _ = run(&host, &mut world, unshare(200..700, true), 5);
    }
}

/// Somebody holds a folio that is to be split: nothing is removed, and all of it goes back.
#[test]
fn a_held_folio_stops_a_share() {
    for (block, list, range) in
        [(9, TWO, 500..530), (18, HUGETLB, 500..1100), (18, ALL, 200..300), (9, ALL, 5..400)]
    {
        for page in [range.start, range.start + 20, range.end - 1, 0, 511].into_iter().take(if block == 18 {
            2
        } else {
            5
        }) {
            let host = Host::new(block, 2, orders(list));
            let mut world = promoted(&host);
            let _ = run(&host, &mut world, share(256..257), 50);
            let canonical = host.image();
            host.pin(page);
            let mut commit = begin(&host, share(range.clone()));
            let mut trace = Trace::default();
            let mut pinned = false;
            for _ in 0..10_000 {
                match step(&host, &world, &mut commit, 1, &mut trace) {
                    Ok(Step::Ended) => break,
                    Ok(_) => {}
                    Err(CommitError::Pinned { .. }) if pinned => {
                        // The same again: it stands where it stood.
                        commit.cancel().unwrap();
                    }
                    Err(CommitError::Pinned { .. }) => pinned = true,
                    Err(error) => panic!("{error}"),
                }
            }
            let done = finish(&host, &mut world, commit, trace);
            host.unpin(page);
            if done.outcome == Outcome::RolledBack {
                host.check(&world);
                assert_eq!(host.image().counters, canonical.counters, "{list:?} at {page}");
                let _ = run(&host, &mut world, share(range.clone()), 7);
            }
            host.check(&world);
        }
    }
}

/// Somebody holds a folio that would be merged: it stays small, and the next merge takes it along.
#[test]
fn a_held_folio_stays_small() {
    for list in [TWO, ALL] {
        let host = Host::new(9, 2, orders(list));
        let mut world = promoted(&host);
        let before = host.image();
        let _ = run(&host, &mut world, share(100..300), 50);
        host.state().at_flush_end = Some(Box::new(|host| assert!(host.mm.pin(Host::pfn(110)))));
        let mut commit = begin(&host, unshare(100..300, true));
        let mut trace = Trace::default();
        steps(&host, &world, &mut commit, 1, &mut trace);
        let done = finish(&host, &mut world, commit, trace);
        assert_eq!(done.outcome, Outcome::Converted);
        assert!(!host.is_canonical());
        assert!(host.mm.unpin(Host::pfn(110)));
        host.check(&world);
        let _ = run(
            &host,
            &mut world,
            crate::common::drive::request(0..512, gpa_conversion::Operation::Coalesce),
            1,
        );
        assert!(host.is_canonical());
        assert_eq!(host.image().counters, before.counters);
    }
}

/// The same for 2 MiB that could be mapped at once: no leaf may be larger than the folios that stayed small.
#[test]
fn no_large_leaf_over_folios_that_stayed_small() {
    for keep_table in [false, true] {
        let host = Host::new(9, 2, orders(TWO));
        let mut world = promoted(&host);
        let first = if keep_table { 0..100 } else { 0..512 };
        let _ = run(&host, &mut world, share(first), 50);
        let _ = run(&host, &mut world, share(0..512), 50);
        // In the last moment before folios are merged, somebody looks at one of them.
        host.state().at_flush_end = Some(Box::new(|host| assert!(host.mm.pin(Host::pfn(90)))));
        let mut commit = begin(&host, unshare(0..512, true));
        let mut trace = Trace::default();
        steps(&host, &world, &mut commit, 1, &mut trace);
        let done = finish_unmapped(&host, commit, trace);
        assert_eq!(done, Outcome::Converted);
        let mapped = if keep_table { [512, 1, 0] } else { [0, 1, 0] };
        assert_eq!(host.leaves(), mapped);
        assert!(host.mm.unpin(Host::pfn(90)));
    }
}

fn finish_unmapped(host: &Host, commit: gpa_conversion::Commit<Host>, _: Trace) -> Outcome {
    let receipt = commit.finish(host).unwrap();
    assert_eq!(receipt.used, receipt.planned);
    let _ = receipt.rest.release(host, &host.pool);
    receipt.outcome
}

/// A fault that began before the claim is still in the TEE while the range is blocked: it is waited for.
#[test]
fn a_fault_in_flight_is_waited_for() {
    let host = Arc::new(Host::new(9, 2, orders(TWO)));
    let mut world = World::new(host.pages());
    let _ =
        run(&host, &mut world, crate::common::drive::request(0..8, gpa_conversion::Operation::Prepare), 9);
    let (inside, is_inside) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    host.mock().before(MockOp::Map, 1, move || {
        inside.send(()).unwrap();
        may_go.recv().unwrap();
    });
    let fault = {
        let host = Arc::clone(&host);
        std::thread::spawn(move || {
            let at = GpaEntry::new(Host::gpa(5), Level::L4K).unwrap();
            let page = gpa_conversion::Platform::lend(&*host, at).unwrap();
            host.table.map(at, page, Fill::OnAccept).unwrap();
        })
    };
    is_inside.recv().unwrap();
    // What is asked for ends before the entry, or stops at it.
    assert!(Plan::new(&*host, share(0..4)).is_ok());
    let at = GpaEntry::new(Host::gpa(5), Level::L4K).unwrap();
    let refused = Plan::new(&*host, crate::common::drive::populate(5..8)).unwrap_err();
    assert_eq!((refused, refused.class()), (PlanError::Contended { at }, Class::Retry));
    let mut commit = begin(&host, share(0..8));
    let mut refused = 0;
    for _ in 0..50 {
        match commit.step(&*host, gpa_conversion::Bound::calls(1), &host.pool, &mut ()) {
            Err(error) => {
                assert_eq!(error.class(), Class::Retry);
                refused += 1;
            }
            Ok(step) => assert_ne!(step, Step::Ended, "the page that is being mapped was passed over"),
        }
    }
    assert!(refused > 0);
    go.send(()).unwrap();
    fault.join().unwrap();
    let mut trace = Trace::default();
    steps(&host, &world, &mut commit, 1, &mut trace);
    let _ = finish(&host, &mut world, commit, trace);
    assert!(world.is_all(0..8, Page::Shared));
}

/// A fault maps a large leaf in the last moment before the range is marked: the plan made under the claim sees it.
#[test]
fn a_fault_before_the_mark_makes_the_plan_stale() {
    let host = Host::new(9, 2, orders(TWO));
    let mut world = World::new(host.pages());
    let _ = run(&host, &mut world, crate::common::drive::populate(512..1024), 9);
    let held = Plan::new(&host, share(5..6)).unwrap().reserve(&host, &host.pool, Store::default()).unwrap();
    host.state().at_converting = Some(Box::new(|host| {
        let at = GpaEntry::new(Host::gpa(0), Level::L2M).unwrap();
        let page = gpa_conversion::Platform::lend(host, at).unwrap();
        host.table.map(at, page, Fill::OnAccept).unwrap();
    }));
    let refused = held.commit(&host).unwrap_err();
    assert!(matches!(refused.error, Refusal::Stale { .. }));
    world.update(0..512, |_| Page::Pending);
    let refit = refused.held.refit(&host, &host.pool).unwrap();
    let mut commit = refit.commit(&host).map_err(|refused| refused.error).unwrap();
    let mut trace = Trace::default();
    steps(&host, &world, &mut commit, 1, &mut trace);
    let _ = finish(&host, &mut world, commit, trace);
}
