//! Operations on a table that no TEE keeps: in place, and with exclusive access.

use super::dump::{Dump, Key, entry_of, key, pages_in, pages_of};
use super::judge::{Ask, is_leaf, is_table, is_used};
use super::oracle::{OwedPage, Shown};
use super::pages::Pages;
use super::side::{Rules, Side};
use super::trial::{Left, Trial, Wants};
use super::{Op, Proof, Way};
use crate::{
    Committed, Entry, Frame, FrameKind, FrameNeeds, FrameStore, GpaEntry, GpaRange, HardwareWalked,
    HostOwned, Level, Plan, Quiet, RangeError, Unmapped,
};
use std::{vec, vec::Vec};

impl<F: Rules + HardwareWalked, X: Side<F> + HostOwned> Trial<F, X> {
    pub(super) fn step_without_tee(&mut self, op: &Op) {
        match *op {
            Op::SplitInPlace { at, short } => {
                let at = self.at(at, Wants::Large);
                self.split_now(at, short, |trial, store| trial.table.split_in_place(at, store));
            }
            Op::SplitNow { at, short } => {
                let at = self.at(at, Wants::Large);
                self.split_now(at, short, |trial, store| trial.table.exclusive().split(at, store));
            }
            Op::Close(at) => self.close(self.at(at, Wants::Full)),
            Op::Reopen(at) => {
                let at = self.at(at, Wants::Full);
                let result = self.table.reopen(at);
                let ask = self.ask(at, |entry| matches!(entry, Entry::Closed { .. }));
                if self.judge(at, ask, result).is_some() {
                    self.oracle.closed.remove(&key(at));
                }
            }
            Op::MergeInPlace(at, proof) => self.merge_in_place(self.at(at, Wants::Full), proof),
            Op::RemoveSubtree(at, proof) => {
                let at = self.at(at, Wants::Table);
                let (fence, shown, foreign) = self.prove(at, proof);
                let result =
                    self.with_obligation(foreign, |trial, owed| trial.table.remove_subtree(at, &fence, owed));
                let ask = self.ask(at, is_table).shown(shown).foreign(foreign);
                if self.judge(at, ask, result).is_some() {
                    self.left = Left::Exactly(self.tables_in(at));
                    self.departs(at);
                    self.owes(false);
                }
            }
            Op::UnmapNow(at) => self.unmap_now(self.at(at, Wants::Page)),
            Op::MergeNow(at) => self.merge_now(self.at(at, Wants::Full)),
            Op::RemoveSubtreeNow(at) => self.remove_subtree_now(self.at(at, Wants::Table)),
            Op::UnmapRangeNow(span) => self.unmap_range_now(self.range(span, u64::MAX)),
            Op::SplitRange { span, whole, way: Way::AtOnce, meanwhile } => {
                let (range, scope) = self.splitting(&span, whole);
                let Some((plan, reserved)) = self.plan_split(range, scope, meanwhile) else { return };
                let kept = reserved.plan().needs();
                match self.table.split_range(reserved) {
                    Ok(Committed { used, rest, .. }) => {
                        assert_eq!(used, plan.needs(), "{range}: frames used and planned");
                        self.unstock(kept, rest);
                        self.adopt_split(range, scope, true);
                    }
                    Err(refused) => {
                        let RangeError::Stopped { error, .. } = refused.error else {
                            panic!("{range}: {:?}", refused.error)
                        };
                        let about = super::judge::about(&error);
                        let blocked = |entry: Entry| !is_leaf(entry) || entry.blocked().is_none();
                        assert!(self.is_true(about, Ask::of(blocked), &error), "{range}: {error:?}");
                        let _ = refused.held.release(&self.pool);
                        self.used = self.used.plus(self.taken_since());
                        self.adopt_split(range, scope, false);
                    }
                }
            }
            Op::MergeRange { span, way: Way::AtOnce } => self.merge_range_now(self.range(span, u64::MAX)),
            Op::Settle { pages: true, .. } => self.settle_pages(),
            _ => {}
        }
    }

    fn split_now(
        &mut self,
        at: GpaEntry,
        short: bool,
        split: impl FnOnce(&mut Self, &mut crate::test_util::VecStore) -> Result<(), crate::TableError<X::Error>>,
    ) {
        let need = FrameNeeds::of(FrameKind::MirrorTable, 1);
        let mut store = self.stock(need, short);
        let before = store.kept();
        let result = split(self, &mut store);
        let used = self.unstock(before, store);
        let open = |entry: Entry| is_leaf(entry) && entry.blocked().is_none();
        let ask = self.ask(at, open).short(short);
        if self.judge(at, ask.misfit(ask.misfit || at.level() == Level::L4K), result).is_some() {
            assert_eq!(used, need, "{at}: frames that a split takes");
            self.is_split(at);
        } else {
            assert!(used.is_none(), "{at}: frames lost");
        }
    }

