//! Behaviour of the model through its public interface.

mod common;
mod contents;
mod dynamic_pamt;
mod entries;
mod faults;
mod lifecycle;
mod metadata;
mod order;
mod pages;
mod tracking;
mod worked_trace;
mod write_blocks;
