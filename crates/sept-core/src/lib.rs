//! Addresses, owned frames and a generic secure page table.
//!
//! The private memory of a confidential VM is mapped through a table that only the TEE may write (TDX: the Secure
//! EPT). The host keeps a *mirror* of it, decides there, and asks the TEE to make each change. This crate is that
//! mirror: [`SecurePageTable`] drives the TEE through the hook trait [`External`], keeps its tables in a
//! [`TableMemory`], and knows nothing of how the TEE is called.
//!
//! * [`Gpa`], [`Hpa`], [`Level`], [`GpaEntry`], [`GpaRange`]: where things are.
//! * [`Frame`], [`FrameNeeds`], [`FrameSource`], [`FrameStore`]: who owns memory, how much is needed, where it waits.
//! * [`SecurePageTable`]: link, map, block, split, merge, remove, unlink; lookups never wait.
//! * [`Fenced`], [`Quiet`], [`Obligation`]: proofs and debts that stand between a change and the reuse of a frame.
//! * [`Class`], [`Classify`], [`Returned`]: what to do about an error, and how owned values come back with it.
//!
//! Nothing here allocates, locks or panics. A table's cost is exact and taken from a store that was filled before
//! ([`SecurePageTable::table_cost`]), so a change that was reserved for cannot fail for want of memory. An operation
//! that fails changed nothing and gives back what it was handed; dropping a frame or an obligation leaks it, never
//! frees it early.
//!
//! # Example
//!
//! On a modelled machine (feature `test-util`): a 2 MiB page is mapped, split into 512 pages and merged again.
//!
//! ```
//! use sept_core::test_util::{Arena, FramePool, MockTee, RamLedger, VecStore};
//! use sept_core::{
//!     Fenced, Fill, FrameKind, FrameSource, FrameStore, Gpa, GpaEntry, Hpa, Level, SecurePageTable, TdxConfig,
//!     TdxMirror,
//! };
//!
//! type Table = SecurePageTable<TdxMirror, Arena, MockTee>;
//!
//! /// Hides an entry and makes every CPU forget it.
//! fn block(table: &Table, at: GpaEntry) -> Fenced {
//!     table.block(at).unwrap();
//!     let ticket = table.fence().unwrap(); // one fence serves everything blocked before it
//!     loop {
//!         if let Some(fenced) = table.fenced(&ticket) {
//!             return fenced;
//!         }
//!     }
//! }
//!
//! let base = Hpa::new(0x10_0000).unwrap();
//! let pool = FramePool::new(base, 16); // the host's page allocator
//! let ram = RamLedger::new(Hpa::new(0x4000_0000).unwrap(), 512); // guest memory: 2 MiB
//! let root = pool.take(FrameKind::MirrorTable, base).unwrap();
//! let config = TdxConfig::LEVELS_4;
//! let memory = Arena::new(base, 16, Box::new(|_, _| {}));
//! let table = Table::new(config, memory, MockTee::new(config.top()), root);
//! let at = |level| GpaEntry::containing(Gpa::new(0x20_0000).unwrap(), level);
//! let page = ram.lend(Hpa::new(0x4000_0000).unwrap(), Level::L2M).unwrap();
//!
//! // Reserve: two tables lead to the page and one is for the split. Nothing allocates from here on.
//! let mut store = VecStore::default();
//! let need = table.table_cost(at(Level::L1G), None).times(3);
//! for kind in FrameKind::ALL {
//!     for _ in 0..need[kind] {
//!         store.put(kind, pool.take(kind, base).unwrap()).unwrap();
//!     }
//! }
//! table.link(at(Level::L512G), None, &mut store).unwrap();
//! table.link(at(Level::L1G), None, &mut store).unwrap();
//! table.map(at(Level::L2M), page, Fill::OnAccept).unwrap();
//!
//! let fenced = block(&table, at(Level::L2M));
//! table.split(at(Level::L2M), &fenced, &mut store).unwrap();
//! assert_eq!(table.external().leaves().len(), 512);
//!
//! let fenced = block(&table, at(Level::L2M));
//! let mut owed = table.obligation();
//! table.merge(at(Level::L2M), &fenced, &mut owed).unwrap();
//! assert_eq!(table.external().leaves().len(), 1);
//!
//! // The table that the merge took out is memory again once no software walk can be in it.
//! let ticket = table.grace();
//! let quiet = table.quiet(&ticket).unwrap();
//! assert_eq!(table.settle(owed, &quiet, &pool).unwrap().total(), 2); // the mirror's page and the TEE's
//!
//! let fenced = block(&table, at(Level::L2M));
//! let page = table.remove(at(Level::L2M), &fenced).unwrap(); // tainted: written under the guest's key
//! ram.take_back(table.reclaim(page).unwrap()).unwrap();
//! ```
#![no_std]

#[cfg(feature = "test-util")]
extern crate std;

mod addr;
mod error;
mod external;
mod fence;
mod fill;
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
pub use fill::FillError;
pub use format::{Entry, FenceOrder, Format, LeafState, Stamp, TdxConfig, TdxMirror};
pub use frame::{Frame, FrameKind, FrameNeeds, FrameSource, FrameState, FrameStore, Free, Tainted};
pub use memory::{SideWord, TableMemory, Word};
pub use table::{
    Entries, FenceTicket, Fenced, Found, Obligation, Quiet, SecurePageTable, TableError, Teardown, Torn,
    Unsettled,
};