    fn close(&mut self, at: GpaEntry) {
        let result = self.table.close(at);
        let open = |entry: Entry| matches!(entry, Entry::Table { blocked: None, .. } | Entry::Closed { .. });
        if self.judge(at, self.ask(at, open), result).is_some() {
            let now = self.oracle.now;
            self.oracle.closed.entry(key(at)).or_insert(now);
        }
    }

    fn merge_in_place(&mut self, at: GpaEntry, proof: Proof) {
        let (quiet, shown, foreign): (Quiet, Shown, bool) = if proof == Proof::Fresh {
            self.close(at);
            self.check();
            let number = self.oracle.now;
            let ticket = self.table.grace();
            self.oracle.now += 1;
            (self.table.quiet(&ticket).expect("ends at once"), Shown::Number(number), false)
        } else {
            let (fence, shown, foreign) = self.show(proof);
            (fence.quiet(), shown, foreign)
        };
        let result =
            self.with_obligation(foreign, |trial, owed| trial.table.merge_in_place(at, &quiet, owed));
        let ask =
            self.ask(at, |entry| matches!(entry, Entry::Closed { .. } | Entry::Table { blocked: None, .. }));
        let ask = ask.misfit(at.level() > self.oracle.max_leaf()).closed(shown).foreign(foreign).sized();
        if self.judge(at, ask, result).is_some() {
            self.left = Left::Exactly(vec![key(at)]);
            self.is_merged(at, true);
        }
    }

    fn unmap_now(&mut self, at: GpaEntry) {
        let foreign = self.coin().is_multiple_of(16);
        let result = self.with_obligation(foreign, |trial, owed| trial.table.exclusive().unmap(at, owed));
        let Some(page) = self.judge(at, self.ask(at, is_leaf).foreign(foreign), result) else { return };
        let emptied = self.emptied(at);
        if !emptied.is_empty() {
            self.owes(true);
        }
        self.left = Left::Exactly(emptied);
        self.unmapped(vec![(at, page)]);
    }

    /// Pages that were unmapped are the host's after a fence, not before.
    fn unmapped(&mut self, pages: Vec<(GpaEntry, Unmapped)>) {
        let (early, _, _) = self.show(Proof::Last);
        let number = self.oracle.now;
        let fence = self.fence().expect("no TEE, no failure");
        assert!(number < self.oracle.now);
        for (at, page) in pages {
            let was = self.oracle.leaf(at).unwrap_or_else(|| panic!("{at}: there was no page"));
            assert_eq!((page.hpa().raw() >> 12, page.level()), (was.host, was.level), "{at}: another page");
            self.oracle.unmap(pages_of(at), false);
            let page = self.table.take(page, &early).expect_err("taken before the fence");
            let page: Frame = self.table.take(page, &fence).expect("taken after the fence");
            let first = page.hpa().raw() >> 12;
            self.oracle.give_back(first..first + page.level().pages());
        }
    }

    /// The tables above `at` that hold nothing else.
    fn emptied(&self, at: GpaEntry) -> Vec<Key> {
        let above = self.oracle.above(at).map(key);
        let mut emptied: Vec<Key> = above.take_while(|above| self.dump.tables[above].live == 1).collect();
        emptied.sort_unstable();
        emptied
    }

    fn tables_in(&self, at: GpaEntry) -> Vec<Key> {
        self.dump.tables.keys().filter(|other| at.range().covers(entry_of(**other))).copied().collect()
    }

    fn merge_now(&mut self, at: GpaEntry) {
        let foreign = self.coin().is_multiple_of(16);
        let result = self.with_obligation(foreign, |trial, owed| trial.table.exclusive().merge(at, owed));
        let ask = self.ask(at, is_table).misfit(at.level() > self.oracle.max_leaf()).sized().foreign(foreign);
        if self.judge(at, ask, result).is_some() {
            self.left = Left::Exactly(vec![key(at)]);
            self.is_merged(at, true);
        }
    }

