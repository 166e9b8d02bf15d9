//! What holds for every MMU: it reads through the table what the table says, before and after each change.

use crate::{
    guest::{Fault, Walker},
    memory,
    space::Space,
};
use core::{
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};
use sept_core::{Gpa, GpaEntry, GpaRange, HardwareWalked, Level, Permissions, Scope, Shootdown};

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
    /// The cause of a fault when a write meets a page that may be read and executed only.
    pub write_denied: u64,
}

/// Pages of a block of 2 MiB.
const PAGES: u16 = 512;

/// Somebody who reads 2 MiB of guest memory through a table that is changed meanwhile.
///
/// Guest memory from `block` on is the machine's from page 0 on, and no two pages look the same.
struct Subject<'a, 'm, F: HardwareWalked, S: Shootdown, W> {
    mmu: &'a Mmu,
    space: &'a mut Space<'m, F, S>,
    walker: &'a mut W,
    block: GpaEntry,
}

/// Map, split, block, protect, merge and unmap at `base` (a multiple of 2 MiB, free up to the next GiB), with reads of all
/// pages before and after.
pub fn run<F: HardwareWalked, S: Shootdown>(
    mmu: &Mmu,
    space: &mut Space<'_, F, S>,
    walker: &mut impl Walker,
    base: u64,
) {
    let block = GpaEntry::new(Gpa::truncate(base), Level::L2M).expect("an aligned base");
    let mut subject = Subject { mmu, space, walker, block };
    subject.large_page();
    subject.small_pages();
    subject.merge();
    subject.exclusive();
    subject.range();
}

fn nowhere(_: usize) -> bool {
    false
}

fn everywhere(_: usize) -> bool {
    true
}

impl<F: HardwareWalked, S: Shootdown, W: Walker> Subject<'_, '_, F, S, W> {
    fn check(&mut self, claim: &str, body: impl FnOnce(&mut Self)) {
        super::check(self.mmu.name, claim, || body(self));
    }

    fn page(&self, index: u16) -> GpaEntry {
        self.block.child(index).expect("an index below 512")
    }

