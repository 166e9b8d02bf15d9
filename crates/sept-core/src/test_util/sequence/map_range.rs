//! Mapping a range.

use super::dump::{key, pages_in};
use super::judge::{Ask, is_free};
use super::side::{Rules, Side};
use super::trial::{Trial, Wants};
use super::{Memory, Place, Proof};
use crate::test_util::VecStore;
use crate::{
    Committed, Entry, FrameKind, FrameNeeds, FrameStore, Frames, Gpa, GpaEntry, GpaRange, Hpa, Level,
    MapPlan, Plan, RangeError,
};

impl<F: Rules, X: Side<F>> Trial<'_, F, X> {
    pub(super) fn map_range(
        &mut self,
        range: GpaRange,
        memory: Memory,
        largest: Level,
        meanwhile: Option<Place>,
    ) {
        let host = self.host(range.start(), memory);
        let pages = host..host + range.pages();
        let hpa = Hpa::truncate(host << 12);
        let plan = self.table().plan_map(range, hpa, largest);
        let Some(plan) = self.judge_range(range, Ask::of(is_free), plan).0 else { return };
        assert!(self.oracle.pages.none_in(pages_in(range)), "{range}: planned over a page");
        assert!(self.oracle.in_space(range.end() - 1), "{range}: planned beyond the end");
        let disturbed = meanwhile.is_some();
        if let Some(place) = meanwhile {
            self.check();
            self.disturb(place);
            self.check();
        }
        if !self.oracle.lent.none_in(pages) {
            return;
        }
        let reserved = plan.reserve(&self.pool, VecStore::default()).expect("the pool is large");
        let frames = Frames::from_ledger(hpa, range.pages());
        let now = self.table().plan_map(range, hpa, largest).ok();
        match self.table().map_range(reserved, frames) {
            Ok(Committed { used, rest }) => {
                let now = now.expect("it was done");
                assert!(disturbed || now == plan, "{range}: two plans differ");
                assert_eq!(used, now.needs(), "{range}: frames used and planned");
                self.unstock(plan.needs(), rest);
                self.range_mapped(&plan, range.end(), largest);
            }
            Err(refused) => {
                let (reserved, frames) = refused.held;
                if let RangeError::Stale { planned, now: needs } = refused.error {
                    assert_eq!(planned, plan.needs());
                    let now = now.expect("it can be planned");
                    assert!(needs == now.needs() && !planned.covers(&needs), "{range}: not stale");
                    let refitted = reserved.refit(now, &self.pool).expect("the pool is large");
                    let Ok(Committed { used, rest }) = self.table().map_range(refitted, frames) else {
                        panic!("{range}: refitted, and refused");
                    };
                    assert_eq!(used, needs, "{range}: frames used and planned");
                    self.unstock(needs, rest);
                    return self.range_mapped(&now, range.end(), largest);
                }
                let (_, next) = self.judge_range::<()>(range, Ask::of(is_free), Err(refused.error));
                // Tables on the way to what could not be mapped may stay.
                self.refused = false;
                let store = reserved.release(&self.pool);
                assert!(store.kept().is_none());
                let left = (range.end() - next) >> 12;
                assert_eq!(
                    (frames.count(), frames.hpa().raw()),
                    (left, (host << 12) + next - range.start().raw())
                );
                self.used = self.used.plus(self.taken_since());
                self.range_mapped(&plan, next, largest);
            }
        }
    }

    /// Frames that left the pool since the last check, by kind.
    pub(super) fn taken_since(&self) -> FrameNeeds {
        let mut out = self.pool.outstanding().saturating_sub(&FrameNeeds::of(FrameKind::MirrorTable, 1));
        for kind in self.owed_frames().values().chain(self.donated.values()) {
            out[*kind] -= 1;
        }
        let tables = u32::try_from(self.dump.tables.len()).unwrap_or(u32::MAX);
        out[FrameKind::MirrorTable] -= tables;
        out
    }

    /// Notes that a range was mapped up to `end`, each piece as large as it can be.
    pub(super) fn range_mapped(&mut self, plan: &MapPlan, end: u64, largest: Level) {
        let range = plan.range();
        let largest = largest.min(self.largest);
        let hpa_of =
            |gpa: u64| Hpa::truncate(gpa.wrapping_sub(range.start().raw()).wrapping_add(plan.hpa().raw()));
        let mut next = range.start().raw();
        while next < end {
            let gpa = Gpa::truncate(next);
            let fits = |at: &GpaEntry| {
                at.level() <= largest
                    && at.gpa() == gpa
                    && range.covers(*at)
                    && hpa_of(next).is_aligned(at.level())
                    && !self.dump.is_table(*at)
                    && !self.oracle.inhibited.contains(&key(*at))
            };
            let large = [Level::L1G, Level::L2M].map(|level| GpaEntry::containing(gpa, level));
            let at = large.into_iter().find(fits).unwrap_or(GpaEntry::containing(gpa, Level::L4K));
            self.mapped(at, hpa_of(next).raw() >> 12, false);
            self.describe_linked(at.gpa(), hpa_of);
            next = at.end();
        }
        if end < range.end() {
            self.describe_linked(Gpa::truncate(end), hpa_of);
        }
    }

    /// Notes the memory of the table that was linked for `gpa`, if one was.
    pub(super) fn describe_linked(&mut self, gpa: Gpa, hpa_of: impl Fn(u64) -> Hpa) {
        let at = GpaEntry::containing(gpa, Level::L2M);
        let backing = hpa_of(at.gpa().raw());
        let linked = matches!(self.table().entry(at), Ok(Entry::Table { .. })) && !self.dump.is_table(at);
        if linked && backing.is_aligned(Level::L2M) {
            self.describe(at, Some(backing));
        }
    }

    /// Changes something between a plan and its commit.
    pub(super) fn disturb(&mut self, place: Place) {
        let at = self.at(place, Wants::Hole);
        match self.coin() % 3 {
            0 => self.link(at, None, false),
            1 => {
                self.map_by(at, Memory::Other, false, at.level(), None, |trial, page, fill| {
                    trial.table().map(at, page, fill)
                });
            }
            _ => {
                self.block(at);
                self.check();
                self.fence();
                let (fence, shown, _) = self.show(Proof::Last);
                self.unlink(at, &fence, shown, false);
            }
        }
    }
}
