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

use common::{block, carry_out, host};
use folio_split::{Change, Empty, FolioBackend, Order, OrderSet, PageSet, Pfn, Transition};
use sept_core::{FrameKind, FrameStore, test_util::VecStore};
use std::sync::{
    Barrier,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use vmemmap_mmap::MmapHost;
use vmemmap_prealloc::{VmemmapBackend, VmemmapNeeds, apply_merge, apply_split, reserve};

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

/// Everything that a transition does, and back, inside one freeze.
fn turned_round<A: PageSet, B: PageSet>(
    host: &MmapHost,
    t: &Transition<A, B>,
    metadata: bool,
    mut refused: impl FnMut(),
) {
    let needs = VmemmapNeeds::plan(host, t, &t.counts());
    let mut store = VecStore::default();
    reserve(&needs.frames(), t.block().base().hpa(), host, &mut store).unwrap();
    // Nothing more is to be had.
    host.limit(Some(0));
    for change in t.changes(0..t.block().pages()) {
        let Change::Split(whole) = change else { continue };
        let mut frozen = loop {
            match host.freeze(whole, 4) {
                Ok(frozen) => break frozen,
                Err(_) => refused(),
            }
        };
        let applied = apply_split(host, t, whole, &mut store).unwrap();
        let _ = host.flush();
        if metadata {
            folio_split::commit_split(host, t, whole, &mut frozen, &mut ()).unwrap();
            folio_split::commit_merge(host, &t.reversed(), whole, &mut frozen).unwrap();
        }
        assert_eq!(apply_merge(host, &t.reversed(), whole).unwrap().replaced, applied.fresh);
        let flushed = host.flush();
        host.thaw(frozen);
        assert_eq!(host.release(t.block(), &flushed, host), applied.fresh);
    }
    host.limit(None);
    vmemmap_prealloc::give_back(&needs.frames(), host, &mut store);
    assert_eq!(store.count(FrameKind::Vmemmap), 0);
}

fn run(order: u8, orders: OrderSet, rounds: u64, readers: usize) {
    let host = host(order, 1, orders);
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
            turned_round(&host, &t, round % 2 == 0, || signals.refused(&mut times));
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
    run(9, OrderSet::ALL, 300, 2);
    let some = OrderSet::new([0, 3, 7, 10, 12].map(|order| Order::new(order).unwrap())).unwrap();
    run(12, some, 60, 2);
}

#[test]
fn one_gigabyte() {
    run(18, OrderSet::HUGETLB, 3, 1);
}
