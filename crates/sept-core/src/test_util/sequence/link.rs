//! Hanging tables in.

use super::Memory;
use super::dump::key;
use super::judge::{Ask, about, is_free};
use super::side::{Rules, Side};
use super::trial::Trial;
use crate::{FrameKind, FrameNeeds, FrameStore, GpaEntry, Hpa, Level};
use std::vec::Vec;

impl<F: Rules, X: Side<F>> Trial<'_, F, X> {
    pub(super) fn link(&mut self, at: GpaEntry, backing: Option<Hpa>, short: bool) {
        let need = self.table().table_cost(at, backing);
        let mut store = self.stock(need, short);
        let before = store.kept();
        let result = self.table().link(at, backing, &mut store);
        let used = self.unstock(before, store);
        let misfit = at.level() == Level::L4K
            || at.level() > F::top(self.config)
            || backing.is_some_and(|hpa| !hpa.is_aligned(at.level()));
        if self.judge(at, Ask::of(is_free).misfit(misfit).short(short), result).is_some() {
            assert_eq!(used, need, "{at}: frames that a table takes");
            self.describe(at, backing);
        } else {
            assert!(used.is_none(), "{at}: frames lost");
        }
    }

    /// Notes what the TEE's metadata pages of a new table describe.
    pub(super) fn describe(&mut self, at: GpaEntry, backing: Option<Hpa>) {
        let tee = self.tee().is_some();
        if let Some(hpa) = backing.filter(|_| tee && self.metadata && at.level() == Level::L2M) {
            self.oracle.described.insert(key(at), hpa);
        }
    }

    /// Frames that the tables missing above `at` take.
    pub(super) fn missing_cost(&self, at: GpaEntry, hpa: Option<Hpa>) -> FrameNeeds {
        let mut need = FrameNeeds::NONE;
        for above in self.oracle.above(at).filter(|above| !self.dump.is_table(*above)) {
            let pair = self.metadata && above.level() == Level::L2M && backing_of(at, above, hpa).is_some();
            need[FrameKind::MirrorTable] += 1;
            if self.tee().is_some() {
                need[FrameKind::TeeTable] += 1;
                need[FrameKind::TeeMetadata] += if pair { 2 } else { 0 };
            }
        }
        need
    }

    pub(super) fn link_to(&mut self, at: GpaEntry, memory: Option<Memory>, short: bool) {
        let hpa = memory.map(|memory| Hpa::truncate(self.host(at.gpa(), memory) << 12));
        let need = self.missing_cost(at, hpa);
        let short = short && !need.is_none();
        let mut store = self.stock(need, short);
        let before = store.kept();
        let result = self.table().link_to(at, hpa, &mut store);
        let used = self.unstock(before, store);
        let after = self.words();
        let new: Vec<GpaEntry> = self
            .oracle
            .above(at)
            .filter(|above| after.is_table(*above) && !self.dump.is_table(*above))
            .collect();
        match result {
            Ok(linked) => {
                assert!(
                    self.oracle.in_space(at.gpa().raw()) && !self.oracle.is_shut(at) && !short,
                    "{at}: linked"
                );
                assert_eq!((linked as usize, used), (new.len(), need), "{at}: tables linked");
                assert!(self.oracle.above(at).all(|above| after.is_table(above)), "{at}: no way leads there");
            }
            Err(error) => {
                let ask = self.ask(at, is_free).short(short);
                assert!(
                    self.is_true(about(&error), ask, &error),
                    "{at}: refused with {error:?}, which is not so"
                );
                self.refused = new.is_empty();
            }
        }
        for above in new {
            self.describe(above, backing_of(at, above, hpa));
        }
    }
}

/// The memory of a table at `above` if `hpa` is mapped at `at`, if that is one aligned piece.
fn backing_of(at: GpaEntry, above: GpaEntry, hpa: Option<Hpa>) -> Option<Hpa> {
    let distance = at.gpa().raw() - above.gpa().raw();
    hpa.map(|hpa| Hpa::truncate(hpa.raw().wrapping_sub(distance))).filter(|hpa| hpa.is_aligned(above.level()))
}
