//! The atoms themselves, against one reader, under every interleaving: `ci/loom.sh`.
//!
//! The block is one folio of order 7 or two of order 6: two pages of the vmemmap, of which the second is a tail or the
//! head of the second folio. The first `struct page` of each is modelled, and of the one after it which head it names. The
//! reader's CPU caches translations for as long as it may, until a flush; an instruction of it is a translation and one
//! access, and a flush waits for the one that is under way. A store to a read-only page, or a look at a page given up,
//! fails the model.
//!
//! A freeze waits for attempts that are under way. Or tails are shared with the head, so that the second page shows an image
//! of it, which the page after it gives away; then merges, and splits that are cancelled, go in two rounds with a grace period.
#![cfg(loom)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a model that overflows or misses an index has failed"
)]

use folio_split::{
    Change, Empty, FolioBackend, Large, Order, OrderSet, PageSet, Pfn, PfnBlock, Pinned, Transition,
};
use loom::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use sept_core::{
    Frame, FrameKind, FrameNeeds, FrameSource, FrameStore, Hpa,
    test_util::{FramePool, VecStore},
};
use vmemmap_prealloc::{
    Atom, Commit, Geometry, Reserved, Round, Tail, TailScheme, VmemmapBackend, VmemmapPage,
};

const WRITABLE: usize = 1 << 8;
const HEAD: usize = 1 << 8;
const TAIL: usize = 1 << 9;
const GIVEN_UP: usize = 1 << 10;

/// The `struct page` at the start of a page of the vmemmap.
#[derive(Default)]
struct Memory {
    state: AtomicUsize,
    refs: AtomicUsize,
    /// Index of the head that the next `struct page` names.
    next: AtomicUsize,
}

/// What a correct host does and a broken one leaves out.
#[derive(Clone, Copy, PartialEq)]
enum Omit {
    Nothing,
    /// Freezing does not wait for attempts that saw a head alive. Right in two rounds alone.
    Wait,
    /// That, and the grace period is not waited for.
    Grace,
    /// A flush does not reach the reader.
    Flush,
    /// Freezing leaves the counts as they are.
    Freeze,
}

struct Host {
    /// Page 0 is the first page of the vmemmap, page 1 the template, page 2 what the second folio gets.
    memory: [Memory; 3],
    /// What the two entries of the vmemmap map.
    entries: [AtomicUsize; 2],
    /// What the reader's CPU has cached; locked for one instruction.
    cached: Mutex<[Option<usize>; 2]>,
    /// Locked while the reader is inside an attempt.
    attempt: Mutex<()>,
    books: std::sync::Mutex<Books>,
    omit: Omit,
    tails: TailScheme,
}

#[derive(Default)]
struct Books {
    own: Option<Frame>,
    replaced: Option<Frame>,
    template: Option<Frame>,
}

/// Number of a frame's page: the pool begins at 1.
fn page_of(frame: &Frame) -> usize {
    (frame.hpa().raw() >> 12) as usize
}

/// The page that a tail shows: the first of the vmemmap, or the template.
fn tail_page(tails: TailScheme) -> usize {
    usize::from(tails != TailScheme::SharedWithHead)
}

impl Host {
    fn new(omit: Omit, tails: TailScheme, pool: &FramePool) -> Self {
        let host = Self {
            memory: Default::default(),
            entries: [AtomicUsize::new(WRITABLE), AtomicUsize::new(tail_page(tails))],
            cached: Mutex::new([None; 2]),
            attempt: Mutex::new(()),
            books: std::sync::Mutex::default(),
            omit,
            tails,
        };
        host.memory[0].state.store(HEAD | 7, Ordering::Relaxed);
        host.memory[0].refs.store(1, Ordering::Relaxed);
        host.memory[1].state.store(TAIL | 7, Ordering::Relaxed);
        host.books.lock().unwrap().template = pool.take(FrameKind::TailTemplate, block().base().hpa());
        host
    }

    /// One instruction of the reader.
    fn access<T>(&self, index: usize, run: impl FnOnce(&Memory, bool) -> T) -> T {
        let mut cached = self.cached.lock().unwrap();
        let entry = *cached[index].get_or_insert_with(|| self.entries[index].load(Ordering::Acquire));
        run(&self.memory[entry & 0xff], entry & WRITABLE != 0)
    }

    /// Index of the head that the reader finds.
    fn head(&self, index: usize) -> usize {
        match self.access(index, |page, _| page.state.load(Ordering::Acquire)) {
            state if state & HEAD != 0 && index == 1 => {
                self.access(index, |page, _| page.next.load(Ordering::Acquire))
            }
            state if state & HEAD != 0 => index,
            state if state & TAIL != 0 => index & !1,
            state => panic!("{state:#x} is a page given up"),
        }
    }

