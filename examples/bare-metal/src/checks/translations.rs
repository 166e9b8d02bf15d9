//! What holds for every MMU: it reads through the table what the table says, before and after each change.

use super::check;
use crate::{
    guest::{Fault, Walker},
    memory,
    space::Space,
};
use core::sync::atomic::Ordering;
use sept_core::{Fill, Gpa, GpaEntry, HardwareWalked, Level, Permissions, Shootdown};

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

const PAGES: u16 = 512;

/// 2 MiB of guest memory in which no two pages look the same, and where they are mapped.
struct Subject {
    block: GpaEntry,
}

impl Subject {
    fn page(&self, index: u16) -> GpaEntry {
        self.block.child(index).expect("an index below 512")
    }

    /// The word of a page that is looked at, elsewhere in each page.
    fn word(index: u16) -> usize {
        usize::from(index) * 7 % 1024
    }

    /// The address of that word, and what it holds.
    fn sample(&self, index: u16) -> (u64, u32) {
        (self.page(index).gpa().raw() + 4 * Self::word(index) as u64, 0x5a00_0000 | u32::from(index))
    }

    fn fill(&self, index: u16) {
        memory::word(memory::page(index.into()), Self::word(index))
            .store(self.sample(index).1, Ordering::Relaxed);
    }

    /// Reads every page but those of `holes`, which must fault. sept-core says the same of each address.
    fn read_all<F: HardwareWalked, S: Shootdown>(
        &self,
        mmu: &Mmu,
        space: &Space<'_, F, S>,
        walker: &mut impl Walker,
        holes: impl Fn(u16) -> bool,
    ) {
        for index in 0..PAGES {
            let (at, value) = self.sample(index);
            let offset = 4 * Self::word(index) as u64;
            let (expected, hpa) = if holes(index) {
                (Err(Fault { at, cause: mmu.read_of_hole }), None)
            } else {
                (Ok(value), memory::page(index.into()).checked_add(offset))
            };
            assert_eq!(walker.read(at), expected, "page {index}");
            let translation = space.table().translate(Gpa::truncate(at));
            assert_eq!(translation.map(|translation| translation.hpa), hpa, "page {index}");
        }
    }
}

/// Map, split, block, unmap, protect, merge, with reads of all 512 pages before and after.
pub fn run<F: HardwareWalked, S: Shootdown>(
    mmu: &Mmu,
    space: &mut Space<'_, F, S>,
    walker: &mut impl Walker,
    base: u64,
) {
    let block = GpaEntry::new(Gpa::truncate(base), Level::L2M).expect("an aligned base");
    let subject = Subject { block };
    (0..PAGES).for_each(|index| subject.fill(index));
    large(mmu, space, walker, &subject);
    small(mmu, space, walker, &subject);
    merged(mmu, space, walker, &subject);
    exclusive(mmu, space, walker, &subject);
}

fn none(_: u16) -> bool {
    false
}

fn all(_: u16) -> bool {
    true
}

fn large<F: HardwareWalked, S: Shootdown>(
    mmu: &Mmu,
    space: &Space<'_, F, S>,
    walker: &mut impl Walker,
    subject: &Subject,
) {
    check(mmu.name, "an address that was never mapped faults", || {
        let (at, _) = subject.sample(77);
        assert_eq!(walker.read(at), Err(Fault { at, cause: mmu.read_of_hole }));
        assert_eq!(walker.write(at, 1), Err(Fault { at, cause: mmu.write_to_hole }));
    });
    check(mmu.name, "a 2M page is read in all its 512 pieces", || {
        space.map(subject.block, memory::lend(memory::page(0), Level::L2M));
        subject.read_all(mmu, space, walker, none);
    });
    check(mmu.name, "the MMU marks it accessed, and dirty when it is written", || {
        let bits = || space.word(subject.block) & (mmu.accessed | mmu.dirty);
        assert_eq!(bits(), mmu.accessed);
        let (at, value) = subject.sample(9);
        assert_eq!(walker.write(at, value), Ok(()));
        assert_eq!(bits(), mmu.accessed | mmu.dirty);
    });
}

