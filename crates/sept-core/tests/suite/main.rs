//! The secure page table against a TEE that keeps its own record.
//!
//! Expected values come from [`sept_core::test_util::MockTee`], from page-by-page references kept here, or from the
//! documented rules of the TDX module; never from the table under test.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::std_instead_of_core,
    reason = "tests fail by panicking; their numbers are small"
)]

mod changes;
mod contention;
mod doubles;
mod fences;
mod operations;
mod reference;
mod resize;
mod rig;
mod settle;
mod teardown;
mod threads;
