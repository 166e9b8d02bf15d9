//! Tables in front of a TEE, which keeps its own record and refuses what a TDX module would refuse.

use crate::{
    memory::{FRAMES, Memory, Pins, Rcu, THREADS},
    rig::{PD, PT, Pool, at, entry, gpa, lend, live, race, ram, stock, wait},
};
use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicUsize, Ordering},
};
use sept_core::{
    CacheKey, Class, Classify, Donated, Entry, External, Fenced, Fill, Frame, FrameNeeds, FrameSource,
    FrameStore, GpaEntry, Hpa, LeafState, Level, Obligation, Observed, Quiet, Returned, SecurePageTable,
    TableError, Tainted, TdxConfig, TdxMirror, Turn, Word,
    test_util::{MockPages, MockRefusal, MockTee, MockTicket},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

const K4: Level = Level::L4K;
const M2: Level = Level::L2M;
const G1: Level = Level::L1G;
/// The first table that a split makes, where tables end with the one of 2 MiB entries.
const SPLIT: u64 = 5;

/// Fails the model where one call does not come after the other.
struct InTurn(UnsafeCell<()>);

#[expect(unsafe_code, reason = "what loom watches")]
// SAFETY: there is nothing in it.
unsafe impl Sync for InTurn {}

/// [`MockTee`], whose calls take time: other threads get in before and after each, but not to the same entry.
struct Tee {
    mock: MockTee,
    rcu: Rcu,
    /// What a call into the TEE and another one have in common.
    calls: AtomicUsize,
    busy: Mutex<BTreeSet<(u64, u8)>>,
    /// What calls about one entry have in common: each must come after the one before it.
    entries: Mutex<BTreeMap<(u64, u8), Arc<InTurn>>>,
}

impl Tee {
    fn call<R>(&self, at: GpaEntry, call: impl FnOnce(&MockTee) -> R) -> R {
        let key = (at.gpa().raw(), at.level().raw());
        self.calls.fetch_add(1, Ordering::Relaxed);
        assert!(self.busy.lock().unwrap().insert(key), "two calls at once concern {at}");
        let entry = Arc::clone(
            self.entries.lock().unwrap().entry(key).or_insert_with(|| Arc::new(InTurn(UnsafeCell::new(())))),
        );
        let result = entry.0.with_mut(|_| call(&self.mock));
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.busy.lock().unwrap().remove(&key);
        result
    }
}

impl External for Tee {
    type Error = MockRefusal;
    type Pages = MockPages;
    type Ticket = (MockTicket, [usize; THREADS]);

    fn max_map(&self) -> Level {
        self.mock.max_map()
    }

    fn max_leaf(&self) -> Level {
        self.mock.max_leaf()
    }

    fn table_cost(&self, at: GpaEntry, backing: Option<Hpa>) -> FrameNeeds {
        self.mock.table_cost(at, backing)
    }

    fn gather(&self, at: GpaEntry, backing: Option<Hpa>, from: &mut dyn FrameStore) -> Option<MockPages> {
        self.mock.gather(at, backing, from)
    }

    fn addresses(&self, pages: &MockPages) -> Donated {
        self.mock.addresses(pages)
    }

    fn scatter(
        &self,
        pages: MockPages,
        scrub: &mut dyn FnMut(Frame<Tainted>) -> Frame,
        to: &mut dyn FrameStore,
    ) {
        self.mock.scatter(pages, scrub, to);
    }

    fn link(
        &self,
        at: GpaEntry,
        backing: Option<Hpa>,
        pages: MockPages,
    ) -> Result<(), Returned<MockRefusal, MockPages>> {
        self.call(at, |tee| tee.link(at, backing, pages))
    }

    fn unlink(&self, at: GpaEntry, backing: Option<Hpa>) -> Result<Donated, MockRefusal> {
        self.call(at, |tee| tee.unlink(at, backing))
    }

    fn map(&self, at: GpaEntry, page: Frame, fill: Fill) -> Result<(), Returned<MockRefusal, Frame>> {
        self.call(at, |tee| tee.map(at, page, fill))
    }

    fn unmap(&self, at: GpaEntry, expect: Hpa) -> Result<(), MockRefusal> {
        self.call(at, |tee| tee.unmap(at, expect))
    }

    fn block(&self, at: GpaEntry) -> Result<(), MockRefusal> {
        self.call(at, |tee| tee.block(at))
    }

    fn unblock(&self, at: GpaEntry) -> Result<(), MockRefusal> {
        self.call(at, |tee| tee.unblock(at))
    }

    fn fence(&self) -> Result<Self::Ticket, MockRefusal> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok((self.mock.fence()?, self.rcu.begin()))
    }

    fn grace(&self) -> Self::Ticket {
        (self.mock.grace(), self.rcu.begin())
    }

    fn fenced(&self, (ticket, walks): Self::Ticket) -> bool {
        self.mock.fenced(ticket) && self.rcu.ended(walks)
    }

    fn split(&self, at: GpaEntry, pages: MockPages) -> Result<(), Returned<MockRefusal, MockPages>> {
        self.call(at, |tee| tee.split(at, pages))
    }

    fn merge(&self, at: GpaEntry, backing: Hpa) -> Result<Donated, MockRefusal> {
        self.call(at, |tee| tee.merge(at, backing))
    }

    fn probe(&self, at: GpaEntry) -> Result<Observed, MockRefusal> {
        // The one call that may meet another.
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.mock.probe(at)
    }

    fn write_back(&self, page: &Frame<Tainted>, key: CacheKey) -> Result<(), MockRefusal> {
        self.mock.write_back(page, key)
    }
}

