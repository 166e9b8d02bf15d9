//! The verbs of a scenario.

use gpa_conversion::{Operation, Platform as _, Request};
use sept_core::{Fill, Gpa, GpaEntry, GpaRange, Level};

use super::convert::Failure;
use super::machine::SOURCE;
use super::oracle::{Content, Page, pattern};
use super::{Engine, Phase};
use crate::report::{OpReport, Outcome, Skipped};
use crate::scenario::{AcceptLevel, Op, PAGE, Region, Verb};

type Done = Result<Outcome, Failure>;

impl Engine<'_, '_> {
    /// Carries `op` out and says what it came to.
    pub(super) fn carry_out(&mut self, op: &Op) -> OpReport {
        let mut report = OpReport::new(op, Outcome::Ok);
        let done = match op.verb.region() {
            _ if self.fatal => Err(Failure::refused(None, "the TD is fatal")),
            Some(region) => self.ranged(op.verb, region, &mut report),
            None if op.verb == Verb::Merge => self.merge(&mut report),
            None => self.check(),
        };
        match done {
            Ok(result) => {
                report.result = result;
                report
            }
            Err(failure) => {
                report.result = failure.result;
                let at = failure.at.filter(|_| failure.result != Outcome::Refused || failure.at.is_some());
                report.because(at, failure.reason)
            }
        }
    }

    fn ranged(&mut self, verb: Verb, region: Region, report: &mut OpReport) -> Done {
        let Some(range) = Gpa::new(region.start).and_then(|gpa| GpaRange::new(gpa, region.len)) else {
            return Err(Failure::error(region.start, "no such range"));
        };
        if let Verb::Poison { gpa, consumed } = verb {
            return self.poison(gpa, consumed, report);
        }
        self.isolate_recorded(Some(region), report)?;
        let poisoned: Vec<Region> =
            self.oracle.runs(region).filter(|run| run.page.is_poisoned()).map(|run| run.region).collect();
        let lost: u64 = poisoned.iter().map(|run| run.len).sum();
        // Private and shared ones alike: adjacent runs are one.
        for run in poisoned {
            match report.skipped.last_mut() {
                Some(last) if last.start + last.len == run.start => last.len += run.len,
                _ => report.skipped.push(Skipped { start: run.start, len: run.len, reason: "poisoned" }),
            }
        }
        if lost == region.len {
            return Ok(Outcome::Noop);
        }
        match verb {
            Verb::Image { .. } => self.image(region, range, report),
            Verb::Accept { level, .. } => self.accept(region, range, level, report),
            Verb::Touch { .. } => self.touch(region, range, report),
            Verb::Fill { .. } => self.fill(region),
            Verb::HostFill { .. } => self.host_fill(region, range),
            Verb::Share { .. } => self.share(region, range, report),
            Verb::Unshare { accept, .. } => self.unshare(region, range, accept, report),
            Verb::Pin { .. } => {
                self.need(region, "not shared", Page::is_shared)?;
                self.host.pin(range);
                Ok(Outcome::Ok)
            }
            Verb::Unpin { .. } => {
                self.need(region, "not shared", Page::is_shared)?;
                if let Some(gpa) = self.host.next_unpinned(range) {
                    return Err(Failure::refused(Some(gpa.raw()), "not pinned"));
                }
                self.host.unpin(range);
                Ok(Outcome::Ok)
            }
            Verb::Punch { .. } => self.punch(region, range, report),
            Verb::Memory(_) | Verb::Ram { .. } | Verb::Poison { .. } | Verb::Merge | Verb::Check => {
                Ok(Outcome::Ok)
            }
        }
    }

    /// Refuses unless every page of `region` that is not poisoned is as `wanted`.
    fn need(&self, region: Region, reason: &str, wanted: impl Fn(Page) -> bool) -> Result<(), Failure> {
        match self.oracle.find_page(region, |page| !page.is_poisoned() && !wanted(page)) {
            Some(gpa) => Err(Failure::refused(Some(gpa), reason)),
            None => Ok(()),
        }
    }

