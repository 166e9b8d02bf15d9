//! The secure page table against a TEE that keeps its own record.
//!
//! Expected values come from [`sept_core::test_util::MockTee`], from page-by-page references kept here, or from the
//! documented rules of the TDX module; never from the table under test.

#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::missing_panics_doc,
    reason = "tests fail by panicking; their numbers are small"
)]

mod changes;
mod contention;
mod fences;
mod formats;
mod reference;
mod resize;
mod rig;
mod settle;
mod threads;
