//! Commit: carries a reserved plan out, step by step, without allocating.
//!
//! # Protocol
//!
//! [`Reservation::commit`] claims the blocks, marks the range as converting and plans again; if the need has grown,
//! plan and reservation come back whole. A [`Commit`] borrows nothing: it is a phase, a cursor and what it still
//! owes, so it can be parked between any two [`Commit::step`]s. A step that fails leaves it where it was, to be stepped
//! again or cancelled.
//!
//! | operation | phases |
//! |---|---|
//! | share | split boundary leaves (1G round, then 2M round), block the range, fence, split folios, remove, store attribute |
//! | isolate | the same for one page, which is marked poisoned in place of the attribute |
//! | punch | the same without folios and attribute |
//! | unshare | drop host mappings, flush, look at pins, store attribute, merge folios, split and map as populate does |
//! | populate | split leaves that are too large, take out empty tables, map |
//! | prepare | link tables |
//! | coalesce | merge folios |
//!
//! Each split round blocks its leaves, fences once and splits. The leaves of the range itself are blocked before
//! folios are split, so no leaf that the guest can reach is ever larger than its folio, and the first removal is the
//! point of no return: until then [`Commit::cancel`] turns everything round (folios merged again, leaves unblocked
//! after a fence; pages that were split stay as smaller leaves for the next promotion pass). After it the commit can
//! only go on. The operations that map destroy nothing: cancelled half way they stop where they are, and a page that
//! was not mapped is a fault to come.
//!
//! *Giving up after contention.* A call that a TEE refused may leave a mark on the entry that keeps the guest out until
//! a host call on it succeeds (TDX: the host-priority flag). So a cancelled commit first reads the entry that was
//! refused last, until that succeeds.
//!
//! `Drop` does nothing: a dropped commit leaks its claim and reservation, and frees nothing.

mod cursor;
mod end;
mod guest;
mod map;
mod order;

pub use end::{CommitError, Outcome, PastNoReturn, Receipt, Refusal};

use crate::{
    Needs, Observer, Plan, Platform, Request, Reservation, Scope, Tee, TeeError,
    stage2::{Mapping, widened},
};
use core::fmt;
pub(crate) use cursor::Budget;
use cursor::Cursor;
use order::Phase;
use sept_core::{Class, Classify, FrameSource, Gpa, GpaRange, Level, Returned};

/// The most that one [`Commit::step`] or [`Promotion::step`](crate::Promotion::step) does before it returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Bound {
    /// Calls into the secure table that change it or ask the TEE; a folio atom and 512 look-ups that lead to no call
    /// count as one each. 0 counts as 1.
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
    /// A fence, flush or grace period is under way: step again when it may have ended. No progress is made before.
    AwaitFence,
    /// At the end: call [`Commit::finish`].
    Ended,
}

/// An operation under way. See the protocol in the source of this module, and the [crate](crate) for who may call what.
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
    /// Claims the range, marks it as converting and plans again. Costs what [`Plan::new`] costs; makes no TEE call.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: nothing changed, and the reservation comes back whole. After [`Refusal::Stale`],
    /// [`Reservation::refit`] takes what is missing.
    pub fn commit(self, platform: &P) -> Result<Commit<P>, Returned<Refusal<TeeError<P>>, Self>> {
        let request = self.plan.request();
        let scope = if request.is_fault() { Scope::Range } else { Scope::Blocks };
        let around = widened(platform, request.range, Level::L2M).align_out(Level::L2M);
        let Some(claim) = platform.claim(around, scope) else {
            return Err(Returned { error: Refusal::Contended, held: self });
        };
        // Marked before the plan is made again: no fault may change what it sees.
        if !request.is_fault() {
            platform.set_converting(request.range, true);
        }
        let start = self.holds(platform);
        let refusal = match Plan::new(platform, request) {
            Ok(plan) if start.covers(&plan.needs()) => {
                let at = Cursor::new(&request, platform.tee().obligation());
                let reservation = Self { plan, ..self };
                return Ok(Commit { reservation, claim, start, released: Needs::default(), flush: None, at });
            }
            Ok(plan) => Refusal::Stale { now: plan.needs() },
            Err(error) => Refusal::Plan(error),
        };
        if !request.is_fault() {
            platform.set_converting(request.range, false);
        }
        platform.release(claim);
        Err(Returned { error: refusal, held: self })
    }
}

impl<P: Platform> Commit<P> {
    /// The plan that is carried out: the one made under the claim.
    pub const fn plan(&self) -> Plan {
        self.reservation.plan
    }

