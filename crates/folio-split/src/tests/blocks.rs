//! Blocks of all sizes at random.

use super::{Rng, bitmap, block, orders_of, reference};
use crate::*;
use core::ops::Range;
use std::{collections::BTreeMap, vec::Vec};

/// Numbers of blocks that hold a small page, by order: the sum over runs, less what a run shares with the one before.
fn touched(runs: &[Range<u64>]) -> [u64; 19] {
    core::array::from_fn(|o| {
        let blocks = runs.iter().map(|run| ((run.end - 1) >> o) - (run.start >> o) + 1).sum::<u64>();
        let shared = runs.windows(2).filter(|pair| (pair[0].end - 1) >> o == pair[1].start >> o).count();
        blocks - shared as u64
    })
}

/// Against lists of all pages, and against the closed forms.
#[test]
fn large_blocks_at_random() {
    let sets = [
        OrderSet::ALL,
        OrderSet::HUGETLB,
        OrderSet::PAGES,
        OrderSet::from_bits(0b1_0010_0100_0000_0001).unwrap(),
        OrderSet::from_bits(0b100_0010_0100_0000_1001).unwrap(),
    ];
    for seed in 1..60 {
        let mut rng = Rng(seed);
        let longest = 1 << rng.next(14);
        let most = [1, 2, 7, 50][rng.next(4) as usize];
        let runs = rng.runs(most, 1 << 18, longest);
        let words = bitmap(&runs, 1 << 18);
        let orders = sets[rng.next(5) as usize];
        let by_runs = FolioLayout::new(block(18), orders, runs.as_slice());
        let by_words = FolioLayout::new(block(18), orders, words.as_slice());
        let want = reference(18, orders, &|page| words[page as usize / 64] >> (page % 64) & 1 != 0);
        assert!(orders_of(&by_runs) == want, "seed {seed}");
        let counts = by_runs.counts();
        check_counts_large(&want, &counts);
        assert_eq!(counts, by_words.counts());

        let m = touched(&runs);
        let levels: Vec<_> = orders.clipped(Order::HUGE_1G).iter().rev().map(Order::raw).collect();
        let mut folios = 1 << (18 - levels[0]);
        for pair in levels.windows(2) {
            assert_eq!(counts.touched(Order::new(pair[0]).unwrap()), Some(m[usize::from(pair[0])]));
            folios += ((1 << (pair[0] - pair[1])) - 1) * m[usize::from(pair[0])];
        }
        assert_eq!(counts.folios(), folios, "seed {seed}");
        let nodes = XArray::LINUX.units(&counts);
        match orders {
            OrderSet::ALL if !runs.is_empty() => assert_eq!(nodes, 1 + m[12] + m[6]),
            OrderSet::HUGETLB if !runs.is_empty() => {
                assert_eq!((folios, nodes), (512 + 511 * m[9], 65 + 8 * m[9]));
            }
            OrderSet::PAGES => assert_eq!((folios, nodes), (1 << 18, 4161)),
            _ => {}
        }
    }
}

fn check_counts_large(orders: &[u8], counts: &LayoutCounts) {
    for o in 0..=18_u8 {
        let pages = orders.iter().filter(|&&of| of == o).count() as u64;
        assert_eq!(counts.folios_of(Order::new(o).unwrap()), pages >> o);
    }
    for o in [1, 5, 6, 7, 9, 12, 13, 18] {
        let broken = orders.chunks(1 << o).filter(|chunk| chunk.iter().any(|&of| of < o)).count() as u64;
        assert_eq!(counts.fragmented(Order::new(o).unwrap()), broken);
    }
}

#[test]
fn blocks_of_other_orders() {
    let one = |order: u8, orders| FolioLayout::new(block(order), orders, 5..6).counts();
    assert_eq!(XArray::LINUX.units(&one(9, OrderSet::HUGETLB)), 8);
    assert_eq!(XArray::LINUX.units(&one(9, OrderSet::ALL)), 1);
    assert_eq!(one(9, OrderSet::HUGETLB).folios(), 512);
    // 512 GiB: 511 folios of 1 GiB appear, then it goes on as in a 1 GiB block.
    let huge = OrderSet::new([27, 18, 9, 0].map(|order| Order::new(order).unwrap())).unwrap();
    assert_eq!(one(27, huge).folios(), 511 + 1023);
    assert_eq!(one(27, OrderSet::HUGETLB).folios(), 511 + 1023);
    assert_eq!(one(40, OrderSet::ALL).folios(), 41);
    let single = FolioLayout::new(block(0), OrderSet::HUGETLB, Empty);
    assert_eq!(single.folios(0).collect::<Vec<_>>(), [block(0)]);
    assert_eq!(single.counts().folios(), 1);
    assert_eq!(XArray::LINUX.units(&single.counts()), 0);
}

