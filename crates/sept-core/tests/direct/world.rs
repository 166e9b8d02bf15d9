//! A host with several threads: walks that shootdowns wait for, and guest memory of which each page has one owner.

use crate::rig::arena_writes;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sept_core::test_util::{Arena, FramePool, VecStore};
use sept_core::{
    Direct, Fenced, Fill, Frame, FrameKind, FrameSource, FrameStore, Gpa, GpaEntry, HardwareWalked, Hpa,
    Level, Obligation, Quiet, SecurePageTable, Shootdown, TableError, TableMemory, Translation, Word,
};
use std::{sync::Arc, thread::yield_now};

/// Threads beside the main one, which is number 0.
pub(crate) const THREADS: u64 = 4;
const SLOTS: usize = 5;
pub(crate) const K4: Level = Level::L4K;
pub(crate) const M2: Level = Level::L2M;
/// Host memory of the guest's page 0.
const RAM: u64 = 1 << 40;

pub(crate) type Error = TableError<core::convert::Infallible>;

thread_local! {
    /// Number of the thread, and how many pins it holds.
    static SELF: Cell<(usize, u32)> = const { Cell::new((0, 0)) };
}

/// To be called first by each thread but the main one, with a number from 1 on.
pub(crate) fn become_thread(number: u64) {
    SELF.set((usize::try_from(number).unwrap(), 0));
}

/// Walks begun and ended by each thread: odd while it is inside of one.
struct Pins([AtomicU64; SLOTS]);

impl Pins {
    fn pin(&self) -> Pin<'_> {
        let (number, depth) = SELF.get();
        SELF.set((number, depth + 1));
        if depth == 0 {
            self.0[number].fetch_add(1, Ordering::SeqCst);
        }
        Pin(self)
    }
}

pub(crate) struct Pin<'a>(&'a Pins);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let (number, depth) = SELF.get();
        SELF.set((number, depth - 1));
        if depth == 1 {
            self.0.0[number].fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A shootdown: done when every walk that it found has ended.
struct Rcu(Arc<Pins>);

#[expect(unsafe_code, reason = "the trait's promise")]
// SAFETY: modelled memory; `done` waits for every pin that was held when it started, and the guest is such a walk.
unsafe impl Shootdown for Rcu {
    type Ticket = [u64; SLOTS];

    fn start(&self) -> Self::Ticket {
        self.0.0.each_ref().map(|count| count.fetch_add(0, Ordering::SeqCst))
    }

    fn done(&self, ticket: Self::Ticket) -> bool {
        let over = |(then, count): (&u64, &AtomicU64)| {
            then.is_multiple_of(2) || count.load(Ordering::SeqCst) != *then
        };
        ticket.iter().zip(&self.0.0).all(over)
    }
}

/// An arena with pins.
struct Memory(Arena, Arc<Pins>);

#[expect(unsafe_code, reason = "forwards to an implementor")]
// SAFETY: every method forwards to a type that keeps the promises, but `pin`, which promises nothing by itself.
unsafe impl TableMemory for Memory {
    type Pin<'a> = Pin<'a>;

    fn pin(&self) -> Pin<'_> {
        self.1.pin()
    }

    fn load(&self, table: Hpa, word: Word, order: Ordering) -> u64 {
        self.0.load(table, word, order)
    }

    arena_writes!();
}

/// The table, and what is known of the pages of the guest: each has one page of host memory that may be mapped there.
pub(crate) struct World<F: HardwareWalked> {
    table: SecurePageTable<F, Memory, Direct<Rcu>>,
    pool: FramePool,
    pins: Arc<Pins>,
    /// Whether the guest has the page, or somebody who is about to map it.
    lent: Vec<AtomicBool>,
}

pub(crate) fn at(page: u64, level: Level) -> GpaEntry {
    GpaEntry::containing(Gpa::new(page << 12).unwrap(), level)
}

/// The 4 KiB pages of an entry.
pub(crate) fn pages(at: GpaEntry) -> core::ops::Range<u64> {
    at.gpa().raw() >> 12..at.end() >> 12
}