type Table = SecurePageTable<TdxMirror, Memory, Tee>;
type Error = TableError<MockRefusal>;

struct Machine {
    table: Table,
    pool: Pool,
    /// A fence that ended before anything was blocked: a proof of nothing.
    early: Fenced,
}

impl Machine {
    /// A table with a way down to entries of `level` at page 0.
    fn new(level: Level, watched: &[(u64, Word)]) -> Self {
        let pins = Pins::new();
        let memory = Memory::new(&pins, watched);
        let pool = Pool::new(&memory);
        let root = pool.take(sept_core::FrameKind::MirrorTable, Hpa::default()).unwrap();
        let tee = Tee {
            mock: MockTee::new(Level::L512G),
            rcu: Rcu { pins: Arc::clone(&pins), lies: false },
            calls: AtomicUsize::new(0),
            busy: Mutex::default(),
            entries: Mutex::default(),
        };
        let table = Table::new(TdxConfig::LEVELS_4, memory, tee, root);
        let tables = if level == K4 { 3 } else { 2 };
        table.link_to(at(0, level), None, &mut stock(&pool, tables, tables)).unwrap();
        let ticket = table.fence().unwrap();
        let early = table.fenced(&ticket).unwrap();
        Self { table, pool, early }
    }

    fn tee(&self) -> &MockTee {
        &self.table.external().mock
    }

    fn map(&self, page: u64, level: Level, host: u64) {
        self.table.map(at(page, level), lend(host, level), Fill::OnAccept).unwrap();
    }

    fn fence(&self) -> Fenced {
        let ticket = self.table.fence().unwrap();
        wait(|| self.table.fenced(&ticket))
    }

    fn grace(&self) -> Quiet {
        let ticket = self.table.grace();
        wait(|| self.table.quiet(&ticket))
    }

    fn settle(&self, owed: Obligation) {
        if !owed.is_empty() {
            let refused = self.table.settle(owed, &self.early.quiet(), &self.pool).unwrap_err();
            let quiet = self.grace();
            self.table.settle(refused.rest, &quiet, &self.pool).unwrap();
        }
    }

    /// Tables of the mirror, and as many of the TEE, are all that is out of the pool; both sides have the same pages; and
    /// the TEE never had to refuse anything.
    fn agree(&self) {
        // What was on its way when a table above was blocked finds the way closed: contention.
        let closed = |call: &(_, MockRefusal)| call.1 == MockRefusal::Hidden;
        assert!(self.tee().refused().iter().all(closed), "{:?}", self.tee().refused());
        let tables = self.tee().tables();
        assert_eq!(FRAMES - self.pool.left(), 1 + 2 * tables.len() as u64, "frames out of the pool");
        for (at, _, blocked) in tables {
            let entry = self.table.entry(at).unwrap();
            assert!(matches!(entry, Entry::Table { .. }), "{at}: {entry}");
            assert_eq!(entry.blocked().is_some(), blocked, "{at}");
        }
        let leaves = self.tee().leaves();
        let mapped = self.table.entries(at(0, G1).range()).filter(|found| found.entry != Entry::Free);
        assert!(mapped.map(|found| found.at).eq(leaves.iter().map(|leaf| leaf.at)), "other pages");
        for leaf in leaves.iter().filter(|leaf| leaf.at.level() > K4 || leaf.at.gpa().raw() >> 12 < 16) {
            let Ok(Entry::Leaf { hpa, blocked, .. }) = self.table.entry(leaf.at) else { panic!("{leaf:?}") };
            assert_eq!((hpa, blocked.is_some()), (leaf.hpa, leaf.blocked), "{}", leaf.at);
        }
    }
}

