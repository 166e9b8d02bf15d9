//! A host in plain memory: the mock TEE behind the real table, the model of folios and vmemmap, page sets as runs.

use super::runs::Runs;
use core::ops::Range;
use folio_split::{Order, OrderSet, Pfn, PfnBlock};
use gpa_conversion::{Block, Needs, Pages, Platform, Scope, Visibility};
use sept_core::test_util::{Arena, FramePool, MockTee, RamLedger, VecStore};
use sept_core::{
    Frame, FrameKind, FrameNeeds, FrameSource, FrameStore, Gpa, GpaEntry, GpaRange, Hpa, Level,
    SecurePageTable, Tainted, TdxConfig, TdxMirror,
};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};
use vmemmap_prealloc::{Geometry, install_templates, model::HostModel};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const BASE: u64 = 0x8000_0000;
const RAM: u64 = 0x40_0000_0000;
const POOL: u64 = 0x1_0000_0000;
const FRAMES: u64 = 1 << 15;

pub(crate) type Table = SecurePageTable<TdxMirror, Arena, MockTee>;

/// A store that can be full.
#[derive(Debug, Default)]
pub(crate) struct Store {
    frames: VecStore,
    room: Option<u32>,
}

impl Store {
    pub(crate) fn with_room(room: u32) -> Self {
        Self { room: Some(room), ..Self::default() }
    }

    pub(crate) fn counts(&self) -> FrameNeeds {
        let mut counts = FrameNeeds::NONE;
        for kind in FrameKind::ALL {
            counts[kind] = self.count(kind);
        }
        counts
    }
}

impl FrameStore for Store {
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        if self.room == Some(0) {
            return Err(frame);
        }
        self.room = self.room.map(|room| room - 1);
        self.frames.put(kind, frame)
    }

    fn get(&mut self, kind: FrameKind) -> Option<Frame> {
        let frame = self.frames.get(kind)?;
        self.room = self.room.map(|room| room + 1);
        Some(frame)
    }

    fn count(&self, kind: FrameKind) -> u32 {
        self.frames.count(kind)
    }
}

/// Something that happens in the middle of a call.
type Hook = Box<dyn FnOnce(&Host) + Send>;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) small: Runs,
    pub(crate) shared: Runs,
    pub(crate) poisoned: Runs,
    pub(crate) mapped: Runs,
    pub(crate) pins: BTreeMap<u64, u32>,
    pub(crate) claims: Vec<(GpaRange, Scope)>,
    pub(crate) converting: Vec<GpaRange>,
    /// Pages that came back from the TEE since this was last emptied.
    pub(crate) returned: Runs,
    /// Frames of broken pages: never used again, nor dropped.
    pub(crate) broken: Vec<Frame<Tainted>>,
    /// What other reservations hold.
    pub(crate) elsewhere: Needs,
    pub(crate) looks: u64,
    /// Whether a lost TEE may have kept frames.
    pub(crate) leaky: bool,
    pub(crate) hold_flush: bool,
    pub(crate) at_flush_end: Option<Hook>,
    pub(crate) at_converting: Option<Hook>,
    pub(crate) faults: Vec<String>,
}

pub(crate) struct Host {
    pub(crate) table: Table,
    pub(crate) mm: HostModel,
    pub(crate) pool: FramePool,
    pub(crate) ram: RamLedger,
    pub(crate) state: Mutex<State>,
    pub(crate) orders: OrderSet,
    pub(crate) block_order: Order,
    pub(crate) blocks: u64,
}

pub(crate) fn orders(list: &[u8]) -> OrderSet {
    OrderSet::new(list.iter().map(|&order| Order::new(order).unwrap())).unwrap()
}

impl Host {
    pub(crate) fn new(block_order: u8, blocks: u64, orders: OrderSet) -> Self {
        Self::with(block_order, blocks, orders, MockTee::new(Level::L512G))
    }

    /// A TEE whose tables of 4 KiB entries cost two metadata pages more.
    pub(crate) fn with_metadata(block_order: u8, blocks: u64, orders: OrderSet) -> Self {
        Self::with(block_order, blocks, orders, MockTee::new(Level::L512G).with_metadata())
    }

