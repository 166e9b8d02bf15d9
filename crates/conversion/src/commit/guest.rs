//! One turn of each phase, and those phases that take pages from the guest or turn that round.

use super::{Commit, CommitError, Turn, cursor::Budget, order::Phase};
use crate::{
    Event, Observer, Operation, Platform, Tee, TeeError, Visibility,
    layout::{RelayError, chunk_end, gpa_of, relay},
    stage2::{Ends, Slot, declared, look, undo_range},
};
use sept_core::{Class, Classify, Entry, Found, FrameSource, Gpa, GpaEntry, Level, Returned};
use vmemmap_prealloc::AtomError;

pub(super) type Error<P> = CommitError<TeeError<P>>;
pub(super) type Turned<P> = Result<Turn, Error<P>>;

pub(super) fn tee_error<E>(at: GpaEntry) -> impl Fn(E) -> CommitError<E> {
    move |error| CommitError::Tee { at, error }
}

/// Refuses a leaf larger than its folio before the TEE hears of it: the provider broke I1.
fn fits<P: Platform>(platform: &P, leaf: GpaEntry) -> Result<(), Error<P>> {
    if declared(platform, leaf) { Ok(()) } else { Err(CommitError::TooLarge { leaf }) }
}

impl<P: Platform> Commit<P> {
    /// One turn: at most what is left in `budget`, within one phase.
    pub(super) fn turn(
        &mut self,
        platform: &P,
        budget: &mut Budget,
        to: &dyn FrameSource,
        observer: &mut impl Observer,
    ) -> Turned<P> {
        let range = self.request().range;
        match self.at.phase {
            Phase::UnmapHost => {
                self.flush = Some(platform.unmap_host(range));
                Ok(Turn::Done)
            }
            Phase::FlushHost => self.flush_host(platform),
            Phase::StorePrivate => {
                self.at.changed = true;
                platform.set_visibility(range, Visibility::Private);
                Ok(Turn::Done)
            }
            Phase::StoreShared => {
                self.at.removed = true;
                platform.set_visibility(range, Visibility::Shared);
                Ok(Turn::Done)
            }
            Phase::SplitBlock(level) => self.split_block(platform, level, budget, observer),
            Phase::Split(level) => self.split(platform, level, budget, observer),
            Phase::HideBlock => self.hide(platform, budget, observer),
            Phase::SplitFence(_) | Phase::HideFence | Phase::EmptyFence | Phase::UndoFence => {
                self.fence(platform, budget, observer)
            }
            Phase::Layout => self.layout(platform, budget, to, observer, false),
            Phase::UndoLayout => self.layout(platform, budget, to, observer, true),
            Phase::Remove => self.remove(platform, budget, observer),
            Phase::EmptyBlock => self.empty_block(platform, budget, observer),
            Phase::EmptyUnlink => self.empty_unlink(platform, budget, observer),
            Phase::Map => self.map(platform, budget, observer),
            Phase::Grace => Ok(self.grace(platform)),
            Phase::Settle => self.settle(platform, budget, to, observer),
            Phase::Yield => self.give_way(platform, budget),
            Phase::Undo => self.undo(platform, budget),
            Phase::Ended(_) => Ok(Turn::Done),
        }
    }

    /// Waits for the flush of host mappings; only then nobody can take a reference any more, and pins decide.
    fn flush_host(&mut self, platform: &P) -> Turned<P> {
        let ended = self.flush.is_none_or(|flush| platform.host_flushed(flush));
        match platform.next_pinned(self.request().range) {
            Some(first) => Err(CommitError::Pinned { first }),
            None => Ok(if ended { Turn::Done } else { Turn::Await }),
        }
    }

    /// Blocks the leaves of `level` that this operation must split.
    fn split_block(
        &mut self,
        platform: &P,
        level: Level,
        budget: &mut Budget,
        observer: &mut impl Observer,
    ) -> Turned<P> {
        if self.mapping().is_some() {
            return self.each_region(platform, budget, |commit, budget, region, slot| {
                if let Slot::Split { .. } = slot {
                    fits(platform, region.slot)?;
                    commit.block(platform, region.slot, true, observer)?;
                    budget.call();
                }
                Ok(())
            });
        }
        let ends = Ends::of(platform, &self.request(), level);
        while !budget.is_spent() {
            let Some((at, _)) = ends.next_leaf(platform.tee(), self.at.next)? else { return Ok(Turn::Done) };
            fits(platform, at)?;
            self.block(platform, at, true, observer)?;
            budget.call();
            self.at.next = at.end();
        }
        Ok(Turn::Again)
    }

