//! Typed host-side SEAMCALL wrappers for Intel TDX.
#![no_std]

mod transport;

pub use transport::{Call, Regs, Transport};
