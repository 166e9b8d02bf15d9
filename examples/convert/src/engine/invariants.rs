//! Invariants I1 to I9, checked after every operation.
//!
//! [`Engine::check_invariants`] is the one place. What it compares are independent records of the same thing: the
//! host's mirror with the module's S-EPT, the folio layout with the `struct page`s and the index, the page source's
//! account with the tables that exist, the attributes with who can reach a page, and the scenario's own rules with
//! contents.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use folio_split::{FolioLayout, Order, PageSet, Pfn};
use gpa_conversion::{Block, Pages, Platform as _};
use sept_core::{Entry, FrameKind, FrameStore as _, Gpa, GpaEntry, GpaRange, LeafState, Level};
use tdx_model::EntryState;
use vmemmap_prealloc::VmemmapBackend as _;

use super::Engine;
use super::sets::first_outside;
use crate::report::{OpReport, Outcome, Resources};
use crate::scenario::Region;

impl Engine<'_, '_> {
    /// Everything that must hold, in the part of the guest that an operation could touch; contents and the module's
    /// whole state only when all is asked for.
    pub(super) fn check_invariants(&mut self, scope: Region, all: bool) {
        self.outcome.report.totals.invariant_checks += 1;
        let mut broken = Vec::new();
        let ram: Vec<Region> = self.oracle.ram().filter_map(|ram| intersect(ram, scope)).collect();
        for region in &ram {
            if !self.fatal {
                self.leaves_agree(*region, &mut broken);
            }
            self.folios_agree(*region, &mut broken);
        }
        self.memory_agrees(all, &mut broken);
        if all && !self.fatal {
            broken.extend(
                self.host.machine.check_invariants().into_iter().map(|text| format!("module: {text}")),
            );
        }
        for text in broken {
            self.violation(text);
        }
    }

    /// I1, I6, I8: each leaf is one page of the right memory, no larger than its folio, private, and what the module
    /// has.
    fn leaves_agree(&self, region: Region, broken: &mut Vec<String>) {
        let Some(range) = Gpa::new(region.start).and_then(|gpa| GpaRange::new(gpa, region.len)) else {
            return;
        };
        let tdr = self.control.tdr.hpa();
        let mut block: Option<Block> = None;
        let mut clear = [0; 2];
        for found in self.host.table.entries(range) {
            let at = found.at;
            let state = match found.entry {
                Entry::Leaf { state, blocked: None, .. } if !found.hidden => Some(state),
                Entry::Free => None,
                other => {
                    broken.push(format!("{at} was left {other}"));
                    continue;
                }
            };
            if let Some(real) = self.host.machine.entry(tdr, at.gpa(), at.level()) {
                let same = match (state, real.state) {
                    (None, EntryState::Free) => true,
                    (Some(LeafState::Mapped), EntryState::Mapped)
                    | (Some(LeafState::Pending), EntryState::Mapped | EntryState::Pending) => {
                        real.level == at.level().raw()
                            && Some(real.hpa) == self.host.hpa(at.gpa().raw()).map(|h| h.raw())
                    }
                    _ => false,
                };
                if !same {
                    broken.push(format!("{at} is {} in the mirror, {real:x?} in the S-EPT", found.entry));
                }
            }
            if state.is_none() {
                continue;
            }
            if block.is_none_or(|block| at.gpa().raw() >= block.end()) {
                block = self.host.block_of(at.gpa());
                clear = [0; 2];
            }
            let Some(block) = &block else {
                broken.push(format!("{at} maps no memory"));
                continue;
            };
            self.leaf_fits(at, block, &mut clear, broken);
        }
    }