    fn remove_subtree_now(&mut self, at: GpaEntry) {
        let foreign = self.coin().is_multiple_of(16);
        let result =
            self.with_obligation(foreign, |trial, owed| trial.table.exclusive().remove_subtree(at, owed));
        if self.judge(at, self.ask(at, is_table).foreign(foreign), result).is_some() {
            let mut left = self.tables_in(at);
            left.extend(self.emptied(at));
            left.sort_unstable();
            left.dedup();
            self.left = Left::Exactly(left);
            self.departs(at);
            self.owes(true);
        }
    }

    fn unmap_range_now(&mut self, range: GpaRange) {
        let foreign = self.coin().is_multiple_of(16);
        let mut pages = Vec::new();
        let result = self.with_obligation(foreign, |trial, owed| {
            trial.table.exclusive().unmap_range(range, owed, |at, page| pages.push((at, page)))
        });
        let (done, _) = self.judge_range(range, Ask::of(is_used).foreign(foreign), result);
        let Some(done) = done else { return assert!(pages.is_empty() && self.refused) };
        let single = pages.len() as u64;
        let after = Dump::of(&self.table);
        let gone = self.dump.tables.keys().filter(|at| !after.tables.contains_key(*at)).copied();
        let gone: Vec<Key> = gone.collect();
        if !gone.is_empty() {
            self.left = Left::Any;
            self.owes(true);
        }
        self.unmapped(pages);
        let mut tables = 0;
        for at in gone.iter().copied().map(entry_of) {
            if !range.covers(at) {
                assert!(
                    self.oracle.pages.within(pages_of(at)).all(|(run, _)| {
                        pages_in(range).start <= run.start && run.end <= pages_in(range).end
                    }),
                    "{at} left with pages outside of {range}"
                );
                continue;
            }
            let outer = |other: &Key| {
                other.1 > at.level() && entry_of(*other).range().covers(at) && range.covers(entry_of(*other))
            };
            tables += u64::from(!gone.iter().any(outer));
        }
        for at in gone.iter().copied().map(entry_of).filter(|at| range.covers(*at)).collect::<Vec<_>>() {
            self.departs(at);
        }
        assert_eq!((done.pages, done.tables), (single, tables), "{range}: counted");
        assert!(self.oracle.pages.none_in(pages_in(range)), "{range}: something was left");
        let inside = after.tables.keys().find(|at| range.covers(entry_of(**at)));
        assert_eq!(inside, None, "{range}: a table was left");
        let emptied =
            after.tables.iter().find(|(at, table)| table.live == 0 && self.dump.tables[*at].live > 0);
        assert!(emptied.is_none(), "{range}: an empty table was left at {:?}", emptied.map(|(at, _)| at));
    }

    fn merge_range_now(&mut self, range: GpaRange) {
        let foreign = self.coin().is_multiple_of(16);
        let result =
            self.with_obligation(foreign, |trial, owed| trial.table.exclusive().merge_range(range, owed));
        let ask = Ask::of(|entry| is_used(entry) && !is_table(entry)).foreign(foreign);
        let (done, _) = self.judge_range(range, ask, result);
        self.refused = false;
        let merged = self.adopt_merges(range, true);
        if let Some(done) = done {
            assert_eq!((done.pages, done.tables), (0, merged), "{range}: counted");
            let open =
                |at: &&Key| !self.oracle.hidden.contains_key(*at) && !self.oracle.closed.contains_key(*at);
            let after = Dump::of(&self.table);
            let mut inside =
                after.tables.keys().filter(|at| range.covers(entry_of(**at)) && at.1 <= Level::L1G);
            let left = inside.find(|at| open(at) && self.oracle.mergeable(entry_of(**at)));
            assert_eq!(left, None, "{range}: could have been merged");
        }
    }

    /// Settles what is owed, and takes the guest's pages out of it.
    fn settle_pages(&mut self) {
        let number = self.oracle.now;
        let Some(fence) = self.fence() else { return };
        let owed = core::mem::replace(&mut self.owed, self.table.obligation());
        let empty = owed.is_empty();
        let mut pages = Pages::new();
        let mut note = |at: GpaEntry, run: crate::Frames| {
            let first = run.hpa().raw() >> 12;
            let host = first..first + run.count();
            assert!(pages.none_in(host.clone()), "{at}: a page came out twice");
            pages.put(host, OwedPage { guest: at.gpa().raw() >> 12, level: at.level() });
        };
        match self.table.settle_pages(owed, &fence.quiet(), &self.pool, &mut note) {
            Ok(settled) => self.all_settled(settled, empty, Shown::Number(number), true),
            Err(_) => panic!("a fence is enough"),
        }
        assert_eq!(pages, self.oracle.owed, "pages that came out");
        self.pages_home();
    }
}
