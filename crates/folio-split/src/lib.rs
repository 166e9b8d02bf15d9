//! Non-uniform folio layouts with exact costs known before the split.
//!
//! A host backs a confidential VM with large folios, and the guest gives single pages away. Each of those must become
//! a folio of its own; everything around it should stay as large as the host allows. This crate says into which
//! folios a block divides, what that costs before anything is done, which folios change from one moment to the next,
//! and in which order a host makes the change so that it can always be undone.
//!
//! # The idea
//!
//! A layout is the *coarsest* one in which every page of a set is single ([`FolioLayout`]). It is unique, so the set
//! is all the state there is. Before and after a conversion are two sets over one block ([`Transition`]); where the
//! layouts differ, one folio is split or one is formed, and each such difference stands alone. Partial merges,
//! incremental splits, undo and progress are all the same thing: two sets.
//!
//! # The protocol
//!
//! 1. *Plan*: [`Transition::counts`], [`Transition::delta`]. Reads the sets, of constant size, `Copy`.
//! 2. *Reserve*: [`FolioBackend::reserve_nodes`]. The only allocation.
//! 3. *Commit*, for each of [`Transition::changes`]: [`freeze`](FolioBackend::freeze), [`commit_split`] or
//!    [`commit_merge`] with the vmemmap's part around it, [`thaw`](FolioBackend::thaw). Cut with
//!    [`Transition::step`] where an atom must be short.
//! 4. *Undo*: the changes of [`Transition::reversed`]. It needs nothing.
//!
//! ```
//! use folio_split::{Change, Empty, Order, OrderSet, Pfn, PfnBlock, Transition, XArray};
//!
//! let block = PfnBlock::new(Pfn::new(0x40000).unwrap(), Order::HUGE_1G).unwrap();
//! let share = Transition::new(block, OrderSet::ALL, Empty, 1000..1001);
//! let counts = share.counts();
//! assert_eq!(counts.to().folios(), 19);
//! assert_eq!(counts.delta(&XArray::LINUX).needed, 3);
//!
//! // One more page of the same 2 MiB: only the order-8 folio around it is touched.
//! let old = [1000..1001];
//! let new = [600..601, 1000..1001];
//! let more = Transition::new(block, OrderSet::ALL, old.as_slice(), new.as_slice());
//! let whole = block.part(512, Order::new(8).unwrap()).unwrap();
//! assert!(more.changes(0..block.pages()).eq([Change::Split(whole)]));
//! ```
//!
//! # Policies
//!
//! * Each shared page single: the set is the shared pages. Poisoned pages: [`Union`] with them.
//! * Shared runs keep the order of the blocks that lie wholly inside them: [`Large`].
//! * Merge lazily: leave pages in the set that need not be there any more.
//! * No private piece below an order: [`OrderSet::at_least`].
//!
//! # Formulas
//!
//! m_o is the number of aligned order-o blocks that hold a small page; see [`LayoutCounts`]. For a 1 GiB block that
//! holds one:
//!
//! | orders | folios | index nodes ([`XArray::LINUX`]) |
//! |---|---|---|
//! | 18, 9, 0 | 512 + 511 m_9 | 65 + 8 m_9 |
//! | all | 1 + sum of m_o, o = 1 to 18 | 1 + m_12 + m_6 |
//! | 0 | 2^18 | 4161 |
//!
//! No allocation, no recursion, no panic; `no_std`.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod backend;
mod block;
mod changes;
mod cost;
mod counts;
mod index;
mod layout;
mod lines;
mod order;
mod pages;
mod tally;
mod transition;

#[cfg(test)]
mod tests;

pub use backend::{
    CommitError, FolioBackend, NoFolios, OutOfNodes, Pinned, commit_merge, commit_split, nodes_to_split,
};
pub use block::{Pfn, PfnBlock};
pub use changes::{Change, ChangeRun, ChangeRuns, Changes};
pub use cost::{CostDelta, CostModel, FlatArray, TransitionCounts};
pub use counts::LayoutCounts;
pub use index::XArray;
pub use layout::{FolioLayout, Folios};
pub use order::{Order, OrderSet, OrderSetError, Orders};
pub use pages::{Empty, Large, Line, Minus, PageSet, Splice, Union};
pub use transition::Transition;
