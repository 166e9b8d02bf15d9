//! The host's folios and page index, and the order of calls in which a change is made.
//!
//! Everything that can fail comes before [`FolioBackend::freeze`], or is that call:
//!
//! 1. [`reserve_nodes`](FolioBackend::reserve_nodes): takes what [`Transition::delta`] says, or nothing.
//! 2. [`freeze`](FolioBackend::freeze): all folios inside the whole get reference count 0, or none does and the
//!    first one that somebody holds is named. From here on a reader that looks for a reference fails and retries.
//! 3. A split: the vmemmap gives each piece `struct page`s of its own and is flushed, then [`commit_split`] calls
//!    [`split`](FolioBackend::split) for each piece. A merge: [`commit_merge`] calls
//!    [`merge`](FolioBackend::merge) once, then the vmemmap takes the tails back and is flushed.
//! 4. [`thaw`](FolioBackend::thaw): the folios that now exist get their reference counts.
//! 5. [`release_nodes`](FolioBackend::release_nodes): what is left.
//!
//! Undo at any point: after 1, step 5; after 2, step 4; inside or after 3, the opposite change of the same whole,
//! which takes nothing that was not just given back ([`Transition::reversed`]); after 4, a new atom the other way. The nodes
//! that merges free stay in the reservation until step 5, so undoing never asks for any. Nothing between 2 and 4 sleeps,
//! allocates or yields.
//!
//! What is atomic to others: a reader of the index sees, for each page, the entry before or the entry after, both
//! of them frozen folios that cover the page; a reader of `struct page`s gets no reference between 2 and 4.

use crate::{Change, CostModel, FlatArray, PageSet, Pfn, PfnBlock, Transition};
use sept_core::{Class, Classify};

/// Folio metadata and page index of the host.
///
/// The caller holds the claim of the block: no two calls concern the same block at the same time.
pub trait FolioBackend {
    /// Reserved index nodes. They are host objects, not page frames; the default value holds none. `()` for a flat index,
    /// which needs none of the methods that have a body.
    type Nodes: Default;

    /// Proof that all folios inside one block are frozen. Dropping it leaves them frozen.
    type Frozen;

    /// What the index costs.
    fn index(&self) -> &dyn CostModel {
        const { &FlatArray::new() }
    }

    /// Adds `count` nodes to a reservation for `near`: all or none.
    ///
    /// # Errors
    ///
    /// [`OutOfNodes`] if the host has no memory for them; `nodes` is unchanged.
    fn reserve_nodes(&self, nodes: &mut Self::Nodes, near: PfnBlock, count: u64) -> Result<(), OutOfNodes> {
        let _ = (nodes, near, count);
        Ok(())
    }

    /// Number of nodes in a reservation.
    fn nodes_left(&self, nodes: &Self::Nodes) -> u64 {
        let _ = nodes;
        0
    }

    /// Gives unused nodes back.
    fn release_nodes(&self, nodes: Self::Nodes) {
        let _ = nodes;
    }

    /// Sets the reference count of every folio inside `whole` (or of the folio that is `whole`) from what the host
    /// itself holds to 0, each with at most `tries` attempts. All or none.
    ///
    /// If `whole` is in pieces, it also waits for readers that saw one of their counts above 0 and have not tried to
    /// raise it yet (a few instructions, in a kernel with interrupts off: one round of interrupts). The head that such
    /// a reader goes for may be a read-only tail next, and a store to it faults even where it would have failed.
    /// Readers that begin later see 0. A split needs no wait: it makes no head a tail.
    ///
    /// # Errors
    ///
    /// [`Pinned`] with the first folio that somebody else holds; all others have their counts again.
    fn freeze(&self, whole: PfnBlock, tries: u32) -> Result<Self::Frozen, Pinned>;

    /// Makes `piece`, part of a frozen folio, a frozen folio: head and tails where its `struct page`s are its own,
    /// and its index entry, with nodes from the reservation. Cannot fail; called for all pieces in ascending order.
    fn split(&self, frozen: &mut Self::Frozen, piece: PfnBlock, nodes: &mut Self::Nodes);

    /// Makes `whole`, all of whose folios are frozen, one frozen folio: its head, the tails in the pages of the
    /// vmemmap that stay its own (all, where the vmemmap is not optimized), and one index entry. The index nodes that
    /// this frees are added to `nodes`, so that [`split`](Self::split) finds them there if the merge is undone; returns how
    /// many. A reader may still be in them: they are used again for the same entry, or after a grace period. Cannot fail.
    fn merge(&self, frozen: &mut Self::Frozen, whole: PfnBlock, nodes: &mut Self::Nodes) -> u64;

