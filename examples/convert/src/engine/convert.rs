//! Carrying a request out: plan, reserve, commit step by step, settle the account.

use gpa_conversion::{
    Bound, Commit, CommitError, Event, Needs, Operation, Outcome, Plan, PlanError, Promotion, Refusal,
    Request, Step, TeeError,
};
use sept_core::test_util::VecStore;
use sept_core::{Class, Classify, FrameKind, GpaRange};

use super::host::Host;
use super::{Engine, UniformCost};
use crate::options::Module;
use crate::report::{self, OpReport, Resources};

/// Calls that a step may make before it hands control back.
const BOUND: Bound = Bound::calls(256);
/// Refusals in a row after which a commit is turned round.
const PATIENCE: u32 = 4;

/// Why an operation did not end well.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// How it ended.
    pub result: report::Outcome,
    /// First address concerned.
    pub at: Option<u64>,
    /// Why.
    pub reason: String,
}

impl Failure {
    /// Not now.
    pub(super) fn again(at: u64, reason: impl ToString) -> Self {
        Self { result: report::Outcome::Again, at: Some(at), reason: reason.to_string() }
    }

    /// Not in this state.
    pub(super) fn refused(at: Option<u64>, reason: impl ToString) -> Self {
        Self { result: report::Outcome::Refused, at, reason: reason.to_string() }
    }

    /// Never.
    pub(super) fn error(at: u64, reason: impl ToString) -> Self {
        Self { result: report::Outcome::Error, at: Some(at), reason: reason.to_string() }
    }

    /// By the class of an error.
    pub(super) fn of(error: &(impl Classify + ?Sized), at: u64) -> Self {
        match error.class() {
            Class::Retry | Class::Quiesce => Self::again(at, error),
            _ => Self::error(at, error),
        }
    }
}

/// What reports call the resources of the library.
pub(super) fn resources(needs: &Needs) -> Resources {
    let count = |kind| i64::from(needs.frames[kind]);
    Resources {
        vmemmap_pages: count(FrameKind::Vmemmap),
        vmemmap_tables: count(FrameKind::VmemmapTable),
        index_nodes: i64::try_from(needs.index_nodes).unwrap_or(i64::MAX),
        sept_pages: count(FrameKind::TeeTable),
        mirror_pages: count(FrameKind::MirrorTable),
        dpamt_pages: count(FrameKind::TeeMetadata),
    }
}

fn note(report: &mut OpReport, event: Event) {
    match event {
        Event::Split(_) => report.demotes += 1,
        Event::Merged(_) => report.promotes += 1,
        Event::Fenced => report.fences += 1,
        Event::Blocked { outside: true, .. } => report.blocked_windows += 1,
        _ => {}
    }
}

