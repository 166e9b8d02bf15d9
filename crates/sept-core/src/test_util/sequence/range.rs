//! Operations on ranges.

use super::dump::{Page, key, pages_in};
use super::judge::{Ask, is_leaf};
use super::oracle::Shown;
use super::side::{Rules, Side};
use super::trial::Trial;
use super::{Memory, Op, Proof, Way};
use crate::{Fenced, Gpa, GpaEntry, GpaRange, Level, Permissions};

/// Leaves that one operation may make.
const MOST: u64 = 1024;

impl<F: Rules, X: Side<F>> Trial<'_, F, X> {
    pub(super) fn step_range(&mut self, op: &Op) {
        match *op {
            Op::MapRange { span, memory, largest, meanwhile } => {
                let smallest = match memory {
                    Memory::By4K => Level::L4K,
                    Memory::By2M => largest.min(Level::L2M),
                    _ => largest,
                };
                self.map_range(self.range(span, MOST * smallest.size()), memory, largest, meanwhile);
            }
            Op::ProtectRange(span, permissions) => {
                self.protect_range(self.range(span, u64::MAX), permissions);
            }
            Op::InhibitRange { span, level, inhibit } => {
                self.inhibit_range(self.range(span, u64::MAX), level, inhibit);
            }
            Op::BlockRange(span) => self.block_range(self.range(span, u64::MAX)),
            Op::UnblockRange(span, proof) => {
                let range = self.range(span, u64::MAX);
                let (fence, shown, _) = self.prove_range(range, proof);
                self.unblock_range(range, &fence, shown);
            }
            Op::TakeRange(span, proof) => {
                let range = self.range(span, u64::MAX);
                let (fence, shown, foreign) = self.prove_range(range, proof);
                self.take_range(range, &fence, shown, foreign);
            }
            Op::BlockEmptyTables(span) => self.block_empty_tables(self.range(span, u64::MAX)),
            Op::UnlinkEmptyTables(span, proof) => {
                let range = self.range(span, u64::MAX);
                if proof == Proof::Fresh {
                    self.block_empty_tables(range);
                    self.check();
                    self.fence();
                }
                let (fence, shown, foreign) = self.show(proof);
                self.unlink_empty_tables(range, &fence, shown, foreign);
            }
            Op::SplitRange { span, whole, way, meanwhile } if self.in_rounds(way) => {
                let (range, scope) = self.splitting(&span, whole);
                if let Some((plan, reserved)) = self.plan_split(range, scope, meanwhile) {
                    self.split_in_rounds(plan, reserved, way);
                }
            }
            Op::MergeRange { span, way } if self.in_rounds(way) => {
                self.merge_in_rounds(self.range(span, u64::MAX), way);
            }
            Op::ProbeRange { span, level, budget } => {
                self.probe_range(self.range(span, u64::MAX), level, u32::from(budget));
            }
            _ => {}
        }
    }

    pub(super) fn in_rounds(&self, way: Way) -> bool {
        way != Way::AtOnce || self.tee().is_some()
    }

    /// What to show; for a fresh proof the range is blocked first and fenced.
    pub(super) fn prove_range(&mut self, range: GpaRange, proof: Proof) -> (Fenced, Shown, bool) {
        if proof == Proof::Fresh {
            self.block_range(range);
            self.check();
            self.fence();
        }
        self.show(proof)
    }

    fn protect_range(&mut self, range: GpaRange, permissions: Permissions) {
        let result = self.table().protect_range(range, permissions);
        let ask = Ask { unsayable: !F::can_say(permissions), ..Ask::of(is_leaf) };
        let (done, to) = self.judge_range(range, ask, result);
        let pages = pages_in(range).start..to >> 12;
        if let Some(done) = done {
            let count = self.oracle.pages.within(pages.clone());
            let count: u64 = count.map(|(run, page)| (run.end - run.start) / page.level.pages()).sum();
            assert_eq!((done.pages, done.tables), (count, 0), "{range}: counted");
            assert!(count == 0 || self.tee().is_none() && F::can_say(permissions), "{range}: impossible");
        }
        self.oracle.pages.change(pages, |page| Page { permissions, ..page });
    }

    fn inhibit_range(&mut self, range: GpaRange, level: Level, inhibit: bool) {
        let result = self.table().inhibit_range(range, level, inhibit);
        let ask = Ask::of(|entry| !is_leaf(entry)).misfit(level == Level::L4K || level > F::top(self.config));
        let (done, to) = self.judge_range(range, ask, result);
        // It begins where the first entry does, which may be before the range.
        self.refused = false;
        let after = self.words();
        let mut touched = 0;
        let mut next = range.start().align_down(level).raw();
        while next < range.end() {
            let at = GpaEntry::containing(Gpa::truncate(next), level);
            touched += 1;
            if done.is_some() || at.gpa().raw() < to {
                assert!(inhibit == after.inhibited.contains(&key(at)), "{at}: not marked as asked");
                if inhibit {
                    self.oracle.inhibited.insert(key(at));
                } else {
                    self.oracle.inhibited.remove(&key(at));
                }
            }
            next = at.end();
        }
        assert!(done.is_none_or(|done| done == touched), "{range}: counted");
    }
}
