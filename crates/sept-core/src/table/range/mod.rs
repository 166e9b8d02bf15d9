//! Operations on ranges: plan, reserve, commit.
//!
//! | operation | plan | who may |
//! |---|---|---|
//! | map contiguous memory | [`MapPlan`] | anybody, [`SecurePageTable::map_range`] |
//! | split at the ends, or everything | [`SplitPlan`] | anybody, [`Resize`]; in one call where no TEE is, [`SecurePageTable::split_range`] |
//! | merge what can be merged | - | anybody, [`Resize`]; in one call with [`Exclusive`] access |
//! | hide, show, take | - | anybody, [`SecurePageTable::block_range`], [`SecurePageTable::take_range`] |
//! | permissions, inhibits | - | anybody, [`SecurePageTable::protect_range`], [`SecurePageTable::inhibit_range`] |
//! | unmap at once | - | [`Exclusive`] access and no TEE |
//!
//! A plan reads and counts, and is a small value. [`Plan::reserve`] takes exactly the frames it counted into storage of the
//! caller's choice: all allocation happens there. The commit plans again and goes on if what it needs now is reserved;
//! else everything comes back whole ([`RangeError::Stale`]) and [`Reserved::refit`] takes the difference. Nobody holds a
//! lock in between.
//!
//! The interior of a range is never walked to find its ends, and cost grows with the tables that are touched. A
//! range operation that stops half way says where ([`RangeError::Stopped`]): what lies before is done, what lies
//! behind is as it was.

mod attributes;
mod block;
mod map;
mod plan;
mod probe;
mod resize;
mod split;
mod unmap;

pub use block::Blocked;
pub use map::{MapPlan, MapRefused};
pub use plan::{Committed, Plan, Reserved};
pub use probe::Probed;
pub use resize::{Resize, Resized, Turn};
pub use split::{Scope, SplitPlan, SplitRefused};

use super::TableError;
#[cfg(doc)]
use super::{Exclusive, SecurePageTable};
use crate::{ADDRESS_BITS, Class, Classify, Entry, FrameNeeds, Gpa, GpaEntry, GpaRange, Hpa};

/// Why an operation on a range ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError<E> {
    /// A page or table reaches across an end of the range: split it first. Nothing changed.
    #[error("{at} reaches across an end of {range}")]
    Straddles {
        /// The range.
        range: GpaRange,
        /// What reaches across.
        at: GpaEntry,
    },
    /// The memory handed in is not what the plan was made for. Nothing changed.
    #[error("{pages} pages at {hpa:#x} are not what was planned for {range}")]
    Pages {
        /// The range.
        range: GpaRange,
        /// Where the memory begins.
        hpa: Hpa,
        /// How much there is.
        pages: u64,
    },
    /// The table changed since the plan was made, and now more frames are needed. Nothing changed.
    #[error("planned for {} frames, now {} are needed", planned.total(), now.total())]
    Stale {
        /// What was planned for.
        planned: FrameNeeds,
        /// What is needed now.
        now: FrameNeeds,
    },
    /// One entry was refused. Everything before `next` is done, everything from there on is as it was.
    #[error("stopped at {next:#x}: {error}")]
    Stopped {
        /// First address that is not done.
        next: Gpa,
        /// Why.
        error: TableError<E>,
    },
}

impl<E: Classify + 'static> Classify for RangeError<E> {
    fn class(&self) -> Class {
        match self {
            Self::Stale { .. } => Class::Retry,
            Self::Stopped { error, .. } => error.class(),
            _ => Class::Caller,
        }
    }
}

impl<E> RangeError<E> {
    /// An error before or at `next`.
    pub(super) fn stopped(next: u64) -> impl Fn(TableError<E>) -> Self {
        move |error| Self::Stopped { next: Gpa::truncate(next), error }
    }
}

/// Where the next entry of `at`'s level may be, after `found` was found at `at`: behind the hole or page that it lies in.
const fn after<E>(at: GpaEntry, found: &Result<Entry, TableError<E>>) -> u64 {
    match found {
        Err(TableError::NoTable { stop, .. }) => stop.end(),
        Err(TableError::OutOfRange { .. }) => 1 << ADDRESS_BITS,
        _ => at.end(),
    }
}