    /// Lets the vCPUs run, unless parts of the image are still to come.
    pub(super) fn running(&mut self) -> Result<(), Failure> {
        if self.images_left > 0 {
            return Err(Failure::refused(None, "the TD is still being built"));
        }
        if !self.finalized {
            let transport = self.host.table.external().transport();
            self.control.finalize(transport).map_err(|error| Failure::error(0, error))?;
            self.finalized = true;
        }
        Ok(())
    }

    fn image(&mut self, region: Region, range: GpaRange, report: &mut OpReport) -> Done {
        self.need(region, "not empty private memory", |page| page == Page::Unaccepted)?;
        self.convert(Request::new(range, Operation::Prepare), report)?;
        for gpa in (region.start..region.start + region.len).step_by(4096) {
            if self.oracle.page(gpa).is_none_or(Page::is_poisoned) {
                continue;
            }
            let at = GpaEntry::containing(Gpa::truncate(gpa), Level::L4K);
            self.host.machine.host_write(SOURCE, pattern(gpa, Content::Image));
            self.host.machine.host_flush(SOURCE, 1);
            let page = self.host.lend(at).ok_or_else(|| Failure::error(gpa, "no page to add"))?;
            if let Err(refused) = self.host.table.map(at, page, Fill::Copy(SOURCE)) {
                self.host.take_back(at, refused.held);
                return Err(Failure::error(gpa, refused.error));
            }
            let measured = self.host.table.external().measure(at.gpa(), PAGE);
            measured.map_err(|stopped| Failure::error(gpa, stopped))?;
        }
        self.oracle.update(region, |page| match page {
            Page::Unaccepted => Page::Private(Content::Image),
            other => other,
        });
        Ok(Outcome::Ok)
    }

    fn accept(
        &mut self,
        region: Region,
        range: GpaRange,
        level: Option<AcceptLevel>,
        report: &mut OpReport,
    ) -> Done {
        self.running()?;
        self.need(region, "shared", |page| !page.is_shared())?;
        if self.oracle.find_page(region, |page| page == Page::Unaccepted).is_none() {
            return Ok(Outcome::Noop);
        }
        let largest = if level == Some(AcceptLevel::Page4K) { Level::L4K } else { Level::L2M };
        self.learn(range, largest)?;
        self.convert(Request::new(range, Operation::Populate { largest, around: false }), report)?;
        self.guest_accept(region, largest, report)?;
        self.promote_if_eager(range, report)?;
        Ok(Outcome::Ok)
    }

    fn touch(&mut self, region: Region, range: GpaRange, report: &mut OpReport) -> Done {
        self.running()?;
        self.need(region, "shared", |page| !page.is_shared())?;
        if let Some(gpa) = self.oracle.find_page(region, |page| page == Page::Unaccepted) {
            self.guest_touch(gpa)?;
            self.convert(
                Request::new(range, Operation::Populate { largest: Level::L2M, around: true }),
                report,
            )?;
        }
        Ok(Outcome::Ok)
    }

    fn fill(&mut self, region: Region) -> Done {
        self.need(region, "not accepted", |page| page != Page::Unaccepted)?;
        if self.oracle.find_page(region, |page| matches!(page, Page::Private(_))).is_some() {
            self.running()?;
        }
        self.fills += 1;
        let content = Content::Filled(self.fills);
        let runs: Vec<_> = self.oracle.runs(region).filter(|run| !run.page.is_poisoned()).collect();
        for run in runs {
            for gpa in (run.region.start..run.region.start + run.region.len).step_by(4096) {
                if run.page.is_shared() {
                    self.write_shared(gpa, pattern(gpa, content));
                } else {
                    self.guest_write(gpa, pattern(gpa, content))?;
                }
            }
        }
        self.set_content(region, content);
        Ok(Outcome::Ok)
    }

    fn host_fill(&mut self, region: Region, range: GpaRange) -> Done {
        self.need(region, "not shared", Page::is_shared)?;
        self.fills += 1;
        let content = Content::Filled(self.fills);
        self.host.map(range);
        for gpa in (region.start..region.start + region.len).step_by(4096) {
            if self.oracle.page(gpa).is_some_and(|page| !page.is_poisoned()) {
                self.write_shared(gpa, pattern(gpa, content));
            }
        }
        self.set_content(region, content);
        Ok(Outcome::Ok)
    }

