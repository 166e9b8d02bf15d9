//! Commits of one change each.

use crate::{Atom, AtomDone, AtomError, Commit, Reserved, VmemmapBackend};
use core::slice;
use folio_split::{FolioBackend, PageSet, PfnBlock, Transition};
use sept_core::{Frame, FrameKind, FrameSource, FrameStore};

/// Splits one folio of `transition`, `whole`: a [`Commit`] of one atom.
///
/// ```
/// use folio_split::{Empty, NoFolios, Order, OrderSet, Pfn, PfnBlock, Transition};
/// use sept_core::test_util::VecStore;
/// use vmemmap_prealloc::{NoVmemmap, split_atom};
///
/// // A host without folios and vmemmap reserves nothing.
/// let mut nothing = VecStore::default();
/// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
/// let share = Transition::new(block, OrderSet::HUGETLB, Empty, 0..1);
/// let done = split_atom(&NoFolios::new(), &NoVmemmap::new(), &share, block, 1, &mut (), &mut nothing)?;
/// assert_eq!(done.flushes, 0);
/// # Ok::<(), vmemmap_prealloc::AtomError>(())
/// ```
///
/// # Errors
///
/// As of [`Commit::freeze`] and [`Commit::remap`]. A split that a broken store cut short is undone in one round; pages that it
/// gave wait with the backend.
pub fn split_atom<F, V, A, B>(
    folios: &F,
    vmemmap: &V,
    transition: &Transition<A, B>,
    whole: PfnBlock,
    tries: u32,
    nodes: &mut F::Nodes,
    store: &mut dyn FrameStore,
) -> Result<AtomDone, AtomError>
where
    F: FolioBackend + ?Sized,
    V: VmemmapBackend + ?Sized,
    A: PageSet,
    B: PageSet,
{
    let mut atom = Atom::split(transition.by_ref(), whole).at_once();
    let reserved = Reserved { pages: store, nodes };
    let commit = Commit::freeze(folios, vmemmap, slice::from_mut(&mut atom), reserved, tries);
    let remapped = commit.and_then(Commit::remap).map_err(|refused| refused.error)?;
    Ok(remapped.finish().leave())
}

/// Merges into one folio of `transition`, `whole`: a [`Commit`] of one atom. What it gives up goes to `source` and back to
/// the index.
///
/// One round in every scheme: the host answers for it that [`FolioBackend::freeze`] waits for readers.
///
/// # Errors
///
/// As of [`Commit::freeze`].
pub fn merge_atom<F, V, A, B>(
    folios: &F,
    vmemmap: &V,
    transition: &Transition<A, B>,
    whole: PfnBlock,
    tries: u32,
    source: &dyn FrameSource,
) -> Result<AtomDone, AtomError>
where
    F: FolioBackend + ?Sized,
    V: VmemmapBackend + ?Sized,
    A: PageSet,
    B: PageSet,
{
    let mut atom = Atom::merge(transition.by_ref(), whole).at_once();
    let mut nodes = F::Nodes::default();
    let reserved = Reserved { pages: &mut NoFrames, nodes: &mut nodes };
    let commit = Commit::freeze(folios, vmemmap, slice::from_mut(&mut atom), reserved, tries);
    let done = commit.and_then(Commit::remap).map(|remapped| remapped.finish().release(source));
    folios.release_nodes(nodes);
    done.map_err(|refused| refused.error)
}

/// A store that keeps nothing: a merge takes nothing.
struct NoFrames;

impl FrameStore for NoFrames {
    fn put(&mut self, _kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        Err(frame)
    }

    fn get(&mut self, _kind: FrameKind) -> Option<Frame> {
        None
    }

    fn count(&self, _kind: FrameKind) -> u32 {
        0
    }
}
