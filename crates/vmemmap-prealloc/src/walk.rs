//! The entries of one folio, as they change from one folio to pieces and back.

use crate::{AtomError, Geometry, Tail, TailScheme, VmemmapBackend, VmemmapPage};
use core::ops::Range;
use folio_split::{Folios, LayoutCounts, PageSet, PfnBlock};
use sept_core::{Class, Classify, Frame};

/// What a change of the vmemmap did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub struct Applied {
    /// Pages taken from the store and mapped.
    pub fresh: u64,
    /// Pages that were the block's own and are so no more.
    pub replaced: u64,
    /// Entries that changed what they map without a page being taken or replaced.
    pub rewrites: u64,
}

impl Applied {
    /// Entries written. A flush is due unless it is 0.
    #[must_use]
    pub const fn entry_writes(&self) -> u64 {
        self.fresh.saturating_add(self.replaced).saturating_add(self.rewrites)
    }

    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            fresh: self.fresh.saturating_add(other.fresh),
            replaced: self.replaced.saturating_add(other.replaced),
            rewrites: self.rewrites.saturating_add(other.rewrites),
        }
    }
}

/// Why a change of the vmemmap was not made. Every `struct page` is mapped as before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The store has too few pages for the vmemmap.
    #[error("changing {whole} takes {need} vmemmap pages, {have} are reserved")]
    Short {
        /// The folio to be split, or the first of those that are.
        whole: PfnBlock,
        /// Pages that all changes take.
        need: u64,
        /// Pages in the store.
        have: u64,
    },
    /// The zone lacks a template.
    #[error("the zone of {whole} has no template for {tail:?}")]
    NoTemplate {
        /// The folio to be split or formed.
        whole: PfnBlock,
        /// The template.
        tail: Tail,
    },
    /// A page table is missing: the block was never optimized.
    #[error("{missing} page tables of the vmemmap of {block} are missing")]
    NoTable {
        /// The block.
        block: PfnBlock,
        /// How many.
        missing: u32,
    },
    /// The store said it had enough pages and did not give them. The pages it gave are replaced pages now, which the backend
    /// gives up after another flush.
    #[error("splitting {whole} takes {need} vmemmap pages, the store gave {got}")]
    BrokenStore {
        /// The folio to be split.
        whole: PfnBlock,
        /// Pages it takes.
        need: u64,
        /// Pages the store gave.
        got: u64,
    },
}

impl Classify for ApplyError {
    fn class(&self) -> Class {
        Class::Caller
    }
}

/// The vmemmap pages of one folio, whole or in pieces.
pub(crate) struct Walk<'a, V: ?Sized> {
    backend: &'a V,
    geometry: Geometry,
    block: PfnBlock,
    whole: PfnBlock,
    /// Index of the first page that is not the block's own while `whole` is a folio.
    kept: u64,
    /// What its tail pages map then.
    tail: Tail,
}

impl<'a, V: VmemmapBackend + ?Sized> Walk<'a, V> {
    /// `None` if no entry depends on whether `whole` is one folio.
    pub(crate) fn new(backend: &'a V, block: PfnBlock, whole: PfnBlock) -> Option<Self> {
        let some = backend.is_optimized(block) && backend.geometry().tail_pages(whole.order()) > 0;
        some.then(|| Self::of(backend, block, whole))
    }

    pub(crate) fn of(backend: &'a V, block: PfnBlock, whole: PfnBlock) -> Self {
        let geometry = backend.geometry();
        let kept = geometry.index_of(block, whole).saturating_add(geometry.kept(whole.order()));
        Self { backend, geometry, block, whole, kept, tail: geometry.tail_of(block, whole) }
    }

    const fn at(&self, index: u64) -> VmemmapPage {
        VmemmapPage { block: self.block, index }
    }

    /// Pages that dividing `whole` to these counts takes.
    pub(crate) fn pages(&self, counts: &LayoutCounts) -> u64 {
        self.geometry.own_pages(counts).saturating_sub(self.geometry.kept(self.whole.order()))
    }

    pub(crate) fn check_template(&self, folio: PfnBlock) -> Result<(), AtomError> {
        let tail = self.tail_of(folio);
        if self.geometry.tail_pages(folio.order()) == 0 || self.backend.has_template(self.block, tail) {
            return Ok(());
        }
        Err(ApplyError::NoTemplate { whole: self.whole, tail }.into())
    }

    pub(crate) fn check_templates(&self, counts: &LayoutCounts) -> Result<(), AtomError> {
        let mut orders = counts.by_order().filter(|&(_, folios)| folios > 0);
        orders.try_for_each(|(order, _)| self.check_template(PfnBlock::containing(self.whole.base(), order)))
    }

    pub(crate) fn tail_of(&self, folio: PfnBlock) -> Tail {
        self.geometry.tail_of(self.block, folio)
    }