    fn set_content(&mut self, region: Region, content: Content) {
        self.oracle.update(region, |page| match page {
            Page::Private(_) => Page::Private(content),
            Page::Shared(_) => Page::Shared(content),
            other => other,
        });
    }

    fn share(&mut self, region: Region, range: GpaRange, report: &mut OpReport) -> Done {
        let private = |page| matches!(page, Page::Unaccepted | Page::Private(_));
        if self.oracle.find_page(region, private).is_none() {
            return Ok(Outcome::Noop);
        }
        self.with_promotion(Request::new(range, Operation::Share), report)?;
        self.oracle.update(region, |page| if private(page) { Page::Shared(Content::Zero) } else { page });
        Ok(Outcome::Ok)
    }

    fn unshare(&mut self, region: Region, range: GpaRange, accept: bool, report: &mut OpReport) -> Done {
        let shared = |page: Page| page.is_shared() && !page.is_poisoned();
        if self.oracle.find_page(region, shared).is_none() {
            return Ok(Outcome::Noop);
        }
        if accept {
            self.running()?;
        }
        self.learn(range, Level::L2M)?;
        let merge = self.is_eager();
        self.convert(Request::new(range, Operation::Unshare { merge }), report)?;
        self.oracle.update(region, |page| if shared(page) { Page::Unaccepted } else { page });
        if accept {
            self.guest_accept(region, Level::L2M, report)?;
        }
        self.promote_if_eager(range, report)?;
        Ok(Outcome::Ok)
    }

    fn punch(&mut self, region: Region, range: GpaRange, report: &mut OpReport) -> Done {
        self.with_promotion(Request::new(range, Operation::Punch), report)?;
        let shared: Vec<_> = self
            .oracle
            .runs(region)
            .filter(|run| matches!(run.page, Page::Shared(_)))
            .map(|run| run.region)
            .collect();
        for run in shared {
            if let Some(hpa) = self.host.hpa(run.start) {
                self.host.machine.host_zero(hpa, run.len / PAGE);
            }
        }
        self.oracle.update(region, |page| match page {
            Page::Private(_) => Page::Unaccepted,
            Page::Shared(_) => Page::Shared(Content::Zero),
            other => other,
        });
        Ok(Outcome::Ok)
    }

    fn merge(&mut self, report: &mut OpReport) -> Done {
        self.isolate_recorded(None, report)?;
        let ram: Vec<Region> = self.oracle.ram().collect();
        for region in ram {
            let Some(range) = GpaRange::new(Gpa::truncate(region.start), region.len) else { continue };
            self.convert(Request::new(range, Operation::Coalesce), report)?;
            self.promote(range, report)?;
        }
        Ok(Outcome::Ok)
    }

    /// A request that splits leaves: if it is turned round, they are promoted again.
    fn with_promotion(&mut self, request: Request, report: &mut OpReport) -> Result<(), Failure> {
        let Err(failure) = self.convert(request, report) else { return Ok(()) };
        if !report.retained.is_zero() {
            let kept = report.released;
            self.promote(request.range, report)?;
            report.retained -= report.released - kept;
            report.released = kept;
        }
        Err(failure)
    }

    pub(super) fn promote_if_eager(&mut self, range: GpaRange, report: &mut OpReport) -> Result<(), Failure> {
        if self.is_eager() { self.promote(range, report) } else { Ok(()) }
    }

    fn check(&mut self) -> Done {
        let all: Vec<Region> = self.oracle.ram().collect();
        let total = all.iter().map(|region| region.len).sum::<u64>() / PAGE;
        let mut done = 0;
        for region in all {
            // 64 MiB at a time, so that progress can be seen.
            for start in (region.start..region.start + region.len).step_by(64 << 20) {
                let len = (region.start + region.len - start).min(64 << 20);
                self.verify(Region { start, len });
                done += len / PAGE;
                self.observer.progress(Phase::Verify, done, total);
            }
        }
        Ok(Outcome::Ok)
    }
}
