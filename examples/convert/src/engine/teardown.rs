//! The end of a TD: its key is taken away, every page is reclaimed, and the account must come out even.

use gpa_conversion::Platform as _;
use seamcall::phymem;
use sept_core::test_util::Arena;
use sept_core::{Frame, FrameKind, FrameStore as _, GpaEntry, TableMemory, Tainted, Teardown, Torn};
use tdx_model::Machine;

use super::Engine;
use super::host::Host;
use super::machine::{GLOBAL_HKID, KEY_ID_BITS};
use super::oracle::{Oracle, Page};
use crate::scenario::Region;

/// Reclaims from the module and collects what the guest had.
struct Reclaim<'m> {
    machine: &'m Machine,
    pages: Vec<(GpaEntry, Frame<Tainted>)>,
}

impl Teardown<Arena> for Reclaim<'_> {
    type Error = String;

    fn reclaim(&mut self, what: Torn) -> Result<(), String> {
        let lp = self.machine.lp(0);
        let done = match what {
            Torn::Page { hpa, .. } | Torn::Table { hpa, .. } => phymem::page_reclaim(&lp, hpa).map(drop),
            // The module wrote these under its own key, which freeing the TD's does not write back.
            Torn::Metadata { backing, .. } => phymem::pamt_remove(&lp, backing).and_then(|pair| {
                pair.into_iter().try_for_each(|page| phymem::page_wbinvd(&lp, page, GLOBAL_HKID, KEY_ID_BITS))
            }),
            _ => Ok(()),
        };
        done.map_err(|error| format!("{what:?}: {error}"))
    }

    fn page(&mut self, at: GpaEntry, page: Frame<Tainted>, _: &Arena) {
        self.pages.push((at, page));
    }
}

impl Engine<'_, '_> {
    /// Tears the TD down. Whatever does not come back as it must is told.
    pub(super) fn tear_down(&mut self) -> Vec<String> {
        let machine = self.host.machine;
        for vcpu in &self.control.vcpus {
            machine.guest(vcpu.hpa()).exit();
        }
        if let Err(error) = self.control.retire(machine) {
            return vec![error.to_string()];
        }
        let mut reclaim = Reclaim { machine, pages: Vec::new() };
        if let Err(text) = self.host.table.tear_down(&mut reclaim, &self.host.pool) {
            return vec![text];
        }
        for (at, page) in reclaim.pages {
            give_back(&self.host, &self.oracle, at, page);
        }
        let mut wrong = self.host.notices.take_lost();
        if let Err(error) = self.control.reclaim(&machine.lp(0)) {
            wrong.push(format!("control pages: {error}"));
        }
        wrong.extend(machine.violations().iter().map(|violation| format!("{violation:?}")));
        let lent = self.host.lent_pages();
        if lent > self.outcome.report.totals.pages_poisoned {
            wrong.push(format!("{lent} pages of RAM are still lent"));
        }
        let out = self.host.pool.outstanding();
        for kind in [FrameKind::TeeTable, FrameKind::TeeMetadata, FrameKind::MirrorTable] {
            // The root of the mirror is the table's own.
            let root = u32::from(kind == FrameKind::MirrorTable);
            if out[kind] != self.emergency.count(kind) + root {
                wrong.push(format!(
                    "{} {kind}s never came back",
                    out[kind] - self.emergency.count(kind) - root
                ));
            }
        }
        wrong
    }
}

/// Gives a guest page back to RAM, but for the pages in it that have a memory error: those are never touched again.
fn give_back(host: &Host<'_>, oracle: &Oracle, at: GpaEntry, page: Frame<Tainted>) {
    let region = Region { start: at.gpa().raw(), len: at.level().size() };
    if oracle.find_page(region, Page::is_poisoned).is_none() {
        host.take_back(at, host.table.memory().scrub(page));
        return;
    }
    for (index, part) in (0..).zip(page.into_parts()) {
        if let Some(at) = at.child(index) {
            give_back(host, oracle, at, part);
        }
    }
}
