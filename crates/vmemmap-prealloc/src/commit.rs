//! Several changes under one freeze, with one flush.
//!
//! Nothing between freeze and thaw sleeps, allocates or yields, so the length of a commit is that of all its atoms: a caller
//! chooses how many it takes at once, and cuts long transitions with [`Transition::step`](folio_split::Transition::step).
//! The types are the order of the calls:
//!
//! | | split | merge |
//! |---|---|---|
//! | [`Commit::freeze`] | nodes, pages and templates are checked, the folio is frozen | templates are checked, the pieces are frozen |
//! | [`Commit::remap`] | copies with the new heads are mapped, tails remapped | one head, one index entry; tails remapped |
//! | [`Remapped::finish`] | flush; heads, tails and index entries of the pieces; thaw | flush; thaw |
//! | [`Thawed::release`] | | replaced pages are released |
//!
//! [`Commit::cancel`] and [`Remapped::cancel`] bring back the folios from before, without memory: a merge that is undone takes the
//! pages that it replaced from the backend, and the index nodes that it freed from the reservation.
//!
//! # Two rounds
//!
//! A head that becomes a tail in a read-only page must not be one that a reader is about to take a reference on. With
//! templates, [`FolioBackend::freeze`] waits for such readers: they are a few instructions away. Where tails are shared with
//! the head ([`TailScheme::SharedWithHead`](crate::TailScheme)), readers are inside RCU sections of any length, and a wait for
//! them is no wait for a freeze. There, the first commit of a merge makes the folios one, and writes the former heads
//! as tails in their own pages, which stay; the caller waits for a grace period, with nothing frozen; the second
//! commit of the same atoms, with the same reservation, maps the tails. So does a split that is cancelled after its entries
//! were written, since readers may have seen its new heads. [`Thawed::waits`] and [`Atom::round`] tell. If the
//! second round does not come, the block has more pages of its own than its layout needs; they are replaced when the folio
//! is split or merged again, in whatever way, and that too waits for the grace period.

use crate::{Applied, ApplyError, Atom, AtomError, OtherNode, Reserved, Round, VmemmapBackend};
use core::fmt;
use folio_split::{CommitError, FolioBackend, PageSet};
use sept_core::{Class, Classify, FrameKind, FrameSource};

/// What a commit did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub struct AtomDone {
    /// What the vmemmap did.
    pub vmemmap: Applied,
    /// Pages that were released after the flush.
    pub released: u64,
    /// Index nodes taken from the reservation. A merge that was undone took what it had freed.
    pub nodes_used: u64,
    /// Index nodes that were freed, into the reservation.
    pub nodes_freed: u64,
    /// Flushes: 1, or 0 where no entry changed; 2 where a merge was undone.
    pub flushes: u32,
}

/// Why a commit was refused. Folios, index and mappings are as before, and nothing was taken from the reservation; except
/// for [`ApplyError::BrokenStore`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("atom {position}: {error}")]
#[expect(clippy::exhaustive_structs, reason = "a place and a reason")]
pub struct Refused {
    /// Which atom of the slice, from 0.
    pub position: usize,
    /// Why.
    #[source]
    pub error: AtomError,
}

impl Classify for Refused {
    fn class(&self) -> Class {
        self.error.class()
    }
}

/// The host and the atoms of a commit, through all its phases.
struct Parts<'a, F: FolioBackend + ?Sized, V: ?Sized, A, B> {
    folios: &'a F,
    vmemmap: &'a V,
    atoms: &'a mut [Atom<A, B, F::Frozen>],
    reserved: Reserved<'a, F::Nodes>,
    done: AtomDone,
}

/// Atoms whose folios are frozen. Nothing else has changed.
#[must_use = "dropping it leaves the folios frozen"]
pub struct Commit<'a, F: FolioBackend + ?Sized, V: VmemmapBackend + ?Sized, A, B>(Parts<'a, F, V, A, B>);

/// Atoms whose entries were written, and not flushed yet.
#[must_use = "dropping it leaves the folios frozen, and a flush undone"]
pub struct Remapped<'a, F: FolioBackend + ?Sized, V: VmemmapBackend + ?Sized, A, B>(Parts<'a, F, V, A, B>);

/// Atoms that were carried out or undone; nothing is frozen any more.
#[must_use = "dropping it leaves replaced pages with the backend, until the next commit of the block"]
pub struct Thawed<'a, F: FolioBackend + ?Sized, V: VmemmapBackend + ?Sized, A, B> {
    parts: Parts<'a, F, V, A, B>,
    flushed: Option<V::Flushed>,
}

