//! One change of folios and vmemmap together, from freeze to thaw.
//!
//! Nothing in an atom sleeps or allocates. Its length is that of its whole: 1 GiB to 512 folios of 2 MiB, or one
//! of 2 MiB to single pages, if the transition is cut with [`Transition::step`].
//!
//! | | split | merge |
//! |---|---|---|
//! | 1 | nodes and pages are checked | templates are checked |
//! | 2 | freeze the folio | freeze the pieces |
//! | 3 | fresh pages with the new heads are mapped, tails remapped | one head, one index entry |
//! | 4 | flush | tails remapped |
//! | 5 | heads, tails and index entries of the pieces | flush |
//! | 6 | thaw the pieces | thaw the folio |
//! | 7 | | replaced pages are released |

use crate::{
    Applied, ApplyError, VmemmapBackend,
    commit::{check_merge, check_split},
};
use folio_split::{CommitError, FolioBackend, PageSet, PfnBlock, Pinned, Transition, nodes_to_split};
use sept_core::{Class, Classify, FrameSource, FrameStore};

/// What an atom did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub struct AtomDone {
    /// What the vmemmap did.
    pub vmemmap: Applied,
    /// Pages given to the source.
    pub released: u64,
    /// Index nodes taken from the reservation.
    pub nodes_used: u64,
    /// Index nodes that were freed.
    pub nodes_freed: u64,
    /// Flushes: 1, or 0 where no entry changed.
    pub flushes: u32,
}

/// Why an atom was not carried out. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AtomError {
    /// Somebody holds a reference.
    #[error(transparent)]
    Pinned(#[from] Pinned),
    /// The index part was refused.
    #[error(transparent)]
    Index(#[from] CommitError),
    /// The vmemmap part was refused.
    #[error(transparent)]
    Vmemmap(#[from] ApplyError),
}

impl Classify for AtomError {
    fn class(&self) -> Class {
        match self {
            Self::Pinned(error) => error.class(),
            Self::Index(error) => error.class(),
            Self::Vmemmap(error) => error.class(),
        }
    }
}

/// Splits one folio of `transition`, `whole`, as in the table above.
///
/// ```
/// use folio_split::{Empty, NoFolios, Order, OrderSet, Pfn, PfnBlock, Transition};
/// use sept_core::{Frame, FrameKind, FrameStore};
/// use vmemmap_prealloc::{NoVmemmap, split_atom};
///
/// /// A host without folios and vmemmap reserves nothing.
/// struct Nothing;
/// impl FrameStore for Nothing {
///     fn put(&mut self, _: FrameKind, frame: Frame) -> Result<(), Frame> { Err(frame) }
///     fn get(&mut self, _: FrameKind) -> Option<Frame> { None }
///     fn count(&self, _: FrameKind) -> u32 { 0 }
/// }
///
/// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
/// let share = Transition::new(block, OrderSet::HUGETLB, Empty, 0..1);
/// let done = split_atom(&NoFolios::new(), &NoVmemmap::new(), &share, block, 1, &mut (), &mut Nothing)?;
/// assert_eq!(done.flushes, 0);
/// # Ok::<(), vmemmap_prealloc::AtomError>(())
/// ```
///
/// # Errors
///
/// [`AtomError::Pinned`] with the first page somebody holds, or what the transition, the reservation or the zone
/// lacks. Folios, index and mappings are as before, and nothing was taken from `store` or `nodes`; except that what a
/// store gave that does not give all it counts ([`ApplyError::BrokenStore`]) waits for
/// [`VmemmapBackend::release`] after another flush.
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
    let (need, have) = (nodes_to_split(folios.index(), transition, whole)?, folios.nodes_left(nodes));
    if have < need {
        return Err(CommitError::Nodes { whole, need, have }.into());
    }
    let split = check_split(vmemmap, transition, whole, store)?;
    let mut frozen = folios.freeze(whole, tries)?;
    let applied = split.run(transition.split_pieces(whole), store);
    let flushes = u32::from(!matches!(applied, Ok(applied) if applied.entry_writes() == 0));
    if flushes > 0 {
        // A split replaces no page; what a broken store gave waits for a later flush.
        let _ = vmemmap.flush();
    }
    let applied = match applied {
        Ok(applied) => applied,
        Err(error) => {
            folios.thaw(frozen);
            return Err(error.into());
        }
    };
    for piece in transition.split_pieces(whole) {
        folios.split(&mut frozen, piece, nodes);
    }
    folios.thaw(frozen);
    let nodes_used = have.saturating_sub(folios.nodes_left(nodes));
    Ok(AtomDone { vmemmap: applied, flushes, nodes_used, ..AtomDone::default() })
}

/// Merges into one folio of `transition`, `whole`, as in the table above, and gives the replaced pages to `source`.
///
/// # Errors
///
/// [`AtomError::Pinned`] with the first page somebody holds, or what the transition or the zone lacks. Folios, index
/// and mappings are as before.
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
    let merge = check_merge(vmemmap, transition, whole)?;
    let mut frozen = folios.freeze(whole, tries)?;
    let nodes_freed = folios.merge(&mut frozen, whole);
    let applied = merge.run(transition.merge_pieces(whole));
    let mut done = AtomDone { vmemmap: applied, nodes_freed, ..AtomDone::default() };
    if applied.entry_writes() == 0 {
        folios.thaw(frozen);
        return Ok(done);
    }
    let flushed = vmemmap.flush();
    done.flushes = 1;
    folios.thaw(frozen);
    done.released = vmemmap.release(transition.block(), &flushed, source);
    Ok(done)
}
