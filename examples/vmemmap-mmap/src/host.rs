//! The host: who owns which page of the memfd, and what the window shows.

mod calls;
mod check;
mod folios;
mod vmemmap;

pub use calls::Call;
pub use folios::Frozen;
pub use vmemmap::{Flushed, Fresh};

use crate::{
    Reader, State, StructPage,
    memory::{Maps, Memory, SetupError},
    page::STRUCTS,
    reader::Section,
};
use calls::Calls;
use folio_split::{Pfn, PfnBlock};
use sept_core::{Frame, FrameKind, FrameNeeds, FrameSource, Hpa, test_util::FramePool};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use vmemmap_prealloc::{Geometry, TailScheme, VmemmapPage};

/// Consecutive blocks of one size, one zone, one NUMA node, a flat index. See the crate's documentation.
#[derive(Debug)]
pub struct MmapHost {
    first: PfnBlock,
    blocks: u64,
    geometry: Geometry,
    memory: Memory,
    pool: FramePool,
    books: Mutex<Books>,
    readers: Mutex<Vec<Arc<Section>>>,
    calls: Calls,
    /// Given back after the memory.
    _maps: Maps,
}

/// Who owns which page of the memfd.
#[derive(Debug)]
struct Books {
    /// For each entry of the window, its own page.
    own: Vec<Option<Frame>>,
    /// The page that an entry without one shows: its offset in the memfd.
    shown: Vec<u64>,
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

/// References that the host itself holds on a folio.
const OWN: u64 = 1;

impl MmapHost {
    /// `blocks` blocks like `first`, one after the other, each one folio with a vmemmap of its own, and room for `spare`
    /// more pages. Tails know their order, or are images of the page of their head: one of those two `tails`.
    ///
    /// # Errors
    ///
    /// [`SetupError::Maps`] if the window could take more mappings than the process may have.
    pub fn new(first: PfnBlock, blocks: u64, spare: u64, tails: TailScheme) -> Result<Self, SetupError> {
        let geometry = match tails {
            TailScheme::PerOrder | TailScheme::SharedWithHead => Geometry::new(64, 4096, 1, tails)?,
            other => return Err(SetupError::Tails { tails: other }),
        };
        let entries = geometry.vmemmap_pages(first.order()).saturating_mul(blocks);
        if entries == 0 {
            return Err(SetupError::TooSmall { order: first.order().raw() });
        }
        let maps = Maps::promise(entries.saturating_add(16))?;
        let frames = entries.saturating_add(spare);
        let size = |pages| usize::try_from(pages).map_err(|_| rustix::io::Errno::NOMEM);
        let host = Self {
            first,
            blocks,
            geometry,
            memory: Memory::new(size(frames)?, size(entries)?)?,
            pool: FramePool::new(Hpa::default(), frames),
            books: Mutex::new(Books {
                own: Vec::new(),
                shown: vec![0; size(entries)?],
                optimized: vec![false; size(blocks)?],
                templates: BTreeMap::new(),
                replaced: Vec::new(),
                flushes: 0,
            }),
            readers: Mutex::default(),
            calls: Calls::default(),
            _maps: maps,
        };
        for index in 0..entries {
            let frame = host.take(FrameKind::Vmemmap, Hpa::default()).ok_or(rustix::io::Errno::NOMEM)?;
            let page = index * STRUCTS as u64;
            for (page, one) in (page..).zip(host.memory.direct(frame.hpa().raw())) {
                one.set(first.order().raw(), page & (first.pages() - 1) == 0);
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

    /// Limits what the page source still gives; see [`FramePool::limit`].
    pub fn limit(&self, frames: Option<u64>) {
        self.pool.limit(frames);
    }

    /// Pages given out by the page source, by kind.
    #[must_use]
    pub fn outstanding(&self) -> FrameNeeds {
        self.pool.outstanding()
    }

    /// A reader for one thread.
    #[must_use]
    pub fn reader(&self) -> Reader<'_> {
        let section = Arc::new(Section::default());
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&section));
        Reader { host: self, section }
    }

    /// Returns when every attempt to get a reference that is under way now is over: a grace period.
    pub fn grace_period(&self) {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.iter().for_each(|section| section.wait());
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

    /// The position of the head that the `struct page` at a position leads to; `Err` with what is no `struct page`.
    ///
    /// Where tails are images of the page of their head, the first `struct page` of such an image looks like a head; the
    /// one after it tells (Linux `page_fixed_fake_head`).
    pub(crate) fn head(&self, number: u64) -> Result<u64, u64> {
        let head = |order: u8| number & !((1 << order) - 1);
        match self.page(number).state() {
            State::Head(order) if order > 0 && number.is_multiple_of(STRUCTS as u64) && self.images() => {
                match self.page(number + 1).state() {
                    State::Tail(order) => Ok(head(order)),
                    // Cut in two since.
                    State::Head(_) => Ok(number),
                    State::Garbage(raw) => Err(raw),
                }
            }
            State::Head(_) => Ok(number),
            State::Tail(order) => Ok(head(order)),
            State::Garbage(raw) => Err(raw),
        }
    }

    fn images(&self) -> bool {
        self.geometry.tails() == TailScheme::SharedWithHead
    }

    /// Position of a block, which is one of this host.
    fn start(&self, block: PfnBlock) -> u64 {
        self.number(block.base()).unwrap_or_else(|| panic!("{block} is not a part of this host"))
    }

    /// Entry of a page of the vmemmap.
    fn entry(&self, at: VmemmapPage) -> u64 {
        self.start(at.block) / STRUCTS as u64 + at.index
    }

    /// Whether the block that `part` lies in is optimized.
    fn is_optimized_at(&self, part: PfnBlock) -> bool {
        let block = self.start(part) / self.first.pages();
        self.books().optimized.get(block as usize).copied().unwrap_or(false)
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