    /// Read the head, try to get it, read the head again. Whether there was a reference.
    fn read(&self, index: usize) -> bool {
        let attempt = self.attempt.lock().unwrap();
        let head = self.head(index);
        let refs = self.access(head, |page, _| page.refs.load(Ordering::Acquire));
        let got = refs > 0
            && self.access(head, |page, writable| {
                assert!(writable, "a store to a read-only page");
                page.refs.compare_exchange(refs, refs + 1, Ordering::AcqRel, Ordering::Acquire).is_ok()
            });
        drop(attempt);
        if !got {
            return false;
        }
        let same = self.head(index) == head;
        if same {
            // The folio stays what it is while the reference is held.
            for _ in 0..2 {
                let state = self.access(head, |page, _| page.state.load(Ordering::Acquire));
                let covers = state == HEAD | 7 || state == HEAD | 6 && head == index;
                assert!(covers, "a reference for {index} is on {head}, which is {state:#x}");
            }
        }
        self.access(head, |page, writable| {
            assert!(writable, "a store to a read-only page");
            assert!(page.refs.fetch_sub(1, Ordering::AcqRel) > 0);
        });
        same
    }

    /// Waits for an attempt that is under way.
    fn grace_period(&self) {
        drop(self.attempt.lock().unwrap());
    }

    /// What the writer's CPU sees.
    fn own(&self, index: usize) -> &Memory {
        let entry = self.entries[index].load(Ordering::Relaxed);
        assert!(entry & WRITABLE != 0, "the host stores to a tail");
        &self.memory[entry & 0xff]
    }

    /// Positions of the heads.
    fn heads(&self) -> core::ops::Range<usize> {
        0..if self.own(0).state.load(Ordering::Relaxed) == HEAD | 7 { 1 } else { 2 }
    }
}

fn index_of(folio: PfnBlock) -> usize {
    (block().offset_of(folio.base()).unwrap() / 64) as usize
}

impl FolioBackend for Host {
    type Nodes = ();
    type Frozen = ();

    fn freeze(&self, whole: PfnBlock, _tries: u32) -> Result<(), Pinned> {
        if self.omit == Omit::Freeze {
            return Ok(());
        }
        for index in self.heads() {
            if self.own(index).refs.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Acquire).is_err() {
                (0..index).for_each(|index| self.own(index).refs.store(1, Ordering::Release));
                return Err(Pinned { first: whole.base() });
            }
        }
        if !matches!(self.omit, Omit::Wait | Omit::Grace) && self.heads().len() > 1 {
            self.grace_period();
        }
        Ok(())
    }

    fn split(&self, _frozen: &mut (), piece: PfnBlock, _nodes: &mut ()) {
        let page = self.own(index_of(piece));
        page.refs.store(0, Ordering::Relaxed);
        page.next.store(index_of(piece), Ordering::Relaxed);
        page.state.store(HEAD | usize::from(piece.order().raw()), Ordering::Release);
    }

    fn merge(&self, _frozen: &mut (), whole: PfnBlock, _nodes: &mut ()) -> u64 {
        self.own(0).state.store(HEAD | usize::from(whole.order().raw()), Ordering::Release);
        0
    }

    fn thaw(&self, _frozen: ()) {
        self.heads().for_each(|index| self.own(index).refs.store(1, Ordering::Release));
    }
}

impl VmemmapBackend for Host {
    type Fresh = Frame;
    type Flushed = ();

    fn geometry(&self) -> Geometry {
        Geometry::new(64, 4096, 1, self.tails).unwrap()
    }

    fn is_optimized(&self, _block: PfnBlock) -> bool {
        true
    }

    fn set_optimized(&self, _block: PfnBlock, _optimized: bool) {}

    fn has_template(&self, _near: PfnBlock, _tail: Tail) -> bool {
        true
    }

    fn maps(&self, at: VmemmapPage, _tail: Tail) -> bool {
        self.entries[at.index as usize].load(Ordering::Acquire) & WRITABLE == 0
    }

    fn prepare(&self, at: VmemmapPage, page: Frame) -> Frame {
        let shown = &self.memory[self.entries[at.index as usize].load(Ordering::Relaxed) & 0xff];
        let fresh = &self.memory[page_of(&page)];
        fresh.state.store(shown.state.load(Ordering::Relaxed), Ordering::Relaxed);
        fresh.refs.store(0, Ordering::Relaxed);
        page
    }

    fn write_folio(&self, fresh: &mut Frame, folio: PfnBlock) {
        let fresh = &self.memory[page_of(fresh)];
        fresh.next.store(index_of(folio), Ordering::Relaxed);
        fresh.state.store(HEAD | usize::from(folio.order().raw()), Ordering::Relaxed);
    }

