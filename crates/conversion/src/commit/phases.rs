//! One turn of each phase.

use super::{Commit, CommitError, Phase, Turn};
use crate::{
    Event, Needs, Observer, Operation, Platform, Tee, TeeError, Visibility,
    layout::{RelayError, Target, chunk_end, gpa_of, relay},
    stage2::{Ends, Mapping, Region, Slot, region, widened},
};
use sept_core::{Entry, Fill, FrameNeeds, FrameSource, Gpa, GpaEntry, Level, Returned};
use vmemmap_prealloc::AtomError;

type Error<P> = CommitError<TeeError<P>>;
type Turned<P> = Result<Turn, Error<P>>;

fn tee_error<E>(at: GpaEntry) -> impl Fn(E) -> CommitError<E> {
    move |error| CommitError::Tee { at, error }
}

impl<P: Platform> Commit<P> {
    /// One turn: at most the calls left in `calls`, within one phase.
    pub(super) fn turn(
        &mut self,
        platform: &P,
        calls: &mut u32,
        to: &dyn FrameSource,
        observer: &mut impl Observer,
    ) -> Turned<P> {
        let range = self.request().range;
        match self.at.phase {
            Phase::UnmapHost => {
                self.flush = Some(platform.unmap_host(range));
                Ok(Turn::Done)
            }
            Phase::FlushHost => {
                if let Some(first) = platform.next_pinned(range) {
                    return Err(CommitError::Pinned { first });
                }
                let ended = self.flush.is_none_or(|flush| platform.host_flushed(flush));
                Ok(if ended { Turn::Done } else { Turn::Await })
            }
            Phase::StorePrivate => {
                self.at.past_return = true;
                platform.set_visibility(range, Visibility::Private);
                Ok(Turn::Done)
            }
            Phase::StoreShared => {
                platform.set_visibility(range, Visibility::Shared);
                Ok(Turn::Done)
            }
            Phase::SplitBlock(level) => self.split_block(platform, level, calls, observer),
            Phase::Split(level) => self.split(platform, level, calls, observer),
            Phase::HideBlock => self.hide(platform, calls, observer),
            Phase::SplitFence(_) | Phase::HideFence | Phase::EmptyFence | Phase::UndoFence => {
                self.fence(platform, calls, observer)
            }
            Phase::Layout => self.layout(platform, calls, to, observer, false),
            Phase::UndoLayout => self.layout(platform, calls, to, observer, true),
            Phase::Remove => self.remove(platform, calls, observer),
            Phase::EmptyBlock => self.empty_block(platform, calls, observer),
            Phase::EmptyUnlink => self.empty_unlink(platform, calls, observer),
            Phase::Map => self.map(platform, calls, observer),
            Phase::Grace => Ok(self.grace(platform)),
            Phase::Settle => self.settle(platform, to, observer),
            Phase::Undo => self.undo(platform, calls, observer),
            Phase::Ended(_) => Ok(Turn::Done),
        }
    }

    /// Blocks the leaves of `level` that this operation must split.
    fn split_block(
        &mut self,
        platform: &P,
        level: Level,
        calls: &mut u32,
        observer: &mut impl Observer,
    ) -> Turned<P> {
        while *calls > 0 {
            let Some(at) = self.next_split(platform, level)? else { return Ok(Turn::Done) };
            self.block(platform, at, true, observer)?;
            *calls = calls.saturating_sub(1);
            self.at.next = at.end();
        }
        Ok(Turn::Again)
    }

    fn split(
        &mut self,
        platform: &P,
        level: Level,
        calls: &mut u32,
        observer: &mut impl Observer,
    ) -> Turned<P> {
        let Some(fenced) = self.at.fenced else { return Ok(Turn::Done) };
        while *calls > 0 {
            let Some(at) = self.next_split(platform, level)? else { return Ok(Turn::Done) };
            platform.tee().split(at, &fenced, &mut self.reservation.store).map_err(tee_error(at))?;
            observer.event(Event::Split(at));
            *calls = calls.saturating_sub(1);
            self.at.next = at.end();
        }
        Ok(Turn::Again)
    }

