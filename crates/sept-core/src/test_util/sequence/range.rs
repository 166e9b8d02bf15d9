//! Operations on ranges.

use super::oracle::Shown;
use super::side::{Rules, Side};
use super::trial::Trial;
use super::{Memory, Op, Proof, Way};
use crate::{Fenced, GpaRange, Level};

/// Leaves that one operation may make.
const MOST: u64 = 1024;

impl<F: Rules, X: Side<F>> Trial<F, X> {
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
        way != Way::AtOnce || self.table.external().tee().is_some()
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
}
