//! Carrying operations out, with the invariants checked after each step.

use super::{
    host::{Host, Store},
    world::{Page, World},
};
use core::ops::Range;
use gpa_conversion::{
    Bound, Commit, CommitError, Event, Needs, Operation, Outcome, Plan, Promotion, Request, Step, TeeError,
};
use sept_core::{Class, Classify, GpaRange, Level};
use std::collections::BTreeMap;

/// What an operation came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) planned: Needs,
    pub(crate) used: Needs,
    pub(crate) releasable: Needs,
    pub(crate) released: Needs,
    pub(crate) trace: Trace,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Trace {
    pub(crate) steps: u32,
    pub(crate) counts: BTreeMap<&'static str, u32>,
}

impl Trace {
    pub(crate) fn note(&mut self, event: Event) {
        let name = match event {
            Event::Blocked { outside: true, .. } => "window",
            Event::Blocked { .. } => "blocked",
            Event::Fenced => "fence",
            Event::Split(_) => "split",
            Event::Merged(_) => "merge",
            Event::Linked(_) => "link",
            Event::Unlinked(_) => "unlink",
            Event::Mapped(_) => "map",
            Event::Removed(_) => "remove",
            Event::Declined { .. } => "decline",
            Event::RolledBack => "rollback",
            _ => "other",
        };
        *self.counts.entry(name).or_default() += 1;
    }

    pub(crate) fn of(&self, name: &str) -> u32 {
        self.counts.get(name).copied().unwrap_or(0)
    }
}

pub(crate) type StepError = CommitError<TeeError<Host>>;

pub(crate) fn request(pages: Range<u64>, operation: Operation) -> Request {
    Request::new(Host::range(pages), operation)
}

pub(crate) fn share(pages: Range<u64>) -> Request {
    request(pages, Operation::Share)
}

pub(crate) fn unshare(pages: Range<u64>, merge: bool) -> Request {
    request(pages, Operation::Unshare { merge })
}

pub(crate) fn populate(pages: Range<u64>) -> Request {
    request(pages, Operation::Populate { largest: Level::L2M, around: false })
}

/// Plans, reserves and begins; nothing may fail.
pub(crate) fn begin(host: &Host, request: Request) -> Commit<Host> {
    let plan = Plan::new(host, request).unwrap();
    let reserved = plan.reserve(host, &host.pool, Store::default()).unwrap();
    assert_eq!(reserved.holds(host), plan.needs(), "reserved is what was planned");
    reserved.commit(host).map_err(|refused| refused.error).unwrap()
}

/// What `request` may change while it is carried out, from the start of RAM.
pub(crate) fn at_work(request: Request) -> Range<u64> {
    match request.operation {
        Operation::Populate { around: true, .. } => Host::window(request.range.align_out(Level::L2M)),
        _ => Host::window(request.range),
    }
}

/// One step, and the check after it.
pub(crate) fn step(
    host: &Host,
    world: &World,
    commit: &mut Commit<Host>,
    bound: u32,
    trace: &mut Trace,
) -> Result<Step, StepError> {
    trace.steps += 1;
    let stepped = commit.step(host, Bound::calls(bound), &host.pool, &mut |event| trace.note(event));
    host.check_step(world, Some(at_work(commit.plan().request())));
    stepped
}

/// Ends a commit, gives everything back, brings the reference up to date and checks everything.
pub(crate) fn finish(host: &Host, world: &mut World, commit: Commit<Host>, trace: Trace) -> Done {
    let plan = commit.plan();
    let receipt = commit.finish(host).map_err(|commit| format!("{commit:?} is not at its end")).unwrap();
    let done = Done {
        outcome: receipt.outcome,
        planned: receipt.planned,
        used: receipt.used,
        releasable: plan.releasable(),
        released: receipt.released,
        trace,
    };
    let _ = receipt.rest.release(host, &host.pool);
    if done.outcome == Outcome::Converted {
        assert_eq!(done.used, done.planned, "I3 for {}", plan.request());
        assert!(done.releasable.covers(&done.released), "I3 for {}", plan.request());
        world.apply(plan.request());
        if let Operation::Populate { around: true, .. } = plan.request().operation {
            learn(host, world, at_work(plan.request()));
        }
        host.check(world);
    }
    done
}

