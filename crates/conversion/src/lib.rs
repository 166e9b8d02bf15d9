//! Private/shared conversion of guest memory.
#![no_std]
#![forbid(unsafe_code)]

mod commit;
mod layout;
mod observe;
mod plan;
mod platform;
mod promote;
mod request;
mod reserve;
mod stage2;
mod tee;

pub use commit::{Bound, Commit, CommitError, Outcome, PastNoReturn, Receipt, Refusal, Step};
pub use observe::{Event, Observer};
pub use plan::{Plan, PlanError};
pub use platform::{Block, Pages, Platform, Scope, Visibility};
pub use promote::Promotion;
pub use request::{Needs, Operation, Request};
pub use reserve::{RefitError, Reservation, ReserveError};
pub use tee::Tee;

/// The error type of a platform's secure table.
pub type TeeError<P> = <<P as Platform>::Tee as Tee>::Error;
