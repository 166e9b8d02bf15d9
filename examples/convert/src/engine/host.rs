//! The host that the scenario runs on: its memory, its record of attributes, and what it lends to the TD.
//!
//! [`Host`] is what a hypervisor would be: it implements [`Platform`] and owns everything that the library crates
//! only borrow. One thread; every borrow of the record ends with the call that makes it.

use std::cell::RefCell;
use std::ops::Range;

use folio_split::{Order, OrderSet, PageSet, Pfn, PfnBlock};
use gpa_conversion::{Block, Pages, Platform, Scope, Visibility};
use seamcall::Td;
use sept_core::test_util::{Arena, FramePool, Kick, VecStore};
use sept_core::{Frame, Gpa, GpaEntry, GpaRange, Hpa, SecurePageTable, Tainted, TdxMirror};
use tdx_model::Machine;
use vmemmap_prealloc::model::HostModel;

use super::notices::Notices;
use super::ram::Ram;
use super::sets::first_outside;
use super::td::Counted;
use crate::scenario::{PAGE, Region};

/// The secure page table of the TD.
pub(super) type Table<'m> = SecurePageTable<TdxMirror, Arena, Td<Counted<'m>, Kick<'m>, (), &'m Notices>>;

/// The host.
#[derive(Debug)]
pub(super) struct Host<'m> {
    /// The machine.
    pub machine: &'m Machine,
    /// The secure page table of the TD.
    pub table: Table<'m>,
    /// Folios, their index and the vmemmap, modelled as memory.
    pub mm: HostModel,
    /// The page source.
    pub pool: FramePool,
    /// What the TD dealt with by itself.
    pub notices: &'m Notices,
    orders: OrderSet,
    block_order: Order,
    ram: RefCell<Vec<Ram>>,
    claims: RefCell<Vec<(GpaRange, Scope)>>,
    converting: RefCell<Vec<GpaRange>>,
}

impl<'m> Host<'m> {
    /// A host without RAM.
    pub(super) fn new(
        machine: &'m Machine,
        table: Table<'m>,
        (mm, pool): (HostModel, FramePool),
        notices: &'m Notices,
        (orders, block_order): (OrderSet, Order),
    ) -> Self {
        Self {
            machine,
            table,
            mm,
            pool,
            notices,
            orders,
            block_order,
            ram: RefCell::default(),
            claims: RefCell::default(),
            converting: RefCell::default(),
        }
    }

    /// Order of the provider's blocks.
    pub(super) fn block_order(&self) -> Order {
        self.block_order
    }

    /// Adds RAM at `base`: private, unmapped. Its pages are small where a block's order is no folio order.
    pub(super) fn add_ram(&self, region: Region, base: Hpa) {
        self.ram.borrow_mut().push(Ram::new(region, base));
    }

    /// The blocks of `region`.
    pub(super) fn blocks(&self, region: Region) -> impl Iterator<Item = Block> {
        let starts = (region.start..region.start + region.len).step_by(self.block_bytes());
        starts.filter_map(|gpa| self.block_of(Gpa::truncate(gpa)))
    }

    fn block_bytes(&self) -> usize {
        usize::try_from(self.block_order.pages() * PAGE).unwrap_or(usize::MAX)
    }

    fn with_ram<T>(&self, gpa: u64, work: impl FnOnce(&Ram) -> T) -> Option<T> {
        self.ram.borrow().iter().find(|ram| gpa.wrapping_sub(ram.region.start) < ram.region.len).map(work)
    }

    fn with_ram_mut<T>(&self, gpa: u64, work: impl FnOnce(&mut Ram) -> T) -> Option<T> {
        let mut all = self.ram.borrow_mut();
        all.iter_mut().find(|ram| gpa.wrapping_sub(ram.region.start) < ram.region.len).map(work)
    }

    /// Each RAM, and the part of `range` in it, changed by `work`.
    fn each_ram(&self, range: GpaRange, mut work: impl FnMut(&mut Ram, Range<u64>)) {
        for ram in self.ram.borrow_mut().iter_mut() {
            let window = ram.window(range);
            if !window.is_empty() {
                work(ram, window);
            }
        }
    }

    /// Host address of the page that the guest sees at `gpa`.
    pub(super) fn hpa(&self, gpa: u64) -> Option<Hpa> {
        self.with_ram(gpa, |ram| Hpa::truncate(ram.base.raw() + (gpa - ram.region.start)))
    }

