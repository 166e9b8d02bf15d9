//! What holds for every MMU: it reads through our table what the table says, before and after each change.

use super::check;
use crate::{
    guest::Walker,
    memory,
    space::{Format, Space},
};
use core::sync::atomic::Ordering;
use sept_core::{Gpa, GpaEntry, Hpa, Level, Shootdown};

/// How an MMU marks entries and names causes.
#[derive(Debug)]
pub struct Mmu {
    /// What it is called.
    pub name: &'static str,
    /// The MMU sets it in a leaf that it used.
    pub accessed: u64,
    /// The MMU sets it in a leaf that it wrote through.
    pub dirty: u64,
    /// The cause of a fault when a read meets an empty entry.
    pub read_of_hole: u64,
    /// The cause of a fault when a write meets an empty entry.
    pub write_to_hole: u64,
}

const PAGES: u16 = 512;

/// The word of a page that is read, spread over the page, and what it holds.
fn sample(index: u16) -> (usize, u32) {
    let word = usize::from(index) * 7 % 1024;
    (word, 0x5a00_0000 | u32::from(index))
}

/// A page that is mapped, read, split, changed and merged.
#[derive(Debug)]
pub struct Subject {
    block: GpaEntry,
    /// The memory that it maps.
    memory: Hpa,
}

impl Subject {
    /// 2 MiB at `base`, on the first 2 MiB of guest memory, filled so that no two pages look the same.
    pub fn new(base: u64) -> Self {
        let block = GpaEntry::new(Gpa::truncate(base), Level::L2M).expect("an aligned base");
        let memory = memory::page(0);
        for index in 0..PAGES {
            let (word, value) = sample(index);
            memory::word(memory::page(index.into()), word).store(value, Ordering::Relaxed);
        }
        Self { block, memory }
    }

    fn page(&self, index: u16) -> GpaEntry {
        self.block.child(index).expect("an index below 512")
    }

    /// Reads every page but those of `holes`, which must fault.
    fn read_all(&self, mmu: &Mmu, walker: &mut impl Walker, holes: &[u16]) {
        for index in 0..PAGES {
            let (word, value) = sample(index);
            let at = self.page(index).gpa().raw() + 4 * word as u64;
            match walker.read(at) {
                Ok(read) => {
                    assert!(!holes.contains(&index), "page {index} is a hole, and reads {read:#x}");
                    assert_eq!(read, value, "page {index}");
                }
                Err(fault) => {
                    assert!(holes.contains(&index), "page {index}: {fault:x?}");
                    assert_eq!(fault.at, at, "page {index}");
                    assert_eq!(fault.cause, mmu.read_of_hole, "page {index}: {:#x}", fault.cause);
                }
            }
        }
    }
}

/// Map, split, unmap, merge: with reads of all 512 pages before and after.
pub fn run<F: Format, S: Shootdown>(mmu: &Mmu, space: &Space<'_, F, S>, walker: &mut impl Walker, base: u64) {
    let subject = Subject::new(base);
    let tables = space.tables();
    let check = |claim, body: &mut dyn FnMut()| check(mmu.name, claim, body);

    let all = || 0..PAGES;
    let bits = |index| space.raw(subject.page(index)) & (mmu.accessed | mmu.dirty);

    check("an address that was never mapped faults", &mut || {
        let fault = walker.read(base + 0x1234).expect_err("nothing is mapped");
        assert_eq!((fault.at, fault.cause), (base + 0x1234, mmu.read_of_hole), "{fault:x?}");
        let fault = walker.write(base + 0x2344, 1).expect_err("nothing is mapped");
        assert_eq!((fault.at, fault.cause), (base + 0x2344, mmu.write_to_hole), "{fault:x?}");
    });
    check("a 2M leaf is read in all its 512 pages", &mut || {
        space.map(subject.block, memory::lend(subject.memory, Level::L2M));
        subject.read_all(mmu, walker, &[]);
    });
    check("the MMU sets A, and D on a write, in the 2M leaf", &mut || {
        assert_eq!(space.raw(subject.block) & (mmu.accessed | mmu.dirty), mmu.accessed);
        let (word, value) = sample(9);
        walker.write(subject.page(9).gpa().raw() + 4 * word as u64, value).expect("a writable page");
        assert_eq!(space.raw(subject.block) & mmu.dirty, mmu.dirty);
    });
    check("after a split the same is read", &mut || {
        space.split(subject.block);
        subject.read_all(mmu, walker, &[]);
    });
    check("the MMU sets A in each 4K leaf, and D in one that is written", &mut || {
        assert!(all().all(|index| bits(index) & mmu.accessed != 0));
    });
    check("pages that were unmapped fault, their neighbours do not", &mut || {
        for hole in [0, 300, 511] {
            memory::take_back(space.unmap(subject.page(hole)));
        }
        subject.read_all(mmu, walker, &[0, 300, 511]);
    });
    check("mapped again they are read, and differ from the others in A", &mut || {
        for hole in [0, 300, 511] {
            space.map(subject.page(hole), memory::lend(memory::page(hole.into()), Level::L4K));
        }
        assert_eq!(bits(300), 0, "not read yet");
        let (word, value) = sample(0);
        assert_eq!(walker.read(base + 4 * word as u64), Ok(value));
        walker.write(subject.page(1).gpa().raw() + 4, 1).expect("a writable page");
        assert_eq!(bits(1), mmu.accessed | mmu.dirty);
        assert_eq!(bits(300), 0, "not read yet");
    });
    check("A and D do not stand in the way of a merge, after which the same is read", &mut || {
        space.merge(subject.block);
        subject.read_all(mmu, walker, &[]);
    });
    check("after the 2M leaf was unmapped everything faults, and all tables are back", &mut || {
        memory::take_back(space.unmap(subject.block));
        subject.read_all(mmu, walker, &core::array::from_fn::<u16, 512, _>(|index| index as u16));
        space.trim(subject.block.gpa());
        assert_eq!(space.tables(), tables);
    });
}
