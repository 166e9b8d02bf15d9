//! Splitting: plans, and the whole of it in one call where no TEE is.

use super::{Committed, Plan, RangeError, Reserved};
use crate::table::{SecurePageTable, TableError};
use crate::{
    Entry, External, Format, Found, FrameKind, FrameNeeds, FrameStore, Gpa, GpaEntry, GpaRange,
    HardwareWalked, HostOwned, Hpa, Level, Returned, TableMemory,
};

/// What of a range is split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Scope {
    /// The pages that reach across an end, until both ends lie between pages: at most two for each level. The interior
    /// is not looked at.
    Ends,
    /// Every page in the range, those across its ends too, to pages of this level. Pieces of a page across an end that lie
    /// outside of the range stay as large as they can.
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
        let mut next = range.start().raw();
        // Each turn passes one page.
        while let Some(found) = self.next_page(range, scope, next).map_err(RangeError::stopped(next))? {
            next = found.at.end();
            for (round, splits) in ROUNDS.into_iter().zip(&mut plan.splits) {
                let pieces = pieces_of(&found, range, scope, round);
                *splits = splits.saturating_add(pieces.count);
            }
            if let Entry::Leaf { hpa, .. } = found.entry {
                plan.near = hpa;
                if X::TEE {
                    plan.needs = plan.needs.plus(self.pieces_cost(&found, hpa, range, scope));
                }
            }
        }
        if !X::TEE {
            let [large, small] = plan.splits;
            let tables = u32::try_from(large.saturating_add(small)).unwrap_or(u32::MAX);
            plan.needs = FrameNeeds::of(FrameKind::MirrorTable, tables);
        }
        Ok(plan)
    }

    /// What the splits of one page cost, that of its pieces included.
    fn pieces_cost(&self, found: &Found, hpa: Hpa, range: GpaRange, scope: Scope) -> FrameNeeds {
        let mut needs = FrameNeeds::NONE;
        for round in ROUNDS {
            for piece in pieces_of(found, range, scope, round) {
                let offset = piece.gpa().raw().wrapping_sub(found.at.gpa().raw());
                let backing = Hpa::truncate(hpa.raw().wrapping_add(offset));
                needs = needs.plus(self.table_cost(piece, Some(backing)));
            }
        }
        needs
    }

    /// The first page of any size that is to be split, at or after `next`.
    #[inline(always)]
    fn next_page(
        &self,
        range: GpaRange,
        scope: Scope,
        next: u64,
    ) -> Result<Option<Found>, TableError<X::Error>> {
        let mut next = next;
        // Each turn passes an entry, or both ends.
        while let Some(gpa) = scope.candidate(range, next) {
            let found = self.lookup_pinned(gpa)?;
            match found.entry {
                Entry::Frozen => return Err(TableError::Contended { at: found.at }),
                Entry::Leaf { .. } if scope.splits(range, found.at) => return Ok(Some(found)),
                // Around small entries there are only small ones, and tables of them.
                _ if found.at.level() == Level::L4K => next = GpaEntry::containing(gpa, Level::L2M).end(),
                _ => next = found.at.end(),
            }
        }
        Ok(None)
    }

    /// The first page of `round` that is to be split, at or after `next`.
    pub(super) fn next_split(
        &self,
        range: GpaRange,
        scope: Scope,
        round: Level,
        next: u64,
    ) -> Result<Option<Found>, TableError<X::Error>> {
        let mut next = next.max(range.start().align_down(round).raw());
        // Each turn passes an entry of this round or a larger one, or both ends.
        while let Some(gpa) = scope.candidate(range, next) {
            let found = self.lookup_pinned(gpa)?;
            match found.entry {
                Entry::Frozen => return Err(TableError::Contended { at: found.at }),
                Entry::Leaf { .. } if found.at.level() == round && scope.splits(range, found.at) => {
                    return Ok(Some(found));
                }
                _ => next = found.at.end().max(GpaEntry::containing(gpa, round).end()),
            }
        }
        Ok(None)
    }
}