    /// Goes on for at most `bound`. Frames that become free go to `to`; events go to `observer` as they happen.
    ///
    /// Never waits and never allocates. The longest thing between two looks at the bound is one atom: 1 GiB of folios to
    /// 2 MiB ones, 2 MiB to pages, or one TEE call.
    ///
    /// # Errors
    ///
    /// The commit stands where it stood. Step again after an error of class [`Class::Retry`], or, with vCPUs held out,
    /// [`Class::Quiesce`]; or [cancel](Self::cancel).
    pub fn step(
        &mut self,
        platform: &P,
        bound: Bound,
        to: &dyn FrameSource,
        observer: &mut impl Observer,
    ) -> Result<Step, CommitError<TeeError<P>>> {
        let mut budget = Budget::new(bound.calls);
        // Each turn spends something or ends a phase, and there are fewer phases than this.
        for _ in 0..bound.calls.saturating_add(64) {
            if let Phase::Ended(_) = self.at.phase {
                return Ok(Step::Ended);
            }
            if budget.is_spent() {
                return Ok(Step::Again);
            }
            match self.turn(platform, &mut budget, to, observer) {
                Ok(Turn::Again) => {}
                Ok(Turn::Await) => return Ok(Step::AwaitFence),
                Ok(Turn::Done) => self.advance(observer),
                Err(error) => {
                    self.at.note_refusal(&error);
                    return Err(error);
                }
            }
        }
        Ok(Step::Again)
    }

    /// Gives the operation up without losing anything. It still has to be stepped to its end: unblocking needs a fence.
    ///
    /// Before anything was changed for good it is turned round and ends as [`Outcome::RolledBack`]; folios that it
    /// split are merged again unless they are pinned, to the coarsest layout that attributes allow. An operation that
    /// maps or merges stops where it is ([`Outcome::Stopped`]). Cancelling twice is cancelling once.
    ///
    /// # Errors
    ///
    /// A page was removed, or the operation has ended; the commit can only go on.
    pub fn cancel(&mut self) -> Result<(), PastNoReturn> {
        if self.at.turned {
            return Ok(());
        }
        if self.at.removed || matches!(self.at.phase, Phase::Ended(_) | Phase::Grace | Phase::Settle) {
            return Err(PastNoReturn);
        }
        self.at.ending = if self.at.changed { self.stopped() } else { Outcome::RolledBack };
        self.at.turned = true;
        self.enter(Phase::Yield);
        Ok(())
    }

    /// Gives up because the TEE is lost: no further call is made. Step on until [`Step::Ended`].
    ///
    /// An operation that removes pages ends as [`Outcome::Poisoned`] with what was not finished; one that maps or
    /// merges as [`Outcome::Stopped`]. Entries that are blocked stay blocked, and frames on their way out of the TEE are
    /// leaked. Where nothing is left that could fail this changes nothing.
    pub fn abandon(&mut self) {
        let outcome = match self.at.phase {
            Phase::Ended(_) | Phase::StoreShared | Phase::StorePrivate => return,
            Phase::Grace | Phase::Settle => self.at.ending,
            Phase::Remove => match self.unfinished() {
                Some(range) => Outcome::Poisoned { range },
                None => return,
            },
            _ if self.request().removes() => Outcome::Poisoned { range: self.request().range },
            _ if self.at.turned => self.at.ending,
            _ => self.stopped(),
        };
        self.at.phase = Phase::Ended(outcome);
    }

    /// Ends the operation: the claim is released, and faults go on.
    ///
    /// # Errors
    ///
    /// The commit is not at its end yet and comes back.
    pub fn finish(self, platform: &P) -> Result<Receipt<P>, Self> {
        let Phase::Ended(outcome) = self.at.phase else { return Err(self) };
        if !self.request().is_fault() {
            platform.set_converting(self.request().range, false);
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
        self.at.next = phase.first_address(&self.request());
    }

    fn advance(&mut self, observer: &mut impl Observer) {
        let next = self.at.next_phase(&self.request());
        self.at.blocked &= !next.begins_round();
        if let Phase::Ended(Outcome::RolledBack) = next {
            observer.event(crate::Event::RolledBack);
        }
        self.enter(next);
    }

    /// How an operation ends that stops here: from the cursor on if that is at what it does last.
    fn stopped(&self) -> Outcome {
        let last = match self.request().operation {
            crate::Operation::Coalesce => Phase::Layout,
            _ => Phase::Map,
        };
        let rest = if self.at.phase == last { self.unfinished() } else { Some(self.request().range) };
        rest.map_or(Outcome::Converted, |range| Outcome::Stopped { range })
    }

    /// The request from the cursor on, with a page that was removed and not written back.
    fn unfinished(&self) -> Option<GpaRange> {
        let range = self.request().range;
        let next = self.at.held.as_ref().map_or(self.at.next, |(at, _)| at.gpa().raw());
        let next = Gpa::new(next)?.align_down(Level::L4K).max(range.start());
        GpaRange::new(next, range.end().checked_sub(next.raw())?)
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

impl<T: Tee> Cursor<T> {
    /// Remembers an entry that the TEE refused and may have marked.
    fn note_refusal(&mut self, error: &CommitError<T::Error>) {
        if let CommitError::Tee { at, error } = error
            && matches!(error.class(), Class::Retry | Class::Quiesce)
        {
            self.refused = Some(*at);
        }
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