    /// The next leaf of `level` to split, at or after the cursor.
    fn next_split(&self, platform: &P, level: Level) -> Result<Option<GpaEntry>, Error<P>> {
        let range = self.request().range;
        let Some(mapping) = self.mapping() else {
            let at = GpaEntry::containing(range.start(), level);
            let ends = Ends::of(platform, &self.request(), level);
            let found = ends.next_leaf(platform.tee(), self.at.next).map_err(tee_error(at))?;
            return Ok(found.map(|(at, _)| at));
        };
        if level != Level::L2M {
            return Ok(None);
        }
        let mut next = self.at.next;
        while let Some(region) = region(range, next) {
            next = region.slot.end();
            if let Slot::Split { .. } = self.slot_of(platform, mapping, region)? {
                return Ok(Some(region.slot));
            }
        }
        Ok(None)
    }

    /// Blocks every leaf of the range.
    fn hide(&mut self, platform: &P, calls: &mut u32, observer: &mut impl Observer) -> Turned<P> {
        while let Some(found) = self.cursor(platform)? {
            if *calls == 0 {
                return Ok(Turn::Again);
            }
            if let Entry::Leaf { .. } = found.entry {
                if !self.request().range.covers(found.at) {
                    return Err(CommitError::Changed { gpa: found.at.gpa() });
                }
                self.block(platform, found.at, false, observer)?;
                *calls = calls.saturating_sub(1);
            }
            self.at.next = found.at.end();
        }
        Ok(Turn::Done)
    }