    /// `clear`: up to which page of the block nothing is shared, and nothing is poisoned, as far as was seen.
    fn leaf_fits(&self, at: GpaEntry, block: &Block, clear: &mut [u64; 2], broken: &mut Vec<String>) {
        let page = block.page(at.gpa());
        // No folio is smaller than the smallest leaf.
        if at.level() > Level::L4K {
            let pfn = Pfn::containing(block.hpa(at.gpa()));
            let folio = self.host.mm.index_entry(pfn).map_or(0, |folio| folio.order().raw());
            if at.level().order() > folio {
                broken.push(format!("I1: leaf {at} is larger than its folio of order {folio}"));
            }
        }
        for ((set, what), clear) in
            [(Pages::Shared, "shared"), (Pages::Poisoned, "poisoned")].into_iter().zip(clear)
        {
            let end = page + at.level().pages();
            if end <= *clear {
                continue;
            }
            *clear = self.host.next_run(block, set, page).map_or(u64::MAX, |run| run.start);
            if *clear < end {
                broken.push(format!("I6: leaf {at} maps a {what} page"));
            }
        }
    }

    /// I4, I9: the folios are the coarsest ones, and every `struct page` and index entry says so.
    fn folios_agree(&self, region: Region, broken: &mut Vec<String>) {
        if self.host.block_order() == Order::PAGE {
            return;
        }
        for block in self.host.blocks(region) {
            let layout =
                FolioLayout::new(block.pfn(), self.host.orders(), self.host.set_of(&block, Pages::Small));
            if let Err(text) = self.host.mm.check(&layout) {
                broken.push(format!("I9: {text}"));
            }
            if !self.is_eager() {
                continue;
            }
            let must = (self.host.set_of(&block, Pages::Shared), self.host.set_of(&block, Pages::Poisoned));
            let must = folio_split::Union(must.0, must.1);
            let small = self.host.set_of(&block, Pages::Small);
            if let Some(page) = first_outside(&small, &must).or_else(|| first_outside(&must, &small)) {
                broken.push(format!("I4: page {page} of {} is in no folio of its proper order", block.pfn()));
            }
        }
    }

    /// I3, I6, I7: what is in use is what was taken; nothing is left claimed; nothing is mapped that must not be.
    fn memory_agrees(&mut self, all: bool, broken: &mut Vec<String>) {
        if let Some(gpa) = self.host.mapped_private() {
            broken.push(format!("I6: the host maps {gpa:#x}, which is private"));
        }
        if !self.host.is_idle() {
            broken.push("a claim was left behind".into());
        }
        broken.extend(self.host.notices.take_lost());
        broken.extend(
            self.host.pool.faults().iter().map(|(hpa, kind)| format!("{kind} {hpa:#x} given back twice")),
        );
        let violations = self.host.machine.violations();
        if !violations.is_empty() {
            broken.extend(violations.iter().map(|violation| format!("machine: {violation:?}")));
            self.host.machine.clear_violations();
        }
        if let Err(text) = self.host.mm.check_host() {
            broken.push(format!("I9: {text}"));
        }
        if !all || self.fatal {
            return;
        }
        let (tables, leaves) = self.count_tables();
        let held = |kind| self.emergency.count(kind);
        let out = self.host.pool.outstanding();
        for kind in [FrameKind::MirrorTable, FrameKind::TeeTable] {
            // The root of the S-EPT is a control page of the TD.
            let root = u64::from(kind == FrameKind::MirrorTable);
            if u64::from(out[kind] - held(kind)) != tables + root {
                broken.push(format!("I3: {} {kind}s are out, {tables} tables exist", out[kind] - held(kind)));
            }
        }
        let counters = self.host.mm.counters();
        for (kind, have) in [
            (FrameKind::Vmemmap, counters.vmemmap_pages + counters.replaced_pages),
            (FrameKind::VmemmapTable, counters.tables),
            (FrameKind::TailTemplate, counters.templates),
        ] {
            if u64::from(out[kind] - held(kind)) != have {
                broken.push(format!("I3: {} {kind}s are out, {have} are in use", out[kind] - held(kind)));
            }
        }
        // A page with an error that was mapped stays lent for good.
        let (lent, poisoned) = (self.host.lent_pages(), self.outcome.report.totals.pages_poisoned);
        if lent < leaves || lent > leaves + poisoned {
            broken.push(format!("{lent} pages are lent, {leaves} are mapped, {poisoned} are poisoned"));
        }
    }

