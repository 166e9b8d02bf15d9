//! sept-core: an x86-64 table that no TEE keeps, over the arena as a linear map, changed by the only thread there is.
//!
//! Frames are reserved before each change and come back after a fence, as on any host; that fence waits for nobody.

use crate::{
    arena::{self, FRAMES, PHYS},
    contender::{Contender, K4, M2, Mapped, PA, PAGES, REGION, VA, pages, target, timed},
};
use sept_core::{
    Direct, Fenced, Fill, Frame, FrameKind, FrameList, FrameNeeds, FrameSource, FrameStore, Frames, Gpa,
    GpaEntry, GpaRange, Hpa, Level, LinearMap, Obligation, Plan, Reserved, Scope, SecurePageTable, Shootdown,
    SliceStore, SplitPlan, X86, X86Config,
};
use std::{fmt::Debug, ptr::NonNull, sync::atomic::AtomicU64, time::Duration};

/// A cache line of side words.
#[repr(align(64))]
#[expect(dead_code, reason = "read through the linear map")]
struct Side([AtomicU64; 8]);

static SIDE: [Side; FRAMES] = [const { Side([const { AtomicU64::new(0) }; 8]) }; FRAMES];

/// The memory of one tree. Trees have no frame in common.
fn memory() -> LinearMap {
    let tables = NonNull::new(arena::pointer(PHYS)).expect("an address above 0");
    let sides = NonNull::from(&SIDE).cast();
    #[expect(unsafe_code, reason = "raw table memory")]
    // SAFETY:
    // * tables are frames of the arena, which begins at `PHYS`, and there are side words for all of them;
    // * neither is ever unmapped; the side words are aligned, atomic and 0 at first;
    // * nobody else knows the side words, and a frame of the arena is used by whoever took it.
    unsafe {
        LinearMap::new(Hpa::truncate(PHYS), tables, sides, ())
    }
}

/// One thread, no MMU.
#[derive(Debug)]
struct Nobody;

#[expect(unsafe_code, reason = "the trait's promise")]
// SAFETY: no CPU walks these tables, and no walk is under way when a fence begins.
unsafe impl Shootdown for Nobody {
    type Ticket = ();

    #[inline]
    fn start(&self) {}

    #[inline]
    fn done(&self, (): ()) -> bool {
        true
    }
}

/// The arena as the host's allocator.
struct Arena;

impl FrameSource for Arena {
    #[inline]
    fn take(&self, _: FrameKind, _: Hpa) -> Option<Frame> {
        arena::take().map(|frame| mint(frame, Level::L4K))
    }

    #[inline]
    fn give(&self, _: FrameKind, frame: Frame) {
        arena::give(frame.hpa().raw());
    }
}

#[inline]
fn mint(address: u64, level: Level) -> Frame {
    #[expect(unsafe_code, reason = "minting is where ownership of memory begins")]
    // SAFETY: a frame of the arena was taken out of its list; a page of the guest does not exist.
    let frame = unsafe { Frame::assume_owned(Hpa::truncate(address), level) };
    frame.expect("an aligned frame")
}

#[inline]
fn at(va: u64, level: Level) -> GpaEntry {
    GpaEntry::containing(Gpa::truncate(va), level)
}

fn region() -> GpaRange {
    GpaRange::new(Gpa::truncate(VA), REGION).expect("a good range")
}

pub(crate) struct Ours {
    table: SecurePageTable<X86, LinearMap, Direct<Nobody>>,
}

impl Ours {
    /// Maps the region page by page.
    #[inline(always)]
    fn map_pages(&mut self, level: Level) {
        let mut table = self.table.exclusive();
        for va in pages(level.size()) {
            let page = mint(target(va), level);
            table.map_linking(at(va, level), page, Fill::OnAccept, &mut Arena).expect("a free entry");
        }
    }

    fn map_region(&self) {
        let plan = self.table.plan_map(region(), Hpa::truncate(PA), Level::L4K).expect("a free range");
        let reserved = plan.reserve(&Arena, FrameList::new(self.table.memory())).expect("free frames");
        #[expect(unsafe_code, reason = "minting is where ownership of memory begins")]
        // SAFETY: there is no such memory.
        let pages = unsafe { Frames::assume_owned(Hpa::truncate(PA), PAGES) }.expect("below 2^52");
        let done = self.table.map_range(reserved, pages).expect("as planned");
        assert_eq!(done.used, plan.needs());
    }

    #[inline]
    fn reserve_split<S: FrameStore + Debug>(&self, va: u64, store: S) -> Reserved<SplitPlan, S> {
        let block = at(va, Level::L2M).range();
        let plan = self.table.plan_split(block, Scope::Whole(Level::L4K)).expect("a page");
        plan.reserve(&Arena, store).expect("a free frame")
    }

    #[inline]
    fn fence(&self) -> Fenced {
        let ticket = self.table.fence().expect("a fence");
        self.table.fenced(&ticket).expect("nobody to wait for")
    }

