//! Addresses, owned frames and a generic secure page table.
#![no_std]

#[cfg(feature = "test-util")]
extern crate std;

mod addr;
mod error;
mod fence;
mod frame;

pub use addr::{ADDRESS_BITS, Gpa, GpaEntry, GpaRange, Hpa, Level};
pub use error::{Class, Classify, Returned};
pub use fence::{Shootdown, TreeLock};
pub use frame::{Frame, FrameKind, FrameNeeds, FrameSource, FrameState, FrameStore, Free, Tainted};