    /// Tables below the root of the mirror, and pages that leaves map.
    fn count_tables(&self) -> (u64, u64) {
        let (mut tables, mut pages) = (0, 0);
        let mut seen = [None; 4];
        for ram in self.oracle.ram() {
            let Some(range) = Gpa::new(ram.start).and_then(|gpa| GpaRange::new(gpa, ram.len)) else {
                continue;
            };
            for found in self.host.table.entries(range) {
                if let Entry::Leaf { .. } = found.entry {
                    pages += found.at.level().pages();
                }
                for (level, seen) in
                    [Level::L2M, Level::L1G, Level::L512G, Level::L256T].into_iter().zip(&mut seen)
                {
                    let above = GpaEntry::containing(found.at.gpa(), level);
                    let is_table = level > found.at.level() && level <= self.host.table.config().top();
                    if is_table && *seen != Some(above) {
                        *seen = Some(above);
                        tables += 1;
                    }
                }
            }
        }
        (tables, pages)
    }

    /// I3 and I7 for one operation: what was planned, used, reserved and given back.
    pub(super) fn hold_to_account(&mut self, report: &OpReport) {
        if report.result == Outcome::Ok && report.used != report.planned {
            self.violation(format!("I3: planned {:?}, used {:?}", report.planned, report.used));
        }
        let over = report.releasable - report.released;
        let counts = [
            over.vmemmap_pages,
            over.vmemmap_tables,
            over.index_nodes,
            over.sept_pages,
            over.mirror_pages,
            over.dpamt_pages,
        ];
        if counts.iter().any(|count| *count < 0) {
            self.violation(format!("I3: releasable {:?}, released {:?}", report.releasable, report.released));
        }
    }

    /// What is in use, reservations aside.
    pub(super) fn usage(&self) -> Resources {
        let counters = self.host.mm.counters();
        let out = self.host.pool.outstanding();
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let pool = |kind| i64::from(out[kind]) - i64::from(self.emergency.count(kind));
        Resources {
            vmemmap_pages: signed(counters.vmemmap_pages),
            vmemmap_tables: signed(counters.tables),
            index_nodes: signed(counters.index_nodes),
            sept_pages: pool(FrameKind::TeeTable),
            mirror_pages: pool(FrameKind::MirrorTable),
            dpamt_pages: pool(FrameKind::TeeMetadata),
        }
    }

    /// vmemmap pages that the optimization saves now.
    pub(super) fn saved_pages(&self) -> u64 {
        let ram: Vec<Region> = self.oracle.ram().collect();
        let blocks = ram.iter().flat_map(|region| self.host.blocks(*region));
        if !self.scenario.backing.hvo || self.host.block_order() == Order::PAGE {
            return 0;
        }
        let geometry = self.host.mm.geometry();
        blocks
            .map(|block| {
                let small = self.host.set_of(&block, Pages::Small);
                let layout = FolioLayout::new(block.pfn(), self.host.orders(), small);
                geometry.vmemmap_pages(block.pfn().order()) - geometry.own_pages(&layout.counts())
            })
            .sum()
    }

    /// I5: folios, attributes, pages and tables of the TD and memory in use, as one number. Leaves themselves are not
    /// read: one that came, went or changed its size changes the number of pages lent or of tables.
    pub(super) fn digest(&self, scope: Region) -> u64 {
        let mut hash = DefaultHasher::new();
        for ram in self.oracle.ram().filter_map(|ram| intersect(ram, scope)) {
            for block in self.host.blocks(ram) {
                for set in [Pages::Small, Pages::Shared, Pages::Poisoned] {
                    let set = self.host.set_of(&block, set);
                    let mut from = 0;
                    while let Some(run) = set.next_run(from) {
                        from = run.end;
                        run.hash(&mut hash);
                    }
                }
            }
        }
        self.host.lent_pages().hash(&mut hash);
        format!("{:?}", self.usage()).hash(&mut hash);
        hash.finish()
    }
}

/// The part that two regions share.
pub(super) fn intersect(a: Region, b: Region) -> Option<Region> {
    let start = a.start.max(b.start);
    let end = (a.start + a.len).min(b.start + b.len);
    (start < end).then(|| Region { start, len: end - start })
}
