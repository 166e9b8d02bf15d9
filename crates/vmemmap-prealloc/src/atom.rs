//! One change of folios and vmemmap together, and how far it has come.

use crate::{Applied, ApplyError, NumaNode, OtherNode, TailScheme, VmemmapBackend, walk::Walk};
use folio_split::{Change, CommitError, FolioBackend, PageSet, PfnBlock, Pinned, Transition, nodes_to_split};
use sept_core::{Class, Classify, Frame};

/// One folio to be split or formed, for a [`Commit`](crate::Commit). Lives where the caller keeps it; several are a slice.
///
/// `A` and `B` are the sets of the transition, `Z` is [`FolioBackend::Frozen`]. The transition is the atom's own: where its
/// sets are borrowed ([`Transition::by_ref`]), so is it; else it can be parked. Between two commits it can wait as long as it
/// likes: nothing is frozen then, and it knows how far it has come.
#[must_use = "an atom does nothing without a commit"]
pub struct Atom<A, B, Z> {
    transition: Transition<A, B>,
    change: Change,
    round: Round,
    /// Two rounds for a merge, and to undo a split, where the scheme asks for it.
    patient: bool,
    frozen: Option<Z>,
    /// Whether this round's entries were written.
    remapped: bool,
}

/// How far an atom has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Round {
    /// Nothing was done, or everything undone.
    First,
    /// The folios are one, since they were merged or their split was cancelled, and the pages of the vmemmap that it will not
    /// keep are still its own: a grace period, and then another commit, which ends the merge; or another cancel, which ends
    /// that of the split, as a commit does too.
    Second,
    /// All was done.
    Done,
}

impl<A: PageSet, B: PageSet, Z> Atom<A, B, Z> {
    /// Splits `whole`, a folio that `transition` splits.
    pub const fn split(transition: Transition<A, B>, whole: PfnBlock) -> Self {
        Self::new(transition, Change::Split(whole))
    }

    /// Forms `whole`, a folio that `transition` merges to.
    pub const fn merge(transition: Transition<A, B>, whole: PfnBlock) -> Self {
        Self::new(transition, Change::Merge(whole))
    }

    /// Carries out one of [`Transition::changes`].
    pub const fn new(transition: Transition<A, B>, change: Change) -> Self {
        Self { transition, change, round: Round::First, patient: true, frozen: None, remapped: false }
    }

    /// The same in one round, on the word of [`FolioBackend::freeze`] that it waits for readers.
    pub(crate) const fn at_once(mut self) -> Self {
        self.patient = false;
        self
    }

    /// The change.
    #[must_use]
    pub const fn change(&self) -> Change {
        self.change
    }

    /// How far it has come.
    #[must_use]
    pub const fn round(&self) -> Round {
        self.round
    }

    pub(crate) const fn block(&self) -> PfnBlock {
        self.transition.block()
    }

    const fn whole(&self) -> PfnBlock {
        self.change.whole()
    }