    fn split(
        &mut self,
        platform: &P,
        level: Level,
        budget: &mut Budget,
        observer: &mut impl Observer,
    ) -> Turned<P> {
        if self.mapping().is_some() {
            return self.each_region(platform, budget, |commit, budget, region, slot| {
                if let Slot::Split { .. } = slot {
                    commit.split_one(platform, region.slot, observer)?;
                    budget.call();
                }
                Ok(())
            });
        }
        let ends = Ends::of(platform, &self.request(), level);
        while !budget.is_spent() {
            let Some((at, _)) = ends.next_leaf(platform.tee(), self.at.next)? else { return Ok(Turn::Done) };
            self.split_one(platform, at, observer)?;
            budget.call();
            self.at.next = at.end();
        }
        Ok(Turn::Again)
    }

    fn split_one(
        &mut self,
        platform: &P,
        at: GpaEntry,
        observer: &mut impl Observer,
    ) -> Result<(), Error<P>> {
        let Some(fenced) = self.at.fenced else { return Err(CommitError::Changed { gpa: at.gpa() }) };
        platform.tee().split(at, &fenced, &mut self.reservation.store).map_err(tee_error(at))?;
        observer.event(Event::Split(at));
        Ok(())
    }

    /// Blocks every leaf of the range.
    fn hide(&mut self, platform: &P, budget: &mut Budget, observer: &mut impl Observer) -> Turned<P> {
        while let Some(found) = self.cursor(platform)? {
            if budget.is_spent() {
                return Ok(Turn::Again);
            }
            budget.look();
            if let Entry::Leaf { .. } = found.entry {
                if !self.request().range.covers(found.at) {
                    return Err(CommitError::Changed { gpa: found.at.gpa() });
                }
                fits(platform, found.at)?;
                self.block(platform, found.at, false, observer)?;
                budget.call();
            }
            self.at.next = found.at.end();
        }
        Ok(Turn::Done)
    }

    /// Takes every blocked leaf of the range out of the guest.
    fn remove(&mut self, platform: &P, budget: &mut Budget, observer: &mut impl Observer) -> Turned<P> {
        self.reclaim(platform)?;
        while let Some(found) = self.cursor(platform)? {
            if budget.is_spent() {
                return Ok(Turn::Again);
            }
            budget.look();
            match (found.entry, self.at.fenced) {
                (Entry::Leaf { .. }, Some(fenced)) => {
                    self.remove_one(platform, found.at, &fenced, observer)?;
                    budget.call();
                }
                (Entry::Leaf { .. }, None) => return Err(CommitError::Changed { gpa: found.at.gpa() }),
                _ if self.isolates() => {
                    self.at.removed = true;
                    platform.poison(self.request().range.start(), None);
                    self.at.next = found.at.end();
                }
                _ => self.at.next = found.at.end(),
            }
        }
        Ok(Turn::Done)
    }

    fn remove_one(
        &mut self,
        platform: &P,
        at: GpaEntry,
        fenced: &<P::Tee as Tee>::Fenced,
        observer: &mut impl Observer,
    ) -> Result<(), Error<P>> {
        let page = platform.tee().remove(at, fenced).map_err(tee_error(at))?;
        self.at.removed = true;
        self.at.next = at.end();
        observer.event(Event::Removed(at));
        if self.isolates() {
            platform.poison(at.gpa(), Some(page));
            return Ok(());
        }
        self.at.held = Some((at, page));
        self.reclaim(platform)
    }

    fn isolates(&self) -> bool {
        self.request().operation == Operation::Isolate
    }

    /// Writes back the page that was removed last and hands it to the platform.
    fn reclaim(&mut self, platform: &P) -> Result<(), Error<P>> {
        let Some((at, page)) = self.at.held.take() else { return Ok(()) };
        match platform.tee().reclaim(page) {
            Ok(page) => {
                platform.take_back(at, page);
                Ok(())
            }
            Err(Returned { error, held }) => {
                self.at.held = Some((at, held));
                Err(CommitError::Tee { at, error })
            }
        }
    }

    pub(super) fn block(
        &mut self,
        platform: &P,
        at: GpaEntry,
        outside: bool,
        observer: &mut impl Observer,
    ) -> Result<(), Error<P>> {
        platform.tee().block(at).map_err(tee_error(at))?;
        self.at.blocked = true;
        observer.event(Event::Blocked { at, outside });
        Ok(())
    }

