//! Commit: carries a reserved plan out, step by step, without allocating.
//!
//! # Protocol
//!
//! [`Reservation::commit`] claims the blocks and plans again; if the need has grown, plan and reservation come back
//! whole. A [`Commit`] borrows nothing: it is a phase, a cursor and what it still owes, so it can be parked between any
//! two [`Commit::step`]s. A step that fails leaves it where it was, to be stepped again or cancelled.
//!
//! | operation | phases |
//! |---|---|
//! | share | split boundary leaves (1G round, then 2M round), block the range, fence, split folios, remove, store attribute |
//! | isolate | the same for one page, which is marked poisoned in place of the attribute |
//! | punch | the same without folios and attribute |
//! | unshare | drop host mappings, look at pins, flush, store attribute, merge folios, take out empty tables, map |
//! | populate | split leaves that are too large, take out empty tables, map |
//! | prepare | link tables |
//! | coalesce | merge folios |
//!
//! Each split round blocks its leaves, fences once and splits. The leaves of the range itself are blocked before
//! folios are split, so no leaf that the guest can reach is ever larger than its folio, and the first removal is the
//! point of no return: until then [`Commit::cancel`] turns everything round (folios merged again, leaves unblocked
//! after a fence; pages that were split stay as smaller leaves for the next promotion pass). After it the commit can
//! only go on. Unshare destroys nothing; its attribute is the point of no return, and a page that could not be mapped
//! is a fault to come.
//!
//! `Drop` does nothing: a dropped commit leaks its claim and reservation, and frees nothing.

mod phases;

use crate::{
    Needs, Observer, Operation, Plan, PlanError, Platform, Request, Reservation, Tee, TeeError,
    platform::Scope,
    stage2::{Mapping, widened},
};
use core::fmt;
use sept_core::{Class, Classify, Frame, FrameSource, Gpa, GpaEntry, GpaRange, Level, Returned, Tainted};
use vmemmap_prealloc::AtomError;

/// The most that one [`Commit::step`] does before it returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Bound {
    /// Calls into the secure table, folio atoms counted as one each. At least 1.
    pub calls: u32,
}

impl Bound {
    /// At most `calls` calls a step.
    #[must_use]
    pub const fn calls(calls: u32) -> Self {
        Self { calls }
    }
}

/// What a step left to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
#[non_exhaustive]
pub enum Step {
    /// The bound was reached: step again.
    Again,
    /// A fence or flush is under way: step again when it may have ended.
    AwaitFence,
    /// At the end: call [`Commit::finish`].
    Ended,
}

/// How a commit ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// Done.
    Converted,
    /// Cancelled before the point of no return and turned round.
    RolledBack,
    /// The TEE refused for good after the point of no return: these pages are lost, the rest of the guest is not.
    Poisoned {
        /// What was not finished.
        range: GpaRange,
    },
}

/// Where a commit stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    UnmapHost,
    FlushHost,
    StorePrivate,
    SplitBlock(Level),
    SplitFence(Level),
    Split(Level),
    HideBlock,
    HideFence,
    Layout,
    Remove,
    StoreShared,
    EmptyBlock,
    EmptyFence,
    EmptyUnlink,
    Map,
    Grace,
    Settle,
    UndoLayout,
    UndoFence,
    Undo,
    Ended(Outcome),
}

/// The state of a commit beside its reservation.
struct Cursor<T: Tee> {
    phase: Phase,
    /// Next address that the phase looks at.
    next: u64,
    /// Whether the present round has blocked anything.
    blocked: bool,
    /// Whether something was removed, or the attribute was stored.
    past_return: bool,
    ticket: Option<T::Ticket>,
    fenced: Option<T::Fenced>,
    quiet: Option<T::Quiet>,
    owed: T::Obligation,
    /// A removed page that is not written back yet.
    held: Option<(GpaEntry, Frame<Tainted>)>,
}

