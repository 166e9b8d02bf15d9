//! Splitting: plans, and the whole of it in one call where no TEE is.

use super::{Committed, Plan, RangeError, Reserved};
use crate::table::{SecurePageTable, TableError};
use crate::{
    Entry, External, Format, Found, FrameNeeds, FrameStore, Gpa, GpaEntry, GpaRange, HardwareWalked,
    HostOwned, Hpa, Level, Returned, TableMemory,
};

/// What of a range is split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Scope {
    /// The pages that reach across an end, until both ends lie between pages: at most two for each level. The interior
    /// is not looked at.
    Ends,
    /// Every page in the range, those across its ends too, to pages of this level.
    Whole(Level),
}

/// What splitting takes: see [`SecurePageTable::plan_split`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a plan does nothing"]
pub struct SplitPlan {
    range: GpaRange,
    scope: Scope,
    near: Hpa,
    needs: FrameNeeds,
    /// Splits of 1 GiB pages and of 2 MiB pages.
    splits: [u64; 2],
}

impl SplitPlan {
    /// The guest addresses.
    #[must_use]
    pub const fn range(&self) -> GpaRange {
        self.range
    }

    /// What of it is split.
    #[must_use]
    pub const fn scope(&self) -> Scope {
        self.scope
    }

    /// Pages of `level` that will be split, those included that come out of the split of a larger one.
    #[must_use]
    pub const fn splits(&self, level: Level) -> u64 {
        let [large, small] = self.splits;
        match level {
            Level::L1G => large,
            Level::L2M => small,
            _ => 0,
        }
    }
}

impl Plan for SplitPlan {
    fn needs(&self) -> FrameNeeds {
        self.needs
    }

    fn near(&self) -> Hpa {
        self.near
    }
}

/// A split that was refused: why, and the reservation.
pub type SplitRefused<E, S> = Returned<RangeError<E>, Reserved<SplitPlan, S>>;

/// Levels that can be split, in the order in which they are: a piece can be split once it exists.
pub(super) const ROUNDS: [Level; 2] = [Level::L1G, Level::L2M];

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Counts the splits that `scope` of `range` takes. [`Scope::Ends`]: at most four walks. [`Scope::Whole`]: one look at
    /// each entry of the range.
    ///
    /// # Errors
    ///
    /// [`RangeError::Stopped`] at an entry that is being changed or outside the private space.
    pub fn plan_split(&self, range: GpaRange, scope: Scope) -> Result<SplitPlan, RangeError<X::Error>> {
        let _pin = self.memory.pin();
        let mut plan =
            SplitPlan { range, scope, near: Hpa::default(), needs: FrameNeeds::NONE, splits: [0; 2] };
        for (round, count) in ROUNDS.into_iter().zip([0, 1]) {
            let mut next = range.start().align_down(round).raw();
            // Each turn passes one page.
            while let Some(found) =
                self.next_split(range, scope, round, next, true).map_err(RangeError::stopped(next))?
            {
                let Entry::Leaf { hpa, .. } = found.entry else { break };
                let (pieces, after) = pieces_of(&found, range, scope, round, next);
                for piece in pieces.clone() {
                    let offset = piece.gpa().raw().wrapping_sub(found.at.gpa().raw());
                    plan.near = Hpa::truncate(hpa.raw().wrapping_add(offset));
                    if X::TEE {
                        plan.needs = plan.needs.plus(self.table_cost(piece, Some(plan.near)));
                    }
                }
                let many = pieces.count;
                if !X::TEE {
                    let some = u32::try_from(many).unwrap_or(u32::MAX);
                    plan.needs = plan.needs.plus(FrameNeeds::of(crate::FrameKind::MirrorTable, some));
                }
                if let Some(splits) = plan.splits.get_mut(count) {
                    *splits = splits.saturating_add(many);
                }
                next = after;
            }
        }
        Ok(plan)
    }

    /// The first page to split in this round, at or after `next`. While planning (`ahead`) also a larger page, of which a
    /// piece is split in this round.
    pub(super) fn next_split(
        &self,
        range: GpaRange,
        scope: Scope,
        round: Level,
        next: u64,
        ahead: bool,
    ) -> Result<Option<Found>, TableError<X::Error>> {
        match scope {
            Scope::Ends => {
                for end in [range.start().raw(), range.end()] {
                    let Some(gpa) = Gpa::new(end).filter(|gpa| !gpa.is_aligned(round)) else { continue };
                    let at = GpaEntry::containing(gpa, round);
                    if at.gpa().raw() < next {
                        continue;
                    }
                    let found = self.lookup_pinned(gpa)?;
                    match found.entry {
                        Entry::Frozen => return Err(TableError::Contended { at: found.at }),
                        Entry::Leaf { .. }
                            if found.at.level() == round || ahead && found.at.level() > round =>
                        {
                            return Ok(Some(found));
                        }
                        _ => {}
                    }
                }
                Ok(None)
            }
            Scope::Whole(to) if to >= round => Ok(None),
            Scope::Whole(_) => {
                let mut next = next.max(range.start().align_down(round).raw());
                // Each turn passes an entry of this round or a larger one.
                while let Some(gpa) = Gpa::new(next).filter(|gpa| gpa.raw() < range.end()) {
                    let found = self.lookup_pinned(gpa)?;
                    match found.entry {
                        Entry::Frozen => return Err(TableError::Contended { at: found.at }),
                        Entry::Leaf { .. }
                            if found.at.level() == round || ahead && found.at.level() > round =>
                        {
                            return Ok(Some(found));
                        }
                        _ if found.at.level() < round => next = GpaEntry::containing(gpa, round).end(),
                        _ => next = found.at.end(),
                    }
                }
                Ok(None)
            }
        }
    }
}