    fn write_tails(&self, at: VmemmapPage, folio: PfnBlock) {
        let state = TAIL | usize::from(folio.order().raw());
        let page = self.own(at.index as usize);
        page.state.store(state, Ordering::Release);
        page.next.store(index_of(folio), Ordering::Release);
    }

    fn map_own(&self, at: VmemmapPage, fresh: Frame) {
        self.entries[at.index as usize].store(page_of(&fresh) | WRITABLE, Ordering::Release);
        self.books.lock().unwrap().own = Some(fresh);
    }

    fn map_tail(&self, at: VmemmapPage, _tail: Tail) {
        self.entries[at.index as usize].store(tail_page(self.tails), Ordering::Release);
        let mut books = self.books.lock().unwrap();
        books.replaced = books.own.take();
    }

    fn flush(&self) {
        if self.omit != Omit::Flush {
            *self.cached.lock().unwrap() = [None; 2];
        }
    }

    /// Gives it up as its source does: overwritten.
    fn take_replaced(&self, _block: PfnBlock, _flushed: &()) -> Option<Frame> {
        let frame = self.books.lock().unwrap().replaced.take()?;
        self.memory[page_of(&frame)].state.store(GIVEN_UP, Ordering::Relaxed);
        self.memory[page_of(&frame)].refs.store(GIVEN_UP, Ordering::Relaxed);
        Some(frame)
    }
}

fn block() -> PfnBlock {
    PfnBlock::new(Pfn::new(0).unwrap(), Order::new(7).unwrap()).unwrap()
}

fn orders() -> OrderSet {
    OrderSet::new([0, 6, 7].map(|order| Order::new(order).unwrap())).unwrap()
}

fn in_two() -> Transition<Empty, Large<core::ops::Range<u64>>> {
    Transition::new(block(), orders(), Empty, Large(0..64))
}

/// A commit of one atom as far as `how` takes it; in two rounds if that is the scheme. False if the reader was in the way,
/// before anything changed: between two rounds it is waited for.
fn commit(
    host: &Host,
    pool: &FramePool,
    change: &mut Atom<impl PageSet, impl PageSet, ()>,
    how: How,
) -> bool {
    let mut store = VecStore::default();
    let pages = u32::from(matches!(change.change(), Change::Split(_)));
    store.fill(&FrameNeeds::of(FrameKind::Vmemmap, pages), Hpa::default(), pool).unwrap();
    let atoms = core::slice::from_mut(change);
    let mut rounds = 0;
    loop {
        let reserved = Reserved { pages: &mut store, nodes: &mut () };
        let Ok(commit) = Commit::freeze(host, host, atoms, reserved, 1) else {
            if atoms[0].round() == Round::First {
                return false;
            }
            thread::yield_now();
            continue;
        };
        let thawed = match (how, rounds) {
            (How::Whole, _) | (How::CancelSecondFrozen | How::CancelSecondRemapped, 0) => {
                commit.remap().unwrap().finish()
            }
            (How::CancelRemapped, 0) | (How::CancelSecondRemapped, _) => commit.remap().unwrap().cancel(),
            (How::CancelFrozen | How::CancelSecondFrozen | How::CancelRemapped, _) => commit.cancel(),
        };
        rounds += 1;
        let waits = thawed.waits();
        let _ = thawed.release(pool);
        if waits == 0 {
            return true;
        }
        if host.omit != Omit::Grace {
            host.grace_period();
        }
    }
}

#[derive(Clone, Copy)]
enum How {
    Whole,
    CancelFrozen,
    CancelRemapped,
    CancelSecondFrozen,
    CancelSecondRemapped,
}

/// A host on which `before` has run, a reader of page `index`, and a writer that does `change` meanwhile.
fn race(
    index: usize,
    (omit, tails): (Omit, TailScheme),
    before: impl Fn(&Host, &FramePool) + Sync + Send + 'static,
    change: impl Fn(&Host, &FramePool) -> bool + Copy + Sync + Send + 'static,
) {
    // Both ends of the race are seen: changes that were made and references that were got.
    let seen = std::sync::Arc::new(std::sync::Mutex::new((0_u64, 0_u64)));
    let counted = std::sync::Arc::clone(&seen);
    loom::model(move || {
        let pool = FramePool::new(Hpa::new(1 << 12).unwrap(), 2);
        let host = Arc::new(Host::new(omit, tails, &pool));
        before(&host, &pool);
        let reader = {
            let host = Arc::clone(&host);
            thread::spawn(move || host.read(index))
        };
        let changed = change(&host, &pool);
        let got = reader.join().unwrap();
        assert_eq!(host.own(0).refs.load(Ordering::Relaxed), 1);
        let mut counted = counted.lock().unwrap();
        counted.0 += u64::from(changed);
        counted.1 += u64::from(got);
    });
    let (changed, got) = *seen.lock().unwrap();
    assert!(changed > 0 && got > 0, "{changed} changes, {got} references");
}

