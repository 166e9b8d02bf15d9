//! Changing the mapping inside one frozen atom.
//!
//! Both functions check everything before the first write; after it they cannot fail, provided the store hands out
//! what it said it has. They neither flush nor thaw: the caller does, in this order.

use crate::{Tail, VmemmapBackend, walk::Walk};
use folio_split::{FolioLayout, Folios, PageSet, PfnBlock, Transition};
use sept_core::{Class, Classify, FrameKind, FrameStore};

/// What a change of the vmemmap did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
#[must_use = "replaced pages wait for a flush"]
pub struct Applied {
    /// Pages taken from the store and mapped.
    pub fresh: u64,
    /// Pages that wait with the backend for a flush and [`VmemmapBackend::release`].
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
}

/// Why a change of the vmemmap was not made. Every `struct page` is mapped as before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
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
    /// The store has too few pages for the vmemmap.
    #[error("splitting {whole} takes {need} vmemmap pages, {have} are reserved")]
    Short {
        /// The folio to be split.
        whole: PfnBlock,
        /// Pages it takes.
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
    /// The store said it had enough pages and did not give them. The pages it gave are replaced pages now.
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

/// Vmemmap pages that splitting `whole` takes: what [`apply_split`] asks of its store. 0 for a block that is not
/// optimized.
///
/// # Errors
///
/// [`ApplyError::NotASplit`].
pub fn pages_to_split<V, A, B>(
    backend: &V,
    transition: &Transition<A, B>,
    whole: PfnBlock,
) -> Result<u64, ApplyError>
where
    V: VmemmapBackend + ?Sized,
    A: PageSet,
    B: PageSet,
{
    let to = transition.to_layout();
    let part =
        to.within(whole).filter(|_| transition.splits(whole)).ok_or(ApplyError::NotASplit { whole })?;
    if !backend.is_optimized(transition.block()) {
        return Ok(0);
    }
    let geometry = backend.geometry();
    Ok(geometry.own_pages(&part.counts()).saturating_sub(geometry.kept(whole.order())))
}

/// Gives each piece of `whole` the `struct page`s it needs, from exactly the planned pages of `store`.
///
/// `whole` is frozen. Flush before writing to a piece's `struct page`s, and before thawing.
///
/// # Errors
///
/// [`ApplyError::NotASplit`], [`ApplyError::Short`], [`ApplyError::NoTemplate`]: nothing has changed.
/// [`ApplyError::BrokenStore`]: the same `struct page`s are mapped as before, but flush before thawing.
pub fn apply_split<V, A, B>(
    backend: &V,
    transition: &Transition<A, B>,
    whole: PfnBlock,
    store: &mut dyn FrameStore,
) -> Result<Applied, ApplyError>
where
    V: VmemmapBackend + ?Sized,
    A: PageSet,
    B: PageSet,
{
    check_split(backend, transition, whole, store)?.run(transition.split_pieces(whole), store)
}

/// Lets the pieces of `whole` share tail pages as one folio. Its first pages stay; the others wait with the backend.
///
/// `whole` is frozen, and its head is written ([`folio_split::commit_merge`]). Flush before thawing, and
/// [`release`](VmemmapBackend::release) after the flush.
///
/// # Errors
///
/// [`ApplyError::NotAMerge`], [`ApplyError::NoTemplate`]: nothing has changed.
pub fn apply_merge<V, A, B>(
    backend: &V,
    transition: &Transition<A, B>,
    whole: PfnBlock,
) -> Result<Applied, ApplyError>
where
    V: VmemmapBackend + ?Sized,
    A: PageSet,
    B: PageSet,
{
    Ok(check_merge(backend, transition, whole)?.run(transition.merge_pieces(whole)))
}

/// Lets a block whose vmemmap is all its own share the tail pages of its layout. All its folios are frozen.
///
/// No page is allocated: each folio keeps its first pages. Flush before thawing, and release after the flush.
///
/// # Errors
///
/// [`ApplyError::NoTable`], [`ApplyError::NoTemplate`]: nothing has changed.
pub fn optimize<V, S>(backend: &V, layout: &FolioLayout<S>) -> Result<Applied, ApplyError>
where
    V: VmemmapBackend + ?Sized,
    S: PageSet,
{
    let block = layout.block();
    if backend.is_optimized(block) {
        return Ok(Applied::default());
    }
    let missing = backend.tables_missing(block);
    if missing > 0 {
        return Err(ApplyError::NoTable { block, missing });
    }
    let walk = Walk::of(backend, block, block);
    walk.check_templates(&layout.counts())?;
    backend.set_optimized(block, true);
    let mapped = walk.each_tail(layout.folios(0), |at, folio, _| {
        backend.map_tail(at, walk.geometry.tail_of(block, folio));
        Ok::<(), u64>(())
    });
    let (Ok(replaced) | Err(replaced)) = mapped;
    Ok(Applied { replaced, ..Applied::default() })
}

/// Vmemmap pages that [`restore`] takes; 0 for a block that is not optimized.
#[must_use]
pub fn pages_to_restore<V, S>(backend: &V, layout: &FolioLayout<S>) -> u64
where
    V: VmemmapBackend + ?Sized,
    S: PageSet,
{
    let optimized = backend.is_optimized(layout.block());
    if optimized { backend.geometry().all_tail_pages(&layout.counts()) } else { 0 }
}

/// Gives a block every page of its vmemmap back, in the layout it has: the opposite of [`optimize`].
///
/// No transition needs it, they go from layout to layout directly; it is for a block that leaves the optimization, to
/// be unplugged or given to an owner who writes to tails. All folios of the block are frozen. Flush before thawing.
///
/// # Errors
///
/// [`ApplyError::Short`]: nothing has changed. [`ApplyError::BrokenStore`]: the same `struct page`s are mapped as
/// before, but flush before thawing.
pub fn restore<V, S>(
    backend: &V,
    layout: &FolioLayout<S>,
    store: &mut dyn FrameStore,
) -> Result<Applied, ApplyError>
where
    V: VmemmapBackend + ?Sized,
    S: PageSet,
{
    let whole = layout.block();
    let (need, have) = (pages_to_restore(backend, layout), u64::from(store.count(FrameKind::Vmemmap)));
    if have < need {
        return Err(ApplyError::Short { whole, need, have });
    }
    if !backend.is_optimized(whole) {
        return Ok(Applied::default());
    }
    let walk = Walk::of(backend, whole, whole);
    let restored = walk.each_tail(layout.folios(0), |at, folio, fresh| {
        let page = store.get(FrameKind::Vmemmap).ok_or(fresh)?;
        let mut page = backend.prepare(at, page);
        backend.write_folio(&mut page, folio);
        backend.map_own(at, page);
        Ok(())
    });
    match restored {
        Ok(fresh) => {
            backend.set_optimized(whole, false);
            Ok(Applied { fresh, ..Applied::default() })
        }
        Err(got) => {
            let geometry = walk.geometry;
            let _ = walk.each_tail(layout.folios(0), |at, folio, done| {
                if done == got {
                    return Err(done);
                }
                backend.map_tail(at, geometry.tail_of(whole, folio));
                Ok(())
            });
            Err(ApplyError::BrokenStore { whole, need, got })
        }
    }
}

/// A split that has all it takes.
pub(crate) struct Split<'a, V: ?Sized> {
    /// `None` if no entry changes.
    walk: Option<Walk<'a, V>>,
    need: u64,
}

