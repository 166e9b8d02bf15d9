//! `page_table_multiarch`: one call a page, and loops over such calls for ranges.
//!
//! It never frees a table before the whole tree is dropped, so that the drop counts where tables must go back, and a
//! merge is not possible. A split is an unmap and a `map_region` without huge pages.

use crate::{
    arena,
    contender::{Contender, G1, How, K4, M2, Mapped, REGION, VA, Work, pages, target, timed},
};
use memory_addr::{PhysAddr, VirtAddr};
use page_table_entry::{MappingFlags, x86_64::X64PTE};
use page_table_multiarch::{PageSize, PageTable64, PagingHandler, PagingMetaData};
use std::{mem, time::Duration};

const FLAGS: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);

/// The crate's x86-64 geometry, without its TLB instructions.
#[derive(Debug)]
struct Geometry;

impl PagingMetaData for Geometry {
    const LEVELS: usize = 4;
    const PA_MAX_BITS: usize = 52;
    const VA_MAX_BITS: usize = 48;

    type VirtAddr = VirtAddr;

    fn flush_tlb(_: Option<VirtAddr>) {}
}

#[derive(Debug)]
struct Arena;

impl PagingHandler for Arena {
    fn alloc_frames(count: usize, _align: usize) -> Option<PhysAddr> {
        if count == 1 { arena::take().map(pa) } else { None }
    }

    fn dealloc_frames(paddr: PhysAddr, _count: usize) {
        arena::give(paddr.as_usize() as u64);
    }

    fn phys_to_virt(paddr: PhysAddr) -> VirtAddr {
        VirtAddr::from_mut_ptr_of(arena::pointer::<u8>(paddr.as_usize() as u64))
    }
}

#[inline]
fn pa(address: u64) -> PhysAddr {
    PhysAddr::from_usize(address as usize)
}

#[inline]
fn va(address: u64) -> VirtAddr {
    VirtAddr::from_usize(address as usize)
}

pub(crate) struct Multiarch {
    table: PageTable64<Geometry, X64PTE, Arena>,
}

impl Multiarch {
    fn map(&mut self, size: PageSize) {
        let mut cursor = self.table.cursor();
        for page in pages(size as u64) {
            cursor.map(va(page), pa(target(page)), size, FLAGS).expect("a free page");
        }
    }

    fn map_region(&mut self, start: u64, bytes: u64) {
        let to = |va: VirtAddr| pa(target(va.as_usize() as u64));
        self.table.cursor().map_region(va(start), to, bytes as usize, FLAGS, false).expect("a free region");
    }

    /// Drops the tree, which maps nothing any more, for a new one.
    fn renew(&mut self) -> Duration {
        assert!(pages(K4).all(|page| self.lookup(page).is_none()));
        let old = mem::replace(self, Self::new());
        timed(|| drop(old)).0
    }
}

impl Contender for Multiarch {
    const NAME: &'static str = "page_table_multiarch";

    fn how(work: Work) -> How {
        if work == Work::SplitAll { How::Emulated } else { How::Native }
    }

    fn new() -> Self {
        Self { table: PageTable64::try_new().expect("a free frame") }
    }

    fn fill(&mut self, with: Mapped) {
        match with {
            Mapped::Nothing => {}
            Mapped::With4k => self.map_region(VA, REGION),
            Mapped::With2m => self.map(PageSize::Size2M),
        }
    }

    fn lookup(&self, address: u64) -> Option<(u64, u64)> {
        let (to, _, size) = self.table.query(va(address)).ok()?;
        let size = match size {
            PageSize::Size4K => K4,
            PageSize::Size2M => M2,
            _ => G1,
        };
        Some((to.as_usize() as u64, size))
    }

    fn dispose(self) {
        drop(self.table);
    }

    fn translate(&mut self, addresses: &[u64]) -> Option<(Duration, u64)> {
        Some(timed(|| {
            addresses.iter().fold(0, |sum: u64, &address| match self.table.query(va(address)) {
                Ok((to, ..)) => sum.wrapping_add(to.as_usize() as u64),
                Err(_) => sum,
            })
        }))
    }

    fn map_4k(&mut self) -> Option<Duration> {
        Some(timed(|| self.map(PageSize::Size4K)).0)
    }

    fn map_4k_range(&mut self) -> Option<Duration> {
        Some(timed(|| self.map_region(VA, REGION)).0)
    }

    fn map_2m(&mut self) -> Option<Duration> {
        Some(timed(|| self.map(PageSize::Size2M)).0)
    }

    fn split_all(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                for block in pages(M2) {
                    self.table.cursor().unmap(va(block)).expect("a mapped page");
                    self.map_region(block, M2);
                }
            })
            .0,
        )
    }

    fn unmap_4k(&mut self) -> Option<Duration> {
        let (time, _) = timed(|| {
            let mut all = 0;
            let mut cursor = self.table.cursor();
            for page in pages(K4) {
                all ^= cursor.unmap(va(page)).expect("a mapped page").0.as_usize();
            }
            all
        });
        Some(time + self.renew())
    }

    fn unmap_range(&mut self) -> Option<Duration> {
        let (time, _) = timed(|| {
            self.table.cursor().unmap_region(va(VA), REGION as usize).expect("a mapped region");
        });
        Some(time + self.renew())
    }
}
