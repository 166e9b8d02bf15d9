//! Behaviour of the model through its public interface.

mod common;
mod contents;
mod dynamic_pamt;
mod faults;
mod lifecycle;
mod worked_trace;