fn small<F: HardwareWalked, S: Shootdown>(
    mmu: &Mmu,
    space: &Space<'_, F, S>,
    walker: &mut impl Walker,
    subject: &Subject,
) {
    let holes = |index| [0, 300, 511].contains(&index);
    check(mmu.name, "split into 512 pages it reads the same", || {
        space.split(subject.block);
        // So that the MMU looks at the new table.
        space.fence();
        subject.read_all(mmu, space, walker, none);
    });
    check(mmu.name, "pages that are blocked fault, and are read again when they are unblocked", || {
        let pages = (0..PAGES).filter(|&index| holes(index)).map(|index| subject.page(index));
        pages.clone().for_each(|page| space.table().block(page).expect("a page"));
        let fenced = space.fence();
        subject.read_all(mmu, space, walker, holes);
        pages.for_each(|page| space.table().unblock(page, &fenced).expect("a blocked page"));
        subject.read_all(mmu, space, walker, none);
    });
    check(mmu.name, "pages that are unmapped fault", || {
        for index in (0..PAGES).filter(|&index| holes(index)) {
            memory::take_back(space.unmap(subject.page(index)));
        }
        subject.read_all(mmu, space, walker, holes);
    });
    check(mmu.name, "mapped again, the MMU marks what it reads and what it writes", || {
        for index in (0..PAGES).filter(|&index| holes(index)) {
            space.map(subject.page(index), memory::lend(memory::page(index.into()), Level::L4K));
        }
        let (read, value) = subject.sample(0);
        assert_eq!(walker.read(read), Ok(value));
        let (written, value) = subject.sample(511);
        assert_eq!(walker.write(written, value), Ok(()));
        let bits = |index| space.word(subject.page(index)) & (mmu.accessed | mmu.dirty);
        assert_eq!([0, 300, 511].map(bits), [mmu.accessed, 0, mmu.accessed | mmu.dirty]);
        subject.read_all(mmu, space, walker, none);
    });
    check(mmu.name, "a page without write permission is read, and a write faults", || {
        let (at, value) = subject.sample(300);
        let page = subject.page(300);
        space.table().protect(page, Permissions::READ | Permissions::EXECUTE).expect("a page");
        space.fence();
        assert_eq!(walker.write(at, !value), Err(Fault { at, cause: mmu.write_denied }));
        assert_eq!(walker.read(at), Ok(value));
        assert_eq!(space.word(page) & mmu.dirty, 0);
        space.table().protect(page, Permissions::all()).expect("a page");
        assert_eq!(walker.write(at, value), Ok(()));
    });
}

fn merged<F: HardwareWalked, S: Shootdown>(
    mmu: &Mmu,
    space: &Space<'_, F, S>,
    walker: &mut impl Walker,
    subject: &Subject,
) {
    check(mmu.name, "a table that is closed, or marked not to become one page, is walked", || {
        let table = space.table();
        table.close(subject.block).expect("a table");
        space.fence();
        subject.read_all(mmu, space, walker, none);
        table.reopen(subject.block).expect("a closed table");
        table.inhibit(subject.block, true).expect("a table");
        space.fence();
        subject.read_all(mmu, space, walker, none);
        table.inhibit(subject.block, false).expect("a table");
    });
    check(mmu.name, "accessed and dirty differ from page to page, and merged it reads the same", || {
        let marks = |index| space.word(subject.page(index)) & mmu.dirty;
        assert!((1..PAGES).any(|index| marks(index) != marks(0)));
        let tables = space.tables();
        space.merge(subject.block);
        assert_eq!(space.tables(), tables - 1);
        subject.read_all(mmu, space, walker, none);
    });
    check(
        mmu.name,
        "unmapped all of it faults, marked not to be mapped or not, and its tables come back",
        || {
            memory::take_back(space.unmap(subject.block));
            subject.read_all(mmu, space, walker, all);
            space.table().inhibit(subject.block, true).expect("a free entry");
            subject.read_all(mmu, space, walker, all);
            space.table().inhibit(subject.block, false).expect("a free entry");
            let tables = space.tables();
            space.trim(subject.block);
            assert!(space.tables() < tables);
        },
    );
}

/// The same as the only thread that changes the table, which needs no blocking.
fn exclusive<F: HardwareWalked, S: Shootdown>(
    mmu: &Mmu,
    space: &mut Space<'_, F, S>,
    walker: &mut impl Walker,
    subject: &Subject,
) {
    let tables = space.tables();
    check(mmu.name, "split, unmapped, mapped and merged with exclusive access it reads as it should", || {
        space.map(subject.block, memory::lend(memory::page(0), Level::L2M));
        subject.read_all(mmu, space, walker, none);

        let (mut table, pool) = space.exclusive();
        let mut owed = table.obligation();
        table.split(subject.block, &mut *pool.store()).expect("a page");
        let unmapped = table.unmap(subject.page(300), &mut owed).expect("a page");
        let fenced = space.fence();
        subject.read_all(mmu, space, walker, |index| index == 300);

        let page = space.table().take(unmapped, &fenced).expect("a page that is fenced");
        let (mut table, _) = space.exclusive();
        table.map(subject.page(300), page, Fill::OnAccept).expect("a free entry");
        table.merge(subject.block, &mut owed).expect("512 pages in a row");
        space.settle(owed);
        subject.read_all(mmu, space, walker, none);
    });
    check(mmu.name, "removed with the table above it, all of it faults", || {
        space.split(subject.block);
        let (mut table, _) = space.exclusive();
        let mut owed = table.obligation();
        let above = GpaEntry::containing(subject.block.gpa(), Level::L1G);
        table.remove_subtree(above, &mut owed).expect("a table");
        let mut pages = 0;
        space.settle_pages(owed, |page| {
            pages += 1;
            memory::take_back(page);
        });
        assert_eq!(pages, PAGES);
        assert_eq!(space.tables(), tables);
        subject.read_all(mmu, space, walker, all);
    });
}
