//! Threads that take references on every page while folios are split, merged, and changes turned round.
//!
//! Rounds are counted, never timed. A writer that a reference stops tries again a few times, and then asks the readers
//! to pause: every run does the same number of changes, however threads are scheduled.
#![allow(
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "a test that finds nothing has failed"
)]

mod common;

use common::{block, carry_out, commit, host, reserve};
use folio_split::{Change, Empty, Order, OrderSet, PageSet, Pfn, Transition};
use std::sync::{
    Barrier,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use vmemmap_mmap::MmapHost;
use vmemmap_prealloc::{Atom, Commit, TailScheme, VmemmapBackend};

/// What writer and readers tell each other.
#[derive(Default)]
struct Signals {
    stop: AtomicBool,
    pause: AtomicBool,
    taken: AtomicU64,
}

impl Signals {
    /// Takes a reference on every page of a block, again and again, and keeps some of them for a while.
    fn read(&self, host: &MmapHost, order: u8, start: &Barrier) {
        let reader = host.reader();
        let base = block(order, 0).base().raw();
        let mut kept = Vec::new();
        let mut passes = 0_u64;
        while !self.stop.load(Ordering::SeqCst) {
            for page in 0..1_u64 << order {
                let pause = self.pause.load(Ordering::SeqCst);
                if kept.len() == 4 || pause {
                    for reference in kept.drain(..) {
                        reader.check(&reference).unwrap();
                        reader.put(reference);
                    }
                }
                // With nothing kept.
                while pause && self.pause.load(Ordering::SeqCst) && !self.stop.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                let Some(reference) = reader.try_get(Pfn::new(base + page).unwrap()).unwrap() else {
                    continue;
                };
                self.taken.fetch_add(1, Ordering::Relaxed);
                if page % 97 == passes % 97 {
                    kept.push(reference);
                } else {
                    reader.put(reference);
                }
            }
            passes += 1;
            if passes == 1 {
                for reference in kept.drain(..) {
                    reader.put(reference);
                }
                start.wait();
            }
        }
        kept.into_iter().for_each(|reference| reader.put(reference));
    }

    /// After a few refusals the readers are asked to pause.
    fn refused(&self, times: &mut u32) {
        *times += 1;
        if *times > 3 {
            self.pause.store(true, Ordering::SeqCst);
        }
        std::thread::yield_now();
    }
}

/// Everything that a transition does, with no memory but what was planned: cancelled with all entries written, and carried
/// out together, and undone.
fn turned_round<A: PageSet, B: PageSet>(host: &MmapHost, t: &Transition<A, B>, mut refused: impl FnMut()) {
    let (needs, mut held) = reserve(host, t);
    let images = host.geometry().tails() == TailScheme::SharedWithHead;
    let back = t.reversed();
    // Nothing more is to be had.
    host.limit(Some(0));
    let mut atoms: Vec<_> =
        t.changes(0..t.block().pages()).map(|change| Atom::new(t.by_ref(), change)).collect();
    let mut released = 0;
    // Once more after a grace period, where readers may have seen the new heads of a split under images of the old one.
    for remap in [true, false] {
        let commit = loop {
            match Commit::freeze(host, host, &mut atoms, held.lend(), 4) {
                Ok(commit) => break commit,
                Err(_) => refused(),
            }
        };
        let thawed = if remap { commit.remap().unwrap().cancel() } else { commit.cancel() };
        let waits = thawed.waits() > 0;
        assert_eq!(waits, remap && images && needs.fresh > 0);
        released += thawed.keep(host).released;
        if !waits {
            break;
        }
        host.grace_period();
    }
    assert_eq!((released, held.pages_left()), (needs.fresh, needs.fresh));
    // Merges that go in two rounds are turned round after the first one, and in the second one.
    for remap in [false, true].into_iter().filter(|_| needs.grace_period) {
        let merges = t.changes(0..t.block().pages()).filter(|change| matches!(change, Change::Merge(_)));
        let mut atoms: Vec<_> = merges.map(|change| Atom::new(t.by_ref(), change)).collect();
        for round in 0..2 {
            let commit = loop {
                match Commit::freeze(host, host, &mut atoms, held.lend(), 4) {
                    Ok(commit) => break commit,
                    Err(_) => refused(),
                }
            };
            let thawed = match (round, remap) {
                (0, _) => commit.remap().unwrap().finish(),
                (_, true) => commit.remap().unwrap().cancel(),
                (_, false) => commit.cancel(),
            };
            assert_eq!(thawed.waits() > 0, round == 0);
            let _ = thawed.keep(host);
            host.grace_period();
        }
        assert_eq!(held.pages_left(), needs.fresh);
    }
    commit(host, &mut atoms, &mut held, &mut refused);
    assert_eq!(held.pages_left(), needs.released);
    let mut atoms: Vec<_> =
        back.changes(0..t.block().pages()).map(|change| Atom::new(back.by_ref(), change)).collect();
    commit(host, &mut atoms, &mut held, &mut refused);
    assert_eq!(held.pages_left(), needs.fresh);
    host.limit(None);
    let _ = held.release(host, host);
}

fn run(order: u8, orders: OrderSet, tails: TailScheme, rounds: u64, readers: usize) {
    let host = host(order, 1, orders, tails);
    let start = host.outstanding();
    let (signals, barrier) = (Signals::default(), Barrier::new(readers + 1));
    let pages = 1_u64 << order;
    std::thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| signals.read(&host, order, &barrier));
        }
        // Ends the readers even if something below fails.
        struct Stop<'a>(&'a Signals);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.stop.store(true, Ordering::SeqCst);
            }
        }
        let _stop = Stop(&signals);
        barrier.wait();
        let mut now = Vec::new();
        for round in 0..rounds {
            let mut times = 0;
            let at = round * 0x9e37 % (pages - 70);
            let next = match round % 3 {
                0 => vec![at..at + 1],
                1 => vec![at / 2..at / 2 + 1, at / 2 + 65..at / 2 + 70],
                _ => Vec::new(),
            };
            let t = Transition::new(block(order, 0), orders, now.as_slice(), next.as_slice());
            turned_round(&host, &t, || signals.refused(&mut times));
            carry_out(&host, &t, || signals.refused(&mut times));
            signals.pause.store(false, Ordering::SeqCst);
            now = next;
        }
        let mut times = 0;
        let t = Transition::new(block(order, 0), orders, now.as_slice(), Empty);
        carry_out(&host, &t, || signals.refused(&mut times));
        drop(_stop);
    });
    assert!(signals.taken.load(Ordering::SeqCst) > 0);
    host.check(&Transition::new(block(order, 0), orders, Empty, Empty).to_layout()).unwrap();
    assert_eq!(host.outstanding(), start);
}

#[test]
fn no_reader_gets_a_head_that_does_not_cover_its_page() {
    let some = OrderSet::new([0, 3, 7, 10, 12].map(|order| Order::new(order).unwrap())).unwrap();
    for tails in common::SCHEMES {
        run(9, OrderSet::ALL, tails, 150, 2);
        run(12, some, tails, 30, 2);
    }
}

#[test]
fn one_gigabyte() {
    run(18, OrderSet::HUGETLB, TailScheme::PerOrder, 2, 1);
}
