//! Private/shared conversion of guest memory, for any hypervisor of confidential VMs.
//!
//! A confidential VM turns pieces of its memory from *private* (encrypted, mapped through a table that only the TEE may
//! touch) to *shared* and back, while the host backs it with 1 GiB folios whose vmemmap is optimized away. This crate
//! carries one such operation out, so that it either did not happen or happens completely, and no page that the guest
//! did not give up is ever touched. It drives a [`Tee`] (any [`SecurePageTable`](sept_core::SecurePageTable) is one) and
//! the host's own [`Platform`].
//!
//! # Four phases
//!
//! 1. [`Plan::new`] reads, and says exactly what a [`Request`] needs and what it may release.
//! 2. [`Plan::reserve`] allocates all of it, and is the only thing here that allocates. If it fails nothing happened.
//! 3. [`Reservation::commit`] claims the blocks and plans again; [`Commit::step`] does a bounded piece of work and
//!    returns; [`Commit::cancel`] turns it round; [`Commit::finish`] gives the claim back. It never fails for want of
//!    memory. The point of no return is the removal of exactly the pages that the guest gave up, and comes last.
//! 4. What hardware or other CPUs may still reach is an obligation inside the commit, and becomes frames only after a
//!    fence, a flush or a grace period that is polled, never waited for ([`Step::AwaitFence`]).
//!
//! ```
//! use gpa_conversion::{Bound, Plan, Platform, Receipt, Request, Step};
//! use sept_core::{Class, Classify, FrameSource};
//!
//! /// What a host's ioctl does. `wait` gives up the CPU until a fence may have ended.
//! fn convert<P: Platform>(
//!     host: &P,
//!     pages: &dyn FrameSource,
//!     store: P::Store,
//!     request: Request,
//!     wait: impl Fn(),
//! ) -> Option<Receipt<P>> {
//!     let plan = Plan::new(host, request).ok()?;
//!     let reserved = plan.reserve(host, pages, store).ok()?;
//!     let mut commit = match reserved.commit(host) {
//!         Ok(commit) => commit,
//!         Err(refused) => {
//!             drop(refused.held.release(host, pages)); // or `refit`, and try again
//!             return None;
//!         }
//!     };
//!     let mut refused = 0;
//!     loop {
//!         match commit.step(host, Bound::calls(64), pages, &mut ()) {
//!             Ok(Step::Ended) => return commit.finish(host).ok(),
//!             Ok(Step::AwaitFence) => wait(),
//!             Ok(_) => refused = 0,
//!             Err(error) if error.class() == Class::Fatal => commit.abandon(),
//!             Err(_) => {
//!                 refused += 1;
//!                 if refused > 16 {
//!                     let _ = commit.cancel(); // past the point of no return it can only go on
//!                 }
//!             }
//!         }
//!     }
//! }
//! ```
//!
//! A whole host, as small as can be, is the example of [`Platform`].
//!
//! # Two directions, and promotion
//!
//! *Private to shared* ([`Operation::Share`]): leaves at the ends of the range are split (1 GiB round, then 2 MiB round),
//! the range is blocked and fenced, folios and vmemmap are split, pages are removed, the attribute is stored.
//! *Shared to private* ([`Operation::Unshare`]): host mappings are dropped and flushed, pins are looked for, the
//! attribute is stored, folios are merged, pages are mapped for the guest to accept. The host cannot see an acceptance,
//! so growing small leaves together again is a pass of its own, [`Promotion`].
//!
//! # Who may call what, when
//!
//! * Planning needs no lock: a plan that is out of date is found out under the claim ([`Refusal::Stale`]).
//! * One conversion per block at a time, by [`Platform::claim`]; conversions of different blocks run in parallel.
//! * Faults go on during a commit, but inside the range they wait ([`Platform::set_converting`]), and beside it they map
//!   nothing larger than the folios allow. No lock is held between steps: a commit can be parked, or driven by another
//!   thread.
//! * [`Promotion`] holds no claim. Run it while no conversion of its range is under way.
//! * Calls into the TEE may contend. Errors have a [`Class`](sept_core::Class): *retry* and *quiesce* ask for another
//!   step (with vCPUs held out), *caller* is a mistake, *fatal* means that the TEE is lost.
//!
//! # Memory errors
//!
//! A page that the host learns is broken is taken out with [`Operation::Isolate`]: a folio of its own, out of the guest,
//! handed to [`Platform::poison`] and never used again, while all around it stays. Its reservation may be a standing one
//! ([`Reservation::keep`]), so that isolation does not depend on free memory at that moment.
//!
//! # Cost
//!
//! No allocation, no statics, no locks. Work of a plan: one walk for each 2 MiB of the range at most and a pass over the
//! runs of the block's page sets. Frames: as planned, to the page; `m(o)` being the number of aligned blocks of order `o`
//! that hold a shared page, one optimized 1 GiB block takes `511 + 7 m(9)` vmemmap pages and `65 + 8 m(9)` index nodes
//! with folio orders {18, 9, 0}, and the sum of `m(7)` to `m(18)` and `1 + m(12) + m(6)` with all orders; each leaf that
//! is split (at most two of a size) takes one TEE table page and its mirror.
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