    fn settle(&self, owed: Obligation) -> FrameNeeds {
        self.table.settle(owed, &self.fence().quiet(), &Arena).expect("a fence that covers it")
    }

    fn unmap_region(&mut self) {
        let mut owed = self.table.obligation();
        self.table.exclusive().unmap_range(region(), &mut owed, |_, _| ()).expect("a good range");
        self.settle(owed);
    }
}

/// The allocator as a store that never runs dry, for calls that nothing is reserved for.
impl FrameStore for Arena {
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        self.give(kind, frame);
        Ok(())
    }

    fn get(&mut self, kind: FrameKind) -> Option<Frame> {
        self.take(kind, Hpa::default())
    }

    fn count(&self, _: FrameKind) -> u32 {
        u32::MAX
    }
}

impl Contender for Ours {
    const NAME: &'static str = "sept-core";

    fn new() -> Self {
        let root = mint(arena::take().expect("a free frame"), Level::L4K);
        Self { table: SecurePageTable::new(X86Config::NESTED_4, memory(), Direct::new(Nobody), root) }
    }

    fn fill(&mut self, with: Mapped) {
        match with {
            Mapped::Nothing => {}
            Mapped::With4k => self.map_pages(Level::L4K),
            Mapped::With2m => self.map_pages(Level::L2M),
        }
    }

    fn lookup(&self, va: u64) -> Option<(u64, u64)> {
        self.table.translate(Gpa::truncate(va)).map(|to| (to.hpa.raw(), to.level.size()))
    }

    fn dispose(mut self) {
        self.unmap_region();
        Arena.give(FrameKind::MirrorTable, self.table.into_root().expect("an empty root"));
    }

    fn translate(&mut self, addresses: &[u64]) -> Option<(Duration, u64)> {
        Some(timed(|| {
            let mut alone = self.table.exclusive();
            let walker = alone.walker();
            addresses.iter().fold(0, |sum: u64, &va| match walker.translate(Gpa::truncate(va)) {
                Some(to) => sum.wrapping_add(to.hpa.raw()),
                None => sum,
            })
        }))
    }

    fn map_4k(&mut self) -> Option<Duration> {
        Some(timed(|| self.map_pages(Level::L4K)).0)
    }

    fn map_4k_range(&mut self) -> Option<Duration> {
        Some(timed(|| self.map_region()).0)
    }

    fn map_2m(&mut self) -> Option<Duration> {
        Some(timed(|| self.map_pages(Level::L2M)).0)
    }

    fn split_commit(&mut self) -> Option<Duration> {
        let need = FrameNeeds::of(FrameKind::MirrorTable, 1);
        let reserve = |_| {
            let mut store = FrameList::new(self.table.memory());
            store.fill(&need, Hpa::default(), &Arena).expect("a free frame");
            store
        };
        let mut reserved: Vec<_> = pages(M2).map(reserve).collect();
        Some(
            timed(|| {
                for (va, store) in pages(M2).zip(&mut reserved) {
                    self.table.split_in_place(at(va, Level::L2M), store).expect("a page");
                }
            })
            .0,
        )
    }

    fn split_all(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                for va in pages(M2) {
                    let mut slots = [None];
                    let reserved = self.reserve_split(va, SliceStore::new(&mut slots));
                    let done = self.table.split_range(reserved).expect("nothing changed since");
                    assert_eq!(done.used.total(), 1);
                }
            })
            .0,
        )
    }

    fn merge(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                let mut owed = self.table.obligation();
                let mut table = self.table.exclusive();
                for va in pages(M2) {
                    table.merge(at(va, Level::L2M), &mut owed).expect("uniform pages");
                }
                self.settle(owed)
            })
            .0,
        )
    }

    fn unmap_4k(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                let mut owed = self.table.obligation();
                let mut table = self.table.exclusive();
                let mut all = 0;
                for va in pages(K4) {
                    all ^= table.unmap(at(va, Level::L4K), &mut owed).expect("a page").hpa().raw();
                }
                (self.settle(owed), all)
            })
            .0,
        )
    }

    fn unmap_range(&mut self) -> Option<Duration> {
        let (time, back) = timed(|| {
            let mut owed = self.table.obligation();
            self.table.exclusive().unmap_range(region(), &mut owed, |_, _| ()).expect("a good range");
            let mut back = 0;
            let mut each = |_, pages: Frames| back += pages.count();
            let fence = self.fence().quiet();
            self.table.settle_pages(owed, &fence, &Arena, &mut each).expect("a fence that covers it");
            back
        });
        assert_eq!(back, PAGES);
        Some(time)
    }

    fn remove_1g(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                let mut owed = self.table.obligation();
                self.table.exclusive().remove_subtree(at(VA, Level::L1G), &mut owed).expect("a table");
                self.settle(owed)
            })
            .0,
        )
    }
}