    /// Calls `each` with every tail page of `folios`, its folio, and the number of calls before. Ends with the
    /// first error, or with the number of calls.
    pub(crate) fn each_tail<S: PageSet>(
        &self,
        folios: Folios<S>,
        mut each: impl FnMut(VmemmapPage, PfnBlock, u64) -> Result<(), u64>,
    ) -> Result<u64, u64> {
        let mut calls: u64 = 0;
        for folio in folios {
            let first = self.geometry.index_of(self.block, folio);
            let kept = first.saturating_add(self.geometry.kept(folio.order()));
            for index in kept..first.saturating_add(self.geometry.vmemmap_pages(folio.order())) {
                each(self.at(index), folio, calls)?;
                calls = calls.saturating_add(1);
            }
        }
        Ok(calls)
    }

    /// From one folio to pieces. Fails with the number of pages that `take` gave if it gives no more.
    pub(crate) fn split<S: PageSet>(
        &self,
        pieces: Folios<S>,
        take: &mut dyn FnMut() -> Option<Frame>,
    ) -> Result<Applied, u64> {
        let mut applied = Applied::default();
        // A page that several small folios share is published when the last of them is written.
        let mut open: Option<(u64, V::Fresh)> = None;
        for folio in pieces {
            let first = self.geometry.index_of(self.block, folio);
            let kept = first.saturating_add(self.geometry.kept(folio.order()).max(1));
            for index in first.max(self.kept)..kept {
                let mut fresh = match open.take() {
                    Some((shared, fresh)) if shared == index => fresh,
                    other => {
                        self.publish(other);
                        let page = take().ok_or(applied.fresh)?;
                        applied.fresh = applied.fresh.saturating_add(1);
                        self.backend.prepare(self.at(index), page)
                    }
                };
                self.backend.write_folio(&mut fresh, folio);
                open = Some((index, fresh));
            }
            if folio.order() >= self.geometry.structs() {
                self.publish(open.take());
            }
            let end = first.saturating_add(self.geometry.vmemmap_pages(folio.order()));
            let rewrites = self.map_tails(kept.max(self.kept)..end, self.tail_of(folio), folio);
            applied.rewrites = applied.rewrites.saturating_add(rewrites);
        }
        self.publish(open);
        Ok(applied)
    }

    /// Maps `tail` in the tail pages of `piece`. Returns how many entries were written: none if the whole has the same ones
    /// there. With tails shared with the head, what a merge that was left half done has left there goes all the same.
    fn map_tails(&self, pages: Range<u64>, tail: Tail, piece: PfnBlock) -> u64 {
        let (same, shared) =
            (self.tail_of(piece) == self.tail, self.geometry.tails() == TailScheme::SharedWithHead);
        if same && !shared {
            return 0;
        }
        let mut written: u64 = 0;
        for at in pages.map(|index| self.at(index)) {
            if !same || !self.backend.maps(at, tail) {
                self.backend.map_tail(at, tail);
                written = written.saturating_add(1);
            }
        }
        written
    }

    fn publish(&self, open: Option<(u64, V::Fresh)>) {
        if let Some((index, fresh)) = open {
            self.backend.map_own(self.at(index), fresh);
        }
    }

    /// Calls `each` with the pages that are the block's own while `whole` is in pieces, beyond those that it keeps, and
    /// after those of each piece with the tail pages of the piece.
    fn each_piece<S: PageSet>(
        &self,
        pieces: Folios<S>,
        mut each: impl FnMut(Range<u64>, Range<u64>, PfnBlock),
    ) {
        // Where the pages that were looked at end: small folios share one.
        let mut done = self.kept;
        for folio in pieces {
            let first = self.geometry.index_of(self.block, folio);
            let kept = first.saturating_add(self.geometry.kept(folio.order()).max(1));
            let own = first.max(done)..kept;
            done = done.max(kept);
            each(own, done..first.saturating_add(self.geometry.vmemmap_pages(folio.order())), folio);
        }
    }

    /// From pieces to one folio.
    pub(crate) fn merge<S: PageSet>(&self, pieces: Folios<S>) -> Applied {
        let mut applied = Applied::default();
        self.each_piece(pieces, |own, tails, folio| {
            for at in own.map(|index| self.at(index)).filter(|&at| self.is_own(at)) {
                self.backend.map_tail(at, self.tail);
                applied.replaced = applied.replaced.saturating_add(1);
            }
            applied.rewrites = applied.rewrites.saturating_add(self.map_tails(tails, self.tail, folio));
        });
        applied
    }

    /// Whether a page of a piece is the block's own: all are but where a split of which pages wait was given too few.
    fn is_own(&self, at: VmemmapPage) -> bool {
        self.geometry.tails() != TailScheme::SharedWithHead || !self.backend.maps(at, self.tail)
    }

    /// Makes the pieces' heads tails of one folio, in the pages that are theirs: the first round of a merge, or of the
    /// cancel of a split.
    pub(crate) fn write_tails<S: PageSet>(&self, pieces: Folios<S>) {
        self.each_piece(pieces, |own, _, _| {
            let own = own.map(|index| self.at(index)).filter(|&at| self.is_own(at));
            own.for_each(|at| self.backend.write_tails(at, self.whole));
        });
    }
}
