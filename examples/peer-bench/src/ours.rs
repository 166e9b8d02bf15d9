//! sept-core: a TDX mirror over the arena, in front of a TEE that does nothing.

use crate::{
    arena::{self, FRAMES, PHYS},
    contender::{Contender, K4, M2, Mapped, REGION, VA, pages, target, timed},
};
use sept_core::{
    CacheKey, Class, Classify, Donated, Entry, External, Fenced, Fill, Frame, FrameKind, FrameNeeds,
    FrameSource, FrameStore, Free, Gpa, GpaEntry, Hpa, Level, Obligation, Observed, Returned,
    SecurePageTable, SideWord, TableError, TableMemory, Tainted, TdxConfig, TdxMirror, Word,
};
use std::{
    convert::Infallible,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The linear map, with the side words in an array of their own.
#[derive(Debug)]
struct Memory;

static SIDE: [[AtomicU64; 8]; FRAMES] = [const { [const { AtomicU64::new(0) }; 8] }; FRAMES];

impl Memory {
    #[inline]
    fn word(&self, table: Hpa, word: Word) -> &'static AtomicU64 {
        match word {
            Word::Entry(index) => {
                let entries: *mut AtomicU64 = arena::pointer(table.raw());
                let entry = entries.wrapping_add(usize::from(index & 511));
                #[expect(unsafe_code, reason = "table memory")]
                // SAFETY: tables are frames of the arena, which are mapped for good; the index is below 512.
                unsafe {
                    &*entry
                }
            }
            Word::Side(side) => &SIDE[((table.raw() - PHYS) >> 12) as usize][side.index()],
        }
    }
}

#[expect(unsafe_code, reason = "the trait's promises")]
// SAFETY: each word has its own place, and is read and written atomically.
unsafe impl TableMemory for Memory {
    type Pin<'a> = ();

    fn pin(&self) {}

    #[inline]
    fn load(&self, table: Hpa, word: Word, order: Ordering) -> u64 {
        self.word(table, word).load(order)
    }

    #[inline]
    fn store(&self, table: Hpa, word: Word, value: u64, order: Ordering) {
        self.word(table, word).store(value, order);
    }

    #[inline]
    fn compare_exchange(&self, table: Hpa, word: Word, old: u64, new: u64) -> Result<(), u64> {
        self.word(table, word).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }

    #[inline]
    fn add(&self, table: Hpa, word: Word, value: u64) {
        self.word(table, word).fetch_add(value, Ordering::AcqRel);
    }

    #[inline]
    fn write_detached(&self, table: &Frame, entry: impl Fn(u16) -> u64) {
        let entries: *mut [u64; 512] = arena::pointer(table.hpa().raw());
        #[expect(unsafe_code, reason = "table memory")]
        // SAFETY: the frame is owned: nobody else reads or writes it.
        let entries = unsafe { &mut *entries };
        for (place, index) in entries.iter_mut().zip(0..) {
            *place = entry(index);
        }
        for side in SideWord::ALL {
            self.store(table.hpa(), Word::Side(side), 0, Ordering::Relaxed);
        }
    }

    fn scrub(&self, page: Frame<Tainted>) -> Frame {
        mint(page.hpa().raw(), page.level())
    }
}

/// The arena as the host's allocator, and as a store that is always full.
struct Frames;

impl FrameSource for Frames {
    fn take(&self, _: FrameKind, _: Hpa) -> Option<Frame> {
        arena::take().map(|frame| mint(frame, Level::L4K))
    }

    fn give(&self, _: FrameKind, frame: Frame) {
        arena::give(frame.hpa().raw());
    }
}

impl FrameStore for Frames {
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        self.give(kind, frame);
        Ok(())
    }

    #[inline]
    fn get(&mut self, _: FrameKind) -> Option<Frame> {
        arena::take().map(|frame| mint(frame, Level::L4K))
    }

    fn count(&self, _: FrameKind) -> u32 {
        u32::MAX
    }
}

#[inline]
fn mint(address: u64, level: Level) -> Frame<Free> {
    #[expect(unsafe_code, reason = "minting is where ownership of memory begins")]
    // SAFETY: a frame of the arena was taken out of its list; a page of the guest does not exist.
    let frame = unsafe { Frame::assume_owned(Hpa::truncate(address), level) };
    frame.expect("an aligned frame")
}