    fn with(block_order: u8, blocks: u64, orders: OrderSet, tee: MockTee) -> Self {
        let block_order = Order::new(block_order).unwrap();
        let pool = FramePool::new(Hpa::truncate(POOL), FRAMES);
        let mm = HostModel::new(Geometry::LINUX_X86_64, orders);
        let pages = blocks * block_order.pages();
        let first = PfnBlock::new(Pfn::containing(Hpa::truncate(RAM)), block_order).unwrap();
        install_templates(&mm, first, orders, &pool).unwrap();
        for block in 0..blocks {
            let hpa = Hpa::truncate(RAM + block * block_order.pages() * PAGE);
            mm.add_block(PfnBlock::new(Pfn::containing(hpa), block_order).unwrap(), &pool).unwrap();
        }
        let root = pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
        let arena = Arena::new(Hpa::truncate(POOL), usize::try_from(FRAMES).unwrap(), Box::new(|_, _| {}));
        let table = SecurePageTable::new(TdxConfig::LEVELS_4, arena, tee, root);
        let ram = RamLedger::new(Hpa::truncate(RAM), pages);
        Self { table, mm, pool, ram, state: Mutex::default(), orders, block_order, blocks }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn mock(&self) -> &MockTee {
        self.table.external()
    }

    pub(crate) fn pages(&self) -> u64 {
        self.blocks * self.block_order.pages()
    }

    /// Pages of `range`, from the start of RAM.
    pub(crate) fn window(range: GpaRange) -> Range<u64> {
        (range.start().raw() - BASE) / PAGE..(range.end() - BASE) / PAGE
    }

    pub(crate) fn gpa(page: u64) -> Gpa {
        Gpa::truncate(BASE + page * PAGE)
    }

    pub(crate) fn page(gpa: Gpa) -> u64 {
        (gpa.raw() - BASE) / PAGE
    }

    pub(crate) fn range(pages: Range<u64>) -> GpaRange {
        GpaRange::new(Self::gpa(pages.start), (pages.end - pages.start) * PAGE).unwrap()
    }

    pub(crate) fn pfn(page: u64) -> Pfn {
        Pfn::containing(Hpa::truncate(RAM + page * PAGE))
    }

    /// The host takes a reference on a page, shared or not.
    pub(crate) fn pin(&self, page: u64) {
        assert!(self.mm.pin(Self::pfn(page)), "page {page} cannot be pinned");
        *self.state().pins.entry(page).or_default() += 1;
    }

    pub(crate) fn unpin(&self, page: u64) {
        assert!(self.mm.unpin(Self::pfn(page)), "page {page} is not pinned");
        let mut state = self.state();
        let count = state.pins.get_mut(&page).unwrap();
        *count -= 1;
        if *count == 0 {
            state.pins.remove(&page);
        }
    }

    /// The guest accepts a page it can reach.
    pub(crate) fn accept(&self, page: u64) -> bool {
        self.mock().accept(Self::gpa(page))
    }

    fn fault(&self, text: String) {
        self.state().faults.push(text);
    }
}

impl Platform for Host {
    type Tee = Table;
    type Folios = HostModel;
    type Vmemmap = HostModel;
    type Claim = GpaRange;
    type Store = Store;
    type Flush = ();

    fn tee(&self) -> &Table {
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
        let page = gpa.raw().checked_sub(BASE)? / PAGE;
        let first = page & !(self.block_order.pages() - 1);
        let pfn = PfnBlock::new(Self::pfn(first), self.block_order)?;
        (page < self.pages()).then(|| Block::new(pfn, Self::gpa(first)))?
    }

    fn next_run(&self, block: &Block, set: Pages, from: u64) -> Option<Range<u64>> {
        let state = self.state();
        let set = match set {
            Pages::Small => &state.small,
            Pages::Shared => &state.shared,
            Pages::Poisoned => &state.poisoned,
        };
        let (first, pages) = (Self::page(block.gpa()), block.pfn().pages());
        let run = set.next(first + from)?;
        (run.start < first + pages).then(|| run.start - first..(run.end - first).min(pages))
    }

    fn set_small(&self, block: &Block, window: Range<u64>, small: bool) {
        let first = Self::page(block.gpa());
        self.state().small.set(first + window.start..first + window.end, small);
    }

