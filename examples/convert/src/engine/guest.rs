//! The guest's side: it accepts, reads and writes; and the comparison of what it finds with what it must find.

use gpa_conversion::{Operation, Request};
use seamcall::Status;
use sept_core::{Entry, Gpa, GpaEntry, GpaRange, Hpa, LeafState, Level};
use tdx_model::{Accept, Guest, GuestFault, Seen};

use super::convert::Failure;
use super::oracle::{Page, Run, pattern};
use super::{Engine, Phase};
use crate::report::OpReport;
use crate::scenario::{PAGE, Region, Verb};

/// Exits in a row for one page after which the host gives up.
const MAX_EXITS: u32 = 8;

impl Engine<'_, '_> {
    /// The vCPU that does the guest's work, in guest mode.
    fn guest(&self) -> Result<Guest<'_>, Failure> {
        let vcpu = self.control.vcpus.first().ok_or_else(|| Failure::error(0, "no vCPU"))?;
        let guest = self.host.machine.guest(vcpu.hpa());
        if !guest.is_inside() {
            guest.enter(1).map_err(|status| Failure::error(0, format!("VP.ENTER: {status:?}")))?;
        }
        Ok(guest)
    }

    /// The guest accepts every page of `region` that it has not accepted, at 2 MiB where that fits and is allowed.
    pub(super) fn guest_accept(
        &mut self,
        region: Region,
        largest: Level,
        report: &mut OpReport,
    ) -> Result<(), Failure> {
        let total = self.scenario.ram_bytes() / PAGE;
        let runs: Vec<Run> = self.oracle.runs(region).filter(|run| run.page == Page::Unaccepted).collect();
        for run in runs {
            let end = run.region.start + run.region.len;
            let mut gpa = run.region.start;
            while gpa < end {
                let large = largest >= Level::L2M
                    && gpa % Level::L2M.size() == 0
                    && end - gpa >= Level::L2M.size()
                    && self.accept_one(gpa, Level::L2M, report)?;
                if !large {
                    self.accept_one(gpa, Level::L4K, report)?;
                }
                let next = gpa + if large { Level::L2M } else { Level::L4K }.size();
                if next >> 26 != gpa >> 26 {
                    self.observer.progress(Phase::Accept, (next - region.start) / PAGE, total);
                }
                gpa = next;
            }
            self.oracle.update(run.region, |page| match page {
                Page::Unaccepted => Page::Private(super::oracle::Content::Zero),
                other => other,
            });
        }
        self.observer.progress(Phase::Accept, region.len / PAGE, region.len / PAGE);
        Ok(())
    }

    /// One ACCEPT, repeated until the host has answered its exits. False if the host's pages there are smaller.
    fn accept_one(&mut self, gpa: u64, level: Level, report: &mut OpReport) -> Result<bool, Failure> {
        let at = GpaEntry::containing(Gpa::truncate(gpa), level);
        for _ in 0..MAX_EXITS {
            match self.guest()?.accept(at.gpa(), level) {
                Ok(Accept::Returned(status)) => {
                    let status = Status::from_raw(status.0);
                    return match status.code() {
                        _ if status.is_success() => Ok(true),
                        Status::PAGE_SIZE_MISMATCH => Ok(false),
                        _ => Err(Failure::again(gpa, format!("ACCEPT: {status}"))),
                    };
                }
                Ok(Accept::Interrupted) => {}
                Ok(Accept::Exit(_)) => {
                    // What the exit asks for: a mapping that is no larger than the level of this ACCEPT.
                    let request =
                        Request::new(at.range(), Operation::Populate { largest: level, around: false });
                    self.convert(request, report)?;
                }
                Err(fault) => return Err(Failure::error(gpa, format!("ACCEPT: {fault:?}"))),
            }
        }
        Err(Failure::again(gpa, format!("ACCEPT at {level} exits every time")))
    }

    /// Asks about leaves that the guest may have accepted already, where an ACCEPT at `largest` in `range` would
    /// split one: what is accepted is not split for it.
    pub(super) fn learn(&self, range: GpaRange, largest: Level) -> Result<(), Failure> {
        let ends = [range.start().raw(), range.end() - PAGE];
        let inside = (range.start().raw()..range.end()).step_by(2 << 20).filter(|_| largest < Level::L2M);
        for gpa in inside.chain(ends) {
            let at = GpaEntry::containing(Gpa::truncate(gpa), Level::L2M);
            let found = self.host.table.lookup(at.gpa()).map_err(|error| Failure::error(gpa, error))?;
            let unknown = matches!(found.entry, Entry::Leaf { state: LeafState::Pending, blocked: None, .. });
            if found.at == at && unknown && (largest < Level::L2M || !range.covers(at)) {
                self.host.table.probe(at).map_err(|error| Failure::of(&error, gpa))?;
            }
        }
        Ok(())
    }

    /// The guest touches memory that it has not accepted: an exit if nothing is mapped.
    pub(super) fn guest_touch(&mut self, gpa: u64) -> Result<(), Failure> {
        match self.guest()?.read(Gpa::truncate(gpa)) {
            Err(GuestFault::Exit(_) | GuestFault::Pending) => Ok(()),
            other => Err(Failure::error(gpa, format!("touching unaccepted memory gave {other:?}"))),
        }
    }

    /// The guest writes its own page.
    pub(super) fn guest_write(&mut self, gpa: u64, value: u64) -> Result<(), Failure> {
        let written = self.guest()?.write(Gpa::truncate(gpa), value);
        written.map_err(|fault| Failure::error(gpa, format!("writing private memory: {fault:?}")))
    }

    /// Either side writes a shared page, through the host's mapping of it.
    pub(super) fn write_shared(&mut self, gpa: u64, value: u64) {
        if let Some(hpa) = self.host.hpa(gpa) {
            self.host.machine.host_write(hpa, value);
        }
    }

    /// Compares every page of `region` with what it must hold, from both sides.
    ///
    /// Pages with an error that is recorded and not isolated yet are left alone: to read one is the end of the TD.
    pub(super) fn verify(&mut self, region: Region) {
        let end = region.start + region.len;
        let mut errors: Vec<u64> = self.recorded.clone();
        errors.retain(|gpa| (region.start..end).contains(gpa));
        errors.sort_unstable();
        let mut start = region.start;
        for gpa in errors {
            self.verify_sound(Region { start, len: gpa - start });
            start = gpa + PAGE;
        }
        self.verify_sound(Region { start, len: end - start });
    }

    fn verify_sound(&mut self, region: Region) {
        let runs: Vec<Run> = self.oracle.runs(region).collect();
        for run in runs {
            match run.page {
                Page::Poisoned | Page::PoisonedShared => {}
                Page::Private(_) if self.fatal => {}
                Page::Private(content) => {
                    self.compare(run.region, |engine, gpa| match engine.guest_read(gpa) {
                        Ok(found) if found == pattern(gpa, content) => Ok(()),
                        found => Err(format!("private: {found:x?}, not {:#x}", pattern(gpa, content))),
                    });
                }
                Page::Shared(content) => {
                    self.compare(run.region, |engine, gpa| {
                        match engine.host.hpa(gpa).map(|hpa| engine.seen(hpa)) {
                            Some(Seen::Pattern(found)) if found == pattern(gpa, content) => Ok(()),
                            found => Err(format!("shared: {found:x?}, not {:#x}", pattern(gpa, content))),
                        }
                    });
                    self.unreadable(run.region);
                }
                Page::Unaccepted => self.unreadable(run.region),
            }
        }
    }

    fn seen(&self, hpa: Hpa) -> Seen {
        self.host.machine.host_read(hpa)
    }

    fn guest_read(&self, gpa: u64) -> Result<u64, String> {
        if !self.finalized {
            // Nobody can look yet; the model can.
            let hpa = self.host.hpa(gpa).ok_or("no memory")?;
            return Ok(self.host.machine.peek(hpa).pattern);
        }
        let guest = self.guest().map_err(|failure| failure.reason)?;
        guest.read(Gpa::truncate(gpa)).map_err(|fault| format!("{fault:?}"))
    }

    fn compare(&mut self, region: Region, page: impl Fn(&Self, u64) -> Result<(), String>) {
        for gpa in (region.start..region.start + region.len).step_by(4096) {
            self.outcome.report.totals.pages_verified += 1;
            if let Err(text) = page(self, gpa) {
                self.outcome.report.totals.pages_lost += 1;
                // One line for each page would drown the rest.
                if self.outcome.report.totals.pages_lost <= 16 {
                    self.violation(format!("{gpa:#x} {text}"));
                }
            }
        }
    }

    /// The guest must not be able to read private memory here. Looked at once for each 2 MiB: every look is an exit.
    fn unreadable(&mut self, region: Region) {
        if !self.finalized || self.fatal {
            return;
        }
        let end = region.start + region.len;
        for gpa in (region.start..end).step_by(2 << 20).chain([end - PAGE]) {
            if let Ok(found) = self.guest_read(gpa) {
                self.violation(format!("{gpa:#x} is readable as private memory: {found:#x}"));
            }
        }
    }

    /// I2: contents in and around the first and last 2 MiB of what changed, where a mistake would show first.
    pub(super) fn verify_edges(&mut self, verb: &Verb) {
        let (
            Verb::Share { .. } | Verb::Unshare { .. } | Verb::Punch { .. } | Verb::Poison { .. },
            Some(region),
        ) = (verb, verb.region())
        else {
            return;
        };
        let wide = Level::L2M.size();
        let end = region.start + region.len;
        let first = Region { start: region.start.saturating_sub(wide), len: 2 * wide };
        let rest = (first.start + first.len).max(end.saturating_sub(wide));
        self.verify(first);
        self.verify(Region { start: rest, len: (end + wide).saturating_sub(rest) });
    }
}
