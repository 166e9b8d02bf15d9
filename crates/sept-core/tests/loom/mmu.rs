//! Tables that an MMU walks and no TEE keeps.

use crate::{
    memory::{Memory, Pins, Rcu},
    rig::{PD, PDPT, PT, Pool, at, entry, gpa, lend, live, race, ram, stock, wait},
};
use core::sync::atomic::Ordering;
use sept_core::{
    Direct, Entry, Ept, EptConfig, Fenced, Fill, Frame, FrameKind, FrameSource, FrameStore, GpaEntry, Hpa,
    Level, Obligation, Quiet, SecurePageTable, TableError, TableMemory, Translation, Word,
};
use std::sync::{Arc, Mutex};

const K4: Level = Level::L4K;
const M2: Level = Level::L2M;
const G1: Level = Level::L1G;

type Table = SecurePageTable<Ept, Memory, Direct<Rcu>>;
type Error = TableError<core::convert::Infallible>;

struct Machine {
    table: Table,
    pool: Pool,
    pins: Arc<Pins>,
    /// A fence that ended before anything was blocked: a proof of nothing.
    early: Fenced,
    /// Guest pages that the host has taken back.
    home: Mutex<Vec<Hpa>>,
}

impl Machine {
    /// A table with a way down to entries of `level` at page 0.
    fn new(level: Level, watched: &[(u64, Word)]) -> Self {
        Self::lying(level, watched, false)
    }

    fn lying(level: Level, watched: &[(u64, Word)], lies: bool) -> Self {
        let pins = Pins::new();
        let memory = Memory::new(&pins, watched);
        let pool = Pool::new(&memory);
        let root = pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
        let direct = Direct::new(Rcu { pins: Arc::clone(&pins), lies });
        let table = Table::new(EptConfig::LEVELS_4, memory, direct, root);
        table.link_to(at(0, level), None, &mut stock(&pool, if level == K4 { 3 } else { 2 }, 0)).unwrap();
        let ticket = table.fence().unwrap();
        let early = table.fenced(&ticket).unwrap();
        Self { table, pool, pins, early, home: Mutex::default() }
    }

    fn map(&self, page: u64, level: Level, host: u64) {
        self.table.map(at(page, level), lend(host, level), Fill::OnAccept).unwrap();
    }

    /// All 4 KiB pages of the first 2 MiB but those in `but`.
    fn fill(&self, but: &[u64]) {
        for page in (0..512).filter(|page| !but.contains(page)) {
            self.map(page, K4, page);
        }
    }

    fn fence(&self) -> Fenced {
        let ticket = self.table.fence().unwrap();
        wait(|| self.table.fenced(&ticket))
    }

    fn grace(&self) -> Quiet {
        let ticket = self.table.grace();
        wait(|| self.table.quiet(&ticket))
    }

    fn settle(&self, owed: Obligation, quiet: &Quiet) {
        if !owed.is_empty() {
            let refused = self.table.settle(owed, &self.early.quiet(), &self.pool).unwrap_err();
            self.table.settle(refused.rest, quiet, &self.pool).unwrap();
        }
    }

    /// The page at `at`, which was blocked.
    fn take(&self, at: GpaEntry) -> Frame {
        too_early(at, self.table.remove(at, &self.early));
        let fence = self.fence();
        let page = self.table.remove(at, &fence).unwrap();
        self.table.reclaim(page).unwrap()
    }

    /// What the guest finds, from inside: the CPU is in the guest as long as it uses the page.
    fn guest_reads(&self, page: u64) -> Option<Translation> {
        let _inside = self.pins.pin();
        let found = self.table.translate(gpa(page));
        if let Some(found) = found {
            assert!(!self.home.lock().unwrap().contains(&found.hpa), "the guest reads a page of the host");
        }
        found
    }

    /// Frames that are tables now: the pool has all others.
    fn tables(&self) -> u64 {
        crate::memory::FRAMES - self.pool.left()
    }
}

/// The word that page 0's entry of `level` has.
fn word(machine: &Machine, frame: u64, index: u16) -> u64 {
    machine.table.memory().load(Hpa::new(frame << 12).unwrap(), Word::Entry(index), Ordering::Relaxed)
}

