//! The vmemmap of the host, and what each change of it must guarantee.
//!
//! A page of the vmemmap is in one of two states: the block's *own* (mapped writable, one page of memory for this
//! entry alone) or a *tail* (mapped read-only to a page that has the same content). A change goes
//!
//! * tail to own: [`prepare`](VmemmapBackend::prepare) copies what the entry shows into a fresh page,
//!   [`write_folio`](VmemmapBackend::write_folio) writes the new heads there, each with reference count 0, and
//!   [`map_own`](VmemmapBackend::map_own) publishes it: all stores to the page before the store to the entry;
//! * own to tail, or tail to another tail: [`map_tail`](VmemmapBackend::map_tail). A page that was the block's own
//!   stays with the backend: other CPUs may still read it, and even count references in it;
//! * after [`flush`](VmemmapBackend::flush) nobody sees an entry as it was, and
//!   [`take_replaced`](VmemmapBackend::take_replaced) gives the pages up.
//!
//! Every folio involved is frozen from before the first change until after the flush. So it does not matter which
//! of the two states of an entry a reader sees, nor in which order entries change: each head it can find, old or
//! new, has reference count 0, and it gets no reference. That is invariant I9. A reader that saw a count above 0 just
//! before must have made its attempt when a head becomes a tail: [`FolioBackend::freeze`](folio_split::FolioBackend::freeze)
//! waits for it, or a grace period has passed since the head became a tail in its own, still writable page
//! ([`write_tails`](VmemmapBackend::write_tails)).

use crate::{Geometry, NumaNode, Tail};
use folio_split::PfnBlock;
use sept_core::Frame;

/// One page of the vmemmap: the `index`-th of those that describe `block`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a position has two parts")]
pub struct VmemmapPage {
    /// The block whose pages are described.
    pub block: PfnBlock,
    /// Position among the vmemmap pages of the block, from 0.
    pub index: u64,
}

/// The vmemmap of the host.
///
/// The caller holds the claim of the block: no two calls concern the same block at the same time. No call but
/// [`add_table`](Self::add_table) and [`add_template`](Self::add_template) may sleep or allocate.
///
/// The methods with a body are right for a host whose tails are shared with the head, or that has no optimization at all:
/// no templates, all page tables in place, one NUMA node.
pub trait VmemmapBackend {
    /// A fresh page that nobody sees yet. Dropping it leaks its memory.
    type Fresh;

    /// Proof of a flush: covers every entry changed before it began.
    type Flushed;

    /// The sizes.
    fn geometry(&self) -> Geometry;

    /// The NUMA node that the vmemmap pages of the block are to come from.
    fn node_of(&self, block: PfnBlock) -> NumaNode {
        let _ = block;
        NumaNode::default()
    }

    /// Whether tail pages of the block are shared: its own pages are exactly those that its layout needs.
    fn is_optimized(&self, block: PfnBlock) -> bool;

    /// Records whether tail pages of the block are shared: set before the first entry changes, cleared after the flush.
    fn set_optimized(&self, block: PfnBlock, optimized: bool);

    /// Whether the zone of `near` has this template. True for a [`Tail`] that is no template.
    fn has_template(&self, near: PfnBlock, tail: Tail) -> bool {
        let _ = near;
        matches!(tail, Tail::HeadPage(_))
    }

    /// Fills a page with tails and makes it the template of the zone, for good.
    ///
    /// # Errors
    ///
    /// The zone has one (somebody was faster), or needs none: the page comes back.
    fn add_template(&self, near: PfnBlock, tail: Tail, page: Frame) -> Result<(), Frame> {
        let _ = (near, tail);
        Err(page)
    }

    /// Page tables missing for the block: pieces of its vmemmap that are still mapped by a larger entry.
    fn tables_missing(&self, block: PfnBlock) -> u32 {
        let _ = block;
        0
    }

