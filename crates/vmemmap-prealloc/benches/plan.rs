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
    for _ in 0..300 {
        let start = Instant::now();
        for _ in 0..rounds {
            black_box(call());
        }
        let each = start.elapsed().as_nanos() as f64 / f64::from(rounds);
        best = best.min(each);
        if each * f64::from(rounds) < 1e6 {
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

fn block(order: u8) -> PfnBlock {
    PfnBlock::new(Pfn::new(0).unwrap(), Order::new(order).unwrap()).unwrap()
}

fn main() {
    let runs: [Range<u64>; 4] = [1000..1001, 70_000..70_512, 100_000..100_001, 200_000..200_700];
    for (name, orders) in [("18,9,0", OrderSet::HUGETLB), ("all", OrderSet::ALL)] {
        for (size, order) in BLOCKS {
            for count in 1..=4 {
                let of = |from: &[Range<u64>], to: &[Range<u64>]| {
                    let (from, to) = (black_box(from), black_box(to));
                    plan(&Transition::new(block(order), black_box(orders), from, to))
                };
                let to = runs.get(..count).unwrap();
                let counts = time(|| FolioLayout::new(block(order), orders, black_box(to)).counts().folios());
                let [first, back, more] =
                    [(&[][..], to), (to, &[][..]), (runs.get(..count - 1).unwrap(), to)]
                        .map(|(from, to)| time(|| of(from, to)));
                println!(
                    "{name:6} {size:7} {count} runs: counts {counts:5.1} ns; plan {first:5.1} ns, back {back:5.1} ns, \
                     of the last run alone {more:5.1} ns"
                );
            }
        }
        let one = runs.get(..1).unwrap();
        let list = time(|| {
            FolioLayout::new(block(18), orders, black_box(one)).folios(0).map(|folio| folio.pages()).sum()
        });
        println!("{name:6} 1 GiB   1 run: list of folios {list:.1} ns");
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
        println!(
            "{name:6} 1 GiB   {what}: plan {whole:.0} ns; one pass {pass:.0} ns ({:.1} x), word by word {words:.0} ns \
             ({:.1} x); plan without one page {minus:.0} ns",
            whole / pass,
            whole / words
        );
    }
}