    /// The host maps shared pages and holds a reference on each.
    pub(super) fn pin(&self, range: GpaRange) {
        self.map(range);
        self.each_ram(range, |ram, window| {
            for page in Ram::gaps(&ram.poisoned, window).into_iter().flatten() {
                *ram.pins.entry(page).or_default() += 1;
                let taken = self.mm.pin(Pfn::containing(ram.hpa(page)));
                self.counted(taken, ram.gpa(page));
            }
        });
    }

    /// Drops one reference on each page.
    pub(super) fn unpin(&self, range: GpaRange) {
        self.each_ram(range, |ram, window| {
            for page in window {
                let Some(count) = ram.pins.get_mut(&page) else { continue };
                *count -= 1;
                if *count == 0 {
                    ram.pins.remove(&page);
                }
                let dropped = self.mm.unpin(Pfn::containing(ram.hpa(page)));
                self.counted(dropped, ram.gpa(page));
            }
        });
    }

    /// Reports a `struct page` that did not take a change. Memory in 4 KiB blocks has none in the model.
    fn counted(&self, done: bool, gpa: Gpa) {
        if !done && self.block_order > Order::PAGE {
            self.notices.not_counted(gpa);
        }
    }

    /// First page of `range` that the host holds no reference on, poisoned ones aside.
    pub(super) fn next_unpinned(&self, range: GpaRange) -> Option<Gpa> {
        let mut first = None;
        self.each_ram(range, |ram, window| {
            let mut pages = Ram::gaps(&ram.poisoned, window).into_iter().flatten();
            let found = pages.find(|page| !ram.pins.contains_key(page)).map(|page| ram.gpa(page));
            first = first.or(found);
        });
        first
    }

    /// The host maps shared pages of `range` for itself.
    pub(super) fn map(&self, range: GpaRange) {
        self.each_ram(range, |ram, window| ram.mapped.set(window, true));
    }

    /// The first page that the host maps although it is private (I6).
    pub(super) fn mapped_private(&self) -> Option<Gpa> {
        self.ram.borrow().iter().find_map(|ram| {
            let stray = first_outside(&ram.mapped, &ram.shared)?;
            Some(ram.gpa(stray))
        })
    }

    /// Pages of guest RAM that are lent to the TD.
    pub(super) fn lent_pages(&self) -> u64 {
        self.ram.borrow().iter().map(|ram| ram.ledger.lent_pages()).sum()
    }

    /// Whether nothing is claimed or marked as converting.
    pub(super) fn is_idle(&self) -> bool {
        self.claims.borrow().is_empty() && self.converting.borrow().is_empty()
    }

    /// The page set of one block, read by folio-split.
    pub(super) fn set_of<'a>(&'a self, block: &'a Block, set: Pages) -> impl PageSet + 'a {
        struct Set<'a, 'm>(&'a Host<'m>, &'a Block, Pages);
        impl PageSet for Set<'_, '_> {
            fn next_run(&self, from: u64) -> Option<Range<u64>> {
                self.0.next_run(self.1, self.2, from)
            }
        }
        Set(self, block, set)
    }
}

impl<'m> Platform for Host<'m> {
    type Tee = Table<'m>;
    type Folios = HostModel;
    type Vmemmap = HostModel;
    type Claim = GpaRange;
    type Store = VecStore;
    type Flush = ();

    fn tee(&self) -> &Table<'m> {
        &self.table
    }

    fn folios(&self) -> &HostModel {
        &self.mm
    }

    fn vmemmap(&self) -> &HostModel {
        &self.mm
    }

    fn orders(&self) -> OrderSet {
        self.orders
    }

    fn block_of(&self, gpa: Gpa) -> Option<Block> {
        self.with_ram(gpa.raw(), |ram| {
            let bytes = self.block_order.pages() * PAGE;
            let offset = (gpa.raw() - ram.region.start) & !(bytes - 1);
            let pfn = PfnBlock::new(Pfn::containing(ram.hpa(offset / PAGE)), self.block_order)?;
            Block::new(pfn, ram.gpa(offset / PAGE))
        })?
    }

    fn next_run(&self, block: &Block, set: Pages, from: u64) -> Option<Range<u64>> {
        self.with_ram(block.gpa().raw(), |ram| {
            let first = (block.gpa().raw() - ram.region.start) / PAGE;
            let pages = block.pfn().pages();
            let run = ram.set(set).next_run(first + from)?;
            (run.start < first + pages).then(|| run.start - first..(run.end - first).min(pages))
        })?
    }

