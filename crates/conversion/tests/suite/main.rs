//! Conversions against a TEE that keeps its own record, a host whose `struct page`s are read back, and a page by page
//! reference.
//!
//! Expected values come from those, or from the formulas in `common/forms.rs`; never from the crate under test.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests fail by panicking; their numbers are small"
)]

mod common;
mod faults;
mod needs;
mod operations;
mod pins;
mod promotion;
mod random;
mod reserve;