/// Folios of a block of any size, from the gaps between runs: the largest aligned one that fits, again and again.
fn by_gaps(order: u8, orders: OrderSet, runs: &[Range<u64>]) -> Vec<(u64, u8)> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < 1 << order {
        let small = runs.iter().any(|run| run.contains(&at));
        let next = runs.iter().map(|run| run.start).filter(|&start| start > at).min().unwrap_or(1 << order);
        let fits = |o: &Order| {
            o.raw() <= order && (*o == Order::PAGE || !small && at % o.pages() == 0 && at + o.pages() <= next)
        };
        let folio = orders.iter().rev().find(fits).unwrap();
        out.push((at, folio.raw()));
        at += folio.pages();
    }
    out
}

/// Blocks up to 512 GiB and 4 TiB: folios, counts, and what changes between two layouts.
#[test]
fn huge_blocks_at_random() {
    let huge = OrderSet::new([27, 18, 9, 0].map(|order| Order::new(order).unwrap())).unwrap();
    for seed in 1..60 {
        let mut rng = Rng(seed);
        let order = [27, 27, 30, 22][rng.next(4) as usize];
        let orders = if order == 27 && rng.next(3) == 0 { huge } else { OrderSet::ALL };
        let pages = 1 << order;
        let sets = [rng.runs(4, pages, 40), rng.runs(4, pages, 40)];
        let [a, b] = sets.each_ref().map(|runs| runs.as_slice());
        let t = Transition::new(block(order), orders, a, b);
        let [from, to] = [a, b].map(|runs| by_gaps(order, orders, runs));
        for (layout, want) in [(t.from_layout(), &from), (t.to_layout(), &to)] {
            let offset = |folio: PfnBlock| layout.block().offset_of(folio.base()).unwrap();
            let folios: Vec<_> = layout.folios(0).map(|folio| (offset(folio), folio.order().raw())).collect();
            assert!(folios == *want, "seed {seed}");
            let counts = layout.counts();
            assert_eq!(counts.folios(), want.len() as u64);
            for o in orders.clipped(Order::new(order).unwrap()) {
                let of = want.iter().filter(|&&(_, of)| of == o.raw()).count() as u64;
                assert_eq!(counts.folios_of(o), of, "seed {seed}, order {o}");
            }
            for &(at, of) in want.iter().step_by(7) {
                let page = at + rng.next(1 << of);
                assert_eq!(layout.folio_at(page).order().raw(), of, "seed {seed}");
            }
        }
        // A folio of one layout that the other has in pieces.
        let index = |folios: &[(u64, u8)]| folios.iter().copied().collect::<BTreeMap<_, _>>();
        let (old, new) = (index(&from), index(&to));
        let smaller =
            |other: &BTreeMap<u64, u8>, at: u64, order: u8| other.get(&at).is_some_and(|&of| of < order);
        let whole = |at: u64, order: u8| block(order_of(&t)).part(at, Order::new(order).unwrap()).unwrap();
        let mut want: Vec<_> = from
            .iter()
            .filter(|&&(at, order)| smaller(&new, at, order))
            .map(|&(at, order)| Change::Split(whole(at, order)))
            .chain(
                to.iter()
                    .filter(|&&(at, order)| smaller(&old, at, order))
                    .map(|&(at, order)| Change::Merge(whole(at, order))),
            )
            .collect();
        want.sort_by_key(|change| change.whole());
        assert!(t.changes(0..u64::MAX).eq(want.iter().copied()), "seed {seed}");
        // Nodes for the whole are the sum of those for each change.
        let (mut needed, mut freed) = (0, 0);
        for &change in &want {
            let one = t.delta_of(change, &XArray::LINUX);
            (needed, freed) = (needed + one.needed, freed + one.freed);
        }
        assert_eq!(t.delta(&XArray::LINUX), CostDelta { needed, freed });
        assert_eq!(t.reversed().delta(&XArray::LINUX), t.delta(&XArray::LINUX).reversed());
    }
}

fn order_of<A: PageSet, B: PageSet>(t: &Transition<A, B>) -> u8 {
    t.block().order().raw()
}
