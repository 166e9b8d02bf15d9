//! Runs of changes against lists of folios, however the sets give their runs.

use super::{
    Rng, STRIDE, bitmap, block, check_counts, large::mixed_reference, order_sets, reference_changes,
};
use crate::*;
use core::ops::Range;
use std::vec::Vec;

/// A set that gives at most so many pages at once.
#[derive(Clone, Copy)]
struct Chopped<S>(S, u64);

impl<S: PageSet> PageSet for Chopped<S> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        self.0.next_run(from).map(|run| run.start..run.end.min(run.start + self.1))
    }

    fn next_large(&self, from: u64) -> Option<Range<u64>> {
        self.0.next_large(from).map(|run| run.start..run.end.min(run.start + self.1))
    }

    fn line(&self, index: u64, line: &mut Line) -> bool {
        self.0.line(index, line)
    }
}

/// The runs are the changes, in order, and say of their pieces what is so.
fn check_runs<A: PageSet, B: PageSet>(
    t: &Transition<A, B>,
    window: Range<u64>,
    (from, to): (&[u8], &[u8]),
    want: &[Change],
) {
    let mut left = want.iter();
    for run in t.change_runs(window.clone()) {
        assert!(run.count > 0);
        for i in 0..run.count {
            let change = left.next().expect("more changes than there are");
            let page = t.block().offset_of(change.whole().base()).unwrap() as usize;
            let (first, piece) = match change {
                Change::Split(_) => (Change::Split(run.first.whole()), to[page]),
                Change::Merge(_) => (Change::Merge(run.first.whole()), from[page]),
            };
            let start = run.first.whole().base().raw() + (i << run.first.whole().order().raw());
            assert_eq!(first, run.first, "one kind");
            assert_eq!(change.whole().order(), run.first.whole().order(), "one order");
            assert_eq!(change.whole().base().raw(), start, "one after the other");
            assert_eq!(piece, if i == 0 { run.first_piece.raw() } else { 0 }, "of {change:?}");
        }
    }
    assert_eq!(left.next(), None, "a change was left out of {window:?}");
    assert!(t.changes(window).eq(want.iter().copied()));
}

/// One transition, its windows, and the numbers of its layouts.
fn check<A: PageSet, B: PageSet>(t: &Transition<A, B>, from: &[u8], to: &[u8], windows: &[Range<u64>]) {
    let (block, base) = (t.block(), t.block().base().raw());
    let want = reference_changes(block, from, to);
    check_runs(t, 0..block.pages(), (from, to), &want);
    for window in windows {
        let touches = |change: &&Change| {
            let range = change.whole().range();
            window.start < window.end && range.start < base + window.end && base + window.start < range.end
        };
        let want: Vec<_> = want.iter().filter(touches).copied().collect();
        check_runs(t, window.clone(), (from, to), &want);
    }
    let between: Vec<_> = from.iter().zip(to).map(|(a, b)| *a.min(b)).collect();
    let counts = t.counts();
    check_counts(block.order().raw(), from, counts.from());
    check_counts(block.order().raw(), to, counts.to());
    check_counts(block.order().raw(), &between, counts.between());
}

#[test]
fn every_transition_of_four_pages_with_runs_that_stay_large() {
    let windows: Vec<_> = (0..5).flat_map(|start| (0..6).map(move |end| start..end)).collect();
    for orders in order_sets(2) {
        for i in (0..1_u64 << 16).filter(|i| i.is_multiple_of(STRIDE)) {
            let [(sa, la), (sb, lb)] = [(i & 15, i >> 4 & 15), (i >> 8 & 15, i >> 12)];
            let words = [[sa], [la], [sb], [lb]];
            let [wa, xa, wb, xb] = words.each_ref().map(|word| word.as_slice());
            let (a, b) = (Union(wa, Large(xa)), Union(wb, Large(xb)));
            let (from, to) = (mixed_reference(2, orders, sa, la), mixed_reference(2, orders, sb, lb));
            check(&Transition::new(block(2), orders, a, b), &from, &to, &windows);
            let chopped = Transition::new(block(2), orders, Chopped(a, 1), Chopped(b, 2));
            check(&chopped, &from, &to, &[]);
        }
    }
}

