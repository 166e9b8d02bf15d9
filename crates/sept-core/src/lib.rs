//! Addresses, owned frames and a generic secure page table.
#![no_std]

#[cfg(feature = "test-util")]
extern crate std;

mod addr;
mod error;
mod external;
mod fence;
mod format;
mod frame;
mod memory;
mod table;
#[cfg(feature = "test-util")]
pub mod test_util;

pub use addr::{ADDRESS_BITS, Gpa, GpaEntry, GpaRange, Hpa, Level};
pub use error::{Class, Classify, Returned};
pub use external::{CacheKey, Donated, External, Fill, Observed};
pub use fence::{Shootdown, TreeLock};
pub use format::{Entry, FenceOrder, Format, LeafState, Stamp, TdxConfig, TdxMirror};
pub use frame::{Frame, FrameKind, FrameNeeds, FrameSource, FrameState, FrameStore, Free, Tainted};
pub use memory::{SideWord, TableMemory, Word};
pub use table::{
    Entries, FenceTicket, Fenced, Found, Obligation, Quiet, SecurePageTable, TableError, Unsettled,
};