fn map(machine: &Machine, page: u64, host: u64) -> Result<(), Error> {
    machine.table.map(at(page, K4), lend(host, K4), Fill::OnAccept).map_err(|refused| {
        assert_eq!(refused.held.hpa(), ram(host), "the frame comes back");
        refused.error
    })
}

/// Two faults on one address: one call into the TEE.
///
/// Fails if the entry is not frozen for the length of the call.
#[test]
fn two_maps_of_one_entry() {
    race(
        None,
        || Machine::new(K4, &[entry(PT, 0), live(PT)]),
        |machine| map(machine, 0, 7),
        |machine| map(machine, 0, 8),
        |machine, first, second| {
            machine.agree();
            let lost = match (first, second) {
                (Ok(()), Err(lost)) | (Err(lost), Ok(())) => lost,
                both => panic!("{both:?}"),
            };
            match lost {
                TableError::Contended { .. } => "contended",
                TableError::State { found: Entry::Leaf { .. }, .. } => "late",
                lost => panic!("{lost}"),
            }
        },
        &["contended", "late"],
    );
}

/// A page is hidden as soon as it is there: the calls into the TEE come one after the other.
///
/// Fails if `map` publishes the page without ordering its call before.
#[test]
fn block_after_map() {
    race(
        None,
        || Machine::new(K4, &[entry(PT, 0), live(PT)]),
        |machine| map(machine, 0, 7),
        |machine| machine.table.block(at(0, K4)),
        |machine, mapped, blocked| {
            mapped.unwrap();
            machine.agree();
            match blocked {
                Ok(()) => "blocked",
                Err(TableError::Contended { .. }) => "contended",
                Err(TableError::State { found: Entry::Free, .. }) => "before",
                other => panic!("{other:?}"),
            }
        },
        &["blocked", "contended", "before"],
    );
}

/// A fault on a piece of a page that is being split.
///
/// Fails if the table is published before the TEE has split, or not frozen meanwhile.
#[test]
fn map_under_split() {
    race(
        None,
        || {
            let machine = Machine::new(M2, &[entry(PD, 0), entry(SPLIT, 1)]);
            machine.map(0, M2, 0);
            machine
        },
        |machine| {
            machine.table.block(at(0, M2)).unwrap();
            let fence = machine.fence();
            machine.table.split(at(0, M2), &fence, &mut stock(&machine.pool, 1, 1))
        },
        |machine| map(machine, 1, 600),
        |machine, split, refused| {
            split.unwrap();
            machine.agree();
            assert_eq!(machine.table.translate(gpa(1)).unwrap().hpa, ram(1));
            match refused {
                Err(TableError::NoTable { found: Entry::Leaf { .. }, .. }) => "before",
                Err(TableError::Contended { .. }) => "contended",
                Err(TableError::State { found: Entry::Leaf { hpa, .. }, .. }) if hpa == ram(1) => "after",
                other => panic!("{other:?}"),
            }
        },
        &["before", "contended", "after"],
    );
}

/// What a reader finds while a page is split and merged again, and its table given away: the page, hidden or not, or that
/// somebody is at work.
///
/// Fails if `settle` does not ask for a grace period.
#[test]
fn look_under_split_and_merge() {
    race(
        None,
        || {
            let machine = Machine::new(M2, &[entry(PD, 0), entry(SPLIT, 5)]);
            machine.map(0, M2, 0);
            machine
        },
        |machine| {
            let (place, mut owed) = (at(0, M2), machine.table.obligation());
            machine.table.block(place).unwrap();
            let mut store = stock(&machine.pool, 1, 1);
            let early = machine.table.split(place, &machine.early, &mut store);
            assert_eq!(early, Err(TableError::NotFenced { at: place }));
            let fence = machine.fence();
            machine.table.split(place, &fence, &mut store).unwrap();
            machine.table.block(place).unwrap();
            let early = machine.table.merge(place, &machine.early, &mut owed);
            assert_eq!(early, Err(TableError::NotFenced { at: place }));
            let fence = machine.fence();
            machine.table.merge(place, &fence, &mut owed).unwrap();
            machine.settle(owed);
        },
        |machine| {
            let found = machine.table.lookup(gpa(5)).unwrap();
            match found.entry {
                Entry::Frozen => "frozen",
                Entry::Leaf { hpa, blocked, .. } => {
                    let offset = gpa(5).raw() - found.at.gpa().raw();
                    assert_eq!(hpa.checked_add(offset), Some(ram(5)));
                    assert_eq!(found.translation(gpa(5)).is_some(), blocked.is_none() && !found.hidden);
                    if found.at.level() == M2 { "2M" } else { "4K" }
                }
                other => panic!("{other}"),
            }
        },
        |machine, (), found| {
            machine.agree();
            found
        },
        &["frozen", "2M", "4K"],
    );
}

