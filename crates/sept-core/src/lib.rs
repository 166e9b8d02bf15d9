//! Addresses, owned frames and a generic secure page table.
//!
//! The private memory of a confidential VM is mapped through a table that only the TEE may write (TDX: the Secure
//! EPT). The host keeps a *mirror* of it, decides there, and asks the TEE to make each change. This crate is that
//! mirror: [`SecurePageTable`] drives the TEE through the hook trait [`External`], keeps its tables in a
//! [`TableMemory`], and knows nothing of how the TEE is called. The same algorithm serves tables that an MMU walks and no TEE
//! keeps ([`Direct`]): Intel EPT, AMD nested paging, x86-64 long mode.
//!
//! * [`Gpa`], [`Hpa`], [`Level`], [`GpaEntry`], [`GpaRange`]: where things are.
//! * [`Frame`], [`Frames`], [`FrameNeeds`], [`FrameSource`], [`FrameStore`]: who owns memory, how much is needed, where it
//!   waits.
//! * [`TdxMirror`], [`Ept`], [`X86`], [`Rtt`]: what the words of a table say; [`LinearMap`], [`FrameSlice`]: where they are.
//! * [`SecurePageTable`]: link, map, protect, block, split, merge, remove, unlink, inhibit; lookups never wait. By range:
//!   [`MapPlan`] and [`SplitPlan`] count, [`Plan::reserve`] allocates, the commit cannot fail for want of memory;
//!   [`Resize`] does it in steps beside a running guest.
//! * [`Exclusive`]: the same for the one thread that has the table by `&mut`, at the price of plain stores.
//! * [`Fenced`], [`Quiet`], [`Obligation`]: proofs and debts that stand between a change and the reuse of a frame.
//! * [`Class`], [`Classify`], [`Returned`]: what to do about an error, and how owned values come back with it.
//!
//! Nothing here allocates, locks or panics. Costs are exact and taken from a store that was filled before, so a change
//! that was reserved for cannot fail for want of memory. An operation that fails changed nothing and gives back what it was
//! handed; one over a range says how far it came. Dropping a frame or an obligation leaks it, never frees it early.
//!
//! # A host's own EPT
//!
//! Eight frames of its own, no TEE: a 2 MiB page is mapped, one page of it is taken away.
//!
//! ```
//! use sept_core::{
//!     Direct, Ept, EptConfig, FrameKind, FrameSlice, FrameStore, Frames, Gpa, GpaEntry,
//!     GpaRange, Hpa, Level, Plan, Scope, SecurePageTable, Shootdown, SideWords, SliceStore,
//!     TableFrame,
//! };
//! # use sept_core::{Frame, FrameSource};
//! # struct Pool(core::cell::RefCell<Frames>);
//! # impl FrameSource for Pool {
//! #     fn take(&self, _: FrameKind, _: Hpa) -> Option<Frame> { self.0.borrow_mut().take(Level::L4K) }
//! #     fn give(&self, _: FrameKind, frame: Frame) { drop(frame) }
//! # }
//!
//! /// One CPU, which flushes before it goes on.
//! struct Flush;
//! // SAFETY: when `start` returns, the only CPU has flushed; nobody else walks.
//! unsafe impl Shootdown for Flush {
//!     type Ticket = ();
//!     fn start(&self) { /* INVEPT */ }
//!     fn done(&self, (): ()) -> bool { true }
//! }
//!
//! let (mut frames, mut sides) = ([TableFrame::ZERO; 8], [SideWords::ZERO; 8]);
//! let base = Hpa::new(0x10_0000).unwrap(); // where `frames` is in physical memory
//! // SAFETY: nothing walks this table, and the frames are used here only.
//! let slice = unsafe { FrameSlice::new(base, &mut frames, &mut sides, |_, _| ()) };
//! let (memory, mut free) = slice.unwrap();
//! let root = free.take(Level::L4K).unwrap();
//! # let pool = Pool(core::cell::RefCell::new(free));
//! type Table<'a> = SecurePageTable<Ept, FrameSlice<'a>, Direct<Flush>>;
//! let mut table = Table::new(EptConfig::LEVELS_4, memory, Direct::new(Flush), root);
//!
//! // Plan, reserve, commit: three tables lead to a 2 MiB page, the root among them.
//! let range = GpaRange::new(Gpa::new(0x4000_0000).unwrap(), 0x20_0000).unwrap();
//! let ram = Hpa::new(0x8000_0000).unwrap();
//! let plan = table.plan_map(range, ram, Level::L1G).unwrap();
//! assert_eq!(plan.needs()[FrameKind::MirrorTable], 2);
//! let mut slots = [const { None }; 4];
//! let reserved = plan.reserve(&pool, SliceStore::new(&mut slots)).unwrap();
//! // SAFETY: nobody else uses that memory.
//! let pages = unsafe { Frames::assume_owned(ram, range.pages()) }.unwrap();
//! let done = table.map_range(reserved, pages).unwrap();
//! assert_eq!(done.used, plan.needs());
//!
//! // One page in the middle: split around it, under the running guest, then unmap it.
//! let page = GpaRange::new(Gpa::new(0x4000_5000).unwrap(), 0x1000).unwrap();
//! let plan = table.plan_split(page, Scope::Ends).unwrap();
//! assert_eq!(plan.splits(Level::L2M), 1);
//! let reserved = plan.reserve(&pool, done.rest).unwrap();
//! let _empty = table.split_range(reserved).unwrap();
//! let mut owed = table.obligation();
//! let at = GpaEntry::containing(page.start(), Level::L4K);
//! let unmapped = table.exclusive().unmap(at, &mut owed).unwrap();
//! assert!(table.translate(page.start()).is_none());
//! assert_eq!(table.translate(Gpa::new(0x4000_6123).unwrap()).unwrap().hpa.raw(), 0x8000_6123);
//!
//! // A CPU may still reach it until a fence has ended.
//! let ticket = table.fence().unwrap();
//! let fence = table.fenced(&ticket).unwrap();
//! assert_eq!(table.take(unmapped, &fence).unwrap().hpa().raw(), 0x8000_5000);
//! ```
//!
//! # A mirror in front of a TEE
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
mod direct;
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
pub use direct::{Direct, HardwareWalked, HostOwned};
pub use error::{Class, Classify, Returned};
pub use external::{CacheKey, Donated, External, Fill, Observed};
pub use fence::{Shootdown, TreeLock};
pub use format::{
    Entry, Ept, EptConfig, FenceOrder, Format, Hipas, LeafState, Permissions, Ripas, Rtt, RttConfig, Stamp,
    TdxConfig, TdxMirror, X86, X86Config,
};
pub use frame::{
    Frame, FrameKind, FrameList, FrameNeeds, FrameSource, FrameState, FrameStore, Frames, Free, Short,
    SliceStore, Tainted,
};
pub use memory::{FrameSlice, LinearHost, LinearMap, SideWord, SideWords, TableFrame, TableMemory, Word};
pub use table::{
    Blocked, Broken, Census, Committed, Entries, Exclusive, ExclusiveWalker, FenceTicket, Fenced, Flaw,
    Found, MapPlan, MapRefused, Obligation, Plan, Probed, Quiet, RangeError, Reserved, Resize, Resized, Run,
    Runs, Scope, SecurePageTable, SplitPlan, SplitRefused, TableError, Teardown, Torn, Translation, Turn,
    Unmapped, Unsettled, Walker,
};
