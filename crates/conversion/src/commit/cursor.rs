//! Where a commit stands, and how much one step may still do.

use super::{Outcome, order::Phase};
use crate::{Request, Tee};
use sept_core::{Frame, GpaEntry, Tainted};

/// Look-ups without a call that count as one call.
const LOOKS: u32 = 512;

/// What is left of a [`Bound`](super::Bound).
#[derive(Debug)]
pub(crate) struct Budget {
    calls: u32,
    looks: u32,
}

impl Budget {
    pub(crate) fn new(calls: u32) -> Self {
        Self { calls: calls.max(1), looks: LOOKS }
    }

    pub(crate) const fn is_spent(&self) -> bool {
        self.calls == 0
    }

    /// A call was made.
    pub(crate) const fn call(&mut self) {
        self.calls = self.calls.saturating_sub(1);
    }

    /// Something was looked at.
    pub(crate) const fn look(&mut self) {
        self.looks = self.looks.saturating_sub(1);
        if self.looks == 0 {
            self.looks = LOOKS;
            self.call();
        }
    }
}

/// The state of a commit beside its reservation.
pub(super) struct Cursor<T: Tee> {
    pub(super) phase: Phase,
    /// Next address that the phase looks at.
    pub(super) next: u64,
    /// Whether the present round has blocked anything.
    pub(super) blocked: bool,
    /// Whether folios may have been split.
    pub(super) relaid: bool,
    /// Whether something was done that is not undone: an attribute stored, a page mapped, a table taken out.
    pub(super) changed: bool,
    /// Whether something was done after which the operation can only go on.
    pub(super) removed: bool,
    /// Whether the operation was cancelled.
    pub(super) turned: bool,
    /// How it ends if nothing else happens.
    pub(super) ending: Outcome,
    pub(super) ticket: Option<T::Ticket>,
    pub(super) fenced: Option<T::Fenced>,
    pub(super) quiet: Option<T::Quiet>,
    pub(super) owed: T::Obligation,
    /// A removed page that is not written back yet.
    pub(super) held: Option<(GpaEntry, Frame<Tainted>)>,
    /// The entry that the TEE refused to change last.
    pub(super) refused: Option<GpaEntry>,
}

impl<T: Tee> Cursor<T> {
    pub(super) fn new(request: &Request, owed: T::Obligation) -> Self {
        let phase = Phase::first(request);
        Self {
            phase,
            next: phase.first_address(request),
            blocked: false,
            relaid: false,
            changed: false,
            removed: false,
            turned: false,
            ending: Outcome::Converted,
            ticket: None,
            fenced: None,
            quiet: None,
            owed,
            held: None,
            refused: None,
        }
    }
}
