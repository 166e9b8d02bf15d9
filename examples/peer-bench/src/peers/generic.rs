//! `page-table-generic`: plans, deposits, recursion; entries in the format of x86-64.
//!
//! Unmapping gives empty tables back at once and finds out by looking at all 512 entries. A merge is an unmap and a map.

use crate::{
    arena,
    contender::{Contender, How, K4, M2, Mapped, PA, REGION, VA, Work, pages, target, timed},
};
use page_table_generic::{
    FrameAllocator, MapConfig, PageTable, PageTableEntry, PhysAddr, TableMeta, UnmapConfig, VirtAddr,
};
use std::time::Duration;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const HUGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const FLAGS: Flags = Flags(PRESENT | WRITABLE);

#[derive(Clone, Copy, Debug)]
struct Arena;

impl FrameAllocator for Arena {
    #[inline]
    fn alloc_frame(&self) -> Option<PhysAddr> {
        arena::take().map(pa)
    }

    #[inline]
    fn dealloc_frame(&self, frame: PhysAddr) {
        arena::give(frame.as_usize() as u64);
    }

    #[inline]
    fn phys_to_virt(&self, paddr: PhysAddr) -> *mut u8 {
        arena::pointer(paddr.as_usize() as u64)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Flags(u64);

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct Entry(u64);

impl PageTableEntry for Entry {
    type PteConfig = Flags;

    #[inline]
    fn new_page(paddr: PhysAddr, flags: Flags, is_huge: bool) -> Self {
        Self(paddr.as_usize() as u64 & ADDRESS | flags.0 | if is_huge { HUGE } else { 0 })
    }

    #[inline]
    fn new_table(paddr: PhysAddr) -> Self {
        Self(paddr.as_usize() as u64 & ADDRESS | PRESENT | WRITABLE)
    }

    #[inline]
    fn paddr(&self, _is_dir: bool) -> PhysAddr {
        pa(self.0 & ADDRESS)
    }

    #[inline]
    fn config(&self, _is_dir: bool) -> Flags {
        Flags(self.0 & !ADDRESS & !HUGE)
    }

    #[inline]
    fn present(&self) -> bool {
        self.0 & PRESENT != 0
    }

    #[inline]
    fn huge(&self, is_dir: bool) -> bool {
        is_dir && self.0 & HUGE != 0
    }

    #[inline]
    fn unused(&self) -> bool {
        self.0 == 0
    }

    #[inline]
    fn clear(&mut self) {
        self.0 = 0;
    }
}

#[derive(Clone, Copy, Debug)]
struct Geometry;

impl TableMeta for Geometry {
    type P = Entry;

    const PAGE_SIZE: usize = 4096;
    const LEVEL_BITS: &[usize] = &[9, 9, 9, 9];
    const MAX_BLOCK_LEVEL: usize = 3;

    #[inline]
    fn flush(_: Option<VirtAddr>) {}
}

#[inline]
fn pa(address: u64) -> PhysAddr {
    PhysAddr::from_usize(address as usize)
}

#[inline]
fn va(address: u64) -> VirtAddr {
    VirtAddr::from_usize(address as usize)
}

pub(crate) struct Generic {
    table: PageTable<Geometry, Arena>,
}

impl Generic {
    #[inline]
    fn map(&mut self, page: u64, size: u64) {
        self.table.map_page(va(page), pa(target(page)), size as usize, FLAGS).expect("a free page");
    }

    fn map_all(&mut self) {
        let all = MapConfig {
            vaddr: va(VA),
            paddr: pa(PA),
            size: REGION as usize,
            pte: FLAGS,
            allow_huge: false,
            flush: false,
        };
        self.table.map(&all).expect("a free region");
    }

    fn unmap(&mut self, start: u64, bytes: u64) {
        let range = UnmapConfig { start_vaddr: va(start), size: bytes as usize, flush: false };
        self.table.unmap_with_config(&range).expect("a good range");
    }
}

impl Contender for Generic {
    const NAME: &'static str = "page-table-generic";

    fn how(work: Work) -> How {
        if work == Work::Merge { How::Emulated } else { How::Native }
    }

    fn new() -> Self {
        Self { table: PageTable::new(Arena).expect("a free frame") }
    }

    fn fill(&mut self, with: Mapped) {
        match with {
            Mapped::Nothing => {}
            Mapped::With4k => self.map_all(),
            Mapped::With2m => pages(M2).for_each(|page| self.map(page, M2)),
        }
    }

    fn lookup(&self, address: u64) -> Option<(u64, u64)> {
        let (to, _, level) = self.table.translate_with_level(va(address)).ok()?;
        Some((to.as_usize() as u64, K4 << (9 * (level - 1))))
    }

    fn dispose(self) {
        drop(self.table);
    }

    fn translate(&mut self, addresses: &[u64]) -> Option<(Duration, u64)> {
        Some(timed(|| {
            addresses.iter().fold(0, |sum: u64, &address| match self.table.translate_phys(va(address)) {
                Ok(to) => sum.wrapping_add(to.as_usize() as u64),
                Err(_) => sum,
            })
        }))
    }

    fn map_4k(&mut self) -> Option<Duration> {
        Some(timed(|| pages(K4).for_each(|page| self.map(page, K4))).0)
    }

    fn map_4k_range(&mut self) -> Option<Duration> {
        Some(timed(|| self.map_all()).0)
    }

    fn map_2m(&mut self) -> Option<Duration> {
        Some(timed(|| pages(M2).for_each(|page| self.map(page, M2))).0)
    }

    fn split_commit(&mut self) -> Option<Duration> {
        let mut deposits: Vec<_> =
            pages(M2).map(|page| self.table.prepare_huge_split(va(page)).expect("a huge page")).collect();
        Some(
            timed(|| {
                for deposit in deposits.drain(..) {
                    self.table.try_split_huge_page_with(deposit).expect("nothing changed since");
                }
            })
            .0,
        )
    }

    fn split_all(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                for page in pages(M2) {
                    self.table.split_huge_page(va(page)).expect("a huge page");
                }
            })
            .0,
        )
    }

    fn merge(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                for page in pages(M2) {
                    self.unmap(page, M2);
                    self.map(page, M2);
                }
            })
            .0,
        )
    }

    fn unmap_4k(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                for page in pages(K4) {
                    self.table.unmap_page(va(page)).expect("a mapped page");
                }
            })
            .0,
        )
    }

    fn unmap_range(&mut self) -> Option<Duration> {
        Some(timed(|| self.unmap(VA, REGION)).0)
    }
}