#[expect(unsafe_code, reason = "modelled memory")]
fn mint(at: GpaEntry) -> Frame {
    // SAFETY: modelled memory; whoever calls has taken the pages out of the ledger.
    unsafe { Frame::assume_owned(Hpa::new(RAM + at.gpa().raw()).unwrap(), at.level()) }.unwrap()
}

impl<F: HardwareWalked> World<F> {
    /// A guest of `blocks` times 2 MiB, nothing mapped.
    pub(crate) fn new(config: F::Config, blocks: u64) -> Self {
        let pins = Arc::new(Pins([const { AtomicU64::new(0) }; SLOTS]));
        let pool = FramePool::new(Hpa::default(), 1 << 15);
        let memory = Memory(Arena::new(Hpa::default(), 1 << 15, Box::new(|_, _| {})), Arc::clone(&pins));
        let root = pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
        let table = SecurePageTable::new(config, memory, Direct::new(Rcu(Arc::clone(&pins))), root);
        let world =
            Self { table, pool, pins, lent: (0..blocks << 9).map(|_| AtomicBool::new(false)).collect() };
        let mut store = world.store();
        // So that no two blocks have a missing table in common.
        world.table.link_to(at(0, M2), None, &mut store).unwrap();
        world.unstock(store);
        world
    }

    fn flag(&self, page: u64) -> &AtomicBool {
        &self.lent[usize::try_from(page).unwrap()]
    }

    /// Takes the host memory behind `at` out of the ledger, all or nothing.
    fn lend(&self, at: GpaEntry) -> Option<Frame> {
        let taken =
            pages(at).take_while(|page| !self.flag(*page).swap(true, Ordering::AcqRel)).count() as u64;
        if taken == at.level().pages() {
            return Some(mint(at));
        }
        pages(at).take(usize::try_from(taken).unwrap()).for_each(|page| self.back(page));
        None
    }

    fn back(&self, page: u64) {
        assert!(self.flag(page).swap(false, Ordering::AcqRel), "page {page} comes back twice");
    }

    fn take_back(&self, page: Frame) {
        let first = (page.hpa().raw() - RAM) >> 12;
        (first..first + page.level().pages()).for_each(|page| self.back(page));
    }

    fn fence(&self) -> Fenced {
        let ticket = self.table.fence().unwrap();
        loop {
            if let Some(fenced) = self.table.fenced(&ticket) {
                return fenced;
            }
            yield_now();
        }
    }

    fn settle(&self, owed: Obligation) {
        if owed.is_empty() {
            return;
        }
        let mut home = |at: GpaEntry, mut run: sept_core::Frames| {
            let level = at.level();
            while let Some(page) = run.take(level) {
                self.take_back(page);
            }
        };
        // Not counted modulo anything: this proof does not expire.
        self.table.settle_pages(owed, &self.fence().quiet(), &self.pool, &mut home).unwrap();
    }

    fn store(&self) -> VecStore {
        let mut store = VecStore::default();
        for _ in 0..3 {
            let frame = self.pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
            store.put(FrameKind::MirrorTable, frame).unwrap();
        }
        store
    }

    fn unstock(&self, mut store: VecStore) {
        while let Some(frame) = store.get(FrameKind::MirrorTable) {
            self.pool.give(FrameKind::MirrorTable, frame);
        }
    }

    /// Maps the page at `at`, with the tables on the way. `None` if its memory is lent already.
    pub(crate) fn fault(&self, at: GpaEntry) -> Option<Result<(), Error>> {
        let mut page = self.lend(at)?;
        let mut store = self.store();
        let result = loop {
            let Err(refused) = self.table.map(at, page, Fill::OnAccept) else { break Ok(()) };
            page = refused.held;
            let error = match refused.error {
                TableError::NoTable { found: sept_core::Entry::Free, .. } => {
                    match self.table.link_to(at, None, &mut store) {
                        Ok(_) => continue,
                        Err(error) => error,
                    }
                }
                error => error,
            };
            self.take_back(page);
            break Err(error);
        };
        self.unstock(store);
        Some(result)
    }

