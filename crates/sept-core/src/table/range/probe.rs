//! Learning what the guest has accepted, in bounded passes.
//!
//! The host cannot see an ACCEPT: after AUG a page is *not known to be accepted* until the TEE is asked. Asking costs a
//! call, so only pages are asked about that stand between a table and its merge: every entry a page, one contiguous
//! block, nothing blocked. The first page that turns out to be pending ends the look at its table.

use super::{RangeError, after};
use crate::memory::FANOUT;
use crate::table::{SecurePageTable, TableError};
use crate::{
    Entry, External, Format, Gpa, GpaEntry, GpaRange, LeafState, Level, Observed, SideWord, TableMemory, Word,
};
use core::sync::atomic::Ordering;

/// How far a pass came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Probed {
    /// Where to go on, or `None` at the end of the range.
    pub next: Option<Gpa>,
    /// Pages the TEE was asked about.
    pub asked: u32,
    /// Those of them that turned out to be accepted.
    pub accepted: u32,
    /// Tables all of whose pages are known to be accepted now.
    pub ready: u32,
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Probes pages that keep tables of entries below `level` (`L2M` or `L1G`) in `range` from being merged, from `from`
    /// on, with at most `budget` calls into the TEE and looks at entries of `level`: one for each entry, or one for each page
    /// asked about below it. What no table holds is passed over at no cost.
    ///
    /// What was learnt stays in the entries: a pass that ends early is gone on with from [`Probed::next`], and each one with
    /// a `budget` above 0 comes further.
    ///
    /// # Errors
    ///
    /// [`RangeError::Stopped`] with the entry whose probe failed; [`TableError::Level`] at 4K.
    pub fn probe_candidates(
        &self,
        range: GpaRange,
        level: Level,
        from: Gpa,
        budget: u32,
    ) -> Result<Probed, RangeError<X::Error>> {
        let mut pass = Probed { next: None, asked: 0, accepted: 0, ready: 0 };
        let mut left = budget;
        let mut next = from.raw().max(range.start().raw());
        if level == Level::L4K {
            return Err(RangeError::stopped(next)(TableError::Level {
                at: GpaEntry::containing(from, level),
            }));
        }
        // Each turn passes one entry of the level, or a hole.
        while let Some(gpa) = Gpa::new(next).filter(|gpa| range.contains(*gpa)) {
            let at = GpaEntry::containing(gpa, level);
            let found = self.entry(at);
            next = after(at, &found);
            if matches!(found, Err(TableError::NoTable { .. } | TableError::OutOfRange { .. })) {
                continue;
            }
            let before = left;
            let inside = left > 0 && range.covers(at);
            if inside && self.is_ready(at) {
                pass.ready = pass.ready.saturating_add(1);
            } else if left == 0
                || inside && self.is_one_block(at) && !self.probe_table(at, &mut left, &mut pass)?
            {
                pass.next = Some(gpa);
                return Ok(pass);
            }
            left = left.min(before.saturating_sub(1));
        }
        Ok(pass)
    }

    /// Probes the pages of one table until one is pending; `false` if the budget ran out first.
    fn probe_table(
        &self,
        at: GpaEntry,
        left: &mut u32,
        pass: &mut Probed,
    ) -> Result<bool, RangeError<X::Error>> {
        for page in (0..FANOUT).filter_map(|index| at.child(index)) {
            let stopped = RangeError::stopped(page.gpa().raw());
            match self.entry(page).map_err(&stopped)? {
                Entry::Leaf { state: LeafState::Mapped, blocked: None, .. } => continue,
                Entry::Leaf { state: LeafState::Pending, blocked: None, .. } => {}
                _ => return Ok(true),
            }
            let Some(rest) = left.checked_sub(1) else { return Ok(false) };
            *left = rest;
            pass.asked = pass.asked.saturating_add(1);
            if self.probe(page).map_err(&stopped)? != Observed::Leaf(LeafState::Mapped) {
                return Ok(true);
            }
            pass.accepted = pass.accepted.saturating_add(1);
        }
        pass.ready = pass.ready.saturating_add(1);
        Ok(true)
    }

    /// Whether a table hangs in `at` whose pages are one block and all known to be accepted: what [`Self::is_one_block`]
    /// and a look at each page would say, in one pass over whole cache lines.
    fn is_ready(&self, at: GpaEntry) -> bool {
        let _pin = self.memory.pin();
        let Ok(slot) = self.slot(at, false) else { return false };
        let Entry::Table { hpa: table, blocked: None } = slot.entry else { return false };
        let Ok((_, merged)) = self.uniform(at, slot.raw, table) else { return false };
        let entry = F::decode(self.config, at.level(), merged);
        matches!(entry, Entry::Leaf { state: LeafState::Mapped, .. })
            && self.side(table, SideWord::Live) == u64::from(FANOUT)
    }

    /// Whether a full table hangs in `at` whose pages, accepted or not, are one aligned block.
    fn is_one_block(&self, at: GpaEntry) -> bool {
        let Some(child) = at.level().child().filter(|_| at.level() <= self.max_leaf()) else { return false };
        let _pin = self.memory.pin();
        let Ok(slot) = self.slot(at, false) else { return false };
        let Entry::Table { hpa: table, blocked: None } = slot.entry else { return false };
        if F::inhibited(slot.raw) || self.side(table, SideWord::Live) != u64::from(FANOUT) {
            return false;
        }
        let mut expect = None;
        (0..FANOUT).all(|index| {
            let raw = self.memory.load(table, Word::Entry(index), Ordering::Acquire);
            let Entry::Leaf { hpa, blocked: None, .. } = F::decode(self.config, child, raw) else {
                return false;
            };
            let base = *expect.get_or_insert(hpa);
            base.is_aligned(at.level()) && hpa.raw() == base.raw() | u64::from(index) << child.shift()
        })
    }
}
