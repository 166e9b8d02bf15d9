//! How often a set is asked: no more often than it has runs, however long they are, and never for what lies behind the block.

use super::{Rng, bitmap, block};
use crate::*;
use core::{cell::Cell, ops::Range};
use std::{boxed::Box, vec, vec::Vec};

/// A set that counts how often it is asked.
#[derive(Clone, Copy)]
struct Counted<'a, S>(S, &'a Cell<u64>);

impl<S: PageSet> PageSet for Counted<'_, S> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        asked(self.1);
        self.0.next_run(from)
    }

    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        asked(self.1);
        self.0.next_large(from)
    }

    fn line(&self, index: u64, line: &mut Line) -> bool {
        self.0.line(index, line)
    }
}

/// More questions than any block here has pages, many times over.
fn asked(count: &Cell<u64>) {
    count.set(count.get() + 1);
    assert!(count.get() < 1 << 17, "asked for ever");
}

/// Everything that reads both sets of a transition to its end.
fn read_all<A: PageSet, B: PageSet>(t: &Transition<A, B>) -> [u64; 4] {
    let end = t.block().pages();
    [
        t.counts().to().folios(),
        t.change_runs(0..end).map(|run| run.count).sum(),
        t.changes(0..end).count() as u64,
        t.step(end / 2, end).changes(0..end).count() as u64,
    ]
}

#[test]
fn a_plan_reads_each_run_a_few_times() {
    let (long, longer) = ([9..10, 70_000..100_000, 130_000..190_003], [9..10, 60_000..200_000]);
    let orders = [18, 12, 6, 0].map(|order| Order::new(order).unwrap());
    for orders in [OrderSet::ALL, OrderSet::HUGETLB, OrderSet::new(orders).unwrap()] {
        for (from, to) in [(&long[..1], &long[..]), (&long[..], &long[..1]), (&long[..], &longer[..])] {
            let count = Cell::new(0);
            let t = Transition::new(block(18), orders, Counted(from, &count), Counted(to, &count));
            let _ = t.counts();
            assert!(count.replace(0) < 60, "{orders}");
            let runs = t.change_runs(0..1 << 18);
            let (runs, changed) = runs.fold((0, 0), |(runs, sum), run| (runs + 1, sum + run.count));
            // At most once up and once down all orders for each run.
            assert!(runs <= 2 * 18 * 3 && count.get() < 8 * 18 * 3, "{orders}: {runs} runs, {}", count.get());
            assert_eq!(changed, t.changes(0..1 << 18).count() as u64);
        }
    }
    // Folios of 2 MiB alone: two runs of them, one to each side of what is single already.
    let t = Transition::new(block(18), OrderSet::HUGETLB, 100_000..100_001, 50_000..150_000);
    let runs: Vec<_> = t.change_runs(0..1 << 18).map(|run| (run.first.whole(), run.count)).collect();
    let part = |at: u64| block(18).part(at * 512, Order::HUGE_2M).unwrap();
    assert_eq!(runs, [(part(97), 98), (part(196), 97)]);
}

/// One page more, or less, where every other page is single already.
#[test]
fn what_two_bitmaps_have_in_common_is_passed_over_in_lines() {
    let every_other = vec![0x5555_5555_5555_5555_u64; 4096];
    for page in [1, 4095, 4096, 131_073, (1 << 18) - 1] {
        let mut more = every_other.clone();
        more[page / 64] |= 1 << (page % 64);
        let count = Cell::new(0);
        let (a, b) = (Counted(every_other.as_slice(), &count), Counted(more.as_slice(), &count));
        let t = Transition::new(block(18), OrderSet::ALL, a, b);
        assert_eq!(t.changes(0..1 << 18).count(), 0, "both pages of each pair are single");
        assert!(count.get() < 10_000, "{}", count.get());
        more[page / 64] &= !(3 << ((page % 64) & !1));
        let t = Transition::new(block(18), OrderSet::ALL, every_other.as_slice(), more.as_slice());
        let pair = block(18).part(page as u64 & !1, Order::new(1).unwrap()).unwrap();
        assert!(t.changes(0..1 << 18).eq([Change::Merge(pair)]));
        assert!(t.reversed().changes(0..1 << 18).eq([Change::Split(pair)]));
    }
}

#[test]
fn runs_that_stay_large_are_read_once() {
    let large: Vec<_> = (0..256).map(|i| i * 1024..i * 1024 + 512).collect();
    let small: Vec<_> = (0..256).map(|i| i * 1024 + 700..i * 1024 + 701).collect();
    let count = Cell::new(0);
    let set = Counted(Union(small.as_slice(), Large(large.as_slice())), &count);
    let layout = FolioLayout::new(block(18), OrderSet::ALL, set);
    let counts = layout.counts();
    assert!(count.get() < 2048, "{}", count.get());
    // The shared 2 MiB, and what one single page makes of the other one.
    assert_eq!(counts.folios(), 256 * (1 + 10));
}

/// Sets that have no end, and sets that keep no promise.
#[derive(Clone, Copy)]
struct Odd<'a> {
    kind: u64,
    large: bool,
    count: &'a Cell<u64>,
}

impl PageSet for Odd<'_> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        asked(self.count);
        let odd = from | 1;
        let mut rng = Rng(from ^ self.count.get() << 20 | 1);
        Some(match self.kind {
            // Every other page of all memory, or every page, one by one.
            0 => odd..odd.saturating_add(1),
            1 => from..from.saturating_add(1),
            2 => 0..u64::MAX,
            // Empty, behind, before, anywhere.
            3 => Range { start: 5, end: 3 },
            4 => u64::MAX - 1..u64::MAX,
            5 => from.saturating_sub(7)..from.saturating_add(rng.next(9)),
            _ => rng.next(u64::MAX)..rng.next(u64::MAX),
        })
    }

    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        if self.large { self.next_run(from) } else { None }
    }
}

#[test]
fn no_set_makes_a_loop_longer_than_the_block() {
    for (a, b) in (0..14).flat_map(|a| (0..14).map(move |b| (a, b))) {
        for order in [0, 4, 9] {
            let count = Cell::new(0);
            let odd = |kind: u64| Odd { kind: kind / 2, large: !kind.is_multiple_of(2), count: &count };
            let last = Pfn::new(((1 << 40) - 1) & !((1 << order) - 1)).unwrap();
            let last = PfnBlock::new(last, Order::new(order).unwrap()).unwrap();
            let sets: [Box<dyn PageSet>; 5] = [
                Box::new(odd(a)),
                Box::new(Union(odd(a), odd(b))),
                Box::new(Minus(odd(a), 3..1 << 20)),
                Box::new(Splice { left: odd(a), right: odd(b), at: 5 }),
                Box::new(Large(Union(odd(a), odd(b)))),
            ];
            for (set, orders) in sets.iter().flat_map(|set| [(set, OrderSet::ALL), (set, OrderSet::HUGETLB)])
            {
                let set = set.as_ref();
                count.set(0);
                let _ = read_all(&Transition::new(last, orders, set, odd(b)));
                let _ = read_all(&Transition::new(last, orders, set, set));
                count.set(0);
                let _ = FolioLayout::new(last, orders, set).folio_at(3);
            }
        }
    }
    // Runs out of order, and over each other.
    let mut rng = Rng(5);
    for _ in 0..200 {
        let runs: Vec<_> = (0..20).map(|_| rng.next(600)..rng.next(600)).collect();
        let words = bitmap(&[3..9], 512);
        let _ = read_all(&Transition::new(block(9), OrderSet::ALL, runs.as_slice(), words.as_slice()));
    }
}
