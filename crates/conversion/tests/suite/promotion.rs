//! Promotion: refused, cancelled, and beside pages that wait.

use crate::common::{
    HUGETLB, TWO,
    drive::{accept, accepted, promote, run, share, unshare, whole},
    host::{Host, orders},
    world::World,
};
use gpa_conversion::{Bound, Promotion, Step};
use sept_core::{
    Class, Classify,
    test_util::{MockFault, MockOp},
};

#[test]
fn promotion_under_every_fault() {
    for op in [MockOp::Block, MockOp::Unblock, MockOp::Merge, MockOp::Probe, MockOp::Fence, MockOp::WriteBack]
    {
        for nth in [1, 2, 3] {
            let host = Host::new(18, 1, orders(HUGETLB));
            let mut world = accepted(&host);
            let _ = run(&host, &mut world, share(1000..1001), u32::MAX);
            let _ = run(&host, &mut world, unshare(1000..1001, true), u32::MAX);
            accept(&host, &mut world, 0..host.pages());
            host.mock().fail(op, nth, MockFault::Busy);
            let mut pass = Promotion::new(&host, whole(&host));
            let mut refused = 0;
            loop {
                match pass.step(&host, Bound::calls(1), &host.pool, &mut ()) {
                    Ok(Step::Ended) => break,
                    Ok(_) => {}
                    Err(error) => {
                        assert_eq!(error.class(), Class::Retry);
                        refused += 1;
                    }
                }
                assert!(refused < 10, "{op:?}");
            }
            host.mock().cancel_faults();
            host.check(&world);
            // Whatever was declined is merged by the next pass.
            let _ = promote(&host, &world, 100);
            assert_eq!(host.leaves(), [0, 0, 1], "{op:?} {nth}");
        }
    }
}

#[test]
fn a_cancelled_promotion_leaves_nothing_blocked() {
    let host = Host::new(18, 1, orders(HUGETLB));
    let mut world = accepted(&host);
    let _ = run(&host, &mut world, share(1000..1001), u32::MAX);
    let _ = run(&host, &mut world, unshare(1000..1001, true), u32::MAX);
    accept(&host, &mut world, 0..host.pages());
    for at in (0..1100).step_by(37) {
        let mut pass = Promotion::new(&host, whole(&host));
        let mut ended = false;
        for _ in 0..at {
            ended = pass.step(&host, Bound::calls(1), &host.pool, &mut ()).unwrap() == Step::Ended;
        }
        pass.cancel();
        while !ended {
            ended = pass.step(&host, Bound::calls(1), &host.pool, &mut ()).unwrap() == Step::Ended;
        }
        host.check(&world);
    }
}

/// A page that waits for acceptance keeps its table apart, and nothing is blocked for it.
#[test]
fn pending_pages_are_never_merged() {
    let host = Host::new(9, 2, orders(TWO));
    let mut world: World = accepted(&host);
    let _ = run(&host, &mut world, share(7..9), 1);
    let _ = run(&host, &mut world, unshare(7..9, true), 1);
    accept(&host, &mut world, 7..8);
    let before = host.image();
    let (pass, trace) = promote(&host, &world, 1);
    assert_eq!((pass.merged(), trace.of("window"), host.image() == before), (0, 0, true));
    accept(&host, &mut world, 8..9);
    let (pass, trace) = promote(&host, &world, 1);
    assert_eq!((pass.merged(), trace.of("window"), trace.of("fence")), (1, 1, 1));
    // Only what was not known is asked for: one page, the other was learnt by the first pass.
    assert_eq!(host.leaves(), [0, 2, 0]);
}

/// Small folios hold large leaves back, accepted or not.
#[test]
fn no_leaf_grows_beyond_its_folio() {
    let host = Host::new(9, 1, orders(TWO));
    let mut world = accepted(&host);
    let _ = run(&host, &mut world, share(7..9), 1);
    let _ = run(&host, &mut world, unshare(7..9, false), 1);
    accept(&host, &mut world, 0..512);
    let (pass, _) = promote(&host, &world, 10);
    assert_eq!(pass.merged(), 0);
}
