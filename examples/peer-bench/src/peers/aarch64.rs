//! `aarch64-paging`: stage 2, four levels, inactive.
//!
//! Everything is a call on a range. A split happens where a call for a part of a block meets the block. Unmapping whole
//! entries drops the tables below them unseen; single pages leave their tables behind, so that `compact_subtables`
//! counts there. A merge is an unmap and a map of a block, which trusts the caller.

use crate::{
    arena,
    contender::{Contender, G1, How, K4, M2, Mapped, PA, REGION, VA, Work, pages, target, timed},
};
use aarch64_paging::{
    Mapping,
    descriptor::{PhysicalAddress, Stage2Attributes, UpdatableDescriptor},
    paging::{Constraints, MemoryRegion, PageTable, Stage2, Translation},
};
use std::{ptr::NonNull, time::Duration};

const FLAGS: Stage2Attributes = Stage2Attributes::VALID
    .union(Stage2Attributes::ACCESS_FLAG)
    .union(Stage2Attributes::S2AP_ACCESS_RW)
    .union(Stage2Attributes::SH_INNER)
    .union(Stage2Attributes::MEMATTR_NORMAL_INNER_WB)
    .union(Stage2Attributes::MEMATTR_NORMAL_OUTER_WB);

#[derive(Debug)]
struct Arena;

impl Translation<Stage2Attributes> for Arena {
    fn allocate_table(&mut self) -> (NonNull<PageTable<Stage2Attributes>>, PhysicalAddress) {
        let frame = arena::take().expect("a free frame");
        let table: *mut PageTable<Stage2Attributes> = arena::pointer(frame);
        #[expect(unsafe_code, reason = "a table in raw memory")]
        // SAFETY: the frame is one table large and this tree's alone.
        unsafe {
            table.write_bytes(0, 1);
        }
        (NonNull::new(table).expect("an address above 0"), PhysicalAddress(frame as usize))
    }

    #[expect(unsafe_code, reason = "what the crate asks for")]
    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<Stage2Attributes>>) {
        arena::give(table.as_ptr().addr() as u64 - arena::OFFSET);
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<Stage2Attributes>> {
        NonNull::new(arena::pointer(pa.0 as u64)).expect("an address above 0")
    }
}

#[derive(Debug)]
pub(crate) struct Aarch64 {
    table: Mapping<Arena, Stage2>,
}

#[inline]
fn region(start: u64, bytes: u64) -> MemoryRegion {
    MemoryRegion::new(start as usize, (start + bytes) as usize)
}

impl Aarch64 {
    #[inline]
    fn map(&mut self, va: u64, bytes: u64, constraints: Constraints) {
        let to = PhysicalAddress(target(va) as usize);
        self.table.map_range(&region(va, bytes), to, FLAGS, constraints).expect("a good range");
    }

    #[inline]
    fn unmap(&mut self, va: u64, bytes: u64) {
        let nothing = Stage2Attributes::empty();
        self.table
            .map_range(&region(va, bytes), PhysicalAddress(0), nothing, Constraints::empty())
            .expect("a good range");
    }
}

impl Contender for Aarch64 {
    const NAME: &'static str = "aarch64-paging";

    fn how(work: Work) -> How {
        match work {
            Work::Merge => How::Emulated,
            Work::UnmapRange => How::Subtree,
            _ => How::Native,
        }
    }

    fn new() -> Self {
        Self { table: Mapping::new(Arena, 0, Stage2) }
    }

    fn fill(&mut self, with: Mapped) {
        match with {
            Mapped::Nothing => {}
            Mapped::With4k => self.map(VA, REGION, Constraints::NO_BLOCK_MAPPINGS),
            Mapped::With2m => pages(M2).for_each(|va| self.map(va, M2, Constraints::empty())),
        }
    }

    fn lookup(&self, va: u64) -> Option<(u64, u64)> {
        let mut found = None;
        let page = region(va & !(K4 - 1), K4);
        let mut read = |_: &MemoryRegion, entry: &aarch64_paging::descriptor::Descriptor<_>, level| {
            let size = [0, G1, M2, K4][level];
            if entry.is_valid() {
                found = Some((entry.output_address().0 as u64 + (va & (size - 1)), size));
            }
            Ok(())
        };
        self.table.walk_range(&page, &mut read).ok()?;
        found
    }

    fn dispose(self) {
        drop(self.table);
    }

    fn translate(&mut self, addresses: &[u64]) -> Option<(Duration, u64)> {
        Some(timed(|| {
            addresses.iter().fold(0, |sum: u64, &va| match self.lookup(va) {
                Some((pa, _)) => sum.wrapping_add(pa),
                None => sum,
            })
        }))
    }

    fn map_4k(&mut self) -> Option<Duration> {
        Some(timed(|| pages(K4).for_each(|va| self.map(va, K4, Constraints::empty()))).0)
    }

    fn map_4k_range(&mut self) -> Option<Duration> {
        Some(timed(|| self.map(VA, REGION, Constraints::NO_BLOCK_MAPPINGS)).0)
    }

    fn map_2m(&mut self) -> Option<Duration> {
        Some(timed(|| pages(M2).for_each(|va| self.map(va, M2, Constraints::empty()))).0)
    }

    fn split_all(&mut self) -> Option<Duration> {
        // One page of the block is set to what it is already: the block is split for it.
        let keep = |_: &MemoryRegion, _: &mut UpdatableDescriptor<'_, Stage2Attributes>| Ok(());
        Some(
            timed(|| {
                for va in pages(M2) {
                    self.table.modify_range(&region(va, K4), &keep).expect("a good range");
                }
            })
            .0,
        )
    }

    fn merge(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                for va in pages(M2) {
                    self.unmap(va, M2);
                    self.map(va, M2, Constraints::empty());
                }
            })
            .0,
        )
    }

    fn unmap_4k(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                pages(K4).for_each(|va| self.unmap(va, K4));
                self.table.compact_subtables();
            })
            .0,
        )
    }

    fn unmap_range(&mut self) -> Option<Duration> {
        self.remove_1g()
    }

    fn remove_1g(&mut self) -> Option<Duration> {
        Some(timed(|| self.unmap(VA, REGION)).0)
    }
}

const _: () = assert!(PA < 1 << 48, "a descriptor's address has 48 bits");
