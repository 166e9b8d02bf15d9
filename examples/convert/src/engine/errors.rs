//! Memory errors: announced ones are isolated, out of a reservation that stands ready; consumed ones end the TD.

use gpa_conversion::{Operation, Request};
use sept_core::{FrameKind, FrameSource as _, FrameStore as _, Gpa, GpaRange};

use super::Engine;
use super::convert::Failure;
use super::machine::SOURCE;
use super::oracle::Page;
use crate::report::{OpReport, Outcome};
use crate::scenario::{PAGE, Region};

impl Engine<'_, '_> {
    /// A memory error on the page at `gpa`.
    pub(super) fn poison(
        &mut self,
        gpa: u64,
        consumed: bool,
        report: &mut OpReport,
    ) -> Result<Outcome, Failure> {
        let page = self.oracle.page(gpa).unwrap_or(Page::Unaccepted);
        if page.is_poisoned() {
            return Ok(Outcome::Noop);
        }
        let Some(hpa) = self.host.hpa(gpa) else { return Err(Failure::error(gpa, "no memory")) };
        if consumed {
            self.host.machine.consume_memory_error(hpa);
            self.fatal = true;
            self.mark_poisoned(gpa);
            return Ok(Outcome::Ok);
        }
        self.host.machine.announce_memory_error(hpa);
        if let Err(failure) = self.isolate(gpa, report) {
            if failure.result == Outcome::Again && !self.recorded.contains(&gpa) {
                self.recorded.push(gpa);
            }
            return Err(failure);
        }
        self.recorded.retain(|other| *other != gpa);
        Ok(Outcome::Ok)
    }

    /// Takes a page with a memory error out of the guest and out of its folio.
    fn isolate(&mut self, gpa: u64, report: &mut OpReport) -> Result<(), Failure> {
        let Some(range) = GpaRange::new(Gpa::truncate(gpa), PAGE) else {
            return Err(Failure::error(gpa, "no such page"));
        };
        let store = std::mem::take(&mut self.emergency);
        let rest = self.convert_with(Request::new(range, Operation::Isolate), store, report);
        match rest {
            Ok(rest) => self.emergency = rest,
            Err(failure) => {
                self.promote_if_eager(range, report)?;
                return Err(failure);
            }
        }
        self.fill_emergency();
        self.mark_poisoned(gpa);
        Ok(())
    }

    fn mark_poisoned(&mut self, gpa: u64) {
        self.oracle.update(Region { start: gpa, len: PAGE }, |page| {
            if page.is_shared() { Page::PoisonedShared } else { Page::Poisoned }
        });
        self.outcome.report.totals.pages_poisoned += 1;
    }

    /// Tries again to isolate recorded errors, all or those in `region`.
    pub(super) fn isolate_recorded(
        &mut self,
        region: Option<Region>,
        report: &mut OpReport,
    ) -> Result<(), Failure> {
        let inside = |gpa: u64| region.is_none_or(|region| gpa.wrapping_sub(region.start) < region.len);
        let waiting: Vec<u64> = self.recorded.iter().copied().filter(|gpa| inside(*gpa)).collect();
        for gpa in waiting {
            self.isolate(gpa, report)?;
            self.recorded.retain(|other| *other != gpa);
        }
        Ok(())
    }

    /// Brings the standing reservation up to what one isolation can need at most, as far as the source has it.
    pub(super) fn fill_emergency(&mut self) {
        let need = self.worst_isolation();
        for kind in FrameKind::ALL {
            for _ in self.emergency.count(kind)..need[kind] {
                let Some(frame) = self.host.pool.take(kind, SOURCE) else { break };
                if let Err(frame) = self.emergency.put(kind, frame) {
                    self.host.pool.give(kind, frame);
                }
            }
        }
    }
}