impl<'a, F, V, A, B> Commit<'a, F, V, A, B>
where
    F: FolioBackend + ?Sized,
    V: VmemmapBackend + ?Sized,
    A: PageSet,
    B: PageSet,
{
    /// Checks that `atoms` can be carried out from `reserved`, and freezes all their folios, or none. Atoms that are done
    /// already are passed over. No two atoms may concern the same pages. All blocks whose vmemmap changes are of one NUMA node,
    /// as the reservation is.
    ///
    /// # Errors
    ///
    /// [`Refused`]: what the transition, the reservation or the zone lacks, or the first page that somebody holds after
    /// `tries` attempts ([`AtomError::Pinned`]). Nothing has changed.
    pub fn freeze(
        folios: &'a F,
        vmemmap: &'a V,
        atoms: &'a mut [Atom<A, B, F::Frozen>],
        reserved: Reserved<'a, F::Nodes>,
        tries: u32,
    ) -> Result<Self, Refused> {
        let (have_pages, have_nodes) =
            (u64::from(reserved.pages.count(FrameKind::Vmemmap)), folios.nodes_left(reserved.nodes));
        let (mut pages, mut nodes, mut node) = (0_u64, 0_u64, None);
        for (position, atom) in atoms.iter().enumerate() {
            let refused = |error| Refused { position, error };
            if let Some(other) = atom.node(vmemmap)
                && *node.get_or_insert(other) != other
            {
                let node = node.unwrap_or(other);
                return Err(refused(OtherNode { node, other }.into()));
            }
            let needs = atom.needs(folios, vmemmap).map_err(refused)?;
            (pages, nodes) = (pages.saturating_add(needs.0), nodes.saturating_add(needs.1));
            let whole = atom.change().whole();
            if nodes > have_nodes {
                let short = CommitError::Nodes { whole, need: nodes, have: have_nodes };
                return Err(refused(short.into()));
            }
            if pages > have_pages {
                let short = ApplyError::Short { whole, need: pages, have: have_pages };
                return Err(refused(short.into()));
            }
        }
        let frozen = atoms.iter_mut().map(|atom| atom.freeze(folios, tries));
        let pinned = frozen.enumerate().find_map(|(position, frozen)| Some((position, frozen.err()?)));
        if let Some((position, pinned)) = pinned {
            atoms.iter_mut().for_each(|atom| atom.thaw(folios));
            return Err(Refused { position, error: pinned.into() });
        }
        Ok(Self(Parts { folios, vmemmap, atoms, reserved, done: AtomDone::default() }))
    }

    /// Writes all entries, with exactly the planned pages of the reservation.
    ///
    /// # Errors
    ///
    /// [`ApplyError::BrokenStore`]: the store does not give what it said it had. All was undone and thawed, as by
    /// [`Remapped::cancel`]: [`Atom::round`] tells which splits wait, and those are to be cancelled once more.
    pub fn remap(mut self) -> Result<Remapped<'a, F, V, A, B>, Refused> {
        let Parts { folios, vmemmap, atoms, reserved, done } = &mut self.0;
        for (position, atom) in atoms.iter_mut().enumerate() {
            let mut take = || reserved.pages.get(FrameKind::Vmemmap);
            match atom.remap(*folios, *vmemmap, reserved.nodes, &mut take) {
                Ok((applied, freed)) => {
                    done.vmemmap = done.vmemmap.plus(applied);
                    done.nodes_freed = done.nodes_freed.saturating_add(freed);
                }
                Err(error) => {
                    // Some entries of this atom were written.
                    done.vmemmap.rewrites = done.vmemmap.rewrites.saturating_add(1);
                    let _ = Remapped(self.0).cancel();
                    return Err(Refused { position, error: error.into() });
                }
            }
        }
        Ok(Remapped(self.0))
    }

    /// Thaws everything. A merge that stands between its two rounds is undone: its folios are what they were before. The cancel
    /// of a split that stands there is ended.
    pub fn cancel(mut self) -> Thawed<'a, F, V, A, B> {
        let mut back = Applied::default();
        for atom in self.0.atoms.iter_mut() {
            back = back.plus(atom.end_unsplit(self.0.vmemmap));
        }
        self.0.done.vmemmap = back;
        let flushed = self.0.flush();
        self.0.thaw_undone();
        Thawed { parts: self.0, flushed }
    }
}