    fn walk<'v, V: VmemmapBackend + ?Sized>(&self, vmemmap: &'v V) -> Option<Walk<'v, V>> {
        Walk::new(vmemmap, self.block(), self.whole())
    }

    /// The NUMA node of the pages that this atom takes or gives; `None` if it does neither.
    pub(crate) fn node<V: VmemmapBackend + ?Sized>(&self, vmemmap: &V) -> Option<NumaNode> {
        let some = self.round != Round::Done && self.walk(vmemmap).is_some();
        some.then(|| vmemmap.node_of(self.block()))
    }

    /// Vmemmap pages and index nodes that this round must find in the reservation, when the transition and the zone have
    /// been looked at. A merge needs none, but those of its first round are there in the second: it can be undone then.
    pub(crate) fn needs<F, V>(&self, folios: &F, vmemmap: &V) -> Result<(u64, u64), AtomError>
    where
        F: FolioBackend + ?Sized,
        V: VmemmapBackend + ?Sized,
    {
        let (whole, transition) = (self.whole(), &self.transition);
        if self.frozen.is_some() {
            return Err(AtomError::Dropped { whole });
        }
        let walk = self.walk(vmemmap);
        match (self.round, self.change) {
            (Round::Done, _) | (Round::Second, Change::Split(_)) => Ok((0, 0)),
            (Round::First, Change::Split(_)) => {
                let nodes = nodes_to_split(folios.index(), transition, whole)?;
                let to = transition.to_layout();
                let Some((walk, part)) = walk.zip(to.within(whole)) else { return Ok((0, nodes)) };
                let counts = part.counts();
                walk.check_templates(&counts)?;
                Ok((walk.pages(&counts), nodes))
            }
            (_, Change::Merge(_)) if !transition.merges(whole) => {
                Err(CommitError::NotAMerge { whole }.into())
            }
            (round, change) => {
                walk.map_or(Ok(()), |walk| walk.check_template(whole))?;
                let first = round == Round::First;
                Ok((0, if first { 0 } else { transition.delta_of(change, folios.index()).freed }))
            }
        }
    }

    pub(crate) fn freeze<F>(&mut self, folios: &F, tries: u32) -> Result<(), Pinned>
    where
        F: FolioBackend<Frozen = Z> + ?Sized,
    {
        if self.round != Round::Done {
            self.frozen = Some(folios.freeze(self.whole(), tries)?);
        }
        Ok(())
    }

    /// Whether pages that stop being the block's own in this round, a merge's or that of a split to be undone, wait for a grace
    /// period.
    fn waits<V: VmemmapBackend + ?Sized>(&self, vmemmap: &V) -> bool {
        self.patient
            && self.round == Round::First
            && vmemmap.geometry().tails() == TailScheme::SharedWithHead
            && self.walk(vmemmap).is_some()
    }

    /// Writes the entries of this round; of a merge, the folio and its index entry before.
    pub(crate) fn remap<F, V>(
        &mut self,
        folios: &F,
        vmemmap: &V,
        nodes: &mut F::Nodes,
        take: &mut dyn FnMut() -> Option<Frame>,
    ) -> Result<(Applied, u64), ApplyError>
    where
        F: FolioBackend<Frozen = Z> + ?Sized,
        V: VmemmapBackend + ?Sized,
    {
        let whole = self.whole();
        let (walk, waits) = (self.walk(vmemmap), self.waits(vmemmap));
        let Some(frozen) = &mut self.frozen else { return Ok((Applied::default(), 0)) };
        let (mut applied, mut freed) = (Applied::default(), 0);
        match self.change {
            Change::Split(_) if self.round == Round::Second => return Ok((self.end_unsplit(vmemmap), 0)),
            Change::Split(_) => {
                let pieces = self.transition.split_pieces(whole);
                if let Some(walk) = walk {
                    applied = walk.split(pieces, take).map_err(|got| {
                        // Entries were written: the cancel of the commit undoes them.
                        self.remapped = true;
                        let part = self.transition.to_layout().within(whole).map(|part| part.counts());
                        let need = part.map_or(0, |counts| walk.pages(&counts));
                        ApplyError::BrokenStore { whole, need, got }
                    })?;
                }
            }
            Change::Merge(_) => {
                let pieces = self.transition.merge_pieces(whole);
                if self.round == Round::First {
                    freed = folios.merge(frozen, whole, nodes);
                }
                match walk {
                    Some(walk) if waits => walk.write_tails(pieces),
                    Some(walk) => applied = walk.merge(pieces),
                    None => {}
                }
            }
        }
        self.remapped = true;
        Ok((applied, freed))
    }

    /// The rest of this round, after the flush: of a split, the folios and their index entries; and the thaw.
    pub(crate) fn finish<F, V>(&mut self, folios: &F, vmemmap: &V, nodes: &mut F::Nodes)
    where
        F: FolioBackend<Frozen = Z> + ?Sized,
        V: VmemmapBackend + ?Sized,
    {
        let next = match (self.change, self.round) {
            (Change::Merge(_), _) if self.waits(vmemmap) => Round::Second,
            (Change::Split(_), Round::Second) => Round::First,
            _ => Round::Done,
        };
        let Some(mut frozen) = self.frozen.take() else { return };
        if let Change::Split(whole) = self.change
            && next == Round::Done
        {
            for piece in self.transition.split_pieces(whole) {
                folios.split(&mut frozen, piece, nodes);
            }
        }
        folios.thaw(frozen);
        self.round = next;
        self.remapped = false;
    }

    /// Thaws what was frozen and nothing else.
    pub(crate) fn thaw<F>(&mut self, folios: &F)
    where
        F: FolioBackend<Frozen = Z> + ?Sized,
    {
        if let Some(frozen) = self.frozen.take() {
            folios.thaw(frozen);
        }
    }

    /// The split whose entries this round wrote.
    fn remapped_split<'v, V: VmemmapBackend + ?Sized>(
        &self,
        vmemmap: &'v V,
    ) -> Option<(Walk<'v, V>, PfnBlock)> {
        match self.change {
            Change::Split(whole) if self.remapped && self.round == Round::First => {
                Some((self.walk(vmemmap)?, whole))
            }
            _ => None,
        }
    }

    /// Undoes the entries of a split. Flush, then [`Atom::unsplit_patiently`].
    pub(crate) fn unsplit<V: VmemmapBackend + ?Sized>(&self, vmemmap: &V) -> Applied {
        match self.remapped_split(vmemmap) {
            Some((walk, whole)) if !self.waits(vmemmap) => walk.merge(self.transition.split_pieces(whole)),
            _ => Applied::default(),
        }
    }

    /// After the flush: makes the new heads of a split tails of the folio again, in the pages that were mapped for them, where
    /// these wait for a grace period. Then [`Atom::thaw_undone`].
    pub(crate) fn unsplit_patiently<V: VmemmapBackend + ?Sized>(&self, vmemmap: &V) {
        if let Some((walk, whole)) = self.remapped_split(vmemmap)
            && self.waits(vmemmap)
        {
            walk.write_tails(self.transition.split_pieces(whole));
        }
    }

    /// Undoes the entries of a split whose pages waited for a grace period. Flush, then [`Atom::thaw_undone`].
    pub(crate) fn end_unsplit<V: VmemmapBackend + ?Sized>(&mut self, vmemmap: &V) -> Applied {
        match (self.walk(vmemmap), self.change, &self.frozen) {
            (Some(walk), Change::Split(whole), Some(_)) if self.round == Round::Second => {
                self.remapped = true;
                walk.merge(self.transition.split_pieces(whole))
            }
            _ => Applied::default(),
        }
    }

    /// Undoes the entries of a merge, with the pages that it gave up, after a flush. Flush again, then
    /// [`Atom::thaw_undone`].
    pub(crate) fn unmerge<V: VmemmapBackend + ?Sized>(&self, vmemmap: &V, flushed: &V::Flushed) -> Applied {
        let walk = self.walk(vmemmap).filter(|_| self.remapped && !self.waits(vmemmap));
        match (walk, self.change) {
            (Some(walk), Change::Merge(whole)) => {
                let pieces = self.transition.merge_pieces(whole);
                // The pages are there: this very merge replaced them.
                let back = walk.split(pieces, &mut || vmemmap.take_replaced(self.block(), flushed));
                back.unwrap_or_default()
            }
            _ => Applied::default(),
        }
    }

    /// Thaws what was frozen, in the layout from before the first round.
    pub(crate) fn thaw_undone<F, V>(&mut self, folios: &F, vmemmap: &V, nodes: &mut F::Nodes)
    where
        F: FolioBackend<Frozen = Z> + ?Sized,
        V: VmemmapBackend + ?Sized,
    {
        let split = matches!(self.change, Change::Split(_));
        // Of a split: entries that were written wait, and so do those that a second round has not written.
        let second = match self.round {
            Round::First => self.remapped && self.waits(vmemmap),
            Round::Second => !self.remapped,
            Round::Done => false,
        };
        let Some(mut frozen) = self.frozen.take() else { return };
        if let Change::Merge(whole) = self.change
            && (self.remapped || self.round == Round::Second)
        {
            for piece in self.transition.merge_pieces(whole) {
                folios.split(&mut frozen, piece, nodes);
            }
        }
        folios.thaw(frozen);
        self.round = if split && second { Round::Second } else { Round::First };
        self.remapped = false;
    }
}

impl<A, B, Z> core::fmt::Debug for Atom<A, B, Z> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Atom")
            .field("change", &self.change)
            .field("round", &self.round)
            .field("frozen", &self.frozen.is_some())
            .finish_non_exhaustive()
    }
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
    /// The block is of another NUMA node than those of the atoms before: another commit, from a reservation of its own.
    #[error(transparent)]
    Node(#[from] OtherNode),
    /// A commit of this atom was dropped: its folios are frozen for good.
    #[error("a commit that changed {whole} was dropped")]
    Dropped {
        /// The folio to be split or formed.
        whole: PfnBlock,
    },
}

impl Classify for AtomError {
    fn class(&self) -> Class {
        match self {
            Self::Pinned(error) => error.class(),
            Self::Index(error) => error.class(),
            Self::Vmemmap(error) => error.class(),
            Self::Node(error) => error.class(),
            Self::Dropped { .. } => Class::Fatal,
        }
    }
}