/// Why a TEE refuses that never does.
#[derive(Debug)]
struct Never(Infallible);

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}

impl core::error::Error for Never {}

impl Classify for Never {
    fn class(&self) -> Class {
        match self.0 {}
    }
}

/// No TEE.
#[derive(Debug)]
struct Nobody;

impl External for Nobody {
    type Error = Never;
    type Pages = ();
    type Ticket = ();

    fn max_map(&self) -> Level {
        Level::L1G
    }
    fn max_leaf(&self) -> Level {
        Level::L1G
    }
    fn table_cost(&self, _: GpaEntry, _: Option<Hpa>) -> FrameNeeds {
        FrameNeeds::NONE
    }
    fn gather(&self, _: GpaEntry, _: Option<Hpa>, _: &mut dyn FrameStore) -> Option<()> {
        Some(())
    }
    fn addresses(&self, (): &()) -> Donated {
        Donated::default()
    }
    fn scatter(&self, (): (), _: &mut dyn FnMut(Frame<Tainted>) -> Frame, _: &mut dyn FrameStore) {}
    fn link(&self, _: GpaEntry, _: Option<Hpa>, (): ()) -> Result<(), Returned<Never, ()>> {
        Ok(())
    }
    fn unlink(&self, _: GpaEntry, _: Option<Hpa>) -> Result<Donated, Never> {
        Ok(Donated::default())
    }
    fn map(&self, _: GpaEntry, _: Frame, _: Fill) -> Result<(), Returned<Never, Frame>> {
        Ok(())
    }
    fn unmap(&self, _: GpaEntry, _: Hpa) -> Result<(), Never> {
        Ok(())
    }
    fn block(&self, _: GpaEntry) -> Result<(), Never> {
        Ok(())
    }
    fn unblock(&self, _: GpaEntry) -> Result<(), Never> {
        Ok(())
    }
    fn fence(&self) -> Result<(), Never> {
        Ok(())
    }
    fn grace(&self) {}
    fn fenced(&self, (): ()) -> bool {
        true
    }
    fn split(&self, _: GpaEntry, (): ()) -> Result<(), Returned<Never, ()>> {
        Ok(())
    }
    fn merge(&self, _: GpaEntry, _: Hpa) -> Result<Donated, Never> {
        Ok(Donated::default())
    }
    fn probe(&self, _: GpaEntry) -> Result<Observed, Never> {
        Ok(Observed::Hidden)
    }
    fn write_back(&self, _: &Frame<Tainted>, _: CacheKey) -> Result<(), Never> {
        Ok(())
    }
}

pub(crate) struct Ours {
    table: SecurePageTable<TdxMirror, Memory, Nobody>,
}

#[inline]
fn at(va: u64, level: Level) -> GpaEntry {
    GpaEntry::containing(Gpa::truncate(va), level)
}

impl Ours {
    #[inline]
    fn map(&self, va: u64, level: Level) {
        let at = at(va, level);
        let mut page = mint(target(va), level);
        while let Err(refused) = self.table.map(at, page, Fill::OnAccept) {
            let TableError::NoTable { stop, .. } = refused.error else { panic!("{}", refused.error) };
            self.table.link(stop, None, &mut Frames).expect("a free entry");
            page = refused.held;
        }
    }

    #[inline]
    fn block(&self, at: GpaEntry) {
        self.table.block(at).expect("an entry in use");
    }

    #[inline]
    fn fence(&self) -> Fenced {
        let ticket = self.table.fence().expect("a fence");
        self.table.fenced(&ticket).expect("nobody to wait for")
    }

    /// Blocks all, fences once, removes all; then the tables, level by level.
    fn unmap_all(&self, level: Level) {
        let mut owed = self.table.obligation();
        let entries = |level: Level| pages(level.size().min(REGION)).map(move |va| at(va, level));
        entries(level).for_each(|at| self.block(at));
        let fence = self.fence();
        for at in entries(level) {
            drop(self.table.remove(at, &fence).expect("a page"));
        }
        for level in [Level::L2M, Level::L1G, Level::L512G].into_iter().filter(|above| *above > level) {
            entries(level).for_each(|at| self.block(at));
            let fence = self.fence();
            for at in entries(level) {
                self.table.unlink(at, &fence, &mut owed).expect("an empty table");
            }
        }
        self.settle(owed);
    }