/// An operation under way. See the [protocol](self).
#[must_use = "dropping a commit leaks its claim and reservation"]
pub struct Commit<P: Platform> {
    reservation: Reservation<P>,
    claim: P::Claim,
    start: Needs,
    released: Needs,
    flush: Option<P::Flush>,
    at: Cursor<P::Tee>,
}

impl<P: Platform> Reservation<P> {
    /// Claims the range and plans again.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: nothing changed, and the reservation comes back whole.
    pub fn commit(self, platform: &P) -> Result<Commit<P>, Returned<Refusal<TeeError<P>>, Self>> {
        let request = self.plan.request();
        let scope = if request.is_fault() { Scope::Range } else { Scope::Blocks };
        let around = widened(platform, request.range, Level::L2M).align_out(Level::L2M);
        let Some(claim) = platform.claim(around, scope) else {
            return Err(Returned { error: Refusal::Contended, held: self });
        };
        let refusal = match Plan::new(platform, request) {
            Ok(plan) if self.holds(platform).covers(&plan.needs()) => {
                if !request.is_fault() {
                    platform.set_converting(request.range, true);
                }
                let start = self.holds(platform);
                let phase = first_phase(&request);
                let at = Cursor {
                    phase,
                    next: first_address(phase, &request),
                    blocked: false,
                    past_return: false,
                    ticket: None,
                    fenced: None,
                    quiet: None,
                    owed: platform.tee().obligation(),
                    held: None,
                };
                return Ok(Commit {
                    reservation: Self { plan, ..self },
                    claim,
                    start,
                    released: Needs::default(),
                    flush: None,
                    at,
                });
            }
            Ok(plan) => Refusal::Stale { now: plan.needs() },
            Err(error) => Refusal::Plan(error),
        };
        platform.release(claim);
        Err(Returned { error: refusal, held: self })
    }
}

impl<P: Platform> Commit<P> {
    /// The plan that is carried out: the one made under the claim.
    pub const fn plan(&self) -> Plan {
        self.reservation.plan
    }

    /// Goes on for at most `bound`. Frames that become free go to `to`.
    ///
    /// # Errors
    ///
    /// The commit stands where it stood. Step again after a retryable error, or cancel.
    pub fn step(
        &mut self,
        platform: &P,
        bound: Bound,
        to: &dyn FrameSource,
        observer: &mut impl Observer,
    ) -> Result<Step, CommitError<TeeError<P>>> {
        let mut calls = bound.calls.max(1);
        // Each turn makes a call or ends a phase, and there are fewer phases than this.
        for _ in 0..calls.saturating_add(32) {
            if let Phase::Ended(_) = self.at.phase {
                return Ok(Step::Ended);
            }
            if calls == 0 {
                return Ok(Step::Again);
            }
            match self.turn(platform, &mut calls, to, observer)? {
                Turn::Again => {}
                Turn::Await => return Ok(Step::AwaitFence),
                Turn::Done => self.advance(),
            }
        }
        Ok(Step::Again)
    }

    /// Turns the operation round. It still has to be stepped to its end: unblocking needs a fence too.
    ///
    /// # Errors
    ///
    /// Something was given up already; the commit can only go on.
    pub fn cancel(&mut self) -> Result<(), PastNoReturn> {
        if self.at.past_return {
            return Err(PastNoReturn);
        }
        self.enter(Phase::UndoLayout);
        Ok(())
    }

    /// Gives up after a fatal error: the operation ends as [`Outcome::Poisoned`] with what was not finished.
    pub fn abandon(&mut self) {
        let request = self.plan().request().range;
        let done = self.at.next.clamp(request.start().raw(), request.end().saturating_sub(1));
        let rest = Gpa::new(done).map(|gpa| gpa.align_down(Level::L4K));
        let range = rest.and_then(|gpa| GpaRange::new(gpa, request.end().saturating_sub(gpa.raw())));
        self.at.phase = Phase::Ended(Outcome::Poisoned { range: range.unwrap_or(request) });
    }

