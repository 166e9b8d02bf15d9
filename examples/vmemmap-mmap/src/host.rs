//! The host: folios in `struct page`s, `struct page`s in the window.

use crate::{
    Reader, State, StructPage,
    memory::{Memory, SetupError, check_maps},
    page::STRUCTS,
    reader::Section,
};
use folio_split::{
    FlatArray, FolioBackend, FolioLayout, IndexModel, OutOfNodes, PageSet, Pfn, PfnBlock, Pinned,
};
use sept_core::{Frame, FrameKind, FrameNeeds, FrameSource, Hpa, test_util::FramePool};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering, fence},
    },
};
use vmemmap_prealloc::{Geometry, Tail, VmemmapBackend, VmemmapPage};

/// Consecutive blocks of one size, one zone, templates by order, a flat index. See the crate's documentation.
#[derive(Debug)]
pub struct MmapHost {
    first: PfnBlock,
    blocks: u64,
    memory: Memory,
    pool: FramePool,
    books: Mutex<Books>,
    readers: Mutex<Vec<Arc<Section>>>,
    calls: AtomicU64,
    recorded: Mutex<Option<Vec<Call>>>,
}

/// One change of a mapping, as it was asked of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    entry: u64,
    offset: u64,
    writable: bool,
}

/// Who owns which page of the memfd.
#[derive(Debug)]
struct Books {
    /// For each entry of the window, its own page.
    own: Vec<Option<Frame>>,
    optimized: Vec<bool>,
    templates: BTreeMap<u8, Frame>,
    replaced: Vec<Replaced>,
    flushes: u64,
}

#[derive(Debug)]
struct Replaced {
    block: PfnBlock,
    frame: Frame,
    /// Flushes before it was replaced.
    flushes: u64,
}

/// A fresh page, filled through the direct map.
#[derive(Debug)]
#[must_use = "dropping it leaks the page"]
pub struct Fresh {
    at: VmemmapPage,
    frame: Frame,
}

/// Proof of a flush.
#[derive(Debug)]
#[must_use = "replaced pages are given up against this proof"]
pub struct Flushed(u64);

/// A frozen block.
#[derive(Debug)]
#[must_use = "dropping it leaves the folios frozen"]
pub struct Frozen(PfnBlock);

/// References that the host itself holds on a folio.
const OWN: u64 = 1;