    pub(crate) fn split(&self, at: GpaEntry) -> Result<(), Error> {
        let mut store = self.store();
        let result = self.table.split_in_place(at, &mut store);
        self.unstock(store);
        result
    }

    fn grace(&self) -> Quiet {
        let ticket = self.table.grace();
        loop {
            if let Some(quiet) = self.table.quiet(&ticket) {
                return quiet;
            }
            yield_now();
        }
    }

    /// Tries `take` until the proof that it makes is good: others may start so many fences meanwhile that it expires.
    fn proven<T>(&self, at: GpaEntry, mut take: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        loop {
            match take() {
                Err(TableError::NotFenced { .. })
                    if self.table.entry(at).is_ok_and(|entry| entry.blocked().is_some()) => {}
                result => return result,
            }
        }
    }

    pub(crate) fn merge(&self, at: GpaEntry) -> Result<(), Error> {
        self.table.close(at)?;
        let mut owed = self.table.obligation();
        let merged = self.proven(at, || self.table.merge_in_place(at, &self.grace(), &mut owed));
        if merged.is_err() {
            // Somebody else may have closed it too, and merged or opened it.
            let _ = self.table.reopen(at);
        }
        self.settle(owed);
        merged
    }

    /// Takes the page at `at` from the guest. If it cannot, it shows it again as far as others let it.
    pub(crate) fn remove(&self, at: GpaEntry) -> Result<(), Error> {
        self.table.block(at)?;
        let page = self.proven(at, || self.table.remove(at, &self.fence()));
        let page = page.inspect_err(|_| self.show(at))?;
        self.take_back(self.table.reclaim(page).unwrap());
        Ok(())
    }

    fn show(&self, at: GpaEntry) {
        let _ = self.proven(at, || self.table.unblock(at, &self.fence()));
    }

    /// Takes the table at `at` with everything below it.
    pub(crate) fn remove_subtree(&self, at: GpaEntry) -> Result<(), Error> {
        self.out(at, |fence, owed| self.table.remove_subtree(at, fence, owed))
    }

    /// Takes the table at `at` if it is empty.
    pub(crate) fn unlink(&self, at: GpaEntry) -> Result<(), Error> {
        self.out(at, |fence, owed| self.table.unlink(at, fence, owed))
    }

    fn out(
        &self,
        at: GpaEntry,
        take: impl Fn(&Fenced, &mut Obligation) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.table.block(at)?;
        let mut owed = self.table.obligation();
        let result = self.proven(at, || take(&self.fence(), &mut owed));
        if result.is_err() {
            self.show(at);
        }
        self.settle(owed);
        result
    }

    /// What the guest finds at its page, checked while it is inside: its own memory, which the host has not taken back.
    pub(crate) fn guest_reads(&self, page: u64) -> Option<Translation> {
        let _inside = self.pins.pin();
        let found = self.table.translate(at(page, K4).gpa())?;
        assert_eq!(found.hpa.raw(), RAM + (page << 12), "page {page} is another one");
        assert!(self.flag(page).load(Ordering::Acquire), "page {page} is the host's");
        Some(found)
    }

    /// Every invariant, when nobody is at work: what is mapped is what is lent, and all other tables are in the pool.
    pub(crate) fn check(&self) {
        let census = self.table.audit().unwrap();
        assert_eq!(self.pool.outstanding().total(), census.tables);
        assert_eq!(self.pool.faults(), []);
        let mut mapped = vec![false; self.lent.len()];
        let guest = sept_core::GpaRange::new(Gpa::default(), (self.lent.len() as u64) << 12).unwrap();
        for found in self.table.entries(guest) {
            if let sept_core::Entry::Leaf { hpa, .. } = found.entry {
                assert_eq!(hpa.raw(), RAM + found.at.gpa().raw());
                pages(found.at).for_each(|page| mapped[usize::try_from(page).unwrap()] = true);
            }
        }
        let lent: Vec<_> = self.lent.iter().map(|lent| lent.load(Ordering::Acquire)).collect();
        assert!(lent == mapped, "a page is lost");
    }
}
