//! Operations on a table that no TEE keeps, beside other threads.

use super::dump::{Key, entry_of, key};
use super::judge::{Ask, is_leaf, is_table};
use super::oracle::{OwedPage, Shown};
use super::pages::Pages;
use super::side::{Rules, Side};
use super::trial::{Left, Trial, Wants};
use super::{Op, Proof, Way};
use crate::test_util::VecStore;
use crate::{
    Committed, Entry, FrameKind, FrameNeeds, FrameStore, GpaEntry, HardwareWalked, HostOwned, Level, Plan,
    Quiet, RangeError, TableError,
};
use std::{vec, vec::Vec};

impl<F: Rules + HardwareWalked, X: Side<F> + HostOwned> Trial<'_, F, X> {
    pub(super) fn step_without_tee(&mut self, op: &Op) {
        match *op {
            Op::SplitInPlace { at, short } => {
                let at = self.at(at, Wants::Large);
                self.split_under_guest(at, short, |trial, store| trial.table().split_in_place(at, store));
            }
            Op::Close(at) => self.close(self.at(at, Wants::Full)),
            Op::Reopen(at) => {
                let at = self.at(at, Wants::Full);
                let result = self.table().reopen(at);
                let ask = self.ask(at, |entry| matches!(entry, Entry::Closed { .. }));
                if self.judge(at, ask, result).is_some() {
                    self.oracle.closed.remove(&key(at));
                }
            }
            Op::MergeInPlace(at, proof) => self.merge_in_place(self.at(at, Wants::Full), proof),
            Op::RemoveSubtree(at, proof) => {
                let at = self.at(at, Wants::Table);
                let (fence, shown, foreign) = self.prove(at, proof);
                let result = self
                    .with_obligation(foreign, |trial, owed| trial.table().remove_subtree(at, &fence, owed));
                let ask = self.ask(at, is_table).shown(shown).foreign(foreign);
                if self.judge(at, ask, result).is_some() {
                    self.left = Left::Exactly(self.tables_in(at));
                    self.departs(at);
                    self.owes(false);
                }
            }
            Op::SplitRange { span, whole, way: Way::AtOnce, meanwhile } => {
                let (range, scope) = self.splitting(&span, whole);
                let Some((plan, reserved)) = self.plan_split(range, scope, meanwhile) else { return };
                let kept = reserved.plan().needs();
                match self.table().split_range(reserved) {
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
            Op::Settle { pages: true, .. } => self.settle_pages(),
            _ => {}
        }
    }

    /// A split without block and fence.
    pub(super) fn split_under_guest(
        &mut self,
        at: GpaEntry,
        short: bool,
        split: impl FnOnce(&mut Self, &mut VecStore) -> Result<(), TableError<X::Error>>,
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
        let result = self.table().close(at);
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
            let ticket = self.table().grace();
            self.oracle.now += 1;
            (self.table().quiet(&ticket).expect("ends at once"), Shown::Number(number), false)
        } else {
            let (fence, shown, foreign) = self.show(proof);
            (fence.quiet(), shown, foreign)
        };
        let result =
            self.with_obligation(foreign, |trial, owed| trial.table().merge_in_place(at, &quiet, owed));
        let ask =
            self.ask(at, |entry| matches!(entry, Entry::Closed { .. } | Entry::Table { blocked: None, .. }));
        let ask = ask.misfit(at.level() > self.oracle.max_leaf()).closed(shown).foreign(foreign).sized();
        if self.judge(at, ask, result).is_some() {
            self.left = Left::Exactly(vec![key(at)]);
            self.is_merged(at, true);
        }
    }

    pub(super) fn tables_in(&self, at: GpaEntry) -> Vec<Key> {
        self.dump.tables.keys().filter(|other| at.range().covers(entry_of(**other))).copied().collect()
    }

    /// Settles what is owed, and takes the guest's pages out of it.
    fn settle_pages(&mut self) {
        let number = self.oracle.now;
        let Some(fence) = self.fence() else { return };
        let owed = self.take_owed();
        let empty = owed.is_empty();
        let mut pages = Pages::new();
        let mut note = |at: GpaEntry, run: crate::Frames| {
            let first = run.hpa().raw() >> 12;
            let host = first..first + run.count();
            assert!(pages.none_in(host.clone()), "{at}: a page came out twice");
            pages.put(host, OwedPage { guest: at.gpa().raw() >> 12, level: at.level() });
        };
        match self.table().settle_pages(owed, &fence.quiet(), &self.pool, &mut note) {
            Ok(settled) => self.all_settled(settled, empty, Shown::Number(number), true),
            Err(_) => panic!("a fence is enough"),
        }
        assert_eq!(pages, self.oracle.owed, "pages that came out");
        self.pages_home();
    }
}
