//! X1: every allocation fails, and what a reservation holds is never lost.

use crate::common::{
    ALL, HUGETLB, TWO,
    drive::{Done, Trace, accept, finish, promote, promoted, request, run, share, steps, unshare},
    host::{Host, Store, orders},
    world::World,
};
use gpa_conversion::{Needs, Operation, Plan, PlanError, Refusal, Request, Reservation, ReserveError};
use sept_core::{Class, Classify, FrameKind, FrameSource, FrameStore as _, Hpa, Short};

#[test]
fn every_allocation_fails_once() {
    for list in [HUGETLB, ALL] {
        let host = Host::with_metadata(18, 1, orders(list));
        let mut world = promoted(&host);
        let _ = run(&host, &mut world, share(5000..5001), u32::MAX);
        for wanted in
            [share(1000..1700), unshare(5000..5001, true), request(70_000..70_001, Operation::Isolate)]
        {
            let before = host.image();
            let plan = Plan::new(&host, wanted).unwrap();
            for fail in 0..plan.needs().frames.total() {
                host.pool.fail_after(Some(fail));
                let refused = plan.reserve(&host, &host.pool, Store::default()).unwrap_err();
                host.pool.fail_after(None);
                assert!(matches!(refused.error, ReserveError::Frames(Short { full: false, .. })));
                assert_eq!((refused.error.class(), refused.held.counts().total()), (Class::Retry, 0));
                assert_eq!(host.image(), before);
                let room = u32::try_from(fail).unwrap();
                let refused = plan.reserve(&host, &host.pool, Store::with_room(room)).unwrap_err();
                assert!(matches!(refused.error, ReserveError::Frames(Short { full: true, .. })));
                assert_eq!(refused.held.counts().total(), 0);
                assert_eq!(host.image(), before);
            }
            for nodes in 0..plan.needs().index_nodes {
                host.mm.limit_nodes(Some(nodes));
                let refused = plan.reserve(&host, &host.pool, Store::default()).unwrap_err();
                host.mm.limit_nodes(None);
                assert!(matches!(refused.error, ReserveError::IndexNodes { .. }));
                assert_eq!(host.image(), before);
            }
            host.check(&world);
        }
    }
}

#[test]
fn a_failed_reservation_leaves_a_standing_one_whole() {
    let host = Host::new(9, 2, orders(TWO));
    let _ = promoted(&host);
    let plan = Plan::new(&host, share(5..6)).unwrap();
    let mut store = Store::default();
    for kind in [FrameKind::TeeTable, FrameKind::Vmemmap, FrameKind::Vmemmap] {
        store.put(kind, host.pool.take(kind, Hpa::default()).unwrap()).unwrap();
    }
    let had = store.counts();
    for fail in 0..plan.needs().frames.total() - 3 {
        host.pool.fail_after(Some(fail));
        store = plan.reserve(&host, &host.pool, store).unwrap_err().held;
        host.pool.fail_after(None);
        assert_eq!(store.counts(), had);
    }
    host.mm.limit_nodes(Some(0));
    store = plan.reserve(&host, &host.pool, store).unwrap_err().held;
    host.mm.limit_nodes(None);
    assert_eq!(store.counts(), had, "index nodes that were not to be had");
    let held = plan.reserve(&host, &host.pool, store).unwrap();
    assert_eq!(held.holds(&host), plan.needs());
    let _ = held.release(&host, &host.pool);
}

/// Reserves for `wanted` and tells the accounts of it.
fn aside(host: &Host, wanted: Request) -> Reservation<Host> {
    let held = Plan::new(host, wanted).unwrap().reserve(host, &host.pool, Store::default()).unwrap();
    let holds = held.holds(host);
    host.state().elsewhere = holds;
    held
}

fn carry_out(host: &Host, world: &mut World, held: Reservation<Host>) -> Done {
    host.state().elsewhere = Needs::default();
    let mut commit = held.commit(host).map_err(|refused| refused.error).unwrap();
    let mut trace = Trace::default();
    steps(host, world, &mut commit, 1, &mut trace);
    finish(host, world, commit, trace)
}

#[test]
fn less_than_reserved_is_taken() {
    let host = Host::new(9, 2, orders(TWO));
    let mut world = promoted(&host);
    let held = aside(&host, share(400..600));
    let reserved = held.holds(&host);
    let first = run(&host, &mut world, share(400..401), 1);
    let done = carry_out(&host, &mut world, held);
    assert!(reserved == first.used.plus(done.used) && !done.used.is_none());
}

#[test]
fn refit_takes_the_difference() {
    let host = Host::new(9, 2, orders(TWO));
    let mut world = promoted(&host);
    let _ = run(&host, &mut world, share(3..4), 1);
    let held = aside(&host, share(100..600));
    let before = held.holds(&host);
    let _ = run(&host, &mut world, unshare(3..4, true), 1);
    accept(&host, &mut world, 0..host.pages());
    let _ = promote(&host, &world, 9);
    let refused = held.commit(&host).unwrap_err();
    let Refusal::Stale { now } = refused.error else { panic!("{:?}", refused.error) };
    assert_eq!(refused.held.holds(&host), before);
    host.check(&world);
    // Short again: whatever was taken is kept, and nothing is lost.
    host.mm.limit_nodes(Some(0));
    let refused = refused.held.refit(&host, &host.pool).unwrap_err();
    host.mm.limit_nodes(None);
    assert_eq!(refused.held.holds(&host), before);
    let refit = refused.held.refit(&host, &host.pool).unwrap();
    assert_eq!((refit.holds(&host), refit.plan().needs()), (now, now));
    let _ = carry_out(&host, &mut world, refit);
}

#[test]
fn an_unregistered_zone_is_refused_before_anything() {
    let mut host = Host::new(9, 1, orders(TWO));
    let _ = promoted(&host);
    host.orders = orders(&[9, 8, 0]);
    let before = host.image();
    let refused = Plan::new(&host, share(3..4));
    assert!(matches!(refused, Err(PlanError::Unregistered { .. })));
    assert_eq!(host.image(), before);
}
