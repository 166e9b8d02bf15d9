//! The protocol of the page table under every interleaving of two threads and every outcome that the memory model allows:
//! `ci/loom.sh`.
//!
//! The models drive the real [`SecurePageTable`](sept_core::SecurePageTable). Its words live in a memory of loom's atomics,
//! those at least that two threads touch ([`memory`]); software walks are registered, so that a shootdown says *done* only
//! when they are over; and a table that was given back to the pool fails the model when it is read. [`mmu`] has tables that an
//! MMU walks, [`tee`] those in front of a TEE that keeps its own record and is never called about one entry twice at once.
//!
//! A model proves something only if it fails when the protocol is broken. What to break is said at each, and was tried.
#![cfg(loom)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a model that overflows or misses an index has failed"
)]

mod memory;
mod mmu;
mod rig;
mod tee;