/// Entries of one level, one after the other.
#[derive(Clone)]
struct Pieces {
    first: GpaEntry,
    count: u64,
}

impl Iterator for Pieces {
    type Item = GpaEntry;

    fn next(&mut self) -> Option<GpaEntry> {
        let at = self.first;
        self.count = self.count.checked_sub(1)?;
        self.first = GpaEntry::containing(Gpa::truncate(at.end()), at.level());
        Some(at)
    }
}

/// The pieces of the page `found` that are split in `round`, and where to go on.
fn pieces_of(found: &Found, range: GpaRange, scope: Scope, round: Level, next: u64) -> (Pieces, u64) {
    if found.at.level() == round {
        return (Pieces { first: found.at, count: 1 }, found.at.end());
    }
    match scope {
        // One of the two ends lies in the larger page: the first one at or after `next`.
        Scope::Ends => {
            let at = |end| {
                Gpa::new(end).filter(|gpa| !gpa.is_aligned(round)).map(|gpa| GpaEntry::containing(gpa, round))
            };
            let ends = [at(range.start().raw()), at(range.end())];
            let end =
                ends.into_iter().flatten().find(|at| at.gpa().raw() >= next && found.at.range().covers(*at));
            end.map_or((Pieces { first: found.at, count: 0 }, found.at.end()), |first| {
                (Pieces { first, count: 1 }, first.end())
            })
        }
        // The larger page is split first, and then all pieces of it.
        Scope::Whole(_) => {
            let first = GpaEntry::containing(found.at.gpa(), round);
            let count = found.at.level().size() >> round.shift();
            (Pieces { first, count }, found.at.end())
        }
    }
}

impl<F: HardwareWalked, M: TableMemory, X: HostOwned> SecurePageTable<F, M, X> {
    /// Splits as planned, under the running guest. Nothing is owed: see the protocol of
    /// [`SecurePageTable::split_in_place`].
    ///
    /// # Errors
    ///
    /// [`RangeError::Stale`] changes nothing. After [`RangeError::Stopped`] what was split stays so; the frames not used
    /// come back.
    pub fn split_range<S: FrameStore>(
        &self,
        reserved: Reserved<SplitPlan, S>,
    ) -> Result<Committed<S>, SplitRefused<X::Error, S>> {
        let mut held = reserved;
        let SplitPlan { range, scope, needs: planned, .. } = held.plan;
        let before = held.store.kept();
        match self.plan_split(range, scope) {
            Ok(SplitPlan { needs: now, .. }) if !before.covers(&now) => {
                return Err(Returned { error: RangeError::Stale { planned, now }, held });
            }
            Ok(_) => {}
            Err(error) => return Err(Returned { error, held }),
        }
        for round in ROUNDS {
            let mut next = range.start().align_down(round).raw();
            loop {
                let split = match self.next_split(range, scope, round, next, false) {
                    Ok(Some(found)) => {
                        self.split_in_place(found.at, &mut held.store).map(|()| Some(found.at.end()))
                    }
                    Ok(None) => Ok(None),
                    Err(error) => Err(error),
                };
                match split {
                    Ok(Some(end)) => next = end,
                    Ok(None) => break,
                    Err(error) => return Err(Returned { error: RangeError::stopped(next)(error), held }),
                }
            }
        }
        Ok(Committed { used: before.saturating_sub(&held.store.kept()), rest: held.store })
    }
}
