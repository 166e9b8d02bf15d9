//! Non-uniform folio layouts with exact costs known before the split.
#![no_std]
#![forbid(unsafe_code)]

mod backend;
mod block;
mod counts;
mod index;
mod layout;
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
pub use counts::LayoutCounts;
pub use index::{FlatArray, IndexDelta, IndexModel, XArray};
pub use layout::{FolioLayout, Folios};
pub use order::{Order, OrderSet, OrderSetError, Orders};
pub use pages::{Empty, Minus, PageSet, Splice, Union};
pub use transition::{Change, Changes, Transition, TransitionCounts};