/// What came of a proof that is older than what it is to prove.
fn too_early<T>(at: GpaEntry, result: Result<T, Error>) {
    assert_eq!(result.map(|_| ()), Err(TableError::NotFenced { at }));
}

fn map(machine: &Machine, page: u64, host: u64) -> Result<(), Error> {
    machine.table.map(at(page, K4), lend(host, K4), Fill::OnAccept).map_err(|refused| {
        assert_eq!(refused.held.hpa(), ram(host), "the frame comes back");
        refused.error
    })
}

/// Two faults on one address: one maps its page, the other has its page back.
///
/// Fails if `map` stores instead of comparing and exchanging, or counts with a load and a store.
#[test]
fn two_maps_of_one_entry() {
    race(
        None,
        || Machine::new(K4, &[entry(PT, 0), live(PT)]),
        |machine| map(machine, 0, 7),
        |machine| map(machine, 0, 8),
        |machine, first, second| {
            let (won, host, lost) = match (first, second) {
                (Ok(()), Err(lost)) => ("first", 7, lost),
                (Err(lost), Ok(())) => ("second", 8, lost),
                both => panic!("{both:?}"),
            };
            assert!(matches!(lost, TableError::Contended { .. } | TableError::State { .. }), "{lost:?}");
            assert_eq!(machine.table.translate(gpa(0)).unwrap().hpa, ram(host));
            assert_eq!(machine.table.live(at(0, M2)), Ok(Some(1)));
            won
        },
        &["first", "second"],
    );
}