/// All sets of eight pages, and of sixty-four at random, where orders go from few to all and runs are long.
#[test]
fn runs_of_changes_are_those_of_the_lists() {
    for orders in order_sets(3) {
        for i in (0..1_u64 << 16).filter(|i| i.is_multiple_of(STRIDE)) {
            let (a, b) = ([i & 255], [i >> 8]);
            let (from, to) = (mixed_reference(3, orders, a[0], 0), mixed_reference(3, orders, b[0], 0));
            check(&Transition::new(block(3), orders, a.as_slice(), b.as_slice()), &from, &to, &[]);
        }
    }
    let mut rng = Rng(4242);
    for round in 0..4000 {
        let orders = OrderSet::from_bits(rng.next(64) << 1 | 1).unwrap();
        let mut draw = || {
            let (most, longest) = (rng.next(6), rng.next(60) + 1);
            bitmap(&rng.runs(most, 64, longest), 64)[0]
        };
        let words = [[draw()], [draw()], [draw()], [draw()]];
        let large = if round % 2 == 0 { 0 } else { u64::MAX };
        let [(sa, la), (sb, lb)] = [(words[0][0], words[1][0] & large), (words[2][0], words[3][0] & large)];
        let (from, to) = (mixed_reference(6, orders, sa, la), mixed_reference(6, orders, sb, lb));
        let (la, lb) = ([la], [lb]);
        let a = Union(words[0].as_slice(), Large(la.as_slice()));
        let b = Union(words[2].as_slice(), Large(lb.as_slice()));
        let windows: Vec<_> = (0..4).map(|_| rng.next(65)..rng.next(65)).collect();
        let t = Transition::new(block(6), orders, a, b);
        check(&t, &from, &to, &windows);
        let (few, fewer) = (rng.next(9) + 1, rng.next(3) + 1);
        let chopped = Transition::new(block(6), orders, Chopped(a, few), Chopped(b, fewer));
        check(&chopped, &from, &to, &windows);
        // A change that begins where a run of another goes on.
        let seam = rng.next(65);
        let step = t.step(0, seam);
        let low = if seam == 64 { u64::MAX } else { (1 << seam) - 1 };
        let mix = |left: u64, right: u64| left & low | right & !low;
        let spliced = mixed_reference(6, orders, mix(sb, sa), mix(lb[0], la[0]));
        check(&step, &from, &spliced, &windows);
    }
}

/// What two bitmaps have in common bounds the folios behind it, though it is not read page by page.
#[test]
fn lines_that_are_alike_bound_what_comes_after() {
    let pages = |lines: Range<usize>, line: usize| {
        let mut words = std::vec![0_u64; 256];
        words[lines.start * 64..lines.end * 64].fill(0x5555_5555_5555_5555);
        words[line * 64] |= 1 << 8;
        words
    };
    for (last, order) in [(3, 12), (2, 13), (1, 13)] {
        let (from, to) = (pages(0..last, 0), pages(0..last, 3));
        let t = Transition::new(block(14), OrderSet::ALL, from.as_slice(), to.as_slice());
        let first = Order::new(order).unwrap();
        let whole = block(14).part(3 << 12 & !(first.pages() - 1), first).unwrap();
        assert_eq!(t.changes(0..1 << 14).collect::<Vec<_>>(), [Change::Split(whole)]);
        assert_eq!(t.reversed().changes(0..1 << 14).collect::<Vec<_>>(), [Change::Merge(whole)]);
    }
}

/// Where single pages of both sets are passed over in lines, the folios after them begin where they should.
#[test]
fn lines_that_are_alike_are_passed_over() {
    let mut rng = Rng(99);
    for round in 0..40 {
        let orders = if round % 4 == 0 {
            OrderSet::ALL
        } else {
            OrderSet::from_bits(rng.next(1 << 14) << 1 | 1).unwrap()
        };
        let mut words = std::vec![0x5555_5555_5555_5555_u64; 256];
        // Holes that end inside of a line.
        for run in rng.runs(4, 16384, 5000) {
            for page in run {
                words[page as usize / 64] &= !(1 << (page % 64));
            }
        }
        let mut more = words.clone();
        for _ in 0..rng.next(4) {
            let page = rng.next(16384);
            more[page as usize / 64] ^= 1 << (page % 64);
        }
        let edges = [rng.next(16384)..16384];
        let large = if round % 2 == 0 { &edges[..] } else { &[] };
        let has = |words: &[u64], page: u64| words[page as usize / 64] >> (page % 64) & 1 != 0;
        let list = |small: &[u64], large: &[Range<u64>]| {
            let mut out = Vec::new();
            while out.len() < 16384 {
                let at = out.len() as u64;
                let clean = |o: Order| {
                    let pages = at..at + o.pages();
                    o == Order::PAGE
                        || at.is_multiple_of(o.pages())
                            && pages.end <= 16384
                            && large.iter().all(|run| run.start <= pages.start || pages.end <= run.start)
                            && !pages.clone().any(|page| has(small, page))
                };
                let folio = orders.iter().rev().find(|&o| clean(o)).unwrap();
                out.extend((0..folio.pages()).map(|_| folio.raw()));
            }
            out
        };
        let a = Union(words.as_slice(), Large(large));
        let (from, to) = (list(&words, large), list(&more, &[]));
        let t = Transition::new(block(14), orders, a, more.as_slice());
        let start = rng.next(16384);
        check(&t, &from, &to, &[start..16384, 0..start, start / 2..start]);
        check(&t.reversed(), &to, &from, &[start..16384]);
    }
}
