//! What planned changes take, set aside.
//!
//! A reservation is filled before anything is frozen, used up by [`Commit`](crate::Commit), and released in the end. It can
//! also take what merges give: then every change that was made can be undone, whatever others do with the host's memory
//! meanwhile.

use crate::{NumaNode, OtherNode, VmemmapNeeds};
use core::fmt;
use folio_split::{FolioBackend, OutOfNodes, PfnBlock};
use sept_core::{Class, Classify, FrameKind, FrameNeeds, FrameSource, FrameStore, Short};

/// Vmemmap pages and index nodes for changes of blocks on one NUMA node, in storage of the caller's choice.
///
/// `S` keeps the pages, `N` is [`FolioBackend::Nodes`]. Nothing here allocates: what `S` cannot keep is refused.
#[must_use = "dropping a reservation leaks what it holds"]
pub struct Reservation<S, N> {
    near: PfnBlock,
    node: NumaNode,
    pages: S,
    nodes: N,
}

impl<S: FrameStore, N: Default> Reservation<S, N> {
    /// A reservation for blocks of `node`, one of which is `near`. It holds what `pages` holds.
    pub fn new(near: PfnBlock, node: NumaNode, pages: S) -> Self {
        Self { near, node, pages, nodes: N::default() }
    }

    /// The node.
    #[must_use]
    pub const fn node(&self) -> NumaNode {
        self.node
    }

    /// Takes what is missing to cover `needs` and `index_nodes`: all of it, or nothing. May be called again for a new plan.
    ///
    /// Pages are asked for on the node of the reservation; whether others may serve is up to `source`.
    ///
    /// # Errors
    ///
    /// [`ReserveError`]: the reservation holds what it held.
    pub fn fill<F>(
        &mut self,
        folios: &F,
        needs: &VmemmapNeeds,
        index_nodes: u64,
        source: &dyn FrameSource,
    ) -> Result<(), ReserveError>
    where
        F: FolioBackend<Nodes = N> + ?Sized,
    {
        if needs.node != self.node {
            return Err(OtherNode { node: self.node, other: needs.node }.into());
        }
        if needs.templates > 0 || needs.tables > 0 {
            return Err(ReserveError::NotPrepared { templates: needs.templates, tables: needs.tables });
        }
        let before = self.pages.kept();
        self.pages.fill(&needs.frames(), self.near.base().hpa(), source)?;
        let missing = index_nodes.saturating_sub(folios.nodes_left(&self.nodes));
        folios.reserve_nodes(&mut self.nodes, self.near, missing).map_err(|short| {
            self.pages.drain(&self.pages.kept().saturating_sub(&before), source);
            short.into()
        })
    }

    /// Gives the pages back that `needs` does not cover; index nodes stay until the end.
    pub fn trim(&mut self, needs: &VmemmapNeeds, source: &dyn FrameSource) {
        let surplus = self.pages_left().saturating_sub(needs.fresh);
        let surplus = u32::try_from(surplus).unwrap_or(u32::MAX);
        self.pages.drain(&FrameNeeds::of(FrameKind::Vmemmap, surplus), source);
    }

    /// Pages for the vmemmap that are left.
    #[must_use]
    pub fn pages_left(&self) -> u64 {
        self.pages.count(FrameKind::Vmemmap).into()
    }

    /// Index nodes that are left.
    #[must_use]
    pub fn nodes_left<F: FolioBackend<Nodes = N> + ?Sized>(&self, folios: &F) -> u64 {
        folios.nodes_left(&self.nodes)
    }

    /// Whether all was used that it was filled with: after a commit of exactly what was planned it was.
    #[must_use]
    pub fn is_empty<F: FolioBackend<Nodes = N> + ?Sized>(&self, folios: &F) -> bool {
        self.pages.kept().is_none() && self.nodes_left(folios) == 0
    }

    /// Lends what it holds to a commit.
    pub fn lend(&mut self) -> Reserved<'_, N> {
        Reserved { pages: &mut self.pages, nodes: &mut self.nodes }
    }

    /// Gives everything back, and the emptied storage to the caller.
    pub fn release<F>(mut self, folios: &F, source: &dyn FrameSource) -> S
    where
        F: FolioBackend<Nodes = N> + ?Sized,
    {
        self.pages.drain(&self.pages.kept(), source);
        folios.release_nodes(self.nodes);
        self.pages
    }
}

impl<S: FrameStore, N> fmt::Debug for Reservation<S, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("near", &self.near)
            .field("node", &self.node)
            .field("pages", &self.pages.kept())
            .finish_non_exhaustive()
    }
}

/// What a [`Commit`](crate::Commit) draws on and adds to: that of a [`Reservation`], or pages and index nodes that the caller
/// keeps together with other things.
#[expect(missing_debug_implementations, reason = "a store need not be printable")]
#[expect(clippy::exhaustive_structs, reason = "callers build it from what they hold")]
pub struct Reserved<'a, N> {
    /// Pages for the vmemmap, as [`FrameKind::Vmemmap`].
    pub pages: &'a mut dyn FrameStore,
    /// Index nodes.
    pub nodes: &'a mut N,
}

/// Why a reservation was not filled. It holds what it held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// The plan is for another NUMA node.
    #[error(transparent)]
    Node(#[from] OtherNode),
    /// Templates of the zone or page tables of the block are missing. They are not reserved but installed, once.
    #[error("{templates} templates and {tables} page tables are missing")]
    NotPrepared {
        /// See [`install_templates`](crate::install_templates).
        templates: u32,
        /// See [`install_tables`](crate::install_tables).
        tables: u32,
    },
    /// Pages are not to be had, or the storage is full.
    #[error(transparent)]
    Pages(#[from] Short),
    /// Index nodes are not to be had.
    #[error(transparent)]
    Nodes(#[from] OutOfNodes),
}

impl Classify for ReserveError {
    fn class(&self) -> Class {
        match self {
            Self::Node(error) => error.class(),
            Self::NotPrepared { .. } => Class::Caller,
            Self::Pages(error) => error.class(),
            Self::Nodes(error) => error.class(),
        }
    }
}
