//! Hiding, showing and taking a range, and its empty tables.

use super::dump::{Key, Page, entry_of, key, pages_in, pages_of};
use super::judge::{Ask, is_leaf, is_used};
use super::oracle::{OwedPage, Shown};
use super::side::{Rules, Side};
use super::trial::{Left, Trial};
use crate::{Fenced, Gpa, GpaEntry, GpaRange, Level};
use core::ops::Range;
use std::{collections::btree_map::Entry as Slot, vec::Vec};

impl<F: Rules, X: Side<F>> Trial<'_, F, X> {
    pub(super) fn block_range(&mut self, range: GpaRange) {
        let result = self.table().block_range(range);
        let (done, to) = self.judge_range(range, Ask::of(is_used), result);
        let (pages, tables) = self.adopt_blocks(range, to);
        if let Some(done) = done {
            assert_eq!((done.pages, done.tables), (pages, tables), "{range}: counted");
            for (run, page) in self.oracle.pages.within(pages_in(range)) {
                let hidden = |page: u64| {
                    self.oracle.is_hidden(GpaEntry::containing(Gpa::truncate(page << 12), Level::L4K))
                };
                assert!(
                    page.blocked.is_some() || run.clone().step_by(512).all(hidden),
                    "{range}: {run:x?} is not hidden"
                );
            }
        }
    }

    /// Takes over what was blocked in the range up to `to`. Says how many pages and tables.
    pub(super) fn adopt_blocks(&mut self, range: GpaRange, to: u64) -> (u64, u64) {
        let after = self.words();
        let now = self.oracle.now;
        let (mut pages, mut tables) = (0, 0);
        for (run, page) in after.pages.within(pages_in(range)) {
            if page.blocked.is_none() {
                continue;
            }
            for (run, page) in self.oracle.pages.take(run) {
                if page.blocked.is_none() {
                    pages += (run.end - run.start) / page.level.pages();
                    assert!(run.end << 12 <= to, "{run:x?} was blocked behind {to:#x}");
                }
                self.oracle.pages.put(run, Page { blocked: page.blocked.or(Some(now)), ..page });
            }
        }
        for at in after.hidden.keys().copied() {
            if let Slot::Vacant(slot) = self.oracle.hidden.entry(at) {
                let entry = entry_of(at);
                assert!(range.covers(entry) && entry.end() <= to, "{entry} was blocked");
                slot.insert(now);
                self.oracle.closed.remove(&at);
                tables += 1;
            }
        }
        (pages, tables)
    }

    pub(super) fn unblock_range(&mut self, range: GpaRange, fence: &Fenced, shown: Shown) {
        let result = self.table().unblock_range(range, fence);
        let ask = Ask::of(|entry| is_used(entry) && !is_leaf(entry)).shown(shown);
        let (done, _) = self.judge_range(range, ask, result);
        // A table that begins where it stopped may be shown already.
        self.refused = false;
        let after = self.words();
        let (mut pages, mut tables) = (0, 0);
        for (run, page) in after.pages.within(pages_in(range)) {
            if page.blocked.is_some() {
                continue;
            }
            for (run, page) in self.oracle.pages.take(run) {
                if let Some(time) = page.blocked {
                    assert!(shown.covers(time), "{run:x?} was blocked at {time}, shown with {shown:?}");
                    pages += (run.end - run.start) / page.level.pages();
                }
                self.oracle.pages.put(run, Page { blocked: None, ..page });
            }
        }
        for (at, time) in self.oracle.hidden.clone() {
            if !after.hidden.contains_key(&at) {
                assert!(range.covers(entry_of(at)) && shown.covers(time), "{} was shown", entry_of(at));
                self.oracle.hidden.remove(&at);
                tables += 1;
            }
        }
        if let Some(done) = done {
            assert_eq!((done.pages, done.tables), (pages, tables), "{range}: counted");
            let blocked = |(_, page): (Range<u64>, Page)| page.blocked.is_some();
            assert!(!self.oracle.pages.within(pages_in(range)).any(blocked), "{range}: still blocked");
            let hidden = self.oracle.hidden.keys().any(|at| range.covers(entry_of(*at)));
            assert!(!hidden, "{range}: a table is still hidden");
        }
    }

    pub(super) fn take_range(&mut self, range: GpaRange, fence: &Fenced, shown: Shown, foreign: bool) {
        let mut taken = Vec::new();
        let result = self.with_obligation(foreign, |trial, owed| {
            trial.table().take_range(range, fence, owed, |at, page| taken.push((at, page)))
        });
        let ask = Ask::of(|entry| is_used(entry) && !is_leaf(entry)).shown(shown).foreign(foreign);
        let (done, to) = self.judge_range(range, ask, result);
        let pages = taken.len() as u64;
        for (at, page) in taken {
            let time = self.oracle.leaf(at).and_then(|page| page.blocked).expect("it was blocked");
            assert!(shown.covers(time) && range.covers(at) && at.end() <= to, "{at} was taken");
            self.removed(at, page);
        }
        let tables = self.adopt_departure(range, |trial, at| {
            let time = trial.oracle.hidden.get(&key(at)).expect("it was blocked");
            assert!(shown.covers(*time) && at.end() <= to, "{at} was taken");
        });
        if tables > 0 {
            self.owes(false);
        }
        if let Some(done) = done {
            assert_eq!((done.pages, done.tables), (pages, tables), "{range}: counted");
            assert!(self.oracle.pages.none_in(pages_in(range)), "{range}: something was left");
        }
    }

    /// Takes over that tables left with everything below them; `may` checks each of the outermost. Says how many those
    /// are.
    pub(super) fn adopt_departure(&mut self, range: GpaRange, may: impl Fn(&Self, GpaEntry)) -> u64 {
        let after = self.words();
        let gone: Vec<Key> =
            self.dump.tables.keys().filter(|at| !after.tables.contains_key(*at)).copied().collect();
        let mut tables = 0;
        for at in gone.iter().copied().map(entry_of) {
            if gone.iter().any(|other| other.1 > at.level() && entry_of(*other).range().covers(at)) {
                continue;
            }
            assert!(range.covers(at), "{at} left");
            may(self, at);
            self.departs(at);
            tables += 1;
        }
        if tables > 0 {
            self.left = Left::Any;
        }
        tables
    }

    /// Notes that the pages of a subtree are in the obligation now.
    pub(super) fn departs(&mut self, at: GpaEntry) {
        for (run, page) in self.oracle.pages.within(pages_of(at)).collect::<Vec<_>>() {
            let host = page.host..page.host + run.end - run.start;
            self.oracle.owed.put(host, OwedPage { guest: run.start, level: page.level });
        }
        self.oracle.unmap(pages_of(at), F::DESTROYS);
    }

    pub(super) fn is_empty(&self, at: &Key) -> bool {
        self.dump.tables.get(at).is_some_and(|table| table.live == 0)
    }

    pub(super) fn block_empty_tables(&mut self, range: GpaRange) {
        let result = self.table().block_empty_tables(range);
        let (done, to) = self.judge_range(range, Ask::of(|entry| is_used(entry) && !is_leaf(entry)), result);
        let before: Vec<Key> = self.oracle.hidden.keys().copied().collect();
        let (pages, tables) = self.adopt_blocks(range, to);
        assert_eq!(pages, 0, "{range}: pages were blocked");
        for at in self.oracle.hidden.keys().filter(|at| !before.contains(*at)) {
            assert!(self.is_empty(at), "{}: blocked though not empty", entry_of(*at));
        }
        if let Some(done) = done {
            assert_eq!((done.pages, done.tables), (0, tables), "{range}: counted");
            let open =
                |at: &&Key| !self.oracle.hidden.contains_key(*at) && !self.oracle.closed.contains_key(*at);
            let mut inside = self.dump.tables.keys().filter(|at| range.covers(entry_of(**at)));
            let left = inside.find(|at| self.is_empty(at) && open(at));
            assert_eq!(left, None, "{range}: an empty table is not blocked");
        }
    }

    pub(super) fn unlink_empty_tables(
        &mut self,
        range: GpaRange,
        fence: &Fenced,
        shown: Shown,
        foreign: bool,
    ) {
        let result = self
            .with_obligation(foreign, |trial, owed| trial.table().unlink_empty_tables(range, fence, owed));
        let ask = Ask::of(|entry| is_used(entry) && !is_leaf(entry)).shown(shown).foreign(foreign);
        let (done, _) = self.judge_range(range, ask, result);
        let tables = self.adopt_departure(range, |trial, at| {
            let time = trial.oracle.hidden.get(&key(at)).expect("it was blocked");
            assert!(shown.covers(*time) && trial.is_empty(&key(at)), "{at} was unlinked");
        });
        if tables > 0 {
            self.owes(false);
        }
        if let Some(done) = done {
            assert_eq!((done.pages, done.tables), (0, tables), "{range}: counted");
            let after = self.words();
            let stays = |at: &&Key| {
                range.covers(entry_of(**at)) && self.is_empty(at) && after.tables.contains_key(*at)
            };
            assert_eq!(self.oracle.hidden.keys().find(stays), None, "{range}: an empty table was left");
        }
    }
}
