//! Random operations on two regions of pages.

use proptest::prelude::*;
use sept_core::test_util::{MockFault, MockOp};

/// Pages of the smaller size in the two regions of the larger one.
pub(crate) const PAGES: u64 = 1024;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Page(u64),
    Region(u64),
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Link(u64),
    Map {
        at: Target,
        other: bool,
        added: bool,
    },
    /// The whole region, page by page; occupied pages stay.
    MapAll {
        region: u64,
        other: bool,
        added: bool,
    },
    Block(Target),
    Fence,
    Unblock(Target),
    Split(Target),
    Merge(u64),
    Remove(Target),
    Unlink(u64),
    /// The guest accepts `count` pages from here on.
    Accept {
        page: u64,
        count: u64,
    },
    Probe(Target),
    ProbeAll(u64),
    Settle,
    Fail(MockOp, MockFault),
    /// Block, fence, and then the operation: the usual way to change something.
    Removal(Target, Box<Op>),
}

fn target() -> impl Strategy<Value = Target> {
    let page = prop_oneof![Just(0_u64), Just(1), Just(511), Just(512), Just(1023), 0..PAGES];
    prop_oneof![2 => page.prop_map(Target::Page), 3 => (0..2_u64).prop_map(Target::Region)]
}

/// Weighted so that splits, merges and unlinks succeed often; see `Removal`.
pub(crate) fn op() -> impl Strategy<Value = Op> {
    let region = || 0..2_u64;
    let rarely = || prop::bool::weighted(0.1);
    let failing = prop::sample::select(vec![
        MockOp::Link,
        MockOp::Map,
        MockOp::Block,
        MockOp::Unblock,
        MockOp::Unmap,
        MockOp::Split,
        MockOp::Merge,
        MockOp::Unlink,
        MockOp::Probe,
    ]);
    let fault = prop::sample::select(vec![MockFault::Busy, MockFault::BusyAfterWrite, MockFault::Fatal]);
    let change = || {
        prop_oneof![
            1 => target().prop_map(|at| (at, Op::Unblock(at))),
            5 => target().prop_map(|at| (at, Op::Split(at))),
            5 => region().prop_map(|region| (Target::Region(region), Op::Merge(region))),
            2 => target().prop_map(|at| (at, Op::Remove(at))),
            2 => region().prop_map(|region| (Target::Region(region), Op::Unlink(region))),
        ]
    };
    prop_oneof![
        4 => region().prop_map(Op::Link),
        6 => (target(), rarely(), any::<bool>()).prop_map(|(at, other, added)| Op::Map { at, other, added }),
        4 => (region(), rarely(), any::<bool>())
            .prop_map(|(region, other, added)| Op::MapAll { region, other, added }),
        4 => target().prop_map(Op::Block),
        4 => Just(Op::Fence),
        8 => change().prop_map(|(_, op)| op),
        16 => change().prop_map(|(at, op)| Op::Removal(at, Box::new(op))),
        2 => (0..PAGES, prop_oneof![Just(1_u64), Just(PAGES)]).prop_map(|(page, count)| Op::Accept { page, count }),
        3 => target().prop_map(Op::Probe),
        2 => region().prop_map(Op::ProbeAll),
        2 => Just(Op::Settle),
        1 => (failing, fault).prop_map(|(op, fault)| Op::Fail(op, fault)),
    ]
}
