//! Sets, however they are kept.

use super::{Rng, bitmap, block};
use crate::*;
use std::vec::Vec;

/// A set, and whether a page is a member.
type Case<'a> = (&'a dyn PageSet, &'a dyn Fn(u64) -> bool);

#[test]
fn sets_agree_with_their_pages() {
    const PAGES: u64 = 300;
    for seed in 1..120 {
        let mut rng = Rng(seed);
        let (a, b) = (rng.runs(12, PAGES, 70), rng.runs(12, PAGES, 70));
        let (wa, wb) = (bitmap(&a, PAGES), bitmap(&b, PAGES));
        let seam = rng.next(PAGES);
        let has = |words: &[u64], page: u64| {
            words.get(page as usize / 64).is_some_and(|w| w >> (page % 64) & 1 != 0)
        };
        let a = a.as_slice();
        let (wa, wb) = (wa.as_slice(), wb.as_slice());
        let splice = Splice { left: a, right: wb, at: seam };
        let words = Splice { left: wa, right: Minus(wb, 70..130), at: seam };
        let cases: [Case; 8] = [
            (&a, &|p| has(wa, p)),
            (&wa, &|p| has(wa, p)),
            (&Union(a, wb), &|p| has(wa, p) || has(wb, p)),
            (&Minus(wa, seam..seam + 60), &|p| has(wa, p) && !(seam..seam + 60).contains(&p)),
            (&splice, &|p| if p < seam { has(wa, p) } else { has(wb, p) }),
            (&(seam..seam + 99), &|p| (seam..seam + 99).contains(&p)),
            (&words, &|p| if p < seam { has(wa, p) } else { has(wb, p) && !(70..130).contains(&p) }),
            (&Union(wa, seam..seam + 9), &|p| has(wa, p) || (seam..seam + 9).contains(&p)),
        ];
        for (i, (set, member)) in cases.into_iter().enumerate() {
            for from in 0..PAGES + 70 {
                let start = (from..PAGES + 70).find(|&p| member(p));
                let run = set.next_run(from);
                assert_eq!(run.as_ref().map(|run| run.start), start, "seed {seed} case {i} from {from}");
                assert!(
                    run.is_none_or(|run| !run.is_empty() && run.clone().all(member)),
                    "seed {seed} case {i}"
                );
            }
            let mut line = [7; 64];
            // Ranges in a slice have no lines.
            assert_eq!(set.line(0, &mut line), ![0, 2, 4].contains(&i), "seed {seed} case {i}");
            if ![0, 2, 4].contains(&i) {
                let bits = |word: u64| (0..64).filter(move |bit| member(word * 64 + bit));
                let want = |word| bits(word).fold(0, |want, bit| want | 1_u64 << bit);
                assert!(line.iter().copied().eq((0..64).map(want)), "seed {seed} case {i}");
                assert!(set.line(1, &mut line) && line == [0; 64], "seed {seed} case {i}");
            }
        }
    }
}

/// A set that is read as runs, as a handful of them, or in lines of words: orders that are no members count nothing.
#[test]
fn counts_do_not_depend_on_how_a_set_is_read() {
    let some = OrderSet::from_bits(1 << 18 | 1 << 13 | 1 << 10 | 1 << 3 | 1).unwrap();
    for orders in [some, OrderSet::ALL, OrderSet::HUGETLB] {
        for count in 1..70 {
            let runs: Vec<_> = (0..count).map(|i| i / 2 * 1000 + i % 2 * 2).map(|at| at..at + 1).collect();
            let words = bitmap(&runs, 1 << 18);
            let by_runs = FolioLayout::new(block(18), orders, runs.as_slice()).counts();
            let by_words = FolioLayout::new(block(18), orders, words.as_slice()).counts();
            assert!(by_runs == by_words, "{count} runs, {orders}");
            let members = by_runs.by_order().map(|(order, folios)| folios << order.raw()).sum::<u64>();
            assert_eq!(members, 1 << 18);
        }
    }
}