impl MmapHost {
    /// `blocks` blocks like `first`, one after the other, each one folio with a vmemmap of its own, and room for `spare`
    /// more pages.
    ///
    /// # Errors
    ///
    /// [`SetupError::Maps`] if the window could take more mappings than the process may have.
    pub fn new(first: PfnBlock, blocks: u64, spare: u64) -> Result<Self, SetupError> {
        let entries = Geometry::LINUX_X86_64.vmemmap_pages(first.order()).saturating_mul(blocks);
        if entries == 0 {
            return Err(SetupError::TooSmall { order: first.order().raw() });
        }
        check_maps(entries.saturating_add(16))?;
        let frames = entries.saturating_add(spare);
        let size = |pages| usize::try_from(pages).map_err(|_| rustix::io::Errno::NOMEM);
        let host = Self {
            first,
            blocks,
            memory: Memory::new(size(frames)?, size(entries)?)?,
            pool: FramePool::new(Hpa::default(), frames),
            books: Mutex::new(Books {
                own: Vec::new(),
                optimized: vec![false; size(blocks)?],
                templates: BTreeMap::new(),
                replaced: Vec::new(),
                flushes: 0,
            }),
            readers: Mutex::default(),
            calls: AtomicU64::new(0),
            recorded: Mutex::default(),
        };
        for index in 0..entries {
            let frame = host.take(FrameKind::Vmemmap, Hpa::default()).ok_or(rustix::io::Errno::NOMEM)?;
            let page = index * STRUCTS as u64;
            for (page, one) in (page..).zip(host.memory.direct(frame.hpa().raw())) {
                host.write_one(one, first.order().raw(), page & (first.pages() - 1) == 0);
            }
            host.memory.map(index, frame.hpa().raw(), true)?;
            host.books().own.push(Some(frame));
        }
        for block in 0..blocks {
            let _ = host.page(block * first.pages()).set_refs(0, OWN);
        }
        Ok(host)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_one(&self, page: &StructPage, order: u8, head: bool) {
        if head { page.set_head(order) } else { page.set_tail(order) }
    }

    /// Limits what the page source still gives; see [`FramePool::limit`].
    pub fn limit(&self, frames: Option<u64>) {
        self.pool.limit(frames);
    }

    /// Pages given out by the page source, by kind.
    #[must_use]
    pub fn outstanding(&self) -> FrameNeeds {
        self.pool.outstanding()
    }

    /// Mappings changed so far: system calls.
    #[must_use]
    pub fn map_calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Records the changes of mappings from now on.
    pub fn record(&self) {
        *self.recorded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// Ends the recording and returns it.
    #[must_use]
    pub fn recorded(&self) -> Vec<Call> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }

    /// Makes the same system calls, and does nothing else: what the changes cost without us.
    ///
    /// # Panics
    ///
    /// If the kernel refuses, or the recording is of a host of another size.
    pub fn replay(&self, calls: &[Call]) {
        for call in calls {
            if let Err(error) = self.memory.map(call.entry, call.offset, call.writable) {
                panic!("entry {} of the window cannot be mapped: {error}", call.entry);
            }
        }
    }

    /// A reader for one thread.
    #[must_use]
    pub fn reader(&self) -> Reader<'_> {
        let section = Arc::new(Section::default());
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&section));
        Reader { host: self, section }
    }

    /// Position of a page frame in the window; `None` outside of it.
    pub(crate) fn number(&self, pfn: Pfn) -> Option<u64> {
        let number = pfn.raw().checked_sub(self.first.base().raw())?;
        (number < self.blocks * self.first.pages()).then_some(number)
    }

    /// The `struct page` at a position in the window.
    pub(crate) fn page(&self, number: u64) -> &StructPage {
        self.memory.page(number)
    }

    /// Position of a block, which is one of this host.
    fn start(&self, block: PfnBlock) -> u64 {
        self.number(block.base()).unwrap_or_else(|| panic!("{block} is not a part of this host"))
    }

    /// Entry of a page of the vmemmap.
    fn entry(&self, at: VmemmapPage) -> u64 {
        self.start(at.block) / STRUCTS as u64 + at.index
    }

    fn map(&self, entry: u64, frame: &Frame, writable: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if let Some(calls) = &mut *self.recorded.lock().unwrap_or_else(PoisonError::into_inner) {
            calls.push(Call { entry, offset: frame.hpa().raw(), writable });
        }
        // The number of mappings was checked, and replacing a page of the window takes no other memory.
        if let Err(error) = self.memory.map(entry, frame.hpa().raw(), writable) {
            panic!("entry {entry} of the window cannot be mapped: {error}");
        }
    }

    /// Stores to the `struct page` of `pfn` as a stray pointer would. A tail is read-only: the process dies of it.
    pub fn scribble(&self, pfn: Pfn) {
        if let Some(number) = self.number(pfn) {
            self.page(number).scribble();
        }
    }

    /// What the `struct page` of `pfn` says; `None` for a page of somebody else.
    #[must_use]
    pub fn state(&self, pfn: Pfn) -> Option<State> {
        Some(self.page(self.number(pfn)?).state())
    }

    /// Reads every `struct page` of a block through the window and compares it with `layout`; counts the block's own
    /// pages.
    ///
    /// # Errors
    ///
    /// The first difference, in words.
    pub fn check<S: PageSet>(&self, layout: &FolioLayout<S>) -> Result<(), String> {
        let block = layout.block();
        for folio in layout.folios(0) {
            let (start, order) = (self.start(folio), folio.order().raw());
            for number in start..start + folio.pages() {
                let (state, refs) = (self.page(number).state(), self.page(number).refs());
                let want = if number == start { (State::Head(order), OWN) } else { (State::Tail(order), 0) };
                if (state, refs) != want {
                    return Err(format!("page {number:#x} of {folio} is {state:?} with {refs} references"));
                }
            }
        }
        let geometry = self.geometry();
        let all = geometry.vmemmap_pages(block.order());
        let want = if self.is_optimized(block) { geometry.own_pages(&layout.counts()) } else { all };
        let first = self.entry(VmemmapPage { block, index: 0 });
        let books = self.books();
        let have =
            (first..first + all).filter(|&entry| books.own.get(entry as usize).is_some_and(Option::is_some));
        match have.count() as u64 {
            have if have == want => Ok(()),
            have => Err(format!("{block} has {have} vmemmap pages of its own, not {want}")),
        }
    }

    /// Calls `each` with position and order of the folios in `whole`, as their heads tell.
    fn heads(&self, whole: PfnBlock, mut each: impl FnMut(u64, u8) -> bool) -> Option<u64> {
        let mut number = self.start(whole);
        let end = number + whole.pages();
        while number < end {
            let State::Head(order) = self.page(number).state() else {
                panic!("page {number:#x} of {whole} is {:?}, not a head", self.page(number).state())
            };
            if !each(number, order) {
                return Some(number);
            }
            number += 1 << order;
        }
        None
    }

    /// Writes head and tails of a frozen folio where the window may be written.
    fn write(&self, folio: PfnBlock) {
        let (start, order) = (self.start(folio), folio.order().raw());
        let structs = STRUCTS as u64;
        let books = self.books();
        let mut number = start;
        while number < start + folio.pages() {
            let next = (number / structs + 1) * structs;
            if books.own.get((number / structs) as usize).is_some_and(Option::is_some) {
                (number..next.min(start + folio.pages()))
                    .for_each(|number| self.write_one(self.page(number), order, number == start));
            }
            number = next;
        }
    }
}