    fn set_small(&self, block: &Block, window: Range<u64>, small: bool) {
        self.with_ram_mut(block.gpa().raw(), |ram| {
            let first = (block.gpa().raw() - ram.region.start) / PAGE;
            ram.small.set(first + window.start..first + window.end, small);
        });
    }

    fn set_visibility(&self, range: GpaRange, to: Visibility) {
        let machine = self.machine;
        self.each_ram(range, |ram, window| {
            for run in Ram::gaps(&ram.poisoned, window) {
                if to == Visibility::Shared {
                    // What the host kept while the page was private must not reach the guest.
                    for fresh in Ram::gaps(&ram.shared, run.clone()) {
                        machine.host_zero(ram.hpa(fresh.start), fresh.end - fresh.start);
                    }
                }
                ram.shared.set(run, to == Visibility::Shared);
            }
        });
    }

    fn visibility(&self, gpa: Gpa) -> Visibility {
        let shared =
            self.with_ram(gpa.raw(), |ram| ram.shared.contains((gpa.raw() - ram.region.start) / PAGE));
        if shared == Some(true) { Visibility::Shared } else { Visibility::Private }
    }

    fn next_pinned(&self, range: GpaRange) -> Option<Gpa> {
        let mut first = None;
        self.each_ram(range, |ram, window| {
            // References on a page that is lost to an error stand in nobody's way.
            let mut pinned = ram.pins.range(window).filter(|(page, _)| !ram.poisoned.contains(**page));
            first = first.or(pinned.next().map(|(page, _)| ram.gpa(*page)));
        });
        first
    }

    fn set_converting(&self, range: GpaRange, converting: bool) {
        let mut all = self.converting.borrow_mut();
        if converting {
            all.push(range);
        } else {
            all.retain(|other| *other != range);
        }
    }

    fn unmap_host(&self, range: GpaRange) {
        self.each_ram(range, |ram, window| ram.mapped.set(window, false));
    }

    fn host_flushed(&self, (): ()) -> bool {
        true
    }

    fn lend(&self, at: GpaEntry) -> Option<Frame> {
        let frame = self.with_ram(at.gpa().raw(), |ram| {
            let page = (at.gpa().raw() - ram.region.start) / PAGE;
            let poisoned =
                ram.poisoned.next_run(page).is_some_and(|run| run.start < page + at.level().pages());
            if poisoned { None } else { ram.ledger.lend(ram.hpa(page), at.level()) }
        })??;
        self.machine.host_flush(frame.hpa(), at.level().pages());
        Some(frame)
    }

    fn take_back(&self, at: GpaEntry, page: Frame) {
        let taken = self.with_ram(at.gpa().raw(), |ram| ram.ledger.take_back(page));
        if !matches!(taken, Some(Ok(()))) {
            self.notices.lost(at);
        }
    }

    fn poison(&self, gpa: Gpa, page: Option<Frame<Tainted>>) {
        // The frame is never used again: its ledger keeps it as lent.
        let _lent = page;
        self.with_ram_mut(gpa.raw(), |ram| {
            let page = (gpa.raw() - ram.region.start) / PAGE;
            ram.poisoned.set(page..page + 1, true);
            ram.small.set(page..page + 1, true);
            ram.mapped.set(page..page + 1, false);
            let marked = self.mm.poison(Pfn::containing(ram.hpa(page)));
            self.counted(marked, gpa);
        });
    }

    fn claim(&self, range: GpaRange, scope: Scope) -> Option<GpaRange> {
        let bytes = self.block_order.pages() * PAGE;
        let blocks = |range: GpaRange| (range.start().raw() / bytes, range.end().div_ceil(bytes));
        let mut claims = self.claims.borrow_mut();
        let in_the_way = claims.iter().any(|(other, theirs)| {
            let (mine, other_blocks) = (blocks(range), blocks(*other));
            let same_block = mine.0 < other_blocks.1 && other_blocks.0 < mine.1;
            range.intersect(*other).is_some()
                || scope == Scope::Blocks && *theirs == Scope::Blocks && same_block
        });
        if in_the_way {
            return None;
        }
        claims.push((range, scope));
        Some(range)
    }

    fn release(&self, claim: GpaRange) {
        let mut claims = self.claims.borrow_mut();
        if let Some(at) = claims.iter().position(|(range, _)| *range == claim) {
            claims.swap_remove(at);
        }
    }
}