    /// Fills a page with the entries that stand for a larger one, and replaces that one by it.
    ///
    /// # Errors
    ///
    /// No table is missing: the page comes back.
    fn add_table(&self, block: PfnBlock, table: Frame) -> Result<(), Frame> {
        let _ = block;
        Err(table)
    }

    /// Whether the entry at `at` maps `tail`, read-only.
    ///
    /// Asked where tails are shared with the head: about those of the first piece of a split or a merge, which map the same
    /// before and after, unless an earlier merge was left half done; and about the pages that a merge, or the cancel of a
    /// split, takes away, which are the block's own unless a store gave too few.
    fn maps(&self, at: VmemmapPage, tail: Tail) -> bool;

    /// Copies what the entry at `at` shows now into `page`.
    fn prepare(&self, at: VmemmapPage, page: Frame) -> Self::Fresh;

    /// Writes what of `folio` lies in the fresh page: its head, with reference count 0, if it begins there, and its
    /// tails.
    fn write_folio(&self, fresh: &mut Self::Fresh, folio: PfnBlock);

    /// Writes the tails of `folio`, which is frozen, in a page that is the block's own and beyond those that the folio
    /// keeps: what were heads there, with reference count 0, are tails afterwards.
    ///
    /// Called in the first round of a merge, or of the cancel of a split, where tails are shared with the head, and never by
    /// other hosts.
    fn write_tails(&self, at: VmemmapPage, folio: PfnBlock);

    /// Maps the fresh page at `at`, writable, which was a tail. If it was the block's own all the same (a merge was left
    /// half done), the backend keeps the page that was there, as [`map_tail`](Self::map_tail) does.
    fn map_own(&self, at: VmemmapPage, fresh: Self::Fresh);

    /// Maps `tail` at `at`, read-only. If the page there was the block's own, the backend keeps it for
    /// [`take_replaced`](Self::take_replaced).
    fn map_tail(&self, at: VmemmapPage, tail: Tail);

    /// Drops every translation of the vmemmap that was changed, on all CPUs, and returns when that is done.
    #[must_use = "replaced pages are given up against this proof"]
    fn flush(&self) -> Self::Flushed;

    /// Gives up one of the pages of `block` that were replaced before the flush; `None` if no more are left.
    fn take_replaced(&self, block: PfnBlock, flushed: &Self::Flushed) -> Option<Frame>;
}

/// A host without the optimization: every page of the vmemmap is its block's own, always.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct NoVmemmap;

impl NoVmemmap {
    /// The backend.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl VmemmapBackend for NoVmemmap {
    type Fresh = Frame;
    type Flushed = ();

    fn geometry(&self) -> Geometry {
        Geometry::LINUX_X86_64
    }

    fn is_optimized(&self, _block: PfnBlock) -> bool {
        false
    }

    fn set_optimized(&self, _block: PfnBlock, _optimized: bool) {}

    fn has_template(&self, _near: PfnBlock, _tail: Tail) -> bool {
        true
    }

    /// All: the vmemmap is mapped by entries as large as they can be.
    fn tables_missing(&self, block: PfnBlock) -> u32 {
        u32::try_from(self.geometry().tables(block.order()).max(1)).unwrap_or(u32::MAX)
    }

    fn maps(&self, _at: VmemmapPage, _tail: Tail) -> bool {
        false
    }

    fn prepare(&self, _at: VmemmapPage, page: Frame) -> Frame {
        page
    }

    fn write_folio(&self, _fresh: &mut Frame, _folio: PfnBlock) {}

    fn write_tails(&self, _at: VmemmapPage, _folio: PfnBlock) {}

    fn map_own(&self, _at: VmemmapPage, _fresh: Frame) {}

    fn map_tail(&self, _at: VmemmapPage, _tail: Tail) {}

    fn flush(&self) {}

    fn take_replaced(&self, _block: PfnBlock, _flushed: &()) -> Option<Frame> {
        None
    }
}
