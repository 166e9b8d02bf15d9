//! One stretch of guest RAM, and the host's record of its pages.

use std::collections::BTreeMap;
use std::ops::Range;

use folio_split::PageSet as _;
use gpa_conversion::Pages;
use sept_core::test_util::RamLedger;
use sept_core::{Gpa, GpaRange, Hpa, Level};

use super::sets::Bits;
use crate::scenario::{PAGE, Region};

/// RAM of the guest, in blocks of one size, and the host's record of it. Offsets are pages from its start.
#[derive(Debug)]
pub(super) struct Ram {
    /// Where the guest sees it.
    pub region: Region,
    /// Where it lies.
    pub base: Hpa,
    pub(super) ledger: RamLedger,
    pub(super) shared: Bits,
    pub(super) small: Bits,
    pub(super) poisoned: Bits,
    /// Pages that some host mapping reaches.
    pub(super) mapped: Bits,
    /// References that the host holds on shared pages.
    pub(super) pins: BTreeMap<u64, u32>,
}

impl Ram {
    /// RAM at `base`, private and unmapped.
    pub(super) fn new(region: Region, base: Hpa) -> Self {
        let ledger =
            RamLedger::new(base.align_down(Level::L2M), (base.raw() % Level::L2M.size() + region.len) / PAGE);
        Self {
            region,
            base,
            ledger,
            shared: Bits::default(),
            small: Bits::default(),
            poisoned: Bits::default(),
            mapped: Bits::default(),
            pins: BTreeMap::new(),
        }
    }

    pub(super) fn set(&self, set: Pages) -> &Bits {
        match set {
            Pages::Small => &self.small,
            Pages::Shared => &self.shared,
            Pages::Poisoned => &self.poisoned,
        }
    }

    /// The part of `range` in this RAM.
    pub(super) fn window(&self, range: GpaRange) -> Range<u64> {
        let end = range.end().min(self.region.start + self.region.len);
        let start = range.start().raw().max(self.region.start);
        (start - self.region.start) / PAGE
            ..end.saturating_sub(self.region.start).max(start - self.region.start) / PAGE
    }

    pub(super) fn gpa(&self, page: u64) -> Gpa {
        Gpa::truncate(self.region.start + page * PAGE)
    }

    pub(super) fn hpa(&self, page: u64) -> Hpa {
        Hpa::truncate(self.base.raw() + page * PAGE)
    }

    /// Pages of `window` that are not in `set`, as runs.
    pub(super) fn gaps(set: &Bits, window: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = window.start;
        while at < window.end {
            let run = set.next_run(at).filter(|run| run.start < window.end).unwrap_or(window.end..window.end);
            if at < run.start {
                gaps.push(at..run.start);
            }
            at = run.end;
        }
        gaps
    }
}
