//! Operations with exclusive access, a number of them in one go.

use super::dump::{Key, entry_of, key, pages_in, pages_of};
use super::judge::{Ask, is_leaf, is_table, is_used};
use super::side::{Rules, Side};
use super::trial::{Left, Trial, Wants};
use super::{Memory, Op, Proof, Way};
use crate::test_util::Arena;
use crate::{
    Exclusive, Frame, FrameStore, GpaEntry, GpaRange, HardwareWalked, HostOwned, Hpa, Level, Unmapped,
};
use std::{vec, vec::Vec};

type Alone<'t, 'm, F, X> = Exclusive<'t, F, &'m Arena, X>;

impl<'m, F: Rules + HardwareWalked, X: Side<F> + HostOwned> Trial<'m, F, X> {
    pub(super) fn run_alone(&mut self, ops: &[Op]) {
        let mut table = self.table.take().expect("nobody has it alone");
        let mut alone = table.exclusive();
        for op in ops {
            self.step_alone(&mut alone, op);
            self.check_words();
        }
        self.table = Some(table);
        self.fence_unmapped();
    }

    fn step_alone(&mut self, alone: &mut Alone<'_, 'm, F, X>, op: &Op) {
        match *op {
            Op::Map { at, memory, copy, size, .. } => {
                let at = self.at(at, Wants::Hole);
                self.map_by(at, memory, copy, size.unwrap_or(at.level()), None, |_, page, fill| {
                    alone.map(at, page, fill)
                });
            }
            Op::MapLinking { at, memory, short } => {
                self.map_linking(alone, self.at(at, Wants::Hole), memory, short);
            }
            Op::UnmapNow(at) => self.unmap_now(alone, self.at(at, Wants::Page)),
            Op::SplitNow { at, short } => {
                let at = self.at(at, Wants::Large);
                self.split_under_guest(at, short, |_, store| alone.split(at, store));
            }
            Op::MergeNow(at) => {
                let at = self.at(at, Wants::Full);
                let foreign = self.coin().is_multiple_of(16);
                let result = self.with_obligation(foreign, |_, owed| alone.merge(at, owed));
                let ask = self.ask(at, is_table).misfit(at.level() > self.oracle.max_leaf());
                if self.judge(at, ask.sized().foreign(foreign), result).is_some() {
                    self.left = Left::Exactly(vec![key(at)]);
                    self.is_merged(at, true);
                }
            }
            Op::RemoveSubtreeNow(at) => {
                let at = self.at(at, Wants::Table);
                let foreign = self.coin().is_multiple_of(16);
                let result = self.with_obligation(foreign, |_, owed| alone.remove_subtree(at, owed));
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
            Op::UnmapRangeNow(span) => self.unmap_range_now(alone, self.range(span, u64::MAX)),
            Op::MergeRange { span, way: Way::AtOnce } => {
                self.merge_range_now(alone, self.range(span, u64::MAX));
            }
            _ => {}
        }
    }

    fn map_linking(&mut self, alone: &mut Alone<'_, 'm, F, X>, at: GpaEntry, memory: Memory, short: bool) {
        let hpa = Hpa::truncate(self.host(at.gpa(), memory) << 12).align_down(at.level());
        let need = self.missing_cost(at, Some(hpa));
        let short = short && !need.is_none();
        let mut store = self.stock(need, short);
        let before = store.kept();
        let none = self.words().tables;
        let mapped = self.map_by(at, memory, false, at.level(), Some(short), |_, page, fill| {
            alone.map_linking(at, page, fill, &mut store)
        });
        let used = self.unstock(before, store);
        let linked = self.words().tables.len() - none.len();
        assert!(!mapped || used == need, "{at}: frames that the tables take");
        // Tables that were linked stay.
        self.refused &= linked == 0;
    }

    fn unmap_now(&mut self, alone: &mut Alone<'_, 'm, F, X>, at: GpaEntry) {
        let foreign = self.coin().is_multiple_of(16);
        let result = self.with_obligation(foreign, |_, owed| alone.unmap(at, owed));
        let Some(page) = self.judge(at, self.ask(at, is_leaf).foreign(foreign), result) else { return };
        let emptied = self.emptied(at);
        if !emptied.is_empty() {
            self.owes(true);
        }
        self.left = Left::Exactly(emptied);
        self.is_unmapped(vec![(at, page)]);
    }

    /// Notes pages that were unmapped.
    fn is_unmapped(&mut self, pages: Vec<(GpaEntry, Unmapped)>) {
        for (at, page) in pages {
            let was = self.oracle.leaf(at).unwrap_or_else(|| panic!("{at}: there was no page"));
            assert_eq!((page.hpa().raw() >> 12, page.level()), (was.host, was.level), "{at}: another page");
            self.oracle.unmap(pages_of(at), false);
            self.unmapped.push((at, page));
        }
    }

    /// Pages that were unmapped are the host's after a fence, not before.
    fn fence_unmapped(&mut self) {
        let (early, _, _) = self.show(Proof::Last);
        let fence = self.fence().expect("no TEE, no failure");
        for (_, page) in core::mem::take(&mut self.unmapped) {
            let page = self.table().take(page, &early).expect_err("taken before the fence");
            let page: Frame = self.table().take(page, &fence).expect("taken after the fence");
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

    fn unmap_range_now(&mut self, alone: &mut Alone<'_, 'm, F, X>, range: GpaRange) {
        let foreign = self.coin().is_multiple_of(16);
        let mut pages = Vec::new();
        let result = self.with_obligation(foreign, |_, owed| {
            alone.unmap_range(range, owed, |at, page| pages.push((at, page)))
        });
        let (done, _) = self.judge_range(range, Ask::of(is_used).foreign(foreign), result);
        let Some(done) = done else { return assert!(pages.is_empty() && self.refused) };
        let single = pages.len() as u64;
        let after = self.words();
        let gone = self.dump.tables.keys().filter(|at| !after.tables.contains_key(*at)).copied();
        let gone: Vec<Key> = gone.collect();
        if !gone.is_empty() {
            self.left = Left::Any;
            self.owes(true);
        }
        self.is_unmapped(pages);
        let mut tables = 0;
        for at in gone.iter().copied().map(entry_of) {
            if range.covers(at) {
                let outer = |other: &Key| other.1 > at.level() && entry_of(*other).range().covers(at);
                let outer = |other: &&Key| outer(other) && range.covers(entry_of(**other));
                tables += u64::from(!gone.iter().any(|other| outer(&other)));
                self.departs(at);
            }
        }
        for at in gone.iter().copied().map(entry_of) {
            assert!(self.oracle.pages.none_in(pages_of(at)), "{at} left with pages outside of {range}");
        }
        assert_eq!((done.pages, done.tables), (single, tables), "{range}: counted");
        assert!(self.oracle.pages.none_in(pages_in(range)), "{range}: something was left");
        let inside = after.tables.keys().find(|at| range.covers(entry_of(**at)));
        assert_eq!(inside, None, "{range}: a table was left");
        let emptied =
            after.tables.iter().find(|(at, table)| table.live == 0 && self.dump.tables[*at].live > 0);
        assert!(emptied.is_none(), "{range}: an empty table was left at {:?}", emptied.map(|(at, _)| at));
    }

    fn merge_range_now(&mut self, alone: &mut Alone<'_, 'm, F, X>, range: GpaRange) {
        let foreign = self.coin().is_multiple_of(16);
        let result = self.with_obligation(foreign, |_, owed| alone.merge_range(range, owed));
        let ask = Ask::of(|entry| is_used(entry) && !is_table(entry)).foreign(foreign);
        let (done, _) = self.judge_range(range, ask, result);
        self.refused = false;
        let merged = self.adopt_merges(range, true);
        if let Some(done) = done {
            assert_eq!((done.pages, done.tables), (0, merged), "{range}: counted");
            let after = self.words();
            let open =
                |at: &&Key| !self.oracle.hidden.contains_key(*at) && !self.oracle.closed.contains_key(*at);
            let mut inside =
                after.tables.keys().filter(|at| range.covers(entry_of(**at)) && at.1 <= Level::L1G);
            let left = inside.find(|at| open(at) && self.oracle.mergeable(entry_of(**at)));
            assert_eq!(left, None, "{range}: could have been merged");
        }
    }
}
