//! A guest-physical address space, or the CPU's own: how a host drives sept-core where no TEE stands behind the table.
//!
//! Every change under a running guest is here, with the fence where it belongs: *block, fence, take* for what is taken
//! away; *close, wait, change, fence* for a merge; no fence at all for a split, since what an MMU may have cached says the
//! same. What needs tables is planned, reserved and then done.

use crate::memory;
use core::{cell::RefCell, hint::spin_loop, sync::atomic::Ordering};
use sept_core::{
    Direct, Entry, Exclusive, Fenced, Frame, FrameKind, FrameList, FrameSlice, FrameSource, FrameStore,
    Frames, GpaEntry, GpaRange, HardwareWalked, Hpa, Level, Obligation, Plan, Scope, SecurePageTable,
    Shootdown, SideWords, TableFrame, TableMemory, Tainted, Word,
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

    /// The table for the only thread that changes it.
    pub fn exclusive(&mut self) -> Exclusive<'_, F, &'m FrameSlice<'m>, Direct<S>> {
        self.table.exclusive()
    }

    /// Room for reserved frames: any number, chained through their side words.
    fn store(&self) -> FrameList<'m, FrameSlice<'m>> {
        FrameList::new(self.table.memory())
    }

    /// Tables in use, the root included.
    pub fn tables(&self) -> usize {
        TABLES - self.pool.count()
    }

    /// Maps `pages` at `range`, which is free, in pages of at most `largest`.
    pub fn map(&self, range: GpaRange, pages: Frames, largest: Level) {
        let plan = self.table.plan_map(range, pages.hpa(), largest).expect("a free range");
        let reserved = plan.reserve(&self.pool, self.store()).expect("enough tables");
        let done = self.table.map_range(reserved, pages).expect("as planned");
        assert_eq!(done.used, plan.needs());
    }

    /// Splits the pages of `range` that `scope` names.
    pub fn split(&self, range: GpaRange, scope: Scope) {
        let plan = self.table.plan_split(range, scope).expect("a range of this guest");
        let reserved = plan.reserve(&self.pool, self.store()).expect("enough tables");
        let done = self.table.split_range(reserved).expect("as planned");
        assert_eq!(done.used, plan.needs());
    }

    /// Makes one page of the 512 below `at`.
    pub fn merge(&self, at: GpaEntry) {
        self.table.close(at).expect("a table");
        // Whoever was at work in it has left.
        let quiet = self.fence().quiet();
        let mut owed = self.table.obligation();
        self.table.merge_in_place(at, &quiet, &mut owed).expect("512 pages in a row");
        self.settle(owed, |_| unreachable!("a merge frees tables only"));
    }

    /// Takes everything in `range` away and hands out its pages.
    pub fn unmap(&self, range: GpaRange, mut page: impl FnMut(Frame<Tainted>)) {
        self.table.block_range(range).expect("no page across an end");
        let fenced = self.fence();
        let mut owed = self.table.obligation();
        self.table.take_range(range, &fenced, &mut owed, |_, frame| page(frame)).expect("blocked and fenced");
        self.settle(owed, |frame| page(frame.taint()));
    }

    /// Takes away the tables that lead to `range` as far as they are empty.
    pub fn trim(&self, range: GpaRange) {
        let around = range.align_out(Level::L512G);
        let mut owed = self.table.obligation();
        // A table above an empty one is empty a round later.
        while self.table.block_empty_tables(around).expect("nobody else is at work").tables != 0 {
            let fenced = self.fence();
            self.table.unlink_empty_tables(around, &fenced, &mut owed).expect("blocked and fenced");
        }
        self.settle(owed, |_| unreachable!("the tables are empty"));
    }

    /// Puts the tables of `owed` back into the pool, and hands out the pages that they still name, once nobody can reach
    /// them.
    pub fn settle(&self, owed: Obligation, mut page: impl FnMut(Frame)) {
        let quiet = self.fence().quiet();
        let mut each = |_, mut pages: Frames| {
            while let Some(frame) = pages.take(Level::L4K) {
                page(frame);
            }
        };
        self.table.settle_pages(owed, &quiet, &self.pool, &mut each).expect("fenced");
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

/// Frames that are free for tables.
#[derive(Debug)]
struct Pool<'m>(RefCell<FrameList<'m, FrameSlice<'m>>>);

impl<'m> Pool<'m> {
    fn new(memory: &'m FrameSlice<'m>, mut frames: Frames) -> Self {
        let mut list = FrameList::new(memory);
        while let Some(frame) = frames.take(Level::L4K) {
            list.put(FrameKind::MirrorTable, frame).expect("a frame of the slice");
        }
        Self(RefCell::new(list))
    }

    /// How many there are.
    fn count(&self) -> usize {
        self.0.borrow().count(FrameKind::MirrorTable) as usize
    }
}

impl FrameSource for Pool<'_> {
    fn take(&self, kind: FrameKind, _: Hpa) -> Option<Frame> {
        self.0.borrow_mut().get(kind)
    }

    fn give(&self, kind: FrameKind, frame: Frame) {
        self.0.borrow_mut().put(kind, frame).expect("a frame of the slice");
    }
}