    /// Ends the operation: the claim is released.
    ///
    /// # Errors
    ///
    /// The commit is not at its end yet and comes back.
    #[expect(
        clippy::result_large_err,
        reason = "there is no heap to put it on, and it is not an error to pass on"
    )]
    pub fn finish(self, platform: &P) -> Result<Receipt<P>, Self> {
        let Phase::Ended(outcome) = self.at.phase else { return Err(self) };
        let request = self.request();
        if !request.is_fault() {
            platform.set_converting(request.range, false);
        }
        platform.release(self.claim);
        let rest = self.reservation;
        let used = self.start.saturating_sub(&rest.holds(platform));
        Ok(Receipt { outcome, planned: rest.plan.needs(), used, released: self.released, rest })
    }

    fn request(&self) -> Request {
        self.reservation.plan.request()
    }

    fn mapping(&self) -> Option<Mapping> {
        Mapping::of(&self.request())
    }

    fn enter(&mut self, phase: Phase) {
        self.at.phase = phase;
        self.at.next = first_address(phase, &self.request());
    }

    fn advance(&mut self) {
        let next = next_phase(self.at.phase, &self.request(), self.at.blocked);
        if let Phase::SplitBlock(_) | Phase::HideBlock | Phase::EmptyBlock = next {
            self.at.blocked = false;
        }
        self.enter(next);
    }
}

/// Result of one turn of a phase.
enum Turn {
    /// The phase has more to do.
    Again,
    /// Waiting for a fence or flush.
    Await,
    /// The phase is over.
    Done,
}

fn first_phase(request: &Request) -> Phase {
    match request.operation {
        Operation::Share | Operation::Isolate | Operation::Punch => Phase::SplitBlock(Level::L1G),
        Operation::Unshare { .. } => Phase::UnmapHost,
        Operation::Populate { .. } => Phase::SplitBlock(Level::L2M),
        Operation::Prepare => Phase::Map,
        Operation::Coalesce => Phase::Layout,
    }
}

/// Where a phase begins to look. Some look at leaves around the range too.
const fn first_address(phase: Phase, request: &Request) -> u64 {
    match phase {
        Phase::SplitBlock(_) | Phase::Split(_) | Phase::Undo => 0,
        _ => request.range.start().raw(),
    }
}

/// The order of phases. Rounds that blocked nothing need no fence.
fn next_phase(phase: Phase, request: &Request, blocked: bool) -> Phase {
    let operation = request.operation;
    let maps = matches!(operation, Operation::Unshare { .. } | Operation::Populate { .. });
    let after_split = |level| match (level, maps) {
        (Level::L1G, _) => Phase::SplitBlock(Level::L2M),
        (_, true) => Phase::EmptyBlock,
        (_, false) => Phase::HideBlock,
    };
    let hidden = if operation == Operation::Punch { Phase::Remove } else { Phase::Layout };
    match phase {
        Phase::UnmapHost => Phase::FlushHost,
        Phase::FlushHost => Phase::StorePrivate,
        Phase::StorePrivate => Phase::Layout,
        Phase::SplitBlock(level) if blocked => Phase::SplitFence(level),
        Phase::SplitFence(level) => Phase::Split(level),
        Phase::SplitBlock(level) | Phase::Split(level) => after_split(level),
        Phase::HideBlock if blocked => Phase::HideFence,
        Phase::HideBlock | Phase::HideFence => hidden,
        Phase::Layout if operation == Operation::Coalesce => Phase::Ended(Outcome::Converted),
        Phase::Layout if maps => Phase::EmptyBlock,
        Phase::Layout => Phase::Remove,
        Phase::Remove if operation == Operation::Share => Phase::StoreShared,
        Phase::EmptyBlock if blocked => Phase::EmptyFence,
        Phase::EmptyFence => Phase::EmptyUnlink,
        Phase::EmptyBlock | Phase::EmptyUnlink => Phase::Map,
        Phase::Map => Phase::Grace,
        Phase::Grace => Phase::Settle,
        Phase::UndoLayout | Phase::UndoFence if !blocked => Phase::Ended(Outcome::RolledBack),
        Phase::UndoLayout => Phase::UndoFence,
        Phase::UndoFence => Phase::Undo,
        Phase::Undo => Phase::Ended(Outcome::RolledBack),
        Phase::Remove | Phase::StoreShared | Phase::Settle => Phase::Ended(Outcome::Converted),
        Phase::Ended(outcome) => Phase::Ended(outcome),
    }
}