/// A page is removed and its table unlinked and given away, while somebody walks there and faults on the page beside it.
///
/// Fails if `unlink` does not ask for a fence, or counts before it asks.
#[test]
fn unmap_under_map() {
    race(
        Some(3),
        || {
            let machine = Machine::new(K4, &[entry(PD, 0), entry(PT, 0), entry(PT, 1), live(PT)]);
            machine.map(0, K4, 0);
            machine
        },
        |machine| {
            machine.table.block(at(0, K4)).unwrap();
            machine.table.block(at(0, M2)).unwrap();
            let fence = machine.fence();
            // What is below a blocked table cannot be removed, so that one is shown again.
            machine.table.unblock(at(0, M2), &fence).unwrap();
            let page = machine.table.remove(at(0, K4), &fence).unwrap();
            let _home: Frame = machine.table.reclaim(page).unwrap();
            machine.table.block(at(0, M2)).unwrap();
            let fence = machine.fence();
            let mut owed = machine.table.obligation();
            let unlinked = machine.table.unlink(at(0, M2), &fence, &mut owed);
            if unlinked.is_err() {
                machine.table.unblock(at(0, M2), &fence).unwrap();
            }
            machine.settle(owed);
            unlinked
        },
        |machine| map(machine, 1, 7),
        |machine, unlinked, mapped| {
            machine.agree();
            match (unlinked, mapped) {
                (Ok(()), Err(TableError::Hidden { .. } | TableError::Contended { .. })) => "refused",
                (Ok(()), Err(TableError::NoTable { .. })) => "gone",
                (Ok(()), Err(TableError::External { error: MockRefusal::Hidden, .. })) => {
                    "hidden from the TEE"
                }
                (Err(TableError::NotEmpty { live: 1, .. }), Ok(())) => "stays",
                both => panic!("{both:?}"),
            }
        },
        &["refused", "gone", "stays"],
    );
}

/// Two threads block, fence and split one page: one does, the other has its frames.
///
/// Fails if `split` does not compare what it found when it freezes the entry.
#[test]
fn two_splits_of_one_page() {
    fn split(machine: &Machine) -> Result<(), Error> {
        let mut store = stock(&machine.pool, 1, 1);
        let before = store.kept();
        let blocked = machine.table.block(at(0, M2));
        let fence = machine.fence();
        let result = blocked.and_then(|()| machine.table.split(at(0, M2), &fence, &mut store));
        assert!(result.is_ok() || store.kept() == before, "frames lost");
        store.drain(&store.kept(), &machine.pool);
        result
    }
    race(
        Some(3),
        || {
            let machine = Machine::new(M2, &[entry(PD, 0)]);
            machine.map(0, M2, 0);
            machine
        },
        split,
        split,
        |machine, first, second| {
            let lost = match (first, second) {
                (Ok(()), Err(lost)) | (Err(lost), Ok(())) => lost,
                // The second one blocked the table that the first one had made, which is no page.
                both => panic!("{both:?}"),
            };
            let hidden = machine.table.entry(at(0, M2)).unwrap().blocked().is_some();
            machine.agree();
            match lost {
                TableError::Contended { .. } => "contended",
                TableError::State { found: Entry::Table { .. }, .. } if hidden => "too late",
                TableError::State { found: Entry::Table { .. }, .. } | TableError::NotFenced { .. } => "late",
                lost => panic!("{lost}"),
            }
        },
        &["contended", "too late"],
    );
}

/// A fence that one thread starts while the other one blocks a page is good for the page only if it began afterwards.
///
/// Fails if the number of a block is read before the TEE has blocked, or if a fence draws its number after it began.
#[test]
fn block_beside_a_fence() {
    race(
        None,
        || {
            let machine = Machine::new(K4, &[entry(PT, 0)]);
            machine.map(0, K4, 0);
            machine
        },
        |machine| machine.table.block(at(0, K4)),
        Machine::fence,
        |machine, blocked, fence| {
            blocked.unwrap();
            let removed = machine.table.remove(at(0, K4), &fence);
            machine.agree();
            match removed {
                Ok(page) => {
                    assert_eq!(page.hpa(), ram(0));
                    "covered"
                }
                Err(TableError::NotFenced { .. }) => "not covered",
                Err(error) => panic!("{error}"),
            }
        },
        &["covered", "not covered"],
    );
}

