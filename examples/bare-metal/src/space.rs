//! A guest-physical address space, or the CPU's own: how a host drives sept-core where no TEE stands behind the table.
//!
//! Every change under a running guest is here, with the fence where it belongs: *block, fence, take* for what is taken
//! away; *change, then fence* for a merge; no fence at all for a split, since what an MMU may have cached says the same.
//! Nothing here allocates: tables come out of a pool and go back to it.

use crate::memory;
use core::{
    cell::{RefCell, RefMut},
    hint::spin_loop,
    sync::atomic::Ordering,
};
use sept_core::{
    Direct, Entry, Exclusive, Fenced, Fill, Frame, FrameKind, FrameList, FrameSlice, FrameSource, FrameStore,
    Frames, GpaEntry, HardwareWalked, Hpa, Level, Obligation, SecurePageTable, Shootdown, SideWords,
    TableError, TableFrame, TableMemory, Tainted, Word,
};

const TABLES: usize = 32;

/// Memory for tables.
#[derive(Debug)]
pub struct Tables {
    frames: [TableFrame; TABLES],
    sides: [SideWords; TABLES],
}

impl Tables {
    /// Zeroes.
    pub const fn new() -> Self {
        Self { frames: [const { TableFrame::ZERO }; TABLES], sides: [const { SideWords::ZERO }; TABLES] }
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

/// A page table of format `F` whose tables are in a slice and whose fences are those of `S`.
pub type Table<'m, F, S> = SecurePageTable<F, &'m FrameSlice<'m>, Direct<S>>;

/// The table, and the pool its tables come from.
#[derive(Debug)]
pub struct Space<'m, F: HardwareWalked, S: Shootdown> {
    table: Table<'m, F, S>,
    pool: Pool<'m>,
}

/// Runs `body` with an empty address space.
pub fn with_space<F: HardwareWalked, S: Shootdown, R>(
    tables: &mut Tables,
    config: F::Config,
    shootdown: S,
    body: impl FnOnce(&mut Space<'_, F, S>) -> R,
) -> R {
    let base = Hpa::truncate(tables.frames.as_ptr().addr() as u64);
    // SAFETY:
    // * physical addresses are pointers here;
    // * whoever makes an MMU walk the table answers for it that it does not outlive `body`, and a fence follows;
    // * `clear` overwrites every word of the page.
    let made = unsafe { FrameSlice::new(base, &mut tables.frames, &mut tables.sides, memory::clear) };
    let (memory, mut frames) = made.expect("as many side words as frames");
    let root = frames.take(Level::L4K).expect("at least one table");
    let pool = Pool::new(&memory, frames);
    let mut space =
        Space { table: SecurePageTable::new(config, &memory, Direct::new(shootdown), root), pool };
    let result = body(&mut space);
    space.fence();
    result
}

impl<'m, F: HardwareWalked, S: Shootdown> Space<'m, F, S> {
    /// The table itself.
    pub fn table(&self) -> &Table<'m, F, S> {
        &self.table
    }

    /// The table for the only thread that changes it, and the pool.
    pub fn exclusive(&mut self) -> (Exclusive<'_, F, &'m FrameSlice<'m>, Direct<S>>, &Pool<'m>) {
        (self.table.exclusive(), &self.pool)
    }

    /// Tables in use, the root included.
    pub fn tables(&self) -> usize {
        TABLES - self.pool.store().count(FrameKind::MirrorTable) as usize
    }

    /// Maps `page`, and the tables on the way to it.
    pub fn map(&self, at: GpaEntry, mut page: Frame) {
        while let Err(refused) = self.table.map(at, page, Fill::OnAccept) {
            let TableError::NoTable { stop, .. } = refused.error else { panic!("{}", refused.error) };
            self.table.link(stop, None, &mut *self.pool.store()).expect("a table");
            page = refused.held;
        }
    }

    /// Takes the page at `at` away.
    pub fn unmap(&self, at: GpaEntry) -> Frame<Tainted> {
        self.table.block(at).expect("a page");
        let fenced = self.fence();
        self.table.remove(at, &fenced).expect("a page that is blocked and fenced")
    }

    /// Takes away the tables that lead to `at` as far as they are empty.
    pub fn trim(&self, at: GpaEntry) {
        let mut owed = self.table.obligation();
        for level in [Level::L2M, Level::L1G, Level::L512G] {
            let at = GpaEntry::containing(at.gpa(), level);
            if self.table.live(at).ok().flatten() == Some(0) {
                self.table.block(at).expect("a table");
                let fenced = self.fence();
                self.table.unlink(at, &fenced, &mut owed).expect("an empty table");
            }
        }
        self.settle(owed);
    }

    /// Makes 512 pages of the page at `at`.
    pub fn split(&self, at: GpaEntry) {
        self.table.split_in_place(at, &mut *self.pool.store()).expect("a page");
    }

    /// Makes one page of the 512 below `at`.
    pub fn merge(&self, at: GpaEntry) {
        self.table.close(at).expect("a table");
        // Whoever was at work below has left.
        let quiet = self.fence().quiet();
        let mut owed = self.table.obligation();
        self.table.merge_in_place(at, &quiet, &mut owed).expect("512 pages in a row");
        self.settle(owed);
    }

    /// Puts the tables of `owed` back into the pool, once nobody can reach them.
    pub fn settle(&self, owed: Obligation) {
        let quiet = self.fence().quiet();
        self.table.settle(owed, &quiet, &self.pool).expect("fenced");
    }

    /// The same, with every page that the tables still name given to `page`.
    pub fn settle_pages(&self, owed: Obligation, mut page: impl FnMut(Frame)) {
        let quiet = self.fence().quiet();
        let settled = self.table.settle_pages(owed, &quiet, &self.pool, &mut |_, frame| page(frame));
        settled.expect("fenced");
    }

    /// Makes every CPU forget what it cached of the table, and waits for it.
    pub fn fence(&self) -> Fenced {
        let ticket = self.table.fence().expect("a host's fence");
        loop {
            if let Some(fenced) = self.table.fenced(&ticket) {
                return fenced;
            }
            spin_loop();
        }
    }

    /// The word at `at`, as the MMU sees it.
    pub fn word(&self, at: GpaEntry) -> u64 {
        self.at_word(at, |memory, table, word| memory.load(table, word, Ordering::Acquire))
    }

    /// Writes the word at `at` behind the table's back.
    pub fn set_word(&self, at: GpaEntry, value: u64) {
        self.at_word(at, |memory, table, word| memory.store(table, word, value, Ordering::Release));
    }

    fn at_word<R>(&self, at: GpaEntry, access: impl FnOnce(&FrameSlice<'m>, Hpa, Word) -> R) -> R {
        let mut table = self.table.root();
        for level in [Level::L512G, Level::L1G, Level::L2M] {
            if level == at.level() {
                break;
            }
            let entry = self.table.entry(GpaEntry::containing(at.gpa(), level));
            let Ok(Entry::Table { hpa, .. } | Entry::Closed { hpa, .. }) = entry else {
                panic!("{entry:?} on the way to {at}");
            };
            table = hpa;
        }
        access(self.table.memory(), table, Word::Entry(at.level().index(at.gpa())))
    }
}

/// Free frames for tables, chained through their own side words.
#[derive(Debug)]
pub struct Pool<'m>(RefCell<FrameList<'m, FrameSlice<'m>>>);

impl<'m> Pool<'m> {
    fn new(memory: &'m FrameSlice<'m>, mut frames: Frames) -> Self {
        let mut list = FrameList::new(memory);
        while let Some(frame) = frames.take(Level::L4K) {
            list.put(FrameKind::MirrorTable, frame).expect("a frame of the slice");
        }
        Self(RefCell::new(list))
    }

    /// The frames as a store.
    pub fn store(&self) -> RefMut<'_, dyn FrameStore + 'm> {
        RefMut::map(self.0.borrow_mut(), |list| list as &mut (dyn FrameStore + 'm))
    }
}

impl FrameSource for Pool<'_> {
    fn take(&self, kind: FrameKind, _: Hpa) -> Option<Frame> {
        self.store().get(kind)
    }

    fn give(&self, kind: FrameKind, frame: Frame) {
        self.store().put(kind, frame).expect("a frame of the slice");
    }
}