/// Checks a split of `whole` against the transition, the store and the zone.
pub(crate) fn check_split<'a, V, A, B>(
    backend: &'a V,
    transition: &Transition<A, B>,
    whole: PfnBlock,
    store: &dyn FrameStore,
) -> Result<Split<'a, V>, ApplyError>
where
    V: VmemmapBackend + ?Sized,
    A: PageSet,
    B: PageSet,
{
    let to = transition.to_layout();
    let part =
        to.within(whole).filter(|_| transition.splits(whole)).ok_or(ApplyError::NotASplit { whole })?;
    let Some(walk) = Walk::new(backend, transition.block(), whole) else {
        return Ok(Split { walk: None, need: 0 });
    };
    let counts = part.counts();
    let need = walk.geometry.own_pages(&counts).saturating_sub(walk.geometry.kept(whole.order()));
    let have = u64::from(store.count(FrameKind::Vmemmap));
    if have < need {
        return Err(ApplyError::Short { whole, need, have });
    }
    walk.check_templates(&counts)?;
    Ok(Split { walk: Some(walk), need })
}

impl<V: VmemmapBackend + ?Sized> Split<'_, V> {
    /// Carries it out. Fails only for a store that does not give what it counted.
    pub(crate) fn run<S: PageSet + Copy>(
        self,
        pieces: Folios<S>,
        store: &mut dyn FrameStore,
    ) -> Result<Applied, ApplyError> {
        let Some(walk) = self.walk else { return Ok(Applied::default()) };
        walk.split(pieces.clone(), store).map_err(|got| {
            let _ = walk.merge(pieces);
            ApplyError::BrokenStore { whole: walk.whole, need: self.need, got }
        })
    }
}

/// A merge that has all it takes.
pub(crate) struct Merge<'a, V: ?Sized> {
    /// `None` if no entry changes.
    walk: Option<Walk<'a, V>>,
}

/// Checks a merge into `whole` against the transition and the zone.
pub(crate) fn check_merge<'a, V, A, B>(
    backend: &'a V,
    transition: &Transition<A, B>,
    whole: PfnBlock,
) -> Result<Merge<'a, V>, ApplyError>
where
    V: VmemmapBackend + ?Sized,
    A: PageSet,
    B: PageSet,
{
    if !transition.merges(whole) {
        return Err(ApplyError::NotAMerge { whole });
    }
    let walk = Walk::new(backend, transition.block(), whole);
    if let Some(walk) = &walk {
        walk.check_template(whole)?;
    }
    Ok(Merge { walk })
}

impl<V: VmemmapBackend + ?Sized> Merge<'_, V> {
    /// Carries it out.
    pub(crate) fn run<S: PageSet>(self, pieces: Folios<S>) -> Applied {
        self.walk.map_or_else(Applied::default, |walk| walk.merge(pieces))
    }
}
