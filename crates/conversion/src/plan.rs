//! Plan: what an operation needs, exactly, before anything happens.
//!
//! Nothing is locked and nothing written. The answer is right for the moment of the look; commit asks the same questions
//! again once nobody else may change the answers.

use crate::{
    Needs, Operation, Platform, Request, TeeError,
    layout::layout_cost,
    stage2::{Mapping, Stop, boundary_cost},
};
use core::fmt;
use sept_core::{Class, Classify, FrameKind, Gpa, GpaEntry};

/// What a request needs and what it may release, as things stood when it was made.
///
/// Constant size, no borrow. Commit plans again under the block's claim and compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a plan does nothing by itself"]
pub struct Plan {
    request: Request,
    needs: Needs,
    releasable: Needs,
}

impl Plan {
    /// Plans `request`. Read-only; one walk for each 2 MiB at most, and work on folios for each run of the page sets.
    ///
    /// # Errors
    ///
    /// [`PlanError`]; nothing has changed.
    pub fn new<P: Platform>(platform: &P, request: Request) -> Result<Self, PlanError<TeeError<P>>> {
        if let Operation::Unshare { .. } = request.operation
            && let Some(first) = platform.next_pinned(request.range)
        {
            return Err(PlanError::Pinned { first });
        }
        if request.operation == Operation::Isolate && request.range.pages() != 1 {
            return Err(PlanError::OnePage { pages: request.range.pages() });
        }
        let (mut needs, mut releasable) = layout_cost(platform, &request)?;
        if needs.frames[FrameKind::TailTemplate] != 0 || needs.frames[FrameKind::VmemmapTable] != 0 {
            return Err(PlanError::Unregistered { lacks: needs });
        }
        match Mapping::of(&request) {
            Some(mapping) => {
                let not_ram = PlanError::NotRam { gpa: request.range.start() };
                let (maps, unlinks) = mapping.cost(platform, &request)?.ok_or(not_ram)?;
                needs = needs.plus(Needs::frames(maps));
                releasable = releasable.plus(Needs::frames(unlinks));
            }
            None if request.operation == Operation::Coalesce => {}
            None => {
                let splits = boundary_cost(platform, &request)?;
                needs = needs.plus(Needs::frames(splits));
            }
        }
        Ok(Self { request, needs, releasable })
    }

    /// What was asked for.
    #[must_use]
    pub const fn request(&self) -> Request {
        self.request
    }

    /// What it takes, exactly.
    #[must_use]
    pub const fn needs(&self) -> Needs {
        self.needs
    }

    /// The most that it may release.
    #[must_use]
    pub const fn releasable(&self) -> Needs {
        self.releasable
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: needs {}, may release {}", self.request, self.needs, self.releasable)
    }
}

/// Why a request cannot be planned. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError<E> {
    /// No block backs this address.
    #[error("{gpa:#x} is not memory")]
    NotRam {
        /// First such address.
        gpa: Gpa,
    },
    /// The host holds a reference on a page that is to become private.
    #[error("{first:#x} is pinned")]
    Pinned {
        /// First pinned page of the range.
        first: Gpa,
    },
    /// A page with a memory error is isolated by itself.
    #[error("isolation is of one page at a time, not of {pages}")]
    OnePage {
        /// Pages asked for.
        pages: u64,
    },
    /// Tail templates or page tables of the vmemmap are missing: its zone or block was not registered.
    #[error("the vmemmap is not prepared, all that is needed: {lacks}")]
    Unregistered {
        /// What the operation needs, with the missing templates and tables.
        lacks: Needs,
    },
    /// Somebody is changing an entry at this moment. Plan again.
    #[error("{at} is being changed by somebody else")]
    Contended {
        /// The entry.
        at: GpaEntry,
    },
    /// The secure table could not be read.
    #[error("reading the secure table: {error}")]
    Tee {
        /// Why.
        #[source]
        error: E,
    },
}

impl<E: Classify + 'static> Classify for PlanError<E> {
    fn class(&self) -> Class {
        match self {
            Self::NotRam { .. } | Self::OnePage { .. } | Self::Unregistered { .. } => Class::Caller,
            Self::Pinned { .. } | Self::Contended { .. } => Class::Retry,
            Self::Tee { error } => error.class(),
        }
    }
}

impl<E> From<Stop<E>> for PlanError<E> {
    fn from(stop: Stop<E>) -> Self {
        match stop {
            Stop::Tee { error, .. } => Self::Tee { error },
            Stop::Contended { at } => Self::Contended { at },
        }
    }
}
