//! `x86_64`: one call a page for everything.
//!
//! A split is an unmap and 512 maps, a merge 512 unmaps, a clean-up and a map. Empty tables go back in one clean-up over
//! the whole region at the end.

use crate::{
    arena,
    contender::{Contender, G1, How, K4, M2, Mapped, REGION, VA, Work, pages, target, timed},
};
use std::{fmt::Debug, time::Duration};
use x86_64::{
    PhysAddr, VirtAddr,
    structures::paging::{
        FrameAllocator, FrameDeallocator, MappedPageTable, Mapper, Page, PageSize, PageTable, PageTableFlags,
        PhysFrame, Size2MiB, Size4KiB, Translate,
        mapper::{CleanUp, MappedFrame, PageTableFrameMapping, TranslateResult},
        page::PageRangeInclusive,
    },
};

const FLAGS: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE);

#[derive(Debug)]
struct Arena;

#[expect(unsafe_code, reason = "what the crate asks for")]
// SAFETY: frames are handed out once until they come back.
unsafe impl FrameAllocator<Size4KiB> for Arena {
    #[inline]
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        arena::take().map(frame)
    }
}

impl FrameDeallocator<Size4KiB> for Arena {
    #[expect(unsafe_code, reason = "what the crate asks for")]
    #[inline]
    unsafe fn deallocate_frame(&mut self, frame: PhysFrame) {
        arena::give(frame.start_address().as_u64());
    }
}

#[expect(unsafe_code, reason = "what the crate asks for")]
// SAFETY: all frames of the arena are mapped at that distance.
unsafe impl PageTableFrameMapping for Arena {
    #[inline]
    fn frame_to_pointer(&self, frame: PhysFrame) -> *mut PageTable {
        arena::pointer(frame.start_address().as_u64())
    }
}

#[inline]
fn frame<S: PageSize>(address: u64) -> PhysFrame<S> {
    PhysFrame::containing_address(PhysAddr::new_truncate(address))
}

#[inline]
fn page<S: PageSize>(address: u64) -> Page<S> {
    Page::containing_address(VirtAddr::new_truncate(address))
}

#[derive(Debug)]
pub(crate) struct X86 {
    root: u64,
    mapper: MappedPageTable<'static, Arena>,
}

impl X86 {
    #[inline]
    fn map<S: PageSize + Debug>(&mut self, va: u64)
    where
        MappedPageTable<'static, Arena>: Mapper<S>,
    {
        #[expect(unsafe_code, reason = "what the crate asks for")]
        // SAFETY: the mapping is never used for an access.
        let mapped = unsafe { self.mapper.map_to(page::<S>(va), frame(target(va)), FLAGS, &mut Arena) };
        mapped.expect("a free page").ignore();
    }

    #[inline]
    fn unmap<S: PageSize>(&mut self, va: u64) -> PhysFrame<S>
    where
        MappedPageTable<'static, Arena>: Mapper<S>,
    {
        let (frame, flush) = self.mapper.unmap(page::<S>(va)).expect("a mapped page");
        flush.ignore();
        frame
    }

    fn clean_up(&mut self, start: u64, bytes: u64) {
        let range = PageRangeInclusive { start: page(start), end: page(start + bytes - K4) };
        #[expect(unsafe_code, reason = "what the crate asks for")]
        // SAFETY: the tables of this tree are its own, and it is not in use by hardware.
        unsafe {
            self.mapper.clean_up_addr_range(range, &mut Arena);
        }
    }
}

impl Contender for X86 {
    const NAME: &'static str = "x86_64";

    fn how(work: Work) -> How {
        if matches!(work, Work::SplitAll | Work::Merge) { How::Emulated } else { How::Native }
    }

    fn new() -> Self {
        let root = arena::take().expect("a free frame");
        let pointer: *mut PageTable = arena::pointer(root);
        #[expect(unsafe_code, reason = "a table in raw memory")]
        // SAFETY: the frame is this tree's alone, and a table is any 4096 bytes.
        let table = unsafe { &mut *pointer };
        table.zero();
        #[expect(unsafe_code, reason = "what the crate asks for")]
        // SAFETY: the mapping is right for all frames, and the table is an empty one.
        let mapper = unsafe { MappedPageTable::new(table, Arena) };
        Self { root, mapper }
    }

    fn fill(&mut self, with: Mapped) {
        match with {
            Mapped::Nothing => {}
            Mapped::With4k => pages(K4).for_each(|va| self.map::<Size4KiB>(va)),
            Mapped::With2m => pages(M2).for_each(|va| self.map::<Size2MiB>(va)),
        }
    }

    fn lookup(&self, va: u64) -> Option<(u64, u64)> {
        match self.mapper.translate(VirtAddr::new_truncate(va)) {
            TranslateResult::Mapped { frame, offset, .. } => {
                let size = match frame {
                    MappedFrame::Size4KiB(_) => K4,
                    MappedFrame::Size2MiB(_) => M2,
                    MappedFrame::Size1GiB(_) => G1,
                };
                Some((frame.start_address().as_u64() + offset, size))
            }
            _ => None,
        }
    }

    fn dispose(mut self) {
        for block in pages(M2) {
            match self.lookup(block) {
                Some((_, M2)) => drop(self.unmap::<Size2MiB>(block)),
                Some(_) => (block..block + M2).step_by(K4 as usize).for_each(|va| {
                    self.unmap::<Size4KiB>(va);
                }),
                None => {}
            }
        }
        self.clean_up(VA, REGION);
        arena::give(self.root);
    }

    fn translate(&mut self, addresses: &[u64]) -> Option<(Duration, u64)> {
        Some(timed(|| {
            addresses.iter().fold(0, |sum: u64, &va| {
                match self.mapper.translate_addr(VirtAddr::new_truncate(va)) {
                    Some(pa) => sum.wrapping_add(pa.as_u64()),
                    None => sum,
                }
            })
        }))
    }

    fn map_4k(&mut self) -> Option<Duration> {
        Some(timed(|| self.fill(Mapped::With4k)).0)
    }

    fn map_2m(&mut self) -> Option<Duration> {
        Some(timed(|| self.fill(Mapped::With2m)).0)
    }

    fn split_all(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                for block in pages(M2) {
                    self.unmap::<Size2MiB>(block);
                    (block..block + M2).step_by(K4 as usize).for_each(|va| self.map::<Size4KiB>(va));
                }
            })
            .0,
        )
    }

    fn merge(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                for block in pages(M2) {
                    (block..block + M2).step_by(K4 as usize).for_each(|va| {
                        self.unmap::<Size4KiB>(va);
                    });
                    self.clean_up(block, M2);
                    self.map::<Size2MiB>(block);
                }
            })
            .0,
        )
    }

    fn unmap_4k(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                let mut all = 0;
                for va in pages(K4) {
                    all ^= self.unmap::<Size4KiB>(va).start_address().as_u64();
                }
                self.clean_up(VA, REGION);
                all
            })
            .0,
        )
    }
}