impl<'a, F, V, A, B> Remapped<'a, F, V, A, B>
where
    F: FolioBackend + ?Sized,
    V: VmemmapBackend + ?Sized,
    A: PageSet,
    B: PageSet,
{
    /// Flushes, completes the splits and thaws everything. Cannot fail.
    pub fn finish(mut self) -> Thawed<'a, F, V, A, B> {
        let flushed = self.0.flush();
        self.0.finish();
        Thawed { parts: self.0, flushed }
    }

    /// Undoes everything and thaws. Cannot fail, and takes nothing from anybody. A merge in its second round is undone whole, its
    /// first round included.
    ///
    /// Where tails are shared with the head, a split is cancelled in two rounds: the pages that were mapped stay until the same
    /// atoms are cancelled once more, after a grace period ([`Thawed::waits`]).
    ///
    /// The same atoms may be committed again.
    pub fn cancel(mut self) -> Thawed<'a, F, V, A, B> {
        let mut back = Applied::default();
        for atom in self.0.atoms.iter() {
            back = back.plus(atom.unsplit(self.0.vmemmap));
        }
        self.0.done.vmemmap = self.0.done.vmemmap.plus(back);
        let mut flushed = self.0.flush();
        for atom in self.0.atoms.iter() {
            atom.unsplit_patiently(self.0.vmemmap);
        }
        if let Some(proof) = &flushed {
            let mut back = Applied::default();
            for atom in self.0.atoms.iter() {
                back = back.plus(atom.unmerge(self.0.vmemmap, proof));
            }
            if back.entry_writes() > 0 {
                self.0.done.vmemmap = self.0.done.vmemmap.plus(back);
                flushed = self.0.flush();
            }
        }
        self.0.thaw_undone();
        Thawed { parts: self.0, flushed }
    }
}

impl<F, V, A, B> Parts<'_, F, V, A, B>
where
    F: FolioBackend + ?Sized,
    V: VmemmapBackend + ?Sized,
    A: PageSet,
    B: PageSet,
{
    fn flush(&mut self) -> Option<V::Flushed> {
        if self.done.vmemmap.entry_writes() == 0 {
            return None;
        }
        self.done.flushes = self.done.flushes.saturating_add(1);
        Some(self.vmemmap.flush())
    }

    fn finish(&mut self) {
        let have = self.folios.nodes_left(self.reserved.nodes);
        for atom in self.atoms.iter_mut() {
            atom.finish(self.folios, self.vmemmap, self.reserved.nodes);
        }
        self.count_nodes(have);
    }

    fn thaw_undone(&mut self) {
        let have = self.folios.nodes_left(self.reserved.nodes);
        for atom in self.atoms.iter_mut() {
            atom.thaw_undone(self.folios, self.vmemmap, self.reserved.nodes);
        }
        self.count_nodes(have);
    }

    /// Counts the nodes that were used since there were so many.
    fn count_nodes(&mut self, have: u64) {
        self.done.nodes_used = have.saturating_sub(self.folios.nodes_left(self.reserved.nodes));
    }
}

impl<F, V, A, B> Thawed<'_, F, V, A, B>
where
    F: FolioBackend + ?Sized,
    V: VmemmapBackend + ?Sized,
    A: PageSet,
    B: PageSet,
{
    /// Atoms that a grace period and another commit are due for.
    #[must_use]
    pub fn waits(&self) -> usize {
        self.parts.atoms.iter().filter(|atom| atom.round() == Round::Second).count()
    }

    /// Gives the replaced pages to `source`.
    pub fn release(self, source: &dyn FrameSource) -> AtomDone {
        self.replaced(|_, frame| source.give(FrameKind::Vmemmap, frame))
    }

    /// Gives the replaced pages to the reservation, which can undo everything with them; those that it has no room for to
    /// `source`.
    pub fn keep(self, source: &dyn FrameSource) -> AtomDone {
        self.replaced(|reserved, frame| {
            if let Err(frame) = reserved.pages.put(FrameKind::Vmemmap, frame) {
                source.give(FrameKind::Vmemmap, frame);
            }
        })
    }

    /// Leaves them with the backend.
    pub(crate) fn leave(self) -> AtomDone {
        self.parts.done
    }

    fn replaced(mut self, mut give: impl FnMut(&mut Reserved<'_, F::Nodes>, sept_core::Frame)) -> AtomDone {
        let Parts { vmemmap, atoms, reserved, done, .. } = &mut self.parts;
        let Some(flushed) = self.flushed else { return *done };
        for atom in atoms.iter() {
            let block = atom.block();
            // A block has no more pages than that; a backend that goes on for ever is broken.
            for _ in 0..vmemmap.geometry().vmemmap_pages(block.order()).saturating_mul(2) {
                let Some(frame) = vmemmap.take_replaced(block, &flushed) else { break };
                give(reserved, frame);
                done.released = done.released.saturating_add(1);
            }
        }
        *done
    }
}

impl<F: FolioBackend + ?Sized, V: ?Sized, A, B> fmt::Debug for Parts<'_, F, V, A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commit").field("atoms", &self.atoms).field("done", &self.done).finish_non_exhaustive()
    }
}

impl<F: FolioBackend + ?Sized, V: VmemmapBackend + ?Sized, A, B> fmt::Debug for Commit<'_, F, V, A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<F: FolioBackend + ?Sized, V: VmemmapBackend + ?Sized, A, B> fmt::Debug for Remapped<'_, F, V, A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<F: FolioBackend + ?Sized, V: VmemmapBackend + ?Sized, A, B> fmt::Debug for Thawed<'_, F, V, A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.fmt(f)
    }
}