/// A page that is shown again and hidden again under the hands of somebody who wants to remove it: the old fence is good
/// for the old block only.
///
/// Fails if `remove` does not compare what it found when it freezes the entry, or the block keeps its number.
#[test]
fn unblock_under_remove() {
    race(
        None,
        || {
            let machine = Machine::new(K4, &[entry(PT, 0)]);
            machine.map(0, K4, 0);
            machine.table.block(at(0, K4)).unwrap();
            let fence = machine.fence();
            (machine, fence)
        },
        |(machine, fence)| {
            let shown = machine.table.unblock(at(0, K4), fence);
            let hidden = shown.and_then(|()| machine.table.block(at(0, K4)));
            (shown.is_ok(), hidden)
        },
        |(machine, fence)| machine.table.remove(at(0, K4), fence),
        |(machine, _), (shown, hidden), removed| {
            machine.agree();
            match (shown, removed) {
                (false, Ok(page)) => {
                    assert_eq!(page.hpa(), ram(0));
                    "removed"
                }
                (true, Err(TableError::NotFenced { .. })) => "not fenced",
                (true, Err(TableError::Contended { .. })) => {
                    hidden.ok();
                    "contended"
                }
                both => panic!("{both:?}"),
            }
        },
        &["removed", "not fenced", "contended"],
    );
}

/// The host learns of an acceptance while somebody hides the page: neither is lost.
///
/// Fails if `probe` stores what it learnt without taking the entry.
#[test]
fn probe_under_block() {
    race(
        None,
        || {
            let machine = Machine::new(K4, &[entry(PT, 0)]);
            machine.map(0, K4, 0);
            assert!(machine.tee().accept(gpa(0)));
            machine
        },
        |machine| machine.table.block(at(0, K4)),
        |machine| machine.table.probe(at(0, K4)),
        |machine, blocked, probed| {
            let Ok(Entry::Leaf { state, blocked: hidden, .. }) = machine.table.entry(at(0, K4)) else {
                panic!()
            };
            machine.agree();
            assert_eq!(hidden.is_some(), blocked.is_ok());
            match (blocked, probed, state) {
                (Ok(()), Ok(_), LeafState::Mapped) => "both",
                (Ok(()), Ok(Observed::Leaf(LeafState::Mapped)), LeafState::Pending) => "hidden first",
                (Ok(()), Err(TableError::Contended { .. }), LeafState::Pending) => "block first",
                (Err(TableError::Contended { .. }), Ok(_), LeafState::Mapped) => "probe first",
                other => panic!("{other:?}"),
            }
        },
        &["both", "hidden first", "probe first"],
    );
}

/// A range is merged while a page of it is taken away: whatever comes of it, no table stays hidden.
///
/// Fails if a table that lost a page between the look and the block is not shown again.
#[test]
fn merge_of_a_range_under_unmap() {
    race(
        Some(2),
        || {
            let machine = Machine::new(M2, &[entry(PD, 0), entry(SPLIT, 5), live(SPLIT)]);
            machine.map(0, M2, 0);
            machine.table.block(at(0, M2)).unwrap();
            let fence = machine.fence();
            machine.table.split(at(0, M2), &fence, &mut stock(&machine.pool, 1, 1)).unwrap();
            machine
        },
        |machine| {
            let mut resize = machine.table.start_merge(at(0, M2).range());
            let mut owed = machine.table.obligation();
            loop {
                match resize.step(&machine.table, &mut owed) {
                    Ok(Turn::Done) => break,
                    Ok(_) => loom::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
            machine.settle(owed);
            resize.finish().unwrap().0
        },
        |machine| {
            machine.table.block(at(5, K4))?;
            let fence = machine.fence();
            let page = machine.table.remove(at(5, K4), &fence);
            if page.is_err() {
                // The table above may be hidden for the length of the merge.
                let shown = wait(|| match machine.table.unblock(at(5, K4), &fence) {
                    Err(error) if error.class() == Class::Retry => None,
                    shown => Some(shown),
                });
                shown.unwrap();
            }
            page.map(|_| ())
        },
        |machine, resized, removed| {
            machine.agree();
            assert_eq!(machine.table.entry(at(0, M2)).unwrap().blocked(), None, "the table stays hidden");
            match (resized.changed, removed) {
                (1, Err(_)) => "merged",
                (0, Ok(())) => "removed",
                (0, Err(_)) => "neither",
                both => panic!("{both:?}"),
            }
        },
        &["merged", "removed"],
    );
}