impl<'m> Engine<'m, '_> {
    /// Plans `request`, reserves what it needs, and commits.
    pub(super) fn convert(&mut self, request: Request, report: &mut OpReport) -> Result<(), Failure> {
        let store = VecStore::default();
        self.convert_with(request, store, report).map(|rest| debug_assert!(is_empty(&rest)))
    }

    /// The same with frames that are there already. What is left of them comes back.
    pub(super) fn convert_with(
        &mut self,
        request: Request,
        store: VecStore,
        report: &mut OpReport,
    ) -> Result<VecStore, Failure> {
        let at = self.first_concerned(&request);
        let standing = request.operation == Operation::Isolate;
        let plan = match Plan::new(&self.host, request) {
            Ok(plan) => plan,
            Err(PlanError::Pinned { first }) => return Err(Failure::again(first.raw(), "pinned")),
            Err(error) => return Err(Failure::of(&error, at)),
        };
        report.planned += resources(&plan.needs());
        report.releasable += resources(&plan.releasable());
        let uniform = self.uniform_cost(&request);
        let reservation = match plan.reserve(&self.host, &self.host.pool, store) {
            Ok(reservation) => reservation,
            Err(refused) => {
                self.give_back(refused.held, standing);
                return Err(Failure::of(&refused.error, at));
            }
        };
        self.outcome.reserved += resources(&plan.needs());
        let mut commit = match reservation.commit(&self.host) {
            Ok(commit) => commit,
            Err(refused) => {
                let store = refused.held.release(&self.host, &self.host.pool);
                self.give_back(store, standing);
                return Err(match refused.error {
                    Refusal::Plan(PlanError::Pinned { first }) => Failure::again(first.raw(), "pinned"),
                    error => Failure::of(&error, at),
                });
            }
        };
        let failure = self.drive(&mut commit, at, report);
        let receipt = match commit.finish(&self.host) {
            Ok(receipt) => receipt,
            Err(commit) => return Err(Failure::error(at, format!("{commit:?} did not end"))),
        };
        let (used, released) = (resources(&receipt.used), resources(&receipt.released));
        report.released += released;
        let rest = if standing {
            receipt.rest.keep(&self.host)
        } else {
            receipt.rest.release(&self.host, &self.host.pool)
        };
        if receipt.outcome == Outcome::Converted {
            report.used += used;
            self.outcome.uniform += uniform;
            return Ok(rest);
        }
        // Turned round: what smaller leaves keep until they are promoted.
        report.retained += used - released;
        report.released -= released;
        self.give_back(rest, standing);
        Err(failure.unwrap_or_else(|| Failure::error(at, "the conversion ended half way")))
    }

    /// Steps a commit to its end; turns it round when it is refused for too long.
    fn drive(&mut self, commit: &mut Commit<Host<'m>>, at: u64, report: &mut OpReport) -> Option<Failure> {
        let (mut refusals, mut turned, mut failure) = (0, false, None);
        loop {
            let mut events = |event| note(report, event);
            let error = match commit.step(&self.host, BOUND, &self.host.pool, &mut events) {
                Ok(Step::Ended) => return failure,
                Ok(_) => {
                    refusals = 0;
                    continue;
                }
                Err(error) => error,
            };
            refusals += 1;
            let hopeless = matches!(error.class(), Class::Caller | Class::Fatal);
            if refusals <= PATIENCE && !hopeless {
                continue;
            }
            failure.get_or_insert_with(|| commit_failure(&error, at));
            if !turned && commit.cancel().is_ok() {
                (turned, refusals) = (true, 0);
            } else if error.class() == Class::Fatal || refusals > 16 * PATIENCE {
                commit.abandon();
            }
        }
    }

    /// One promotion pass over the blocks that `range` touches.
    pub(super) fn promote(&mut self, range: GpaRange, report: &mut OpReport) -> Result<(), Failure> {
        let mut pass = Promotion::new(&self.host, range);
        let (mut refusals, at) = (0, range.start().raw());
        let result = loop {
            let mut events = |event| note(report, event);
            match pass.step(&self.host, BOUND, &self.host.pool, &mut events) {
                Ok(Step::Ended) => break Ok(()),
                Ok(_) => refusals = 0,
                Err(error) => {
                    refusals += 1;
                    if refusals > PATIENCE || error.class() == Class::Fatal {
                        break Err(Failure::of(&error, at));
                    }
                }
            }
        };
        report.releasable += resources(&pass.releasable());
        report.released += resources(&pass.released());
        result
    }

    /// Address that a refusal for want of memory names: the first page that the request would change.
    fn first_concerned(&self, request: &Request) -> u64 {
        let range = request.range;
        let region = super::Region { start: range.start().raw(), len: range.len() };
        let wanted = |page: super::oracle::Page| match request.operation {
            Operation::Share => !page.is_shared() && !page.is_poisoned(),
            Operation::Unshare { .. } => page.is_shared() && !page.is_poisoned(),
            Operation::Populate { .. } => page == super::oracle::Page::Unaccepted,
            _ => true,
        };
        self.oracle.find_page(region, wanted).unwrap_or(region.start)
    }

    /// What Linux's uniform split would take for the blocks that `request` is the first to divide.
    fn uniform_cost(&self, request: &Request) -> UniformCost {
        let mut cost = UniformCost::default();
        if request.operation != Operation::Share {
            return cost;
        }
        let region = super::Region { start: request.range.start().raw(), len: request.range.len() };
        let order = self.host.block_order();
        let bytes = order.pages() * super::PAGE;
        let first = region.start / bytes;
        for block in first..(region.start + region.len).div_ceil(bytes) {
            let whole = super::Region { start: block * bytes, len: bytes };
            if order.raw() > 0
                && self.oracle.find_page(whole, |page| page.is_shared() || page.is_poisoned()).is_none()
            {
                let pamt = self.options.module == Module::V2_0_08;
                cost += UniformCost::of_block(order.raw().into(), self.scenario.backing.hvo, pamt);
            }
        }
        cost
    }

    /// Frames that were not needed: back to the standing reservation or the source.
    fn give_back(&mut self, store: VecStore, standing: bool) {
        if standing {
            self.emergency = store;
        }
    }
}

fn is_empty(store: &VecStore) -> bool {
    use sept_core::FrameStore as _;
    FrameKind::ALL.iter().all(|kind| store.count(*kind) == 0)
}

fn commit_failure(error: &CommitError<TeeError<Host<'_>>>, at: u64) -> Failure {
    match error {
        CommitError::Pinned { first } => Failure::again(first.raw(), error),
        error => Failure::of(error, at),
    }
}
