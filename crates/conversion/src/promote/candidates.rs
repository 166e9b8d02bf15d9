//! Which tables can be merged, and what is done about a refusal.

use super::Promotion;
use crate::{Event, Observer, Platform, Tee, TeeError, commit::Budget, stage2::declared};
use sept_core::{Class, Classify, Entry, GpaEntry, LeafState, Level, Observed};

/// What a look at a candidate came to.
pub(super) enum Verdict {
    Yes,
    No,
    /// The budget was spent.
    Later,
}

impl<P: Platform> Promotion<P> {
    /// Drops the candidate `at` because of a refusal at `page`, unless the TEE is lost.
    pub(super) fn decline(
        &mut self,
        at: GpaEntry,
        page: GpaEntry,
        error: TeeError<P>,
        observer: &mut impl Observer,
    ) -> Result<(), TeeError<P>> {
        match error.class() {
            Class::Fatal => return Err(error),
            Class::Retry | Class::Quiesce => self.refused = Some(page),
            _ => {}
        }
        observer.event(Event::Declined { at, pages: at.level().child().unwrap_or(Level::L4K) });
        Ok(())
    }

    /// Reads the entry that was refused last, so that no mark of the refused call keeps the guest out of it.
    pub(super) fn give_way(&mut self, platform: &P, budget: &mut Budget) -> Result<(), TeeError<P>> {
        let Some(at) = self.refused else { return Ok(()) };
        budget.call();
        match platform.tee().probe(at) {
            Err(error) if error.class() != Class::Caller => Err(error),
            _ => {
                self.refused = None;
                Ok(())
            }
        }
    }

    /// Whether the table at `at` can be merged: its pages are accepted and belong to one large folio.
    pub(super) fn qualifies(
        &self,
        platform: &P,
        at: GpaEntry,
        budget: &mut Budget,
    ) -> Result<Verdict, (GpaEntry, TeeError<P>)> {
        let tee = platform.tee();
        let of = |entry: GpaEntry| move |error| (entry, error);
        let found = tee.lookup(at.gpa()).map_err(of(at))?;
        let leaf = matches!(found.entry, Entry::Leaf { .. });
        if !leaf || Some(found.at.level()) != at.level().child() || found.hidden || !declared(platform, at) {
            return Ok(Verdict::No);
        }
        if tee.live(at).map_err(of(at))? != Some(512) {
            return Ok(Verdict::No);
        }
        for index in 0..512 {
            let Some(page) = at.child(index) else { return Ok(Verdict::No) };
            match tee.entry(page).map_err(of(page))? {
                Entry::Leaf { state: LeafState::Mapped, blocked: None, .. } => {}
                Entry::Leaf { state: LeafState::Pending, blocked: None, .. } => {
                    // What was learnt stays in the mirror: the next look begins where this one ends.
                    if budget.is_spent() {
                        return Ok(Verdict::Later);
                    }
                    budget.call();
                    if tee.probe(page).map_err(of(page))? != Observed::Leaf(LeafState::Mapped) {
                        return Ok(Verdict::No);
                    }
                }
                _ => return Ok(Verdict::No),
            }
        }
        Ok(if tee.mergeable(at).is_ok() { Verdict::Yes } else { Verdict::No })
    }
}