    /// Takes every blocked leaf of the range out of the guest.
    fn remove(&mut self, platform: &P, calls: &mut u32, observer: &mut impl Observer) -> Turned<P> {
        let isolate = self.request().operation == Operation::Isolate;
        self.reclaim(platform)?;
        while let Some(found) = self.cursor(platform)? {
            if *calls == 0 {
                return Ok(Turn::Again);
            }
            match (found.entry, &self.at.fenced) {
                (Entry::Leaf { .. }, Some(fenced)) => {
                    let page = platform.tee().remove(found.at, fenced).map_err(tee_error(found.at))?;
                    self.at.past_return = true;
                    self.at.next = found.at.end();
                    observer.event(Event::Removed(found.at));
                    *calls = calls.saturating_sub(1);
                    if isolate {
                        platform.poison(found.at.gpa(), Some(page));
                    } else {
                        self.at.held = Some((found.at, page));
                        self.reclaim(platform)?;
                    }
                }
                (Entry::Leaf { .. }, None) => return Err(CommitError::Changed { gpa: found.at.gpa() }),
                _ => {
                    if isolate {
                        platform.poison(self.request().range.start(), None);
                    }
                    self.at.next = found.at.end();
                }
            }
        }
        Ok(Turn::Done)
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

    fn block(
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
    fn fence(&mut self, platform: &P, calls: &mut u32, observer: &mut impl Observer) -> Turned<P> {
        let ticket = match self.at.ticket {
            Some(ticket) => ticket,
            None => {
                let at = GpaEntry::containing(self.request().range.start(), Level::L4K);
                let ticket = platform.tee().fence().map_err(tee_error(at))?;
                observer.event(Event::Fenced);
                *calls = calls.saturating_sub(1);
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
        calls: &mut u32,
        to: &dyn FrameSource,
        observer: &mut impl Observer,
        undo: bool,
    ) -> Turned<P> {
        let mut request = self.request();
        if undo {
            request.operation = Operation::Coalesce;
        }
        while *calls > 0 {
            let Some(gpa) = Gpa::new(self.at.next).filter(|gpa| request.range.contains(*gpa)) else {
                return Ok(Turn::Done);
            };
            let Some(block) = platform.block_of(gpa) else { return Err(CommitError::Changed { gpa }) };
            let held = &mut self.reservation;
            let page = block.page(gpa);
            let done = relay(platform, block, &request, page, (&mut held.store, &mut held.nodes), to);
            let done = done.map_err(|error| match error {
                RelayError::Atom(AtomError::Pinned(pinned)) => {
                    CommitError::Pinned { first: gpa_of(&block, pinned.first) }
                }
                RelayError::Atom(error) => CommitError::Layout { gpa, error },
                RelayError::LargerLeaf { at, order } => CommitError::LargerLeaf { at, order: order.raw() },
                RelayError::Tee(error) => {
                    CommitError::Tee { at: GpaEntry::containing(gpa, Level::L4K), error }
                }
            })?;
            self.released = self.released.plus(done.released);
            if done.splits | done.merges != 0 {
                let (splits, merges) = (done.splits, done.merges);
                observer.event(Event::Relaid { block: block.pfn(), splits, merges });
                *calls = calls.saturating_sub(1);
            }
            let pages = chunk_end(page).saturating_sub(page);
            self.at.next = gpa.raw().saturating_add(pages << Level::L4K.shift()).min(block.end());
        }
        Ok(Turn::Again)
    }

    /// Blocks empty tables that stand where a 2 MiB leaf fits.
    fn empty_block(&mut self, platform: &P, calls: &mut u32, observer: &mut impl Observer) -> Turned<P> {
        self.each_region(platform, calls, |commit, calls, region, step| {
            if step == Slot::Unlink {
                commit.block(platform, region.slot, false, observer)?;
                *calls = calls.saturating_sub(1);
            }
            Ok(())
        })
    }

    fn empty_unlink(&mut self, platform: &P, calls: &mut u32, observer: &mut impl Observer) -> Turned<P> {
        let Some(fenced) = self.at.fenced else { return Ok(Turn::Done) };
        self.each_region(platform, calls, |commit, calls, region, step| {
            if step == Slot::Unlink {
                let owed = &mut commit.at.owed;
                platform.tee().unlink(region.slot, &fenced, owed).map_err(tee_error(region.slot))?;
                observer.event(Event::Unlinked(region.slot));
                *calls = calls.saturating_sub(1);
            }
            Ok(())
        })
    }

    fn each_region(
        &mut self,
        platform: &P,
        calls: &mut u32,
        mut visit: impl FnMut(&mut Self, &mut u32, Region, Slot) -> Result<(), Error<P>>,
    ) -> Turned<P> {
        let Some(mapping) = self.mapping() else { return Ok(Turn::Done) };
        while let Some(region) = region(self.request().range, self.at.next) {
            if *calls == 0 {
                return Ok(Turn::Again);
            }
            let step = self.slot_of(platform, mapping, region)?;
            visit(self, calls, region, step)?;
            self.at.next = region.slot.end();
        }
        Ok(Turn::Done)
    }

    /// Maps what is private and not mapped.
    fn map(&mut self, platform: &P, calls: &mut u32, observer: &mut impl Observer) -> Turned<P> {
        let Some(mapping) = self.mapping() else { return Ok(Turn::Done) };
        while let Some(region) = region(self.request().range, self.at.next) {
            if *calls == 0 {
                return Ok(Turn::Again);
            }
            match self.slot_of(platform, mapping, region)? {
                Slot::Link { at, backing } => {
                    let linked = platform.tee().link(at, backing, &mut self.reservation.store);
                    linked.map_err(tee_error(at))?;
                    observer.event(Event::Linked(at));
                    *calls = calls.saturating_sub(1);
                }
                Slot::MapLarge => {
                    self.map_one(platform, region.slot, calls, observer)?;
                    self.at.next = region.slot.end();
                }
                Slot::Ready | Slot::Unlink | Slot::Split { .. } if !mapping.pages => {
                    self.at.next = region.slot.end();
                }
                Slot::Ready | Slot::Unlink | Slot::Split { .. } => {
                    self.map_pages(platform, region, calls, observer)?;
                }
            }
        }
        Ok(Turn::Done)
    }

    /// Maps the free 4 KiB entries of a region that has a table.
    fn map_pages(
        &mut self,
        platform: &P,
        region: Region,
        calls: &mut u32,
        observer: &mut impl Observer,
    ) -> Result<(), Error<P>> {
        self.at.next = self.at.next.max(region.part.start().raw());
        while *calls > 0 && self.at.next < region.part.end() {
            let Some(found) = self.cursor(platform)? else { return Ok(()) };
            self.at.next = found.at.end();
            if found.entry == Entry::Free && found.at.level() == Level::L4K {
                self.map_one(platform, found.at, calls, observer)?;
            }
        }
        Ok(())
    }

    /// Maps one page, if the platform has it to lend.
    fn map_one(
        &mut self,
        platform: &P,
        at: GpaEntry,
        calls: &mut u32,
        observer: &mut impl Observer,
    ) -> Result<(), Error<P>> {
        let Some(page) = platform.lend(at) else { return Ok(()) };
        if let Err(Returned { error, held }) = platform.tee().map(at, page, Fill::OnAccept) {
            platform.take_back(at, held);
            self.at.next = at.gpa().raw();
            return Err(CommitError::Tee { at, error });
        }
        observer.event(Event::Mapped(at));
        *calls = calls.saturating_sub(1);
        Ok(())
    }

    fn grace(&mut self, platform: &P) -> Turn {
        if !platform.tee().owes(&self.at.owed) {
            return Turn::Done;
        }
        let ticket = *self.at.ticket.get_or_insert_with(|| platform.tee().grace());
        self.at.quiet = platform.tee().quiet(ticket);
        if self.at.quiet.is_none() {
            return Turn::Await;
        }
        self.at.ticket = None;
        Turn::Done
    }

    fn settle(&mut self, platform: &P, to: &dyn FrameSource, observer: &mut impl Observer) -> Turned<P> {
        let Some(quiet) = self.at.quiet else { return Ok(Turn::Done) };
        let (frames, result) = platform.tee().settle(&mut self.at.owed, &quiet, to);
        self.give(frames, observer);
        let at = GpaEntry::containing(self.request().range.start(), Level::L4K);
        match result {
            Ok(()) => Ok(Turn::Done),
            Err(Some(error)) => Err(CommitError::Tee { at, error }),
            Err(None) => Ok(Turn::Done),
        }
    }

    fn give(&mut self, frames: FrameNeeds, observer: &mut impl Observer) {
        if !frames.is_none() {
            let released = Needs::frames(frames);
            self.released = self.released.plus(released);
            observer.event(Event::Released(released));
        }
    }

    /// Unblocks what this operation blocked: in its range, and leaves around it that were to be split.
    fn undo(&mut self, platform: &P, calls: &mut u32, observer: &mut impl Observer) -> Turned<P> {
        let Some(fenced) = self.at.fenced else { return Ok(Turn::Done) };
        let wide = widened(platform, self.request().range, Level::L2M);
        while let Some(gpa) = Gpa::new(self.at.next.max(wide.start().raw())).filter(|gpa| wide.contains(*gpa))
        {
            if *calls == 0 {
                return Ok(Turn::Again);
            }
            let at = GpaEntry::containing(gpa, Level::L4K);
            let found = platform.tee().lookup(gpa).map_err(tee_error(at))?;
            // A table that hides the entry is one of the empty ones that this operation blocked.
            let at = if found.hidden { GpaEntry::containing(gpa, Level::L2M) } else { found.at };
            if found.hidden || found.entry.blocked().is_some() {
                platform.tee().unblock(at, &fenced).map_err(tee_error(at))?;
                *calls = calls.saturating_sub(1);
            }
            self.at.next = at.end();
        }
        observer.event(Event::RolledBack);
        Ok(Turn::Done)
    }

    /// Where the walk at the cursor ends, or `None` past the range.
    fn cursor(&self, platform: &P) -> Result<Option<sept_core::Found>, Error<P>> {
        let Some(gpa) = Gpa::new(self.at.next).filter(|gpa| self.request().range.contains(*gpa)) else {
            return Ok(None);
        };
        let at = GpaEntry::containing(gpa, Level::L4K);
        platform.tee().lookup(gpa).map(Some).map_err(tee_error(at))
    }

    /// What `region` needs, as planned.
    fn slot_of(&self, platform: &P, mapping: Mapping, region: Region) -> Result<Slot, Error<P>> {
        let gpa = region.part.start();
        let Some(block) = platform.block_of(gpa) else { return Err(CommitError::Changed { gpa }) };
        let target = Target::new(platform, block, &self.request());
        mapping.slot(platform, &block, region, &target).map_err(tee_error(region.slot))
    }
}