/// Takes what is mapped now, though the reference did not expect it, as pending.
pub(crate) fn learn(host: &Host, world: &mut World, within: Range<u64>) {
    for leaf in host.mock().leaves() {
        let first = Host::page(leaf.at.gpa());
        if within.contains(&first) {
            let run = first..first + leaf.at.level().pages();
            world.update(run, |page| if page == Page::Unmapped { Page::Pending } else { page });
        }
    }
}

/// Steps to the end, nothing may fail; fences that are held are ended when they are waited for.
pub(crate) fn steps(host: &Host, world: &World, commit: &mut Commit<Host>, bound: u32, trace: &mut Trace) {
    for _ in 0..1_000_000 {
        match step(host, world, commit, bound, trace).unwrap() {
            Step::Ended => return,
            Step::AwaitFence => host.mock().end_fences(),
            _ => {}
        }
    }
    panic!("{commit:?} does not end");
}

/// The whole of an operation that nothing hinders.
pub(crate) fn run(host: &Host, world: &mut World, request: Request, bound: u32) -> Done {
    let mut commit = begin(host, request);
    let mut trace = Trace::default();
    steps(host, world, &mut commit, bound, &mut trace);
    finish(host, world, commit, trace)
}

/// Steps until the end; what is refused `patience` times in a row is turned round, or given up if fatal.
pub(crate) fn insist(
    host: &Host,
    world: &World,
    commit: &mut Commit<Host>,
    patience: u32,
    trace: &mut Trace,
) -> Option<StepError> {
    let (mut refused, mut first) = (0, None);
    for _ in 0..1_000_000 {
        let error = match step(host, world, commit, 1, trace) {
            Ok(Step::Ended) => return first,
            Ok(Step::AwaitFence) => {
                host.mock().end_fences();
                continue;
            }
            Ok(_) => {
                refused = 0;
                continue;
            }
            Err(error) => error,
        };
        refused += 1;
        let fatal = error.class() == Class::Fatal;
        first = first.or(Some(error));
        if refused >= patience || fatal {
            // Before anything is lost it goes back; later it goes on, unless the TEE is lost.
            if commit.cancel().is_err() && fatal {
                commit.abandon();
            }
            refused = 0;
        }
    }
    panic!("{commit:?} does not end");
}

/// Maps all of RAM and lets the guest accept it.
pub(crate) fn accepted(host: &Host) -> World {
    let mut world = World::new(host.pages());
    let _ = run(host, &mut world, populate(0..host.pages()), u32::MAX);
    accept(host, &mut world, 0..host.pages());
    world
}

/// The guest accepts what it can of `pages`.
pub(crate) fn accept(host: &Host, world: &mut World, pages: Range<u64>) {
    for leaf in host.mock().leaves() {
        let first = Host::page(leaf.at.gpa());
        if pages.contains(&first) {
            let _ = host.accept(first);
            let run = first..first + leaf.at.level().pages();
            world.update(run, |page| if page == Page::Pending { Page::Accepted } else { page });
        }
    }
}

/// A promotion pass that nothing hinders.
pub(crate) fn promote(host: &Host, world: &World, bound: u32) -> (Promotion<Host>, Trace) {
    let mut pass = Promotion::new(host, whole(host));
    let mut trace = Trace::default();
    for _ in 0..1_000_000 {
        trace.steps += 1;
        let step = pass.step(host, Bound::calls(bound), &host.pool, &mut |event| trace.note(event)).unwrap();
        if trace.steps % 8 == 0 {
            host.check_step(world, Some(0..0));
        }
        match step {
            Step::Ended => {
                host.check(world);
                return (pass, trace);
            }
            Step::AwaitFence => host.mock().end_fences(),
            _ => {}
        }
    }
    panic!("{pass:?} does not end");
}

pub(crate) fn whole(host: &Host) -> GpaRange {
    Host::range(0..host.pages())
}

/// All of RAM accepted and promoted as far as it goes.
pub(crate) fn promoted(host: &Host) -> World {
    let world = accepted(host);
    let _ = promote(host, &world, u32::MAX);
    world
}