    fn set_visibility(&self, range: GpaRange, to: Visibility) {
        let mut state = self.state();
        let shared = to == Visibility::Shared;
        let State { shared: attribute, mapped, poisoned, .. } = &mut *state;
        // The host maps what it may.
        for set in [attribute, mapped] {
            for page in Self::window(range)
                .filter(|&page| set.has(page) != shared && !poisoned.has(page))
                .collect::<Vec<_>>()
            {
                set.set(page..page + 1, shared);
            }
        }
    }

    fn visibility(&self, gpa: Gpa) -> Visibility {
        if self.state().shared.has(Self::page(gpa)) { Visibility::Shared } else { Visibility::Private }
    }

    fn next_pinned(&self, range: GpaRange) -> Option<Gpa> {
        self.state().pins.range(Self::window(range)).next().map(|(&page, _)| Self::gpa(page))
    }

    fn set_converting(&self, range: GpaRange, converting: bool) {
        let hook = if converting { self.state().at_converting.take() } else { None };
        if let Some(hook) = hook {
            hook(self);
        }
        let mut state = self.state();
        match (converting, state.converting.iter().position(|&other| other == range)) {
            (true, _) => state.converting.push(range),
            (false, Some(at)) => drop(state.converting.swap_remove(at)),
            (false, None) => state.faults.push(format!("{range} was not converting")),
        }
    }

    fn unmap_host(&self, range: GpaRange) {
        self.state().mapped.set(Self::window(range), false);
    }

    fn host_flushed(&self, (): ()) -> bool {
        if self.state().hold_flush {
            return false;
        }
        let hook = self.state().at_flush_end.take();
        if let Some(hook) = hook {
            hook(self);
        }
        true
    }

    fn lend(&self, at: GpaEntry) -> Option<Frame> {
        let page = Self::page(at.gpa());
        let pages = page..page + at.level().pages();
        if self.state().poisoned.meets(pages.clone()) {
            return None;
        }
        if self.state().shared.meets(pages.clone()) || self.state().mapped.meets(pages) {
            self.fault(format!("{at} lent while shared or mapped"));
        }
        self.ram.lend(Self::pfn(page).hpa(), at.level())
    }

    fn take_back(&self, at: GpaEntry, page: Frame) {
        let first = Self::page(at.gpa());
        self.state().returned.set(first..first + at.level().pages(), true);
        if let Err(page) = self.ram.take_back(page) {
            self.fault(format!("{page:?} of {at} was not lent"));
        }
    }

    fn poison(&self, gpa: Gpa, page: Option<Frame<Tainted>>) {
        let at = Self::page(gpa);
        if page.as_ref().is_some_and(|page| page.level() != Level::L4K || page.hpa() != Self::pfn(at).hpa()) {
            self.fault(format!("page {at} poisoned with {page:?}"));
        }
        if !self.mm.poison(Self::pfn(at)) {
            self.fault(format!("page {at} does not own its struct page"));
        }
        let mut state = self.state();
        state.poisoned.set(at..at + 1, true);
        state.mapped.set(at..at + 1, false);
        state.broken.extend(page);
    }

    fn claim(&self, range: GpaRange, scope: Scope) -> Option<GpaRange> {
        let bytes = self.block_order.pages() * PAGE;
        let blocks = |range: GpaRange| range.start().raw() / bytes..range.end().div_ceil(bytes);
        let mine = blocks(range);
        let mut state = self.state();
        let in_the_way = state.claims.iter().any(|&(other, theirs)| {
            let theirs_blocks = blocks(other);
            let apart = theirs_blocks.end <= mine.start || mine.end <= theirs_blocks.start;
            range.intersect(other).is_some() || scope == Scope::Blocks && theirs == Scope::Blocks && !apart
        });
        if in_the_way {
            return None;
        }
        state.claims.push((range, scope));
        Some(range)
    }

    fn release(&self, claim: GpaRange) {
        let mut state = self.state();
        match state.claims.iter().position(|&(other, _)| other == claim) {
            Some(at) => drop(state.claims.swap_remove(at)),
            None => state.faults.push(format!("{claim} was not claimed")),
        }
    }
}
