//! The phases that give pages to the guest, and those that give tables back.

use super::{
    Commit, CommitError, Turn,
    cursor::Budget,
    guest::{Error, Turned, tee_error},
};
use crate::{
    Event, Needs, Observer, Platform, Tee, Visibility,
    layout::Target,
    stage2::{Mapping, Region, Slot, declared, look, region},
};
use sept_core::{Entry, Fill, FrameSource, GpaEntry, Level, Returned};

impl<P: Platform> Commit<P> {
    /// Blocks empty tables that stand where a 2 MiB leaf fits.
    pub(super) fn empty_block(
        &mut self,
        platform: &P,
        budget: &mut Budget,
        observer: &mut impl Observer,
    ) -> Turned<P> {
        self.each_region(platform, budget, |commit, budget, region, slot| {
            if slot == Slot::Unlink {
                commit.block(platform, region.slot, false, observer)?;
                budget.call();
            }
            Ok(())
        })
    }

    /// Takes them out. One that a fault beside the range got into before it was blocked is shown again.
    pub(super) fn empty_unlink(
        &mut self,
        platform: &P,
        budget: &mut Budget,
        observer: &mut impl Observer,
    ) -> Turned<P> {
        let Some(fenced) = self.at.fenced else { return Ok(Turn::Done) };
        self.each_region(platform, budget, |commit, budget, region, slot| {
            let at = region.slot;
            if slot == Slot::Unlink {
                platform.tee().unlink(at, &fenced, &mut commit.at.owed).map_err(tee_error(at))?;
                commit.at.changed = true;
                observer.event(Event::Unlinked(at));
                budget.call();
            } else if look(platform.tee(), region.part.start())?.hidden {
                platform.tee().unblock(at, &fenced).map_err(tee_error(at))?;
                budget.call();
            }
            Ok(())
        })
    }

    /// Visits the 2 MiB slots of the request from the cursor on, as long as the budget lasts.
    pub(super) fn each_region(
        &mut self,
        platform: &P,
        budget: &mut Budget,
        mut visit: impl FnMut(&mut Self, &mut Budget, Region, Slot) -> Result<(), Error<P>>,
    ) -> Turned<P> {
        let Some(mapping) = self.mapping() else { return Ok(Turn::Done) };
        while let Some(region) = region(self.request().range, self.at.next) {
            if budget.is_spent() {
                return Ok(Turn::Again);
            }
            budget.look();
            let slot = self.slot_of(platform, mapping, region)?;
            visit(self, budget, region, slot)?;
            self.at.next = region.slot.end();
        }
        Ok(Turn::Done)
    }

    /// Maps what is private and not mapped.
    pub(super) fn map(
        &mut self,
        platform: &P,
        budget: &mut Budget,
        observer: &mut impl Observer,
    ) -> Turned<P> {
        let Some(mapping) = self.mapping() else { return Ok(Turn::Done) };
        while let Some(region) = region(self.request().range, self.at.next) {
            if budget.is_spent() {
                return Ok(Turn::Again);
            }
            budget.look();
            match self.slot_of(platform, mapping, region)? {
                Slot::Link { at, backing } => {
                    let linked = platform.tee().link(at, backing, &mut self.reservation.store);
                    linked.map_err(tee_error(at))?;
                    self.at.changed = true;
                    observer.event(Event::Linked(at));
                    budget.call();
                }
                Slot::MapLarge => {
                    self.map_one(platform, region.slot, budget, observer)?;
                    self.at.next = region.slot.end();
                }
                Slot::Skip => self.at.next = region.slot.end(),
                Slot::Ready | Slot::Unlink | Slot::Split { .. } if !mapping.pages => {
                    self.at.next = region.slot.end();
                }
                Slot::Ready | Slot::Unlink | Slot::Split { .. } => {
                    self.map_pages(platform, region, budget, observer)?;
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
        budget: &mut Budget,
        observer: &mut impl Observer,
    ) -> Result<(), Error<P>> {
        self.at.next = self.at.next.max(region.part.start().raw());
        while !budget.is_spent() && self.at.next < region.part.end() {
            let Some(found) = self.cursor(platform)? else { return Ok(()) };
            budget.look();
            if found.entry == Entry::Free
                && found.at.level() == Level::L4K
                && platform.visibility(found.at.gpa()) == Visibility::Private
            {
                self.map_one(platform, found.at, budget, observer)?;
            }
            self.at.next = found.at.end();
        }
        Ok(())
    }

    /// Maps one page, if the platform has it to lend.
    fn map_one(
        &mut self,
        platform: &P,
        at: GpaEntry,
        budget: &mut Budget,
        observer: &mut impl Observer,
    ) -> Result<(), Error<P>> {
        let Some(page) = platform.lend(at) else { return Ok(()) };
        if let Err(Returned { error, held }) = platform.tee().map(at, page, Fill::OnAccept) {
            platform.take_back(at, held);
            return Err(CommitError::Tee { at, error });
        }
        self.at.changed = true;
        observer.event(Event::Mapped(at));
        budget.call();
        Ok(())
    }

    /// Starts the grace period for tables that were taken out, then polls it.
    pub(super) fn grace(&mut self, platform: &P) -> Turn {
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

    /// Makes frames of the tables that were taken out.
    pub(super) fn settle(
        &mut self,
        platform: &P,
        budget: &mut Budget,
        to: &dyn FrameSource,
        observer: &mut impl Observer,
    ) -> Turned<P> {
        let Some(quiet) = self.at.quiet else { return Ok(Turn::Done) };
        budget.call();
        let (frames, result) = platform.tee().settle(&mut self.at.owed, &quiet, to);
        if !frames.is_none() {
            let released = Needs::frames(frames);
            self.released = self.released.plus(released);
            observer.event(Event::Released(released));
        }
        let at = GpaEntry::containing(self.request().range.start(), Level::L4K);
        match result {
            Ok(()) => Ok(Turn::Done),
            Err(Some(error)) => Err(CommitError::Tee { at, error }),
            // The grace period does not cover everything: another one.
            Err(None) => {
                self.at.quiet = None;
                self.enter(super::Phase::Grace);
                Ok(Turn::Again)
            }
        }
    }

    /// What `region` needs, as planned.
    fn slot_of(&self, platform: &P, mapping: Mapping, region: Region) -> Result<Slot, Error<P>> {
        let gpa = region.part.start();
        let Some(block) = platform.block_of(gpa) else { return Err(CommitError::Changed { gpa }) };
        let target = Target::new(platform, block, &self.request());
        let slot = mapping.slot(platform, &block, region, &target)?;
        // A merge that could not freeze its folios leaves them smaller than planned.
        Ok(match slot {
            Slot::MapLarge if !declared(platform, region.slot) => Slot::Skip,
            Slot::Unlink if !declared(platform, region.slot) => Slot::Ready,
            slot => slot,
        })
    }
}
