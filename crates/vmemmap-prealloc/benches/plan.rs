//! What a plan costs: the exact counts of a transition, and with them index nodes and everything of the vmemmap. Run with
//! `cargo bench -p vmemmap-prealloc --bench plan`; nothing is asserted.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    reason = "a program of its own"
)]

use core::{hint::black_box, ops::Range};
use folio_split::{Empty, FolioLayout, Minus, Order, OrderSet, PageSet, Pfn, PfnBlock, Transition, XArray};
use std::time::Instant;
use vmemmap_prealloc::{BlockState, Geometry, VmemmapNeeds};

/// The best of many rounds, in nanoseconds per call.
fn time(mut call: impl FnMut() -> u64) -> f64 {
    let mut best = f64::MAX;
    let mut rounds = 16_u32;
    for _ in 0..200 {
        let start = Instant::now();
        for _ in 0..rounds {
            black_box(call());
        }
        let each = start.elapsed().as_nanos() as f64 / f64::from(rounds);
        best = best.min(each);
        if each * f64::from(rounds) < 1e5 {
            rounds = rounds.saturating_mul(4).min(1 << 16);
        }
    }
    best
}

/// All that a plan says.
fn plan<A: PageSet, B: PageSet>(t: &Transition<A, B>) -> u64 {
    let counts = t.counts();
    let index = counts.delta(&XArray::LINUX);
    let needs = VmemmapNeeds::with_counts(t, &counts, &Geometry::LINUX_X86_64, BlockState::Optimized);
    counts.to().folios() + index.needed + needs.fresh + needs.rewrites + needs.flushes
}

const BLOCKS: [(&str, u8); 2] = [("1 GiB", 18), ("512 GiB", 27)];

/// Sets of 1 to 4 runs: short ones, and some of many 2 MiB blocks.
const RUNS: [(&str, [Range<u64>; 4]); 2] = [
    ("short", [1000..1001, 70_000..70_512, 100_000..100_001, 200_000..200_700]),
    ("long", [1000..1001, 70_000..100_000, 120_000..140_003, 200_000..250_700]),
];

fn block(order: u8) -> PfnBlock {
    PfnBlock::new(Pfn::new(0).unwrap(), Order::new(order).unwrap()).unwrap()
}

fn order_sets() -> [(&'static str, OrderSet); 4] {
    [
        ("18,9,0", OrderSet::HUGETLB),
        ("all", OrderSet::ALL),
        ("18,12,6,0", set([18, 12, 6, 0])),
        ("9,0", set([9, 0])),
    ]
}

fn set<const N: usize>(orders: [u8; N]) -> OrderSet {
    OrderSet::new(orders.map(|order| Order::new(order).unwrap())).unwrap()
}

fn main() {
    for (name, orders) in order_sets() {
        for (size, order) in BLOCKS {
            for (length, runs) in &RUNS {
                let of = |from: &[Range<u64>], to: &[Range<u64>]| {
                    let (from, to) = (black_box(from), black_box(to));
                    time(|| plan(&Transition::new(block(order), black_box(orders), from, to)))
                };
                for count in 1..=4 {
                    let (all, fewer) = (runs.get(..count).unwrap(), runs.get(..count - 1).unwrap());
                    let other: Vec<_> = all.iter().map(|run| run.start + 3000..run.end + 3000).collect();
                    println!(
                        "{name:9} {size:7} {count} {length:5} runs: from none {:3.0} ns, to none {:3.0} ns; \
                         the last more {:3.0} ns, less {:3.0} ns; to {count} others {:3.0} ns",
                        of(&[], all),
                        of(all, &[]),
                        of(fewer, all),
                        of(all, fewer),
                        of(all, &other),
                    );
                }
            }
        }
        let one = RUNS[0].1.get(..1).unwrap();
        let list = time(|| {
            FolioLayout::new(block(18), orders, black_box(one)).folios(0).map(|folio| folio.pages()).sum()
        });
        println!("{name:9} 1 GiB   1 run: list of folios {list:.1} ns");
        bitmaps(name, orders);
    }
}

/// Against one pass over the words, which the compiler makes with vector instructions, and one word by word.
fn bitmaps(name: &str, orders: OrderSet) {
    let rows = [("every other page", 0x5555_5555_5555_5555_u64), ("one page in 64", 1), ("no page", 0)];
    for (what, word) in rows {
        let bitmap = vec![word; 4096];
        let bitmap = bitmap.as_slice();
        let pass = time(|| black_box(bitmap).iter().fold(0, |sum, word| sum ^ word));
        let words = time(|| bitmap.iter().fold(0, |sum, word| sum ^ black_box(*word)));
        let whole = time(|| plan(&Transition::new(block(18), orders, Empty, black_box(bitmap))));
        let minus = time(|| plan(&Transition::new(block(18), orders, Empty, Minus(black_box(bitmap), 5..6))));
        // One word, 64 pages, less.
        let fewer: Vec<_> = (0..).zip(bitmap).map(|(i, &word)| if i == 99 { 0 } else { word }).collect();
        let fewer = fewer.as_slice();
        let more = time(|| plan(&Transition::new(block(18), orders, black_box(fewer), black_box(bitmap))));
        let one = time(|| plan(&Transition::new(block(18), orders, 5000..5001, black_box(bitmap))));
        println!(
            "{name:9} 1 GiB   {what}: plan {whole:.0} ns; one pass {pass:.0} ns ({:.1} x), word by word {words:.0} ns \
             ({:.1} x); without one page {minus:.0} ns; 64 pages more {more:.0} ns; from one page {one:.0} ns",
            whole / pass,
            whole / words
        );
    }
}