impl Scope {
    /// The first address at or after `next` at which there may be something to split.
    fn candidate(self, range: GpaRange, next: u64) -> Option<Gpa> {
        match self {
            // No page reaches across a multiple of 1 GiB.
            Self::Ends => [range.start().raw(), range.end()]
                .into_iter()
                .find(|end| *end >= next && end & Level::L1G.mask() != 0)
                .and_then(Gpa::new),
            Self::Whole(_) => Gpa::new(next.max(range.start().raw())).filter(|gpa| gpa.raw() < range.end()),
        }
    }

    /// Whether nothing of a page at `at` is left to split once it has been.
    fn is_done_below(self, at: GpaEntry) -> bool {
        match self {
            Self::Ends => at.level() == Level::L2M,
            Self::Whole(to) => at.level().child().is_none_or(|child| child <= to),
        }
    }

    /// Whether a page at `at` is split.
    const fn splits(self, range: GpaRange, at: GpaEntry) -> bool {
        match self {
            Self::Ends => reaches_across(at, range.start().raw()) || reaches_across(at, range.end()),
            Self::Whole(to) => at.level().raw() > to.raw(),
        }
    }
}

/// Whether `end` lies inside `at`.
const fn reaches_across(at: GpaEntry, end: u64) -> bool {
    at.gpa().raw() < end && end < at.end()
}

/// Entries of one level at equal distances.
struct Pieces {
    first: GpaEntry,
    count: u64,
    /// From one to the next, in bytes.
    step: u64,
}

impl Pieces {
    const fn new(first: GpaEntry, count: u64) -> Self {
        Self { first, count, step: first.level().size() }
    }
}

impl Iterator for Pieces {
    type Item = GpaEntry;

    fn next(&mut self) -> Option<GpaEntry> {
        let at = self.first;
        self.count = self.count.checked_sub(1)?;
        let next = Gpa::truncate(at.gpa().raw().wrapping_add(self.step));
        self.first = GpaEntry::containing(next, at.level());
        Some(at)
    }
}

/// The pieces of the page `found` that are split in `round`, itself among them.
#[inline]
fn pieces_of(found: &Found, range: GpaRange, scope: Scope, round: Level) -> Pieces {
    let none = Pieces::new(found.at, 0);
    if found.at.level() < round {
        return none;
    }
    match scope {
        // At most two: those that the ends lie in.
        Scope::Ends => {
            let piece = |end| {
                let at = GpaEntry::containing(Gpa::truncate(end), round);
                (reaches_across(at, end) && found.at.range().covers(at)).then_some(at)
            };
            match (piece(range.start().raw()), piece(range.end())) {
                (Some(first), Some(last)) if first != last => {
                    Pieces { step: last.gpa().raw().wrapping_sub(first.gpa().raw()), ..Pieces::new(first, 2) }
                }
                (Some(first), _) | (None, Some(first)) => Pieces::new(first, 1),
                (None, None) => none,
            }
        }
        Scope::Whole(to) if to >= round => none,
        // Those that the range touches.
        Scope::Whole(_) => {
            let touched = range.align_out(round).intersect(found.at.range());
            touched.map_or(none, |touched| {
                Pieces::new(GpaEntry::containing(touched.start(), round), touched.len() >> round.shift())
            })
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
        let mut next = range.start().raw();
        // Each turn splits one page, whose pieces are looked at next if they may be too large still.
        loop {
            let _pin = self.memory.pin();
            let split = match self.next_page(range, scope, next) {
                Ok(Some(found)) => self.split_in_place(found.at, &mut held.store).map(|()| found.at),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            match split {
                Ok(at) if scope.is_done_below(at) => next = at.end(),
                Ok(_) => {}
                Err(error) => return Err(Returned { error: RangeError::stopped(next)(error), held }),
            }
        }
        Ok(Committed { used: before.saturating_sub(&held.store.kept()), rest: held.store })
    }
}