impl FrameSource for MmapHost {
    fn take(&self, kind: FrameKind, near: Hpa) -> Option<Frame> {
        self.pool.take(kind, near)
    }

    /// A page that comes back is overwritten: a reader that still sees it shall see that.
    fn give(&self, kind: FrameKind, frame: Frame) {
        self.memory.direct(frame.hpa().raw()).iter().for_each(StructPage::give_up);
        self.pool.give(kind, frame);
    }
}

impl FolioBackend for MmapHost {
    type Nodes = ();
    type Frozen = Frozen;

    fn index(&self) -> &dyn IndexModel {
        const { &FlatArray::new() }
    }

    fn reserve_nodes(&self, _nodes: &mut (), _near: PfnBlock, _count: u64) -> Result<(), OutOfNodes> {
        Ok(())
    }

    fn nodes_left(&self, _nodes: &()) -> u64 {
        0
    }

    fn release_nodes(&self, _nodes: ()) {}

    fn freeze(&self, whole: PfnBlock, tries: u32) -> Result<Frozen, Pinned> {
        let mut folios = 0_u64;
        let freeze = |number, _| {
            folios += 1;
            (0..tries.max(1)).any(|_| self.page(number).set_refs(OWN, 0))
        };
        if let Some(pinned) = self.heads(whole, freeze) {
            let _ = self.heads(whole, |number, _| number < pinned && self.page(number).set_refs(0, OWN));
            let first = Pfn::new(self.first.base().raw() + pinned).unwrap_or(whole.base());
            return Err(Pinned { first });
        }
        // Heads may become tails: nobody is left who saw one of them alive and has not tried yet.
        if folios > 1 {
            self.readers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .for_each(|section| section.wait());
        }
        Ok(Frozen(whole))
    }

    fn split(&self, _frozen: &mut Frozen, piece: PfnBlock, _nodes: &mut ()) {
        self.write(piece);
    }

    fn merge(&self, _frozen: &mut Frozen, whole: PfnBlock) -> u64 {
        // The pages that become tails are replaced as they are: their heads stay frozen until then.
        let kept = if self.is_optimized_at(whole) { STRUCTS as u64 } else { whole.pages() };
        let (start, order) = (self.start(whole), whole.order().raw());
        for number in start..start + whole.pages().min(kept) {
            self.write_one(self.page(number), order, number == start);
        }
        0
    }

    fn thaw(&self, frozen: Frozen) {
        let _ = self.heads(frozen.0, |number, _| self.page(number).set_refs(0, OWN));
    }
}

