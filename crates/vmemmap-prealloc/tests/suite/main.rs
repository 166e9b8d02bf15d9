//! Needs, reservations and commits on the model host.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "a test that overflows or misses an index has failed"
)]

mod commits;
mod common;
mod exhaustive;
mod formulas;
mod half_done;
mod numa;
mod readers;
mod shortage;
mod tables;
mod transitions;