    /// Sets the reference counts of the folios that exist inside the frozen block to what the host itself holds.
    fn thaw(&self, frozen: Self::Frozen);
}

/// A folio that could not be frozen: somebody else holds a reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("page frame {first} is referenced by somebody else")]
#[expect(clippy::exhaustive_structs, reason = "backends build it; a pin is its page")]
pub struct Pinned {
    /// First page frame of the first such folio.
    pub first: Pfn,
}

impl Classify for Pinned {
    fn class(&self) -> Class {
        Class::Retry
    }
}

/// The host has no memory for index nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no memory for {count} index nodes of block {near}")]
#[expect(clippy::exhaustive_structs, reason = "backends build it")]
pub struct OutOfNodes {
    /// The block they were for.
    pub near: PfnBlock,
    /// How many were asked for.
    pub count: u64,
}

impl Classify for OutOfNodes {
    fn class(&self) -> Class {
        Class::Retry
    }
}

/// Why a change was not made. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The transition does not split this block.
    #[error("{whole} is no folio that the transition splits")]
    NotASplit {
        /// The block.
        whole: PfnBlock,
    },
    /// The transition does not merge into this block.
    #[error("{whole} is no folio that the transition merges to")]
    NotAMerge {
        /// The block.
        whole: PfnBlock,
    },
    /// The reservation has too few index nodes.
    #[error("splitting {whole} takes {need} index nodes, {have} are reserved")]
    Nodes {
        /// The folio to be split.
        whole: PfnBlock,
        /// Nodes it takes.
        need: u64,
        /// Nodes in the reservation.
        have: u64,
    },
}

impl Classify for CommitError {
    fn class(&self) -> Class {
        Class::Caller
    }
}

/// Index nodes that splitting `whole` takes.
///
/// # Errors
///
/// [`CommitError::NotASplit`] if the transition does not split it.
pub fn nodes_to_split<A: PageSet, B: PageSet>(
    index: &dyn CostModel,
    transition: &Transition<A, B>,
    whole: PfnBlock,
) -> Result<u64, CommitError> {
    if transition.splits(whole) {
        Ok(transition.delta_of(Change::Split(whole), index).needed)
    } else {
        Err(CommitError::NotASplit { whole })
    }
}

/// Splits the metadata and the index entry of `whole` (step 3). Returns the number of nodes used.
///
/// # Errors
///
/// [`CommitError::NotASplit`], or [`CommitError::Nodes`] if the reservation does not cover it; nothing has changed.
pub fn commit_split<F: FolioBackend + ?Sized, A: PageSet, B: PageSet>(
    backend: &F,
    transition: &Transition<A, B>,
    whole: PfnBlock,
    frozen: &mut F::Frozen,
    nodes: &mut F::Nodes,
) -> Result<u64, CommitError> {
    let need = nodes_to_split(backend.index(), transition, whole)?;
    let have = backend.nodes_left(nodes);
    if have < need {
        return Err(CommitError::Nodes { whole, need, have });
    }
    for piece in transition.split_pieces(whole) {
        backend.split(frozen, piece, nodes);
    }
    Ok(have.saturating_sub(backend.nodes_left(nodes)))
}

/// Merges the metadata and the index entries inside `whole` (step 3). Returns the number of nodes that were freed and are
/// in the reservation now.
///
/// # Errors
///
/// [`CommitError::NotAMerge`]; nothing has changed.
pub fn commit_merge<F: FolioBackend + ?Sized, A: PageSet, B: PageSet>(
    backend: &F,
    transition: &Transition<A, B>,
    whole: PfnBlock,
    frozen: &mut F::Frozen,
    nodes: &mut F::Nodes,
) -> Result<u64, CommitError> {
    if !transition.merges(whole) {
        return Err(CommitError::NotAMerge { whole });
    }
    Ok(backend.merge(frozen, whole, nodes))
}

/// A host that keeps no folios: its provider promises blocks and divides them without metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct NoFolios;

impl NoFolios {
    /// The backend.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl FolioBackend for NoFolios {
    type Nodes = ();
    type Frozen = ();

    fn freeze(&self, _whole: PfnBlock, _tries: u32) -> Result<(), Pinned> {
        Ok(())
    }

    fn split(&self, _frozen: &mut (), _piece: PfnBlock, _nodes: &mut ()) {}

    fn merge(&self, _frozen: &mut (), _whole: PfnBlock, _nodes: &mut ()) -> u64 {
        0
    }

    fn thaw(&self, _frozen: ()) {}
}