impl MmapHost {
    /// Whether the block that `part` lies in is optimized.
    fn is_optimized_at(&self, part: PfnBlock) -> bool {
        let block = self.start(part) / self.first.pages();
        self.books().optimized.get(block as usize).copied().unwrap_or(false)
    }
}

impl VmemmapBackend for MmapHost {
    type Fresh = Fresh;
    type Flushed = Flushed;

    fn geometry(&self) -> Geometry {
        Geometry::LINUX_X86_64
    }

    fn is_optimized(&self, block: PfnBlock) -> bool {
        self.is_optimized_at(block)
    }

    fn set_optimized(&self, block: PfnBlock, optimized: bool) {
        let number = self.start(block) / self.first.pages();
        if let Some(slot) = self.books().optimized.get_mut(number as usize) {
            *slot = optimized;
        }
    }

    fn has_template(&self, _near: PfnBlock, tail: Tail) -> bool {
        matches!(tail, Tail::Template(order) if self.books().templates.contains_key(&order.raw()))
    }

    fn add_template(&self, _near: PfnBlock, tail: Tail, page: Frame) -> Result<(), Frame> {
        let mut books = self.books();
        match tail {
            Tail::Template(order) if !books.templates.contains_key(&order.raw()) => {
                self.memory.direct(page.hpa().raw()).iter().for_each(|one| one.set_tail(order.raw()));
                books.templates.insert(order.raw(), page);
                Ok(())
            }
            _ => Err(page),
        }
    }

    /// The kernel has the page tables of this process.
    fn tables_missing(&self, _block: PfnBlock) -> u32 {
        0
    }

    fn add_table(&self, _block: PfnBlock, table: Frame) -> Result<(), Frame> {
        Err(table)
    }

    fn prepare(&self, at: VmemmapPage, page: Frame) -> Fresh {
        let now = self.memory.window(self.entry(at));
        self.memory.direct(page.hpa().raw()).iter().zip(now).for_each(|(to, from)| to.copy_from(from));
        Fresh { at, frame: page }
    }

    fn write_folio(&self, fresh: &mut Fresh, folio: PfnBlock) {
        let start = self.start(folio);
        let first = self.entry(fresh.at) * STRUCTS as u64;
        for (number, page) in (first..).zip(self.memory.direct(fresh.frame.hpa().raw())) {
            if (start..start + folio.pages()).contains(&number) {
                self.write_one(page, folio.order().raw(), number == start);
            }
        }
    }

    fn map_own(&self, at: VmemmapPage, fresh: Fresh) {
        assert_eq!(fresh.at, at, "a page prepared for another entry");
        let entry = self.entry(at);
        // The page before the entry; a kernel has a barrier here, and the system call is one.
        fence(Ordering::Release);
        self.map(entry, &fresh.frame, true);
        let mut books = self.books();
        let Some(slot) = books.own.get_mut(entry as usize) else {
            panic!("entry {entry} is not in the window")
        };
        assert!(slot.replace(fresh.frame).is_none(), "entry {entry} had a page of its own");
    }

    fn map_tail(&self, at: VmemmapPage, tail: Tail) {
        let entry = self.entry(at);
        let mut books = self.books();
        let Tail::Template(order) = tail else { panic!("{tail:?} is no template") };
        let template =
            books.templates.get(&order.raw()).unwrap_or_else(|| panic!("no template for {tail:?}"));
        self.map(entry, template, false);
        let flushes = books.flushes;
        if let Some(frame) = books.own.get_mut(entry as usize).and_then(Option::take) {
            books.replaced.push(Replaced { block: at.block, frame, flushes });
        }
    }

    /// The kernel drops old translations before `mmap` returns; what is left is to count.
    fn flush(&self) -> Flushed {
        fence(Ordering::SeqCst);
        let mut books = self.books();
        books.flushes += 1;
        Flushed(books.flushes)
    }

    fn release(&self, block: PfnBlock, flushed: &Flushed, to: &dyn FrameSource) -> u64 {
        let ready: Vec<_> = {
            let mut books = self.books();
            books.replaced.extract_if(.., |page| page.block == block && page.flushes < flushed.0).collect()
        };
        let count = ready.len() as u64;
        ready.into_iter().for_each(|page| to.give(FrameKind::Vmemmap, page.frame));
        count
    }
}
