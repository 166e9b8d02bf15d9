//! The formats, word by word.
//!
//! What a word must look like to an MMU stands in [`mmu`] and [`patterns`], written from the manuals; what it must say to
//! the table stands in [`words`], as a value that the test keeps beside the word.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "tests fail by panicking; their numbers are small"
)]

mod mmu;
mod patterns;
mod subject;
mod words;