fn split(host: &Host, pool: &FramePool, how: How) -> bool {
    commit(host, pool, &mut Atom::split(in_two(), block()), how)
}

fn merge(host: &Host, pool: &FramePool, how: How) -> bool {
    commit(host, pool, &mut Atom::merge(in_two().reversed(), block()), how)
}

fn already_split(host: &Host, pool: &FramePool) {
    assert!(split(host, pool, How::Whole));
}

fn nothing(_: &Host, _: &FramePool) {}

/// Waits inside the freeze.
const TEMPLATES: (Omit, TailScheme) = (Omit::Nothing, TailScheme::PerOrder);
/// Waits for a grace period between two rounds.
const TWO_ROUNDS: (Omit, TailScheme) = (Omit::Wait, TailScheme::SharedWithHead);

#[test]
fn the_model_is_of_the_layouts() {
    assert!(in_two().to_layout().folios(0).map(|folio| folio.order().raw()).eq([6, 6]));
    assert_eq!(in_two().to_layout().small().next_large(0), Some(0..64));
}

#[test]
fn reader_and_split() {
    for scheme in [TEMPLATES, TWO_ROUNDS] {
        (0..2).for_each(|index| race(index, scheme, nothing, |host, pool| split(host, pool, How::Whole)));
    }
}

#[test]
fn reader_and_merge() {
    (0..2)
        .for_each(|index| race(index, TEMPLATES, already_split, |host, pool| merge(host, pool, How::Whole)));
}

#[test]
fn reader_and_merge_in_two_rounds() {
    (0..2)
        .for_each(|index| race(index, TWO_ROUNDS, already_split, |host, pool| merge(host, pool, How::Whole)));
}

#[test]
fn reader_and_a_split_that_is_cancelled() {
    for index in 0..2 {
        race(index, TEMPLATES, nothing, |host, pool| split(host, pool, How::CancelFrozen));
        race(index, TEMPLATES, nothing, |host, pool| split(host, pool, How::CancelRemapped));
        race(index, TWO_ROUNDS, nothing, |host, pool| split(host, pool, How::CancelFrozen));
        race(index, TWO_ROUNDS, nothing, |host, pool| split(host, pool, How::CancelRemapped));
    }
}

#[test]
fn reader_and_a_merge_that_is_cancelled() {
    for index in 0..2 {
        race(index, TEMPLATES, already_split, |host, pool| merge(host, pool, How::CancelFrozen));
        race(index, TEMPLATES, already_split, |host, pool| merge(host, pool, How::CancelRemapped));
        race(index, TWO_ROUNDS, already_split, |host, pool| merge(host, pool, How::CancelRemapped));
        race(index, TWO_ROUNDS, already_split, |host, pool| merge(host, pool, How::CancelSecondFrozen));
        race(index, TWO_ROUNDS, already_split, |host, pool| merge(host, pool, How::CancelSecondRemapped));
    }
}

#[test]
#[should_panic(expected = "a store to a read-only page")]
fn a_freeze_that_does_not_wait_is_found() {
    let omit = (Omit::Wait, TailScheme::PerOrder);
    race(1, omit, already_split, |host, pool| merge(host, pool, How::Whole));
}

#[test]
#[should_panic(expected = "a store to a read-only page")]
fn a_grace_period_that_is_left_out_is_found() {
    let omit = (Omit::Grace, TailScheme::SharedWithHead);
    race(1, omit, already_split, |host, pool| merge(host, pool, How::Whole));
}

#[test]
#[should_panic(expected = "a store to a read-only page")]
fn a_grace_period_that_a_cancelled_split_leaves_out_is_found() {
    let omit = (Omit::Grace, TailScheme::SharedWithHead);
    race(1, omit, nothing, |host, pool| split(host, pool, How::CancelRemapped));
}

#[test]
#[should_panic]
fn a_flush_that_is_left_out_is_found() {
    let omit = (Omit::Flush, TailScheme::PerOrder);
    race(1, omit, already_split, |host, pool| merge(host, pool, How::Whole));
}

#[test]
#[should_panic]
fn a_freeze_that_is_left_out_is_found() {
    let omit = (Omit::Freeze, TailScheme::PerOrder);
    race(1, omit, already_split, |host, pool| merge(host, pool, How::Whole));
}
