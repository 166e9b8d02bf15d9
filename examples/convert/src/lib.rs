//! The parts of `convert`: scenarios, the engine that runs them, and what it shows.

pub mod cli;
pub mod engine;
pub mod options;
pub mod outcome;
pub mod report;
pub mod scenario;
pub mod view;

/// The example in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