    /// Starts the fence, then polls it.
    fn fence(&mut self, platform: &P, budget: &mut Budget, observer: &mut impl Observer) -> Turned<P> {
        let ticket = match self.at.ticket {
            Some(ticket) => ticket,
            None => {
                let at = GpaEntry::containing(self.request().range.start(), Level::L4K);
                let ticket = platform.tee().fence().map_err(tee_error(at))?;
                observer.event(Event::Fenced);
                budget.call();
                self.at.ticket = Some(ticket);
                ticket
            }
        };
        self.at.fenced = platform.tee().fenced(ticket);
        if self.at.fenced.is_none() {
            return Ok(Turn::Await);
        }
        self.at.ticket = None;
        Ok(Turn::Done)
    }

    /// Gives the next 2 MiB their new folio layout. Turned round, the layout that the attributes ask for.
    fn layout(
        &mut self,
        platform: &P,
        budget: &mut Budget,
        to: &dyn FrameSource,
        observer: &mut impl Observer,
        undo: bool,
    ) -> Turned<P> {
        let mut request = self.request();
        if undo {
            request.operation = Operation::Coalesce;
        }
        while !budget.is_spent() {
            let Some(gpa) = Gpa::new(self.at.next).filter(|gpa| request.range.contains(*gpa)) else {
                return Ok(Turn::Done);
            };
            budget.look();
            let Some(block) = platform.block_of(gpa) else { return Err(CommitError::Changed { gpa }) };
            let held = &mut self.reservation;
            let page = block.page(gpa);
            self.at.relaid |= request.removes();
            let (done, result) =
                relay(platform, block, &request, page, (&mut held.store, &mut held.nodes), to);
            self.released = self.released.plus(done.released);
            if done.splits | done.merges != 0 {
                let (splits, merges) = (done.splits, done.merges);
                self.at.changed |= !self.request().removes();
                observer.event(Event::Relaid { block: block.pfn(), splits, merges });
                budget.call();
            }
            result.map_err(|error| match error {
                RelayError::Atom(AtomError::Pinned(pinned)) => {
                    CommitError::Pinned { first: gpa_of(&block, pinned.first) }
                }
                RelayError::Atom(error) => CommitError::Layout { gpa, error },
                RelayError::LargerLeaf { at, order } => CommitError::LargerLeaf { at, order: order.raw() },
                RelayError::Tee(error) => {
                    CommitError::Tee { at: GpaEntry::containing(gpa, Level::L4K), error }
                }
            })?;
            let pages = chunk_end(page).saturating_sub(page);
            self.at.next = gpa.raw().saturating_add(pages << Level::L4K.shift()).min(block.end());
        }
        Ok(Turn::Again)
    }

    /// After a cancellation: reads the entry that was refused last, so that no mark of the refused call keeps the guest
    /// out of it.
    fn give_way(&mut self, platform: &P, budget: &mut Budget) -> Turned<P> {
        let Some(at) = self.at.refused else { return Ok(Turn::Done) };
        budget.call();
        match platform.tee().probe(at) {
            Err(error) if matches!(error.class(), Class::Retry | Class::Quiesce) => {
                Err(CommitError::Tee { at, error })
            }
            // No such entry any more, or nothing that another call could help.
            _ => {
                self.at.refused = None;
                Ok(Turn::Done)
            }
        }
    }

    /// Unblocks what this operation blocked: in its range, and leaves around it that were to be split.
    fn undo(&mut self, platform: &P, budget: &mut Budget) -> Turned<P> {
        let Some(fenced) = self.at.fenced else { return Ok(Turn::Done) };
        let wide = undo_range(platform, &self.request());
        while let Some(gpa) = Gpa::new(self.at.next.max(wide.start().raw())).filter(|gpa| wide.contains(*gpa))
        {
            if budget.is_spent() {
                return Ok(Turn::Again);
            }
            budget.look();
            let found = look(platform.tee(), gpa)?;
            // A table that hides the entry is one of the empty ones that this operation blocked.
            let at = if found.hidden { GpaEntry::containing(gpa, Level::L2M) } else { found.at };
            if found.hidden || found.entry.blocked().is_some() {
                platform.tee().unblock(at, &fenced).map_err(tee_error(at))?;
                budget.call();
            }
            self.at.next = at.end();
        }
        Ok(Turn::Done)
    }

    /// Where the walk at the cursor ends, or `None` past the range.
    pub(super) fn cursor(&self, platform: &P) -> Result<Option<Found>, Error<P>> {
        match Gpa::new(self.at.next).filter(|gpa| self.request().range.contains(*gpa)) {
            Some(gpa) => Ok(Some(look(platform.tee(), gpa)?)),
            None => Ok(None),
        }
    }
}