    /// The word of page `index` that is looked at, elsewhere in each page.
    fn word(index: usize) -> &'static AtomicU32 {
        memory::word(memory::page(index), Self::offset(index) / 4)
    }

    fn offset(index: usize) -> usize {
        index * 28 % 4096
    }

    /// The address of that word, and what it is made to hold.
    fn sample(&self, index: usize) -> (u64, u32) {
        let value = 0x5a00_0000 | index as u32;
        Self::word(index).store(value, Ordering::Relaxed);
        (self.block.gpa().raw() + (index * 4096 + Self::offset(index)) as u64, value)
    }

    /// Reads every one of `pages` but the holes, which must fault. sept-core says the same of each address.
    fn read_all(&mut self, pages: Range<usize>, is_hole: impl Fn(usize) -> bool) {
        for index in pages {
            let (at, value) = self.sample(index);
            let hpa = memory::page(index).raw() | at & Level::L4K.mask();
            let (expected, hpa) = if is_hole(index) {
                (Err(Fault { at, cause: self.mmu.read_of_hole }), None)
            } else {
                (Ok(value), Some(hpa))
            };
            assert_eq!(self.walker.read(at), expected, "page {index}");
            let translation = self.space.table().translate(Gpa::truncate(at));
            assert_eq!(translation.map(|translation| translation.hpa.raw()), hpa, "page {index}");
        }
    }

    fn read_block(&mut self, is_hole: impl Fn(usize) -> bool) {
        self.read_all(0..PAGES.into(), is_hole);
    }

    /// The accessed and dirty marks of the page at `at`.
    fn marks(&self, at: GpaEntry) -> u64 {
        self.space.word(at) & (self.mmu.accessed | self.mmu.dirty)
    }

    fn map_block(&mut self) {
        self.space.map(self.block.range(), memory::lend(0, PAGES.into()), Level::L2M);
    }

    fn large_page(&mut self) {
        self.check("an address that was never mapped faults", |s| {
            let (at, value) = s.sample(77);
            assert_eq!(s.walker.read(at), Err(Fault { at, cause: s.mmu.read_of_hole }));
            assert_eq!(s.walker.write(at, value), Err(Fault { at, cause: s.mmu.write_to_hole }));
        });
        self.check("a 2M page is read in all its 512 pieces", |s| {
            s.map_block();
            s.read_block(nowhere);
        });
        self.check("the MMU marks it accessed, and dirty when it is written", |s| {
            assert_eq!(s.marks(s.block), s.mmu.accessed);
            let (at, value) = s.sample(9);
            assert_eq!(s.walker.write(at, !value), Ok(()));
            assert_eq!(Self::word(9).load(Ordering::Relaxed), !value);
            assert_eq!(s.marks(s.block), s.mmu.accessed | s.mmu.dirty);
        });
    }

    fn small_pages(&mut self) {
        const HOLES: [u16; 3] = [0, 300, 511];
        let is_hole = |index| HOLES.map(usize::from).contains(&index);
        self.check("split into 512 pages it reads the same", |s| {
            s.space.split(s.block.range(), Scope::Whole(Level::L4K));
            assert_eq!(s.marks(s.page(300)), s.mmu.accessed | s.mmu.dirty, "as the 2M page was");
            // So that the MMU looks at the new table.
            s.space.fence();
            s.read_block(nowhere);
        });
        self.check("pages that are blocked fault, and are read again once they are unblocked", |s| {
            let pages = HOLES.map(|index| s.page(index));
            for at in pages {
                s.space.table().block(at).expect("a page");
            }
            let fenced = s.space.fence();
            s.read_block(is_hole);
            for at in pages {
                s.space.table().unblock(at, &fenced).expect("a blocked page");
            }
            s.read_block(nowhere);
        });
        self.check("pages that are unmapped fault", |s| {
            for at in HOLES.map(|index| s.page(index)) {
                s.space.unmap(at.range(), memory::take_back);
            }
            s.read_block(is_hole);
        });
        self.check("mapped again, the MMU marks what it reads and what it writes", |s| {
            for index in HOLES {
                s.space.map(s.page(index).range(), memory::lend(index.into(), 1), Level::L4K);
            }
            let (read, value) = s.sample(0);
            assert_eq!(s.walker.read(read), Ok(value));
            let (written, value) = s.sample(511);
            assert_eq!(s.walker.write(written, value), Ok(()));
            let marks = HOLES.map(|index| s.marks(s.page(index)));
            assert_eq!(marks, [s.mmu.accessed, 0, s.mmu.accessed | s.mmu.dirty]);
        });
        self.check("a page without write permission is read, and a write faults", |s| {
            let page = s.page(300);
            let (at, value) = s.sample(300);
            s.space.table().protect(page, Permissions::READ | Permissions::EXECUTE).expect("a page");
            s.space.fence();
            assert_eq!(s.walker.write(at, !value), Err(Fault { at, cause: s.mmu.write_denied }));
            assert_eq!(s.walker.read(at), Ok(value));
            assert_eq!(s.marks(page), s.mmu.accessed);
            s.space.table().protect(page, Permissions::all()).expect("a page");
            assert_eq!(s.walker.write(at, value), Ok(()));
        });
    }

    fn merge(&mut self) {
        self.check("a table that is closed, or marked not to become one page, is walked", |s| {
            s.space.table().close(s.block).expect("a table");
            s.space.fence();
            s.read_block(nowhere);
            s.space.table().reopen(s.block).expect("a closed table");
            s.space.table().inhibit(s.block, true).expect("a table");
            s.space.fence();
            s.read_block(nowhere);
            s.space.table().inhibit(s.block, false).expect("a table");
        });
        self.check("pages marked differently by the MMU are merged, and read the same", |s| {
            // A page that nobody has read or written.
            s.space.unmap(s.page(8).range(), memory::take_back);
            s.space.map(s.page(8).range(), memory::lend(8, 1), Level::L4K);
            assert_ne!(s.marks(s.page(8)), s.marks(s.page(9)));
            let tables = s.space.tables();
            s.space.merge(s.block);
            assert_eq!(s.marks(s.block), s.mmu.accessed | s.mmu.dirty, "as some of the pages were");
            assert_eq!(s.space.tables(), tables - 1);
            s.read_block(nowhere);
        });
        self.check("unmapped all of it faults, marked not to be mapped or not", |s| {
            s.space.unmap(s.block.range(), memory::take_back);
            s.read_block(everywhere);
            s.space.table().inhibit(s.block, true).expect("a free entry");
            s.read_block(everywhere);
            s.space.table().inhibit(s.block, false).expect("a free entry");
        });
        self.check("tables that are left empty come back", |s| {
            let tables = s.space.tables();
            s.space.trim(s.block.range());
            assert!(s.space.tables() < tables);
            s.read_block(everywhere);
        });
    }

    /// As the only thread that changes the table, which needs no blocking.
    fn exclusive(&mut self) {
        self.check("changed with exclusive access it reads as it should", |s| {
            let tables = s.space.tables();
            let page = s.page(300);
            s.map_block();
            s.read_block(nowhere);
            s.space.split(page.range(), Scope::Ends);

            let mut table = s.space.exclusive();
            let mut owed = table.obligation();
            let unmapped = table.unmap(page, &mut owed).expect("a page");
            let fenced = s.space.fence();
            s.read_block(|index| index == 300);

            let frame = s.space.table().take(unmapped, &fenced).expect("a page that is fenced");
            s.space.map(page.range(), frame.into(), Level::L4K);
            s.space.exclusive().merge(s.block, &mut owed).expect("512 pages in a row");
            s.space.settle(owed, memory::take_back);
            s.read_block(nowhere);

            let mut table = s.space.exclusive();
            let mut owed = table.obligation();
            let around = GpaEntry::containing(s.block.gpa(), Level::L1G).range();
            table
                .unmap_range(around, &mut owed, |_, _| unreachable!("its table goes"))
                .expect("whole tables");
            s.space.settle(owed, memory::take_back);
            s.read_block(everywhere);
            assert_eq!(s.space.tables(), tables);
        });
    }

    /// Ends that lie within 2 MiB.
    fn range(&mut self) {
        self.check("a range is mapped in pages of both sizes, split at its ends, and unmapped", |s| {
            let tables = s.space.tables();
            // 3 pages, one of 2 MiB, 5 pages.
            let pages = 1021..1541;
            let range = s.pages(&pages);
            s.space.map(range, memory::lend(pages.start, pages.len()), Level::L2M);
            s.read_all(1000..1560, |index| !pages.contains(&index));

            let middle = 1100..1200;
            s.space.split(s.pages(&middle), Scope::Ends);
            s.space.unmap(s.pages(&middle), memory::take_back);
            s.read_all(1000..1560, |index| !pages.contains(&index) || middle.contains(&index));

            s.space.unmap(range, memory::take_back);
            s.space.trim(range);
            s.read_all(1000..1560, everywhere);
            assert_eq!(s.space.tables(), tables);
        });
    }

    fn pages(&self, pages: &Range<usize>) -> GpaRange {
        let start =
            self.block.gpa().checked_add(pages.start as u64 * Level::L4K.size()).expect("a low address");
        GpaRange::new(start, pages.len() as u64 * Level::L4K.size()).expect("some pages")
    }
}
