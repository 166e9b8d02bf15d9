//! Tables that no TEE keeps: formats that an MMU walks, ranges, exclusive access.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "tests fail by panicking; their numbers are small"
)]

mod fences;
mod limits;
mod ranges;
mod reads;
mod rig;
mod threads;
mod world;