/// Faults on neighbours whose table is missing: both hang one in, one stays, and both pages are mapped.
///
/// Fails if a table is hung in with a store, or before it was filled.
#[test]
fn two_maps_that_need_one_table() {
    fn fault(machine: &Machine, page: u64) -> u32 {
        let mut store = stock(&machine.pool, 1, 0);
        loop {
            match machine.table.link_to(at(page, K4), None, &mut store) {
                Ok(linked) => {
                    map(machine, page, page).unwrap();
                    let kept = store.kept();
                    store.drain(&kept, &machine.pool);
                    return linked;
                }
                Err(TableError::Contended { .. }) => loom::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }
    race(
        None,
        || {
            Machine::new(
                M2,
                &[
                    entry(PD, 0),
                    entry(PT, 0),
                    entry(PT, 1),
                    entry(4, 0),
                    entry(4, 1),
                    live(PD),
                    live(PT),
                    live(4),
                ],
            )
        },
        |machine| fault(machine, 0),
        |machine| fault(machine, 1),
        |machine, first, second| {
            assert_eq!(first + second, 1, "one table");
            assert_eq!(machine.tables(), 4);
            for page in [0, 1] {
                assert_eq!(machine.table.translate(gpa(page)).unwrap().hpa, ram(page));
            }
            assert_eq!(machine.table.live(at(0, M2)), Ok(Some(2)));
            assert_eq!(machine.table.live(at(0, G1)), Ok(Some(1)));
            if first == 1 { "first" } else { "second" }
        },
        &["first", "second"],
    );
}

/// A fault on a piece of a page that is being split finds it mapped, before and after; a fault beside it goes through.
///
/// Fails if the table is published before it was filled.
#[test]
fn map_under_split() {
    race(
        None,
        || {
            let machine = Machine::new(M2, &[entry(PD, 0), entry(PD, 1), entry(PT, 1), live(PD)]);
            machine.map(0, M2, 0);
            machine
        },
        |machine| machine.table.split_in_place(at(0, M2), &mut stock(&machine.pool, 1, 0)),
        |machine| {
            let refused = map(machine, 1, 600);
            machine.map(512, M2, 1024);
            refused
        },
        |machine, split, refused| {
            split.unwrap();
            assert_eq!(machine.table.translate(gpa(1)).unwrap().hpa, ram(1));
            assert_eq!(machine.table.translate(gpa(512)).unwrap().hpa, ram(1024));
            assert_eq!(machine.table.live(at(0, G1)), Ok(Some(2)));
            match refused {
                Err(TableError::NoTable { found: Entry::Leaf { .. }, .. }) => "before",
                Err(TableError::State { found: Entry::Leaf { hpa, .. }, .. }) if hpa == ram(1) => "after",
                other => panic!("{other:?}"),
            }
        },
        &["before", "after"],
    );
}

/// An MMU marks a page as written while it is split: the mark is in the page or in every piece, never lost.
///
/// Fails if the split ignores what its compare-exchange found.
#[test]
fn dirty_under_split() {
    const DIRTY: u64 = 1 << 9;
    race(
        None,
        || {
            let machine = Machine::new(M2, &[entry(PD, 0), entry(PT, 5)]);
            machine.map(0, M2, 0);
            machine
        },
        |machine| machine.table.split_in_place(at(0, M2), &mut stock(&machine.pool, 1, 0)),
        |machine| {
            let pd = Hpa::new(PD << 12).unwrap();
            let old = word(machine, PD, 0);
            // A walk that ends at the page; one that finds the table marks a piece instead.
            old & 1 << 7 != 0
                && machine.table.memory().compare_exchange(pd, Word::Entry(0), old, old | DIRTY).is_ok()
        },
        |machine, split, marked| {
            split.unwrap();
            let Ok(Entry::Table { hpa, .. }) = machine.table.entry(at(0, M2)) else { panic!("not split") };
            let piece = word(machine, hpa.raw() >> 12, 5);
            assert_eq!(piece & DIRTY != 0, marked, "{piece:#x}");
            if marked { "marked" } else { "not" }
        },
        &["marked", "not"],
    );
}

/// Two splits of one page: one table, and the other thread has its frame.
///
/// Fails if the split stores instead of comparing and exchanging.
#[test]
fn two_splits_of_one_page() {
    fn split(machine: &Machine) -> Result<(), Error> {
        let mut store = stock(&machine.pool, 1, 0);
        let result = machine.table.split_in_place(at(0, M2), &mut store);
        assert_eq!(store.count(FrameKind::MirrorTable), u32::from(result.is_err()));
        store.drain(&store.kept(), &machine.pool);
        result
    }
    race(
        None,
        || {
            let machine = Machine::new(M2, &[entry(PD, 0), entry(PT, 9), entry(4, 9)]);
            machine.map(0, M2, 0);
            machine
        },
        split,
        split,
        |machine, first, second| {
            let lost = match (first, second) {
                (Ok(()), Err(lost)) | (Err(lost), Ok(())) => lost,
                both => panic!("{both:?}"),
            };
            assert_eq!(machine.table.translate(gpa(9)).unwrap().hpa, ram(9));
            assert_eq!((machine.tables(), machine.table.live(at(0, M2))), (4, Ok(Some(512))));
            match lost {
                TableError::Contended { .. } => "contended",
                TableError::State { found: Entry::Table { .. }, .. } => "late",
                lost => panic!("{lost}"),
            }
        },
        &["contended", "late"],
    );
}

fn split_and_merge(machine: &Machine) {
    let place = at(0, M2);
    machine.table.split_in_place(place, &mut stock(&machine.pool, 1, 0)).unwrap();
    machine.table.close(place).unwrap();
    let quiet = machine.grace();
    let mut owed = machine.table.obligation();
    machine.table.merge_in_place(place, &quiet, &mut owed).unwrap();
    let fence = machine.fence();
    machine.settle(owed, &fence.quiet());
}

/// What the guest reaches stays where it is while the page is split, merged, and the table's frame given away.
///
/// Fails if the table is given away before a fence that began after the merge (see below), and if the merged page is
/// published before the entries below were read.
#[test]
fn translate_under_split_and_merge() {
    race(
        None,
        || {
            let machine = Machine::new(M2, &[entry(PD, 0), entry(PT, 5)]);
            machine.map(0, M2, 0);
            machine
        },
        split_and_merge,
        |machine| [(); 2].map(|()| machine.guest_reads(5).unwrap()),
        |machine, (), found| {
            assert!(found.iter().all(|found| found.hpa == ram(5)), "{found:?}");
            assert_eq!(machine.tables(), 3);
            match found.map(|found| found.level) {
                [M2, M2] => "2M",
                [M2, K4] => "2M, 4K",
                [K4, M2] => "4K, 2M",
                _ => "4K",
            }
        },
        &["2M", "2M, 4K", "4K, 2M", "4K"],
    );
}

/// The same with a shootdown that does not wait: the guest is met in a frame that is no table any more.
#[test]
#[should_panic(expected = "is no table any more")]
fn a_shootdown_that_lies_is_found() {
    race(
        None,
        || {
            let machine = Machine::lying(M2, &[entry(PD, 0), entry(PT, 5)], true);
            machine.map(0, M2, 0);
            machine
        },
        split_and_merge,
        |machine| machine.guest_reads(5),
        |_, (), _| "",
        &[],
    );
}

/// A fault in a table that is being merged: the page is in the merged page, or it is refused and the merge too.
///
/// Fails if `close` is left out, or if `merge_in_place` does not ask for a grace period since.
#[test]
fn map_under_merge() {
    race(
        None,
        || {
            let machine = Machine::new(K4, &[entry(PD, 0), entry(PT, 5), live(PT)]);
            machine.fill(&[5]);
            machine
        },
        |machine| {
            let place = at(0, M2);
            machine.table.close(place).unwrap();
            let mut owed = machine.table.obligation();
            too_early(place, machine.table.merge_in_place(place, &machine.early.quiet(), &mut owed));
            let quiet = machine.grace();
            let merged = machine.table.merge_in_place(place, &quiet, &mut owed);
            if merged.is_err() {
                machine.table.reopen(place).unwrap();
            }
            let fence = machine.fence();
            machine.settle(owed, &fence.quiet());
            merged
        },
        |machine| map(machine, 5, 5),
        |machine, merged, mapped| {
            let found = machine.table.translate(gpa(5));
            assert_eq!(found.map(|found| found.hpa), mapped.is_ok().then(|| ram(5)));
            assert_eq!(machine.table.translate(gpa(6)).unwrap().hpa, ram(6));
            match (merged, mapped) {
                (Ok(()), Ok(())) => "merged",
                (Err(TableError::NotUniform { .. }), Err(TableError::Hidden { .. })) => "refused",
                // Mapped after the table was opened again.
                (Err(TableError::NotUniform { .. }), Ok(())) => "later",
                (Err(TableError::NotUniform { .. }), Err(TableError::Contended { .. })) => "contended",
                both => panic!("{both:?}"),
            }
        },
        &["merged", "refused", "later"],
    );
}

/// A page is taken from a guest that uses it, and then the table: the guest finds the page or nothing, never a page of
/// the host.
///
/// Fails if `remove` or `unlink` does not ask for a fence, if `settle` does not ask for a grace period (with a shootdown that
/// lies, see below), and if the entry is published as blocked before its number is read.
#[test]
fn unmap_under_walk() {
    race(None, || removal(false), remove, |machine| machine.guest_reads(0), removed, &["page", "nothing"]);
}

#[test]
#[should_panic(expected = "is no table any more")]
fn a_removal_without_a_fence_is_found() {
    race(None, || removal(true), remove, |machine| machine.guest_reads(0), removed, &[]);
}

fn removal(lies: bool) -> Machine {
    let machine = Machine::lying(K4, &[entry(PDPT, 0), entry(PD, 0), entry(PT, 0), live(PT)], lies);
    machine.map(0, K4, 0);
    machine
}

fn remove(machine: &Machine) {
    machine.table.block(at(0, K4)).unwrap();
    let page = machine.take(at(0, K4));
    machine.home.lock().unwrap().push(page.hpa());
    machine.table.block(at(0, M2)).unwrap();
    let mut owed = machine.table.obligation();
    too_early(at(0, M2), machine.table.unlink(at(0, M2), &machine.early, &mut owed));
    let fence = machine.fence();
    machine.table.unlink(at(0, M2), &fence, &mut owed).unwrap();
    let quiet = machine.grace();
    machine.settle(owed, &quiet);
}

fn removed(machine: &Machine, (): (), found: Option<Translation>) -> &'static str {
    assert_eq!(machine.tables(), 3);
    assert_eq!(machine.table.entry(at(0, M2)), Ok(Entry::Free));
    if found.is_some() { "page" } else { "nothing" }
}

/// A fault in a table that is being unlinked: either the table stays, or the fault is refused and nothing is lost.
///
/// Fails if `unlink` counts before it asks for the fence, or freezes an entry that was unblocked since.
#[test]
fn map_under_unlink() {
    race(
        None,
        || Machine::new(K4, &[entry(PD, 0), entry(PT, 0), live(PT)]),
        |machine| {
            let place = at(0, M2);
            machine.table.block(place).unwrap();
            let fence = machine.fence();
            let mut owed = machine.table.obligation();
            let unlinked = machine.table.unlink(place, &fence, &mut owed);
            if unlinked.is_err() {
                machine.table.unblock(place, &fence).unwrap();
            }
            let quiet = machine.grace();
            machine.settle(owed, &quiet);
            unlinked
        },
        |machine| map(machine, 0, 7),
        |machine, unlinked, mapped| {
            let found = machine.table.translate(gpa(0));
            assert_eq!(found.map(|found| found.hpa), mapped.is_ok().then(|| ram(7)));
            assert_eq!(machine.tables(), if unlinked.is_ok() { 3 } else { 4 });
            match (unlinked, mapped) {
                (Ok(()), Err(TableError::Hidden { .. })) => "hidden",
                (Ok(()), Err(TableError::Contended { .. })) => "contended",
                (Ok(()), Err(TableError::NoTable { .. })) => "gone",
                (Err(TableError::NotEmpty { live: 1, .. }), Ok(())) => "stays",
                both => panic!("{both:?}"),
            }
        },
        &["hidden", "gone", "stays"],
    );
}

/// A CPU flushes what it has cached while another thread blocks the table: where it still finds the way down, the flush that
/// it answered is no proof that the table may be taken.
///
/// Fails if the number of a block is read before the MMU lost the table, or if a fence draws its number after it began.
#[test]
fn block_beside_a_fence() {
    race(
        None,
        || {
            let machine = Machine::new(K4, &[entry(PD, 0)]);
            machine.map(0, K4, 0);
            machine
        },
        |machine| machine.table.block(at(0, M2)),
        |machine| {
            // This CPU has left the guest by now, and enters it again while the shootdown waits for walks of the host.
            let ticket = machine.table.fence().unwrap();
            let found = machine.guest_reads(0);
            (wait(|| machine.table.fenced(&ticket)), found)
        },
        |machine, blocked, (fence, found)| {
            blocked.unwrap();
            let mut owed = machine.table.obligation();
            match machine.table.remove_subtree(at(0, M2), &fence, &mut owed) {
                Ok(()) => {
                    assert_eq!(found, None, "the guest has cached what was taken");
                    "covered"
                }
                Err(TableError::NotFenced { .. }) => "not covered",
                Err(error) => panic!("{error}"),
            }
        },
        &["covered", "not covered"],
    );
}

/// A grace period that one thread starts while another one closes a table proves nothing if a fault could still enter the table
/// after it began.
///
/// Fails if the number of the closed table is read before it was closed.
#[test]
fn close_beside_a_grace_period() {
    race(
        None,
        || {
            let machine = Machine::new(K4, &[entry(PD, 0), entry(PT, 5)]);
            machine.fill(&[5]);
            machine
        },
        |machine| machine.table.close(at(0, M2)),
        |machine| {
            let ticket = machine.table.grace();
            let mapped = map(machine, 5, 5);
            (wait(|| machine.table.quiet(&ticket)), mapped)
        },
        |machine, closed, (quiet, mapped)| {
            closed.unwrap();
            let mut owed = machine.table.obligation();
            match (machine.table.merge_in_place(at(0, M2), &quiet, &mut owed), mapped) {
                (Err(TableError::NotUniform { .. }), Err(_)) => "covered",
                (Err(TableError::NotFenced { .. }), _) => "not covered",
                both => panic!("{both:?}"),
            }
        },
        &["covered", "not covered"],
    );
}
