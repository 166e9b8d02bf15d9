//! The end of a run: the last checks, the layout, the leaves, the sums.

use folio_split::{Empty, FolioLayout, Order};
use gpa_conversion::{Pages, Platform as _};
use sept_core::{FrameKind, FrameNeeds, Gpa, GpaEntry, Level};
use tdx_model::EntryState;
use vmemmap_prealloc::VmemmapBackend as _;

use super::oracle::Page;
use super::{Engine, RunOutcome};
use crate::report::{FolioState, LayoutRun, LeafLevel, LeafRun, LeafState};
use crate::scenario::{PAGE, Region};

impl Engine<'_, '_> {
    /// Ends the run: everything is verified once more, the account is drawn up, the TD is torn down.
    pub(super) fn end(mut self) -> RunOutcome {
        let all: Vec<Region> = self.oracle.ram().collect();
        for region in &all {
            self.verify(*region);
        }
        self.check_invariants(Region { start: 0, len: 1 << 52 }, true);
        self.outcome.report.layout = self.layout();
        self.outcome.report.leaves = self.leaves();
        let balance = self.before.map(|before| self.usage() - before).unwrap_or_default();
        let counters = self.host.mm.counters();
        self.outcome.saved_vmemmap_pages = self.saved_pages();
        let totals = &mut self.outcome.report.totals;
        totals.pool_balance = balance;
        totals.installed_templates = counters.templates;
        totals.vmemmap_pages_in_use = counters.vmemmap_pages;
        for text in self.tear_down() {
            self.violation(format!("teardown: {text}"));
        }
        self.outcome
    }

    /// Folios by address, alike ones together.
    fn layout(&self) -> Vec<LayoutRun> {
        let mut runs: Vec<LayoutRun> = Vec::new();
        let mut add = |start: u64, order: u32, state, count: u64| match runs.last_mut() {
            Some(run)
                if run.order == order
                    && run.state == state
                    && run.start + ((run.count * PAGE) << order) == start =>
            {
                run.count += count;
            }
            _ => runs.push(LayoutRun { start, order, count, state }),
        };
        for ram in self.oracle.ram() {
            if self.host.block_order() == Order::PAGE {
                for run in self.oracle.runs(ram) {
                    add(run.region.start, 0, folio_state(run.page), run.region.len / PAGE);
                }
                continue;
            }
            for block in self.host.blocks(ram) {
                let small = self.host.set_of(&block, Pages::Small);
                for folio in FolioLayout::new(block.pfn(), self.host.orders(), small).folios(0) {
                    let page = folio.base().raw() - block.pfn().base().raw();
                    let gpa = block.gpa().raw() + page * PAGE;
                    let page = self.oracle.page(gpa).unwrap_or(Page::Unaccepted);
                    add(gpa, folio.order().raw().into(), folio_state(page), 1);
                }
            }
        }
        runs
    }

    /// Entries of the module's own S-EPT where walks end, by address, alike ones together.
    fn leaves(&self) -> Vec<LeafRun> {
        let mut runs: Vec<LeafRun> = Vec::new();
        for ram in self.oracle.ram() {
            let end = ram.start + ram.len;
            let mut next = ram.start;
            while next < end {
                let (level, state) = self.leaf(next);
                let start = next - next % level.bytes();
                match runs.last_mut() {
                    Some(run)
                        if run.level == level
                            && run.state == state
                            && run.start + run.count * level.bytes() == start =>
                    {
                        run.count += 1;
                    }
                    _ => runs.push(LeafRun { start, level, count: 1, state }),
                }
                next = start + level.bytes();
            }
        }
        runs
    }

    fn leaf(&self, gpa: u64) -> (LeafLevel, LeafState) {
        let entry = self.host.machine.entry(self.control.tdr.hpa(), Gpa::truncate(gpa), Level::L4K);
        let (level, state) = entry.map_or((2, EntryState::Free), |entry| (entry.level, entry.state));
        let level = match level {
            0 => LeafLevel::Page4K,
            1 => LeafLevel::Block2M,
            _ => LeafLevel::Block1G,
        };
        let state = match state {
            EntryState::Mapped => LeafState::Mapped,
            EntryState::Pending => LeafState::Pending,
            EntryState::Free => LeafState::Free,
            _ => LeafState::Blocked,
        };
        (level, state)
    }

    /// The most frames that isolating one page can take: a folio and a leaf of the largest size are split to pages.
    pub(super) fn worst_isolation(&self) -> FrameNeeds {
        let order = self.host.block_order();
        let Some(block) =
            self.oracle.ram().next().and_then(|ram| self.host.block_of(Gpa::truncate(ram.start)))
        else {
            return FrameNeeds::NONE;
        };
        let whole = FolioLayout::new(block.pfn(), self.host.orders(), Empty);
        let split = FolioLayout::new(block.pfn(), self.host.orders(), 0..1_u64);
        let geometry = self.host.mm.geometry();
        let own = |counts| geometry.own_pages(counts);
        let pages = if self.scenario.backing.hvo && order > Order::PAGE {
            own(&split.counts()).saturating_sub(own(&whole.counts()))
        } else {
            0
        };
        let mut needs = FrameNeeds::of(FrameKind::Vmemmap, u32::try_from(pages).unwrap_or(u32::MAX));
        let largest = Level::within_order(whole.folio_at(0).order().raw());
        for level in [Level::L2M, Level::L1G].into_iter().filter(|level| *level <= largest) {
            let at = GpaEntry::containing(block.gpa(), level);
            needs = needs.plus(self.host.table.table_cost(at, Some(block.hpa(at.gpa()))));
        }
        needs
    }
}

fn folio_state(page: Page) -> FolioState {
    match page {
        Page::Poisoned | Page::PoisonedShared => FolioState::Poisoned,
        Page::Shared(_) => FolioState::Shared,
        Page::Unaccepted | Page::Private(_) => FolioState::Private,
    }
}
