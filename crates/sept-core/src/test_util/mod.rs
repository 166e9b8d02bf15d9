//! Test doubles on std: memory for tables, a page source that knows who holds what, storage for reservations, a TEE.
//!
//! They stand for the host's memory in tests and in programs that run on a modelled machine. Frames minted here name
//! modelled memory only; never mix them with a [`TableMemory`](crate::TableMemory) that dereferences addresses.

mod arena;
mod kick;
mod pool;
mod ram;
pub mod sequence;
mod tee;

pub use arena::{Arena, Scrub};
pub use kick::Kick;
pub use pool::{FramePool, VecStore};
pub use ram::RamLedger;
pub use tee::{MockFault, MockLeaf, MockOp, MockPages, MockRefusal, MockTee, MockTicket};