    fn settle(&self, owed: Obligation) {
        self.table.settle(owed, &self.fence().quiet(), &Frames).expect("nobody to wait for");
    }
}

impl Contender for Ours {
    const NAME: &'static str = "sept-core";

    fn new() -> Self {
        let root = mint(arena::take().expect("a free frame"), Level::L4K);
        Self { table: SecurePageTable::new(TdxConfig::LEVELS_4, Memory, Nobody, root) }
    }

    fn fill(&mut self, with: Mapped) {
        match with {
            Mapped::Nothing => {}
            Mapped::With4k => pages(K4).for_each(|va| self.map(va, Level::L4K)),
            Mapped::With2m => pages(M2).for_each(|va| self.map(va, Level::L2M)),
        }
    }

    fn lookup(&self, va: u64) -> Option<(u64, u64)> {
        let found = self.table.lookup(Gpa::truncate(va)).ok()?;
        let size = found.at.level().size();
        match found.entry {
            Entry::Leaf { hpa, .. } => Some((hpa.raw() | va & (size - 1), size)),
            _ => None,
        }
    }

    fn dispose(self) {
        match self.lookup(VA) {
            Some((_, M2)) => self.unmap_all(Level::L2M),
            Some(_) => self.unmap_all(Level::L4K),
            None => {}
        }
        Frames.give(FrameKind::MirrorTable, self.table.into_root().expect("an empty root"));
    }

    fn translate(&self, addresses: &[u64]) -> Option<(Duration, u64)> {
        Some(timed(|| {
            addresses.iter().fold(0, |sum: u64, &va| match self.lookup(va) {
                Some((pa, _)) => sum.wrapping_add(pa),
                None => sum,
            })
        }))
    }

    fn map_4k(&mut self) -> Option<Duration> {
        Some(timed(|| self.fill(Mapped::With4k)).0)
    }

    fn map_4k_range(&mut self) -> Option<Duration> {
        self.map_4k()
    }

    fn map_2m(&mut self) -> Option<Duration> {
        Some(timed(|| self.fill(Mapped::With2m)).0)
    }

    fn split_commit(&mut self) -> Option<Duration> {
        pages(M2).for_each(|va| self.block(at(va, Level::L2M)));
        let fence = self.fence();
        Some(
            timed(|| {
                for va in pages(M2) {
                    self.table.split(at(va, Level::L2M), &fence, &mut Frames).expect("a page");
                }
            })
            .0,
        )
    }

    fn split_all(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                for va in pages(M2) {
                    let at = at(va, Level::L2M);
                    self.block(at);
                    self.table.split(at, &self.fence(), &mut Frames).expect("a page");
                }
            })
            .0,
        )
    }

    fn merge(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                for va in pages(M2) {
                    let at = at(va, Level::L2M);
                    let mut owed = self.table.obligation();
                    self.block(at);
                    self.table.merge(at, &self.fence(), &mut owed).expect("uniform pages");
                    self.settle(owed);
                }
            })
            .0,
        )
    }

    fn unmap_4k(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                let mut all = 0;
                let mut owed = self.table.obligation();
                for va in pages(K4) {
                    let page = at(va, Level::L4K);
                    self.block(page);
                    all ^= self.table.remove(page, &self.fence()).expect("a page").hpa().raw();
                    for level in [Level::L2M, Level::L1G, Level::L512G] {
                        let above = at(va, level);
                        let Ok(Some(0)) = self.table.live(above) else { break };
                        self.block(above);
                        self.table.unlink(above, &self.fence(), &mut owed).expect("an empty table");
                    }
                }
                self.settle(owed);
                all
            })
            .0,
        )
    }

    fn unmap_range(&mut self) -> Option<Duration> {
        Some(timed(|| self.unmap_all(Level::L4K)).0)
    }

    fn remove_1g(&mut self) -> Option<Duration> {
        self.unmap_range()
    }
}
