//! The entries of one folio, as they change from one folio to pieces and back.

use crate::{Applied, ApplyError, Geometry, Tail, VmemmapBackend, VmemmapPage};
use folio_split::{Folios, LayoutCounts, PageSet, PfnBlock};
use sept_core::{FrameKind, FrameStore};

/// The vmemmap pages of one folio, whole or in pieces.
pub(crate) struct Walk<'a, V: ?Sized> {
    backend: &'a V,
    pub(crate) geometry: Geometry,
    block: PfnBlock,
    pub(crate) whole: PfnBlock,
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

    pub(crate) const fn at(&self, index: u64) -> VmemmapPage {
        VmemmapPage { block: self.block, index }
    }

    pub(crate) fn check_template(&self, folio: PfnBlock) -> Result<(), ApplyError> {
        let tail = self.geometry.tail_of(self.block, folio);
        if self.geometry.tail_pages(folio.order()) == 0 || self.backend.has_template(self.block, tail) {
            return Ok(());
        }
        Err(ApplyError::NoTemplate { whole: self.whole, tail })
    }

    pub(crate) fn check_templates(&self, counts: &LayoutCounts) -> Result<(), ApplyError> {
        let mut orders = counts.orders().iter().filter(|&order| counts.folios_of(order) > 0);
        orders.try_for_each(|order| self.check_template(PfnBlock::containing(self.whole.base(), order)))
    }

    /// Calls `each` with every tail page of `folios`, its folio, and the number of calls before. Ends with the first
    /// error, or with the number of calls.
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

    /// From one folio to pieces. Fails with the number of pages that the store gave if it gives no more.
    pub(crate) fn split<S: PageSet>(
        &self,
        pieces: Folios<S>,
        store: &mut dyn FrameStore,
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
                        let page = store.get(FrameKind::Vmemmap).ok_or(applied.fresh)?;
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
            let tail = self.geometry.tail_of(self.block, folio);
            if tail != self.tail {
                let end = first.saturating_add(self.geometry.vmemmap_pages(folio.order()));
                for index in kept.max(self.kept)..end {
                    self.backend.map_tail(self.at(index), tail);
                    applied.rewrites = applied.rewrites.saturating_add(1);
                }
            }
        }
        self.publish(open);
        Ok(applied)
    }

    fn publish(&self, open: Option<(u64, V::Fresh)>) {
        if let Some((index, fresh)) = open {
            self.backend.map_own(self.at(index), fresh);
        }
    }

    /// From pieces to one folio.
    pub(crate) fn merge<S: PageSet>(&self, pieces: Folios<S>) -> Applied {
        let mut applied = Applied::default();
        // Where the pages that were looked at end: small folios share one.
        let mut done = self.kept;
        for folio in pieces {
            let first = self.geometry.index_of(self.block, folio);
            let kept = first.saturating_add(self.geometry.kept(folio.order()).max(1));
            for index in first.max(done)..kept {
                self.backend.map_tail(self.at(index), self.tail);
                applied.replaced = applied.replaced.saturating_add(1);
            }
            done = done.max(kept);
            if self.geometry.tail_of(self.block, folio) == self.tail {
                continue;
            }
            for index in done..first.saturating_add(self.geometry.vmemmap_pages(folio.order())) {
                self.backend.map_tail(self.at(index), self.tail);
                applied.rewrites = applied.rewrites.saturating_add(1);
            }
        }
        applied
    }
}