/// The account of an operation that has ended.
#[must_use = "the rest of the reservation is in here"]
#[non_exhaustive]
pub struct Receipt<P: Platform> {
    /// How it ended.
    pub outcome: Outcome,
    /// What the plan made under the claim asked for.
    pub planned: Needs,
    /// What was consumed. Equal to `planned` after [`Outcome::Converted`].
    pub used: Needs,
    /// What went back to the page source.
    pub released: Needs,
    /// What is left of the reservation.
    pub rest: Reservation<P>,
}

impl<P: Platform> fmt::Debug for Receipt<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("outcome", &self.outcome)
            .field("planned", &self.planned)
            .field("used", &self.used)
            .field("released", &self.released)
            .finish_non_exhaustive()
    }
}

impl<P: Platform> fmt::Debug for Commit<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commit")
            .field("plan", &self.plan())
            .field("phase", &self.at.phase)
            .finish_non_exhaustive()
    }
}

/// The commit is past its point of no return.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("past the point of no return: the operation can only go on")]
#[non_exhaustive]
pub struct PastNoReturn;

/// Why a commit did not begin. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal<E> {
    /// Another conversion holds the claim.
    #[error("a block of the range is being converted by somebody else")]
    Contended,
    /// The need has grown since the reservation was made; see [`Reservation::refit`].
    #[error("the plan is out of date: needs {now} now")]
    Stale {
        /// What it needs now.
        now: Needs,
    },
    /// The request can no longer be planned.
    #[error(transparent)]
    Plan(PlanError<E>),
}

impl<E: Classify + 'static> Classify for Refusal<E> {
    fn class(&self) -> Class {
        match self {
            Self::Contended | Self::Stale { .. } => Class::Retry,
            Self::Plan(error) => error.class(),
        }
    }
}

/// Why a step stopped. The commit stands where it stood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError<E> {
    /// The secure table refused.
    #[error("{error}")]
    Tee {
        /// Where.
        at: GpaEntry,
        /// Why.
        #[source]
        error: E,
    },
    /// A reference appeared on a page that must have none.
    #[error("{first:#x} is pinned")]
    Pinned {
        /// The page.
        first: Gpa,
    },
    /// The folios could not be changed: the reservation or the templates are not what the plan saw.
    #[error("folios at {gpa:#x}: {error}")]
    Layout {
        /// The address.
        gpa: Gpa,
        /// Why.
        #[source]
        error: AtomError,
    },
    /// A leaf that the guest can reach is larger than the folio that its memory was to become (I1).
    #[error("leaf {at} is larger than a folio of order {order}")]
    LargerLeaf {
        /// The leaf.
        at: GpaEntry,
        /// Order of the folio.
        order: u8,
    },
    /// Memory without a block, or a leaf that reaches beyond the range: the platform broke its claim.
    #[error("{gpa:#x} changed under the claim")]
    Changed {
        /// The address.
        gpa: Gpa,
    },
}

impl<E: Classify + 'static> Classify for CommitError<E> {
    fn class(&self) -> Class {
        match self {
            Self::Tee { error, .. } => error.class(),
            Self::Pinned { .. } => Class::Retry,
            Self::Layout { error, .. } => error.class(),
            Self::LargerLeaf { .. } | Self::Changed { .. } => Class::Caller,
        }
    }
}
