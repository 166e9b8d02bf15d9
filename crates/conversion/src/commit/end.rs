//! How a commit begins not at all, stops, and ends.

use crate::{Needs, PlanError, Platform, Reservation, stage2::Stop};
use core::fmt;
use sept_core::{Class, Classify, Gpa, GpaEntry, GpaRange};
use vmemmap_prealloc::AtomError;

/// How a commit ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// Done.
    Converted,
    /// Cancelled before anything was changed for good, and turned round.
    RolledBack,
    /// An operation that maps or merges was cancelled half way. Nothing is lost: what was done is complete in itself (an
    /// unshare has stored the attribute), and asking for the rest again is cheap.
    Stopped {
        /// What was not mapped or merged, as far as it needed to be.
        range: GpaRange,
    },
    /// The TEE was lost in an operation that removes pages ([`Commit::abandon`](crate::Commit::abandon)).
    Poisoned {
        /// What was not finished. What the request names before it was removed; everything else was not touched.
        range: GpaRange,
    },
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
    /// What went back to the page source: at most [`Plan::releasable`](crate::Plan::releasable), or, after a rollback,
    /// at most `used`. What a rollback used and did not release stands behind smaller leaves until they are promoted.
    pub released: Needs,
    /// What is left of the reservation: [release](Reservation::release) or [keep](Reservation::keep) it.
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

/// The commit is past its point of no return, or at its end.
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
    /// Somebody is changing an entry at this moment: a fault that began before the range was claimed. Step again.
    #[error("{at} is being changed by somebody else")]
    Contended {
        /// The entry.
        at: GpaEntry,
    },
    /// A reference appeared on a page that must have none. Step again when it may be gone, or cancel.
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
    /// A leaf that the guest can reach is larger than the folio that its memory was to become (I1): nothing was split.
    #[error("leaf {at} is larger than a folio of order {order}")]
    LargerLeaf {
        /// The leaf.
        at: GpaEntry,
        /// Order of the folio.
        order: u8,
    },
    /// A leaf is larger than the folio that the platform's record guarantees: something was mapped too large.
    #[error("{leaf} is larger than the folio that is recorded for it")]
    TooLarge {
        /// The leaf.
        leaf: GpaEntry,
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
            Self::Contended { .. } | Self::Pinned { .. } => Class::Retry,
            Self::Layout { error, .. } => error.class(),
            Self::LargerLeaf { .. } | Self::TooLarge { .. } | Self::Changed { .. } => Class::Caller,
        }
    }
}

impl<E> From<Stop<E>> for CommitError<E> {
    fn from(stop: Stop<E>) -> Self {
        match stop {
            Stop::Tee { at, error } => Self::Tee { at, error },
            Stop::Contended { at } => Self::Contended { at },
        }
    }
}
