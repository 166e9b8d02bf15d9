//! Into the optimization and out of it, in the layout that a block has.
//!
//! No transition needs this: they go from layout to layout directly. It is for a block that comes to the host with its whole
//! vmemmap, and for one that leaves: to be unplugged, or given to an owner who writes to tails.

use crate::{Applied, ApplyError, AtomDone, AtomError, VmemmapBackend, VmemmapNeeds, walk::Walk};
use folio_split::{FolioBackend, FolioLayout, PageSet};
use sept_core::{FrameKind, FrameSource, FrameStore};

/// Lets a block whose vmemmap is all its own share the tail pages of its layout, and gives the pages that this frees to
/// `source`.
///
/// [`VmemmapNeeds::to_optimize`] says how many. Freezes all its folios, with `tries` attempts each. No page is allocated: each
/// folio keeps its first pages. The page tables and templates must be there ([`install_tables`](crate::install_tables),
/// [`install_templates`](crate::install_templates)). Where readers are in RCU sections, a grace period has passed since
/// the folios are what they are.
///
/// # Errors
///
/// [`AtomError::Pinned`], [`ApplyError::NoTable`], [`ApplyError::NoTemplate`]: nothing has changed.
pub fn optimize<F, V, S>(
    folios: &F,
    vmemmap: &V,
    layout: &FolioLayout<S>,
    tries: u32,
    source: &dyn FrameSource,
) -> Result<AtomDone, AtomError>
where
    F: FolioBackend + ?Sized,
    V: VmemmapBackend + ?Sized,
    S: PageSet,
{
    let block = layout.block();
    if vmemmap.is_optimized(block) {
        return Ok(AtomDone::default());
    }
    let missing = vmemmap.tables_missing(block);
    if missing > 0 {
        return Err(ApplyError::NoTable { block, missing }.into());
    }
    let walk = Walk::of(vmemmap, block, block);
    walk.check_templates(&layout.counts())?;
    let frozen = folios.freeze(block, tries)?;
    vmemmap.set_optimized(block, true);
    let replaced = walk.each_tail(layout.folios(0), |at, folio, _| {
        vmemmap.map_tail(at, walk.tail_of(folio));
        Ok::<(), u64>(())
    });
    let (Ok(replaced) | Err(replaced)) = replaced;
    // A layout without tail pages has nothing to flush.
    let flushed = (replaced > 0).then(|| vmemmap.flush());
    folios.thaw(frozen);
    let mut released = 0_u64;
    while released < replaced
        && let Some(frame) = flushed.as_ref().and_then(|flushed| vmemmap.take_replaced(block, flushed))
    {
        source.give(FrameKind::Vmemmap, frame);
        released = released.saturating_add(1);
    }
    let flushes = u32::from(flushed.is_some());
    let vmemmap = Applied { replaced, ..Applied::default() };
    Ok(AtomDone { vmemmap, released, flushes, ..AtomDone::default() })
}

/// Gives a block every page of its vmemmap back, in the layout it has, from `store`: the opposite of [`optimize`].
/// [`VmemmapNeeds::to_restore`] says what it takes. What a merge that was left half done has left waits with the backend then.
///
/// # Errors
///
/// [`AtomError::Pinned`], [`ApplyError::Short`]: nothing has changed. [`ApplyError::BrokenStore`]: the same `struct page`s
/// are mapped as before, and the pages that the store gave wait with the backend.
pub fn restore<F, V, S>(
    folios: &F,
    vmemmap: &V,
    layout: &FolioLayout<S>,
    tries: u32,
    store: &mut dyn FrameStore,
) -> Result<AtomDone, AtomError>
where
    F: FolioBackend + ?Sized,
    V: VmemmapBackend + ?Sized,
    S: PageSet,
{
    let whole = layout.block();
    if !vmemmap.is_optimized(whole) {
        return Ok(AtomDone::default());
    }
    let need = VmemmapNeeds::to_restore(vmemmap, layout).fresh;
    let have = u64::from(store.count(FrameKind::Vmemmap));
    if have < need {
        return Err(ApplyError::Short { whole, need, have }.into());
    }
    let walk = Walk::of(vmemmap, whole, whole);
    let frozen = folios.freeze(whole, tries)?;
    let restored = walk.each_tail(layout.folios(0), |at, folio, fresh| {
        let mut page = vmemmap.prepare(at, store.get(FrameKind::Vmemmap).ok_or(fresh)?);
        vmemmap.write_folio(&mut page, folio);
        vmemmap.map_own(at, page);
        Ok(())
    });
    if let Err(got) = restored {
        let _ = walk.each_tail(layout.folios(0), |at, folio, done| {
            if done == got {
                return Err(done);
            }
            vmemmap.map_tail(at, walk.tail_of(folio));
            Ok(())
        });
    }
    let flushes = u32::from(need > 0);
    if need > 0 {
        let _ = vmemmap.flush();
    }
    if restored.is_ok() {
        vmemmap.set_optimized(whole, false);
    }
    folios.thaw(frozen);
    match restored {
        Ok(fresh) => {
            let vmemmap = Applied { fresh, ..Applied::default() };
            Ok(AtomDone { vmemmap, flushes, ..AtomDone::default() })
        }
        Err(got) => Err(ApplyError::BrokenStore { whole, need, got }.into()),
    }
}
