//! Splitting, merging and probing a range.

use super::dump::{Key, Page, entry_of, key, pages_in};
use super::judge::{Ask, about, is_free, is_leaf};
use super::side::{Rules, Side};
use super::trial::{Left, Trial};
use super::{Place, Span, Way};
use crate::test_util::VecStore;
use crate::{
    FrameNeeds, FrameStore, Gpa, GpaEntry, GpaRange, LeafState, Level, Plan, RangeError, Reserved, Resize,
    Resized, Scope, SplitPlan, Turn,
};
use std::vec::Vec;

const K4: u64 = 1 << 12;
const M2: u64 = 1 << 21;

impl<F: Rules, X: Side<F>> Trial<'_, F, X> {
    pub(super) fn splitting(&self, span: &Span, whole: Option<Level>) -> (GpaRange, Scope) {
        match whole {
            None => (self.range(*span, u64::MAX), Scope::Ends),
            Some(level) if level == Level::L4K => (self.range(*span, 8 * M2 + 3 * K4), Scope::Whole(level)),
            Some(level) => (self.range(*span, u64::MAX), Scope::Whole(level)),
        }
    }

    /// Plans a split and reserves for it; what happens in between may make the plan stale.
    pub(super) fn plan_split(
        &mut self,
        range: GpaRange,
        scope: Scope,
        meanwhile: Option<Place>,
    ) -> Option<(SplitPlan, Reserved<SplitPlan, VecStore>)> {
        let plan = self.table().plan_split(range, scope);
        let plan = self.judge_range(range, Ask::of(is_free), plan).0?;
        if let Some(place) = meanwhile {
            self.check();
            self.disturb(place);
            self.check();
        }
        let now = self.table().plan_split(range, scope).ok()?;
        assert!(meanwhile.is_some() || now == plan, "{range}: two plans differ");
        let reserved = plan.reserve(&self.pool, VecStore::default()).expect("the pool is large");
        if plan.needs().covers(&now.needs()) {
            return Some((now, reserved));
        }
        let Err(refused) = self.table().start_split(reserved) else {
            panic!("{range}: begun with too few frames")
        };
        let stale = RangeError::Stale { planned: plan.needs(), now: now.needs() };
        assert_eq!(
            core::mem::discriminant(&refused.error),
            core::mem::discriminant(&stale),
            "{:?}",
            refused.error
        );
        Some((now, refused.held.refit(now, &self.pool).expect("the pool is large")))
    }

    pub(super) fn split_in_rounds(
        &mut self,
        plan: SplitPlan,
        reserved: Reserved<SplitPlan, VecStore>,
        way: Way,
    ) {
        let (range, scope) = (plan.range(), plan.scope());
        let mut kept = FrameNeeds::NONE;
        let resize = match self.table().start_split(reserved) {
            Ok(resize) => {
                kept = kept.plus(resize.kept());
                resize
            }
            Err(refused) => panic!("{range}: {:?}", refused.error),
        };
        let (resized, rest, trouble) = self.carry_out(resize, way);
        let used = self.unstock(kept, rest);
        let complete = !resized.cancelled && !trouble;
        if complete {
            assert_eq!(used, plan.needs(), "{range}: frames used and planned");
            let splits = plan.splits(Level::L1G) + plan.splits(Level::L2M);
            assert_eq!((resized.changed, resized.declined), (splits, 0), "{range}: splits made and planned");
        }
        self.adopt_split(range, scope, complete);
    }

    /// Steps to the end. Whether something but the TEE's planned failure was in the way.
    pub(super) fn carry_out<S: FrameStore>(
        &mut self,
        resize: Resize<X::Ticket, S>,
        way: Way,
    ) -> (Resized, S, bool) {
        let (mut resize, mut trouble) = (resize, false);
        let hold = self.coin().is_multiple_of(4);
        self.table().external().hold(hold);
        let mut owed = self.take_owed();
        let before = owed.tables();
        for step in 0_u32.. {
            assert!(step < 20_000, "a resize does not end");
            if way == Way::Cancel(u8::try_from(step).unwrap_or(u8::MAX)) {
                resize.cancel();
            }
            match resize.step(self.table(), &mut owed) {
                Ok(Turn::Again) => {}
                Ok(Turn::AwaitFence) => {
                    assert!(hold, "the fence has ended");
                    let again = resize.step(self.table(), &mut owed);
                    assert_eq!(again.ok(), Some(Turn::AwaitFence), "nothing has happened");
                    self.table().external().hold(false);
                }
                Ok(Turn::Done) => break,
                Err(RangeError::Stopped { error, .. }) => {
                    if self.fault_was_hit() {
                        self.fault = None;
                        continue;
                    }
                    let about = about(&error);
                    let ask = Ask::of(is_free);
                    assert!(!trouble && self.is_true(about, ask, &error), "stopped with {error:?}");
                    trouble = true;
                    resize.cancel();
                }
                Err(error) => panic!("stopped with {error:?}"),
            }
        }
        self.table().external().hold(false);
        let more = owed.tables() > before;
        self.owed = owed;
        let Ok((resized, store)) = resize.finish() else { panic!("it said that it was done") };
        // Each fence has a number, each round one, and a fence that could not be started.
        self.oracle.now = self.table().last_number();
        if more {
            self.owes(false);
        }
        (resized, store, trouble)
    }

    /// Takes over what was split of a range: all of it, or some if it was not completed.
    pub(super) fn adopt_split(&mut self, range: GpaRange, scope: Scope, complete: bool) {
        let before = self.oracle.pages.clone();
        self.split_as_asked(range, scope);
        if complete {
            return;
        }
        let asked = core::mem::replace(&mut self.oracle.pages, before);
        let after = self.words();
        for level in [Level::L1G, Level::L2M] {
            let is_split = |at: &Key| at.1 == level && after.tables.contains_key(at);
            let leaves: Vec<Key> = after.tables.keys().filter(|at| is_split(at)).copied().collect();
            for at in leaves.into_iter().map(entry_of) {
                if self.oracle.leaf(at).is_some() {
                    self.is_split(at);
                }
            }
        }
        // No further than asked, and what is not split is as it was or no longer blocked.
        for (run, page) in after.pages.iter() {
            let finest = asked.within(run.clone()).map(|(_, page)| page.level).min();
            assert!(finest.is_some_and(|finest| finest <= page.level), "{run:x?} was split");
            if page.blocked.is_none() {
                self.oracle.pages.change(run, |page| Page { blocked: None, ..page });
            }
        }
    }

    /// Splits in the oracle what the range and scope say.
    pub(super) fn split_as_asked(&mut self, range: GpaRange, scope: Scope) {
        let Scope::Whole(to) = scope else {
            for end in [range.start().raw(), range.end()] {
                while let Some(page) = self.oracle.pages.get(end >> 12) {
                    let at = GpaEntry::containing(Gpa::truncate(end), page.level);
                    if at.gpa().raw() == end {
                        break;
                    }
                    self.is_split(at);
                }
            }
            return;
        };
        for level in [Level::L1G, Level::L2M].into_iter().filter(|level| *level > to) {
            let mut next = range.start().align_down(level).raw();
            while next < range.end() {
                let at = GpaEntry::containing(Gpa::truncate(next), level);
                if self.oracle.leaf(at).is_some() {
                    self.is_split(at);
                }
                next = at.end();
            }
        }
    }

    pub(super) fn merge_in_rounds(&mut self, range: GpaRange, way: Way) {
        let resize = self.table().start_merge(range);
        let hidden = self.oracle.hidden.clone();
        let (resized, (), trouble) = self.carry_out(resize, way);
        let merged = self.adopt_merges(range, false);
        assert_eq!(resized.changed, merged, "{range}: merges counted");
        let after = self.words();
        if !resized.cancelled && !trouble && resized.declined == 0 {
            let open = |at: &&Key| !hidden.contains_key(*at) && !self.oracle.closed.contains_key(*at);
            let mut inside =
                after.tables.keys().filter(|at| range.covers(entry_of(**at)) && at.1 <= Level::L1G);
            let left = inside.find(|at| {
                open(at) && !self.oracle.is_shut(entry_of(**at)) && self.oracle.mergeable(entry_of(**at))
            });
            assert_eq!(left, None, "{range}: could have been merged");
        }
    }

    /// Takes over that tables were merged, small ones first. Says how many.
    pub(super) fn adopt_merges(&mut self, range: GpaRange, fence: bool) -> u64 {
        let after = self.words();
        let mut gone: Vec<Key> =
            self.dump.tables.keys().filter(|at| !after.tables.contains_key(*at)).copied().collect();
        self.left = Left::Exactly(gone.clone());
        gone.sort_by_key(|at| at.1);
        for at in gone.iter().copied() {
            assert!(
                range.covers(entry_of(at)) && self.oracle.mergeable(entry_of(at)),
                "{} was merged",
                entry_of(at)
            );
            self.oracle.hidden.remove(&at);
            self.is_merged(entry_of(at), fence);
        }
        gone.len() as u64
    }

    pub(super) fn probe_range(&mut self, range: GpaRange, level: Level, budget: u32) {
        let result = self.table().probe_candidates(range, level, range.start(), budget);
        let ask = Ask::of(is_leaf).misfit(level == Level::L4K);
        let (probed, _) = self.judge_range(range, ask, result);
        self.refused = false;
        // What was learnt is in the table.
        let after = self.words();
        let mut learnt = 0;
        for (run, page) in after.pages.within(pages_in(range)) {
            if page.state != LeafState::Mapped {
                continue;
            }
            for (run, page) in self.oracle.pages.take(run) {
                if page.state == LeafState::Pending {
                    learnt += (run.end - run.start) / page.level.pages();
                    self.oracle.pages.put(run, Page { state: LeafState::Mapped, ..page });
                } else {
                    self.oracle.pages.put(run, page);
                }
            }
        }
        let Some(probed) = probed else { return };
        assert!(probed.asked <= budget && probed.accepted <= probed.asked, "{probed:?}");
        assert_eq!(u64::from(probed.accepted), learnt, "pages learnt");
        if probed.next.is_some() {
            return;
        }
        let mut ready = 0;
        for at in self.dump.tables.keys().filter(|at| at.1 == level).copied().map(entry_of) {
            let marked =
                self.oracle.hidden.contains_key(&key(at)) || self.oracle.closed.contains_key(&key(at));
            let open = !self.oracle.is_shut(at) && !marked;
            if range.covers(at) && open && level <= self.oracle.max_leaf() {
                ready += u32::from(self.oracle.is_ready(at));
            }
        }
        assert_eq!(probed.ready, ready, "{range}: tables of accepted pages");
    }
}
